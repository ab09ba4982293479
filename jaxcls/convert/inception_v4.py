"""Names of PaddleClas's InceptionV4 layers."""

from typing import Any

from jaxcls.convert import engine

STEM = {1: "_conv_{conv}", 2: "_conv2", 3: "_conv{branch}_{conv}", 4: "_conv3"}
# how the convolutions of branches 3 and 4 of stage 3 are counted; elsewhere it is 1, 2, ...
C_NAMES = {3: ("0", "1", "2"), 4: ("0", "00", "000", "1", "2")}


def paddle(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in PaddleClas."""
    del module
    if layer[0] == "head":
        return "out"
    block, branch, conv = engine.numbers(*layer[1:4])
    part = engine.PADDLE_PARTS[layer[-1]]
    if layer[0] == "stem":
        return f"_inception_stem.{STEM[block].format(branch=branch, conv=conv)}.{part}"
    stage = engine.number(layer[0])
    reduction = stage > 1 and block == 1
    theirs = f"_reduction{'AB'[stage - 2]}" if reduction else ""
    theirs = theirs or f"_inception{'ABC'[stage - 1]}_{block - (stage > 1)}"
    if branch == 1 or (branch == 2 and not (reduction and stage == 3)):
        return f"{theirs}._conv{branch}.{part}"
    index = C_NAMES[branch][conv - 1] if stage == 3 and not reduction else conv
    return f"{theirs}._conv{branch}_{index}.{part}"


def torch_sources(module: Any) -> tuple[engine.Source, ...]:
    """Raises ValueError: there is no such PyTorch network."""
    raise ValueError(
        "InceptionV4: timm's inception_v4 is another network, with the 1x7 and 7x1 convolutions "
        "of the stem and of blocks B, and the 1x3 and 3x1 of blocks C, in the other order: convert "
        "PaddleClas's weights"
    )
