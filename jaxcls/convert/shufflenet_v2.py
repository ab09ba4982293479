"""Names of PaddleClas's ShuffleNetV2 layers."""

import re
from typing import Any

PART = {"conv": "_conv", "bn": "_batch_norm"}


def paddle(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in PaddleClas, which numbers stages from 2.

    In the first unit of a stage, branch 1 is our shortcut and branch 2 the three convolutions.
    """
    if layer[0] == "head":
        return "_fc"
    *where, last = layer
    if layer[0] in ("stem", "neck"):
        return f"{'_conv1' if layer[0] == 'stem' else '_last_conv'}.{PART[last]}"
    stage, block = (int(re.sub(r"\D", "", name)) for name in where[:2])
    if where[2] == "short":
        role = {"conv1": "_conv_dw_1", "conv2": "_conv_linear_1"}[where[3]]
    else:
        role = {"conv1": "_conv_pw", "conv2": "_conv_dw", "conv3": "_conv_linear"}[where[2]]
        role += "_2" if block == 1 else ""
    return f"{stage + 1}_{block}.{role}.{PART[last]}"
