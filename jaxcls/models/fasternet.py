"""FasterNet: 3x3 convolutions of a quarter of the channels, then two 1x1 convolutions of all.

Chen et al. 2023, Run, don't walk (https://arxiv.org/abs/2303.03667). Between stages 2x2 pixels
become one with twice the features; the convolution after the mean over the image has no bias. The
BatchNorm of the stem keeps as much of its running statistics as the others: PaddleClas has a tenth
there, which is PyTorch's number for the opposite.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcls.models.layers import (
    Classifier,
    Conv,
    ConvBN,
    DropPath,
    PooledNeck,
    at_least,
    drop_path_rates,
    forward,
    stages_of,
)
from jaxcls.models.spec import Ctx, Spec

Array = jax.Array
Act = Callable[[Array], Array]
gelu = partial(nn.gelu, approximate=False)


class Block(nn.Module):
    """Convolutions whose result is added; before them, where `merge` says so, pixels are merged."""

    c: Ctx
    width: int
    act: Act
    merge: bool
    drop_path: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c, part = self.c, self.width // 4
        if self.merge:
            x = ConvBN(c, self.width, 2, 2, 0, name="merge")(x)
        y, rest = jnp.split(x, [part], axis=-1)
        y = jnp.concatenate([Conv(c, part, 3, name="conv1")(y), rest], -1)
        y = ConvBN(c, 2 * self.width, act=self.act, name="conv2")(y)
        y = Conv(c, self.width, name="conv3")(y)
        return x + DropPath(c, self.drop_path, name="drop_path")(y)


class FasterNet(nn.Module):
    """Patches of 4x4 pixels, four stages, 1x1 convolution after the mean, head."""

    c: Ctx
    num_classes: int
    width: int
    depths: tuple[int, ...]
    act: Act
    own_drop_path: float
    last: int = 1280  # features before the classifier

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        c = self.c.replace(train=train)
        rates = drop_path_rates(c, self.depths, self.own_drop_path, from_zero=True)
        block = lambda i, j: partial(
            Block,
            width=self.width * 2**i,
            act=self.act,
            merge=i > 0 and not j,
            drop_path=rates[i][j],
        )
        return forward(
            c,
            at_least(images, 4 * 2 ** (len(self.depths) - 1)),
            stem=ConvBN(c, self.width, 4, 4, 0, name="stem"),
            stages=stages_of(self.depths, block),
            neck=PooledNeck(c, None, self.last, self.act, name="neck"),
            head=Classifier(c, self.num_classes, name="head"),
        )


SPECS = {
    f"FasterNet_{size}": Spec(
        FasterNet, {"width": width, "depths": depths, "act": act, "own_drop_path": rate}
    )
    for size, width, depths, act, rate in (
        ("T0", 40, (1, 2, 8, 2), gelu, 0.0),
        ("T1", 64, (1, 2, 8, 2), gelu, 0.02),
        ("T2", 96, (1, 2, 8, 2), nn.relu, 0.05),
        ("S", 128, (1, 2, 13, 2), nn.relu, 0.1),
        ("M", 144, (3, 4, 18, 3), nn.relu, 0.2),
        ("L", 192, (3, 4, 18, 3), nn.relu, 0.3),
    )
}
