"""Names of the layers of VGG in PaddleClas, timm and torchvision."""

from typing import Any

from jaxcls.convert import engine

SIDES = {r"pre_logits\.fc1": 7, r"pre_logits\.fc2": 1}
TIMM = {f"VGG{n}": f"vgg{n}" for n in (11, 13, 16, 19)}


def paddle(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in PaddleClas."""
    if layer[0] == "head":
        return "fc3"
    if layer[0] == "neck":
        return layer[1]
    stage, block = engine.numbers(*layer[:2])
    return f"conv_block_{stage}.conv{block}"


def _torch(layer: tuple[str, ...], module: Any) -> str:
    """Returns the name of a convolution, in whose list pools and ReLUs have a place."""
    return f"features.{2 * engine.index_of(module.depths, layer) + engine.number(layer[0]) - 1}"


def timm(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in timm."""
    names = {"fc1": "pre_logits.fc1", "fc2": "pre_logits.fc2", "fc": "head.fc"}
    return names[layer[1]] if layer[1] in names else _torch(layer, module)


def torchvision(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in torchvision."""
    names = {"fc1": "classifier.0", "fc2": "classifier.3", "fc": "classifier.6"}
    return names[layer[1]] if layer[1] in names else _torch(layer, module)


def torch_sources(module: Any) -> tuple[engine.Source, ...]:
    """Returns the PyTorch networks that have these tensors.

    At sizes above 224, where ours and torchvision's average features to 7x7, timm's averages what
    the fully connected layers give at each place.
    """
    del module
    needs = {
        "needs": {"bias": True, "downscale": False},
        "differs": "convolutions have biases, dropout does not scale in evaluation",
    }
    return (
        engine.Source("timm's vgg*, without _bn", timm, sides=SIDES, timm=TIMM, **needs),
        engine.Source("torchvision's vgg*, without _bn", torchvision, **needs),
    )
