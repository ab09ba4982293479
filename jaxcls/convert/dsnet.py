"""Names of the layers of DSNet in PaddleClas."""

from typing import Any

from jaxcls.convert import engine


def paddle(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in PaddleClas."""
    del module
    if layer[0] in ("head", "neck", "stem"):
        return {"head": "head", "neck": "norm", "stem": "patch_embed1.proj"}[layer[0]]
    stage, block = engine.numbers(*layer[:2])
    if layer[2] == "embed":
        return f"patch_embed{stage}.proj"
    role = f"mlp.{layer[2]}" if layer[2].startswith("fc") else layer[-1]
    return f"blocks{stage}.{block - 1}.{role}"


def torch_sources(module: Any) -> tuple[engine.Source, ...]:
    """Raises ValueError: there is no such PyTorch network."""
    raise ValueError("DSNet is not in timm or torchvision: convert PaddleClas's weights")
