"""ConvNeXt: a ResNet with what Swin Transformers have in place of what it had.

Liu et al. 2022, A ConvNet for the 2020s (https://arxiv.org/abs/2201.03545): large depthwise
convolutions, LayerNorm, an inverted bottleneck with GELU, convolutions without overlap that halve
the size. Stochastic depth is 0.1 in all, as PaddleClas trained them.
"""

from functools import partial

import flax.linen as nn
import jax

from jaxcls.models.layers import (
    Classifier,
    Conv,
    DropPath,
    at_least,
    drop_path_rates,
    forward,
    global_mean,
    stages_of,
)
from jaxcls.models.spec import Ctx, Spec
from jaxcls.models.transformer import Dense, LayerNorm, LayerScale, gelu, normal_02

Array = jax.Array
EPSILON = 1e-6


class Block(nn.Module):
    """7x7 depthwise convolution, LayerNorm and two linear layers, after halving where wanted."""

    c: Ctx
    features: int
    down: bool
    drop_path: float
    gamma: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c, features = self.c, self.features
        conv = partial(Conv, c, features, bias=True, kernel_init=normal_02)
        if self.down:
            x = LayerNorm(c, EPSILON, name="down_norm")(x)
            x = conv(2, 2, 0, name="down")(x)
        y = conv(7, groups=features, name="dwconv")(x)
        y = LayerNorm(c, EPSILON, name="norm")(y)
        y = gelu(Dense(c, 4 * features, name="fc1")(y))
        y = Dense(c, features, name="fc2")(y)
        y = LayerScale(c, self.gamma, name="gamma")(y)
        return x + DropPath(c, self.drop_path, name="drop_path")(y)


class Stem(nn.Module):
    """4x4 patches and LayerNorm."""

    c: Ctx
    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        conv = Conv(self.c, self.features, 4, 4, 0, bias=True, kernel_init=normal_02, name="proj")
        return LayerNorm(self.c, EPSILON, name="norm")(conv(x))


class Neck(nn.Module):
    """Mean over the image and LayerNorm."""

    c: Ctx

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return LayerNorm(self.c, EPSILON, name="norm")(global_mean(x, self.c))


class ConvNeXt(nn.Module):
    """Stem, stages of doubling width, LayerNorm, head."""

    c: Ctx
    num_classes: int
    depths: tuple[int, ...] = (3, 3, 27, 3)
    width: int = 96
    gamma: float = 1e-6  # first factor of each channel

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        c = self.c.replace(train=train)
        rates = drop_path_rates(c, self.depths, own=0.1)
        block = lambda i, j: partial(
            Block,
            features=self.width * 2**i,
            down=i > 0 and j == 0,
            drop_path=rates[i][j],
            gamma=self.gamma,
        )
        return forward(
            c,
            at_least(images, 2 ** (len(self.depths) + 1)),
            stem=Stem(c, self.width, name="stem"),
            stages=stages_of(self.depths, block),
            neck=Neck(c, name="neck"),
            head=Classifier(c, self.num_classes, name="head"),
        )


SPECS = {
    "ConvNeXt_tiny": Spec(ConvNeXt, {"depths": (3, 3, 9, 3)}),
    "ConvNeXt_small": Spec(ConvNeXt),
    "ConvNeXt_base_224": Spec(ConvNeXt, {"width": 128}),
    "ConvNeXt_base_384": Spec(ConvNeXt, {"width": 128}, size=384),
    "ConvNeXt_large_224": Spec(ConvNeXt, {"width": 192}),
    "ConvNeXt_large_384": Spec(ConvNeXt, {"width": 192}, size=384),
}
