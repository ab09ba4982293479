"""Xception: convolutions split into a channel-wise 3x3 and a 1x1.

Chollet 2016, Xception (https://arxiv.org/abs/1610.02357), at the depths 41, 65 and 71 of Chen et
al. 2018, Encoder-decoder with atrous separable convolution (https://arxiv.org/abs/1802.02611).

`_deeplab` are the latter's: three separable convolutions in every block, the last with the stride,
and rate 2 in the last block, with a ReLU after each of its convolutions. The others are closer to
Chollet's: two in the blocks that halve the size, which a pool does. As in PaddleClas these have the
1x1 convolution first, a BatchNorm after either and none in the shortcut, and the dropout of
`_deeplab` comes before the mean over the image and scales in evaluation (`Dropout.downscale`).
`dilation` is the rate of the last block of `_deeplab`: 1 for classification without segmentation.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax

from jaxcls.models.layers import (
    Classifier,
    Conv,
    ConvBN,
    Dropout,
    DropPath,
    Stem,
    drop_path_rates,
    forward,
    max_pool,
)
from jaxcls.models.spec import Ctx, Spec

Array = jax.Array


class Separable(nn.Module):
    """Channel-wise 3x3 and 1x1 convolution, each with BatchNorm; `_deeplab` in this order."""

    c: Ctx
    features: int
    deeplab: bool
    stride: int = 1
    dilation: int = 1
    act: Callable[[Array], Array] | None = None  # after each convolution

    @nn.compact
    def __call__(self, x: Array) -> Array:
        channels = x.shape[-1] if self.deeplab else self.features
        depthwise = ConvBN(
            self.c,
            channels,
            3,
            self.stride,
            groups=channels,
            act=self.act,
            dilation=self.dilation,
            name="depthwise",
        )
        pointwise = ConvBN(self.c, self.features, act=self.act, name="pointwise")
        return pointwise(depthwise(x)) if self.deeplab else depthwise(pointwise(x))


class Block(nn.Module):
    """Separable convolutions, each after a ReLU, beside a shortcut."""

    c: Ctx
    widths: tuple[int, ...]  # of the separable convolutions
    stride: int | None  # None: the shortcut is the input itself
    deeplab: bool
    drop_path: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c, y = self.c, x
        for i, width in enumerate(self.widths, 1):
            last = i == len(self.widths)
            stride = self.stride if self.deeplab and last and self.stride else 1
            y = Separable(c, width, self.deeplab, stride, name=f"conv{i}")(nn.relu(y))
        if self.stride is not None:
            if self.deeplab:
                x = ConvBN(c, self.widths[-1], stride=self.stride, name="short")(x)
            else:
                x = Conv(c, self.widths[-1], stride=self.stride, name="short")(x)
                y = max_pool(y, 3, self.stride, 1)
        return x + DropPath(c, self.drop_path, name="drop_path")(y)


class Tail(nn.Module):
    """The last separable convolutions, without a shortcut."""

    c: Ctx
    deeplab: bool
    dilation: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if self.deeplab:
            for i, width in enumerate((1536, 1536, 2048), 1):
                separable = Separable(
                    self.c, width, True, dilation=self.dilation, act=nn.relu, name=f"conv{i}"
                )
                x = separable(x)
        else:
            for i, width in enumerate((1536, 2048), 1):
                x = nn.relu(Separable(self.c, width, False, name=f"conv{i}")(x))
        return x


class Xception(nn.Module):
    """Stem; entry flow in stages 1 to 3, middle flow in stage 3, exit flow in stage 4; head."""

    c: Ctx
    num_classes: int
    entry: tuple[tuple[int, ...], ...]  # widths of the blocks of each stage
    middle: int  # blocks
    deeplab: bool = False
    dilation: int = 2  # of the tail, with `deeplab`

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        c = self.c.replace(train=train)
        convs = 3 if self.deeplab else 2
        shapes = [  # widths and stride of each block
            [((width,) * convs, 1 if i else 2) for i, width in enumerate(widths)]
            for widths in self.entry
        ]
        shapes[-1] += [((728,) * 3, None)] * self.middle
        shapes.append([((728, 1024, 1024)[:convs], 2)])
        rates = drop_path_rates(c, [len(blocks) for blocks in shapes])
        stages = [
            [
                partial(Block, widths=widths, stride=stride, deeplab=self.deeplab, drop_path=rate)
                for (widths, stride), rate in zip(*of_stage, strict=True)
            ]
            for of_stage in zip(shapes, rates, strict=True)
        ]
        stages[-1].append(partial(Tail, deeplab=self.deeplab, dilation=self.dilation))
        neck = Dropout(c, 0.5, downscale=True, name="dropout") if self.deeplab else None
        c = c.replace(dropout=0.0) if self.deeplab else c  # there is no second one in the head
        return forward(
            c,
            images,
            stem=Stem(c, ((32, 3, 2), (64, 3, 1)), pool=False, name="stem"),
            stages=stages,
            neck=neck,
            head=Classifier(c, self.num_classes, name="head"),
        )


ENTRY = ((128,), (256,), (728,))
DEEPLAB = {"deeplab": True, "bn_epsilon": 1e-3, "bn_momentum": 0.99}
SPECS = {
    "Xception41": Spec(Xception, {"entry": ENTRY, "middle": 8}, 299),
    "Xception65": Spec(Xception, {"entry": ENTRY, "middle": 16}, 299),
    "Xception71": Spec(Xception, {"entry": ((128, 256), (256, 728), (728,)), "middle": 16}, 299),
    "Xception41_deeplab": Spec(Xception, {"entry": ENTRY, "middle": 8, **DEEPLAB}, 299),
    "Xception65_deeplab": Spec(Xception, {"entry": ENTRY, "middle": 16, **DEEPLAB}, 299),
}
