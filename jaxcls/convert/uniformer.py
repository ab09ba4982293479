"""Names of the layers of UniFormer in PaddleClas."""

from typing import Any

from jaxcls.convert import engine

EMBED = {"conv1": "proj.0", "norm1": "proj.1", "conv2": "proj.3", "norm2": "proj.4"}


def paddle(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in PaddleClas, as in the authors' code."""
    if layer[0] in ("head", "neck"):
        return {"head": "head", "neck": "norm"}[layer[0]]
    stage, block = (1, 1) if layer[0] == "stem" else engine.numbers(*layer[:2])
    if "embed" in layer or layer[0] == "stem":
        alone = {"conv1": "proj_conv", "norm1": "norm"}
        return f"patch_embed{stage}.{(EMBED if module.overlap else alone)[layer[-1]]}"
    theirs = f"blocks{stage}.{block - 1}"
    inner = [name for name in layer[2:] if name not in ("mix", "block")]
    if inner[0] in ("fc1", "fc2"):
        return f"{theirs}.mlp.{inner[0]}_conv"
    return ".".join((theirs, *inner)).replace("gamma", "gamma_")


def torch_sources(module: Any) -> tuple[engine.Source, ...]:
    """Raises ValueError: there is no such PyTorch network."""
    raise ValueError("UniFormer is not in timm or torchvision: convert PaddleClas's weights")
