"""MobileNetV4: inverted residuals with a depthwise convolution before, between, both or neither.

Qin et al. 2024, MobileNetV4 (https://arxiv.org/abs/2404.10518). The first stages are plain
convolutions (small) or a 3x3 expansion (medium, large); the last convolution comes after the mean
over the image. The hybrid ones have attention between, whose heads share keys and values (Shazeer
2019, https://arxiv.org/abs/1911.02150). As in PaddleClas, its logits are divided by the root of all
heads' width; with `by_head` by that of one, as in timm. Unlike in PaddleClas, stochastic depth
drops residual branches alone, not plain convolutions, and the dropout before the classifier is one.
"""

import dataclasses
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcls.models.layers import (
    BatchNorm,
    Classifier,
    Conv,
    ConvBN,
    DropPath,
    PooledNeck,
    drop_path_rates,
    forward,
)
from jaxcls.models.spec import Ctx, Spec
from jaxcls.models.transformer import LayerScale, attend, gelu

Array = jax.Array
Act = Callable[[Array], Array]


@dataclasses.dataclass(frozen=True)
class Plain:
    """A convolution."""

    features: int
    kernel: int
    stride: int = 1


@dataclasses.dataclass(frozen=True)
class Fused:
    """A 3x3 expansion and a linear 1x1 convolution."""

    features: int
    expanded: int
    stride: int = 1


@dataclasses.dataclass(frozen=True)
class Universal:
    """An inverted residual; a depthwise kernel of 0 is none. The second one has the stride."""

    features: int
    expanded: int
    first: int
    second: int
    stride: int = 1


@dataclasses.dataclass(frozen=True)
class Shared:
    """Attention of heads of a width, to keys and values that they share, of every other place."""

    features: int
    heads: int
    width: int
    stride: int = 1  # of keys and values


class FusedBlock(nn.Module):
    """See `Fused`."""

    c: Ctx
    row: Fused
    act: Act
    drop_path: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c, row = self.c, self.row
        y = ConvBN(c, row.expanded, 3, row.stride, act=self.act, name="conv1")(x)
        y = ConvBN(c, row.features, name="conv2")(y)
        if row.stride == 1 and x.shape == y.shape:
            y = x + DropPath(c, self.drop_path, name="drop_path")(y)
        return y


class UniversalBlock(nn.Module):
    """See `Universal`."""

    c: Ctx
    row: Universal
    act: Act
    drop_path: float
    layer_scale: float | None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c, row, act, y = self.c, self.row, self.act, x
        width, inner = x.shape[-1], row.expanded
        if row.first:
            y = ConvBN(c, width, row.first, groups=width, name="start")(y)
        y = ConvBN(c, inner, act=act, name="conv1")(y)
        if row.second:
            y = ConvBN(c, inner, row.second, row.stride, groups=inner, act=act, name="conv2")(y)
        y = ConvBN(c, row.features, name="conv3")(y)
        if self.layer_scale is not None:
            y = LayerScale(c, self.layer_scale, name="scale")(y)
        if row.stride == 1 and x.shape == y.shape:
            y = x + DropPath(c, self.drop_path, name="drop_path")(y)
        return y


class SharedBlock(nn.Module):
    """See `Shared`; added to what it is of."""

    c: Ctx
    row: Shared
    drop_path: float
    layer_scale: float | None
    by_head: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c, row, depth = self.c, self.row, x.shape[-1]
        y = BatchNorm(c, name="norm")(x)
        q = Conv(c, row.heads * row.width, name="query")(y)
        q = q.reshape(*q.shape[:1], -1, row.heads, row.width)

        def shared(name: str) -> Array:
            z = y
            if row.stride > 1:
                z = ConvBN(c, depth, 3, row.stride, groups=depth, name=f"{name}_down")(z)
            z = Conv(c, row.width, name=name)(z)
            z = z.reshape(*z.shape[:1], -1, 1, row.width)
            return jnp.broadcast_to(z, (*z.shape[:2], row.heads, row.width))

        scale = (row.width * (1 if self.by_head else row.heads)) ** -0.5
        y = attend(c, q, shared("key"), shared("value"), scale=scale)
        y = Conv(c, row.features, name="proj")(y.reshape(*x.shape[:3], row.heads * row.width))
        if self.layer_scale is not None:
            y = LayerScale(c, self.layer_scale, name="scale")(y)
        return x + DropPath(c, self.drop_path, name="drop_path")(y)


Row = Plain | Fused | Universal | Shared


class MobileNetV4(nn.Module):
    """Stem at stride 2, four stages, 1x1 convolutions before and after the mean, head."""

    c: Ctx
    num_classes: int
    stages: tuple[tuple[Row, ...], ...]
    stem: int = 32
    last: int = 1280  # features before the classifier
    act: Act = nn.relu
    layer_scale: float | None = None  # how it begins; None: there is none
    by_head: bool = False  # attention's logits are divided by the root of the width of a head

    def block(self, row: Row, drop_path: float) -> Callable[..., nn.Module]:
        """Returns what makes the block of a row."""
        if isinstance(row, Plain):
            kernel, stride = row.kernel, row.stride
            return partial(
                ConvBN, features=row.features, kernel=kernel, stride=stride, act=self.act
            )
        if isinstance(row, Fused):
            return partial(FusedBlock, row=row, act=self.act, drop_path=drop_path)
        shared = {"row": row, "drop_path": drop_path, "layer_scale": self.layer_scale}
        if isinstance(row, Shared):
            return partial(SharedBlock, **shared, by_head=self.by_head)
        return partial(UniversalBlock, **shared, act=self.act)

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        c = self.c.replace(train=train)
        all_rates = drop_path_rates(c, [len(rows) for rows in self.stages])
        stages = [
            [self.block(row, rate) for row, rate in zip(rows, rates, strict=True)]
            for rows, rates in zip(self.stages, all_rates, strict=True)
        ]
        return forward(
            c,
            images,
            stem=ConvBN(c, self.stem, 3, 2, act=self.act, name="stem"),
            stages=stages,
            neck=PooledNeck(c, 960, self.last, self.act, bn=True, name="neck"),
            head=Classifier(c, self.num_classes, name="head"),
        )


def universal(features: int, *rows: tuple[int, int, int] | Shared) -> tuple[Row, ...]:
    """Returns a stage's blocks: features inside and depthwise kernels of each, or attention."""
    strides = (2,) + (1,) * (len(rows) - 1)
    return tuple(
        row if isinstance(row, Shared) else Universal(features, *row, stride)
        for row, stride in zip(rows, strides)
    )


SMALL = (
    (Plain(32, 3, 2), Plain(32, 1)),
    (Plain(96, 3, 2), Plain(64, 1)),
    universal(96, (192, 5, 5), *((192, 0, 3),) * 4, (384, 3, 0)),
    universal(128, (576, 3, 3), (512, 5, 5), (512, 0, 5), (384, 0, 5), *((512, 0, 3),) * 2),
)
MEDIUM = (
    (Fused(48, 128, 2),),
    universal(80, (192, 3, 5), (160, 3, 3)),
    universal(
        160,
        (480, 3, 5),
        (640, 3, 3),
        (640, 3, 3),
        (640, 3, 5),
        (640, 3, 3),
        (640, 3, 0),
        (320, 0, 0),
        (640, 3, 0),
    ),
    universal(
        256,
        (960, 5, 5),
        (1024, 5, 5),
        (1024, 3, 5),
        (1024, 3, 5),
        (1024, 0, 0),
        (1024, 3, 0),
        (512, 3, 5),
        (1024, 5, 5),
        (1024, 0, 0),
        (1024, 0, 0),
        (512, 5, 0),
    ),
)
LARGE = (
    (Fused(48, 96, 2),),
    universal(96, (192, 3, 5), (384, 3, 3)),
    universal(
        192,
        (384, 3, 5),
        *((768, 3, 3),) * 3,
        (768, 3, 5),
        *((768, 5, 3),) * 5,
        (768, 3, 0),
    ),
    universal(
        512,
        (768, 5, 5),
        *((2048, 5, 5),) * 3,
        (2048, 5, 0),
        (2048, 5, 3),
        *((2048, 5, 0),) * 2,
        (2048, 5, 3),
        (2048, 5, 5),
        *((2048, 5, 0),) * 3,
    ),
)
M2, M1 = Shared(160, 4, 64, 2), Shared(256, 4, 64)
HYBRID_MEDIUM = (
    *MEDIUM[:2],
    universal(
        160,
        (480, 3, 5),
        (320, 0, 0),
        (640, 3, 3),
        (640, 3, 5),
        *(M2, (640, 3, 3), M2, (640, 3, 0)) * 2,
    ),
    universal(
        256,
        (960, 5, 5),
        (1024, 5, 5),
        *((1024, 3, 5),) * 2,
        (512, 0, 0),
        (512, 3, 5),
        (512, 0, 0),
        (1024, 0, 0),
        *(M1, (1024, 3, 0), M1, (1024, 5, 5)),
        *(M1, (1024, 5, 0)) * 2,
    ),
)
L2, L1 = Shared(192, 8, 48, 2), Shared(512, 8, 64)
HYBRID_LARGE = (
    *LARGE[:2],
    universal(
        192,
        (384, 3, 5),
        *((768, 3, 3),) * 3,
        (768, 3, 5),
        *((768, 5, 3),) * 2,
        *(L2, (768, 5, 3)) * 3,
        *(L2, (768, 3, 0)),
    ),
    universal(
        512,
        (768, 5, 5),
        *((2048, 5, 5),) * 3,
        (2048, 5, 0),
        (2048, 5, 3),
        *((2048, 5, 0),) * 2,
        (2048, 5, 3),
        (2048, 5, 5),
        *(L1, (2048, 5, 0)) * 4,
    ),
)
HYBRID = {"layer_scale": 1e-5}
SPECS = {
    "MobileNetV4_conv_small": Spec(MobileNetV4, {"stages": SMALL}, 256),
    "MobileNetV4_conv_medium": Spec(MobileNetV4, {"stages": MEDIUM}, 320),
    "MobileNetV4_conv_large": Spec(MobileNetV4, {"stages": LARGE, "stem": 24}, 448),
    "MobileNetV4_hybrid_medium": Spec(MobileNetV4, {"stages": HYBRID_MEDIUM, **HYBRID}, 256),
    "MobileNetV4_hybrid_large": Spec(
        MobileNetV4, {"stages": HYBRID_LARGE, "stem": 24, "act": gelu, **HYBRID}, 448
    ),
}
