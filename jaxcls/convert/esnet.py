"""Names of the layers of ESNet in PaddleClas."""

from typing import Any

from jaxcls.convert import engine

GHOST = {"conv1": "pw_1_1", "conv2": "dw_1", "conv3": "pw_1_2"}
HALVE = {"conv1": "pw_2_1", "conv2": "dw_2", "conv3": "pw_2_2"}
HALVE |= {"conv4": "concat_dw", "conv5": "concat_pw"}
SHORT = {"conv1": "dw_1", "conv2": "pw_1"}


def paddle(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in PaddleClas, which counts the blocks of all stages."""
    if layer[0] == "head":
        return "fc"
    if layer[0] == "stem":
        return f"conv1.{layer[-1]}"
    if layer[0] == "neck":
        return "last_conv" if layer[1] == "conv2" else f"conv2.{layer[-1]}"
    block = f"blocks.{engine.index_of(module.depths, layer)}"
    role, *inside = layer[2:]
    if role == "se":
        return f"{block}.se.{inside[0]}"
    if role == "short":
        role, *inside = inside
        return f"{block}.{SHORT[role]}.{inside[0]}"
    return f"{block}.{(HALVE if layer[1] == 'block1' else GHOST)[role]}.{inside[0]}"


def torch_sources(module: Any) -> tuple[engine.Source, ...]:
    """Returns the PyTorch networks that have these tensors."""
    del module
    raise ValueError("ESNet is not in timm or torchvision: convert PaddleClas's weights")
