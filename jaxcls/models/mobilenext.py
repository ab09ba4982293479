"""MobileNeXt: inverted residuals turned inside out, depthwise where the features are wide.

Zhou et al. 2020, Rethinking bottleneck structure (https://arxiv.org/abs/2007.02269). A block is a
3x3 depthwise convolution, a 1x1 convolution to a sixth of the width, a 1x1 convolution and a 3x3
depthwise one. As in the authors' code and PaddleClas, and unlike the paper: blocks that widen have
no first depthwise convolution, and at stride 1 no second one either; of the blocks that keep the
width, only those add their input that follow another of their row. `_x0_35` to `_x1_4` are width
multipliers; PaddleClas has published weights of `_x1_0`.
"""

import dataclasses
import math
from functools import partial

import flax.linen as nn
import jax

from jaxcls.models.layers import (
    Classifier,
    ConvBN,
    DropPath,
    drop_path_rates,
    forward,
    round_to,
    round_to_8,
)
from jaxcls.models.spec import Ctx, Spec

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Row:
    """`repeats` blocks of one width; the first has the stride. Features are those at scale 1."""

    features: int
    repeats: int
    stride: int
    squeeze: int = 6  # a block's input, as a multiple of what is in its middle


class Block(nn.Module):
    """Depthwise, narrowing, widening and depthwise convolution; the outer two as `ends` says."""

    c: Ctx
    features: int
    squeeze: int
    stride: int
    ends: tuple[bool, bool]
    add: bool
    drop_path: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c, width, features, y = self.c, x.shape[-1], self.features, x
        middle = width // self.squeeze
        if middle < features / 6:
            middle = round_to(16, math.ceil(features / 6))
        first, last = self.ends
        if first:
            y = ConvBN(c, width, 3, groups=width, act=nn.relu6, name="conv1")(y)
        y = ConvBN(c, middle, name="conv2")(y)
        y = ConvBN(c, features, act=nn.relu6, name="conv3")(y)
        if last:
            y = ConvBN(c, features, 3, self.stride, groups=features, name="conv4")(y)
        return x + DropPath(c, self.drop_path, name="drop_path")(y) if self.add else y


class MobileNeXt(nn.Module):
    """Stem at stride 2, four stages, head."""

    c: Ctx
    num_classes: int
    stages: tuple[tuple[Row, ...], ...]
    scale: float = 1.0

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        c = self.c.replace(train=train)
        width = stem = round_to_8(32 * self.scale)
        depths = [sum(row.repeats for row in rows) for rows in self.stages]
        stages = []
        for rows, rates in zip(self.stages, drop_path_rates(c, depths), strict=True):
            repeated = [(row, i) for row in rows for i in range(row.repeats)]
            stages.append([])
            for (row, i), rate in zip(repeated, rates, strict=True):
                features = round_to_8(row.features * self.scale)
                if row.features == 1280:
                    features = max(1280, features)
                stride = 1 if i else row.stride
                single = row.repeats == row.stride == 1  # has both ends and adds nothing
                keeps = width == features
                block = partial(
                    Block,
                    features=features,
                    squeeze=row.squeeze,
                    stride=stride,
                    ends=(
                        keeps or single or row.squeeze == 2,
                        keeps or single or stride == 2,
                    ),
                    add=keeps and not single and row.squeeze > 2,
                    drop_path=rate,
                )
                stages[-1].append(block)
                width = features
        return forward(
            c,
            images,
            stem=ConvBN(c, stem, 3, 2, act=nn.relu6, name="stem"),
            stages=stages,
            head=Classifier(c, self.num_classes, dropout=0.2, name="head"),
        )


STAGES = (
    (Row(96, repeats=1, stride=2, squeeze=2), Row(144, repeats=1, stride=1)),
    (Row(192, repeats=3, stride=2),),
    (Row(288, repeats=3, stride=2), Row(384, repeats=4, stride=1)),
    (
        Row(576, repeats=4, stride=2),
        Row(960, repeats=3, stride=1),
        Row(1280, repeats=1, stride=1),
    ),
)
SPECS = {
    f"MobileNeXt_x{str(scale).replace('.', '_')}": Spec(
        MobileNeXt, {"stages": STAGES, "scale": scale}
    )
    for scale in (0.35, 0.5, 0.75, 1.0, 1.4)
}
