"""Names of the layers of PVTv2 in PaddleClas and timm."""

from typing import Any

from jaxcls.convert import engine

TIMM = {f"PVT_V2_B{n}": f"pvt_v2_b{n}" for n in range(6)} | {"PVT_V2_B2_Linear": "pvt_v2_b2_li"}


def paddle(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in PaddleClas."""
    del module
    if layer[0] == "head":
        return "head"
    if layer[0] == "stem":
        return f"patch_embed1.{layer[1]}"
    stage, block = engine.numbers(*layer[:2])
    if layer[2] == "embed":
        return f"patch_embed{stage}.{layer[3]}"
    if layer[2] == "norm":
        return f"norm{stage}"
    inside = ["dwconv.dwconv" if part == "dwconv" else part for part in layer[2:]]
    return ".".join((f"block{stage}.{block - 1}", *inside))


def timm(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in timm."""
    del module
    if layer[0] == "head":
        return "head"
    if layer[0] == "stem":
        return f"patch_embed.{layer[1]}"
    stage, block = engine.numbers(*layer[:2])
    if layer[2] == "embed":
        return f"stages.{stage - 1}.downsample.{layer[3]}"
    if layer[2] == "norm":
        return f"stages.{stage - 1}.norm"
    return ".".join((f"stages.{stage - 1}.blocks.{block - 1}", *layer[2:]))


def torch_sources(module: Any) -> tuple[engine.Source, ...]:
    """Returns the PyTorch networks that have these tensors."""
    del module
    return (engine.Source("timm's pvt_v2_*", timm, timm=TIMM),)
