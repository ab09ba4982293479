"""Names of the layers of Xception in PaddleClas and timm."""

from typing import Any

from jaxcls.convert import engine


def paddle(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in PaddleClas, whose entry, middle and exit flow count blocks."""
    return _deeplab(layer, module) if module.deeplab else _plain(layer, module)


def _flow(layer: tuple[str, ...], module: Any) -> tuple[str, int]:
    """Returns the flow of a layer below a stage and the index of its block in it, from 0."""
    stage, block = engine.numbers(*layer[:2])
    if stage > len(module.entry):
        return "exit", block - 1
    beyond = block - 1 - len(module.entry[stage - 1])
    if beyond >= 0:
        return "middle", beyond
    return "entry", engine.index_of(map(len, module.entry), layer)


def _plain(layer: tuple[str, ...], module: Any) -> str:
    if layer[0] == "head":
        return "_exit_flow._out"
    if layer[0] == "stem":
        return f"_entry_flow._{layer[1]}.{engine.PADDLE_PARTS[layer[2]]}"
    flow, block = _flow(layer, module)
    if layer[2] == "short":
        return f"_{flow}_flow._conv_{block}._short"
    number = engine.number(layer[2])
    conv = {"entry": f"_conv{number}", "middle": f"_conv_{number - 1}", "exit": f"_conv_{number}"}
    theirs = f"_{flow}_flow._conv_{block}.{conv[flow]}"
    if flow == "exit" and block == 1:  # the tail has no block of its own there
        theirs = f"_exit_flow._conv_{number}"
    return f"{theirs}._{layer[3]}_conv.{engine.PADDLE_PARTS[layer[4]]}"


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


def timm(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in timm, which counts the blocks of all flows."""
    if layer[0] == "head":
        return "head.fc"
    if layer[0] == "stem":
        return f"stem.{engine.number(layer[1]) - 1}.{layer[2]}"
    flow, block = _flow(layer, module)
    entry = sum(map(len, module.entry))
    theirs = f"blocks.{block + {'entry': 0, 'middle': entry, 'exit': entry + module.middle}[flow]}"
    if layer[2] == "short":
        return f"{theirs}.shortcut.{layer[3]}"
    kind = {"depthwise": "dw", "pointwise": "pw"}[layer[3]]
    return f"{theirs}.stack.{layer[2]}.{layer[4]}_{kind}"


def torch_sources(module: Any) -> tuple[engine.Source, ...]:
    """Returns the PyTorch networks that have these tensors."""
    if not module.deeplab:
        raise ValueError(
            "timm's xception41, xception65 and xception71 are other networks than these, with the "
            "channel-wise convolution first and three in every block: convert PaddleClas's "
            "weights, or timm's xception41 and xception65 to Xception41_deeplab and "
            "Xception65_deeplab"
        )
    return (
        engine.Source(
            "timm's xception41 and xception65",
            timm,
            timm={f"Xception{n}_deeplab": f"xception{n}" for n in (41, 65)},
            needs={"dilation": 1, "downscale": False},
            differs="rate 1 in the last block, dropout does not scale in evaluation",
        ),
    )
