"""DLA: stages that are trees of residual blocks, whose nodes see all that came before in the tree.

Yu et al. 2017, Deep layer aggregation (https://arxiv.org/abs/1707.06484). `x` in a name: grouped
convolutions, as in ResNeXt; `_c`: compact. What is here a stage of 2^n blocks is a tree of depth
n + 1 there: a block is two residual units and the node that joins them with their ancestors. The
first two levels of the paper are the stem. At odd sizes, which PaddleClas refuses, the last of the
2x2 maxima is of the pixels that are there.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcls.models.layers import (
    Classifier,
    ConvBN,
    DropPath,
    Stem,
    drop_path_rates,
    max_pool,
    outputs,
    remat,
)
from jaxcls.models.spec import Ctx, Spec

Array = jax.Array


class Unit(nn.Module):
    """A residual unit: 1x1, 3x3 and 1x1 convolutions; `basic`: two of 3x3."""

    c: Ctx
    features: int
    stride: int
    drop_path: float
    basic: bool
    groups: int
    group_width: int  # channels of a group where the unit has 128 features

    @nn.compact
    def __call__(self, x: Array, short: Array) -> Array:
        c, inner = self.c, self.features
        if not self.basic:
            inner = self.features * self.group_width // 64 * self.groups // 2
            x = ConvBN(c, inner, act=nn.relu, name="conv1")(x)
        conv = ConvBN(
            c,
            inner,
            3,
            self.stride,
            groups=self.groups,
            act=nn.relu,
            name="conv2" if not self.basic else "conv1",
        )
        last = (1, "conv3") if not self.basic else (3, "conv2")
        x = ConvBN(c, self.features, last[0], name=last[1])(conv(x))
        return nn.relu(short + DropPath(c, self.drop_path, name="drop_path")(x))


class Block(nn.Module):
    """Two residual units, and the node that joins them with their ancestors in the tree."""

    c: Ctx
    unit: partial
    features: int
    residual: bool  # the node adds the last unit's features

    @nn.compact
    def __call__(self, x: Array, stride: int, ancestors: list[Array]) -> Array:
        c = self.c
        short = x if stride == 1 else max_pool(x, 2, 2, ceil_mode=True)
        if x.shape[-1] != self.features:
            short = ConvBN(c, self.features, name="short")(short)
        first = self.unit(c, stride=stride, name="unit1")(x, short)
        last = self.unit(c, stride=1, name="unit2")(first, first)
        y = jnp.concatenate([last, first, *ancestors], -1)
        y = ConvBN(c, self.features, name="root")(y)
        return nn.relu(y + last if self.residual else y)


class Stage(nn.Module):
    """A tree: two trees of half the blocks one after the other, down to single blocks."""

    c: Ctx
    blocks: tuple[partial, ...]
    whole: bool  # the last node sees the stage's input too

    @nn.compact
    def __call__(self, x: Array) -> Array:
        blocks = (block(self.c, name=f"block{i}") for i, block in enumerate(self.blocks, 1))

        def tree(n: int, x: Array, stride: int, ancestors: list[Array]) -> Array:
            if n == 1:
                return next(blocks)(x, stride, ancestors)
            x = tree(n // 2, x, stride, [])
            return tree(n // 2, x, 1, [*ancestors, x])

        ancestors = [max_pool(x, 2, 2, ceil_mode=True)] if self.whole else []
        return tree(len(self.blocks), x, 2, ancestors)


class DLA(nn.Module):
    """Stem at stride 2, four stages, head."""

    c: Ctx
    num_classes: int
    levels: tuple[int, ...]  # of each stage's tree
    widths: tuple[int, ...] = (128, 256, 512, 1024)
    stem: tuple[int, ...] = (16, 16, 32)
    basic: bool = False
    groups: int = 1
    group_width: int = 64
    residual_root: bool = False

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        c = self.c.replace(train=train)
        one, two, three = self.stem
        stem = Stem(c, ((one, 7, 1), (two, 3, 1), (three, 3, 2)), pool=False, name="stem")
        x = stem(images.astype(c.feature_dtype))
        depths = [2 ** (level - 1) for level in self.levels]
        features = []
        for i, rates in enumerate(drop_path_rates(c, depths), 1):
            width = self.widths[i - 1]
            unit = partial(
                Unit,
                features=width,
                basic=self.basic,
                groups=self.groups,
                group_width=self.group_width,
            )
            blocks = tuple(
                partial(
                    Block,
                    unit=partial(unit, drop_path=rate),
                    features=width,
                    residual=self.residual_root,
                )
                for rate in rates
            )
            x = remat(Stage, c)(c, blocks, whole=i > 1, name=f"stage{i}")(x)
            features.append(x)
        return outputs(c, features, x, Classifier(c, self.num_classes, name="head"))


COMPACT = {"widths": (64, 64, 128, 256)}
X = {"groups": 32, "group_width": 4}
X2 = {"groups": 64, "group_width": 4}
DEEP = {"residual_root": True}
SMALL, MIDDLE, LARGE = (1, 2, 2, 1), (1, 2, 3, 1), (1, 3, 4, 1)
SPECS = {
    name: Spec(DLA, {"levels": levels, **switches})
    for name, levels, switches in (
        ("DLA34", SMALL, {"widths": (64, 128, 256, 512), "basic": True}),
        ("DLA46_c", SMALL, COMPACT),
        ("DLA46x_c", SMALL, COMPACT | X),
        ("DLA60", MIDDLE, {}),
        ("DLA60x", MIDDLE, X),
        ("DLA60x_c", MIDDLE, COMPACT | X),
        ("DLA102", LARGE, DEEP),
        ("DLA102x", LARGE, DEEP | X),
        ("DLA102x2", LARGE, DEEP | X2),
        ("DLA169", (2, 3, 5, 1), DEEP),
    )
}
