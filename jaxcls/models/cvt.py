"""CvT.

Wu et al. 2021, CvT (https://arxiv.org/abs/2103.15808): overlapping patches in three stages, and
queries, keys and values of depthwise convolutions, those of keys and values at stride 2. The last
stage has a class token, which no convolution sees. As in the authors' code, products are divided by
the root of the width of all heads together.
"""

from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcls.models.layers import (
    Classifier,
    ConvBN,
    DropPath,
    at_least,
    drop_path_rates,
    outputs,
    run_stages,
    stages_of,
)
from jaxcls.models.spec import Ctx, Spec
from jaxcls.models.transformer import (
    MLP,
    Dense,
    Embedding,
    LayerNorm,
    Value,
    attend,
    heads_of,
    normal_02,
    quick_gelu,
)

Array = jax.Array
SMALLEST = 16  # pixels, of which each stage has something
State = tuple[Array, Array | None]  # grid [B, H, W, D], class token [B, 1, D]


def tokens_of(state: State) -> Array:
    """Returns the class token, where there is one, and then the grid's places: [B, T, D]."""
    grid, token = state
    flat = grid.reshape(grid.shape[0], -1, grid.shape[-1])
    return flat if token is None else jnp.concatenate([token, flat], 1)


def state_of(tokens: Array, state: State) -> State:
    """Returns tokens as a state like that one."""
    grid, token = state
    first = 0 if token is None else 1
    return tokens[:, first:].reshape(grid.shape), None if token is None else tokens[:, :1]


class Attention(nn.Module):
    """Attention whose queries, keys and values are of depthwise convolutions."""

    c: Ctx
    heads: int

    @nn.compact
    def __call__(self, state: State) -> Array:
        c, (grid, token) = self.c, state
        d = grid.shape[-1]

        def projected(name: str, stride: int) -> Array:
            y = ConvBN(c, d, 3, stride, groups=d, name=f"conv_proj_{name}")(grid)
            return heads_of(Dense(c, d, name=f"proj_{name}")(tokens_of((y, token))), self.heads)

        q, k, v = (projected(name, stride) for name, stride in (("q", 1), ("k", 2), ("v", 2)))
        y = attend(c, q, k, v, scale=d**-0.5)
        return Dense(c, d, name="proj")(y.reshape(*y.shape[:2], d))


class Block(nn.Module):
    """Attention and MLP, each after a LayerNorm and beside a shortcut."""

    c: Ctx
    features: int
    heads: int
    embed: bool  # patches before it, at the beginning of a stage
    token: bool  # and a class token
    drop_path: float

    @nn.compact
    def __call__(self, state: State) -> State:
        c, (grid, token) = self.c, state
        if self.embed:
            grid = Embedding(c, self.features, 3, 2, 1, name="embed")(grid)
        if self.token:
            token = Value(c, (1, 1, self.features), name="cls_token")().astype(grid.dtype)
            token = jnp.broadcast_to(token, (grid.shape[0], 1, self.features))
        state = grid, token
        x = tokens_of(state)
        normed = state_of(LayerNorm(c, name="norm1")(x), state)
        x += DropPath(c, self.drop_path, name="drop_path1")(
            Attention(c, self.heads, name="attn")(normed)
        )
        y = MLP(c, 4 * self.features, quick_gelu, name="mlp")(LayerNorm(c, name="norm2")(x))
        return state_of(x + DropPath(c, self.drop_path, name="drop_path2")(y), state)


class CvT(nn.Module):
    """Overlapping patches, three stages, LayerNorm of the class token, classifier."""

    looked: ClassVar[str] = "stage2"  # after it, the class token alone counts in the end
    c: Ctx
    num_classes: int
    depths: tuple[int, ...]
    widths: tuple[int, ...] = (64, 192, 384)
    heads: tuple[int, ...] = (1, 3, 6)

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        c, last = self.c.replace(train=train), len(self.depths) - 1
        rates = drop_path_rates(c, self.depths[last:], from_zero=True)[0]  # of the last stage alone
        block = lambda i, j: partial(
            Block,
            features=self.widths[i],
            heads=self.heads[i],
            embed=i > 0 and not j,
            token=i == last and not j,
            drop_path=rates[j] if i == last else 0.0,
        )
        images = at_least(images, SMALLEST).astype(c.feature_dtype)
        x = Embedding(c, self.widths[0], 7, 4, 2, name="stem")(images)
        states = run_stages(c, (x, None), stages_of(self.depths, block))
        x = LayerNorm(c, name="neck")(states[-1][1][:, 0]).astype(c.head_dtype)
        head = Classifier(c, self.num_classes, kernel_init=normal_02, name="head")
        return outputs(c, [grid for grid, _ in states], x, head)


D13, D21 = {"depths": (1, 2, 10), "drop_path": 0.1}, {"depths": (1, 4, 16), "drop_path": 0.1}
W24 = {"depths": (2, 2, 20), "widths": (192, 768, 1024), "heads": (3, 12, 16), "drop_path": 0.3}
SPECS = {
    "CvT_13_224": Spec(CvT, D13),
    "CvT_13_384": Spec(CvT, D13, 384),
    "CvT_21_224": Spec(CvT, D21),
    "CvT_21_384": Spec(CvT, D21, 384),
    "CvT_W24_384": Spec(CvT, W24, 384),
}
