"""Names of the layers of HRNet in PaddleClas and timm."""

from functools import partial
from typing import Any

from jaxcls.convert import engine


def exchange_index(branches: int, source: int, target: int, conv: int) -> int:
    """Returns the place of a convolution in PaddleClas's one list for all pairs of branches.

    The list goes through targets, then sources; a pair has as many convolutions as halvings
    between them, or one where the target is the larger. All arguments count from 1.
    """
    pairs = [(i, j) for i in range(1, branches + 1) for j in range(1, branches + 1) if i != j]
    before = pairs[: pairs.index((target, source))]
    return sum(max(i - j, 1) for i, j in before) + conv - 1


def paddle(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in PaddleClas."""
    top, *inner = layer
    part = {"squeeze": "fc_squeeze", "excite": "fc_excitation"}.get(inner[-1], inner[-1])
    role = {"short": "conv_down"}
    if top == "head":
        return "fc"
    if top == "stem":
        return f"conv_layer1_{engine.number(inner[0])}.{part}"
    if top == "neck":
        i = engine.number(inner[0])
        if inner[0].startswith("branch"):
            return f"last_cls.func_list.{i - 1}.{role.get(inner[1], inner[1])}.{part}"
        return f"cls_head_conv_list.{i - 1}.{part}" if "down" in inner[0] else f"conv_last.{part}"
    stage, block = engine.numbers(*layer[:2])
    if stage == 1:
        return f"layer1.{block - 1}.{role.get(inner[1], inner[1])}.{part}"
    kind = inner[1]
    if kind.startswith("transition"):
        place = f"1_{engine.number(kind)}" if stage == 2 else stage - 1
        return f"conv_tr{place}.{part}"
    theirs = f"st{stage}.stage_func_list.{block - 1}"
    if kind.startswith("branch"):
        branch, unit = engine.numbers(kind)
        return f"{theirs}.basic_block_list.{branch - 1}.{unit - 1}.{inner[2]}.{part}"
    i = exchange_index(stage, *engine.numbers(kind, inner[2]))
    return f"{theirs}.fuse_func.residual_func_list.{i}.{part}"


def timm(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in timm, as in the authors' code."""
    del module
    top, *inner = layer
    if top == "head":
        return "classifier"
    part = inner[-1]
    in_list = engine.IN_LIST[part]

    def unit(role: str) -> str:
        """Returns the rest of a name in a residual block."""
        if role == "short":
            return f"downsample.{in_list}"
        return f"{part}{engine.number(role)}"

    if top == "stem":
        return unit(inner[0])
    if top == "neck":
        i = engine.number(inner[0])
        if inner[0].startswith("branch"):
            return f"incre_modules.{i - 1}.0.{unit(inner[1])}"
        if inner[0].startswith("down"):
            return f"downsamp_modules.{i - 1}.{in_list}"
        return f"final_layer.{in_list}"
    stage, block = engine.numbers(*layer[:2])
    if stage == 1:
        return f"layer1.{block - 1}.{unit(inner[1])}"
    kind = inner[1]
    first, *second = (n - 1 for n in engine.numbers(kind))
    if kind.startswith("transition"):
        return f"transition{stage - 1}.{first}.{'0.' if first else ''}{in_list}"
    theirs = f"stage{stage}.{block - 1}"
    if kind.startswith("branch"):
        return f"{theirs}.branches.{first}.{second[0]}.{unit(inner[2])}"
    source, target = first, *second
    steps = f"{engine.number(inner[2]) - 1}." if source < target else ""
    return f"{theirs}.fuse_layers.{target}.{source}.{steps}{in_list}"


# convolutions with a bias in front of a BatchNorm -> it
BIASED = {
    f"{layer}.0": f"{layer}.1"
    for layer in (*(f"downsamp_modules.{i}" for i in range(3)), "final_layer")
}


def torch_sources(module: Any) -> tuple[engine.Source, ...]:
    """Returns the PyTorch networks that have these tensors."""
    if module.se:
        raise ValueError("SE_HRNet is not in timm or torchvision: convert PaddleClas's weights")
    return (
        engine.Source(
            "timm's hrnet_w*",
            timm,
            prepare=partial(engine.without_biases, norms=BIASED),
            complete=partial(engine.with_biases, norms=BIASED),
            timm={f"HRNet_W{n}_C": f"hrnet_w{n}" for n in (18, 30, 32, 40, 44, 48, 64)},
        ),
    )
