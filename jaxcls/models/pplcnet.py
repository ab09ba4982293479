"""PP-LCNet: depthwise and 1x1 convolutions only, made for CPUs.

Cui et al. 2021, PP-LCNet (https://arxiv.org/abs/2109.15099). `_x0_25` to `_x2_5` are width
multipliers; `_ssld` is the same network with weights distilled from a larger one. Squeeze-and-
excitation and 5x5 kernels are where the features are smallest; the last convolution comes after
the mean over the image. As in PaddleClas that convolution has no bias (`bias=True` for timm's) and
the dropout scales in evaluation (`Dropout.downscale`).
"""

import dataclasses
from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax

from jaxcls.models.layers import (
    Classifier,
    ConvBN,
    PooledNeck,
    SqueezeExcite,
    forward,
    round_to_8,
)
from jaxcls.models.spec import Ctx, Spec

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Row:
    """`repeats` blocks, the first with the stride; features are those at scale 1."""

    kernel: int
    features: int
    repeats: int = 1
    stride: int = 1
    se: bool = False


class Block(nn.Module):
    """Depthwise and 1x1 convolution."""

    c: Ctx
    features: int
    kernel: int
    stride: int
    se: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c, width = self.c, x.shape[-1]
        x = ConvBN(
            c, width, self.kernel, self.stride, groups=width, act=nn.hard_swish, name="conv1"
        )(x)
        if self.se:
            x = SqueezeExcite(c, width // 4, gate=nn.hard_sigmoid, name="se")(x)
        return ConvBN(c, self.features, act=nn.hard_swish, name="conv2")(x)


class PPLCNet(nn.Module):
    """Stem at stride 2, five stages, 1x1 convolution after the mean, head."""

    residual: ClassVar[bool] = False  # nothing for `drop_path` to drop
    c: Ctx
    num_classes: int
    stages: tuple[tuple[Row, ...], ...]
    scale: float = 1.0
    last: int = 1280  # features before the classifier
    bias: bool = False  # of the convolution that makes them

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        c = self.c.replace(train=train)
        width = lambda features: round_to_8(features * self.scale)
        stages = [
            [
                partial(
                    Block,
                    features=width(row.features),
                    kernel=row.kernel,
                    stride=1 if i else row.stride,
                    se=row.se,
                )
                for row in rows
                for i in range(row.repeats)
            ]
            for rows in self.stages
        ]
        return forward(
            c,
            images,
            stem=ConvBN(c, width(16), 3, 2, act=nn.hard_swish, name="stem"),
            stages=stages,
            neck=PooledNeck(c, None, self.last, nn.hard_swish, self.bias, name="neck"),
            head=Classifier(c, self.num_classes, dropout=0.2, downscale=True, name="head"),
        )


STAGES = (
    (Row(3, 32),),
    (Row(3, 64, repeats=2, stride=2),),
    (Row(3, 128, repeats=2, stride=2),),
    (Row(3, 256, stride=2), Row(5, 256, repeats=5)),
    (Row(5, 512, repeats=2, stride=2, se=True),),
)
SPECS = {
    f"PPLCNet_x{str(scale).replace('.', '_')}": Spec(PPLCNet, {"stages": STAGES, "scale": scale})
    for scale in (0.25, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5)
}
SPECS |= {
    f"{name}_ssld": SPECS[name].alias(name)
    for name in ("PPLCNet_x0_5", "PPLCNet_x1_0", "PPLCNet_x2_5")
}
