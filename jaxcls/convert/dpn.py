"""Names of PaddleClas's DPN layers."""

import re
from typing import Any

PART = {"conv": "_conv", "bn": "_batch_norm"}
ROLES = {"conv1": "c1x1_a", "conv2": "c3x3_b", "conv3": "c1x1_c", "short": "c1x1_w"}


def paddle(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in PaddleClas, which counts the blocks through all stages."""
    if layer[0] == "stem":
        return f"conv1_x_1_func.{PART[layer[-1]]}"
    if layer[0] == "neck":
        return "conv5_x_x_bn"
    if layer[0] == "head":
        return "out"
    stage, block = (int(re.sub(r"\D", "", name)) for name in layer[:2])
    block += sum(module.depths[: stage - 1])
    return f"dpn{block}.{ROLES[layer[2]]}_func.{PART[layer[-1]]}"
