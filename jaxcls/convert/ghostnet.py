"""Names of the layers of GhostNet in PaddleClas and timm."""

from typing import Any

from jaxcls.convert import engine

ROLE = {
    "ghost1": "ghost_module_1",
    "ghost2": "ghost_module_2",
    "conv1": "primary_conv",
    "conv2": "cheap_operation",
    "squeeze": "squeeze",
    "excite": "excitation",
}
SHORT = {"conv1": "shortcut_depthwise", "conv2": "shortcut_conv"}


def paddle(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in PaddleClas, which counts the blocks of all stages."""
    if layer[0] == "head":
        return "fc_1"
    part = engine.PADDLE_PARTS.get(layer[-1])
    if layer[0] == "stem":
        return f"conv1.{part}"
    if layer[0] == "neck":
        return f"{'conv_last' if layer[1] == 'conv1' else 'fc_0'}.{part}"
    block = f"_ghostbottleneck_{engine.index_of(map(len, module.stages), layer)}"
    role = layer[2]
    if role == "se":
        return f"{block}.se_block.{ROLE[layer[3]]}"
    if role == "short":
        return f"{block}.{SHORT[layer[3]]}.{part}"
    inner = "depthwise_conv" if role == "conv1" else f"{ROLE[role]}.{ROLE[layer[3]]}"
    return f"{block}.{inner}.{part}"


TIMM_ROWS = ((0,), (1, 2), (3, 4), (5, 6, 6, 6, 6, 6), (7, 8, 8, 8, 8))  # for our blocks


def timm(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in timm, where the convolution before the mean is a row."""
    del module
    if layer[0] == "head":
        return "classifier"
    if layer[0] == "stem":
        return {"conv": "conv_stem", "bn": "bn1"}[layer[1]]
    if layer[0] == "neck":
        if layer[1] == "conv2":
            return "conv_head"
        return f"blocks.9.0.{ {'conv': 'conv', 'bn': 'bn1'}[layer[2]] }"
    row, place = engine.row_of(TIMM_ROWS, layer)
    role, part = layer[2], layer[-1]
    if role == "se":
        inner = {"squeeze": "se.conv_reduce", "excite": "se.conv_expand"}[part]
    elif role == "conv1":
        inner = f"{part}_dw"
    elif role == "short":
        inner = f"shortcut.{2 * engine.number(layer[3]) - 2 + engine.IN_LIST[part]}"
    else:
        inner = f"{role}.{ROLE[layer[3]]}.{engine.IN_LIST[part]}"
    return f"blocks.{row}.{place}.{inner}"


def torch_sources(module: Any) -> tuple[engine.Source, ...]:
    """Returns the PyTorch networks that have these tensors."""
    del module
    return (
        engine.Source(
            "timm's ghostnet_*",
            timm,
            sides={r".*\.se\.conv_(reduce|expand)": 1},
            timm={
                "GhostNet_x0_5": "ghostnet_050",
                "GhostNet_x1_0": "ghostnet_100",
                "GhostNet_x1_3": "ghostnet_130",
            },
            needs={"paper": True},
            differs="as in the paper where PaddleClas is not",
        ),
    )
