"""Names of the layers of PP-LCNetV2 in PaddleClas."""

import re
from typing import Any

from jaxcls.convert import engine

PATHS = {"conv5": 0, "conv3": 1, "conv1": 2}  # of the depthwise convolution
# What those are added up in to deploy the network; in training, and in its files, it does nothing.
UNUSED = re.compile(r"^stages\.\d+\.\d+\.dw_conv\.(weight|bias)$")


def paddle(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in PaddleClas."""
    if layer[0] in ("head", "neck"):
        return {"head": "fc", "neck": "last_conv"}[layer[0]]
    if layer[:2] == ("stem", "conv1"):
        return f"stem.0.{layer[-1]}"
    if layer[0] == "stem":
        block, (role, *inside), split = "stem.1", layer[2:], False
    else:
        stage, place = engine.numbers(*layer[:2])
        block, (role, *inside), split = f"stages.{stage - 1}.{place - 1}", layer[2:], stage == 3
    if role == "conv1":
        theirs = f"dw_conv_list.{PATHS[inside.pop(0)]}" if len(inside) > 1 else "dw_conv"
    elif role == "se":
        theirs = "se"
    else:
        theirs = f"pw_conv_{engine.number(role) - 1}" if split else "pw_conv"
    return ".".join((block, theirs, *inside))


def torch_sources(module: Any) -> tuple[engine.Source, ...]:
    """Returns the PyTorch networks that have these tensors."""
    del module
    raise ValueError("PPLCNetV2 is not in timm or torchvision: convert PaddleClas's weights")
