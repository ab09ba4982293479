"""MobileNet: depthwise separable convolutions.

Howard et al. 2017, MobileNets (https://arxiv.org/abs/1704.04861). `_x0_25` to `_x0_75` are width
multipliers; `_ssld` is the same network with weights distilled from a larger one.
"""

from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax

from jaxcls.models.layers import Classifier, ConvBN, forward, stages_of
from jaxcls.models.spec import Ctx, Spec

Array = jax.Array


class Separable(nn.Module):
    """3x3 depthwise and 1x1 convolution."""

    c: Ctx
    features: int
    stride: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        width = x.shape[-1]
        x = ConvBN(self.c, width, 3, self.stride, groups=width, act=nn.relu, name="conv1")(x)
        return ConvBN(self.c, self.features, act=nn.relu, name="conv2")(x)


class MobileNetV1(nn.Module):
    """Stem at stride 2, five stages, head."""

    residual: ClassVar[bool] = False  # nothing for `drop_path` to drop
    c: Ctx
    num_classes: int
    stages: tuple[tuple[int, ...], ...]  # features of each block, at scale 1
    scale: float = 1.0

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        c = self.c.replace(train=train)
        width = lambda features: int(features * self.scale)
        block = lambda i, j: partial(
            Separable, features=width(self.stages[i][j]), stride=2 if i and not j else 1
        )
        return forward(
            c,
            images,
            stem=ConvBN(c, width(32), 3, 2, act=nn.relu, name="stem"),
            stages=stages_of(map(len, self.stages), block),
            head=Classifier(c, self.num_classes, name="head"),
        )


STAGES = ((64,), (128, 128), (256, 256), (512,) * 6, (1024, 1024))
SPECS = {
    f"MobileNetV1{suffix}": Spec(MobileNetV1, {"stages": STAGES, "scale": scale})
    for suffix, scale in {
        "_x0_25": 0.25,
        "_x0_5": 0.5,
        "_x0_75": 0.75,
        "": 1.0,
    }.items()
}
SPECS["MobileNetV1_ssld"] = SPECS["MobileNetV1"].alias("MobileNetV1")
