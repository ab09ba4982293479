"""Names of PaddleClas's VGG layers."""

import re
from typing import Any

NAMES = {("neck", "fc1"): "fc1", ("neck", "fc2"): "fc2", ("head", "fc"): "fc3"}


def paddle(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in PaddleClas."""
    if layer in NAMES:
        return NAMES[layer]
    stage, block = (re.sub(r"\D", "", name) for name in layer[:2])
    return f"conv_block_{stage}.conv{block}"
