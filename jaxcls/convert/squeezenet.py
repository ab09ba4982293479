"""Names of PaddleClas's SqueezeNet layers."""

import re
from typing import Any

ROLE = {"conv1": "_conv", "conv2": "_conv_path1", "conv3": "_conv_path2"}


def paddle(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in PaddleClas, which counts the blocks of all stages from 1."""
    if layer[0] == "head":
        return "_conv9"
    if layer[0] == "stem":
        return "_conv"
    stage, block = (int(re.sub(r"\D", "", name)) for name in layer[:2])
    index = sum(map(len, module.stages[: stage - 1])) + block
    return f"_conv{index}.{ROLE[layer[2]]}._conv"
