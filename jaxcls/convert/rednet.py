"""Names of the layers of RedNet in PaddleClas."""

from typing import Any

from jaxcls.convert import engine


def paddle(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in PaddleClas."""
    del module
    if layer[0] == "head":
        return "fc"
    part = layer[-1]
    if layer[0] == "stem":
        i = engine.number(layer[1])
        if i == 2:  # its BatchNorm and ReLU have a place in the list
            return f"stem.2{_inside(layer)}" if "inv" not in layer else f"stem.1{_inside(layer)}"
        return f"stem.{ {1: 0, 3: 4}[i] }.{part}"
    block, role = engine.torch_block(layer), layer[2]
    if role == "short":
        return f"{block}.{engine.torch_shortcut(part, mean=False)}"
    if "inv" in layer:
        return f"{block}.conv2{_inside(layer)}"
    return f"{block}.{part}{engine.number(role)}"


def _inside(layer: tuple[str, ...]) -> str:
    """Returns the rest of a name inside an involution."""
    if "inv" not in layer:
        return ""
    inner = layer[layer.index("inv") + 1 :]
    return ".conv2.conv" if inner == ("conv2",) else f".conv1.{inner[-1]}"


def torch_sources(module: Any) -> tuple[engine.Source, ...]:
    """Raises ValueError: there is no such PyTorch network."""
    raise ValueError("RedNet is not in timm or torchvision: convert PaddleClas's weights")
