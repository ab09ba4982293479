"""ShuffleNetV2.

Ma et al. 2018, ShuffleNet V2 (https://arxiv.org/abs/1807.11164). `_x0_25` and `_x0_33` are
PaddleClas's, the other widths the paper's; `ShuffleNetV2` is `_x1_0`, its name today, and `_swish`
has swish in place of ReLU. As in PaddleClas, x2_0 has 244, 488 and 976 features, like the authors'
code; the paper's table begins with 224.
"""

from collections.abc import Callable
from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcls.models.layers import Classifier, ConvBN, Stem, forward, stages_of
from jaxcls.models.spec import Ctx, Spec

Array = jax.Array
Act = Callable[[Array], Array]


class Unit(nn.Module):
    """Half of the channels through three convolutions, then the halves interleaved.

    At stride 2 both halves are made from all channels, one of them by a shorter branch.
    """

    c: Ctx
    features: int
    stride: int
    act: Act

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c, half = self.c, self.features // 2
        if self.stride == 1:
            x, y = jnp.split(x, 2, axis=-1)
        else:
            x, y = Short(c, half, self.stride, self.act, name="short")(x), x
        y = ConvBN(c, half, act=self.act, name="conv1")(y)
        y = ConvBN(c, half, 3, self.stride, groups=half, name="conv2")(y)
        y = ConvBN(c, half, act=self.act, name="conv3")(y)
        return jnp.stack((x, y), -1).reshape(*y.shape[:-1], self.features)


class Short(nn.Module):
    """3x3 depthwise and 1x1 convolution."""

    c: Ctx
    features: int
    stride: int
    act: Act

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = ConvBN(self.c, x.shape[-1], 3, self.stride, groups=x.shape[-1], name="conv1")(x)
        return ConvBN(self.c, self.features, act=self.act, name="conv2")(x)


class ShuffleNetV2(nn.Module):
    """Stem, three stages, 1x1 convolution, head."""

    residual: ClassVar[bool] = False  # nothing for `drop_path` to drop
    c: Ctx
    num_classes: int
    width: int  # features of the first stage; each further one has twice as many
    neck: int  # features of the last convolution
    act: Act = nn.relu

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        c = self.c.replace(train=train)
        unit = lambda i, j: partial(
            Unit, features=self.width * 2**i, stride=1 if j else 2, act=self.act
        )
        return forward(
            c,
            images,
            stem=Stem(c, ((24, 3, 2),), act=self.act, name="stem"),
            stages=stages_of((4, 8, 4), unit),
            neck=ConvBN(c, self.neck, act=self.act, name="neck"),
            head=Classifier(c, self.num_classes, name="head"),
        )


SPECS = {
    "ShuffleNetV2_x0_25": Spec(ShuffleNetV2, {"width": 24, "neck": 512}),
    "ShuffleNetV2_x0_33": Spec(ShuffleNetV2, {"width": 32, "neck": 512}),
    "ShuffleNetV2_x0_5": Spec(ShuffleNetV2, {"width": 48, "neck": 1024}),
    "ShuffleNetV2": Spec(ShuffleNetV2, {"width": 116, "neck": 1024}),
    "ShuffleNetV2_x1_5": Spec(ShuffleNetV2, {"width": 176, "neck": 1024}),
    "ShuffleNetV2_x2_0": Spec(ShuffleNetV2, {"width": 244, "neck": 2048}),
    "ShuffleNetV2_swish": Spec(ShuffleNetV2, {"width": 116, "neck": 1024, "act": nn.swish}),
}
SPECS["ShuffleNetV2_x1_0"] = SPECS["ShuffleNetV2"].alias("ShuffleNetV2")
