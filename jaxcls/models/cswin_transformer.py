"""CSWin Transformer.

Dong et al. 2021, CSWin transformer (https://arxiv.org/abs/2107.00652): half of the heads attend
within stripes of columns, half within stripes of rows, in the last stage all of them everywhere; a
depthwise convolution of the values inside each stripe tells places.
"""

import math
from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcls.models.layers import Classifier, Conv, DropPath, drop_path_rates, forward, stages_of
from jaxcls.models.spec import Ctx, Spec
from jaxcls.models.transformer import (
    MLP,
    Dense,
    Embedding,
    LayerNorm,
    attend,
    cells,
    normal_02,
    unwindowed,
    windows_of,
)

Array = jax.Array


class StripeAttention(nn.Module):
    """Attention within windows, and a convolution of the values in each: grids -> grid."""

    c: Ctx
    heads: int
    window: tuple[int, int]

    @nn.compact
    def __call__(self, q: Array, k: Array, v: Array) -> Array:
        (h, w), (b, height, width, d) = self.window, v.shape
        y = attend(self.c, *(windows_of(x, self.window, self.heads) for x in (q, k, v)))
        parts = v.reshape(b, height // h, h, width // w, w, d).transpose(0, 1, 3, 2, 4, 5)
        conv = Conv(self.c, d, 3, groups=d, bias=True, name="get_v")
        near = conv(parts.reshape(-1, h, w, d)).reshape(b, height // h, width // w, h, w, d)
        near = near.transpose(0, 1, 3, 2, 4, 5).reshape(v.shape)
        return unwindowed(y, self.window, (height, width)) + near


class Block(nn.Module):
    """Attention and MLP, each after a LayerNorm and beside a shortcut."""

    c: Ctx
    features: int
    heads: int
    split: int | None  # width of the stripes; None: one window
    merge: bool  # patches first, at the beginning of a stage
    drop_path: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = self.c
        if self.merge:
            x = Embedding(c, self.features, 3, 2, 1, name="merge")(x)
        h, w = x.shape[1:3]
        windows = [(h, w)] if self.split is None else [(h, self.split), (self.split, w)]
        n = len(windows)
        qkv = Dense(c, 3 * self.features, name="qkv")(LayerNorm(c, name="norm1")(x))
        parts = jnp.split(qkv, 3 * n, -1)
        y = [
            StripeAttention(c, self.heads // n, window, name=f"attn{i + 1}")(*parts[i::n])
            for i, window in enumerate(windows)
        ]
        y = Dense(c, self.features, name="proj")(jnp.concatenate(y, -1))
        x += DropPath(c, self.drop_path, name="drop_path1")(y)
        y = MLP(c, 4 * self.features, name="mlp")(LayerNorm(c, name="norm2")(x))
        return x + DropPath(c, self.drop_path, name="drop_path2")(y)


class CSWinTransformer(nn.Module):
    """Overlapping patches, four stages, LayerNorm, mean, classifier."""

    sized: ClassVar[bool] = True  # it takes images that stripes fill
    c: Ctx
    num_classes: int
    width: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    splits: tuple[int, ...] = (1, 2, 7)  # places across a stripe of each stage but the last

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        c = self.c.replace(train=train)
        cells(images, math.lcm(*(2 ** (i + 2) * n for i, n in enumerate(self.splits))))
        rates = drop_path_rates(c, self.depths, from_zero=True)
        block = lambda i, j: partial(
            Block,
            features=self.width * 2**i,
            heads=self.heads[i],
            split=self.splits[i] if i < len(self.splits) else None,
            merge=i > 0 and not j,
            drop_path=rates[i][j],
        )
        return forward(
            c,
            images,
            stem=Embedding(c, self.width, 7, 4, 2, name="stem"),
            stages=stages_of(self.depths, block),
            neck=LayerNorm(c, name="neck"),
            head=Classifier(c, self.num_classes, kernel_init=normal_02, name="head"),
        )


S384 = {"splits": (1, 2, 12)}


def row(width: int, depths: tuple, heads: tuple, drop_path: float) -> dict[str, object]:
    """Returns the arguments of a size."""
    return {"width": width, "depths": depths, "heads": heads, "drop_path": drop_path}


TINY = row(64, (1, 2, 21, 1), (2, 4, 8, 16), 0.2)
SMALL = row(64, (2, 4, 32, 2), (2, 4, 8, 16), 0.4)
BASE = row(96, (2, 4, 32, 2), (4, 8, 16, 32), 0.5)
LARGE = row(144, (2, 4, 32, 2), (6, 12, 24, 24), 0.5)
SPECS = {
    "CSWinTransformer_tiny_224": Spec(CSWinTransformer, TINY),
    "CSWinTransformer_small_224": Spec(CSWinTransformer, SMALL),
    "CSWinTransformer_base_224": Spec(CSWinTransformer, BASE),
    "CSWinTransformer_large_224": Spec(CSWinTransformer, LARGE),
    "CSWinTransformer_base_384": Spec(CSWinTransformer, BASE | S384, 384),
    "CSWinTransformer_large_384": Spec(CSWinTransformer, LARGE | S384, 384),
}
