"""Names of the layers of DPN in PaddleClas and timm."""

from typing import Any

from jaxcls.convert import engine

ROLES = {"conv1": "c1x1_a", "conv2": "c3x3_b", "conv3": "c1x1_c", "short": "c1x1_w"}


def paddle(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in PaddleClas, which counts the blocks through all stages."""
    if layer[0] == "stem":
        return f"conv1_x_1_func.{engine.PADDLE_PARTS[layer[-1]]}"
    if layer[0] == "neck":
        return "conv5_x_x_bn"
    if layer[0] == "head":
        return "out"
    unit = f"dpn{engine.index_of(module.depths, layer) + 1}.{ROLES[layer[2]]}"
    return f"{unit}_func.{engine.PADDLE_PARTS[layer[-1]]}"


def timm(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in timm."""
    del module
    if layer[0] == "stem":
        return f"features.conv1_1.{layer[-1]}"
    if layer[0] == "neck":
        return "features.conv5_bn_ac.bn"
    if layer[0] == "head":
        return "classifier"
    stage, block = engine.numbers(*layer[:2])
    role = ROLES[layer[2]]
    if layer[2] == "short":
        role += "_s1" if stage == 1 else "_s2"
    return f"features.conv{stage + 1}_{block}.{role}.{layer[-1]}"


def torch_sources(module: Any) -> tuple[engine.Source, ...]:
    """Returns the PyTorch networks that have these tensors."""
    del module
    return (
        engine.Source(
            "timm's dpn68 to dpn131",
            timm,
            sides={"classifier": 1},
            timm={f"DPN{n}": f"dpn{n}" for n in (68, 92, 98, 107, 131)},
            needs={"bn_epsilon": 1e-3},
            differs="another epsilon of BatchNorm",
        ),
    )
