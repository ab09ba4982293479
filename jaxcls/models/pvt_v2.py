"""PVTv2.

Wang et al. 2021, PVT v2 (https://arxiv.org/abs/2106.13797): attention to places that a convolution
has summarised, overlapping patches, and depthwise convolutions inside the MLPs that tell where a
place is. `_Linear` attends to 7 x 7 means whatever the size. "stageN" is after the stage's own
LayerNorm.
"""

from functools import partial

import flax.linen as nn
import jax

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
    Dense,
    Embedding,
    LayerNorm,
    ReducedAttention,
    beside,
    gelu,
    normal_02,
)

Array = jax.Array
EPSILON = 1e-6
SMALLEST = 29  # pixels, of which the coarsest attention has one place left


class ConvMLP(nn.Module):
    """MLP of a grid with a depthwise convolution inside."""

    c: Ctx
    hidden: int
    linear: bool  # a ReLU too

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = Dense(self.c, self.hidden, name="fc1")(x)
        y = nn.relu(y) if self.linear else y
        y = Conv(self.c, self.hidden, 3, groups=self.hidden, bias=True, name="dwconv")(y)
        return Dense(self.c, x.shape[-1], name="fc2")(gelu(y))


class Block(nn.Module):
    """Attention and MLP, each after a LayerNorm and beside a shortcut."""

    c: Ctx
    features: int
    heads: int
    hidden: int
    ratio: int
    linear: bool
    embed: bool  # patches first, at the beginning of a stage
    last: bool  # LayerNorm after it, at the end
    drop_path: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = self.c
        if self.embed:
            x = Embedding(c, self.features, 3, 2, 1, name="embed")(x)
        pooled = 7 if self.linear else None
        attention = ReducedAttention(c, self.heads, self.ratio, pooled, name="attn")
        mlp = ConvMLP(c, self.hidden, self.linear, name="mlp")
        x = beside(c, x, attention, mlp, drop_path=self.drop_path, epsilon=EPSILON)
        return LayerNorm(c, EPSILON, name="norm")(x) if self.last else x


class PVTv2(nn.Module):
    """Overlapping patches, four stages, mean, classifier."""

    c: Ctx
    num_classes: int
    depths: tuple[int, ...]
    widths: tuple[int, ...] = (64, 128, 320, 512)
    heads: tuple[int, ...] = (1, 2, 5, 8)
    mlp_ratios: tuple[int, ...] = (8, 8, 4, 4)
    ratios: tuple[int, ...] = (8, 4, 2, 1)
    linear: bool = False

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
            linear=self.linear,
            embed=i > 0 and not j,
            last=j == self.depths[i] - 1,
            drop_path=rates[i][j],
        )
        return forward(
            c,
            images if self.linear else at_least(images, SMALLEST),
            stem=Embedding(c, self.widths[0], 7, 4, 3, name="stem"),
            stages=stages_of(self.depths, block),
            head=Classifier(c, self.num_classes, kernel_init=normal_02, name="head"),
        )


DEPTHS = {
    "B0": (2, 2, 2, 2),
    "B1": (2, 2, 2, 2),
    "B2": (3, 4, 6, 3),
    "B3": (3, 4, 18, 3),
    "B4": (3, 8, 27, 3),
    "B5": (3, 6, 40, 3),
    "B2_Linear": (3, 4, 6, 3),
}
OTHER = {
    "B0": {"widths": (32, 64, 160, 256)},
    "B5": {"mlp_ratios": (4, 4, 4, 4)},
    "B2_Linear": {"linear": True},
}
SPECS = {f"PVT_V2_{n}": Spec(PVTv2, {"depths": d} | OTHER.get(n, {})) for n, d in DEPTHS.items()}
