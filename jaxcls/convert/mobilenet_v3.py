"""Names of PaddleClas's MobileNetV3 layers."""

import re
from typing import Any

ROLE = {"conv1": "expand_conv", "conv2": "bottleneck_conv", "se": "mid_se", "conv3": "linear_conv"}


def paddle(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in PaddleClas, which counts the blocks of all stages."""
    if layer[0] == "head":
        return "fc"
    if layer[0] == "stem":
        return f"conv.{layer[-1]}"
    if layer[0] == "neck":
        return "last_conv" if layer[1] == "conv2" else f"last_second_conv.{layer[-1]}"
    stage, block = (int(re.sub(r"\D", "", name)) - 1 for name in layer[:2])
    index = sum(map(len, module.stages[:stage])) + block
    return f"blocks.{index}.{ROLE[layer[2]]}.{layer[3]}"
