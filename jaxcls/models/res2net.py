"""Res2Net: a residual block whose 3x3 convolution is a chain over slices of the channels.

Gao et al. 2019 (https://arxiv.org/abs/1904.01169); `_26w_4s` has 4 slices, of 26 channels in the
first stage. `_vd` has the stem and shortcut of ResNet's D variant (https://arxiv.org/abs/1812.01187).

As in PaddleClas, and unlike the authors' code, the first block of stage1 is an ordinary one: the
chain is cut, and the last slice averaged, only where a block halves the size, and means at the
border are over the pixels that are there. `original` is as the authors have it.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcls.models.layers import (
    Classifier,
    ConvBN,
    DropPath,
    Shortcut,
    avg_pool,
    doubled,
    forward,
    resnet_stem,
)
from jaxcls.models.spec import Ctx, Spec

Array = jax.Array


class Block(nn.Module):
    """1x1, a chain of 3x3 over all slices but the last, 1x1."""

    c: Ctx
    width: int
    stride: int
    project: bool
    drop_path: float
    mean_short: bool
    slices: int
    slice_width: int
    original: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = self.c
        features = self.width * self.slice_width // 64
        y = ConvBN(c, features * self.slices, act=nn.relu, name="conv1")(x)
        *chain, last = jnp.split(y, self.slices, axis=-1)
        cut = self.stride > 1 or (self.original and self.project)
        done = []
        for i, part in enumerate(chain):
            if done and not cut:
                part += done[-1]
            conv = ConvBN(c, features, 3, self.stride, act=nn.relu, name=f"slice{i + 1}")
            done.append(conv(part))
        if cut:
            strides, padding = (self.stride,) * 2, [(1, 1)] * 2
            last = avg_pool(last, (3, 3), strides, padding, count_include_pad=self.original)
        y = ConvBN(c, self.width * 4, name="conv3")(jnp.concatenate([*done, last], axis=-1))
        if self.project:
            x = Shortcut(c, self.width * 4, self.stride, self.mean_short, name="short")(x)
        return nn.relu(x + DropPath(c, self.drop_path, name="drop_path")(y))


class Res2Net(nn.Module):
    """Stem, stages of doubling width, head."""

    c: Ctx
    num_classes: int
    depths: tuple[int, ...]
    slices: int
    slice_width: int  # channels of a slice where the stage's width is 64
    width: int = 64
    stem: str = "conv7"
    mean_short: bool = False
    original: bool = False  # as in the authors' code

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        c = self.c.replace(train=train)
        options = {
            "mean_short": self.mean_short,
            "slices": self.slices,
            "slice_width": self.slice_width,
            "original": self.original,
        }
        return forward(
            c,
            images,
            stem=resnet_stem(c, self.stem, self.width),
            stages=doubled(c, Block, self.depths, self.width, **options),
            head=Classifier(c, self.num_classes, name="head"),
        )


DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 200: (3, 12, 48, 3)}
VARIANTS = {
    "": ({}, ((50, 26, 4), (50, 14, 8))),
    "_vd": ({"stem": "conv3", "mean_short": True}, ((50, 26, 4), (101, 26, 4), (200, 26, 4))),
}
SPECS = {
    f"Res2Net{n}{variant}_{width}w_{slices}s": Spec(
        Res2Net, {"depths": DEPTHS[n], "slices": slices, "slice_width": width, **switches}
    )
    for variant, (switches, rows) in VARIANTS.items()
    for n, width, slices in rows
}
SPECS |= {f"{name}_ssld": SPECS[name].alias(name) for name in SPECS if "_vd_26w" in name}
