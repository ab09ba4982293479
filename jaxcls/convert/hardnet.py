"""Names of the layers of HarDNet in PaddleClas, which has them all in one list."""

from typing import Any

from jaxcls.convert import engine

STEM = 3  # places in the list: two convolutions, and what halves the size


def paddle(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in PaddleClas."""
    norm, down = {"bn": "norm"}.get(layer[-1]), len(module.stages) - 1
    dropout = bool(module.last_dropout)
    blocks = sum(map(len, module.stages))
    if layer[0] == "head":
        return f"base.{STEM + 2 * blocks + down + dropout}.3"
    if layer[0] == "stem":
        return f"base.{engine.number(layer[1]) - 1}.{norm or 'conv'}"
    stage, block = engine.numbers(*layer[:2])
    place = STEM + 2 * engine.index_of(map(len, module.stages), layer) + stage - 1
    role = layer[2]
    if role == "down":
        return f"base.{place - 1}.{norm or 'dwconv'}"
    if role == "out":
        last = (stage, block) == (len(module.stages), len(module.stages[-1]))
        return f"base.{place + 1 + (dropout and last)}.{norm or 'conv'}"
    theirs = f"base.{place}.layers.{engine.number(role) - 1}"
    if not module.separable:
        return f"{theirs}.{norm or 'conv'}"
    part = norm or {"conv1": "conv", "conv2": "dwconv"}[layer[3]]
    return f"{theirs}.layer{engine.number(layer[3])}.{part}"


def torch_sources(module: Any) -> tuple[engine.Source, ...]:
    """Raises ValueError: there is no such PyTorch network."""
    raise ValueError("HarDNet is not in timm or torchvision: convert PaddleClas's weights")
