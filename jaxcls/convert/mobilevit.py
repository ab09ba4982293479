"""Names of the layers of MobileViT, V2 and V3 in PaddleClas and timm."""

from typing import Any

from jaxcls.convert import engine

EXPAND = {"conv1": "exp_1x1", "conv2": "conv_3x3", "conv3": "red_1x1"}
ENCODER = {"norm1": "attn_norm", "norm2": "mlp_norm"}
MHA = {
    ("norm1",): "pre_norm_mha.0",
    ("attn", "qkv"): "pre_norm_mha.1.qkv_proj",
    ("attn", "proj"): "pre_norm_mha.1.out_proj",
    ("norm2",): "pre_norm_ffn.0",
    ("mlp", "fc1"): "pre_norm_ffn.1",
    ("mlp", "fc2"): "pre_norm_ffn.4",
}
LINEAR = {
    "norm1": "pre_norm_attn.0",
    "qkv": "pre_norm_attn.1.qkv_proj",
    "proj": "pre_norm_attn.1.out_proj",
    "norm2": "pre_norm_ffn.0",
    "fc1": "pre_norm_ffn.1",
    "fc2": "pre_norm_ffn.4",
}
V2 = ("050", "075", "100", "125", "150", "175", "200")
V2 = {f"MobileViTV2_x{n[0]}_{n[1:].removesuffix('0')}": f"mobilevitv2_{n}" for n in V2}
PART = {"conv": "conv", "bn": "norm"}


def paddle(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in PaddleClas."""
    return (first if module.kind == "v1" else later)(layer, module)


def first(layer: tuple[str, ...], module: Any) -> str:
    """Returns the name in MobileViT, which counts blocks over all stages."""
    del module
    part = PART.get(layer[-1])
    if layer[0] in ("head", "stem", "neck"):
        return {"head": "linear", "stem": f"conv3x3.{part}", "neck": f"conv1x1.{part}"}[layer[0]]
    stage, block = engine.numbers(*layer[:2])
    if stage > 2 and block == 2:
        start, inside = f"mvit_block_{stage - 2}", layer[2:]
        if inside[0].startswith("layer"):
            role = ENCODER.get(inside[1], inside[1])
            place = engine.number(inside[0]) - 1
            return ".".join((start, f"transformer.layers.{place}", role, *inside[2:]))
        if inside[0] == "norm":
            return f"{start}.transformer.norm"
        return f"{start}.{inside[0]}" + (f".{part}" if part else "")
    start = f"mv2_block_{ {1: 0, 2: 1, 3: 4, 4: 5, 5: 6}[stage] + block }.conv"
    conv = engine.number(layer[2]) - 1
    if conv == 2:
        return f"{start}.{2 + (part == 'norm')}"
    return f"{start}.{conv}.{part}"


def later(layer: tuple[str, ...], module: Any) -> str:
    """Returns the name in MobileViTV2 and V3."""
    part = PART.get(layer[-1])
    if layer[0] in ("head", "stem", "neck"):
        neck = f"conv_1x1_exp.{part}"
        return {"head": "classifier.fc", "stem": f"conv_1.{part}", "neck": neck}[layer[0]]
    stage, block = engine.numbers(*layer[:2])
    start, inside = f"layer_{stage}.{block - 1}", layer[2:]
    if stage < 3 or block == 1:
        return f"{start}.block.{EXPAND[inside[0]]}.{part}"
    if inside[0] == "norm":
        return f"{start}.global_rep.{module.layers[stage - 3]}"
    if inside[0].startswith("layer"):
        names = MHA[inside[1:]] if module.kind == "v3" else LINEAR[inside[1]]
        return f"{start}.global_rep.{engine.number(inside[0]) - 1}.{names}"
    local = ("conv_3x3", "conv_1x1") if module.kind == "v3" else (0, 1)
    theirs = {
        "conv1": f"local_rep.{local[0]}",
        "conv2": f"local_rep.{local[1]}",
        "conv3": "conv_proj",
        "conv4": "fusion",
    }[inside[0]]
    return f"{start}.{theirs}.{part or 'conv'}"


def timm(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in timm."""
    part = {"conv": "conv", "bn": "bn"}.get(layer[-1])
    if layer[0] in ("head", "stem", "neck"):
        return {"head": "head.fc", "stem": f"stem.{part}", "neck": f"final_conv.{part}"}[layer[0]]
    stage, block = engine.numbers(*layer[:2])
    start, inside = f"stages.{stage - 1}.{block - 1}", layer[2:]
    if stage < 3 or block == 1:
        role = {"conv1": "conv1_1x1", "conv2": "conv2_kxk", "conv3": "conv3_1x1"}[inside[0]]
        return f"{start}.{role}.{part}"
    if inside[0].startswith("layer"):
        place = engine.number(inside[0]) - 1
        if module.kind == "v2":
            role = {"qkv": "attn.qkv_proj", "proj": "attn.out_proj"}.get(inside[1])
            role = role or {"fc1": "mlp.fc1", "fc2": "mlp.fc2"}.get(inside[1], inside[1])
        else:
            role = ".".join(inside[1:])
        return f"{start}.transformer.{place}.{role}"
    theirs = {
        "conv1": "conv_kxk",
        "conv2": "conv_1x1",
        "conv3": "conv_proj",
        "conv4": "conv_fusion",
    }
    if inside[0] == "conv2":
        return f"{start}.conv_1x1"
    return f"{start}.norm" if inside[0] == "norm" else f"{start}.{theirs[inside[0]]}.{part}"


def torch_sources(module: Any) -> tuple[engine.Source, ...]:
    """Returns the PyTorch networks that have these tensors."""
    if module.kind.startswith("v3"):
        raise ValueError("timm and torchvision do not have MobileViTV3")
    if module.kind == "v2":
        return (engine.Source("timm's mobilevitv2_*", timm, timm=V2),)
    return (
        engine.Source(
            "timm's mobilevit_*",
            timm,
            needs={"nearest": False},
            differs="grids that patches do not fill are shrunk again by interpolation",
            timm={f"MobileViT_{n}": f"mobilevit_{n}".lower() for n in ("XXS", "XS", "S")},
        ),
    )
