"""EfficientNet and TinyNet: one searched network, scaled in width, depth and size.

Tan and Le 2019, EfficientNet (https://arxiv.org/abs/1905.11946). Convolutions are padded as
TensorFlow does it ("SAME": the odd pixel at the end), from the size that arrives; PaddleClas pads
from each model's own size, which is the same at that size only. `EfficientNetB0_small` is
PaddleClas's B0 without squeeze-and-excitation and padded symmetrically. `drop_path` is the paper's
drop connect: block i of L, counted from 0, has i / L of it.

Han et al. 2020, TinyNet (https://arxiv.org/abs/2010.14819): B0 scaled down, with B0's stem and last
width, padded symmetrically. As PaddleClas builds it by default, it rounds the number of blocks up;
its published weights, like timm's, are of networks with `round_depth` and BatchNorm's usual epsilon
and momentum, which its recipe sets.
"""

import dataclasses
import math
from functools import partial

import flax.linen as nn
import jax

from jaxcls.models.layers import (
    Classifier,
    ConvBN,
    InvertedResidual,
    SqueezeExcite,
    forward,
    round_to_8,
)
from jaxcls.models.spec import Ctx, Spec

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Row:
    """Blocks of one width; the first has the stride. Features and repeats are B0's."""

    kernel: int
    expand: int  # features inside a block, as a multiple of its input's
    features: int
    repeats: int
    stride: int


class EfficientNet(nn.Module):
    """Stem at stride 2, five stages, 1x1 convolution, head."""

    c: Ctx
    num_classes: int
    width: float = 1.0
    depth: float = 1.0
    own_dropout: float = 0.2
    se: bool = True
    padding: str | None = "SAME"  # of the convolutions that are not 1x1; None: symmetric
    fixed: bool = False  # stem and neck have B0's widths
    round_depth: bool = False  # to the nearest number of blocks; False: up

    def scaled(self) -> list[tuple[Row, ...]]:
        """Returns the rows of each stage with this network's features and repeats."""
        whole = (lambda n: max(1, round(n))) if self.round_depth else math.ceil
        scale = lambda row: dataclasses.replace(
            row,
            features=round_to_8(row.features * self.width),
            repeats=whole(row.repeats * self.depth),
        )
        return [tuple(map(scale, rows)) for rows in STAGES]

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        c = self.c.replace(train=train)
        outer = 1.0 if self.fixed else self.width
        width = stem = round_to_8(32 * outer)
        last = 0.2 if c.drop_path is None else c.drop_path
        scaled, done, stages = self.scaled(), 0, []
        depth = sum(row.repeats for rows in scaled for row in rows)
        for rows in scaled:
            stages.append([])
            for row, i in ((r, i) for r in rows for i in range(r.repeats)):
                squeeze = partial(SqueezeExcite, squeezed=width // 4, act=nn.swish)
                block = partial(
                    InvertedResidual,
                    expanded=None if row.expand == 1 else width * row.expand,
                    features=row.features,
                    kernel=row.kernel,
                    stride=1 if i else row.stride,
                    padding=self.padding,
                    act=nn.swish,
                    se=squeeze if self.se else None,
                    drop_path=last * done / depth,
                )
                stages[-1].append(block)
                width, done = row.features, done + 1
        return forward(
            c,
            images,
            stem=ConvBN(c, stem, 3, 2, self.padding, act=nn.swish, name="stem"),
            stages=stages,
            neck=ConvBN(c, round_to_8(1280 * outer), act=nn.swish, name="neck"),
            head=Classifier(c, self.num_classes, dropout=self.own_dropout, name="head"),
        )


STAGES = (
    (Row(3, 1, 16, repeats=1, stride=1),),
    (Row(3, 6, 24, repeats=2, stride=2),),
    (Row(5, 6, 40, repeats=2, stride=2),),
    (Row(3, 6, 80, repeats=3, stride=2), Row(5, 6, 112, repeats=3, stride=1)),
    (Row(5, 6, 192, repeats=4, stride=2), Row(3, 6, 320, repeats=1, stride=1)),
)
BATCH_NORM = {"bn_epsilon": 1e-3, "bn_momentum": 0.99}
SPECS = {
    f"EfficientNet{variant}": Spec(
        EfficientNet,
        {"width": width, "depth": depth, "own_dropout": dropout, **BATCH_NORM},
        size,
    )
    for variant, width, depth, size, dropout in (
        ("B0", 1.0, 1.0, 224, 0.2),
        ("B1", 1.0, 1.1, 240, 0.2),
        ("B2", 1.1, 1.2, 260, 0.3),
        ("B3", 1.2, 1.4, 300, 0.3),
        ("B4", 1.4, 1.8, 380, 0.4),
        ("B5", 1.6, 2.2, 456, 0.4),
        ("B6", 1.8, 2.6, 528, 0.5),
        ("B7", 2.0, 3.1, 600, 0.5),
    )
}
SPECS["EfficientNetB0_small"] = Spec(
    EfficientNet, {**SPECS["EfficientNetB0"].kwargs, "se": False, "padding": None}
)
TINY = {"fixed": True, "padding": None, "own_dropout": 0.2, **BATCH_NORM}
SPECS |= {
    f"TinyNet_{variant}": Spec(EfficientNet, {"width": width, "depth": depth, **TINY}, size)
    for variant, width, depth, size in (
        ("A", 1.0, 1.2, 192),
        ("B", 0.75, 1.1, 188),
        ("C", 0.54, 0.85, 184),
        ("D", 0.54, 0.695, 152),
        ("E", 0.51, 0.6, 106),
    )
}
