"""PP-LCNetV2: PP-LCNet with branches in training, shortcuts and split 1x1 convolutions.

PaddleClas 2022 (its documentation of PP-LCNetV2; there is no paper). The 5x5 depthwise convolutions
of stage3 and stage4 are in training the sum of a 5x5, a 3x3 and, at stride 1, a 1x1, each with
BatchNorm; with `folded` they are one (`layers.fold`). Blocks of stage4 add their input; in stage3
the 1x1 convolution goes through half of the features, and there is squeeze-and-excitation. `_ssld`
is the same network with weights distilled from a larger one. As in PaddleClas the dropout scales in
evaluation (`Dropout.downscale`). Its networks also count, in training, the convolutions that the
branches are folded into: they do nothing there (113,152 of the base's 6,800,360 parameters) and are
not here.
"""

import dataclasses
from functools import partial

import flax.linen as nn
import jax

from jaxcls.models.layers import (
    BranchedConvBN,
    Classifier,
    ConvBN,
    DropPath,
    PooledNeck,
    SqueezeExcite,
    drop_path_rates,
    forward,
    round_to_8,
    stages_of,
)
from jaxcls.models.spec import Ctx, Spec

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Kind:
    """What the blocks of a stage are."""

    kernel: int
    split: bool = False  # the 1x1 convolution into two, through half of the features
    branches: bool = False  # of the depthwise convolution, in training
    se: bool = False
    short: bool = False  # add the input where the shapes allow it


class Block(nn.Module):
    """Depthwise and 1x1 convolution."""

    c: Ctx
    features: int
    stride: int
    kind: Kind
    drop_path: float = 0.0

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c, kind, width, y = self.c, self.kind, x.shape[-1], x
        if kind.branches:
            kernels = tuple(k for k in range(kind.kernel, 0, -2) if k > 1 or self.stride == 1)
            y = BranchedConvBN(c, width, kernels, self.stride, width, name="conv1")(y)
        else:
            y = ConvBN(c, width, kind.kernel, self.stride, groups=width, name="conv1")(y)
        y = nn.relu(y)
        if kind.se:
            y = SqueezeExcite(c, width // 4, name="se")(y)
        if kind.split:
            y = ConvBN(c, self.features // 2, act=nn.relu, name="conv2")(y)
        y = ConvBN(c, self.features, act=nn.relu, name=f"conv{2 + kind.split}")(y)
        if kind.short and x.shape == y.shape:
            y = x + DropPath(c, self.drop_path, name="drop_path")(y)
        return y


class Stem(nn.Module):
    """3x3 convolution at stride 2 and a block."""

    c: Ctx
    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = ConvBN(self.c, self.features // 2, 3, 2, act=nn.relu, name="conv1")(x)
        return Block(self.c, self.features, 1, Kind(3), name="block")(x)


class PPLCNetV2(nn.Module):
    """Stem, four stages, 1x1 convolution after the mean, head."""

    c: Ctx
    num_classes: int
    depths: tuple[int, ...]
    scale: float = 1.0
    last: int = 1280  # features before the classifier

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        c = self.c.replace(train=train)
        rates = drop_path_rates(c, self.depths)
        block = lambda i, j: partial(
            Block,
            features=round_to_8(128 * 2**i * self.scale),
            stride=1 if j else 2,
            kind=KINDS[i],
            drop_path=rates[i][j],
        )
        return forward(
            c,
            images,
            stem=Stem(c, round_to_8(64 * self.scale), name="stem"),
            stages=stages_of(self.depths, block),
            neck=PooledNeck(c, None, self.last, nn.relu, name="neck"),
            head=Classifier(c, self.num_classes, dropout=0.2, downscale=True, name="head"),
        )


KINDS = (
    Kind(3),
    Kind(3),
    Kind(5, split=True, branches=True, se=True),
    Kind(5, branches=True, short=True),
)
SPECS = {
    f"PPLCNetV2_{size}": Spec(PPLCNetV2, {"depths": depths, "scale": scale})
    for size, depths, scale in (
        ("small", (2, 2, 4, 2), 0.75),
        ("base", (2, 2, 6, 2), 1.0),
        ("large", (2, 2, 8, 2), 1.25),
    )
}
SPECS["PPLCNetV2_base_ssld"] = SPECS["PPLCNetV2_base"].alias("PPLCNetV2_base")
