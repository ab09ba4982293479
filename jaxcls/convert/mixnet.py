"""Names of the layers of MixNet in PaddleClas and timm."""

from typing import Any

from jaxcls.convert import engine

ROLE = {"conv1": "exp_conv", "conv2": "conv1", "conv3": "conv2", "se": "se"}


def paddle(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in PaddleClas, where stage1 belongs to the stem and two are one."""
    if layer[0] == "head":
        return "output"
    if layer[0] in ("stem", "neck"):
        where = {"stem": "init_block.conv1", "neck": "final_block"}[layer[0]]
        return f"features.{where}.{layer[1]}"
    stage, block = engine.numbers(*layer[:2])
    role, part = layer[2:]
    if stage == 1:
        unit = "init_block.conv2"
    else:
        before = sum(row.repeats for row in module.stages[3] if row.features == 80)
        if stage == 4 and block > before:
            stage, block = 5, block - before
        elif stage == 5:
            block += sum(row.repeats for row in module.stages[3]) - before
        unit = f"stage{stage - 1}.unit{block}"
    if role != "se" and part.startswith("conv") and part != "conv":
        part = f"conv.{engine.number(part) - 1}"
    return f"features.{unit}.{ROLE[role]}.{part}"


def timm(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in timm, where blocks of one width are a row."""
    rows = [[row.features for row in rows for _ in range(row.repeats)] for rows in module.stages]
    if layer[0].startswith("stage") and layer[2] != "se" and layer[3] not in ("conv", "bn"):
        return f"{engine.timm_mobile(rows, (*layer[:3], 'conv'))}.{engine.number(layer[3]) - 1}"
    return engine.timm_mobile(rows, layer)


def torch_sources(module: Any) -> tuple[engine.Source, ...]:
    """Returns the PyTorch networks that have these tensors."""
    del module
    return (
        engine.Source(
            "timm's mixnet_*",
            timm,
            timm={f"MixNet_{size}": f"mixnet_{size.lower()}" for size in "SML"},
            needs={"padding": None, "bn_epsilon": 1e-5},
            differs="padded on both sides",
        ),
        engine.Source(
            "timm's tf_mixnet_*",
            timm,
            timm={f"MixNet_{size}": f"tf_mixnet_{size.lower()}" for size in "SML"},
            needs={"padding": "SAME", "bn_epsilon": 1e-3},
            differs="trained with TensorFlow: padded at the end, another epsilon of BatchNorm",
        ),
    )
