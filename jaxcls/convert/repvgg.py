"""Names of the layers of RepVGG in PaddleClas and timm."""

from typing import Any

from jaxcls.convert import engine

PADDLE = {
    "head": "linear",
    "stage": "stage{stage}.{block}",
    "stem": "stage0",
    "conv3": "rbr_dense",
    "conv1": "rbr_1x1",
    "identity": "rbr_identity",
    "se": {"conv1": "se.down", "conv2": "se.up"},
}
TIMM = {
    "head": "head.fc",
    "stage": "stages.{stage0}.{block}",
    "stem": "stem",
    "conv3": "conv_kxk",
    "conv1": "conv_1x1",
    "identity": "identity",
    "se": {"conv1": "attn.fc1", "conv2": "attn.fc2"},
}


def name(names: dict[str, Any], layer: tuple[str, ...]) -> str:
    """Returns the layer's name in one of them; the branch without convolution is a BatchNorm."""
    if layer[0] == "head":
        return names["head"]
    if layer[0] == "stem":
        block, layer = names["stem"], layer[1:]
    else:
        stage, place = engine.numbers(*layer[:2])
        block = names["stage"].format(stage=stage, stage0=stage - 1, block=place - 1)
        layer = layer[2:]
    if layer[0] == "se":
        return f"{block}.{names['se'][layer[1]]}"
    _, branch, part = layer
    theirs = f"{block}.{names[branch]}"
    return theirs if branch == "identity" else f"{theirs}.{part}"


def paddle(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in PaddleClas."""
    del module
    return name(PADDLE, layer)


def timm(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in timm."""
    del module
    return name(TIMM, layer)


def torch_sources(module: Any) -> tuple[engine.Source, ...]:
    """Returns the PyTorch networks that have these tensors."""
    del module
    names = ["A0", "A1", "A2", "B0", "B1", "B1g4", "B2", "B2g4", "B3", "B3g4", "D2se"]
    there = {f"RepVGG_{name}": f"repvgg_{name.lower()}" for name in names}
    return (engine.Source("timm's repvgg_*", timm, timm=there),)
