"""DarkNet53, the backbone of YOLOv3.

Redmon and Farhadi 2018 (https://arxiv.org/abs/1804.02767). As in PaddleClas, activations are ReLU
rather than leaky ReLU (`slope`). The 3x3 convolution that halves the size begins its stage.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax

from jaxcls.models.layers import (
    Classifier,
    ConvBN,
    DropPath,
    Stem,
    drop_path_rates,
    forward,
    stages_of,
)
from jaxcls.models.spec import Ctx, Spec

Array = jax.Array
Act = Callable[[Array], Array]


class Block(nn.Module):
    """1x1 and 3x3 convolutions, added to their input without an activation."""

    c: Ctx
    width: int
    down: bool  # after a convolution that halves the size
    drop_path: float
    act: Act

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if self.down:
            x = ConvBN(self.c, self.width, 3, 2, act=self.act, name="down")(x)
        y = ConvBN(self.c, self.width // 2, act=self.act, name="conv1")(x)
        y = ConvBN(self.c, self.width, 3, act=self.act, name="conv2")(y)
        return x + DropPath(self.c, self.drop_path, name="drop_path")(y)


class DarkNet(nn.Module):
    """Stem, stages of doubling width, head."""

    c: Ctx
    num_classes: int
    depths: tuple[int, ...] = (1, 2, 8, 8, 4)
    width: int = 32
    slope: float = 0.0  # of the activations below zero; 0: ReLU

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        c = self.c.replace(train=train)
        leaky = partial(nn.leaky_relu, negative_slope=self.slope)
        act = leaky if self.slope else nn.relu
        rates = drop_path_rates(c, self.depths)
        block = lambda i, j: partial(
            Block, width=self.width * 2 ** (i + 1), down=j == 0, drop_path=rates[i][j], act=act
        )
        return forward(
            c,
            images,
            stem=Stem(c, ((self.width, 3, 1),), pool=False, act=act, name="stem"),
            stages=stages_of(self.depths, block),
            head=Classifier(c, self.num_classes, name="head"),
        )


SPECS = {"DarkNet53": Spec(DarkNet, size=256)}
