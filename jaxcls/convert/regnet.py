"""Names of the layers of RegNet in PaddleClas, timm and torchvision."""

from typing import Any

from jaxcls.convert import engine

TIMM = {
    "RegNetX_200MF": "regnetx_002",
    "RegNetX_400MF": "regnetx_004",
    "RegNetX_600MF": "regnetx_006",
    "RegNetX_800MF": "regnetx_008",
    "RegNetX_1600MF": "regnetx_016",
    "RegNetX_3200MF": "regnetx_032",
    "RegNetX_4GF": "regnetx_040",
    "RegNetX_6400MF": "regnetx_064",
    "RegNetX_8GF": "regnetx_080",
    "RegNetX_12GF": "regnetx_120",
    "RegNetX_16GF": "regnetx_160",
    "RegNetX_32GF": "regnetx_320",
}


def paddle(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in PaddleClas, which counts the convolutions of a block from 0."""
    del module
    if layer[0] == "head":
        return "out"
    part = engine.PADDLE_PARTS[layer[-1]]
    if layer[0] == "stem":
        return f"conv.{part}"
    stage, block = engine.numbers(*layer[:2])
    role = layer[2] if layer[2] == "short" else f"conv{engine.number(layer[2]) - 1}"
    return f"s{stage}_b{block}.{role}.{part}"


def timm(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in timm."""
    del module
    if layer[0] == "head":
        return "head.fc"
    if layer[0] == "stem":
        return f"stem.{layer[1]}"
    stage, block = engine.numbers(*layer[:2])
    role = "downsample" if layer[2] == "short" else layer[2]
    return f"s{stage}.b{block}.{role}.{layer[3]}"


def torchvision(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in torchvision."""
    del module
    if layer[0] == "head":
        return "fc"
    part = engine.IN_LIST[layer[-1]]
    if layer[0] == "stem":
        return f"stem.{part}"
    stage, block = engine.numbers(*layer[:2])
    role = {"conv1": "f.a", "conv2": "f.b", "conv3": "f.c", "short": "proj"}[layer[2]]
    return f"trunk_output.block{stage}.block{stage}-{block - 1}.{role}.{part}"


def torch_sources(module: Any) -> tuple[engine.Source, ...]:
    """Returns the PyTorch networks that have these tensors."""
    del module
    return (
        engine.Source("timm's regnetx_*", timm, timm=TIMM),
        engine.Source("torchvision's regnet_x_*", torchvision),
    )
