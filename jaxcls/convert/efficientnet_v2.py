"""Names of the layers of EfficientNetV2 in PaddleClas, timm and torchvision."""

from typing import Any

from jaxcls.convert import engine

SIZES = ("S", "M", "L", "XL")
PLAIN = {"conv1": "_expand_conv", "conv2": "_depthwise_conv", "conv3": "_project_conv"}


def _kind(layer: tuple[str, ...], module: Any) -> tuple[int, int, Any]:
    """Returns a block's row, its place there and the row itself."""
    row, place = engine.row_of(engine.rows_of(module.stages), layer)
    return row, place, [row for rows in module.stages for row in rows][row]


def paddle(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in PaddleClas, which counts the blocks of all rows."""
    if layer[0] == "head":
        return "_fc"
    if layer[0] == "stem":
        return {"conv": "_stem._conv_stem._conv", "bn": "_stem._norm"}[layer[1]]
    if layer[0] == "neck":
        return {"conv": "_head._conv_head", "bn": "_head._norm"}[layer[1]]
    block = f"_blocks.{engine.index_of(map(len, engine.rows_of(module.stages)), layer)}"
    _, _, row = _kind(layer, module)
    role, part = layer[2:]
    if role == "se":
        return f"{block}._se.{ {'conv1': '_se_reduce', 'conv2': '_se_expand'}[part] }._conv"
    n = engine.number(role) - 1
    if part == "bn":
        return f"{block}._norm{n + (row.expand == 1)}"
    if not row.fused:
        return f"{block}.{PLAIN[role]}._conv"
    return f"{block}.{'_project_conv' if n or row.expand == 1 else '_expand_conv'}._conv"


def timm(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in timm."""
    if not layer[0].startswith("stage"):
        return engine.timm_mobile((), layer)
    row, place, kind = _kind(layer, module)
    if not kind.fused:
        return engine.timm_mobile(engine.rows_of(module.stages), layer)
    role, part = layer[2:]
    n = engine.number(role)
    conv = "conv" if kind.expand == 1 else ("conv_exp", "conv_pwl")[n - 1]
    return f"blocks.{row}.{place}.{conv if part == 'conv' else f'bn{n}'}"


def torchvision(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in torchvision."""
    rows = engine.rows_of(module.stages)
    if layer[0] == "head":
        return "classifier.1"
    if layer[0] in ("stem", "neck"):
        last = sum(len(stage) for stage in module.stages) + 1
        return f"features.{0 if layer[0] == 'stem' else last}.{engine.IN_LIST[layer[-1]]}"
    row, place, kind = _kind(layer, module)
    if kind.fused:
        inner = f"block.{engine.number(layer[2]) - 1}.{engine.IN_LIST[layer[3]]}"
    else:
        inner = engine.torchvision_block(rows, layer, se=True)
    return f"features.{row + 1}.{place}.{inner}"


def torch_sources(module: Any) -> tuple[engine.Source, ...]:
    """Returns the PyTorch networks that have these tensors."""
    del module
    return (
        engine.Source(
            "timm's tf_efficientnetv2_*",
            timm,
            timm={f"EfficientNetV2_{n}": f"tf_efficientnetv2_{n.lower()}" for n in SIZES},
            needs={"padding": "SAME", "bn_epsilon": 1e-3},
            differs="padded at the end",
        ),
        engine.Source(
            "torchvision's efficientnet_v2_*",
            torchvision,
            needs={"padding": None, "bn_epsilon": 1e-3},
            differs="padded on both sides",
        ),
    )
