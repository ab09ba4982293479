"""Names of the layers of EfficientNet and TinyNet in PaddleClas, timm and torchvision."""

from typing import Any

from jaxcls.convert import engine

ROLE = {"conv1": "_ecn", "conv2": "_dcn", "se": "_se", "conv3": "_pcn"}
PART = {"conv": "_conv._conv", "bn": "_bn"}


def paddle(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in PaddleClas.

    It counts the blocks of all rows and calls the first block of a row `_blocks.N.`, any further
    one `block.N.` (with the dot).
    """
    if layer[0] == "head":
        return "_fc"
    if layer[0] in ("stem", "neck"):
        return f"{'_ef._conv_stem._conv' if layer[0] == 'stem' else '_conv'}.{PART[layer[-1]]}"
    rows = engine.rows_of(module.scaled())
    _, place = engine.row_of(rows, layer)
    index = engine.index_of(map(len, rows), layer)
    unit = f"_ef.{'block' if place else '_blocks'}.{index}..{ROLE[layer[2]]}"
    if layer[2] == "se":
        return f"{unit}._{layer[3]}._conv"
    return f"{unit}._conv.{PART[layer[3]]}"


def timm(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in timm."""
    return engine.timm_mobile(engine.rows_of(module.scaled()), layer)


def torchvision(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in torchvision."""
    if layer[0] == "head":
        return "classifier.1"
    if layer[0] in ("stem", "neck"):
        return f"features.{0 if layer[0] == 'stem' else 8}.{engine.IN_LIST[layer[-1]]}"
    rows = engine.rows_of(module.scaled())
    row, place = engine.row_of(rows, layer)
    inner = engine.torchvision_block(rows, layer, se=module.se)
    return f"features.{row + 1}.{place}.{inner}"


def torch_sources(module: Any) -> tuple[engine.Source, ...]:
    """Returns the PyTorch networks that have these tensors."""
    if not module.se:
        raise ValueError(
            "EfficientNetB0_small is not in timm or torchvision: what has its tensors there, "
            "efficientnet_lite0, has ReLU6 in place of swish; convert PaddleClas's weights"
        )
    if module.fixed:
        return (
            engine.Source(
                "timm's tinynet_*",
                timm,
                timm={f"TinyNet_{name}": f"tinynet_{name.lower()}" for name in "ABCDE"},
                needs={"round_depth": True, "bn_epsilon": 1e-5},
                differs="the number of blocks is rounded to the nearest, another epsilon of "
                "BatchNorm",
            ),
        )
    large = module.depth > 2  # B5 to B7
    return (
        engine.Source(
            "timm's tf_efficientnet_b*",
            timm,
            timm={f"EfficientNetB{n}": f"tf_efficientnet_b{n}" for n in range(8)},
            needs={"padding": "SAME", "bn_epsilon": 1e-3},
            differs="trained with TensorFlow: padded at the end",
        ),
        engine.Source(
            "timm's efficientnet_b*",
            timm,
            timm={f"EfficientNetB{n}": f"efficientnet_b{n}" for n in range(8)},
            needs={"padding": None, "bn_epsilon": 1e-5},
            differs="trained with PyTorch: padded on both sides, another epsilon of BatchNorm",
        ),
        engine.Source(
            "torchvision's efficientnet_b*",
            torchvision,
            needs={"padding": None, "bn_epsilon": 1e-3 if large else 1e-5},
            differs="padded on both sides"
            + (", another epsilon of BatchNorm" if not large else ""),
        ),
    )
