"""MixNet: depthwise convolutions with kernels of several sizes in one layer.

Tan and Le 2019, MixConv (https://arxiv.org/abs/1907.09595). The channels of such a layer are split
evenly, the first part has what is left over; 1x1 convolutions are in two parts in many blocks.
TensorFlow's weights (timm's tf_mixnet_*) are of networks that are padded at the end. With `folded`,
BatchNorms after several convolutions stay.
"""

import dataclasses
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxcls.models.layers import (
    BatchNorm,
    Classifier,
    Conv,
    ConvBN,
    DropPath,
    SqueezeExcite,
    drop_path_rates,
    forward,
    round_to_8,
)
from jaxcls.models.spec import Ctx, Spec

Array = jax.Array
Act = Callable[[Array], Array]


@dataclasses.dataclass(frozen=True)
class Row:
    """`repeats` blocks; the first has the stride. Features are those at scale 1."""

    sizes: int  # of depthwise kernels: 3, 5, 7, ...
    expand: int  # features inside a block, as a multiple of its input's
    features: int
    repeats: int = 1
    stride: int = 1
    se: int = 0  # a block's input, as a multiple of what the gates squeeze to; 0: no gates
    split: tuple[int, int] = (1, 1)  # parts of the first and of the last 1x1 convolution


def parts(channels: int, n: int) -> list[int]:
    """Returns how many channels each of n parts has."""
    return [channels - channels // n * (n - 1)] + [channels // n] * (n - 1)


class MixConvBN(nn.Module):
    """Convolutions of parts of the channels, BatchNorm and, where given, an activation."""

    c: Ctx
    features: int
    kernels: tuple[int, ...]
    stride: int
    padding: str | None
    depthwise: bool
    act: Act | None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        n, y = len(self.kernels), []
        pieces = jnp.split(x, np.cumsum(parts(x.shape[-1], n))[:-1], axis=-1)
        for i, width in enumerate(parts(self.features, n)):
            conv = Conv(
                self.c,
                width,
                self.kernels[i],
                self.stride,
                self.padding,
                width if self.depthwise else 1,
                name=f"conv{i + 1}",
            )
            y.append(conv(pieces[i]))
        y = BatchNorm(self.c, name="bn")(jnp.concatenate(y, -1))
        return y if self.act is None else self.act(y)


class Block(nn.Module):
    """Expansion, depthwise convolution, gates, linear 1x1 convolution."""

    c: Ctx
    row: Row
    features: int
    stride: int
    padding: str | None
    act: Act
    drop_path: float

    def conv(
        self,
        name: str,
        features: int,
        kernels: tuple[int, ...],
        stride: int = 1,
        depthwise: bool = False,
        act: Act | None = None,
    ) -> nn.Module:
        """Returns a convolution, mixed if there are several kernels."""
        if len(kernels) == 1:
            groups = features if depthwise else 1
            shape = features, kernels[0], stride, self.padding, groups
            return ConvBN(self.c, *shape, act=act, name=name)
        return MixConvBN(self.c, features, kernels, stride, self.padding, depthwise, act, name=name)

    @nn.compact
    def __call__(self, x: Array) -> Array:
        row, y = self.row, x
        first, last = ((1,) * n for n in row.split)
        width = x.shape[-1] * row.expand
        if row.expand > 1:
            y = self.conv("conv1", width, first, act=self.act)(y)
        kernels = tuple(3 + 2 * i for i in range(row.sizes))
        y = self.conv("conv2", width, kernels, self.stride, True, self.act)(y)
        if row.se:
            y = SqueezeExcite(self.c, x.shape[-1] // row.se, act=self.act, name="se")(y)
        y = self.conv("conv3", self.features, last)(y)
        if self.stride == 1 and x.shape == y.shape:
            y = x + DropPath(self.c, self.drop_path, name="drop_path")(y)
        return y


class MixNet(nn.Module):
    """Stem at stride 2, five stages, 1x1 convolution, head."""

    c: Ctx
    num_classes: int
    stages: tuple[tuple[Row, ...], ...]
    scale: float = 1.0
    padding: str | None = (
        None  # of the kernels larger than 1; None: symmetric; "SAME": TensorFlow's
    )

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        c = self.c.replace(train=train)
        width = lambda row: round_to_8(row.features * self.scale)
        depths = [sum(row.repeats for row in rows) for rows in self.stages]
        stages = []
        for rows, rates in zip(self.stages, drop_path_rates(c, depths), strict=True):
            act = nn.relu if len(stages) < 2 else nn.swish
            repeated = [(row, i) for row in rows for i in range(row.repeats)]
            stages.append(
                [
                    partial(
                        Block,
                        row=row,
                        features=width(row),
                        stride=1 if i else row.stride,
                        padding=self.padding,
                        act=act,
                        drop_path=rate,
                    )
                    for (row, i), rate in zip(repeated, rates, strict=True)
                ]
            )
        stem = width(self.stages[0][0])
        return forward(
            c,
            images,
            stem=ConvBN(c, stem, 3, 2, self.padding, act=nn.relu, name="stem"),
            stages=stages,
            neck=ConvBN(c, 1536, act=nn.relu, name="neck"),
            head=Classifier(c, self.num_classes, name="head"),
        )


BOTH, LAST = (2, 2), (1, 2)
SMALL = (
    (Row(1, 1, 16),),
    (Row(1, 6, 24, stride=2, split=BOTH), Row(1, 3, 24, split=BOTH)),
    (Row(3, 6, 40, stride=2, se=2), Row(2, 6, 40, repeats=3, se=2, split=BOTH)),
    (
        Row(3, 6, 80, stride=2, se=4, split=LAST),
        Row(2, 6, 80, repeats=2, se=4, split=LAST),
        Row(3, 6, 120, se=2, split=BOTH),
        Row(4, 3, 120, repeats=2, se=2, split=BOTH),
    ),
    (Row(5, 6, 200, stride=2, se=2), Row(4, 6, 200, repeats=2, se=2, split=LAST)),
)
MEDIUM = (
    (Row(1, 1, 24),),
    (Row(3, 6, 32, stride=2, split=BOTH), Row(1, 3, 32, split=BOTH)),
    (Row(4, 6, 40, stride=2, se=2), Row(2, 6, 40, repeats=3, se=2, split=BOTH)),
    (
        Row(3, 6, 80, stride=2, se=4),
        Row(4, 6, 80, repeats=3, se=4, split=BOTH),
        Row(1, 6, 120, se=2),
        Row(4, 3, 120, repeats=3, se=2, split=BOTH),
    ),
    (Row(4, 6, 200, stride=2, se=2), Row(4, 6, 200, repeats=3, se=2, split=LAST)),
)
SPECS = {
    "MixNet_S": Spec(MixNet, {"stages": SMALL}),
    "MixNet_M": Spec(MixNet, {"stages": MEDIUM}),
    "MixNet_L": Spec(MixNet, {"stages": MEDIUM, "scale": 1.3}),
}
