"""Names of the layers of CSPDarkNet53 in PaddleClas and timm."""

from typing import Any

from jaxcls.convert import engine

ROLES = {
    "down": "conv_down",
    "expand": "conv_exp",
    "part": "conv_transition_b",
    "both": "conv_transition",
}


def paddle(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in PaddleClas."""
    del module
    if layer[0] == "head":
        return "fc"
    if layer[0] == "stem":
        return ".".join(layer)
    stage, block = engine.numbers(*layer[:2])
    role = ROLES.get(layer[2]) or f"blocks.{block - 2}.{layer[2]}"  # the first splits
    return f"stages.{stage - 1}.{role}.{layer[-1]}"


def timm(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in timm."""
    return "head.fc" if layer[0] == "head" else paddle(layer, module)


def torch_sources(module: Any) -> tuple[engine.Source, ...]:
    """Returns the PyTorch networks that have these tensors."""
    del module
    return (engine.Source("timm's cspdarknet53", timm, timm={"CSPDarkNet53": "cspdarknet53"}),)
