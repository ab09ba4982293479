"""Swin Transformer.

Liu et al. 2021, Swin transformer (https://arxiv.org/abs/2103.14030): attention within windows,
which every second block has shifted by half a window. Grids that windows do not fill are padded
with zeros, which take part as their codes and timm's do too.

As in PaddleClas, and unlike the paper: windows are shifted also where one is the whole grid, in
the last stage; not with `shift_whole=False`, as timm's networks of the same tensors.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcls.models.layers import Classifier, drop_path_rates, stages_of
from jaxcls.models.spec import Ctx, Spec
from jaxcls.models.transformer import (
    MLP,
    Dense,
    LayerNorm,
    RelativeBias,
    attend_windows,
    beside,
    merged,
    normal_02,
    padded,
    rolled,
    shifted_windows,
    sizes_of,
)

Array = jax.Array


class Merging(nn.Module):
    """Four neighbours become one place of twice the width."""

    c: Ctx
    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = LayerNorm(self.c, name="norm")(merged(x))
        return Dense(self.c, self.features, bias=False, name="reduction")(x)


class WindowAttention(nn.Module):
    """Attention within windows: a grid -> a grid."""

    c: Ctx
    heads: int
    window: int
    shift: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c, shape, window = self.c, x.shape[1:3], (self.window, self.window)
        x = rolled(padded(x, self.window), (-self.shift,) * 2)
        qkv = jnp.split(Dense(c, 3 * x.shape[-1], name="qkv")(x), 3, -1)
        bias = RelativeBias(c, self.heads, window, name="bias_table")()
        y = attend_windows(c, qkv, self.heads, window, bias, self.shift)
        y = Dense(c, x.shape[-1], name="proj")(y)
        return rolled(y, (self.shift,) * 2)[:, : shape[0], : shape[1]]


class Block(nn.Module):
    """Attention within windows and an MLP, each after a LayerNorm and beside a shortcut."""

    c: Ctx
    features: int
    heads: int
    window: int
    shifted: bool
    shift_whole: bool
    merge: bool  # first, at the beginning of a stage
    drop_path: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = self.c
        if self.merge:
            x = Merging(c, self.features, name="merge")(x)
        shifts = self.shifted and (self.shift_whole or min(x.shape[1:3]) > self.window)
        shift = self.window // 2 if shifts else 0
        attention = WindowAttention(c, self.heads, self.window, shift, name="attn")
        mlp = MLP(c, 4 * self.features, name="mlp")
        return beside(c, x, attention, mlp, drop_path=self.drop_path)


class SwinTransformer(nn.Module):
    """Patches, four stages, LayerNorm, mean, classifier."""

    c: Ctx
    num_classes: int
    width: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    window: int = 7
    patch: int = 4
    shift_whole: bool = True  # shift a window that is the whole grid

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        c = self.c.replace(train=train)
        rates = drop_path_rates(c, self.depths, from_zero=True)
        block = lambda i, j: partial(
            Block,
            features=self.width * 2**i,
            heads=self.heads[i],
            window=self.window,
            shifted=j % 2 == 1,
            shift_whole=self.shift_whole,
            merge=i > 0 and not j,
            drop_path=rates[i][j],
        )
        head = Classifier(c, self.num_classes, kernel_init=normal_02, name="head")
        return shifted_windows(
            c, images, self.width, self.patch, stages_of(self.depths, block), head
        )


TINY = sizes_of(96, 3, 6, 0.2)
SMALL = sizes_of(96, 3, 18, 0.3)
BASE = sizes_of(128, 4, 18, 0.5)
LARGE = sizes_of(192, 6, 18, 0.1)
W12 = {"window": 12}
SPECS = {
    "SwinTransformer_tiny_patch4_window7_224": Spec(SwinTransformer, TINY),
    "SwinTransformer_small_patch4_window7_224": Spec(SwinTransformer, SMALL),
    "SwinTransformer_base_patch4_window7_224": Spec(SwinTransformer, BASE),
    "SwinTransformer_base_patch4_window12_384": Spec(SwinTransformer, BASE | W12, 384),
    "SwinTransformer_large_patch4_window7_224": Spec(SwinTransformer, LARGE),
    "SwinTransformer_large_patch4_window12_384": Spec(SwinTransformer, LARGE | W12, 384),
}
SPECS |= {f"{n}_22kto1k": SPECS[n].alias(n) for n in SPECS if "base" in n or "large" in n}
