"""Names of PaddleClas's layers in HRNets."""

import re
from typing import Any


def exchange_index(branches: int, source: int, target: int, conv: int) -> int:
    """Returns the place of a convolution in PaddleClas's one list for all pairs of branches.

    The list goes through targets, then sources; a pair has as many convolutions as halvings
    between them, or one where the target is the larger. All arguments count from 1.
    """
    pairs = [(i, j) for i in range(1, branches + 1) for j in range(1, branches + 1) if i != j]
    before = pairs[: pairs.index((target, source))]
    return sum(max(i - j, 1) for i, j in before) + conv - 1


def paddle(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in PaddleClas."""
    numbers = lambda name: [int(n) for n in re.findall(r"\d+", name)]
    top, *inner = layer
    part = inner[-1]
    role = {"short": "conv_down"}
    if top == "head":
        return "fc"
    if top == "stem":
        return f"conv_layer1_{numbers(inner[0])[0]}.{part}"
    if top == "neck":
        (i,) = numbers(inner[0])
        if inner[0].startswith("branch"):
            return f"last_cls.func_list.{i - 1}.{role.get(inner[1], inner[1])}.{part}"
        return f"cls_head_conv_list.{i - 1}.{part}" if "down" in inner[0] else f"conv_last.{part}"
    (stage,), (block,) = numbers(top), numbers(inner[0])
    if stage == 1:
        return f"layer1.{block - 1}.{role.get(inner[1], inner[1])}.{part}"
    kind = inner[1]
    if kind.startswith("transition"):
        return f"conv_tr1_{numbers(kind)[0]}.{part}" if stage == 2 else f"conv_tr{stage - 1}.{part}"
    theirs = f"st{stage}.stage_func_list.{block - 1}"
    if kind.startswith("branch"):
        branch, unit = numbers(kind)
        return f"{theirs}.basic_block_list.{branch - 1}.{unit - 1}.{inner[2]}.{part}"
    i = exchange_index(stage, *numbers(kind), *numbers(inner[2]))
    return f"{theirs}.fuse_func.residual_func_list.{i}.{part}"
