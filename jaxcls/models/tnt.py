"""TNT.

Han et al. 2021, Transformer in transformer (https://arxiv.org/abs/2103.00112): each patch is a
column's token and 4 x 4 smaller places that attend to each other inside the patch; each block adds
what they found to the token. "stageN" are the tokens.
"""

import math
from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcls.models.layers import Classifier, Conv, DropPath, drop_path_rates
from jaxcls.models.spec import Ctx, Spec
from jaxcls.models.transformer import (
    MLP,
    Dense,
    LayerNorm,
    PositionEmbedding,
    Value,
    attend,
    cells,
    column,
    heads_of,
    normal_02,
)

Array = jax.Array
State = tuple[Array, Array]  # inner places [B * N, P, I], tokens [B, 1 + N, D]


class Attention(nn.Module):
    """Self-attention without biases of queries, keys and values, which have two matrices."""

    c: Ctx
    heads: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        d = x.shape[-1]
        q, k = jnp.split(Dense(self.c, 2 * d, bias=False, name="qk")(x), 2, -1)
        v = Dense(self.c, d, bias=False, name="v")(x)
        y = attend(self.c, *(heads_of(y, self.heads) for y in (q, k, v)))
        return Dense(self.c, d, name="proj")(y.reshape(x.shape))


class Projection(nn.Module):
    """A token for each patch from its inner places, between LayerNorms: [B * N, P, I], B."""

    c: Ctx
    features: int
    bias: bool

    @nn.compact
    def __call__(self, inner: Array, batch: int) -> Array:
        x = LayerNorm(self.c, name="norm1")(inner.reshape(batch, -1, math.prod(inner.shape[1:])))
        return LayerNorm(self.c, name="norm2")(
            Dense(self.c, self.features, self.bias, name="fc")(x)
        )


class Stem(nn.Module):
    """Inner places and tokens, with embeddings of both's places."""

    c: Ctx
    patch: int
    width: int
    inner: int

    @nn.compact
    def __call__(self, images: Array) -> State:
        c, p, shape = self.c, self.patch, cells(images, self.patch)
        x = images.reshape(-1, shape[0], p, shape[1], p, images.shape[-1])
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, p, p, images.shape[-1])
        x = Conv(c, self.inner, 7, 4, bias=True, name="conv1")(x.astype(c.feature_dtype))
        inner = x.reshape(-1, x.shape[1] * x.shape[2], self.inner)
        inner += Value(c, (1, *inner.shape[1:]), name="pixel_pos")().astype(inner.dtype)
        tokens = Projection(c, self.width, bias=True, name="proj")(inner, images.shape[0])
        first = Value(c, (1, 1, self.width), name="cls_token")().astype(tokens.dtype)
        first = jnp.broadcast_to(first, (tokens.shape[0], 1, self.width))
        tokens = jnp.concatenate([first, tokens], 1)
        return inner, PositionEmbedding(c, 1, name="pos_embed")(tokens, shape)


class Block(nn.Module):
    """Attention and MLP inside patches, then between them."""

    c: Ctx
    heads: int
    inner_heads: int
    drop_path: float

    @nn.compact
    def __call__(self, state: State) -> State:
        c, (inner, tokens) = self.c, state

        def branches(x: Array, heads: int, where: str) -> Array:
            parts = {
                "attn": Attention(c, heads, name=f"attn_{where}"),
                "mlp": MLP(c, 4 * x.shape[-1], name=f"mlp_{where}"),
            }
            for name, part in parts.items():
                y = part(LayerNorm(c, name=f"norm_{name}_{where}")(x))
                x += DropPath(c, self.drop_path, name=f"drop_path_{name}_{where}")(y)
            return x

        inner = branches(inner, self.inner_heads, "in")
        y = Projection(c, tokens.shape[-1], bias=False, name="proj")(inner, tokens.shape[0])
        tokens = jnp.concatenate([tokens[:, :1], tokens[:, 1:] + y], 1)
        return inner, branches(tokens, self.heads, "out")


class TNT(nn.Module):
    """Patches, blocks, LayerNorm, classifier of the class token."""

    sized: ClassVar[bool] = True  # parameters depend on the size of the images
    looked: ClassVar[str] = "stage3"  # after it, the class token alone counts in the end
    c: Ctx
    num_classes: int
    width: int
    inner: int  # features of the places inside patches
    heads: int
    inner_heads: int = 4
    depth: int = 12
    patch: int = 16

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        c = self.c.replace(train=train)
        norm = LayerNorm(c, name="neck")
        return column(
            c,
            images,
            patch=self.patch,
            before=1,
            stem=Stem(c, self.patch, self.width, self.inner, name="stem"),
            blocks=[
                partial(Block, heads=self.heads, inner_heads=self.inner_heads, drop_path=rate)
                for rate in drop_path_rates(c, (self.depth,), from_zero=True)[0]
            ],
            tokens=lambda state: state[1],
            pooled=lambda x: norm(x[:, 0]),
            head=Classifier(c, self.num_classes, kernel_init=normal_02, name="head"),
        )


SPECS = {
    "TNT_small": Spec(TNT, {"width": 384, "inner": 24, "heads": 6}),
    "TNT_base": Spec(TNT, {"width": 640, "inner": 40, "heads": 10}),
}
