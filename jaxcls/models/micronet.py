"""MicroNet: factorised convolutions in groups, and an activation that mixes neighbouring channels.

Li et al. 2021, MicroNet (https://arxiv.org/abs/2108.05894): k x k convolutions are k x 1 and 1 x k
ones, 1x1 convolutions are in groups with channels shuffled between them, and dynamic shift-max
takes, for each channel, the larger of two sums of it and of a channel of the next group, whose
weights follow from all channels' means. As in the authors' code and PaddleClas, the logits go
through BatchNorm and a hard swish.
"""

import dataclasses
from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcls.models.layers import (
    BatchNorm,
    ConvBN,
    Dropout,
    Linear,
    forward,
    global_mean,
    round_to,
)
from jaxcls.models.spec import Ctx, Spec

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Row:
    """A block. Groups of (0, n) and of (0, 0) are of the first and the last blocks, see `Block`."""

    stride: int
    features: int
    kernel: int
    expand: tuple[int, int]
    groups: tuple[int, int]  # of the first 1x1 convolution, and for the shuffle after it
    last: tuple[int, int]  # of the last 1x1 convolution, and for the shuffle after it
    dynamic: tuple[int, int, int]  # activations: 2 shift-max, 1 one of its sums, 0 ReLU6 or none
    ratio: int = 1  # shift-max squeezes by so many times more


@dataclasses.dataclass(frozen=True)
class Kind:
    """What the activations of a network begin with: of both sums, the channel's and its
    neighbour's weight."""

    own: tuple[float, float]
    other: tuple[float, float]


def shuffle(x: Array, groups: int) -> Array:
    """Returns channels in the order 0 of each group, 1 of each group, ..."""
    x = x.reshape(*x.shape[:-1], groups, x.shape[-1] // groups)
    return x.swapaxes(-1, -2).reshape(*x.shape[:-2], -1)


class ShiftMax(nn.Module):
    """Dynamic shift-max, or one of its sums; weights are within 2 of what they begin with."""

    c: Ctx
    squeezed: int
    groups: int
    kind: Kind
    both: bool  # sums

    @nn.compact
    def __call__(self, x: Array) -> Array:
        width = x.shape[-1]
        y = nn.relu(Linear(self.c, max(self.squeezed, 4), name="squeeze")(global_mean(x, self.c)))
        y = Linear(self.c, width * (4 if self.both else 2), name="excite")(y)
        y = 4 * (nn.hard_sigmoid(y) - 0.5)[:, None, None].astype(x.dtype)
        cells = x.reshape(*x.shape[:-1], self.groups, width // self.groups)
        near = jnp.roll(cells, (-1, -1), (-2, -1)).reshape(x.shape)
        weights = jnp.split(y, 4 if self.both else 2, -1)
        first = x * (weights[0] + self.kind.own[0]) + near * (weights[1] + self.kind.other[0])
        if not self.both:
            return first
        second = x * (weights[2] + self.kind.own[1]) + near * (weights[3] + self.kind.other[1])
        return jnp.maximum(first, second)


LINEAR = Kind((1.0, 0.0), (0.0, 0.0))  # after the last convolution of a block


class Separable(nn.Module):
    """k x 1 and 1 x k convolution, depthwise but for the first of the stem."""

    c: Ctx
    expand: tuple[int, int]
    kernel: int
    stride: int
    depthwise: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c, (k, s), (one, two) = self.c, (self.kernel, self.stride), self.expand
        width = x.shape[-1] if self.depthwise else 1
        inner = width * one
        x = ConvBN(c, inner, (k, 1), (s, 1), groups=width, name="conv1")(x)
        return ConvBN(c, inner * two, (1, k), (1, s), groups=inner, name="conv2")(x)


class Stem(nn.Module):
    """Separable 3x3 convolution at stride 2."""

    c: Ctx
    expand: tuple[int, int]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = Separable(self.c, self.expand, 3, 2, depthwise=False, name="conv1")(x)
        return nn.relu6(shuffle(x, self.expand[0]))


class Block(nn.Module):
    """1x1 in groups, depthwise and 1x1; the first blocks lack the first, the last has it alone."""

    c: Ctx
    row: Row
    kind: Kind

    def act(self, name: str, x: Array, which: int, groups: int, squeeze: int) -> Array:
        """Returns the activation of the block's convolution `which`, from 0."""
        dynamic, last = self.row.dynamic[which], which == 2
        if not dynamic:
            return x if last else nn.relu6(x)
        squeezed, kind = round_to(4, x.shape[-1] // squeeze), LINEAR if last else self.kind
        both = dynamic == 2 and not last
        return ShiftMax(self.c, squeezed, groups, kind, both, name=name)(x)

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c, row, y = self.c, self.row, x
        first, second, third = (dynamic > 0 for dynamic in row.dynamic)
        squeeze = 8 * row.ratio
        hidden = x.shape[-1] * row.expand[0] * row.expand[1]
        if row.groups[0] == 0:
            y = Separable(c, row.expand, row.kernel, row.stride, name="conv1")(y)
            y = shuffle(self.act("act1", y, 1, row.groups[1], squeeze), row.groups[1])
            y = shuffle(y, hidden // 2) if second else y
            after = squeeze // 2
        else:
            y = ConvBN(c, hidden, groups=row.groups[0], name="conv1")(y)
            if row.last[1] == 0:
                y = self.act("act1", y, 2, row.groups[1], squeeze)
                return self.add(x, y)
            y = shuffle(self.act("act1", y, 0, row.groups[1], squeeze), row.groups[1])
            y = Separable(c, (1, 1), row.kernel, row.stride, name="conv2")(y)
            y = self.act("act2", y, 1, hidden // row.groups[1], squeeze)
            if first or second:
                y = shuffle(y, hidden // (4 if first and second else 2))
            after = squeeze // 2 if row.features < hidden else squeeze
        y = ConvBN(c, row.features, groups=row.last[0], name="conv3")(y)
        y = shuffle(self.act("act3", y, 2, row.last[1], after), row.last[1])
        return self.add(x, shuffle(y, row.features // 2) if third else y)

    def add(self, x: Array, y: Array) -> Array:
        """Returns the sum where the shapes allow it."""
        return x + y if self.row.stride == 1 and x.shape == y.shape else y


class Neck(nn.Module):
    """Mean over the image and linear layer, each with a hard swish."""

    c: Ctx
    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = nn.hard_swish(global_mean(nn.relu6(x), self.c))
        return nn.hard_swish(
            BatchNorm(self.c, name="bn")(Linear(self.c, self.features, name="linear")(x))
        )


class Head(nn.Module):
    """`layers.Classifier` with BatchNorm and a hard swish of the logits."""

    c: Ctx
    num_classes: int
    dropout: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = self.c
        x = Dropout(c, self.dropout, name="dropout")(x.astype(c.head_dtype))
        if c.bottleneck is not None:
            x = Linear(c, c.bottleneck, name="bottleneck")(x)
        return nn.hard_swish(BatchNorm(c, name="bn")(Linear(c, self.num_classes, name="linear")(x)))


class MicroNet(nn.Module):
    """Stem at stride 2, four stages, linear layer after the mean, head."""

    residual: ClassVar[bool] = False  # hardly a block adds its input: nothing for `drop_path`
    c: Ctx
    num_classes: int
    stages: tuple[tuple[Row, ...], ...]
    stem: tuple[int, int]
    kind: Kind
    last: int  # features before the classifier
    own_dropout: float

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        c = self.c.replace(train=train)
        stages = [[partial(Block, row=row, kind=self.kind) for row in rows] for rows in self.stages]
        return forward(
            c,
            images,
            stem=Stem(c, self.stem, name="stem"),
            stages=stages,
            neck=Neck(c, self.last, name="neck"),
            head=Head(c, self.num_classes, self.own_dropout, name="head"),
        )


DYNAMIC, SECOND = (2, 2, 1), (0, 2, 0)
M0 = (
    (Row(2, 8, 3, (2, 2), (0, 4), (2, 2), (2, 0, 1)),),
    (Row(2, 12, 3, (2, 2), (0, 8), (4, 4), DYNAMIC),),
    (
        Row(2, 16, 5, (2, 2), (0, 12), (4, 4), DYNAMIC),
        Row(1, 32, 5, (1, 4), (4, 4), (4, 4), DYNAMIC),
    ),
    (
        Row(2, 64, 5, (1, 4), (8, 8), (8, 8), DYNAMIC),
        Row(1, 96, 3, (1, 4), (8, 8), (8, 8), DYNAMIC, 2),
        Row(1, 384, 3, (1, 4), (12, 12), (0, 0), DYNAMIC, 2),
    ),
)
M1 = (
    (Row(2, 8, 3, (2, 2), (0, 6), (2, 2), (2, 0, 1)),),
    (Row(2, 16, 3, (2, 2), (0, 8), (4, 4), DYNAMIC),),
    (
        Row(2, 16, 5, (2, 2), (0, 16), (4, 4), DYNAMIC),
        Row(1, 32, 5, (1, 6), (4, 4), (4, 4), DYNAMIC),
    ),
    (
        Row(2, 64, 5, (1, 6), (8, 8), (8, 8), DYNAMIC),
        Row(1, 96, 3, (1, 6), (8, 8), (8, 8), DYNAMIC, 2),
        Row(1, 576, 3, (1, 6), (12, 12), (0, 0), DYNAMIC, 2),
    ),
)
M2 = (
    (Row(2, 12, 3, (2, 2), (0, 8), (4, 4), (2, 0, 1)),),
    (
        Row(2, 16, 3, (2, 2), (0, 12), (4, 4), DYNAMIC),
        Row(1, 24, 3, (2, 2), (0, 16), (4, 4), DYNAMIC),
    ),
    (
        Row(2, 32, 5, (1, 6), (6, 6), (4, 4), DYNAMIC),
        Row(1, 32, 5, (1, 6), (8, 8), (4, 4), DYNAMIC, 2),
        Row(1, 64, 5, (1, 6), (8, 8), (8, 8), DYNAMIC, 2),
    ),
    (
        Row(2, 96, 5, (1, 6), (8, 8), (8, 8), DYNAMIC, 2),
        Row(1, 128, 3, (1, 6), (12, 12), (8, 8), DYNAMIC, 2),
        Row(1, 768, 3, (1, 6), (16, 16), (0, 0), DYNAMIC, 2),
    ),
)
M3 = (
    # 48 64
    (Row(2, 16, 3, (2, 2), (0, 12), (4, 4), SECOND),),
    (
        Row(2, 24, 3, (2, 2), (0, 16), (4, 4), SECOND),
        Row(1, 24, 3, (2, 2), (0, 24), (4, 4), SECOND),
    ),
    (
        Row(2, 32, 5, (1, 6), (6, 6), (4, 4), SECOND),
        Row(1, 32, 5, (1, 6), (8, 8), (4, 4), SECOND, 2),
        Row(1, 64, 5, (1, 6), (8, 8), (8, 8), SECOND, 2),
        Row(1, 80, 5, (1, 6), (8, 8), (8, 8), SECOND, 2),
        Row(1, 80, 5, (1, 6), (10, 10), (8, 8), SECOND, 2),
    ),
    (
        Row(2, 120, 5, (1, 6), (10, 10), (10, 10), SECOND, 2),
        Row(1, 120, 5, (1, 6), (12, 12), (10, 10), SECOND, 2),
        Row(1, 144, 3, (1, 6), (12, 12), (12, 12), SECOND, 2),
        Row(1, 864, 3, (1, 6), (12, 12), (0, 0), SECOND, 2),
    ),
)
SAME, HALF = Kind((1.0, 1.0), (0.0, 0.0)), Kind((1.0, 0.5), (0.0, 0.5))
SPECS = {
    f"MicroNet_{size}": Spec(
        MicroNet,
        {"stages": stages, "stem": stem, "kind": kind, "last": last, "own_dropout": dropout},
    )
    for size, stages, stem, kind, last, dropout in (
        ("M0", M0, (2, 2), SAME, 640, 0.05),
        ("M1", M1, (3, 2), SAME, 960, 0.05),
        ("M2", M2, (4, 2), SAME, 1024, 0.1),
        ("M3", M3, (4, 3), HALF, 1024, 0.1),
    )
}
