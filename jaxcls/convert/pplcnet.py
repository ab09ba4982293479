"""Names of the layers of PP-LCNet in PaddleClas and timm."""

from typing import Any

from jaxcls.convert import engine


def paddle(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in PaddleClas, which numbers stages from 2."""
    del module
    if layer[0] in ("head", "neck"):
        return {"head": "fc", "neck": "last_conv"}[layer[0]]
    if layer[0] == "stem":
        return f"conv1.{layer[1]}"
    stage, block = engine.numbers(*layer[:2])
    role = {"conv1": "dw_conv", "se": "se", "conv2": "pw_conv"}[layer[2]]
    return f"blocks{stage + 1}.{block - 1}.{role}.{layer[3]}"


TIMM_ROWS = ((0,), (1, 1), (2, 2), (3, 3, 4, 4, 4, 4), (5, 5))  # its numbers, for our blocks
TIMM = {
    ("conv1", "conv"): "conv_dw",
    ("conv1", "bn"): "bn1",
    ("se", "conv1"): "se.conv_reduce",
    ("se", "conv2"): "se.conv_expand",
    ("conv2", "conv"): "conv_pw",
    ("conv2", "bn"): "bn2",
}


def timm(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in timm."""
    del module
    if layer[0] in ("head", "neck"):
        return {"head": "classifier", "neck": "conv_head"}[layer[0]]
    if layer[0] == "stem":
        return {"conv": "conv_stem", "bn": "bn1"}[layer[1]]
    row, place = engine.row_of(TIMM_ROWS, layer)
    return f"blocks.{row}.{place}.{TIMM[layer[2:]]}"


def torch_sources(module: Any) -> tuple[engine.Source, ...]:
    """Returns the PyTorch networks that have these tensors."""
    del module
    sizes = {"0_35": "035", "0_5": "050", "0_75": "075", "1_0": "100", "1_5": "150"}
    return (
        engine.Source(
            "timm's lcnet_*",
            timm,
            timm={f"PPLCNet_x{ours}": f"lcnet_{theirs}" for ours, theirs in sizes.items()},
            needs={"bias": True, "downscale": False},
            differs="a bias in the last convolution, dropout does not scale in evaluation",
        ),
    )
