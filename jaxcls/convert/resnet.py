"""Names of PaddleClas's ResNet layers."""

import re
from typing import Any


def paddle(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in PaddleClas; ResNet50_vc has its own, older names.

    ResNet50_vc is told by its stem of three convolutions without the mean in its shortcut.
    """
    old = module.stem == "conv3" and not module.mean_short
    part = {"conv": "_conv", "bn": "_batch_norm"} if old else {"conv": "conv", "bn": "bn"}
    if layer[0] == "head":
        return "out" if old else "fc"
    *where, role, last = layer
    index = int(re.sub(r"\D", "", role))
    if layer[0] == "stem":
        return f"conv1_{index}.{part[last]}" if old else f"stem.{index - 1}.{part[last]}"
    stage, block = (int(re.sub(r"\D", "", name)) - 1 for name in layer[:2])
    theirs = f"bb_{stage}_{block}" if old else f"blocks.{sum(module.depths[:stage]) + block}"
    return f"{theirs}.{'short' if 'short' in where else f'conv{index - 1}'}.{part[last]}"
