"""Names of the layers of StarNet in PaddleClas and timm."""

from typing import Any

from jaxcls.convert import engine

ROLE = {"conv1": "dwconv", "conv2": "f1", "conv3": "f2", "conv4": "g", "conv5": "dwconv2"}


def paddle(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in PaddleClas, where what halves the size is a stage's first."""
    del module
    if layer[0] in ("head", "neck"):
        return {"head": "head", "neck": "norm"}[layer[0]]
    if layer[0] == "stem":
        return f"stem.0.{layer[1]}"
    stage, block = engine.numbers(*layer[:2])
    if layer[2] == "down":
        return f"stages.{stage - 1}.0.{layer[3]}"
    part = layer[3] if len(layer) > 3 else "conv"
    return f"stages.{stage - 1}.{block}.{ROLE[layer[2]]}.{part}"


def torch_sources(module: Any) -> tuple[engine.Source, ...]:
    """Returns the PyTorch networks that have these tensors."""
    del module
    there = {f"StarNet_S{n}": f"starnet_s{n}" for n in (1, 2, 3, 4)}
    return (engine.Source("timm's starnet_*", paddle, timm=there),)
