"""Names of the layers of DarkNet53 in PaddleClas and timm."""

from typing import Any

from jaxcls.convert import engine


def paddle(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in PaddleClas, whose stages end with what halves the size."""
    if layer[0] == "head":
        return "_out"
    part = f"_{layer[-1]}"
    if layer[0] == "stem":
        return f"_conv1.{part}"
    stage, block = engine.numbers(*layer[:2])
    if layer[2] == "down":
        return f"_downsample_{stage - 2}.{part}" if stage > 1 else f"_conv2.{part}"
    return f"_basic_block_{stage - 1}{block}._{layer[2]}.{part}"


def timm(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in timm."""
    del module
    if layer[0] == "head":
        return "head.fc"
    if layer[0] == "stem":
        return f"stem.conv1.{layer[-1]}"
    stage, block = engine.numbers(*layer[:2])
    inner = "conv_down" if layer[2] == "down" else f"blocks.{block - 1}.{layer[2]}"
    return f"stages.{stage - 1}.{inner}.{layer[-1]}"


def torch_sources(module: Any) -> tuple[engine.Source, ...]:
    """Returns the PyTorch networks that have these tensors."""
    del module
    return (
        engine.Source(
            "timm's darknet53",
            timm,
            timm={"DarkNet53": "darknet53"},
            needs={"slope": 0.01},
            differs="leaky ReLU in place of ReLU",
        ),
    )
