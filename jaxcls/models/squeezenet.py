"""SqueezeNet.

Iandola et al. 2016, SqueezeNet (https://arxiv.org/abs/1602.07360); 1.1 is the authors' cheaper
revision. The classifier is a 1x1 convolution with a ReLU before the mean over the image, so logits
are not negative. As in PaddleClas, the maxima at stride 2 leave out what is past the last whole
window unless `ceil_mode`, which is how Caffe and torchvision pool, the stem of 1.1 is padded, and
the dropout scales in evaluation (`Dropout.downscale`).
"""

from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcls.models.layers import (
    Conv,
    ConvReLU,
    Dropout,
    at_least,
    global_mean,
    max_pool,
    outputs,
    run_stages,
)
from jaxcls.models.spec import Ctx, Spec

Array = jax.Array


class Fire(nn.Module):
    """1x1 convolution to few features, then 1x1 and 3x3 convolutions side by side."""

    c: Ctx
    squeezed: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        expanded = 4 * self.squeezed
        x = nn.relu(Conv(self.c, self.squeezed, bias=True, name="conv1")(x))
        y = Conv(self.c, expanded, bias=True, name="conv2")(x)
        z = Conv(self.c, expanded, 3, bias=True, name="conv3")(x)
        return nn.relu(jnp.concatenate((y, z), -1))


class Head(nn.Module):
    """Dropout and 1x1 convolutions in `c.head_dtype`: features [B, H, W, D] -> [B, H, W, K]."""

    c: Ctx
    num_classes: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = self.c.replace(dtype=self.c.head_dtype, feature_dtype=self.c.head_dtype)
        x = Dropout(c, 0.5, downscale=True, name="dropout")(x.astype(c.head_dtype))
        if c.bottleneck is not None:
            x = Conv(c, c.bottleneck, bias=True, name="bottleneck")(x)
        return nn.relu(Conv(c, self.num_classes, bias=True, name="fc")(x))


class SqueezeNet(nn.Module):
    """Stem, three stages, head."""

    residual: ClassVar[bool] = False  # nothing for `drop_path` to drop
    c: Ctx
    num_classes: int
    stem: tuple[int, int, int]  # features, kernel, padding
    stages: tuple[tuple[int, ...], ...]
    ceil_mode: bool = False  # the pools' last windows may reach past the border

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        c = self.c.replace(train=train)
        features, kernel, padding = self.stem
        images = at_least(images, 28 + kernel - 2 * padding)  # 15 pixels for the first pool
        pool = partial(max_pool, window=3, stride=2, ceil_mode=self.ceil_mode)
        stem = ConvReLU(c, features, kernel, 2, padding, name="stem")
        x = pool(stem(images.astype(c.feature_dtype)))
        stages = [[partial(Fire, squeezed=n) for n in stage] for stage in self.stages]
        *_, x = features = run_stages(c, x, stages, pool)
        head = Head(c, self.num_classes, name="head")
        return outputs(c, features, x, lambda _: global_mean(head(x), c))


SPECS = {
    "SqueezeNet1_0": Spec(
        SqueezeNet,
        {"stem": (96, 7, 0), "stages": ((16, 16, 32), (32, 48, 48, 64), (64,))},
    ),
    "SqueezeNet1_1": Spec(
        SqueezeNet,
        {"stem": (64, 3, 1), "stages": ((16, 16), (32, 32), (48, 48, 64, 64))},
    ),
}
