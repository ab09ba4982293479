"""Names of the layers of AlexNet in PaddleClas and torchvision."""

from typing import Any

from jaxcls.convert import engine

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
TORCHVISION = {
    ("stem", "conv1"): "features.0",
    ("stage1", "block1", "conv1"): "features.3",
    ("stage2", "block1", "conv1"): "features.6",
    ("stage2", "block2", "conv1"): "features.8",
    ("stage2", "block3", "conv1"): "features.10",
    ("neck", "fc1"): "classifier.1",
    ("neck", "fc2"): "classifier.4",
    ("head", "fc"): "classifier.6",
}


def paddle(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in PaddleClas."""
    return NAMES[layer]


def torchvision(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in torchvision."""
    del module
    return TORCHVISION[layer]


def torch_sources(module: Any) -> tuple[engine.Source, ...]:
    """Returns the PyTorch networks that have these tensors."""
    del module
    return (
        engine.Source(
            "torchvision's alexnet",
            torchvision,
            needs={"downscale": False},
            differs="dropout does not scale in evaluation",
        ),
    )
