"""Names of PaddleClas's AlexNet layers."""

from typing import Any

NAMES = {
    ("stem", "conv1"): "_conv1._conv",
    ("stage1", "block1", "conv1"): "_conv2._conv",
    ("stage2", "block1", "conv1"): "_conv3",
    ("stage2", "block2", "conv1"): "_conv4",
    ("stage2", "block3", "conv1"): "_conv5._conv",
    ("neck", "fc1"): "_fc6",
    ("neck", "fc2"): "_fc7",
    ("head", "fc"): "_fc8",
}


def paddle(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in PaddleClas."""
    return NAMES[layer]
