"""ResNeSt: a ResNet whose 3x3 convolution is in branches that attention weighs per channel.

Zhang et al. 2020, ResNeSt: Split-attention networks (https://arxiv.org/abs/2004.08955). `_fast`
halves the size before the 3x3 convolution rather than after it, and `_1s1x64d` has one branch, in
one group of 64 channels; the others have two.

As in PaddleClas, and unlike the authors' code, the means over 3x3 pixels that halve the size are at
the border over the pixels that are there. `original` is as the authors have it.
"""

import flax.linen as nn
import jax

from jaxcls.models.layers import (
    Classifier,
    Conv,
    ConvBN,
    DropPath,
    Shortcut,
    avg_pool,
    doubled,
    forward,
    resnet_stem,
)
from jaxcls.models.spec import Ctx, Spec

Array = jax.Array


class SplitAttention(nn.Module):
    """A 3x3 convolution with `radix` times the features, which are added up with weights.

    The weights of a channel's `radix` branches add up to 1; of one branch it is a gate in [0, 1].
    """

    c: Ctx
    features: int
    radix: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c, features, radix = self.c, self.features, self.radix
        x = ConvBN(c, features * radix, 3, groups=radix, act=nn.relu, name="conv1")(x)
        x = x.reshape(*x.shape[:3], radix, features)
        y = x.sum(3).mean((1, 2), keepdims=True)
        y = ConvBN(c, max(features * radix // 4, 32), act=nn.relu, name="conv2")(y)
        y = Conv(c, features * radix, bias=True, name="conv3")(y).reshape(-1, 1, 1, radix, features)
        gate = nn.softmax(y, axis=3) if radix > 1 else nn.sigmoid(y)
        return (x * gate).sum(3)


class Block(nn.Module):
    """1x1 convolution, split attention, 1x1 convolution with four times the width."""

    c: Ctx
    width: int
    stride: int
    project: bool
    drop_path: float
    radix: int
    pool_first: bool
    original: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = self.c

        def halve(x: Array, here: bool) -> Array:
            if self.stride == 1 or not here:
                return x
            return avg_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)), count_include_pad=self.original)

        y = ConvBN(c, self.width, act=nn.relu, name="conv1")(x)
        y = halve(y, self.pool_first)
        y = SplitAttention(c, self.width, self.radix, name="conv2")(y)
        y = halve(y, not self.pool_first)
        y = ConvBN(c, self.width * 4, name="conv3")(y)
        if self.project:
            x = Shortcut(c, self.width * 4, self.stride, mean=True, name="short")(x)
        return nn.relu(x + DropPath(c, self.drop_path, name="drop_path")(y))


class ResNeSt(nn.Module):
    """Stem, stages of doubling width, head."""

    c: Ctx
    num_classes: int
    depths: tuple[int, ...]
    width: int = 64
    stem_width: int = 128
    radix: int = 2  # branches
    pool_first: bool = False  # halve the size before the split attention
    original: bool = False  # as in the authors' code

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        c = self.c.replace(train=train)
        options = {"radix": self.radix, "pool_first": self.pool_first, "original": self.original}
        return forward(
            c,
            images,
            stem=resnet_stem(c, "conv3", self.stem_width),
            stages=doubled(c, Block, self.depths, self.width, **options),
            head=Classifier(c, self.num_classes, name="head"),
        )


FAST = {"radix": 1, "pool_first": True}
SPECS = {
    "ResNeSt50_fast_1s1x64d": Spec(ResNeSt, {"depths": (3, 4, 6, 3), "stem_width": 64, **FAST}),
    "ResNeSt50": Spec(ResNeSt, {"depths": (3, 4, 6, 3), "stem_width": 64}),
    "ResNeSt101": Spec(ResNeSt, {"depths": (3, 4, 23, 3)}, size=256),
    "ResNeSt200": Spec(ResNeSt, {"depths": (3, 24, 36, 3)}, size=320),
    "ResNeSt269": Spec(ResNeSt, {"depths": (3, 30, 48, 8)}, size=416),
}
