"""Names of the layers of PP-HGNet in PaddleClas and timm."""

from typing import Any

from jaxcls.convert import engine


def paddle(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in PaddleClas."""
    if layer[0] == "head":
        return "fc"
    if layer[0] == "neck":
        return {"conv1": "last_conv", "affine": "lab"}[layer[1]]
    if layer[0] == "stem" and not module.v2:
        return f"stem.{engine.number(layer[1]) - 1}.{layer[-1]}"
    if layer[0] == "stem":
        return f"stem.{layer[1].replace('unit', 'stem')}.{_unit(layer[2:])}"
    stage, block = engine.numbers(*layer[:2])
    role, inner = layer[2], layer[3:]
    theirs = f"stages.{stage - 1}"
    if role == "down":
        return f"{theirs}.downsample.{inner[0]}"
    theirs += f".blocks.{block - 1}"
    if role == "gate":
        return f"{theirs}.att.conv"
    if role.startswith("out"):
        kind = {"out1": "squeeze_", "out2": "excitation_"}[role] if module.v2 else ""
        return f"{theirs}.aggregation_{kind}conv.{_unit(inner)}"
    theirs += f".layers.{engine.number(role) - 1}"
    if module.v2 and stage > 2:  # two convolutions
        theirs += ".conv2" if inner[0] == "affine" else f".{inner[0]}"
    return f"{theirs}.{_unit(inner)}"


def _unit(inner: tuple[str, ...]) -> str:
    """Returns the rest of a name in a convolution with what is behind it."""
    return "lab" if inner == ("affine",) else inner[-1]


def timm(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in timm."""
    theirs = paddle(layer, module)
    if layer[0] == "head":
        return "head.fc"
    if layer[0] == "neck":
        return f"head.last_conv.{ {'conv1': 0, 'affine': 2}[layer[1]] }"
    if layer[0] == "stem" and not module.v2:
        return f"stem.{theirs}"
    places = {
        "aggregation_squeeze_conv": "aggregation.0",
        "aggregation_excitation_conv": "aggregation.1",
        "aggregation_conv": "aggregation.0",
        "att.conv": "aggregation.1.conv",
    }
    for name, place in places.items():
        theirs = theirs.replace(name, place)
    return theirs


def torch_sources(module: Any) -> tuple[engine.Source, ...]:
    """Returns the PyTorch networks that have these tensors."""
    needs, differs = {}, []
    if module.affine:
        needs["zeros"] = True
        differs.append("the maxima in the stem see zeros beyond the border")
    if module.dropout:
        needs["downscale"] = False
        differs.append("dropout does not scale in evaluation")
    names = {f"PPHGNet_{size}": f"hgnet_{size}" for size in ("tiny", "small", "base")}
    names |= {f"PPHGNetV2_B{i}": f"hgnetv2_b{i}" for i in range(7)}
    return (
        engine.Source("timm's hgnet*", timm, timm=names, needs=needs, differs=", ".join(differs)),
    )
