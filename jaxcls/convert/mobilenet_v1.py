"""Names of PaddleClas's MobileNetV1 layers."""

from typing import Any

from jaxcls.convert import engine


def paddle(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in PaddleClas, which counts the blocks of all stages."""
    if layer[0] == "head":
        return "fc"
    if layer[0] == "stem":
        return f"conv.{layer[-1]}"
    role = {"conv1": "depthwise_conv", "conv2": "pointwise_conv"}[layer[2]]
    return f"blocks.{engine.index_of(map(len, module.stages), layer)}.{role}.{layer[3]}"


def torch_sources(module: Any) -> tuple[engine.Source, ...]:
    """Raises ValueError: there is no such PyTorch network."""
    raise ValueError(
        "MobileNetV1: timm's mobilenetv1_* have ReLU6 in place of ReLU: convert PaddleClas's "
        "weights"
    )
