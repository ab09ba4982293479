"""HarDNet: a DenseNet with few of its connections, which lie like the harmonics of a wave.

Chao et al. 2019, HarDNet: A low memory traffic network (https://arxiv.org/abs/1909.00948). Layer l
of a block sees layers l - 1, l - 2, l - 4, ... as far as the power of two divides l, and is the
wider the more it sees. `_ds`: 1x1 convolutions with depthwise ones behind them. Stages are cut
before what halves the size.
"""

from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcls.models.layers import (
    Classifier,
    ConvBN,
    Dropout,
    Stem,
    at_least,
    forward,
    max_pool,
)
from jaxcls.models.spec import Ctx, Spec

Array = jax.Array


def sources(layer: int) -> list[int]:
    """Returns which layers a layer of a block sees; 0 is the block's input."""
    return [layer - 2**i for i in range(10) if layer % 2**i == 0]


def width(layer: int, growth: int, multiplier: float) -> int:
    """Returns a layer's features: even, and `multiplier` as many for each layer but one it sees."""
    features = float(growth)
    for _ in sources(layer)[1:]:
        features *= multiplier
    return int(features + 1) // 2 * 2


class Layer(nn.Module):
    """A convolution; `separable`: of 1x1, and a depthwise one without activation behind it."""

    c: Ctx
    features: int
    separable: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = 1 if self.separable else 3
        x = ConvBN(self.c, self.features, kernel, act=nn.relu6, name="conv1")(x)
        if self.separable:
            x = ConvBN(self.c, self.features, 3, groups=self.features, name="conv2")(x)
        return x


class Block(nn.Module):
    """Halves the size where `down` says so; layers, of which the odd ones and the last go on."""

    c: Ctx
    growth: int
    layers: int
    features: int
    multiplier: float
    separable: bool
    down: bool
    dropout: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = self.c
        if self.down and self.separable:
            x = ConvBN(c, x.shape[-1], 3, 2, groups=x.shape[-1], name="down")(x)
        elif self.down:
            x = max_pool(x, 2, 2)
        done = [x]
        for i in range(1, self.layers + 1):
            seen = [done[j] for j in sources(i)]
            features = width(i, self.growth, self.multiplier)
            layer = Layer(c, features, self.separable, name=f"layer{i}")
            done.append(layer(jnp.concatenate(seen, -1)))
        last = [] if self.layers % 2 else done[-1:]
        x = jnp.concatenate([*done[1::2], *last], -1)
        if self.dropout:
            x = Dropout(c, self.dropout, name="dropout")(x)
        return ConvBN(c, self.features, act=nn.relu6, name="out")(x)


class HarDNet(nn.Module):
    """Stem to a quarter of the size, stages, head."""

    residual: ClassVar[bool] = False  # nothing for `drop_path` to drop
    c: Ctx
    num_classes: int
    stages: tuple[tuple[tuple[int, int, int], ...], ...]  # growth, layers, features of each block
    stem: tuple[int, int] = (32, 64)
    multiplier: float = 1.7
    separable: bool = False
    dropout: float = 0.1
    last_dropout: float = 0.0  # before the last block's 1x1 convolution

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        c = self.c.replace(train=train)
        if not self.separable:
            images = at_least(images, 4 * 2 ** len(self.stages[1:]) - 3)
        one, two = self.stem
        stem = ((one, 3, 2), (two, 1 if self.separable else 3, 1))
        stages = [
            [
                partial(
                    Block,
                    growth=growth,
                    layers=layers,
                    features=features,
                    multiplier=self.multiplier,
                    separable=self.separable,
                    down=j == 0 and (i > 0 or self.separable),  # or the stem has done it
                    dropout=self.last_dropout if i == len(self.stages) - 1 else 0.0,
                )
                for j, (growth, layers, features) in enumerate(blocks)
            ]
            for i, blocks in enumerate(self.stages)
        ]
        return forward(
            c,
            images,
            stem=Stem(c, stem, not self.separable, act=nn.relu6, name="stem"),
            stages=stages,
            head=Classifier(c, self.num_classes, dropout=self.dropout, name="head"),
        )


S39 = (((16, 4, 96),), ((20, 16, 320),), ((64, 8, 640),), ((160, 4, 1024),))
S68 = (((14, 8, 128),), ((16, 16, 256), (20, 16, 320)), ((40, 16, 640),), ((160, 4, 1024),))
S85 = (
    ((24, 8, 192),),
    ((24, 16, 256), (28, 16, 320)),
    ((36, 16, 480), (48, 16, 720)),
    ((256, 4, 1280),),
)
WIDE = {"stem": (48, 96), "dropout": 0.2, "last_dropout": 0.1}
DS = {"separable": True, "dropout": 0.05}
SPECS = {
    "HarDNet68": Spec(HarDNet, {"stages": S68}),
    "HarDNet85": Spec(HarDNet, {"stages": S85, **WIDE}),
    "HarDNet39_ds": Spec(HarDNet, {"stages": S39, "stem": (24, 48), "multiplier": 1.6, **DS}),
    "HarDNet68_ds": Spec(HarDNet, {"stages": S68, **DS}),
}
