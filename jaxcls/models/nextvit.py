"""NextViT: convolution blocks, and every few of them one that has attention, too.

Li et al. 2022, Next-ViT: Next generation vision transformer for efficient deployment in realistic
industrial scenarios (https://arxiv.org/abs/2207.05501). Attention is to means of places that follow
each other in rows, as there, not of neighbours.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcls.models.layers import (
    BatchNorm,
    Classifier,
    Conv,
    ConvBN,
    DropPath,
    Stem,
    at_least,
    avg_pool_halve,
    drop_path_rates,
    forward,
    stages_of,
)
from jaxcls.models.spec import Ctx, Spec
from jaxcls.models.transformer import Dense, attend, heads_of, normal_02

Array = jax.Array
HEAD = 32  # features of a head


def projected(c: Ctx, x: Array, features: int, stride: int, name: str) -> Array:
    """Returns x, or a 1x1 convolution of it or of its 2x2 means, where the shape has to change."""
    x = x if stride == 1 else avg_pool_halve(x)
    if stride == 1 and x.shape[-1] == features:
        return x
    return ConvBN(c, features, name=name)(x)


class ConvAttention(nn.Module):
    """3x3 convolution of groups and a 1x1 convolution."""

    c: Ctx

    @nn.compact
    def __call__(self, x: Array) -> Array:
        features = x.shape[-1]
        conv = ConvBN(self.c, features, 3, groups=features // HEAD, act=nn.relu, name="conv1")
        return Conv(self.c, features, kernel_init=normal_02, name="conv2")(conv(x))


class Attention(nn.Module):
    """Self-attention of a grid to means over `ratio` * `ratio` places in a row."""

    c: Ctx
    ratio: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c, shape, features, many = self.c, x.shape, x.shape[-1], self.ratio**2
        y = x = x.reshape(shape[0], -1, features)
        if many > 1:
            n = x.shape[1] // many
            y = x[:, : n * many].reshape(shape[0], n, many, features).mean(2)
            y = BatchNorm(c, name="norm")(y)
        heads = lambda x, name: heads_of(Dense(c, features, name=name)(x), features // HEAD)
        y = attend(c, heads(x, "q"), heads(y, "k"), heads(y, "v"))
        return Dense(c, features, name="proj")(y.reshape(shape))


class MLP(nn.Module):
    """BatchNorm and two 1x1 convolutions."""

    c: Ctx
    ratio: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        conv = partial(Conv, self.c, bias=True, kernel_init=normal_02)
        y = BatchNorm(self.c, name="norm")(x)
        y = nn.relu(conv(features=self.ratio * x.shape[-1], name="fc1")(y))
        return conv(features=x.shape[-1], name="fc2")(y)


class Block(nn.Module):
    """Convolution block; with `attention` three quarters of the features are of attention."""

    c: Ctx
    features: int
    stride: int
    attention: bool
    ratio: int
    drop_path: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c, features = self.c, self.features
        drop = lambda share, name: DropPath(c, share * self.drop_path, name=name)
        if self.attention:
            x = projected(c, x, features * 3 // 4, self.stride, "embed")
            y = Attention(c, self.ratio, name="attn")(BatchNorm(c, name="norm1")(x))
            x += drop(0.75, "drop_path1")(y)
            y = projected(c, x, features // 4, 1, "proj")
            y += drop(0.25, "drop_path2")(ConvAttention(c, name="conv")(y))
            x = jnp.concatenate([x, y], -1)
        else:
            x = projected(c, x, features, self.stride, "embed")
            x += drop(1.0, "drop_path1")(ConvAttention(c, name="conv")(x))
        y = MLP(c, 2 if self.attention else 3, name="mlp")(x)
        return x + drop(1.0, "drop_path3")(y)


class NextViT(nn.Module):
    """Stem to a quarter of the size, stages, BatchNorm, head."""

    c: Ctx
    num_classes: int
    depths: tuple[int, ...]
    widths: tuple[int, ...] = (96, 192, 384, 768)
    ratios: tuple[int, ...] = (8, 4, 2, 1)
    stem: tuple[int, ...] = (64, 32, 64)
    last_drop_path: float = 0.1  # of the last block, unless the context says another

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        c = self.c.replace(train=train)
        rates = drop_path_rates(c, self.depths, own=self.last_drop_path)
        one, two, three = self.stem

        def block(i: int, j: int) -> partial:
            attention = i > 0 and (j + 1) % (5 if i == 2 else self.depths[i]) == 0
            return partial(
                Block,
                features=self.widths[i] * 4 // 3 if attention else self.widths[i],
                stride=2 if i and not j else 1,
                attention=attention,
                ratio=self.ratios[i],
                drop_path=rates[i][j],
            )

        stem = ((one, 3, 2), (two, 3, 1), (three, 3, 1), (three, 3, 2))
        return forward(
            c,
            at_least(images, 25),
            stem=Stem(c, stem, pool=False, name="stem"),
            stages=stages_of(self.depths, block),
            neck=BatchNorm(c, name="neck"),
            head=Classifier(c, self.num_classes, name="head"),
        )


ROWS = {"small": ((3, 4, 10, 3), 0.1), "base": ((3, 4, 20, 3), 0.2), "large": ((3, 4, 30, 3), 0.2)}
SPECS = {
    f"NextViT_{name}_{size}": Spec(NextViT, {"depths": depths, "last_drop_path": rate}, size=size)
    for size in (224, 384)
    for name, (depths, rate) in ROWS.items()
}
SPECS |= {f"{name}_ssld": SPECS[name].alias(name) for name in list(SPECS)}
