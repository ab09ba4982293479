"""Names of the layers of MobileNetV4 in PaddleClas and timm."""

from typing import Any

from jaxcls.convert import engine

UNIVERSAL = {"start": "dw_start", "conv1": "pw_exp", "conv2": "dw_mid", "conv3": "pw_proj"}
FUSED = {"conv1": "conv_exp", "conv2": "conv_pwl"}
SHARED = {"query": "query_proj", "key": "key_proj", "value": "value_proj", "proj": "proj"}
SHARED |= {"key_down": "key_down_proj", "value_down": "value_down_proj", "norm": "norm"}


def paddle(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in PaddleClas, where the convolution before the mean is a block."""
    if layer[0] == "head":
        return "classifier"
    if layer[0] == "stem":
        return f"conv_stem.{layer[1]}"
    if layer[0] == "neck":
        last = f"blocks.{sum(map(len, module.stages))}"
        return f"{last if layer[1] == 'conv1' else 'conv_head'}.{layer[2]}"
    block = f"blocks.{engine.index_of(map(len, module.stages), layer)}"
    if layer[2] == "scale":
        return f"{block}.layer_scale.gamma"
    if _row(layer, module).__class__.__name__ == "Shared":
        return ".".join((block, SHARED[layer[2]], *layer[3:]))
    if len(layer) == 3:
        return f"{block}.{layer[2]}"
    fused = _row(layer, module).__class__.__name__ == "Fused"
    return f"{block}.{(FUSED if fused else UNIVERSAL)[layer[2]]}.{layer[3]}"


def timm(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in timm, where the convolution before the mean is a stage."""
    if layer[0] == "head":
        return "classifier"
    plain = {"conv": "conv", "bn": "bn1"}
    if layer[0] == "stem":
        return {"conv": "conv_stem", "bn": "bn1"}[layer[1]]
    if layer[:2] == ("neck", "conv1"):
        return f"blocks.{len(module.stages)}.0.{plain[layer[2]]}"
    if layer[0] == "neck":
        return {"conv": "conv_head", "bn": "norm_head"}[layer[2]]
    stage, block = engine.numbers(*layer[:2])
    name = f"blocks.{stage - 1}.{block - 1}"
    if layer[2] == "scale":
        return f"{name}.layer_scale.gamma"
    if _row(layer, module).__class__.__name__ == "Shared":
        return f"{name}.{_timm_shared(*layer[2:])}"
    if len(layer) == 3:
        return f"{name}.{plain[layer[2]]}"
    role, part = layer[2:]
    if _row(layer, module).__class__.__name__ == "Fused":
        return f"{name}.{FUSED[role] if part == 'conv' else f'bn{engine.number(role)}'}"
    return f"{name}.{UNIVERSAL[role]}.{part}"


def _timm_shared(role: str, part: str = "") -> str:
    if part:  # of what has fewer places: "key_down"
        return f"attn.{role.partition('_')[0]}.{ {'conv': 'down_conv', 'bn': 'norm'}[part] }"
    return {"norm": "norm", "proj": "attn.output.proj"}.get(role) or f"attn.{role}.proj"


def _row(layer: tuple[str, ...], module: Any) -> Any:
    stage, block = engine.numbers(*layer[:2])
    return module.stages[stage - 1][block - 1]


def torch_sources(module: Any) -> tuple[engine.Source, ...]:
    """Returns the PyTorch networks that have these tensors."""
    if module.layer_scale is not None:
        there = {f"MobileNetV4_{n}": f"mobilenetv4_{n}" for n in ("hybrid_medium", "hybrid_large")}
        needs = {"by_head": True}
        differs = "attention's logits are divided by the root of the width of a head"
        return (
            engine.Source(
                "timm's mobilenetv4_hybrid_*", timm, needs=needs, differs=differs, timm=there
            ),
        )
    sizes = ("small", "medium", "large")
    there = {f"MobileNetV4_conv_{size}": f"mobilenetv4_conv_{size}" for size in sizes}
    return (engine.Source("timm's mobilenetv4_conv_*", timm, timm=there),)
