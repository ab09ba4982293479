"""PeleeNet: a small DenseNet whose layers have two branches, after the convolution BatchNorm.

Wang et al. 2018, Pelee: A real-time object detection system on mobile devices
(https://arxiv.org/abs/1804.06882). At odd sizes, which PaddleClas refuses in the stem, the last of
its 2x2 maxima is of the pixels that are there.
"""

from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcls.models.layers import (
    Classifier,
    ConvBN,
    at_least,
    avg_pool,
    forward,
    max_pool,
)
from jaxcls.models.spec import Ctx, Spec

Array = jax.Array
ConvReLU = partial(ConvBN, act=nn.relu)


class Stem(nn.Module):
    """A 3x3 convolution, then maxima and a second one side by side, to a quarter of the size."""

    c: Ctx
    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = ConvReLU(self.c, self.features, 3, 2, name="conv1")(x)
        y = ConvReLU(self.c, self.features // 2, name="conv2a")(x)
        y = ConvReLU(self.c, self.features, 3, 2, name="conv2b")(y)
        x = jnp.concatenate([max_pool(x, 2, 2, ceil_mode=True), y], -1)
        return ConvReLU(self.c, self.features, name="conv3")(x)


class Dense(nn.Module):
    """The input, and beside it two branches with half the growth each."""

    c: Ctx
    growth: int
    bottleneck: int  # features between the convolutions, in quarters of half the growth

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c, half = self.c, self.growth // 2
        inner = half * self.bottleneck // 4 * 4
        if 2 * inner > x.shape[-1]:
            inner = x.shape[-1] // 8 * 4
        y = ConvReLU(c, inner, name="conv1a")(x)
        y = ConvReLU(c, half, 3, name="conv1b")(y)
        z = ConvReLU(c, inner, name="conv2a")(x)
        z = ConvReLU(c, half, 3, name="conv2b")(z)
        z = ConvReLU(c, half, 3, name="conv2c")(z)
        return jnp.concatenate([x, y, z], -1)


class Transition(nn.Module):
    """1x1 convolution that keeps the number of features."""

    c: Ctx

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return ConvReLU(self.c, x.shape[-1], name="conv1")(x)


class PeleeNet(nn.Module):
    """Stem, stages of dense blocks that end with a transition, head."""

    residual: ClassVar[bool] = False  # nothing for `drop_path` to drop
    c: Ctx
    num_classes: int
    depths: tuple[int, ...] = (3, 4, 8, 6)
    bottlenecks: tuple[int, ...] = (1, 2, 4, 4)
    growth: int = 32
    stem: int = 32

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        c = self.c.replace(train=train)
        dense = lambda n: partial(Dense, growth=self.growth, bottleneck=n)
        return forward(
            c,
            at_least(images, 4 * 2 ** len(self.depths[1:]) - 3),
            stem=Stem(c, self.stem, name="stem"),
            stages=[
                [dense(bottleneck)] * depth + [Transition]
                for depth, bottleneck in zip(self.depths, self.bottlenecks, strict=True)
            ],
            pool=partial(avg_pool, window=(2, 2), stride=(2, 2)),
            head=Classifier(c, self.num_classes, dropout=0.05, name="head"),
        )


SPECS = {"PeleeNet": Spec(PeleeNet)}
