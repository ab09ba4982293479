"""EfficientNet: one searched network, scaled in width, depth and size.

Tan and Le 2019, EfficientNet (https://arxiv.org/abs/1905.11946). Convolutions are padded as
TensorFlow does it ("SAME": the odd pixel at the end), from the size that arrives; PaddleClas pads
from each model's own size, which is the same at that size only. `EfficientNetB0_small` is
PaddleClas's B0 without squeeze-and-excitation and padded symmetrically. `drop_path` is the paper's
drop connect: block i of L, counted from 0, has i / L of it.
"""

import dataclasses
import functools
import math

import flax.linen as nn
import jax

from jaxcls.models.layers import (
    Classifier,
    ConvBN,
    InvertedResidual,
    SqueezeExcite,
    global_mean,
    round_to_8,
    stage,
)
from jaxcls.models.spec import Ctx, Spec

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Row:
    """Blocks of one width; the first has the stride. Features and repeats are B0's."""

    kernel: int
    expand: int  # features inside a block, as a multiple of its input's
    features: int
    repeats: int
    stride: int


class Stage(nn.Module):
    """Blocks of one resolution."""

    c: Ctx
    rows: tuple[Row, ...]  # scaled
    se: bool
    padding: str | None
    drop_paths: tuple[float, ...]  # one for each block

    @nn.compact
    def __call__(self, x: Array) -> Array:
        blocks = [(row, i) for row in self.rows for i in range(row.repeats)]
        for n, ((row, i), drop_path) in enumerate(zip(blocks, self.drop_paths, strict=True), 1):
            width = x.shape[-1]
            squeeze = functools.partial(SqueezeExcite, squeezed=width // 4, act=nn.swish)
            x = InvertedResidual(
                self.c,
                None if row.expand == 1 else width * row.expand,
                row.features,
                row.kernel,
                1 if i else row.stride,
                self.padding,
                act=nn.swish,
                se=squeeze if self.se else None,
                drop_path=drop_path,
                name=f"block{n}",
            )(x)
        return x


class EfficientNet(nn.Module):
    """Stem at stride 2, five stages, 1x1 convolution, head."""

    c: Ctx
    num_classes: int
    width: float = 1.0
    depth: float = 1.0
    own_dropout: float = 0.2
    se: bool = True
    padding: str | None = "SAME"  # of the convolutions that are not 1x1; None: symmetric

    def scaled(self) -> list[tuple[Row, ...]]:
        """Returns the rows of each stage with this network's features and repeats."""
        scale = lambda row: dataclasses.replace(
            row,
            features=round_to_8(row.features * self.width),
            repeats=math.ceil(row.repeats * self.depth),
        )
        return [tuple(map(scale, rows)) for rows in STAGES]

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        c = self.c.replace(train=train)
        x = images.astype(c.feature_dtype)
        width = round_to_8(32 * self.width)
        x = ConvBN(c, width, 3, 2, self.padding, act=nn.swish, name="stem")(x)
        out, done = {}, 0
        stages = self.scaled()
        depths = [sum(row.repeats for row in rows) for rows in stages]
        last = 0.2 if c.drop_path is None else c.drop_path
        for i, (rows, depth) in enumerate(zip(stages, depths), 1):
            rates = tuple(last * n / sum(depths) for n in range(done, done + depth))
            x = out[f"stage{i}"] = stage(Stage, c)(
                c, rows, self.se, self.padding, drop_paths=rates, name=f"stage{i}"
            )(x)
            done += depth
        x = ConvBN(c, round_to_8(1280 * self.width), act=nn.swish, name="neck")(x)
        out["pre_logits"] = global_mean(x, c)
        head = Classifier(c, self.num_classes, dropout=self.own_dropout, name="head")
        out["logits"] = head(out["pre_logits"])
        return out


STAGES = (
    (Row(3, 1, 16, repeats=1, stride=1),),
    (Row(3, 6, 24, repeats=2, stride=2),),
    (Row(5, 6, 40, repeats=2, stride=2),),
    (Row(3, 6, 80, repeats=3, stride=2), Row(5, 6, 112, repeats=3, stride=1)),
    (Row(5, 6, 192, repeats=4, stride=2), Row(3, 6, 320, repeats=1, stride=1)),
)
BATCH_NORM = {"bn_epsilon": 1e-3, "bn_momentum": 0.99}
SPECS = {
    f"EfficientNet{variant}": Spec(
        EfficientNet,
        {"width": width, "depth": depth, "own_dropout": dropout, **BATCH_NORM},
        size,
    )
    for variant, width, depth, size, dropout in (
        ("B0", 1.0, 1.0, 224, 0.2),
        ("B1", 1.0, 1.1, 240, 0.2),
        ("B2", 1.1, 1.2, 260, 0.3),
        ("B3", 1.2, 1.4, 300, 0.3),
        ("B4", 1.4, 1.8, 380, 0.4),
        ("B5", 1.6, 2.2, 456, 0.4),
        ("B6", 1.8, 2.6, 528, 0.5),
        ("B7", 2.0, 3.1, 600, 0.5),
    )
}
SPECS["EfficientNetB0_small"] = Spec(
    EfficientNet, {**SPECS["EfficientNetB0"].kwargs, "se": False, "padding": None}
)
