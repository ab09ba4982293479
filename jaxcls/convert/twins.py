"""Names of the layers of Twins in PaddleClas and timm, which are the same."""

from typing import Any

from jaxcls.convert import engine

TIMM = {
    f"{ours}_{size}": f"twins_{theirs}_{size}"
    for ours, theirs in {"pcpvt": "pcpvt", "alt_gvt": "svt"}.items()
    for size in ("small", "base", "large")
}


def paddle(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in PaddleClas."""
    del module
    if layer[0] in ("head", "neck"):
        return {"head": "head", "neck": "norm"}[layer[0]]
    if layer[0] == "stem":
        return f"patch_embeds.0.{layer[1]}"
    stage, block = engine.numbers(*layer[:2])
    if layer[2] == "embed":
        return f"patch_embeds.{stage - 1}.{layer[3]}"
    if layer[2] == "peg":
        return f"pos_block.{stage - 1}.proj.0"
    return ".".join((f"blocks.{stage - 1}.{block - 1}", *layer[2:]))


def torch_sources(module: Any) -> tuple[engine.Source, ...]:
    """Returns the PyTorch networks that have these tensors."""
    del module
    return (engine.Source("timm's twins_*", paddle, timm=TIMM),)
