"""EfficientNetV2: in the first stages one full convolution in place of expansion and depthwise.

Tan and Le 2021, EfficientNetV2 (https://arxiv.org/abs/2104.00298). Convolutions are padded as
TensorFlow does it ("SAME": the odd pixel at the end), from the size that arrives; PaddleClas pads
as for images of 384 pixels, which is the same for multiples of 32. `drop_path` is the paper's:
block i of L, counted from 0, has i / L of it. S drops 0.1 of the features before the classifier,
with which its progressive training begins.
"""

import dataclasses
from functools import partial

import flax.linen as nn
import jax

from jaxcls.models.layers import (
    Classifier,
    ConvBN,
    DropPath,
    InvertedResidual,
    SqueezeExcite,
    forward,
)
from jaxcls.models.spec import Ctx, Spec

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Row:
    """Blocks of one width; the first has the stride."""

    expand: int  # features inside a block, as a multiple of its input's
    features: int
    repeats: int
    stride: int = 1
    fused: bool = False


class Fused(nn.Module):
    """3x3 and linear 1x1 convolution; without expansion the 3x3 alone."""

    c: Ctx
    expanded: int | None
    features: int
    stride: int
    padding: str | None
    drop_path: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c, shape = self.c, (3, self.stride, self.padding)
        if self.expanded is None:
            y = ConvBN(c, self.features, *shape, act=nn.swish, name="conv1")(x)
        else:
            y = ConvBN(c, self.expanded, *shape, act=nn.swish, name="conv1")(x)
            y = ConvBN(c, self.features, name="conv2")(y)
        if self.stride == 1 and x.shape == y.shape:
            y = x + DropPath(c, self.drop_path, name="drop_path")(y)
        return y


class EfficientNetV2(nn.Module):
    """Stem at stride 2, five stages, 1x1 convolution, head."""

    c: Ctx
    num_classes: int
    stages: tuple[tuple[Row, ...], ...]
    own_dropout: float
    padding: str | None = "SAME"  # of the convolutions that are not 1x1; None: symmetric

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        c = self.c.replace(train=train)
        width = stem = self.stages[0][0].features
        last = 0.2 if c.drop_path is None else c.drop_path
        depth = sum(row.repeats for rows in self.stages for row in rows)
        done, stages = 0, []
        for rows in self.stages:
            stages.append([])
            for row, i in ((r, i) for r in rows for i in range(r.repeats)):
                squeeze = partial(SqueezeExcite, squeezed=width // 4, act=nn.swish)
                kind = Fused if row.fused else partial(InvertedResidual, act=nn.swish, se=squeeze)
                block = partial(
                    kind,
                    expanded=None if row.expand == 1 else width * row.expand,
                    features=row.features,
                    stride=1 if i else row.stride,
                    padding=self.padding,
                    drop_path=last * done / depth,
                )
                stages[-1].append(block)
                width, done = row.features, done + 1
        return forward(
            c,
            images,
            stem=ConvBN(c, stem, 3, 2, self.padding, act=nn.swish, name="stem"),
            stages=stages,
            neck=ConvBN(c, 1280, act=nn.swish, name="neck"),
            head=Classifier(c, self.num_classes, dropout=self.own_dropout, name="head"),
        )


def stages(*rows: tuple[int, int]) -> tuple[tuple[Row, ...], ...]:
    """Returns the stages of a network by the features and repeats of its rows."""
    switches = (
        (1, {"fused": True}),
        (4, {"fused": True, "stride": 2}),
        (4, {"fused": True, "stride": 2}),
        (4, {"stride": 2}),
        (6, {}),
        (6, {"stride": 2}),
        (6, {}),
    )
    one, two, three, four, five, *six = (
        Row(expand, features, repeats, **rest)
        for (features, repeats), (expand, rest) in zip(rows, switches, strict=False)
    )
    return (one,), (two,), (three,), (four, five), tuple(six)


SPECS = {
    f"EfficientNetV2_{variant}": Spec(
        EfficientNetV2,
        {"stages": stages(*rows), "own_dropout": dropout, "bn_epsilon": 1e-3},
        384,
    )
    for variant, dropout, rows in (
        ("S", 0.1, ((24, 2), (48, 4), (64, 4), (128, 6), (160, 9), (256, 15))),
        ("M", 0.3, ((24, 3), (48, 5), (80, 5), (160, 7), (176, 14), (304, 18), (512, 5))),
        ("L", 0.4, ((32, 4), (64, 7), (96, 7), (192, 10), (224, 19), (384, 25), (640, 7))),
        ("XL", 0.4, ((32, 4), (64, 8), (96, 8), (192, 16), (256, 24), (512, 32), (640, 8))),
    )
}
