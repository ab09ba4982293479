"""Names of the layers of SqueezeNet in PaddleClas and torchvision."""

from typing import Any

from jaxcls.convert import engine

ROLE = {"conv1": "_conv", "conv2": "_conv_path1", "conv3": "_conv_path2"}


def paddle(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in PaddleClas, which counts the blocks of all stages from 1."""
    if layer[0] == "head":
        return "_conv9"
    if layer[0] == "stem":
        return "_conv"
    return f"_conv{engine.index_of(map(len, module.stages), layer) + 1}.{ROLE[layer[2]]}._conv"


def torchvision(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in torchvision, in whose list pools and ReLUs have a place."""
    if layer[0] == "head":
        return "classifier.1"
    if layer[0] == "stem":
        return "features.0"
    index = engine.index_of(map(len, module.stages), layer) + 2 + engine.number(layer[0])
    role = {"conv1": "squeeze", "conv2": "expand1x1", "conv3": "expand3x3"}[layer[2]]
    return f"features.{index}.{role}"


def torch_sources(module: Any) -> tuple[engine.Source, ...]:
    """Returns the PyTorch networks that have these tensors."""
    features, kernel, _ = module.stem
    return (
        engine.Source(
            "torchvision's squeezenet1_*",
            torchvision,
            needs={"ceil_mode": True, "downscale": False, "stem": (features, kernel, 0)},
            differs="pools round up, the stem is not padded, dropout does not scale in evaluation",
        ),
    )
