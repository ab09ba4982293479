"""Names of the layers of ReXNet in PaddleClas and timm."""

from typing import Any

from jaxcls.convert import engine


def paddle(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in PaddleClas.

    Stem, blocks and last convolution are in one list; a block is a list in which BatchNorms,
    activations and gates have a place.
    """
    if layer[0] == "head":
        return "output.1"
    part = engine.IN_LIST.get(layer[-1])
    if layer[0] == "stem":
        return f"features.{part}"
    if layer[0] == "neck":
        return f"features.{3 + sum(module.depths) + part}"
    block = engine.index_of(module.depths, layer)
    stage, role = engine.number(layer[0]), layer[2]
    se, first = stage > 2, 3 * (stage > 1)
    if role == "se":
        inner = f"{first + 2}.fc.{3 if layer[3] == 'conv2' else part}"
    else:
        inner = {"conv1": 0, "conv2": first, "conv3": first + se + 3}[role] + part
    return f"features.{block + 3}.out.{inner}"


TIMM = {"conv1": "conv_exp", "conv2": "conv_dw", "conv3": "conv_pwl"}
TIMM_SE = {("conv1", "conv"): "fc1", ("conv1", "bn"): "bn", ("conv2",): "fc2"}


def timm(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in timm."""
    if layer[0] == "head":
        return "head.fc"
    if layer[0] == "stem":
        return f"stem.{layer[1]}"
    if layer[0] == "neck":
        return f"features.{sum(module.depths)}.{layer[1]}"
    block = f"features.{engine.index_of(module.depths, layer)}"
    if layer[2] == "se":
        return f"{block}.se.{TIMM_SE[layer[3:]]}"
    return f"{block}.{TIMM[layer[2]]}.{layer[3]}"


def torch_sources(module: Any) -> tuple[engine.Source, ...]:
    """Returns the PyTorch networks that have these tensors."""
    del module
    sizes = ("1_0", "1_3", "1_5", "2_0", "3_0")
    there = {f"ReXNet_{size}": f"rexnet_{size.replace('_', '')}0" for size in sizes}
    return (engine.Source("timm's rexnet_*", timm, timm=there),)
