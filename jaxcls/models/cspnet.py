"""CSPDarkNet53: a DarkNet53 in which one half of each stage's features goes past the blocks.

Wang et al. 2019, CSPNet: A new backbone that can enhance learning capability of CNN
(https://arxiv.org/abs/1911.11929), as in YOLOv4 (https://arxiv.org/abs/2004.10934). A stage's first
block halves the size and splits the features, its last joins them again. In the first stage both
parts have all features.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcls.models.layers import (
    Classifier,
    ConvBN,
    DropPath,
    Stem,
    drop_path_rates,
    forward,
)
from jaxcls.models.spec import Ctx, Spec

Array = jax.Array
Parts = tuple[Array, Array]  # what goes past the blocks, and what through them


def act(x: Array) -> Array:
    """Returns leaky ReLU of slope 0.01, as one maximum."""
    return jnp.maximum(x, 0.01 * x)


class Split(nn.Module):
    """Halves the size and gives two parts."""

    c: Ctx
    features: int
    inner: int  # features of each part

    @nn.compact
    def __call__(self, x: Array) -> Parts:
        x = ConvBN(self.c, self.features, 3, 2, act=act, name="down")(x)
        x = ConvBN(self.c, 2 * self.inner, act=act, name="expand")(x)
        return x[..., : self.inner], x[..., self.inner :]


class Block(nn.Module):
    """1x1 and 3x3 convolutions, added to the second part without an activation."""

    c: Ctx
    features: int
    width: int
    drop_path: float

    @nn.compact
    def __call__(self, parts: Parts) -> Parts:
        past, x = parts
        y = ConvBN(self.c, self.width, act=act, name="conv1")(x)
        y = ConvBN(self.c, self.features, 3, act=act, name="conv2")(y)
        return past, x + DropPath(self.c, self.drop_path, name="drop_path")(y)


class Join(nn.Module):
    """1x1 convolution of the second part, then one of both."""

    c: Ctx
    features: int

    @nn.compact
    def __call__(self, parts: Parts) -> Array:
        past, x = parts
        x = ConvBN(self.c, x.shape[-1], act=act, name="part")(x)
        x = jnp.concatenate([past, x], -1)
        return ConvBN(self.c, self.features, act=act, name="both")(x)


class CSPDarkNet(nn.Module):
    """Stem, stages of doubling width, head."""

    c: Ctx
    num_classes: int
    depths: tuple[int, ...] = (1, 2, 8, 8, 4)
    width: int = 32

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        c = self.c.replace(train=train)
        stages = []
        for i, rates in enumerate(drop_path_rates(c, self.depths)):
            features = self.width * 2 ** (i + 1)
            inner = features // 2 if i else features
            block = partial(Block, features=inner, width=inner if i else inner // 2)
            stages.append(
                [
                    partial(Split, features=features, inner=inner),
                    *(partial(block, drop_path=rate) for rate in rates),
                    partial(Join, features=features),
                ]
            )
        return forward(
            c,
            images,
            stem=Stem(c, ((self.width, 3, 1),), pool=False, act=act, name="stem"),
            stages=stages,
            head=Classifier(c, self.num_classes, name="head"),
        )


SPECS = {"CSPDarkNet53": Spec(CSPDarkNet, size=256)}
