"""MobileNetV2: inverted residuals.

Sandler et al. 2018, MobileNetV2 (https://arxiv.org/abs/1801.04381). `_x0_25` to `_x2_0` are width
multipliers, truncated to whole features; `_ssld` is the same network with weights distilled from a
larger one. As in PaddleClas, the first block too has its 1x1 expansion, from 32 to 32 features (not
with `expand_first=False`, as in the paper), and there is no dropout before the classifier.
"""

import dataclasses
from functools import partial

import flax.linen as nn
import jax

from jaxcls.models.layers import (
    Classifier,
    ConvBN,
    InvertedResidual,
    drop_path_rates,
    forward,
)
from jaxcls.models.spec import Ctx, Spec

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Row:
    """`repeats` blocks of one width; the first has the stride."""

    expand: int  # features inside a block, as a multiple of its input's
    features: int
    repeats: int
    stride: int


class MobileNetV2(nn.Module):
    """Stem at stride 2, five stages, 1x1 convolution, head."""

    c: Ctx
    num_classes: int
    stages: tuple[tuple[Row, ...], ...]
    scale: float = 1.0
    expand_first: bool = True  # False: no 1x1 convolution before the first depthwise one

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        c = self.c.replace(train=train)
        width = stem = int(32 * self.scale)
        stages = []
        depths = [sum(row.repeats for row in rows) for rows in self.stages]
        for rows, rates in zip(self.stages, drop_path_rates(c, depths), strict=True):
            repeated = [(row, i) for row in rows for i in range(row.repeats)]
            stages.append([])
            for (row, i), rate in zip(repeated, rates, strict=True):
                expands = row.expand > 1 or self.expand_first
                block = partial(
                    InvertedResidual,
                    expanded=width * row.expand if expands else None,
                    features=int(row.features * self.scale),
                    stride=1 if i else row.stride,
                    drop_path=rate,
                )
                stages[-1].append(block)
                width = int(row.features * self.scale)
        return forward(
            c,
            images,
            stem=ConvBN(c, stem, 3, 2, act=nn.relu6, name="stem"),
            stages=stages,
            neck=ConvBN(c, int(1280 * max(1.0, self.scale)), act=nn.relu6, name="neck"),
            head=Classifier(c, self.num_classes, name="head"),
        )


STAGES = (
    (Row(1, 16, repeats=1, stride=1),),
    (Row(6, 24, repeats=2, stride=2),),
    (Row(6, 32, repeats=3, stride=2),),
    (Row(6, 64, repeats=4, stride=2), Row(6, 96, repeats=3, stride=1)),
    (Row(6, 160, repeats=3, stride=2), Row(6, 320, repeats=1, stride=1)),
)
SPECS = {
    f"MobileNetV2{suffix}": Spec(MobileNetV2, {"stages": STAGES, "scale": scale})
    for suffix, scale in {
        "_x0_25": 0.25,
        "_x0_5": 0.5,
        "_x0_75": 0.75,
        "": 1.0,
        "_x1_5": 1.5,
        "_x2_0": 2.0,
    }.items()
}
SPECS["MobileNetV2_ssld"] = SPECS["MobileNetV2"].alias("MobileNetV2")
