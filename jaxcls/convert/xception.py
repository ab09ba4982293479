"""Names of PaddleClas's Xception layers."""

import re
from typing import Any

PART = {"conv": "_conv", "bn": "_batch_norm"}


def paddle(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in PaddleClas, whose entry, middle and exit flow count blocks."""
    return _deeplab(layer, module) if module.deeplab else _plain(layer, module)


def _flow(layer: tuple[str, ...], module: Any) -> tuple[str, int]:
    """Returns the flow of a layer below a stage and the index of its block in it, from 0."""
    stage, block = (int(re.sub(r"\D", "", name)) - 1 for name in layer[:2])
    if stage == len(module.entry):
        return "exit", block
    before = sum(map(len, module.entry[:stage]))
    if block < len(module.entry[stage]):
        return "entry", before + block
    return "middle", block - len(module.entry[stage])


def _plain(layer: tuple[str, ...], module: Any) -> str:
    if layer[0] == "head":
        return "_exit_flow._out"
    if layer[0] == "stem":
        return f"_entry_flow._{layer[1]}.{PART[layer[2]]}"
    flow, block = _flow(layer, module)
    if layer[2] == "short":
        return f"_{flow}_flow._conv_{block}._short"
    number = int(re.sub(r"\D", "", layer[2]))
    conv = {"entry": f"_conv{number}", "middle": f"_conv_{number - 1}", "exit": f"_conv_{number}"}
    theirs = f"_{flow}_flow._conv_{block}.{conv[flow]}"
    if flow == "exit" and block == 1:  # the tail has no block of its own there
        theirs = f"_exit_flow._conv_{number}"
    return f"{theirs}._{layer[3]}_conv.{PART[layer[4]]}"


def _deeplab(layer: tuple[str, ...], module: Any) -> str:
    if layer[0] == "head":
        return "_fc"
    if layer[0] == "stem":
        return f"_{layer[1]}._{layer[2]}"
    flow, block = _flow(layer, module)
    backbone = {8: "xception_41", 16: "xception_65"}[module.middle]
    theirs = f"_exit_flow_{block + 1}"
    if flow != "exit":
        theirs = f"{backbone}/{flow}_flow/block{block + 1}"
    if layer[2] == "short":
        return f"{theirs}._short._{layer[3]}"
    number = {"depthwise": 1, "pointwise": 2}[layer[3]]
    return f"{theirs}._{layer[2]}._{layer[4]}{number}"
