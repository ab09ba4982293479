"""Names of the layers of CSWin Transformer in PaddleClas."""

from typing import Any

from jaxcls.convert import engine


def paddle(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in PaddleClas, where a stage ends with what begins our next one."""
    del module
    if layer[0] in ("head", "neck"):
        return {"head": "head", "neck": "norm"}[layer[0]]
    if layer[0] == "stem":
        return "patch_embedding." + {"proj": "patch_embed", "norm": "norm"}[layer[1]]
    stage, block = engine.numbers(*layer[:2])
    if layer[2] == "merge":
        return f"stages.{stage - 2}.merge." + {"proj": "conv", "norm": "norm"}[layer[3]]
    inside = {"attn1": "attns.0", "attn2": "attns.1"}.get(layer[2], layer[2])
    return ".".join((f"stages.{stage - 1}.blocks.{block - 1}", inside, *layer[3:]))


def torch_sources(module: Any) -> tuple[engine.Source, ...]:
    """Returns the PyTorch networks that have these tensors."""
    raise ValueError("timm and torchvision do not have CSWin")
