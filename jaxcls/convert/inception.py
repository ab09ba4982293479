"""Names of the layers of Inception-v3 in PaddleClas, timm and torchvision; of v4 in PaddleClas."""

from typing import Any

from jaxcls.convert import engine

STEM4 = {1: "_conv_{conv}", 2: "_conv2", 3: "_conv{branch}_{conv}", 4: "_conv3"}
# how the convolutions of branches 3 and 4 of stage 3 are counted; elsewhere it is 1, 2, ...
C_NAMES = {3: ("0", "1", "2"), 4: ("0", "00", "000", "1", "2")}


# Inception-v3: the convolutions of the stem, and of each kind of block by branch, before the pool's
STEM3 = ("1a_3x3", "2a_3x3", "2b_3x3", "3b_1x1", "4a_3x3")
DOUBLE = ("3x3dbl_1", "3x3dbl_2", "3x3dbl_3")
BLOCKS3 = {
    "A": (("1x1",), ("5x5_1", "5x5_2"), DOUBLE),
    "reduce A": (("3x3",), DOUBLE),
    "B": (("1x1",), ("7x7_1", "7x7_2", "7x7_3"), tuple(f"7x7dbl_{i}" for i in range(1, 6))),
    "reduce B": (("3x3_1", "3x3_2"), tuple(f"7x7x3_{i}" for i in range(1, 5))),
    "C": (("1x1",), ("3x3_1", "3x3_2a", "3x3_2b"), (*DOUBLE[:2], "3x3dbl_3a", "3x3dbl_3b")),
}


def of_v3(layer: tuple[str, ...], pool: str) -> str:
    """Returns the rest of the name of a layer in a block of Inception-v3."""
    stage, block, branch, conv = engine.numbers(*layer[:4])
    kind = f"reduce {'AB'[stage - 2]}" if stage > 1 and block == 1 else "ABC"[stage - 1]
    names = (*BLOCKS3[kind], (pool,))
    return f"branch{names[branch - 1][conv - 1]}.{layer[-1]}"


def torch(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in timm and torchvision, where stage1 is Mixed_5."""
    del module
    if layer[0] == "head":
        return "fc"
    if layer[0] == "stem":
        return f"Conv2d_{STEM3[engine.number(layer[3]) - 1]}.{layer[-1]}"
    stage, block = engine.numbers(*layer[:2])
    return f"Mixed_{stage + 4}{'abcde'[block - (stage > 1)]}.{of_v3(layer, pool='_pool')}"


def without_auxiliary(arrays: engine.Arrays) -> engine.Arrays:
    """Returns the tensors without those of torchvision's auxiliary classifier."""
    return {key: array for key, array in arrays.items() if not key.startswith("AuxLogits.")}


def paddle(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in PaddleClas."""
    return paddle3(layer, module) if is_v3(module) else paddle4(layer)


def is_v3(module: Any) -> bool:
    """Returns whether it is Inception-v3, whose stem is one block."""
    return len(module.stem) == 1


def paddle3(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in PaddleClas's InceptionV3, which counts the blocks."""
    if layer[0] == "head":
        return "fc"
    if layer[0] == "stem":
        return f"inception_stem.conv_{STEM3[engine.number(layer[3]) - 1]}.{layer[-1]}"
    block = engine.index_of(map(len, module.stages), layer)
    return f"inception_block_list.{block}.{of_v3(layer, pool='_pool_conv')}"


def paddle4(layer: tuple[str, ...]) -> str:
    """Returns the layer's name in PaddleClas's InceptionV4."""
    if layer[0] == "head":
        return "out"
    block, branch, conv = engine.numbers(*layer[1:4])
    part = engine.PADDLE_PARTS[layer[-1]]
    if layer[0] == "stem":
        return f"_inception_stem.{STEM4[block].format(branch=branch, conv=conv)}.{part}"
    stage = engine.number(layer[0])
    reduction = stage > 1 and block == 1
    theirs = f"_reduction{'AB'[stage - 2]}" if reduction else ""
    theirs = theirs or f"_inception{'ABC'[stage - 1]}_{block - (stage > 1)}"
    if branch == 1 or (branch == 2 and not (reduction and stage == 3)):
        return f"{theirs}._conv{branch}.{part}"
    index = C_NAMES[branch][conv - 1] if stage == 3 and not reduction else conv
    return f"{theirs}._conv{branch}_{index}.{part}"


def torch_sources(module: Any) -> tuple[engine.Source, ...]:
    """Returns the PyTorch networks that have these tensors."""
    if is_v3(module):
        return (
            engine.Source(
                "timm's and torchvision's inception_v3",
                torch,
                timm={"InceptionV3": "inception_v3"},
                needs={"bn_epsilon": 1e-3, "downscale": False},
                differs="another epsilon of BatchNorm, dropout does not scale in evaluation",
                prepare=without_auxiliary,
            ),
        )
    raise ValueError(
        "InceptionV4: timm's inception_v4 is another network, with the 1x7 and 7x1 convolutions "
        "of the stem and of blocks B, and the 1x3 and 3x1 of blocks C, in the other order: convert "
        "PaddleClas's weights"
    )
