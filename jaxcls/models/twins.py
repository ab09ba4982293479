"""Twins: PCPVT and SVT, which PaddleClas calls ALT-GVT.

Chu et al. 2021, Twins (https://arxiv.org/abs/2104.13840): pyramids whose places are told by a
depthwise convolution after the first block of each stage. PCPVT attends to places that a
convolution has summarised; SVT by turns to those and within windows of 7 x 7, whose grids are
padded with zeros where windows do not fill them, as in timm.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcls.models.layers import (
    Classifier,
    Conv,
    at_least,
    drop_path_rates,
    forward,
    stages_of,
)
from jaxcls.models.spec import Ctx, Spec
from jaxcls.models.transformer import (
    MLP,
    Dense,
    Embedding,
    LayerNorm,
    ReducedAttention,
    attend_windows,
    beside,
    normal_02,
    padded,
)

Array = jax.Array
EPSILON = 1e-6
SMALLEST = 32  # pixels, of which the coarsest attention has one place left


class LocalAttention(nn.Module):
    """Attention within windows of a grid."""

    c: Ctx
    heads: int
    window: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape, window = x.shape[1:3], (self.window, self.window)
        x = padded(x, self.window)
        qkv = jnp.split(Dense(self.c, 3 * x.shape[-1], name="qkv")(x), 3, -1)
        y = attend_windows(self.c, qkv, self.heads, window)[:, : shape[0], : shape[1]]
        return Dense(self.c, x.shape[-1], name="proj")(y)


class Block(nn.Module):
    """Attention and MLP, each after a LayerNorm and beside a shortcut."""

    c: Ctx
    features: int
    heads: int
    hidden: int
    ratio: int
    window: int | None  # None: attention to the whole image
    first: bool  # of a stage: places are told after it
    embed: bool  # patches before it
    drop_path: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = self.c
        if self.embed:
            x = Embedding(c, self.features, 2, 2, name="embed")(x)
        if self.window is None:
            attention = ReducedAttention(c, self.heads, self.ratio, name="attn")
        else:
            attention = LocalAttention(c, self.heads, self.window, name="attn")
        mlp = MLP(c, self.hidden, name="mlp")
        x = beside(c, x, attention, mlp, drop_path=self.drop_path, epsilon=EPSILON)
        if self.first:
            x += Conv(c, self.features, 3, groups=self.features, bias=True, name="peg")(x)
        return x


class Twins(nn.Module):
    """Patches, four stages, LayerNorm, mean, classifier."""

    c: Ctx
    num_classes: int
    depths: tuple[int, ...]
    widths: tuple[int, ...]
    heads: tuple[int, ...]
    mlp_ratios: tuple[int, ...] = (4, 4, 4, 4)
    ratios: tuple[int, ...] = (8, 4, 2, 1)
    window: int | None = None  # None: PCPVT

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        c = self.c.replace(train=train)
        rates = drop_path_rates(c, self.depths, from_zero=True)
        block = lambda i, j: partial(
            Block,
            features=self.widths[i],
            heads=self.heads[i],
            hidden=self.widths[i] * self.mlp_ratios[i],
            ratio=self.ratios[i],
            window=None if j % 2 else self.window,
            first=not j,
            embed=i > 0 and not j,
            drop_path=rates[i][j],
        )
        return forward(
            c,
            at_least(images, SMALLEST),
            stem=Embedding(c, self.widths[0], 4, 4, name="stem"),
            stages=stages_of(self.depths, block),
            neck=LayerNorm(c, EPSILON, name="neck"),
            head=Classifier(c, self.num_classes, kernel_init=normal_02, name="head"),
        )


PCPVT = {"widths": (64, 128, 320, 512), "heads": (1, 2, 5, 8), "mlp_ratios": (8, 8, 4, 4)}


def svt(width: int, heads: int) -> dict[str, object]:
    """Returns the arguments of a width."""
    doubled = lambda n: tuple(n * 2**i for i in range(4))
    return {"widths": doubled(width), "heads": doubled(heads), "window": 7}


SPECS = {
    "pcpvt_small": Spec(Twins, PCPVT | {"depths": (3, 4, 6, 3)}),
    "pcpvt_base": Spec(Twins, PCPVT | {"depths": (3, 4, 18, 3)}),
    "pcpvt_large": Spec(Twins, PCPVT | {"depths": (3, 8, 27, 3)}),
    "alt_gvt_small": Spec(Twins, svt(64, 2) | {"depths": (2, 2, 10, 4)}),
    "alt_gvt_base": Spec(Twins, svt(96, 3) | {"depths": (2, 2, 18, 2)}),
    "alt_gvt_large": Spec(Twins, svt(128, 4) | {"depths": (2, 2, 18, 2)}),
}
