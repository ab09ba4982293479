"""What networks with attention share, beside `layers`, and from where they have it.

Tokens are [B, T, D], grids [B, H, W, D].
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcls.models.attention import Attention, Block, attend, beside, heads_of
from jaxcls.models.layers import (
    Conv,
    Factory,
    adaptive_mean,
    forward,
    outputs,
    run_stages,
)
from jaxcls.models.positions import (
    PositionEmbedding,
    RelativeBias,
    adapted,
    cubic,
    distances,
    positions,
    relative,
    side,
    undirected,
)
from jaxcls.models.spec import Ctx
from jaxcls.models.tokens import (
    MLP,
    Dense,
    DenseBN,
    LayerNorm,
    LayerScale,
    Value,
    gelu,
    normal_02,
    quick_gelu,
    stored,
)
from jaxcls.models.windows import (
    FAR,
    attend_windows,
    between_parts,
    merged,
    padded,
    rolled,
    unwindowed,
    windows_of,
)

Array = jax.Array


def cells(images: Array, multiple: int) -> tuple[int, int]:
    """Returns how many squares of so many pixels fill images [B, H, W, C]: rows, columns.

    Raises:
      ValueError: they do not.
    """
    height, width = images.shape[1:3]
    if height % multiple or width % multiple or not height * width:
        near = max(round(min(height, width) / multiple), 1) * multiple
        raise ValueError(
            f"images of {height} x {width} pixels: this network takes sizes that are multiples of "
            f"{multiple}, such as {near} and {near + multiple}: it needs at least {multiple} x "
            f"{multiple}"
        )
    return height // multiple, width // multiple


class Embedding(nn.Module):
    """Convolution and LayerNorm that make a grid of places: [B, H, W, C] -> [B, h, w, D]."""

    c: Ctx
    features: int
    kernel: int
    stride: int
    padding: int = 0

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = self.features, self.kernel, self.stride, self.padding
        return LayerNorm(self.c, name="norm")(Conv(self.c, *shape, bias=True, name="proj")(x))


class ReducedAttention(nn.Module):
    """Attention of a grid [B, H, W, D] to fewer places.

    These are of a convolution without overlap (Wang et al. 2021, https://arxiv.org/abs/2102.12122),
    or means over `pooled` x `pooled` cells (PVTv2's linear attention).
    """

    c: Ctx
    heads: int
    ratio: int  # side of the cells; 1: all places
    pooled: int | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c, features, y = self.c, x.shape[-1], x
        flat = lambda y: y.reshape(y.shape[0], -1, y.shape[-1])
        if self.pooled is not None:
            y = Conv(c, features, bias=True, name="sr")(adaptive_mean(y, self.pooled))
            y = gelu(LayerNorm(c, name="norm")(y))
        elif self.ratio > 1:
            y = Conv(c, features, self.ratio, self.ratio, 0, bias=True, name="sr")(y)
            y = LayerNorm(c, name="norm")(y)
        q = heads_of(Dense(c, features, name="q")(flat(x)), self.heads)
        kv = jnp.split(Dense(c, 2 * features, name="kv")(flat(y)), 2, -1)
        y = attend(c, q, *(heads_of(z, self.heads) for z in kv))
        return Dense(c, features, name="proj")(y.reshape(x.shape))


# -- Columns: networks whose tokens keep their number and width ------------------------------------


class TokenStem(nn.Module):
    """Patches as tokens, behind class tokens, with embeddings of their places."""

    c: Ctx
    width: int
    patch: int
    tokens: tuple[str, ...] = ("cls_token",)  # what stands before the patches
    positions: bool = True
    bias: bool = True
    epsilon: float | None = None  # of a LayerNorm after all; None: there is none

    @nn.compact
    def __call__(self, images: Array) -> Array:
        c, shape = self.c, cells(images, self.patch)
        proj = Conv(
            c, self.width, self.patch, self.patch, 0, bias=self.bias, name="proj",
            kernel_init=nn.initializers.lecun_normal(),
        )  # fmt: skip
        x = proj(images.astype(c.feature_dtype)).reshape(images.shape[0], -1, self.width)
        before = [Value(c, (1, 1, self.width), name=name)() for name in self.tokens]
        spread = [jnp.broadcast_to(t, (x.shape[0], 1, self.width)).astype(x.dtype) for t in before]
        x = jnp.concatenate([*spread, x], 1)
        if self.positions:
            x = PositionEmbedding(c, len(before), name="pos_embed")(x, shape)
        if self.epsilon is not None:
            x = LayerNorm(c, self.epsilon, name="norm")(x)
        return x


def quarters(depth: int) -> tuple[int, ...]:
    """Returns the depths of the four stages into which so many blocks are cut."""
    return tuple((i + 1) * depth // 4 - i * depth // 4 for i in range(4))


def column(
    c: Ctx,
    images: Array,
    *,
    patch: int,
    before: int,
    stem: Callable[[Array], Any],
    blocks: Sequence[Factory],
    pooled: Callable[[Array], Array],
    head: Callable[[Array], Array],
    tokens: Callable[[Any], Array] = lambda x: x,
) -> dict[str, Array]:
    """Returns the outputs of a network whose blocks all see the same tokens.

    The blocks are cut into four stages of equal depth; "stageN" has the patches as a grid [B, H, W,
    D], without class tokens. It is called in a compact method, with modules that have their names.

    Args:
      c: the context.
      images: normalised, [B, H, W, C].
      patch: pixels on the side of a patch.
      before: class tokens.
      stem: images -> what the blocks take.
      blocks: of all stages.
      pooled: tokens after the last block [B, T, D] -> [B, D], what the head sees.
      head: pre_logits -> logits.
      tokens: what the blocks return -> tokens [B, before + h * w, D].
    """
    shape = cells(images, patch)
    blocks, depths = iter(blocks), quarters(len(blocks))
    stages = [[next(blocks) for _ in range(depth)] for depth in depths]
    features = [tokens(x) for x in run_stages(c, stem(images), stages)]
    grids = [x[:, before:].reshape(x.shape[0], *shape, -1) for x in features]
    return outputs(c, grids, pooled(features[-1]).astype(c.head_dtype), head)


# -- Pyramids of windows: both Swin Transformers ---------------------------------------------------


def sizes_of(width: int, heads: int, third: int, drop_path: float) -> dict[str, object]:
    """Returns the arguments of a size: width, depths, heads and drop_path."""
    heads = tuple(heads * 2**i for i in range(4))
    return {"width": width, "depths": (2, 2, third, 2), "heads": heads, "drop_path": drop_path}


def shifted_windows(
    c: Ctx,
    images: Array,
    width: int,
    patch: int,
    stages: Sequence[Sequence[Factory]],
    head: Callable[[Array], Array],
) -> dict[str, Array]:
    """Returns the outputs of patches, stages and LayerNorm; see `forward`."""
    embed = Embedding(c, width, patch, patch, name="stem")
    return forward(
        c,
        images,
        stem=lambda x: embed(padded(x, patch)),
        stages=stages,
        neck=LayerNorm(c, name="neck"),
        head=head,
    )
