"""Names of the layers of DLA, which PaddleClas and timm share."""

from typing import Any

from jaxcls.convert import engine


def both(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in PaddleClas and timm, where stage1 is level 2."""
    if layer[0] == "head":
        return "fc"
    part = layer[-1]
    if layer[0] == "stem":
        i = engine.number(layer[1])
        level = "base_layer" if i == 1 else f"level{i - 2}"
        return f"{level}.{engine.IN_LIST[part]}"
    stage, block = engine.numbers(*layer[:2])
    halves = f"{block - 1:0{module.levels[stage - 1]}b}"[1:]  # of halves of the tree
    theirs = f"level{stage + 1}" + "".join(f".tree{int(half) + 1}" for half in halves)
    role = layer[2]
    if role == "short":
        return f"{theirs}.project.{engine.IN_LIST[part]}"
    if role == "root":
        return f"{theirs}.root.{part}"
    return f"{theirs}.tree{engine.number(role)}.{part}{engine.number(layer[3])}"


paddle = both


def torch_sources(module: Any) -> tuple[engine.Source, ...]:
    """Returns the PyTorch networks that have these tensors."""
    del module
    names = ("34", "46_c", "46x_c", "60", "60x", "60x_c", "102", "102x", "102x2", "169")
    timm = {f"DLA{name}": f"dla{name}" for name in names}
    return (engine.Source("timm's dla*", both, sides={"fc": 1}, timm=timm),)
