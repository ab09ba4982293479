"""ESNet: ShuffleNetV2 with squeeze-and-excitation and what GhostNet does in its blocks.

Yu et al. 2021, PP-PicoDet (https://arxiv.org/abs/2111.00902), whose backbone it is. `_x0_25` to
`_x1_0` are width multipliers. The last convolution comes after the mean over the image, without a
bias; as in PaddleClas the dropout scales in evaluation (`Dropout.downscale`).
"""

from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcls.models.layers import (
    Classifier,
    ConvBN,
    PooledNeck,
    SqueezeExcite,
    Stem,
    forward,
    round_to_8,
    stages_of,
)
from jaxcls.models.spec import Ctx, Spec

Array = jax.Array


class Ghost(nn.Module):
    """Half of the channels through convolutions, beside their own 3x3; then the halves interleaved.

    1x1 convolution; it and a 3x3 depthwise one of it; squeeze-and-excitation of both; 1x1.
    """

    c: Ctx
    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c, half = self.c, self.features // 2
        x, y = jnp.split(x, 2, axis=-1)
        y = ConvBN(c, half, act=nn.hard_swish, name="conv1")(y)
        y = jnp.concatenate([y, ConvBN(c, half, 3, groups=half, name="conv2")(y)], -1)
        y = SqueezeExcite(c, self.features // 4, gate=nn.hard_sigmoid, name="se")(y)
        y = ConvBN(c, half, act=nn.hard_swish, name="conv3")(y)
        return jnp.stack((x, y), -1).reshape(*y.shape[:-1], self.features)


class Halve(nn.Module):
    """Two branches at stride 2, then a depthwise and a 1x1 convolution of both."""

    c: Ctx
    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c, half = self.c, self.features // 2
        y = ConvBN(c, half, act=nn.hard_swish, name="conv1")(x)
        y = ConvBN(c, half, 3, 2, groups=half, name="conv2")(y)
        y = SqueezeExcite(c, half // 4, gate=nn.hard_sigmoid, name="se")(y)
        y = ConvBN(c, half, act=nn.hard_swish, name="conv3")(y)
        x = jnp.concatenate([Short(c, half, name="short")(x), y], -1)
        x = ConvBN(c, self.features, 3, groups=self.features, act=nn.hard_swish, name="conv4")(x)
        return ConvBN(c, self.features, act=nn.hard_swish, name="conv5")(x)


class Short(nn.Module):
    """3x3 depthwise convolution at stride 2 and 1x1 convolution."""

    c: Ctx
    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = ConvBN(self.c, x.shape[-1], 3, 2, groups=x.shape[-1], name="conv1")(x)
        return ConvBN(self.c, self.features, act=nn.hard_swish, name="conv2")(x)


class ESNet(nn.Module):
    """Stem with a pool, three stages, 1x1 convolutions before and after the mean, head."""

    residual: ClassVar[bool] = False  # nothing for `drop_path` to drop
    c: Ctx
    num_classes: int
    scale: float = 1.0
    depths: tuple[int, ...] = (3, 7, 3)
    last: int = 1280  # features before the classifier

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        c = self.c.replace(train=train)
        block = lambda i, j: partial(
            Ghost if j else Halve, features=round_to_8(116 * 2**i * self.scale)
        )
        return forward(
            c,
            images,
            stem=Stem(c, ((24, 3, 2),), act=nn.hard_swish, name="stem"),
            stages=stages_of(self.depths, block),
            neck=PooledNeck(c, 1024, self.last, nn.hard_swish, name="neck"),
            head=Classifier(c, self.num_classes, dropout=0.2, downscale=True, name="head"),
        )


SPECS = {
    f"ESNet_x{str(scale).replace('.', '_')}": Spec(ESNet, {"scale": scale})
    for scale in (0.25, 0.5, 0.75, 1.0)
}
