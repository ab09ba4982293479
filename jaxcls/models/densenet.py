"""DenseNet: every layer of a stage sees the features of all layers before it.

Huang et al. 2016, Densely connected convolutional networks (https://arxiv.org/abs/1608.06993), with
bottlenecks and compression by half. The first block of stages 2 to 4 is the transition.
"""

from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcls.models.layers import (
    BNConv,
    BNReLU,
    Classifier,
    Stem,
    at_least,
    avg_pool,
    forward,
)
from jaxcls.models.spec import Ctx, Spec

Array = jax.Array


class Dense(nn.Module):
    """1x1 and 3x3 convolutions that append `growth` features to their input."""

    c: Ctx
    growth: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = BNConv(self.c, 4 * self.growth, name="conv1")(x)
        y = BNConv(self.c, self.growth, 3, name="conv2")(y)
        return jnp.concatenate([x, y], -1)


class Transition(nn.Module):
    """1x1 convolution and 2x2 mean: half the features at half the size."""

    c: Ctx

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = BNConv(self.c, x.shape[-1] // 2, name="conv1")(x)
        return avg_pool(x, (2, 2), (2, 2))


class DenseNet(nn.Module):
    """Stem, stages of dense blocks, head."""

    residual: ClassVar[bool] = False  # nothing for `drop_path` to drop
    c: Ctx
    num_classes: int
    depths: tuple[int, ...]
    growth: int = 32

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        c = self.c.replace(train=train)
        dense = partial(Dense, growth=self.growth)
        return forward(
            c,
            at_least(images, 29),
            stem=Stem(c, ((2 * self.growth, 7, 2),), name="stem"),
            stages=[[Transition] * (i > 0) + [dense] * n for i, n in enumerate(self.depths)],
            neck=BNReLU(c, name="neck"),
            head=Classifier(c, self.num_classes, name="head"),
        )


SPECS = {
    "DenseNet121": Spec(DenseNet, {"depths": (6, 12, 24, 16)}),
    "DenseNet161": Spec(DenseNet, {"depths": (6, 12, 36, 24), "growth": 48}),
    "DenseNet169": Spec(DenseNet, {"depths": (6, 12, 32, 32)}),
    "DenseNet201": Spec(DenseNet, {"depths": (6, 12, 48, 32)}),
    "DenseNet264": Spec(DenseNet, {"depths": (6, 12, 64, 48)}),
}
