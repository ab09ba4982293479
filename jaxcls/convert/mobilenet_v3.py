"""Names of the layers of MobileNetV3 in PaddleClas, timm and torchvision."""

from typing import Any

from jaxcls.convert import engine

ROLE = {"conv1": "expand_conv", "conv2": "bottleneck_conv", "se": "mid_se", "conv3": "linear_conv"}

TIMM = {f"MobileNetV3_{size}_x1_0": f"mobilenetv3_{size}_100" for size in ("large", "small")}


def paddle(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in PaddleClas, which counts the blocks of all stages."""
    if layer[0] == "head":
        return "fc"
    if layer[0] == "stem":
        return f"conv.{layer[-1]}"
    if layer[0] == "neck":
        return "last_conv" if layer[1] == "conv2" else f"last_second_conv.{layer[-1]}"
    return f"blocks.{engine.index_of(map(len, module.stages), layer)}.{ROLE[layer[2]]}.{layer[3]}"


def timm(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in timm."""
    widths = _widths(module)
    if layer[:2] == ("neck", "conv1"):
        rows = len({width for stage in widths for width in stage})
        return f"blocks.{rows}.0.{'conv' if layer[-1] == 'conv' else 'bn1'}"
    if layer[0] == "neck":
        return "conv_head"
    return engine.timm_mobile(widths, layer)


def torchvision(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in torchvision."""
    if layer[0] == "head":
        return "classifier.3"
    if layer == ("neck", "conv2"):
        return "classifier.0"
    widths = _widths(module)
    if layer[0] in ("stem", "neck"):
        index = 0 if layer[0] == "stem" else sum(map(len, widths)) + 1
        return f"features.{index}.{engine.IN_LIST[layer[-1]]}"
    stage, block = engine.numbers(*layer[:2])
    inner = engine.torchvision_block(widths, layer, se=module.stages[stage - 1][block - 1].se)
    return f"features.{engine.index_of(map(len, widths), layer) + 1}.{inner}"


def _widths(module: Any) -> list[list[int]]:
    return [[row.features for row in rows] for rows in module.stages]


def torch_sources(module: Any) -> tuple[engine.Source, ...]:
    """Returns the PyTorch networks that have these tensors."""
    last = {} if module.neck > 576 else {"last": 1024}  # of `small`
    needs = {"paper": True, "downscale": False, **last}
    differs = "as in the paper where PaddleClas is not, dropout does not scale in evaluation"
    return (
        engine.Source(
            "timm's mobilenetv3_*",
            timm,
            timm=TIMM,
            needs={**needs, "padding": None, "bn_epsilon": 1e-5},
            differs=f"{differs}; trained with PyTorch: padded on both sides",
        ),
        engine.Source(
            "timm's tf_mobilenetv3_*",
            timm,
            timm={ours: f"tf_{theirs}" for ours, theirs in TIMM.items()},
            needs={**needs, "padding": "SAME", "bn_epsilon": 1e-3},
            differs=f"{differs}; trained with TensorFlow: padded at the end, another epsilon of "
            "BatchNorm",
        ),
        engine.Source(
            "torchvision's mobilenet_v3_*",
            torchvision,
            sides={r"classifier\.0": 0},
            needs={**needs, "padding": None, "bn_epsilon": 1e-3},
            differs=f"{differs}; another epsilon of BatchNorm",
        ),
    )
