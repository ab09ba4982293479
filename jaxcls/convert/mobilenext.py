"""Names of the layers of MobileNeXt in PaddleClas."""

from typing import Any

from jaxcls.convert import engine


def paddle(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in PaddleClas.

    It counts the blocks of all stages, and in a block convolutions, BatchNorms and activations.
    """
    if layer[0] == "head":
        return "classifier.1"
    part = engine.IN_LIST[layer[-1]]
    if layer[0] == "stem":
        return f"features.0.{part}"
    rows = engine.rows_of(module.stages)
    index = engine.index_of(map(len, rows), layer)
    row, place = engine.row_of(rows, layer)
    row = [row for stage in module.stages for row in stage][row]
    single = row.repeats == row.stride == 1
    first = place > 0 or single or row.squeeze == 2  # it has a depthwise convolution in front
    places = {"conv1": 0, "conv2": 3, "conv3": 5, "conv4": 8}
    return f"features.{index + 1}.conv.{places[layer[2]] - 3 * (not first) + part}"


def torch_sources(module: Any) -> tuple[engine.Source, ...]:
    """Returns the PyTorch networks that have these tensors."""
    del module
    raise ValueError("MobileNeXt is not in timm or torchvision: convert PaddleClas's weights")
