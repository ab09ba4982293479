"""Names of the layers of ResNeSt in PaddleClas and timm."""

from functools import partial
from typing import Any

from jaxcls.convert import engine

PARTS = {"conv": "_conv", "bn": "_batch_norm"}


def paddle(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in PaddleClas."""
    del module
    if layer[0] == "head":
        return "out"
    part = PARTS.get(layer[-1])
    if layer[0] == "stem":
        return f"stem.{layer[1]}.{part}"
    stage, block = engine.numbers(*layer[:2])
    theirs = f"layer{stage}.layer{stage}_bottleneck_{block - 1}"
    if layer[2] == "short":
        return f"{theirs}.conv4" if layer[-1] == "conv" else f"{theirs}._batch_norm"
    return ".".join((theirs, *(PARTS.get(name, name) for name in layer[2:])))


def timm(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in timm."""
    if layer[0] == "head":
        return "fc"
    if layer[0] == "stem":
        return engine.torch_stem(layer, "conv3")
    block, role, part = engine.torch_block(layer), layer[2], layer[-1]
    if role == "short":
        return f"{block}.{engine.torch_shortcut(part, mean=True)}"
    if role != "conv2":
        return f"{block}.{part}{engine.number(role)}"
    inner = {"conv1": {"conv": "conv", "bn": "bn0"}, "conv2": {"conv": "fc1", "bn": "bn1"}}
    return f"{block}.conv2.{inner.get(layer[3], {}).get(part, 'fc2')}"


# depths, width of the stem -> timm's name
NAMES = {
    ((3, 4, 6, 3), 64): "resnest50d",
    ((3, 4, 23, 3), 128): "resnest101e",
    ((3, 24, 36, 3), 128): "resnest200e",
    ((3, 30, 48, 8), 128): "resnest269e",
}


def architecture(module: Any) -> tuple[str, dict[str, Any]] | None:
    """Returns what timm.create_model takes for a network, None if there is nothing."""
    name = NAMES.get((tuple(module.depths), module.stem_width))
    if name is None or module.width != 64:
        return None
    block = {"radix": module.radix, "avd": True, "avd_first": module.pool_first}
    return name, {} if module.radix == 2 and not module.pool_first else {"block_args": block}


def torch_sources(module: Any) -> tuple[engine.Source, ...]:
    """Returns the PyTorch networks that have these tensors."""
    norms = {
        f"layer{stage}.{block}.conv2.fc1": f"layer{stage}.{block}.conv2.bn1"
        for stage, depth in enumerate(module.depths, 1)
        for block in range(depth)
    }
    return (
        engine.Source(
            "timm's resnest*",
            timm,
            prepare=partial(engine.without_biases, norms=norms),
            complete=partial(engine.with_biases, norms=norms),
            timm=architecture,
            needs={"original": True},
            differs="means at the border are over zeros beyond it",
        ),
    )
