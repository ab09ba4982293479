"""Names of the layers of FasterNet in PaddleClas and timm."""

from typing import Any

from jaxcls.convert import engine

ROLE = {
    ("conv1",): "spatial_mixing.partial_conv3",
    ("conv2", "conv"): "mlp.0",
    ("conv2", "bn"): "mlp.1",
    ("conv3",): "mlp.3",
}
PATCHES = {"conv": "proj", "bn": "norm"}
MERGE = {"conv": "reduction", "bn": "norm"}


def paddle(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in PaddleClas, where stages and mergings are one list."""
    del module
    if layer[0] in ("head", "neck"):
        return {"head": "head", "neck": "avgpool_pre_head.1"}[layer[0]]
    if layer[0] == "stem":
        return f"patch_embed.{PATCHES[layer[1]]}"
    stage, block = engine.numbers(*layer[:2])
    if layer[2] == "merge":
        return f"stages.{2 * stage - 3}.{MERGE[layer[3]]}"
    return f"stages.{2 * stage - 2}.blocks.{block - 1}.{ROLE[layer[2:]]}"


def timm(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in timm."""
    del module
    if layer[0] in ("head", "neck"):
        return {"head": "classifier", "neck": "conv_head"}[layer[0]]
    if layer[0] == "stem":
        return f"patch_embed.{PATCHES[layer[1]]}"
    stage, block = engine.numbers(*layer[:2])
    if layer[2] == "merge":
        return f"stages.{stage - 1}.downsample.{MERGE[layer[3]]}"
    return f"stages.{stage - 1}.blocks.{block - 1}.{ROLE[layer[2:]]}"


def torch_sources(module: Any) -> tuple[engine.Source, ...]:
    """Returns the PyTorch networks that have these tensors."""
    del module
    there = {f"FasterNet_{n}": f"fasternet_{n.lower()}" for n in ("T0", "T1", "T2", "S", "M", "L")}
    return (engine.Source("timm's fasternet_*", timm, timm=there),)
