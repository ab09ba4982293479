"""Names of PaddleClas's layers in DarkNet53."""

import re
from typing import Any


def paddle(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in PaddleClas, whose stages end with what halves the size."""
    if layer[0] == "head":
        return "_out"
    part = f"_{layer[-1]}"
    if layer[0] == "stem":
        return f"_conv1.{part}"
    stage, block = (int(re.sub(r"\D", "", name)) for name in layer[:2])
    if layer[2] == "down":
        return f"_downsample_{stage - 2}.{part}" if stage > 1 else f"_conv2.{part}"
    return f"_basic_block_{stage - 1}{block}._{layer[2]}.{part}"
