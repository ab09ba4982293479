"""Names of the layers of ViT and DeiT in PaddleClas and timm, which are the same."""

from typing import Any

from jaxcls.convert import engine

TIMM = {
    **{
        f"ViT_{size}": f"vit_{size}"
        for size in (
            "base_patch16_224",
            "base_patch16_384",
            "base_patch32_384",
            "large_patch16_224",
            "large_patch16_384",
            "large_patch32_384",
        )
    },
    **{
        f"DeiT_{size}_patch16_224": f"deit_{size}_patch16_224" for size in ("tiny", "small", "base")
    },
    **{
        f"DeiT_{size}_distilled_patch16_224": f"deit_{size}_distilled_patch16_224"
        for size in ("tiny", "small", "base")
    },
    "DeiT_base_patch16_384": "deit_base_patch16_384",
    "DeiT_base_distilled_patch16_384": "deit_base_distilled_patch16_384",
}
HEADS = {"fc": "head", "cls": "head", "dist": "head_dist"}


def paddle(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in PaddleClas."""
    if layer[0] == "head":
        return HEADS[layer[1]]
    if layer[0] == "neck":
        return "norm"
    if layer[0] == "stem":
        return {"proj": "patch_embed.proj"}.get(layer[1], layer[1])
    return engine.column_block(layer, module.depth)


def torch_sources(module: Any) -> tuple[engine.Source, ...]:
    """Returns the PyTorch networks that have these tensors."""
    if module.scale is not None:
        raise ValueError("timm has this network no more")
    return (engine.Source("timm's vit_* and deit_*", paddle, timm=TIMM),)
