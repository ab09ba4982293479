"""MobileNetV3: searched inverted residuals with squeeze-and-excitation.

Howard et al. 2019, Searching for MobileNetV3 (https://arxiv.org/abs/1905.02244). `_x0_35` to
`_x1_25` are width multipliers; `_ssld` is the same network with weights distilled from a larger
one, `_ssld_int8` the network that those were quantised from. As in PaddleClas: the gates are
clip(0.2 x + 0.5, 0, 1), not the paper's clip(x / 6 + 0.5, 0, 1); they squeeze to a quarter of the
block's width, rounded down, not to a multiple of 8; every block has its expansion, also where it
keeps the width; the last convolution has no bias; `small` ends at 1280 features like `large`
(`last`, 1024 in the paper); the dropout scales in evaluation (`Dropout.downscale`). `paper` is all
of that as in the paper but for the last two.
"""

import dataclasses
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcls.models.layers import (
    Classifier,
    ConvBN,
    InvertedResidual,
    PooledNeck,
    SqueezeExcite,
    drop_path_rates,
    forward,
    round_to_8,
)
from jaxcls.models.spec import Ctx, Spec

Array = jax.Array


def gate(x: Array) -> Array:
    """Returns clip(0.2 x + 0.5, 0, 1)."""
    return jnp.clip(0.2 * x + 0.5, 0, 1)


@dataclasses.dataclass(frozen=True)
class Row:
    """A block; features are those at scale 1."""

    kernel: int
    expanded: int
    features: int
    act: Callable[[Array], Array]
    se: bool = False
    stride: int = 1


class MobileNetV3(nn.Module):
    """Stem at stride 2, stages, 1x1 convolutions, head."""

    c: Ctx
    num_classes: int
    stages: tuple[tuple[Row, ...], ...]
    neck: int  # features before the mean, at scale 1
    scale: float = 1.0
    last: int = 1280  # features before the classifier
    paper: bool = False  # gates, squeezed widths, expansions and last bias as in the paper
    padding: str | None = (
        None  # of the kernels larger than 1; None: symmetric; "SAME": TensorFlow's
    )

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        c = self.c.replace(train=train)
        stages, neck = [], round_to_8(self.neck * self.scale)
        width = stem = round_to_8(16 * self.scale)
        all_rates = drop_path_rates(c, [len(rows) for rows in self.stages])
        for rows, rates in zip(self.stages, all_rates, strict=True):
            stages.append([])
            for row, rate in zip(rows, rates, strict=True):
                expanded = round_to_8(row.expanded * self.scale)
                squeeze = partial(
                    SqueezeExcite,
                    squeezed=round_to_8(expanded / 4) if self.paper else expanded // 4,
                    gate=nn.hard_sigmoid if self.paper else gate,
                )
                block = partial(
                    InvertedResidual,
                    expanded=None if self.paper and expanded == width else expanded,
                    features=round_to_8(row.features * self.scale),
                    kernel=row.kernel,
                    stride=row.stride,
                    padding=self.padding,
                    act=row.act,
                    se=squeeze if row.se else None,
                    drop_path=rate,
                )
                stages[-1].append(block)
                width = round_to_8(row.features * self.scale)
        return forward(
            c,
            images,
            stem=ConvBN(c, stem, 3, 2, self.padding, act=nn.hard_swish, name="stem"),
            stages=stages,
            neck=PooledNeck(c, neck, self.last, nn.hard_swish, self.paper, name="neck"),
            head=Classifier(c, self.num_classes, dropout=0.2, downscale=True, name="head"),
        )


RE, HS = nn.relu, nn.hard_swish
LARGE = (
    (Row(3, 16, 16, RE),),
    (
        Row(3, 64, 24, RE, stride=2),
        Row(3, 72, 24, RE),
    ),
    (
        Row(5, 72, 40, RE, se=True, stride=2),
        Row(5, 120, 40, RE, se=True),
        Row(5, 120, 40, RE, se=True),
    ),
    (
        Row(3, 240, 80, HS, stride=2),
        Row(3, 200, 80, HS),
        Row(3, 184, 80, HS),
        Row(3, 184, 80, HS),
        Row(3, 480, 112, HS, se=True),
        Row(3, 672, 112, HS, se=True),
    ),
    (
        Row(5, 672, 160, HS, se=True, stride=2),
        Row(5, 960, 160, HS, se=True),
        Row(5, 960, 160, HS, se=True),
    ),
)
SMALL = (
    (Row(3, 16, 16, RE, se=True, stride=2),),
    (
        Row(3, 72, 24, RE, stride=2),
        Row(3, 88, 24, RE),
    ),
    (
        Row(5, 96, 40, HS, se=True, stride=2),
        Row(5, 240, 40, HS, se=True),
        Row(5, 240, 40, HS, se=True),
        Row(5, 120, 48, HS, se=True),
        Row(5, 144, 48, HS, se=True),
    ),
    (
        Row(5, 288, 96, HS, se=True, stride=2),
        Row(5, 576, 96, HS, se=True),
        Row(5, 576, 96, HS, se=True),
    ),
)
SIZES = {"large": {"stages": LARGE, "neck": 960}, "small": {"stages": SMALL, "neck": 576}}
SCALES = {"x0_35": 0.35, "x0_5": 0.5, "x0_75": 0.75, "x1_0": 1.0, "x1_25": 1.25}
SPECS = {
    f"MobileNetV3_{size}_{suffix}": Spec(MobileNetV3, {**SIZES[size], "scale": scale})
    for size in SIZES
    for suffix, scale in SCALES.items()
}
SPECS |= {
    alias: SPECS[name].alias(name)
    for alias, name in {
        "MobileNetV3_large_x1_0_ssld": "MobileNetV3_large_x1_0",
        "MobileNetV3_large_x1_0_ssld_int8": "MobileNetV3_large_x1_0",
        "MobileNetV3_small_x0_35_ssld": "MobileNetV3_small_x0_35",
        "MobileNetV3_small_x1_0_ssld": "MobileNetV3_small_x1_0",
    }.items()
}
