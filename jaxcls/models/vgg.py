"""VGG: 3x3 convolutions only.

Simonyan and Zisserman 2014, Very deep convolutional networks (https://arxiv.org/abs/1409.1556):
networks A, B, D and E. At other sizes than 224 the last features are averaged to 7x7. As in
PaddleClas, convolutions have no bias unless `bias` and the dropouts scale in evaluation
(`Dropout.downscale`).
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
    stages_of,
)
from jaxcls.models.spec import Ctx, Spec

Array = jax.Array
halve = partial(max_pool, window=2, stride=2)


class Neck(nn.Module):
    """Two fully connected layers, with dropout between them."""

    c: Ctx

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = adaptive_mean(halve(x), 7)
        x = x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)  # the order that weights come in
        x = nn.relu(Linear(self.c, 4096, name="fc1")(x))
        x = Dropout(self.c, 0.5, downscale=True, name="dropout")(x)
        return nn.relu(Linear(self.c, 4096, name="fc2")(x))


class VGG(nn.Module):
    """Five stages, fully connected layers."""

    residual: ClassVar[bool] = False  # nothing for `drop_path` to drop
    c: Ctx
    num_classes: int
    depths: tuple[int, ...]
    bias: bool = False  # of the convolutions

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        c = self.c.replace(train=train)
        block = lambda i, _: partial(
            ConvReLU, features=min(512, 64 * 2**i), kernel=3, bias=self.bias
        )
        return forward(
            c,
            at_least(images, 32),
            stem=lambda x: x,
            stages=stages_of(self.depths, block),
            pool=halve,
            neck=Neck(c, name="neck"),
            head=Classifier(c, self.num_classes, dropout=0.5, downscale=True, name="head"),
        )


SPECS = {
    "VGG11": Spec(VGG, {"depths": (1, 1, 2, 2, 2)}),
    "VGG13": Spec(VGG, {"depths": (2, 2, 2, 2, 2)}),
    "VGG16": Spec(VGG, {"depths": (2, 2, 3, 3, 3)}),
    "VGG19": Spec(VGG, {"depths": (2, 2, 4, 4, 4)}),
}
