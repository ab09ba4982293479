"""Names of PaddleClas's GoogLeNet layers."""

from typing import Any

from jaxcls.convert import engine

STEM = {"conv1": "_conv", "conv2": "_conv_1", "conv3": "_conv_2"}
ROLES = {
    "conv1": "_conv1",
    "reduce3": "_conv3r",
    "conv3": "_conv3",
    "reduce5": "_conv5r",
    "conv5": "_conv5",
    "project": "_convprj",
}


def paddle(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in PaddleClas, where stage1 is Inception 3 and block1 its a."""
    del module
    top, *inner = layer
    if top == "stem":
        return f"{STEM[inner[0]]}._conv"
    if top == "head":
        return "_fc_out"
    number = engine.number(top)
    if top.startswith("aux"):
        return {"conv1": "_conv_o{}._conv", "fc1": "_fc_o{}", "head": "_out{}"}[inner[0]].format(
            number
        )
    block = "abcde"[engine.number(inner[0]) - 1]
    return f"_ince{number + 2}{block}.{ROLES[inner[1]]}._conv"


def torch_sources(module: Any) -> tuple[engine.Source, ...]:
    """Raises ValueError: there is no such PyTorch network."""
    raise ValueError(
        "GoogLeNet: torchvision's googlenet is another network, with BatchNorm after each "
        "convolution and 3x3 where this has 5x5: convert PaddleClas's weights"
    )
