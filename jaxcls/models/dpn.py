"""Dual path networks: the blocks of a stage add to some features and append others.

Chen et al. 2017, Dual path networks (https://arxiv.org/abs/1707.01629). As in PaddleClas, DPN68
begins with 10 features and all networks end with a plain mean.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcls.models.layers import (
    BNConv,
    BNReLU,
    Classifier,
    DropPath,
    Stem,
    drop_path_rates,
    forward,
    stages_of,
)
from jaxcls.models.spec import Ctx, Spec

Array = jax.Array


class Block(nn.Module):
    """1x1, grouped 3x3 and 1x1 convolutions that feed both paths.

    Of their features the first `width` are added to the input's first `width`, the residual path;
    the `growth` others are appended to it. Where `project`, a 1x1 convolution first makes both
    paths from the input, with 2 `growth` features in the second. `drop_path` drops what is added.
    """

    c: Ctx
    width: int
    growth: int
    inner: int
    groups: int
    stride: int
    project: bool
    drop_path: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = BNConv(self.c, self.inner, name="conv1")(x)
        y = BNConv(self.c, self.inner, 3, self.stride, self.groups, name="conv2")(y)
        y = BNConv(self.c, self.width + self.growth, name="conv3")(y)
        if self.project:
            x = BNConv(self.c, self.width + 2 * self.growth, 1, self.stride, name="short")(x)
        added, appended = jnp.split(y, [self.width], -1)
        residual, dense = jnp.split(x, [self.width], -1)
        residual += DropPath(self.c, self.drop_path, name="drop_path")(added)
        return jnp.concatenate([residual, dense, appended], -1)


class DPN(nn.Module):
    """Stem, stages of doubling width, head."""

    c: Ctx
    num_classes: int
    depths: tuple[int, ...]
    growths: tuple[int, ...]  # features that a block of each stage appends
    inner: int  # of the grouped convolutions of stage 1
    groups: int
    stem: tuple[int, int]  # features, kernel
    width: int = 256  # of the residual path of stage 1

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        c = self.c.replace(train=train)
        rates = drop_path_rates(c, self.depths)
        block = lambda i, j: partial(
            Block,
            width=self.width * 2**i,
            growth=self.growths[i],
            inner=self.inner * 2**i,
            groups=self.groups,
            stride=2 if i and not j else 1,
            project=j == 0,
            drop_path=rates[i][j],
        )
        return forward(
            c,
            images,
            stem=Stem(c, ((*self.stem, 2),), name="stem"),
            stages=stages_of(self.depths, block),
            neck=BNReLU(c, name="neck"),
            head=Classifier(c, self.num_classes, name="head"),
        )


SPECS = {
    "DPN68": Spec(
        DPN,
        {
            "depths": (3, 4, 12, 3),
            "growths": (16, 32, 32, 64),
            "inner": 128,
            "groups": 32,
            "stem": (10, 3),
            "width": 64,
        },
    ),
    **{
        f"DPN{n}": Spec(
            DPN,
            {
                "depths": depths,
                "growths": growths,
                "inner": inner,
                "groups": groups,
                "stem": (width, 7),
            },
        )
        for n, depths, growths, inner, groups, width in (
            (92, (3, 4, 20, 3), (16, 32, 24, 128), 96, 32, 64),
            (98, (3, 6, 20, 3), (16, 32, 32, 128), 160, 40, 96),
            (107, (4, 8, 20, 3), (20, 64, 64, 128), 200, 50, 128),
            (131, (4, 8, 28, 3), (16, 32, 32, 128), 160, 40, 128),
        )
    },
}
