"""Names of PaddleClas's MobileNetV2 layers."""

import re
from typing import Any

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
