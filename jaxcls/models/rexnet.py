"""ReXNet: inverted residuals whose width grows by the same amount with every block.

Han et al. 2020, Rethinking channel dimensions (https://arxiv.org/abs/2007.00992). `_1_0` to `_3_0`
are width multipliers. A block adds its input to the first of its features, of which it has at least
as many; between the depthwise convolution, which is linear, and ReLU6 there are gates that squeeze
to a twelfth, with BatchNorm.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcls.models.layers import (
    Classifier,
    Conv,
    ConvBN,
    DropPath,
    drop_path_rates,
    forward,
    stages_of,
)
from jaxcls.models.spec import Ctx, Spec

Array = jax.Array


class SqueezeExcite(nn.Module):
    """`layers.SqueezeExcite` with BatchNorm where it is squeezed."""

    c: Ctx
    squeezed: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = x.mean((1, 2), keepdims=True)
        y = ConvBN(self.c, self.squeezed, act=nn.relu, bias=True, name="conv1")(y)
        return x * nn.sigmoid(Conv(self.c, x.shape[-1], bias=True, name="conv2")(y))


class Block(nn.Module):
    """Expansion, depthwise convolution, gates, linear 1x1 convolution."""

    c: Ctx
    features: int
    expand: int
    stride: int
    se: bool
    drop_path: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c, y, width = self.c, x, x.shape[-1] * self.expand
        if self.expand > 1:
            y = ConvBN(c, width, act=nn.swish, name="conv1")(y)
        y = ConvBN(c, width, 3, self.stride, groups=width, name="conv2")(y)
        if self.se:
            y = SqueezeExcite(c, width // 12, name="se")(y)
        y = ConvBN(c, self.features, name="conv3")(nn.relu6(y))
        if self.stride == 1 and x.shape[-1] <= self.features:
            y = DropPath(c, self.drop_path, name="drop_path")(y)
            y += jnp.pad(x, ((0, 0),) * 3 + ((0, self.features - x.shape[-1]),))
        return y


class ReXNet(nn.Module):
    """Stem at stride 2, five stages, 1x1 convolution, head."""

    c: Ctx
    num_classes: int
    scale: float = 1.0
    depths: tuple[int, ...] = (1, 2, 2, 6, 5)

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        c = self.c.replace(train=train)
        rates = drop_path_rates(c, self.depths)
        grow = 180 / sum(self.depths)
        block = lambda i, j: partial(
            Block,
            features=round((16 + grow * (sum(self.depths[:i]) + j)) * self.scale),
            expand=6 if i else 1,
            stride=2 if i and not j else 1,
            se=i > 1,
            drop_path=rates[i][j],
        )
        return forward(
            c,
            images,
            stem=ConvBN(c, round(32 * self.scale), 3, 2, act=nn.swish, name="stem"),
            stages=stages_of(self.depths, block),
            neck=ConvBN(c, int(1280 * self.scale), act=nn.swish, name="neck"),
            head=Classifier(c, self.num_classes, dropout=0.2, name="head"),
        )


SPECS = {
    f"ReXNet_{str(scale).replace('.', '_')}": Spec(ReXNet, {"scale": scale})
    for scale in (1.0, 1.3, 1.5, 2.0, 3.0)
}
