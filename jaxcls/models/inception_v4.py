"""Inception-v4.

Szegedy et al. 2016, Inception-v4, Inception-ResNet and the impact of residual connections on
learning (https://arxiv.org/abs/1602.07261). The first block of stages 2 and 3 is the reduction. As
in PaddleClas, means at the border are over the pixels that are there, and the dropout scales in
evaluation (`Dropout.downscale`).
"""

from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcls.models.layers import (
    Classifier,
    ConvBN,
    Stage,
    at_least,
    avg_pool,
    forward,
    max_pool,
)
from jaxcls.models.spec import Ctx, Spec

Array = jax.Array

# A block is a tuple of branches, a branch a tuple of steps:
#   (features, kernel)           a convolution that keeps the size
#   (features, kernel, stride)   one without padding
#   "mean"                       3x3 means that keep the size
#   "max"                        3x3 maxima at stride 2, without padding
#   (step, step)                 last in a branch: both of the same input, side by side
STEM = (
    (((32, 3, 2), (32, 3, 1), (64, 3)),),
    (("max",), ((96, 3, 2),)),
    (((64, 1), (96, 3, 1)), ((64, 1), (64, (7, 1)), (64, (1, 7)), (96, 3, 1))),
    (((192, 3, 2),), ("max",)),
)
A = (
    ("mean", (96, 1)),
    ((96, 1),),
    ((64, 1), (96, 3)),
    ((64, 1), (96, 3), (96, 3)),
)
REDUCE_A = (
    ("max",),
    ((384, 3, 2),),
    ((192, 1), (224, 3), (256, 3, 2)),
)
B = (
    ("mean", (128, 1)),
    ((384, 1),),
    ((192, 1), (224, (1, 7)), (256, (7, 1))),
    ((192, 1), (192, (1, 7)), (224, (7, 1)), (224, (1, 7)), (256, (7, 1))),
)
REDUCE_B = (
    ("max",),
    ((192, 1), (192, 3, 2)),
    ((256, 1), (256, (1, 7)), (320, (7, 1)), (320, 3, 2)),
)
FORK = ((256, (1, 3)), (256, (3, 1)))
C = (
    ("mean", (256, 1)),
    ((256, 1),),
    ((384, 1), FORK),
    ((384, 1), (448, (1, 3)), (512, (3, 1)), FORK),
)
STAGES = ((A,) * 4, (REDUCE_A, *(B,) * 7), (REDUCE_B, *(C,) * 3))


def mean_3x3(x: Array) -> Array:
    """Returns the mean of each pixel and its neighbours."""
    return avg_pool(x, (3, 3), (1, 1), ((1, 1), (1, 1)), count_include_pad=False)


class Branch(nn.Module):
    """The steps of a branch; its convolutions are conv1, conv2, ... in the order of the table."""

    c: Ctx
    steps: tuple

    @nn.compact
    def __call__(self, x: Array) -> Array:
        count = 0

        def conv(x: Array, features: int, kernel: int | tuple[int, int], *valid: int) -> Array:
            nonlocal count
            count += 1
            stride, padding = (valid[0], 0) if valid else (1, None)
            return ConvBN(
                self.c, features, kernel, stride, padding, act=nn.relu, name=f"conv{count}"
            )(x)

        for step in self.steps:
            if step == "mean":
                x = mean_3x3(x)
            elif step == "max":
                x = max_pool(x, 3, 2)
            elif isinstance(step[0], tuple):
                x = jnp.concatenate([conv(x, *s) for s in step], -1)
            else:
                x = conv(x, *step)
        return x


class Inception(nn.Module):
    """Branches side by side."""

    c: Ctx
    branches: tuple

    @nn.compact
    def __call__(self, x: Array) -> Array:
        parts = [
            Branch(self.c, steps, name=f"branch{i}")(x) for i, steps in enumerate(self.branches, 1)
        ]
        return jnp.concatenate(parts, -1)


class InceptionV4(nn.Module):
    """Stem, stages of Inception blocks, head."""

    residual: ClassVar[bool] = False  # nothing for `drop_path` to drop
    c: Ctx
    num_classes: int

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        c = self.c.replace(train=train)
        blocks = lambda tables: tuple(partial(Inception, branches=t) for t in tables)
        return forward(
            c,
            at_least(images, 75),
            stem=Stage(c, blocks(STEM), name="stem"),
            stages=[blocks(tables) for tables in STAGES],
            head=Classifier(c, self.num_classes, dropout=0.2, downscale=True, name="head"),
        )


SPECS = {"InceptionV4": Spec(InceptionV4, size=299)}
