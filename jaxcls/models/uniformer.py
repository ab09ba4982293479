"""UniFormer: blocks of depthwise convolutions in two stages, of attention in the two after them.

Li et al. 2022, UniFormer: Unifying convolution and self-attention for visual recognition
(https://arxiv.org/abs/2201.09450). `_plus` has overlapping convolutions in the stem and between
stages, `_dim64` heads of 64 features with it, `_ls` a factor for each channel of the attention's
branches.
"""

from functools import partial

import flax.linen as nn
import jax

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
from jaxcls.models.transformer import Block as Transformer
from jaxcls.models.transformer import LayerNorm, gelu

Array = jax.Array
Conv = partial(layers.Conv, bias=True)


class Embed(nn.Module):
    """A convolution without overlap and LayerNorm; `overlap`: 3x3 convolutions and BatchNorm.

    At stride 4 there are two of those, with half the features between them.
    """

    c: Ctx
    features: int
    stride: int
    overlap: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c, features, stride = self.c, self.features, self.stride
        if not self.overlap:
            x = Conv(c, features, stride, stride, 0, name="conv1")(x)
            return LayerNorm(c, name="norm1")(x)
        if stride == 4:
            x = Conv(c, features // 2, 3, 2, name="conv1")(x)
            x = gelu(BatchNorm(c, name="norm1")(x))
        last = 2 if stride == 4 else 1
        x = Conv(c, features, 3, 2, name=f"conv{last}")(x)
        return BatchNorm(c, name=f"norm{last}")(x)


class Local(nn.Module):
    """1x1, depthwise 5x5 and 1x1 convolutions, then an MLP, each after BatchNorm."""

    c: Ctx
    drop_path: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c, features = self.c, x.shape[-1]
        y = Conv(c, features, name="conv1")(BatchNorm(c, name="norm1")(x))
        y = Conv(c, features, 5, groups=features, name="attn")(y)
        y = Conv(c, features, name="conv2")(y)
        x += DropPath(c, self.drop_path, name="drop_path1")(y)
        y = gelu(Conv(c, 4 * features, name="fc1")(BatchNorm(c, name="norm2")(x)))
        return x + DropPath(c, self.drop_path, name="drop_path2")(Conv(c, features, name="fc2")(y))


class Global(nn.Module):
    """Attention and MLP of a grid's places."""

    c: Ctx
    drop_path: float
    head: int  # features
    gamma: float | None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape, features = x.shape, x.shape[-1]
        block = Transformer(
            self.c,
            features // self.head,
            4 * features,
            drop_path=self.drop_path,
            gamma=self.gamma,
            name="block",
        )
        return block(x.reshape(shape[0], -1, features)).reshape(shape)


class Block(nn.Module):
    """Places by a depthwise convolution, then local or global relations."""

    c: Ctx
    features: int
    embed: bool  # begins a stage, at half the size
    overlap: bool
    relations: partial

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c, features = self.c, self.features
        if self.embed:
            x = Embed(c, features, 2, self.overlap, name="embed")(x)
        x += Conv(c, features, 3, groups=features, name="pos_embed")(x)
        return self.relations(c, name="mix")(x)


class UniFormer(nn.Module):
    """Stem to a quarter of the size, two stages of each kind, BatchNorm, head."""

    c: Ctx
    num_classes: int
    depths: tuple[int, ...]
    widths: tuple[int, ...] = (64, 128, 320, 512)
    head_width: int = 64  # features of a head of the attention
    overlap: bool = False
    gamma: float | None = None  # first factor of each channel of the attention's branches
    last_drop_path: float = 0.1  # of the last block, unless the context says another

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        c = self.c.replace(train=train)
        rates = drop_path_rates(c, self.depths, own=self.last_drop_path)

        def block(i: int, j: int) -> partial:
            relations = partial(Local, drop_path=rates[i][j])
            if i > 1:
                relations = partial(
                    Global, drop_path=rates[i][j], head=self.head_width, gamma=self.gamma
                )
            return partial(
                Block,
                features=self.widths[i],
                embed=i > 0 and j == 0,
                overlap=self.overlap,
                relations=relations,
            )

        return forward(
            c,
            images if self.overlap else at_least(images, 2 ** (len(self.depths) + 1)),
            stem=Embed(c, self.widths[0], 4, self.overlap, name="stem"),
            stages=stages_of(self.depths, block),
            neck=BatchNorm(c, name="neck"),
            head=Classifier(c, self.num_classes, name="head"),
        )


PLUS = {"depths": (3, 5, 9, 3), "overlap": True}
BASE = {"depths": (5, 8, 20, 7), "last_drop_path": 0.3}
SPECS = {
    "UniFormer_small": Spec(UniFormer, {"depths": (3, 4, 8, 3)}),
    "UniFormer_small_plus": Spec(UniFormer, PLUS | {"head_width": 32}),
    "UniFormer_small_plus_dim64": Spec(UniFormer, PLUS),
    "UniFormer_base": Spec(UniFormer, BASE),
    "UniFormer_base_ls": Spec(UniFormer, BASE | {"gamma": 1e-6}),
}
