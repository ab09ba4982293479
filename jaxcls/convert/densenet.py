"""Names of PaddleClas's DenseNet layers."""

import re
from typing import Any

PART = {"conv": "_conv", "bn": "_batch_norm"}


def paddle(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in PaddleClas, where the stem is conv1 and stage1 is conv2."""
    del module
    if layer[0] == "stem":
        return f"conv1_func.{PART[layer[-1]]}"
    if layer[0] == "neck":
        return "batch_norm"
    if layer[0] == "head":
        return "out"
    stage, block, conv = (int(re.sub(r"\D", "", name)) for name in layer[:3])
    if stage > 1:
        block -= 1  # the transition is block 0
    if not block:
        return f"tr_conv{stage}_blk.conv_ac_func.{PART[layer[-1]]}"
    dense = f"db_conv_{stage + 1}.conv{stage + 1}_{block}"
    return f"{dense}.bn_ac_func{conv}.{PART[layer[-1]]}"
