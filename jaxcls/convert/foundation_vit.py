"""Names of the layers of image encoders in PaddleClas and timm."""

from typing import Any

from jaxcls.convert import engine

CLIP = {
    "base_patch32_224": "base_patch32_clip_224",
    "base_patch16_224": "base_patch16_clip_224",
    "large_patch14_224": "large_patch14_clip_224",
    "large_patch14_336": "large_patch14_clip_336",
}
BLOCK = {"gamma1": ("gamma_1",), "gamma2": ("gamma_2",)}
TABLE = ("attn", "relative_position_bias_table")


def paddle(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in PaddleClas."""
    if layer[0] == "head":
        return "head.fc_head"
    if layer[0] == "neck":
        return {"norm": "norm", "fc_norm": "head.fc_norm", "embed": "proj"}[layer[1]]
    if layer[0] == "stem":
        return {"proj": "patch_embed.proj", "norm": "ln_pre"}.get(layer[1], layer[1])
    inside = TABLE if layer[-1] == "bias_table" else BLOCK.get(layer[2], layer[2:])
    return engine.column_block((*layer[:2], *inside), module.depth)


def timm(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in timm."""
    return {"head.fc_head": "head", "ln_pre": "norm_pre"}.get(
        paddle(layer, module), paddle(layer, module)
    )


def torch_sources(module: Any) -> tuple[engine.Source, ...]:
    """Returns the PyTorch networks that have these tensors."""
    if module.relative or not module.pre_norm:
        raise ValueError("timm's networks of this name have biases of patches, or none of keys")
    return (
        engine.Source(
            "timm's vit_*_clip_*",
            timm,
            needs={"embedding": None, "token": 0},
            differs="no embedding, and the class token is classified",
            timm={f"CLIP_vit_{size}": f"vit_{CLIP[size]}" for size in CLIP},
        ),
    )
