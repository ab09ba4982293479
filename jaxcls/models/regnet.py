"""RegNetX: residual bottlenecks without a bottleneck, of widths and depths that a line gives.

Radosavovic et al. 2020, Designing network design spaces (https://arxiv.org/abs/2003.13678). All
stages have convolutions in groups of one width; the first block of each has the stride and a
convolution in its shortcut. The depths and widths here are what the paper's four numbers of each
network come to, widths as multiples of the group's. As in PaddleClas, RegNetX_4GF is what the paper
calls 4.0GF (timm's regnetx_040).
"""

from functools import partial

import flax.linen as nn
import jax

from jaxcls.models.layers import (
    Classifier,
    ConvBN,
    DropPath,
    drop_path_rates,
    forward,
    stages_of,
)
from jaxcls.models.spec import Ctx, Spec

Array = jax.Array


class Block(nn.Module):
    """1x1, 3x3 and 1x1 convolutions of one width."""

    c: Ctx
    width: int
    group_width: int
    stride: int
    drop_path: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c, width = self.c, self.width
        groups = width // self.group_width
        y = ConvBN(c, width, act=nn.relu, name="conv1")(x)
        y = ConvBN(c, width, 3, self.stride, groups=groups, act=nn.relu, name="conv2")(y)
        y = ConvBN(c, width, name="conv3")(y)
        if x.shape != y.shape:
            x = ConvBN(c, width, stride=self.stride, name="short")(x)
        return nn.relu(x + DropPath(c, self.drop_path, name="drop_path")(y))


class RegNet(nn.Module):
    """Stem at stride 2, four stages, head."""

    c: Ctx
    num_classes: int
    depths: tuple[int, ...]
    widths: tuple[int, ...]
    group_width: int

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        c = self.c.replace(train=train)
        rates = drop_path_rates(c, self.depths)
        block = lambda i, j: partial(
            Block,
            width=self.widths[i],
            group_width=min(self.group_width, self.widths[i]),
            stride=1 if j else 2,
            drop_path=rates[i][j],
        )
        return forward(
            c,
            images,
            stem=ConvBN(c, 32, 3, 2, act=nn.relu, name="stem"),
            stages=stages_of(self.depths, block),
            head=Classifier(c, self.num_classes, name="head"),
        )


SPECS = {
    f"RegNetX_{size}": Spec(
        RegNet, {"depths": depths, "widths": widths, "group_width": group_width}
    )
    for size, depths, widths, group_width in (
        ("200MF", (1, 1, 4, 7), (24, 56, 152, 368), 8),
        ("400MF", (1, 2, 7, 12), (32, 64, 160, 384), 16),
        ("600MF", (1, 3, 5, 7), (48, 96, 240, 528), 24),
        ("800MF", (1, 3, 7, 5), (64, 128, 288, 672), 16),
        ("1600MF", (2, 4, 10, 2), (72, 168, 408, 912), 24),
        ("3200MF", (2, 6, 15, 2), (96, 192, 432, 1008), 48),
        ("4GF", (2, 5, 14, 2), (80, 240, 560, 1360), 40),
        ("6400MF", (2, 4, 10, 1), (168, 392, 784, 1624), 56),
        ("8GF", (2, 5, 15, 1), (80, 240, 720, 1920), 120),
        ("12GF", (2, 5, 11, 1), (224, 448, 896, 2240), 112),
        ("16GF", (2, 6, 13, 1), (256, 512, 896, 2048), 128),
        ("32GF", (2, 7, 13, 1), (336, 672, 1344, 2520), 168),
    )
}
