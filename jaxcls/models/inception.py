"""Inception-v3 and Inception-v4.

Szegedy et al. 2015, Rethinking the Inception architecture for computer vision
(https://arxiv.org/abs/1512.00567), here without its auxiliary classifier, and 2016, Inception-v4,
Inception-ResNet and the impact of residual connections on learning
(https://arxiv.org/abs/1602.07261). The first block of stages 2 and 3 is the reduction. As in
PaddleClas, means at the border are in InceptionV4 over the pixels that are there, and the dropout
scales in evaluation (`Dropout.downscale`).
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
#   "mean"                       3x3 means that keep the size, over the pixels that are there
#   "mean0"                      the same with zeros beyond the border
#   "max"                        3x3 maxima at stride 2, without padding
#   (step, step)                 last in a branch: both of the same input, side by side
STEM4 = (
    (((32, 3, 2), (32, 3, 1), (64, 3)),),
    (("max",), ((96, 3, 2),)),
    (((64, 1), (96, 3, 1)), ((64, 1), (64, (7, 1)), (64, (1, 7)), (96, 3, 1))),
    (((192, 3, 2),), ("max",)),
)
A4 = (
    ("mean", (96, 1)),
    ((96, 1),),
    ((64, 1), (96, 3)),
    ((64, 1), (96, 3), (96, 3)),
)
REDUCE_A4 = (
    ("max",),
    ((384, 3, 2),),
    ((192, 1), (224, 3), (256, 3, 2)),
)
B4 = (
    ("mean", (128, 1)),
    ((384, 1),),
    ((192, 1), (224, (1, 7)), (256, (7, 1))),
    ((192, 1), (192, (1, 7)), (224, (7, 1)), (224, (1, 7)), (256, (7, 1))),
)
REDUCE_B4 = (
    ("max",),
    ((192, 1), (192, 3, 2)),
    ((256, 1), (256, (1, 7)), (320, (7, 1)), (320, 3, 2)),
)
FORK4 = ((256, (1, 3)), (256, (3, 1)))
C4 = (
    ("mean", (256, 1)),
    ((256, 1),),
    ((384, 1), FORK4),
    ((384, 1), (448, (1, 3)), (512, (3, 1)), FORK4),
)
STAGES4 = ((A4,) * 4, (REDUCE_A4, *(B4,) * 7), (REDUCE_B4, *(C4,) * 3))

STEM3 = ((((32, 3, 2), (32, 3, 1), (64, 3), "max", (80, 1), (192, 3, 1), "max"),),)
REDUCE_A3 = (
    ((384, 3, 2),),
    ((64, 1), (96, 3), (96, 3, 2)),
    ("max",),
)
REDUCE_B3 = (
    ((192, 1), (320, 3, 2)),
    ((192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3, 2)),
    ("max",),
)
FORK3 = ((384, (1, 3)), (384, (3, 1)))
C3 = (
    ((320, 1),),
    ((384, 1), FORK3),
    ((448, 1), (384, 3), FORK3),
    ("mean0", (192, 1)),
)


def a3(pooled: int) -> tuple:
    """Returns a block A of Inception-v3."""
    return (
        ((64, 1),),
        ((48, 1), (64, 5)),
        ((64, 1), (96, 3), (96, 3)),
        ("mean0", (pooled, 1)),
    )


def b3(n: int) -> tuple:
    """Returns a block B of Inception-v3."""
    return (
        ((192, 1),),
        ((n, 1), (n, (1, 7)), (192, (7, 1))),
        ((n, 1), (n, (7, 1)), (n, (1, 7)), (n, (7, 1)), (192, (1, 7))),
        ("mean0", (192, 1)),
    )


STAGES3 = (
    (a3(32), a3(64), a3(64)),
    (REDUCE_A3, b3(128), b3(160), b3(160), b3(192)),
    (REDUCE_B3, C3, C3),
)


def mean_3x3(x: Array, zeros: bool = False) -> Array:
    """Returns the mean of each pixel and its neighbours; `zeros`: those beyond the border count."""
    return avg_pool(x, (3, 3), (1, 1), ((1, 1), (1, 1)), count_include_pad=zeros)


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
            if step in ("mean", "mean0"):
                x = mean_3x3(x, zeros=step == "mean0")
            elif step == "max":
                x = max_pool(x, 3, 2)
            elif isinstance(step[0], tuple):
                x = jnp.concatenate([conv(x, *s) for s in step], -1)
            else:
                x = conv(x, *step)
        return x


class Block(nn.Module):
    """Branches side by side."""

    c: Ctx
    branches: tuple

    @nn.compact
    def __call__(self, x: Array) -> Array:
        parts = [
            Branch(self.c, steps, name=f"branch{i}")(x) for i, steps in enumerate(self.branches, 1)
        ]
        return jnp.concatenate(parts, -1)


class Inception(nn.Module):
    """Stem, stages of Inception blocks, head."""

    residual: ClassVar[bool] = False  # nothing for `drop_path` to drop
    c: Ctx
    num_classes: int
    stem: tuple
    stages: tuple

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        c = self.c.replace(train=train)
        blocks = lambda tables: tuple(partial(Block, branches=t) for t in tables)
        return forward(
            c,
            at_least(images, 75),
            stem=Stage(c, blocks(self.stem), name="stem"),
            stages=[blocks(tables) for tables in self.stages],
            head=Classifier(c, self.num_classes, dropout=0.2, downscale=True, name="head"),
        )


SPECS = {
    "InceptionV3": Spec(Inception, {"stem": STEM3, "stages": STAGES3}, size=299),
    "InceptionV4": Spec(Inception, {"stem": STEM4, "stages": STAGES4}, size=299),
}
