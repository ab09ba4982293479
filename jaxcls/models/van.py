"""VAN: attention that is large depthwise convolutions, each pixel's features times what they give.

Guo et al. 2022, Visual attention network (https://arxiv.org/abs/2202.09741). The LayerNorm that
ends a stage there begins the next one here, or is the neck.
"""

from functools import partial

import flax.linen as nn
import jax

from jaxcls.models import layers
from jaxcls.models.layers import (
    BatchNorm,
    Classifier,
    DropPath,
    drop_path_rates,
    forward,
    stages_of,
)
from jaxcls.models.spec import Ctx, Spec
from jaxcls.models.transformer import LayerNorm, LayerScale, gelu

Array = jax.Array
Conv = partial(layers.Conv, bias=True)


class Embed(nn.Module):
    """LayerNorm, but for images, and an overlapping convolution with BatchNorm."""

    c: Ctx
    features: int
    kernel: int = 3
    stride: int = 2
    norm: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if self.norm:
            x = LayerNorm(self.c, 1e-6, name="norm")(x)
        x = Conv(self.c, self.features, self.kernel, self.stride, name="proj")(x)
        return BatchNorm(self.c, name="bn")(x)


class Attention(nn.Module):
    """1x1 convolution, features times 5x5, dilated 7x7 and 1x1 convolutions of them, 1x1."""

    c: Ctx

    @nn.compact
    def __call__(self, x: Array) -> Array:
        conv = partial(Conv, self.c, x.shape[-1])
        depthwise = partial(conv, groups=x.shape[-1])
        y = gelu(conv(name="proj_1")(x))
        z = depthwise(kernel=5, name="conv0")(y)
        z = depthwise(kernel=7, dilation=3, name="conv_spatial")(z)
        z = conv(name="conv1")(z)
        return x + conv(name="proj_2")(y * z)


class MLP(nn.Module):
    """1x1 convolutions with a depthwise 3x3 between them."""

    c: Ctx
    hidden: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = Conv(self.c, self.hidden, name="fc1")(x)
        y = Conv(self.c, self.hidden, 3, groups=self.hidden, name="dwconv")(y)
        return Conv(self.c, x.shape[-1], name="fc2")(gelu(y))


class Block(nn.Module):
    """Attention and MLP, each after BatchNorm and with a factor for each channel."""

    c: Ctx
    features: int
    ratio: int  # hidden features of the MLP, times the features
    embed: bool  # begins a stage
    drop_path: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = self.c
        if self.embed:
            x = Embed(c, self.features, name="embed")(x)
        branches = (Attention(c, name="attn"), MLP(c, self.ratio * self.features, name="mlp"))
        for i, branch in enumerate(branches, 1):
            y = branch(BatchNorm(c, name=f"norm{i}")(x))
            y = LayerScale(c, 1e-2, name=f"layer_scale_{i}")(y)
            x += DropPath(c, self.drop_path, name=f"drop_path{i}")(y)
        return x


class VAN(nn.Module):
    """Stem to a quarter of the size, stages, LayerNorm, head."""

    c: Ctx
    num_classes: int
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    ratios: tuple[int, ...] = (8, 8, 4, 4)

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        c = self.c.replace(train=train)
        rates = drop_path_rates(c, self.depths, own=0.1)
        block = lambda i, j: partial(
            Block,
            features=self.widths[i],
            ratio=self.ratios[i],
            embed=i > 0 and j == 0,
            drop_path=rates[i][j],
        )
        return forward(
            c,
            images,
            stem=Embed(c, self.widths[0], 7, 4, norm=False, name="stem"),
            stages=stages_of(self.depths, block),
            neck=LayerNorm(c, 1e-6, name="neck"),
            head=Classifier(c, self.num_classes, name="head"),
        )


WIDE = (64, 128, 320, 512)
SPECS = {
    "VAN_B0": Spec(VAN, {"widths": (32, 64, 160, 256), "depths": (3, 3, 5, 2)}),
    "VAN_B1": Spec(VAN, {"widths": WIDE, "depths": (2, 2, 4, 2)}),
    "VAN_B2": Spec(VAN, {"widths": WIDE, "depths": (3, 3, 12, 3)}),
    "VAN_B3": Spec(VAN, {"widths": WIDE, "depths": (3, 5, 27, 3)}),
}
