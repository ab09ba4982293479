"""Names of the layers of MobileNetV2 in PaddleClas, timm and torchvision."""

import re
from typing import Any

from jaxcls.convert import engine

PART = {"conv": "_conv", "bn": "_batch_norm"}
ROLE = {"conv1": "_expand_conv", "conv2": "_bottleneck_conv", "conv3": "_linear_conv"}


def paddle(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in PaddleClas, which counts the rows of the table from conv2 on."""
    if layer[0] == "head":
        return "out"
    if layer[0] in ("stem", "neck"):
        return f"{'conv1' if layer[0] == 'stem' else 'conv9'}.{PART[layer[-1]]}"
    stage, block = (int(re.sub(r"\D", "", name)) - 1 for name in layer[:2])
    row = 2 + sum(map(len, module.stages[:stage]))
    for repeats in (r.repeats for r in module.stages[stage]):
        if block < repeats:
            break
        row, block = row + 1, block - repeats
    unit = f"conv{row}_{block + 1}" if block else "_first_block"
    return f"conv{row}.{unit}.{ROLE[layer[2]]}.{PART[layer[3]]}"


def timm(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in timm."""
    return engine.timm_mobile(_widths(module), layer)


def torchvision(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in torchvision, where the last convolution and BatchNorm of a block
    are not in a list of their own."""
    if layer[0] == "head":
        return "classifier.1"
    part = {"conv": 0, "bn": 1}[layer[-1]]
    widths = _widths(module)
    if layer[0] in ("stem", "neck"):
        return f"features.{0 if layer[0] == 'stem' else sum(map(len, widths)) + 1}.{part}"
    stage, block = (engine.number(name) for name in layer[:2])
    row, _ = engine.row_of(widths, layer)
    expands = row > 0
    places = {"conv1": f"0.{part}", "conv2": f"{int(expands)}.{part}", "conv3": 1 + expands + part}
    index = sum(map(len, widths[: stage - 1])) + block
    return f"features.{index}.conv.{places[layer[2]]}"


def _widths(module: Any) -> list[list[int]]:
    return [[row.features for row in rows for _ in range(row.repeats)] for rows in module.stages]


def torch_sources(module: Any) -> tuple[engine.Source, ...]:
    """Returns the PyTorch networks that have these tensors."""
    del module
    first = {
        "needs": {"expand_first": False},
        "differs": "no 1x1 convolution before the first depthwise one",
    }
    return (
        engine.Source("timm's mobilenetv2_*", timm, **first),
        engine.Source("torchvision's mobilenet_v2", torchvision, **first),
    )
