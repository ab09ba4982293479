"""Names of the layers of ShuffleNetV2 in PaddleClas and torchvision."""

from typing import Any

from jaxcls.convert import engine


def paddle(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in PaddleClas, which numbers stages from 2.

    In the first unit of a stage, branch 1 is our shortcut and branch 2 the three convolutions.
    """
    if layer[0] == "head":
        return "_fc"
    part = engine.PADDLE_PARTS[layer[-1]]
    if layer[0] in ("stem", "neck"):
        return f"{'_conv1' if layer[0] == 'stem' else '_last_conv'}.{part}"
    stage, block = engine.numbers(*layer[:2])
    if layer[2] == "short":
        role = {"conv1": "_conv_dw_1", "conv2": "_conv_linear_1"}[layer[3]]
    else:
        role = {"conv1": "_conv_pw", "conv2": "_conv_dw", "conv3": "_conv_linear"}[layer[2]]
        role += "_2" if block == 1 else ""
    return f"{stage + 1}_{block}.{role}.{part}"


def torchvision(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in torchvision, in whose lists ReLUs have a place."""
    del module
    if layer[0] == "head":
        return "fc"
    part = engine.IN_LIST[layer[-1]]
    if layer[0] in ("stem", "neck"):
        return f"conv{1 if layer[0] == 'stem' else 5}.{part}"
    stage, block = engine.numbers(*layer[:2])
    if layer[2] == "short":
        inner = f"branch1.{ {'conv1': 0, 'conv2': 2}[layer[3]] + part }"
    else:
        inner = f"branch2.{ {'conv1': 0, 'conv2': 3, 'conv3': 5}[layer[2]] + part }"
    return f"stage{stage + 1}.{block - 1}.{inner}"


def torch_sources(module: Any) -> tuple[engine.Source, ...]:
    """Returns the PyTorch networks that have these tensors."""
    if module.act.__name__ != "relu":
        raise ValueError(
            "ShuffleNetV2_swish: torchvision's shufflenet_v2_x1_0 has ReLU: convert it to "
            "ShuffleNetV2"
        )
    return (engine.Source("torchvision's shufflenet_v2_*", torchvision),)
