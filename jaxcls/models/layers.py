"""The layers that all families share, and from where they have all. Features are NHWC."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxcls.models.assembly import (
    Factory,
    Stage,
    forward,
    global_mean,
    outputs,
    remat,
    run_stages,
    stages_of,
)
from jaxcls.models.conv import (
    BatchNorm,
    BNConv,
    BNReLU,
    BranchedConvBN,
    Conv,
    ConvBN,
    ConvReLU,
    Norm,
    Padding,
    fold,
    he_normal,
    quantised,
    shifted,
    unfused,
    uniform_fan_in,
)
from jaxcls.models.spec import Ctx

Array = jax.Array


class Linear(nn.Module):
    """Fully connected layer in `c.head_dtype`."""

    c: Ctx
    features: int
    bias: bool = True
    kernel_init: Callable = uniform_fan_in

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = self.c
        w = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), c.param_dtype)
        if c.quantise:
            x, w = quantised(x), quantised(w, -1)
        computed, kept = self.dtypes()
        y = unfused(x.astype(computed) @ w.astype(computed), c).astype(kept)
        if self.bias:
            b = self.param("bias", nn.initializers.zeros, (self.features,), c.param_dtype)
            y += b.astype(kept)
        return y

    @nn.nowrap
    def dtypes(self) -> tuple[Any, Any]:
        """Returns what it computes in, and what comes out."""
        return self.c.head_dtype, self.c.head_dtype


class Dropout(nn.Module):
    """Dropout (Srivastava et al. 2014): in training a feature is zero with probability `rate`.

    What is left is divided by 1 - rate, and evaluation changes nothing. With `downscale`, which is
    what PaddleClas's older networks were trained with, training keeps what is left as it is and
    evaluation multiplies by 1 - rate: weights from there need it, and others must not have it.
    """

    c: Ctx
    rate: float  # the network's own; `c.dropout` goes before it
    downscale: bool = False  # the network's own; `c.downscale` goes before it

    @nn.compact
    def __call__(self, x: Array) -> Array:
        rate = self.rate if self.c.dropout is None else self.c.dropout
        if self.downscale if self.c.downscale is None else self.c.downscale:
            x = x * (1 - rate)
        return nn.Dropout(rate, deterministic=not self.c.train)(x)


class Classifier(nn.Module):
    """Dropout, an optional bottleneck and the classifier: features [B, D] -> logits [B, K].

    `c.bottleneck` puts a linear layer of so many features in front, which keeps the weights of
    millions of classes small.
    """

    c: Ctx
    num_classes: int
    dropout: float = 0.0  # the network's own; `c.dropout` goes before it
    bias: bool = True
    downscale: bool = False  # see Dropout
    kernel_init: Callable = uniform_fan_in

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = self.c
        x = x.astype(c.head_dtype)
        x = Dropout(c, self.dropout, self.downscale, name="dropout")(x)
        if c.bottleneck is not None:
            x = Linear(c, c.bottleneck, name="bottleneck")(x)
        return Linear(c, self.num_classes, self.bias, self.kernel_init, name="fc")(x)


class SqueezeExcite(nn.Module):
    """Each channel times a gate in [0, 1] that sees all channels' means.

    Hu et al. 2017, Squeeze-and-excitation networks (https://arxiv.org/abs/1709.01507), with 1x1
    convolutions, which is where PaddleClas's MobileNetV3 and EfficientNet keep their weights.
    """

    c: Ctx
    squeezed: int
    act: Callable[[Array], Array] = nn.relu
    gate: Callable[[Array], Array] = nn.sigmoid

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = x.mean((1, 2), keepdims=True)
        y = self.act(Conv(self.c, self.squeezed, bias=True, name="conv1")(y))
        return x * self.gate(Conv(self.c, x.shape[-1], bias=True, name="conv2")(y))


class LinearSqueezeExcite(nn.Module):
    """`SqueezeExcite` with linear layers, which are drawn otherwise than convolutions."""

    c: Ctx
    squeezed: int
    gate: Callable[[Array], Array] = nn.sigmoid

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = nn.relu(Linear(self.c, self.squeezed, name="squeeze")(global_mean(x, self.c)))
        y = self.gate(Linear(self.c, x.shape[-1], name="excite")(y))
        return x * y[:, None, None].astype(x.dtype)


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016, https://arxiv.org/abs/1603.09382) of a residual branch.

    In training each image's branch is zero with probability `rate` and 1 / (1 - rate) of itself
    otherwise; "drop connect" in EfficientNet.
    """

    c: Ctx
    rate: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        axes = tuple(range(1, x.ndim))
        return nn.Dropout(self.rate, broadcast_dims=axes, deterministic=not self.c.train)(x)


def drop_path_rates(
    c: Ctx, depths: Sequence[int], own: float = 0.0, *, from_zero: bool = False
) -> list[list[float]]:
    """Returns the rate of each block of each stage: block l of L has l / L of the last one's.

    With `from_zero`, as transformers have it, that is (l - 1) / (L - 1): the first drops nothing.
    The last one's is `c.drop_path`, or where that is None the network's `own`.
    """
    last, blocks = own if c.drop_path is None else c.drop_path, sum(depths)
    rates = np.linspace(0, last, blocks) if from_zero else np.linspace(0, last, blocks + 1)[1:]
    rates = iter(rates.tolist())
    return [[next(rates) for _ in range(depth)] for depth in depths]


def doubled(
    c: Ctx, block: Factory, depths: Sequence[int], width: int, **options: Any
) -> list[list[Factory]]:
    """Returns stages of residual blocks, each of twice the width: the first block of a stage
    projects its shortcut, and from the second stage on halves the size.

    Args:
      c: the context.
      block: is called with these options, width, stride, project and drop_path.
      depths: of the stages.
      width: of the first stage.
    """
    rates = drop_path_rates(c, depths)
    return stages_of(
        depths,
        lambda i, j: partial(
            block,
            width=width * 2**i,
            stride=2 if i and not j else 1,
            project=j == 0,
            drop_path=rates[i][j],
            **options,
        ),
    )


class InvertedResidual(nn.Module):
    """Expansion by a 1x1 convolution, depthwise convolution, linear 1x1 convolution.

    Sandler et al. 2018, MobileNetV2 (https://arxiv.org/abs/1801.04381). The input is added wherever
    the shapes allow it.
    """

    c: Ctx
    expanded: int | None  # features between the convolutions; None: the input's, no expansion
    features: int
    kernel: int = 3
    stride: int = 1
    padding: Padding | None = None
    act: Callable[[Array], Array] = nn.relu6
    se: Callable[..., nn.Module] | None = None  # SqueezeExcite with all but `c` and `name` given
    drop_path: float = 0.0

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c, y = self.c, x
        if self.expanded is not None:
            y = ConvBN(c, self.expanded, act=self.act, name="conv1")(y)
        width = y.shape[-1]
        y = ConvBN(
            c, width, self.kernel, self.stride, self.padding, width, act=self.act, name="conv2"
        )(y)
        if self.se is not None:
            y = self.se(c, name="se")(y)
        y = ConvBN(c, self.features, name="conv3")(y)
        if self.stride == 1 and x.shape == y.shape:
            y = x + DropPath(c, self.drop_path, name="drop_path")(y)
        return y


def round_to(divisor: int, features: float) -> int:
    """Returns the nearest multiple, or the next one where that loses more than a tenth."""
    nearest = max(divisor, int(features + divisor / 2) // divisor * divisor)
    return nearest if nearest >= 0.9 * features else nearest + divisor


def round_to_8(features: float) -> int:
    """Returns the nearest multiple of 8, or the next one where that loses more than a tenth."""
    return round_to(8, features)


def at_least(images: Array, size: int) -> Array:
    """Returns images [B, H, W, C] of which a network without padding leaves something.

    Raises:
      ValueError: the height or the width is below `size` pixels.
    """
    height, width = images.shape[1:3]
    if min(height, width) < size:
        raise ValueError(
            f"images of {height} x {width} pixels are too small: this network needs at least "
            f"{size} x {size}"
        )
    return images


class PooledNeck(nn.Module):
    """1x1 convolution and, after the mean over the image, another: [B, H, W, D] -> [B, last]."""

    c: Ctx
    width: int | None  # of the first one, with BatchNorm; None: there is none
    last: int
    act: Callable[[Array], Array]
    bias: bool = False  # of the last one
    bn: bool = False  # after the last one

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = self.c
        if self.width is not None:
            x = ConvBN(c, self.width, act=self.act, name="conv1")(x)
        x = global_mean(x, c)[:, None, None]
        if self.bn:
            return ConvBN(c, self.last, act=self.act, name="conv2")(x)[:, 0, 0]
        return self.act(Conv(c, self.last, bias=self.bias, name="conv2")(x))[:, 0, 0]


def max_pool(
    x: Array, window: int, stride: int, padding: int = 0, ceil_mode: bool = False
) -> Array:
    """Returns the maximum of each window; the padding never wins.

    What is left past the last whole window is dropped, or with `ceil_mode` has a window of its own.
    """
    past = [(n + 2 * padding - window) % stride for n in x.shape[1:3]]
    padded = [(padding, padding + (-n % stride if ceil_mode else 0)) for n in past]
    return nn.max_pool(x, (window, window), (stride, stride), padded)


def avg_pool(
    x: Array,
    window: tuple[int, int],
    stride: tuple[int, int],
    padding: Padding = "VALID",
    count_include_pad: bool = True,
) -> Array:
    """Returns the mean of each window, which is added up in float32 at least.

    In float16 the sum of nine numbers of 8,000 is infinite, in bfloat16 it loses two bits.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return nn.avg_pool(wide, window, stride, padding, count_include_pad).astype(x.dtype)


def avg_pool_halve(x: Array) -> Array:
    """Returns 2 x 2 means at stride 2; at odd sizes the last ones are means of what is there."""
    return avg_pool(x, (2, 2), (2, 2), "SAME", count_include_pad=False)


def adaptive_mean(x: Array, size: int) -> Array:
    """Returns means over a grid of size x size: [B, H, W, D] -> [B, size, size, D].

    Cell i of n pixels spans floor(i n / size) to ceil((i + 1) n / size), so cells overlap where
    `size` does not divide n.
    """
    for axis in (1, 2):
        n = x.shape[axis]
        if n != size:
            cells = [(i * n // size, -((i + 1) * n // -size)) for i in range(size)]
            means = [jax.lax.slice_in_dim(x, *cell, axis=axis).mean(axis) for cell in cells]
            x = jnp.stack(means, axis)
    return x


class Stem(nn.Module):
    """Convolutions, then 3x3 maxima at stride 2 where `pool` says so."""

    c: Ctx
    convs: Sequence[tuple[int, int, int]]  # features, kernel, stride
    pool: bool = True
    act: Callable[[Array], Array] = nn.relu
    conv: type[nn.Module] = ConvBN

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for i, shape in enumerate(self.convs, 1):
            x = self.conv(self.c, *shape, act=self.act, name=f"conv{i}")(x)
        return max_pool(x, 3, 2, 1) if self.pool else x


def resnet_stem(c: Ctx, kind: str, width: int, conv: type[nn.Module] = ConvBN) -> Stem:
    """Returns one of ResNet's stems.

    "conv7" is one 7x7 convolution, "conv3" three 3x3; both end at a quarter of the size. "small" is
    one 3x3 convolution that keeps the size, for images of up to about 64 pixels.
    """
    convs = {
        "conv7": ((width, 7, 2),),
        "conv3": ((width // 2, 3, 2), (width // 2, 3, 1), (width, 3, 1)),
        "small": ((width, 3, 1),),
    }
    if kind not in convs:
        raise ValueError(f"stem={kind!r}: choose one of {', '.join(convs)}")
    return Stem(c, convs[kind], kind != "small", conv=conv, name="stem")


class Shortcut(nn.Module):
    """1x1 convolution of a block's input; `mean` halves by a 2x2 mean rather than by a stride."""

    c: Ctx
    features: int
    stride: int
    mean: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        stride = self.stride
        if self.mean and stride == 2:
            x, stride = avg_pool_halve(x), 1
        return ConvBN(self.c, self.features, stride=stride, name="conv1")(x)
