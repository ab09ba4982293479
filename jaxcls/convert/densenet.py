"""Names of the layers of DenseNet in PaddleClas, timm and torchvision."""

import re
from typing import Any

from jaxcls.convert import engine


def paddle(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in PaddleClas, where the stem is conv1 and stage1 is conv2."""
    del module
    part = engine.PADDLE_PARTS.get(layer[-1])
    if layer[0] == "stem":
        return f"conv1_func.{part}"
    if layer[0] == "neck":
        return "batch_norm"
    if layer[0] == "head":
        return "out"
    stage, block, conv = engine.numbers(*layer[:3])
    if stage > 1:
        block -= 1  # the transition is block 0
    if not block:
        return f"tr_conv{stage}_blk.conv_ac_func.{part}"
    return f"db_conv_{stage + 1}.conv{stage + 1}_{block}.bn_ac_func{conv}.{part}"


def torch(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in timm and torchvision."""
    del module
    role = {"conv": "conv", "bn": "norm"}[layer[-1]] if layer[0] != "head" else ""
    if layer[0] == "stem":
        return f"features.{role}0"
    if layer[0] == "neck":
        return "features.norm5"
    if layer[0] == "head":
        return "classifier"
    stage, block, conv = engine.numbers(*layer[:3])
    if stage > 1 and block == 1:
        return f"features.transition{stage - 1}.{role}"
    dense = block - (stage > 1)
    return f"features.denseblock{stage}.denselayer{dense}.{role}{conv}"


def without_dots(arrays: engine.Arrays) -> engine.Arrays:
    """Returns the tensors of torchvision's own files under the names that its network has today."""
    return {re.sub(r"(norm|conv)\.([12])\.", r"\1\2.", key): a for key, a in arrays.items()}


def torch_sources(module: Any) -> tuple[engine.Source, ...]:
    """Returns the PyTorch networks that have these tensors."""
    del module
    return (
        engine.Source(
            "timm's and torchvision's densenet*",
            torch,
            prepare=without_dots,
            timm={f"DenseNet{n}": f"densenet{n}" for n in (121, 161, 169, 201)},
        ),
    )
