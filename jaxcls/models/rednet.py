"""RedNet: a ResNet with involution in place of every convolution larger than 1x1 but the stem's.

Li et al. 2021, Involution: Inverting the inherence of convolution for visual recognition
(https://arxiv.org/abs/2103.06255). At odd sizes, which PaddleClas refuses where it halves them, the
last of the 2x2 means that kernels come from is over the pixels that are there.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcls.models.layers import (
    BatchNorm,
    Classifier,
    Conv,
    ConvBN,
    DropPath,
    Shortcut,
    avg_pool_halve,
    doubled,
    forward,
    max_pool,
    unfused,
)
from jaxcls.models.spec import Ctx, Spec

Array = jax.Array


class Involution(nn.Module):
    """A convolution with a kernel of its own at each pixel, which 16 channels share.

    The kernels come from the pixel by two 1x1 convolutions, of which the first has a quarter of the
    channels.
    """

    c: Ctx
    kernel: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c, k, channels = self.c, self.kernel, x.shape[-1]
        groups = max(channels // 16, 1)
        y = x if self.stride == 1 else avg_pool_halve(x)
        y = ConvBN(c, channels // 4, act=nn.relu, name="conv1")(y)
        kernels = Conv(c, k * k * groups, bias=True, name="conv2")(y)
        height, width = kernels.shape[1:3]
        kernels = kernels.reshape(*kernels.shape[:3], groups, k, k).astype(c.dtype)
        around = (k // 2, k // 2)
        x = jnp.pad(x, ((0, 0), around, around, (0, 0))).astype(c.dtype)
        shifted = lambda x, axis, i, n: jax.lax.slice_in_dim(
            x, i, i + self.stride * (n - 1) + 1, self.stride, axis
        )
        # The columns of the windows side by side and the rows one after the other: seven times the
        # features in memory, not 49 times.
        columns = jnp.stack([shifted(x, 2, j, width) for j in range(k)], 3)
        columns = columns.reshape(*columns.shape[:4], groups, channels // groups)
        rows = (
            jnp.einsum("bhwgj,bhwjgc->bhwgc", kernels[..., i, :], shifted(columns, 1, i, height))
            for i in range(k)
        )
        y = sum(unfused(row, c).astype(c.feature_dtype) for row in rows)
        return y.reshape(*y.shape[:3], channels)


class InvolutionBN(nn.Module):
    """Involution, BatchNorm and ReLU."""

    c: Ctx
    kernel: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = Involution(self.c, self.kernel, self.stride, name="inv")(x)
        return nn.relu(BatchNorm(self.c, name="bn")(x))


class Block(nn.Module):
    """1x1 convolution, 7x7 involution, 1x1 convolution with four times the width."""

    c: Ctx
    width: int
    stride: int
    project: bool
    drop_path: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = self.c
        y = ConvBN(c, self.width, act=nn.relu, name="conv1")(x)
        y = InvolutionBN(c, 7, self.stride, name="conv2")(y)
        y = ConvBN(c, self.width * 4, name="conv3")(y)
        if self.project:
            x = Shortcut(c, self.width * 4, self.stride, mean=False, name="short")(x)
        return nn.relu(x + DropPath(c, self.drop_path, name="drop_path")(y))


class Stem(nn.Module):
    """3x3 convolution, involution and convolution, then 3x3 maxima, to a quarter of the size."""

    c: Ctx
    width: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = ConvBN(self.c, self.width // 2, 3, 2, act=nn.relu, name="conv1")(x)
        x = InvolutionBN(self.c, 3, name="conv2")(x)
        x = ConvBN(self.c, self.width, 3, act=nn.relu, name="conv3")(x)
        return max_pool(x, 3, 2, 1)


class RedNet(nn.Module):
    """Stem, stages of doubling width, head."""

    c: Ctx
    num_classes: int
    depths: tuple[int, ...]
    width: int = 64

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        c = self.c.replace(train=train)
        return forward(
            c,
            images,
            stem=Stem(c, self.width, name="stem"),
            stages=doubled(c, Block, self.depths, self.width),
            head=Classifier(c, self.num_classes, name="head"),
        )


DEPTHS = {
    26: (1, 2, 4, 1),
    38: (2, 3, 5, 2),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
SPECS = {f"RedNet{n}": Spec(RedNet, {"depths": depths}) for n, depths in DEPTHS.items()}
