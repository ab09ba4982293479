"""LeViT.

Graham et al. 2021, LeViT (https://arxiv.org/abs/2104.01136): convolutions to a sixteenth of the
size, then attention and MLPs with BatchNorm in the place of LayerNorm; attention from every second
place to all of them halves the grid. A bias of each head says how far places are apart.

As PaddleClas's weights have it there is one classifier; `distilled` adds the second one of the
authors' and timm's, and the answer is the mean of both. Unlike PaddleClas, stochastic depth drops
branches there: its code adds what it draws to the features instead.
"""

from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxcls.models.layers import (
    BatchNorm,
    Classifier,
    ConvBN,
    DropPath,
    global_mean,
    outputs,
    run_stages,
    stages_of,
)
from jaxcls.models.spec import Ctx, Spec
from jaxcls.models.transformer import DenseBN, attend, normal_02, stored, undirected

Array = jax.Array
act = nn.hard_swish


class Stem(nn.Module):
    """Four 3x3 convolutions at stride 2, each of twice the width of the one before."""

    c: Ctx
    width: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for i in range(4):
            features = self.width // 2 ** (3 - i)
            x = ConvBN(self.c, features, 3, 2, act=act if i < 3 else None, name=f"conv{i + 1}")(x)
        return x


class DistanceBias(nn.Module):
    """Bias by how many rows and columns places are apart: [1, heads, queries, keys]."""

    c: Ctx
    heads: int
    shape: tuple[int, int]
    stride: int  # of the queries' places

    @nn.compact
    def __call__(self) -> Array:
        (h, w), s = self.shape, self.stride
        y, x = (np.ravel(a) for a in np.mgrid[:h, :w])
        from_y, from_x = (np.ravel(a) for a in np.mgrid[:h:s, :w:s])
        far = np.abs(from_y[:, None] - y) * w + np.abs(from_x[:, None] - x)
        value = stored(self, (self.heads, h * w), nn.initializers.zeros, self.c.param_dtype)
        return undirected(value, self.shape)[:, far][None]


class Attention(nn.Module):
    """Attention of a grid; at stride 2 from every second place to all."""

    c: Ctx
    features: int
    key: int  # width of a head's keys
    heads: int
    ratio: int  # how much wider its values are
    stride: int = 1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c, key, n, value = self.c, self.key, self.heads, self.key * self.ratio
        flat = lambda x: x.reshape(x.shape[0], -1, x.shape[-1])
        split = lambda y: y.reshape(*y.shape[:2], n, -1)
        start = x[:, :: self.stride, :: self.stride]
        if self.stride == 1:
            y = split(DenseBN(c, n * (2 * key + value), name="qkv")(flat(x)))
            q, k, v = jnp.split(y, (key, 2 * key), -1)
        else:
            k, v = jnp.split(split(DenseBN(c, n * (key + value), name="kv")(flat(x))), (key,), -1)
            q = split(DenseBN(c, n * key, name="q")(flat(start)))
        bias = DistanceBias(c, n, x.shape[1:3], self.stride, name="bias_grid")()
        y = attend(c, q, k, v, bias).reshape(x.shape[0], -1, n * value)
        y = DenseBN(c, self.features, name="proj")(act(y))
        return y.reshape(*start.shape[:3], -1)


class Block(nn.Module):
    """Attention, beside a shortcut where it keeps the size, and MLP."""

    c: Ctx
    features: int
    key: int
    heads: int
    down: bool
    drop_path: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c, shape = self.c, (self.features, self.key, self.heads)
        if self.down:
            x = Attention(c, *shape, ratio=4, stride=2, name="attn")(x)
        else:
            y = Attention(c, *shape, ratio=2, name="attn")(x)
            x += DropPath(c, self.drop_path, name="drop_path1")(y)
        y = act(DenseBN(c, 2 * self.features, name="fc1")(x))
        y = DenseBN(c, self.features, name="fc2")(y)
        return x + DropPath(c, self.drop_path, name="drop_path2")(y)


class Heads(nn.Module):
    """The mean of two classifiers, each after a BatchNorm."""

    c: Ctx
    num_classes: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        def head(name: str) -> Array:
            y = BatchNorm(self.c, name=f"{name}_bn")(x)
            return Classifier(self.c, self.num_classes, kernel_init=normal_02, name=name)(y)

        return (head("cls") + head("dist")) / 2


class LeViT(nn.Module):
    """Convolutions, three stages, mean, BatchNorm and classifier."""

    sized: ClassVar[bool] = True  # parameters depend on the size of the images
    c: Ctx
    num_classes: int
    widths: tuple[int, ...]
    key: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    distilled: bool = False

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        c = self.c.replace(train=train)
        last = 0.0 if c.drop_path is None else c.drop_path  # the same everywhere
        blocks = [depth + (i > 0) for i, depth in enumerate(self.depths)]

        def block(i: int, j: int) -> partial:
            down = i > 0 and not j
            heads = self.widths[i - 1] // self.key if down else self.heads[i]
            return partial(
                Block,
                features=self.widths[i],
                key=self.key,
                heads=heads,
                down=down,
                drop_path=last,
            )

        features = run_stages(
            c,
            Stem(c, self.widths[0], name="stem")(images.astype(c.feature_dtype)),
            stages_of(blocks, block),
        )
        x = global_mean(features[-1], c)
        if self.distilled:
            return outputs(c, features, x, Heads(c, self.num_classes, name="head"))
        head = Classifier(c, self.num_classes, kernel_init=normal_02, name="head")
        return outputs(c, features, BatchNorm(c, name="neck")(x), head)


def row(widths: tuple, key: int, depths: tuple, heads: tuple, **more: float) -> Spec:
    """Returns a row of the table."""
    return Spec(LeViT, {"widths": widths, "key": key, "depths": depths, "heads": heads, **more})


SPECS = {
    "LeViT_128S": row((128, 256, 384), 16, (2, 3, 4), (4, 6, 8)),
    "LeViT_128": row((128, 256, 384), 16, (4, 4, 4), (4, 8, 12)),
    "LeViT_192": row((192, 288, 384), 32, (4, 4, 4), (3, 5, 6)),
    "LeViT_256": row((256, 384, 512), 32, (4, 4, 4), (4, 6, 8)),
    "LeViT_384": row((384, 512, 768), 32, (4, 4, 4), (6, 9, 12), drop_path=0.1),
}
