"""Swin Transformer V2.

Liu et al. 2021, Swin transformer V2 (https://arxiv.org/abs/2111.09883): Swin with cosines in the
place of products, LayerNorm after the branches, and a bias of attention that a small MLP makes of
logarithmic distances, so that windows of another size need no other weights. A window is the whole
grid where that is smaller. `_22kto1k` are weights that saw ImageNet-22k first, in the windows of
`pretrained`, by which distances are measured.
"""

import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxcls.models.layers import Classifier, DropPath, drop_path_rates, stages_of
from jaxcls.models.spec import Ctx, Spec
from jaxcls.models.transformer import (
    MLP,
    Dense,
    LayerNorm,
    Value,
    attend_windows,
    distances,
    merged,
    normal_02,
    padded,
    rolled,
    shifted_windows,
    sizes_of,
)

Array = jax.Array
HIDDEN = 512  # features inside the MLP of distances
LEAST_TEMPERATURE = 0.01


class DistanceBias(nn.Module):
    """Bias of attention by an MLP of distances in a window: [1, heads, T, T]."""

    c: Ctx
    heads: int
    window: int
    pretrained: int  # side of the window that distances are measured by

    @nn.compact
    def __call__(self) -> Array:
        c = self.c.replace(dtype=self.c.norm_dtype, feature_dtype=self.c.norm_dtype)
        steps = np.arange(1 - self.window, self.window) / max(self.pretrained - 1, 1) * 8
        steps = np.sign(steps) * np.log2(np.abs(steps) + 1) / math.log2(8)
        places = np.stack(np.meshgrid(steps, steps, indexing="ij"), -1).reshape(-1, 2)
        x = nn.relu(Dense(c, HIDDEN, name="fc1")(jnp.asarray(places, c.dtype)))
        x = 16 * nn.sigmoid(Dense(c, self.heads, bias=False, name="fc2")(x))
        return x[distances((self.window,) * 2)].transpose(2, 0, 1)[None]


class WindowAttention(nn.Module):
    """Attention within windows by the cosines of queries and keys: a grid -> a grid."""

    c: Ctx
    heads: int
    window: int
    shift: int
    pretrained: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c, shape, d = self.c, x.shape[1:3], x.shape[-1]
        x = rolled(padded(x, self.window), (-self.shift,) * 2)
        zeros = nn.initializers.zeros
        q, k, v = jnp.split(Dense(c, 3 * d, bias=False, name="qkv")(x), 3, -1)
        q += Value(c, (d,), zeros, name="q_bias")().astype(q.dtype)
        v += Value(c, (d,), zeros, name="v_bias")().astype(v.dtype)
        initial = nn.initializers.constant(math.log(10))
        scale = Value(c, (self.heads, 1, 1), initial, name="logit_scale")()[:, 0]
        scale = jnp.exp(jnp.minimum(scale.astype(c.norm_dtype), -math.log(LEAST_TEMPERATURE)))

        def unit(x: Array, factor: Array | float) -> Array:
            wide = x.reshape(*x.shape[:3], self.heads, -1).astype(c.norm_dtype)
            square = (wide * wide).sum(-1, keepdims=True)
            wide *= jax.lax.rsqrt(jnp.maximum(square, 1e-24)) * factor
            return wide.astype(x.dtype).reshape(x.shape)

        window = (self.window,) * 2
        bias = DistanceBias(c, self.heads, self.window, self.pretrained, name="cpb_mlp")()
        qkv = unit(q, scale), unit(k, 1.0), v
        y = attend_windows(c, qkv, self.heads, window, bias, self.shift, scale=1.0)
        y = Dense(c, d, name="proj")(y)
        return rolled(y, (self.shift,) * 2)[:, : shape[0], : shape[1]]


class Block(nn.Module):
    """Attention within windows and an MLP, each before a LayerNorm and beside a shortcut."""

    c: Ctx
    features: int
    heads: int
    window: int
    pretrained: int | None
    shifted: bool
    merge: bool  # first, at the beginning of a stage
    drop_path: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = self.c
        if self.merge:
            x = Dense(c, self.features, bias=False, name="reduction")(merged(x))
            x = LayerNorm(c, name="norm")(x)
        whole = min(x.shape[1:3]) <= self.window
        window = min(x.shape[1:3]) if whole else self.window
        shift = window // 2 if self.shifted and not whole else 0
        measure = window if self.pretrained is None else self.pretrained
        y = WindowAttention(c, self.heads, window, shift, measure, name="attn")(x)
        x += DropPath(c, self.drop_path, name="drop_path1")(LayerNorm(c, name="norm1")(y))
        y = MLP(c, 4 * self.features, name="mlp")(x)
        return x + DropPath(c, self.drop_path, name="drop_path2")(LayerNorm(c, name="norm2")(y))


class SwinTransformerV2(nn.Module):
    """Patches, four stages, LayerNorm, mean, classifier."""

    c: Ctx
    num_classes: int
    width: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    window: int
    pretrained: tuple[int, ...] | None = None  # windows of each stage; None: of this size
    patch: int = 4

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        c = self.c.replace(train=train)
        rates = drop_path_rates(c, self.depths, from_zero=True)
        block = lambda i, j: partial(
            Block,
            features=self.width * 2**i,
            heads=self.heads[i],
            window=self.window,
            pretrained=None if self.pretrained is None else self.pretrained[i],
            shifted=j % 2 == 1,
            merge=i > 0 and not j,
            drop_path=rates[i][j],
        )
        head = Classifier(c, self.num_classes, kernel_init=normal_02, name="head")
        return shifted_windows(
            c, images, self.width, self.patch, stages_of(self.depths, block), head
        )


TINY, SMALL = sizes_of(96, 3, 6, 0.2), sizes_of(96, 3, 18, 0.3)
BASE, LARGE = sizes_of(128, 4, 18, 0.5), sizes_of(192, 6, 18, 0.2)
W8, W16 = {"window": 8}, {"window": 16}
FROM_12 = {"pretrained": (12, 12, 12, 6), "drop_path": 0.2}
W24 = {"window": 24, **FROM_12}
ROWS = {  # name -> switches, input size
    "tiny_patch4_window8_256": (TINY | W8, 256),
    "tiny_patch4_window16_256": (TINY | W16, 256),
    "small_patch4_window8_256": (SMALL | W8, 256),
    "small_patch4_window16_256": (SMALL | W16, 256),
    "base_patch4_window8_256": (BASE | W8, 256),
    "base_patch4_window16_256": (BASE | W16, 256),
    "base_patch4_window24_384": (BASE | W24, 384),
    "large_patch4_window16_256": (LARGE | W16 | FROM_12, 256),
    "large_patch4_window24_384": (LARGE | W24, 384),
}
SPECS = {
    f"SwinTransformerV2_{name}": Spec(SwinTransformerV2, arguments, size)
    for name, (arguments, size) in ROWS.items()
}
SPECS |= {
    f"{name}_22kto1k": spec.alias(name)
    for name, spec in SPECS.items()
    if "pretrained" in spec.kwargs
}
