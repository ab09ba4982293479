"""GoogLeNet, with its two auxiliary classifiers.

Szegedy et al. 2014, Going deeper with convolutions (https://arxiv.org/abs/1409.4842). As in
PaddleClas: no biases, no local response normalisation, pools without padding, and fewer ReLUs, only
one after each concatenation and one in the first auxiliary head. (The second had one too when the
published weights were trained, in 2020; today's PaddleClas has none.) The dropouts scale in
evaluation (`Dropout.downscale`). The heads are always there; a program that leaves "aux1" and
"aux2" unused does not compute them.
"""

from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcls.models import layers
from jaxcls.models.layers import (
    Classifier,
    Linear,
    at_least,
    avg_pool,
    max_pool,
    outputs,
    remat,
)
from jaxcls.models.spec import Ctx, Spec

Array = jax.Array
# keeps the size of the signal through convolutions with no ReLU between them, as in 2020
Conv = partial(layers.Conv, kernel_init=nn.initializers.lecun_uniform())
STAGES = (  # the widths of each block, as in the paper's table 1
    ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)),
    (
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
    ),
    ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
)


class Inception(nn.Module):
    """1x1, 3x3 and 5x5 convolutions and a pool side by side, at the input's size."""

    c: Ctx
    widths: tuple[int, ...]  # 1x1; before 3x3, 3x3; before 5x5, 5x5; after the pool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = self.c
        one, before3, three, before5, five, pooled = self.widths
        branches = (
            Conv(c, one, name="conv1")(x),
            Conv(c, three, 3, name="conv3")(Conv(c, before3, name="reduce3")(x)),
            Conv(c, five, 5, name="conv5")(Conv(c, before5, name="reduce5")(x)),
            Conv(c, pooled, name="project")(max_pool(x, 3, 1, 1)),
        )
        return nn.relu(jnp.concatenate(branches, -1))


class Stem(nn.Module):
    """Three convolutions, to a quarter of the size."""

    c: Ctx

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = max_pool(Conv(self.c, 64, 7, 2, name="conv1")(x), 3, 2)
        x = Conv(self.c, 64, name="conv2")(x)
        return Conv(self.c, 192, 3, name="conv3")(x)


class Stage(nn.Module):
    """A pool that halves the size, and blocks; returns the features after each block."""

    c: Ctx
    blocks: tuple[tuple[int, ...], ...]

    @nn.compact
    def __call__(self, x: Array) -> list[Array]:
        x = max_pool(x, 3, 2)
        features = []
        for i, widths in enumerate(self.blocks, 1):
            x = Inception(self.c, widths, name=f"block{i}")(x)
            features.append(x)
        return features


def pool_to_3x3(x: Array) -> Array:
    """Returns 3x3 means, overlapping: [B, H, W, C] -> [B, 3, 3, C], H and W at least 3.

    At 11 to 13 pixels, those of 224 x 224 images among them, the windows are the paper's 5x5 at
    stride 3; at other sizes they grow in proportion, so that the layer behind always fits.
    """
    window = tuple(round(n * 5 / 12) for n in x.shape[1:3])
    stride = tuple(round(n / 4) for n in x.shape[1:3])
    return avg_pool(x, window, stride)[:, :3, :3]


class AuxHead(nn.Module):
    """Pool, 1x1 convolution, hidden layer, dropout, classifier: features -> logits [B, K]."""

    c: Ctx
    num_classes: int
    relu: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = Conv(self.c, 128, name="conv1")(pool_to_3x3(x))
        x = x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)  # the order of the published weights
        x = Linear(self.c, 1024, name="fc1")(x)
        x = nn.relu(x) if self.relu else x
        head = Classifier(self.c, self.num_classes, dropout=0.7, downscale=True, name="head")
        return head(x)


class GoogLeNet(nn.Module):
    """Stem, stages of Inception blocks, head, and two auxiliary heads on the way."""

    residual: ClassVar[bool] = False  # nothing for `drop_path` to drop
    c: Ctx
    num_classes: int

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        c = self.c.replace(train=train)
        x = Stem(c, name="stem")(at_least(images, 61).astype(c.feature_dtype))
        features = []
        for i, blocks in enumerate(STAGES, 1):
            features.append(remat(Stage, c)(c, blocks, name=f"stage{i}")(x))
            x = features[-1][-1]
        head = Classifier(c, self.num_classes, dropout=0.4, downscale=True, name="head")
        return outputs(c, [blocks[-1] for blocks in features], x, head) | {
            "aux1": AuxHead(c, self.num_classes, relu=True, name="aux1")(features[1][0]),
            "aux2": AuxHead(c, self.num_classes, relu=False, name="aux2")(features[1][3]),
        }


SPECS = {"GoogLeNet": Spec(GoogLeNet)}
