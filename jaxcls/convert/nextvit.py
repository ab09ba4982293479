"""Names of the layers of NextViT in PaddleClas and timm."""

from typing import Any

from jaxcls.convert import engine

NORM = {"bn": "norm"}
ROLES = {"embed": "patch_embed", "attn": "e_mhsa", "proj": "projection", "conv": "mhca"}
CONVS = {"conv1": "group_conv3x3", "conv2": "projection"}


def paddle(layer: tuple[str, ...], module: Any, of_torch: bool = False) -> str:
    """Returns the layer's name in PaddleClas, which counts the blocks of all stages."""
    if layer[0] in ("head", "neck"):
        return {"head": "head.fc" if of_torch else "proj_head.0", "neck": "norm"}[layer[0]]
    if layer[0] == "stem":
        return f"stem.{engine.number(layer[1]) - 1}.{NORM.get(layer[2], layer[2])}"
    stage, block = engine.numbers(*layer[:2])
    theirs = f"features.{engine.index_of(module.depths, layer)}"
    if of_torch:
        theirs = f"stages.{stage - 1}.blocks.{block - 1}"
    role, *inner = layer[2:]
    if role == "norm1":
        return f"{theirs}.norm1"
    if role == "mlp":
        if inner == ["norm"]:
            attention = stage > 1 and block % (5 if stage == 3 else module.depths[stage - 1]) == 0
            return f"{theirs}.norm2" if attention else f"{theirs}.norm"
        return f"{theirs}.mlp.{inner[0] if of_torch else inner[0].replace('fc', 'conv')}"
    if role == "conv":
        last = "norm" if inner[-1] == "bn" else CONVS[inner[0]]
    else:
        last = NORM.get(inner[-1], inner[-1])
    return f"{theirs}.{ROLES[role]}.{last}"


def timm(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in timm."""
    return paddle(layer, module, of_torch=True)


def torch_sources(module: Any) -> tuple[engine.Source, ...]:
    """Returns the PyTorch networks that have these tensors."""
    del module
    names = {
        f"NextViT_{name}_{size}": f"nextvit_{name}"
        for name in ("small", "base", "large")
        for size in (224, 384)
    }
    return (engine.Source("timm's nextvit_*", timm, timm=names),)
