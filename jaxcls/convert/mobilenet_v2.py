"""Names of the layers of MobileNetV2 in PaddleClas, timm and torchvision."""

from typing import Any

from jaxcls.convert import engine

ROLE = {"conv1": "_expand_conv", "conv2": "_bottleneck_conv", "conv3": "_linear_conv"}


def paddle(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in PaddleClas, which counts the rows of the table from conv2 on."""
    if layer[0] == "head":
        return "out"
    if layer[0] in ("stem", "neck"):
        return f"{'conv1' if layer[0] == 'stem' else 'conv9'}.{engine.PADDLE_PARTS[layer[-1]]}"
    row, place = engine.row_of(engine.rows_of(module.stages), layer)
    unit = f"conv{row + 2}_{place + 1}" if place else "_first_block"
    return f"conv{row + 2}.{unit}.{ROLE[layer[2]]}.{engine.PADDLE_PARTS[layer[3]]}"


def timm(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in timm."""
    return engine.timm_mobile(engine.rows_of(module.stages), layer)


def torchvision(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in torchvision, where the last convolution and BatchNorm of a block
    are not in a list of their own."""
    if layer[0] == "head":
        return "classifier.1"
    part = engine.IN_LIST[layer[-1]]
    rows = engine.rows_of(module.stages)
    if layer[0] in ("stem", "neck"):
        return f"features.{0 if layer[0] == 'stem' else sum(map(len, rows)) + 1}.{part}"
    row, _ = engine.row_of(rows, layer)
    expands = row > 0
    places = {"conv1": f"0.{part}", "conv2": f"{int(expands)}.{part}", "conv3": 1 + expands + part}
    return f"features.{engine.index_of(map(len, rows), layer) + 1}.conv.{places[layer[2]]}"


def torch_sources(module: Any) -> tuple[engine.Source, ...]:
    """Returns the PyTorch networks that have these tensors."""
    del module
    first = {
        "needs": {"expand_first": False},
        "differs": "no 1x1 convolution before the first depthwise one",
    }
    return (
        engine.Source(
            "timm's mobilenetv2_*", timm, timm={"MobileNetV2": "mobilenetv2_100"}, **first
        ),
        engine.Source("torchvision's mobilenet_v2", torchvision, **first),
    )
