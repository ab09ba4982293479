"""GhostNet: half of the features are made by 1x1 convolutions, the others from them.

Han et al. 2019, GhostNet (https://arxiv.org/abs/1911.11907). `_x0_5` to `_x1_3` are width
multipliers; `_ssld` is the same network with weights distilled from a larger one. As in PaddleClas,
and unlike the paper: the gates are clip(x, 0, 1) and squeeze to a quarter of the width, rounded
down, by linear layers; the convolution after the mean has BatchNorm and no bias. With `paper`
they are clip(x / 6 + 0.5, 0, 1), squeeze to a multiple of 4, and it has a bias alone.
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
    DropPath,
    LinearSqueezeExcite,
    PooledNeck,
    drop_path_rates,
    forward,
    round_to,
)
from jaxcls.models.spec import Ctx, Spec

Array = jax.Array


def gate(x: Array) -> Array:
    """Returns clip(x, 0, 1)."""
    return jnp.clip(x, 0, 1)


@dataclasses.dataclass(frozen=True)
class Row:
    """A block; features are those at scale 1."""

    kernel: int
    expanded: int
    features: int
    se: bool = False
    stride: int = 1


class Ghost(nn.Module):
    """1x1 convolution to half of the features, and a 3x3 depthwise one of those."""

    c: Ctx
    features: int
    act: Callable[[Array], Array] | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        half = self.features // 2
        x = ConvBN(self.c, half, act=self.act, name="conv1")(x)
        y = ConvBN(self.c, half, 3, groups=half, act=self.act, name="conv2")(x)
        return jnp.concatenate([x, y], -1)


class Short(nn.Module):
    """Depthwise and 1x1 convolution."""

    c: Ctx
    features: int
    kernel: int
    stride: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        width = x.shape[-1]
        x = ConvBN(self.c, width, self.kernel, self.stride, groups=width, name="conv1")(x)
        return ConvBN(self.c, self.features, name="conv2")(x)


class Block(nn.Module):
    """Two ghosts; between them, at stride 2, a depthwise convolution."""

    c: Ctx
    expanded: int
    features: int
    kernel: int
    stride: int
    se: Callable[..., nn.Module] | None  # with all but `c` and `name` given
    drop_path: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c, width = self.c, self.expanded
        y = Ghost(c, width, nn.relu, name="ghost1")(x)
        if self.stride == 2:
            y = ConvBN(c, width, self.kernel, 2, groups=width, name="conv1")(y)
        if self.se is not None:
            y = self.se(c, name="se")(y)
        y = Ghost(c, self.features, name="ghost2")(y)
        if x.shape != y.shape:
            x = Short(c, self.features, self.kernel, self.stride, name="short")(x)
        return x + DropPath(c, self.drop_path, name="drop_path")(y)


class GhostNet(nn.Module):
    """Stem at stride 2, five stages, 1x1 convolutions before and after the mean, head."""

    c: Ctx
    num_classes: int
    stages: tuple[tuple[Row, ...], ...]
    scale: float = 1.0
    last: int = 1280  # features before the classifier
    paper: bool = False  # gates, squeezed widths and last convolution as in the paper

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        c = self.c.replace(train=train)
        width = lambda features: round_to(4, features * self.scale)
        squeeze = lambda expanded: partial(
            LinearSqueezeExcite,
            squeezed=round_to(4, expanded / 4) if self.paper else expanded // 4,
            gate=nn.hard_sigmoid if self.paper else gate,
        )
        rates = drop_path_rates(c, [len(rows) for rows in self.stages])
        stages = [
            [
                partial(
                    Block,
                    expanded=width(row.expanded),
                    features=width(row.features),
                    kernel=row.kernel,
                    stride=row.stride,
                    se=squeeze(width(row.expanded)) if row.se else None,
                    drop_path=rate,
                )
                for row, rate in zip(rows, rates, strict=True)
            ]
            for rows, rates in zip(self.stages, rates, strict=True)
        ]
        last = PooledNeck(
            c, width(960), self.last, nn.relu, bias=self.paper, bn=not self.paper, name="neck"
        )
        return forward(
            c,
            images,
            stem=ConvBN(c, width(16), 3, 2, act=nn.relu, name="stem"),
            stages=stages,
            neck=last,
            head=Classifier(c, self.num_classes, dropout=0.2, name="head"),
        )


STAGES = (
    (Row(3, 16, 16),),
    (Row(3, 48, 24, stride=2), Row(3, 72, 24)),
    (Row(5, 72, 40, se=True, stride=2), Row(5, 120, 40, se=True)),
    (
        Row(3, 240, 80, stride=2),
        Row(3, 200, 80),
        Row(3, 184, 80),
        Row(3, 184, 80),
        Row(3, 480, 112, se=True),
        Row(3, 672, 112, se=True),
    ),
    (
        Row(5, 672, 160, se=True, stride=2),
        Row(5, 960, 160),
        Row(5, 960, 160, se=True),
        Row(5, 960, 160),
        Row(5, 960, 160, se=True),
    ),
)
SPECS = {
    f"GhostNet_x{str(scale).replace('.', '_')}": Spec(GhostNet, {"stages": STAGES, "scale": scale})
    for scale in (0.5, 1.0, 1.3)
}
SPECS["GhostNet_x1_3_ssld"] = SPECS["GhostNet_x1_3"].alias("GhostNet_x1_3")
