"""Names of the layers of PeleeNet in PaddleClas."""

from typing import Any

from jaxcls.convert import engine


def paddle(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in PaddleClas."""
    if layer[0] == "head":
        return "classifier"
    part = {"conv": "conv", "bn": "norm"}[layer[-1]]
    if layer[0] == "stem":
        return f"features.stemblock.{layer[1].replace('conv', 'stem')}.{part}"
    stage, block = engine.numbers(*layer[:2])
    if block > module.depths[stage - 1]:
        return f"features.transition{stage}.{part}"
    branch = layer[2].replace("conv", "branch")
    return f"features.denseblock{stage}.denselayer{block}.{branch}.{part}"


def torch_sources(module: Any) -> tuple[engine.Source, ...]:
    """Raises ValueError: there is no such PyTorch network."""
    raise ValueError("PeleeNet is not in timm or torchvision: convert PaddleClas's weights")
