"""Names of the layers of CvT in PaddleClas."""

from typing import Any

from jaxcls.convert import engine


def paddle(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in PaddleClas."""
    del module
    if layer[0] in ("head", "neck"):
        return {"head": "head", "neck": "norm"}[layer[0]]
    if layer[0] == "stem":
        return f"stage0.patch_embed.{layer[1]}"
    stage, block = engine.numbers(*layer[:2])
    start = f"stage{stage - 1}"
    if layer[2] == "embed":
        return f"{start}.patch_embed.{layer[3]}"
    if layer[2] == "cls_token":
        return f"{start}.cls_token"
    return ".".join((f"{start}.blocks.{block - 1}", *layer[2:]))


def torch_sources(module: Any) -> tuple[engine.Source, ...]:
    """Returns the PyTorch networks that have these tensors."""
    raise ValueError("timm and torchvision do not have CvT")
