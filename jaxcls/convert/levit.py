"""Names of the layers of LeViT in PaddleClas and timm."""

from typing import Any

from jaxcls.convert import engine

HEADS = {"cls_bn": "head.bn", "cls": "head.l", "dist_bn": "head_dist.bn", "dist": "head_dist.l"}
HEADS |= {"fc": "head.l", "neck": "head.bn"}
PART = {"conv": "c", "bn": "bn"}


def paddle(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in PaddleClas, whose list counts every attention and every MLP."""
    if layer[0] in ("head", "neck"):
        return HEADS[layer[-1] if layer[-1] != "fc" else layer[1]]
    if layer[0] == "stem":
        return f"patch_embed.{2 * engine.number(layer[1]) - 2}.{PART[layer[2]]}"
    place = 2 * engine.index_of((d + (i > 0) for i, d in enumerate(module.depths)), layer)
    down = layer[0] != "stage1" and layer[1] == "block1"
    if layer[2] != "attn":
        return f"blocks.{place + 1}.m.{ {'fc1': 0, 'fc2': 2}[layer[2]] }.{PART[layer[3]]}"
    start = f"blocks.{place}" + ("" if down else ".m")
    if layer[3] == "bias_grid":
        return f"{start}.attention_biases"
    role = {"proj": "proj.1", "q": "q.1"}.get(layer[3], layer[3])
    return f"{start}.{role}.{PART[layer[4]]}"


def timm(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in timm."""
    del module
    part = {"conv": "linear", "bn": "bn"}.get(layer[-1])
    if layer[0] in ("head", "neck"):
        return HEADS[layer[-1] if layer[-1] != "fc" else layer[1]].replace(".l", ".linear")
    if layer[0] == "stem":
        return f"stem.conv{engine.number(layer[1])}.{part}"
    stage, block = engine.numbers(*layer[:2])
    down = stage > 1 and block == 1
    start = f"stages.{stage - 1}." + ("downsample" if down else f"blocks.{block - 1 - (stage > 1)}")
    if layer[2] != "attn":
        return f"{start}.mlp.{ {'fc1': 'ln1', 'fc2': 'ln2'}[layer[2]] }.{part}"
    start += ".attn_downsample" if down else ".attn"
    if layer[3] == "bias_grid":
        return f"{start}.attention_biases"
    role = {"proj": "proj.ln", "q": "q.ln"}.get(layer[3], layer[3])
    return f"{start}.{role}.{part}"


def torch_sources(module: Any) -> tuple[engine.Source, ...]:
    """Returns the PyTorch networks that have these tensors."""
    del module
    return (
        engine.Source(
            "timm's levit_*",
            timm,
            needs={"distilled": True},
            differs="a second classifier and the mean of both",
            timm={f"LeViT_{n}": f"levit_{n}".lower() for n in ("128S", 128, 192, 256, 384)},
        ),
    )
