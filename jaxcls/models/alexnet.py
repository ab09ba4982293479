"""AlexNet.

Krizhevsky 2014, One weird trick (https://arxiv.org/abs/1404.5997), whose single-column network
PaddleClas took over; the first of its kind is Krizhevsky et al. 2012. At other sizes than 224 the
last features are averaged to 6x6. As in PaddleClas, the dropouts scale in evaluation
(`Dropout.downscale`). Ours are the initial weights: He's for convolutions, biases 0, where
PaddleClas draws all of them from U(-1/sqrt(fan_in), 1/sqrt(fan_in)).
"""

from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax

from jaxcls.models.layers import (
    Classifier,
    ConvReLU,
    Dropout,
    Linear,
    adaptive_mean,
    at_least,
    forward,
    max_pool,
)
from jaxcls.models.spec import Ctx, Spec

Array = jax.Array
halve = partial(max_pool, window=3, stride=2)


class Neck(nn.Module):
    """Two fully connected layers, with dropout before each."""

    c: Ctx

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = adaptive_mean(halve(x), 6)
        x = x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)  # the order that weights come in
        for i in (1, 2):
            x = Dropout(self.c, 0.5, downscale=True, name=f"dropout{i}")(x)
            x = nn.relu(Linear(self.c, 4096, name=f"fc{i}")(x))
        return x


class AlexNet(nn.Module):
    """Stem at stride 4, two stages, fully connected layers."""

    residual: ClassVar[bool] = False  # nothing for `drop_path` to drop
    c: Ctx
    num_classes: int

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        c = self.c.replace(train=train)
        stem = ConvReLU(c, 64, 11, 4, 2, name="stem")
        stages = (((192, 5),), ((384, 3), (256, 3), (256, 3)))  # features, kernel
        return forward(
            c,
            at_least(images, 63),
            stem=lambda x: halve(stem(x)),
            stages=[[partial(ConvReLU, features=n, kernel=k) for n, k in s] for s in stages],
            pool=halve,
            neck=Neck(c, name="neck"),
            head=Classifier(c.replace(dropout=0.0), self.num_classes, name="head"),  # the neck's
        )


SPECS = {"AlexNet": Spec(AlexNet)}
