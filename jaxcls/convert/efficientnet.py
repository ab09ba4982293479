"""Names of PaddleClas's EfficientNet layers."""

import re
from typing import Any

ROLE = {"conv1": "_ecn", "conv2": "_dcn", "se": "_se", "conv3": "_pcn"}
PART = {"conv": "_conv._conv", "bn": "_bn"}


def paddle(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in PaddleClas.

    It counts the blocks of all rows and calls the first block of a row `_blocks.N.`, any further
    one `block.N.` (with the dot).
    """
    if layer[0] == "head":
        return "_fc"
    if layer[0] in ("stem", "neck"):
        return f"{'_ef._conv_stem._conv' if layer[0] == 'stem' else '_conv'}.{PART[layer[-1]]}"
    stage, block = (int(re.sub(r"\D", "", name)) - 1 for name in layer[:2])
    stages = module.scaled()
    index = sum(row.repeats for rows in stages[:stage] for row in rows) + block
    firsts = [sum(row.repeats for row in stages[stage][:i]) for i in range(len(stages[stage]))]
    unit = f"_ef.{'_blocks' if block in firsts else 'block'}.{index}..{ROLE[layer[2]]}"
    if layer[2] == "se":
        return f"{unit}._{layer[3]}._conv"
    return f"{unit}._conv.{PART[layer[3]]}"
