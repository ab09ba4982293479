"""DSNet: in each block convolutions at full size and attention at a smaller one, side by side.

Mao et al. 2021, Dual-stream network for visual recognition (https://arxiv.org/abs/2105.14734); the
two streams see each other by attention, too. Unlike PaddleClas's: attention is trained without
dropout of its weights (0.1 there), stochastic depth rises through all stages (there anew in each),
and images may have any size.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcls.models import layers
from jaxcls.models.layers import (
    BatchNorm,
    Classifier,
    DropPath,
    at_least,
    drop_path_rates,
    forward,
    stages_of,
)
from jaxcls.models.spec import Ctx, Spec
from jaxcls.models.transformer import Dense, LayerNorm, attend, gelu, heads_of

Array = jax.Array
Conv = partial(layers.Conv, bias=True)


def resized(x: Array, height: int, width: int) -> Array:
    """Returns a grid [B, H, W, D] of another size, interpolated between the nearest places."""
    shape = (x.shape[0], height, width, x.shape[-1])
    return jax.image.resize(x, shape, "linear", antialias=False)


class Mix(nn.Module):
    """One half of the features by convolution, the other by attention at a smaller size."""

    c: Ctx
    heads: int
    shrink: int  # sides of the attention's grid, times smaller

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c, (height, width), half = self.c, x.shape[1:3], x.shape[-1] // 2
        cut = lambda qkv: [
            heads_of(y.reshape(y.shape[0], -1, half), self.heads) for y in jnp.split(qkv, 3, -1)
        ]
        x = Conv(c, x.shape[-1], name="conv1")(x)
        local, shape = x[..., half:], (max(height // self.shrink, 1), max(width // self.shrink, 1))
        y = BatchNorm(c, name="norm_conv1")(local)
        local += Conv(c, half, 3, groups=half, name="conv")(y)

        whole = resized(x[..., :half], *shape)
        y = LayerNorm(c, name="norm_sa1")(whole)
        y = attend(c, *cut(Dense(c, 3 * half, name="channel_up")(y)))
        whole += y.reshape(whole.shape)

        y = BatchNorm(c, name="norm_conv2")(local)
        q, k, v = cut(Conv(c, 3 * half, name="cross_channel_up_conv")(y))
        y = LayerNorm(c, name="norm_sa2")(whole)
        whole_q, whole_k, whole_v = cut(Dense(c, 3 * half, name="cross_channel_up_sa")(y))
        y = attend(c, q, whole_k, whole_v).reshape(local.shape)
        local += Dense(c, half, name="fuse_channel_conv")(y)
        y = attend(c, whole_q, k, v).reshape(whole.shape)
        whole += Dense(c, half, name="fuse_channel_sa")(y)
        x = jnp.concatenate([local, resized(whole, height, width)], -1)
        return Conv(c, x.shape[-1], name="conv2")(x)


class Block(nn.Module):
    """Places by a depthwise convolution, then `Mix` and an MLP, each after BatchNorm."""

    c: Ctx
    features: int
    embed: bool  # begins a stage, at half the size
    heads: int
    shrink: int
    drop_path: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c, features = self.c, self.features
        if self.embed:
            x = Conv(c, features, 2, 2, 0, name="embed")(x)
        x += Conv(c, features, 3, groups=features, name="pos_embed")(x)
        y = Mix(c, self.heads, self.shrink, name="mix")(BatchNorm(c, name="norm1")(x))
        x += DropPath(c, self.drop_path, name="drop_path1")(y)
        y = gelu(Conv(c, 4 * features, name="fc1")(BatchNorm(c, name="norm2")(x)))
        return x + DropPath(c, self.drop_path, name="drop_path2")(Conv(c, features, name="fc2")(y))


class DSNet(nn.Module):
    """Stem to a quarter of the size, stages, BatchNorm, head."""

    c: Ctx
    num_classes: int
    depths: tuple[int, ...]
    widths: tuple[int, ...] = (64, 128, 320, 512)
    heads: tuple[int, ...] = (1, 2, 5, 8)
    shrink: tuple[int, ...] = (8, 4, 2, 2)

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        c = self.c.replace(train=train)
        rates = drop_path_rates(c, self.depths, own=0.1)
        block = lambda i, j: partial(
            Block,
            features=self.widths[i],
            embed=i > 0 and j == 0,
            heads=self.heads[i],
            shrink=self.shrink[i],
            drop_path=rates[i][j],
        )
        return forward(
            c,
            at_least(images, 2 ** (len(self.depths) + 1)),
            stem=Conv(c, self.widths[0], 4, 4, 0, name="stem"),
            stages=stages_of(self.depths, block),
            neck=BatchNorm(c, name="neck"),
            head=Classifier(c, self.num_classes, name="head"),
        )


SPECS = {
    "DSNet_tiny": Spec(DSNet, {"depths": (2, 2, 4, 1)}),
    "DSNet_small": Spec(DSNet, {"depths": (3, 4, 8, 3)}),
    "DSNet_base": Spec(DSNet, {"depths": (3, 4, 28, 3)}),
}
