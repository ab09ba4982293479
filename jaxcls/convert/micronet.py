"""Names of the layers of MicroNet in PaddleClas."""

from typing import Any

from jaxcls.convert import engine

# Places of layers in the list of a block: of the first ones, and of the others.
FIRST = {"conv1": 0, "act1": 1, "conv3": 4, "act3": 5}
OTHER = {"conv1": 0, "act1": 1, "conv2": 3, "act2": 5, "conv3": 7, "act3": 8}
LINEAR = {"squeeze": 0, "excite": 2}


def paddle(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in PaddleClas, which counts stem and blocks."""
    if layer[0] in ("head", "neck"):
        part = {"linear": 0, "bn": 1}[layer[1]]
        return f"classifier.{0 if layer[0] == 'neck' else 2}.linear.{part}"
    if layer[0] == "stem":
        return f"features.0.stem.0.conv.{_separable(layer[2:])}"
    block = f"features.{engine.index_of(map(len, module.stages), layer) + 1}.layers"
    stage, place = engine.numbers(*layer[:2])
    row = module.stages[stage - 1][place - 1]
    role, *inside = layer[2:]
    index = (OTHER if row.groups[0] else FIRST)[role]
    if role.startswith("act"):
        return f"{block}.{index}.fc.{LINEAR[inside[0]]}"
    part = _separable(inside) if len(inside) > 1 else engine.IN_LIST[inside[0]]
    return f"{block}.{index}.conv.{part}"


def _separable(inside: tuple[str, ...]) -> int:
    """Returns the place of a layer in the list of two convolutions and their BatchNorms."""
    conv, part = inside
    return 2 * engine.number(conv) - 2 + engine.IN_LIST[part]


def torch_sources(module: Any) -> tuple[engine.Source, ...]:
    """Returns the PyTorch networks that have these tensors."""
    del module
    raise ValueError("MicroNet is not in timm or torchvision: convert PaddleClas's weights")
