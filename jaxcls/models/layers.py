"""The layers that all families share. Images and features are NHWC."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxcls.models.spec import Ctx

Array = jax.Array
Padding = int | str | Sequence[tuple[int, int]]

he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
"""He et al. 2015 (https://arxiv.org/abs/1502.01852), what PaddlePaddle draws for convolutions."""


def uniform_fan_in(key: Array, shape: Sequence[int], dtype: Any) -> Array:
    """Returns draws from U(-1/sqrt(fan_in), 1/sqrt(fan_in)), for kernels [in, out]."""
    bound = 1 / np.sqrt(shape[0])
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def unfused(x: Array) -> Array:
    """Returns `x`, the result of a convolution or matrix product, to be computed by itself.

    XLA:CPU of jaxlib 0.12 fuses chains of them, and means that follow, into one kernel, which makes
    NaN and infinity of the bfloat16 between them.
    """
    if x.dtype == jnp.bfloat16 and jax.default_backend() == "cpu":
        x = jax.lax.optimization_barrier(x)
    return x


class Conv(nn.Module):
    """Convolution with explicit padding; by default what keeps the size at stride 1.

    Flax's 'SAME' is not used: at stride 2 it pads more at the end than the reference does.
    """

    c: Ctx
    features: int
    kernel: int | tuple[int, int] = 1
    stride: int = 1
    padding: Padding | None = None
    groups: int = 1
    bias: bool = False
    dilation: int = 1
    kernel_init: Callable = he_normal

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = self.c
        kernel = (self.kernel,) * 2 if isinstance(self.kernel, int) else tuple(self.kernel)
        padding = self.padding
        if padding is None:
            padding = [((k - 1) // 2 * self.dilation,) * 2 for k in kernel]
        if isinstance(padding, int):
            padding = [(padding, padding)] * 2
        shape = (*kernel, x.shape[-1] // self.groups, self.features)
        w = self.param("kernel", self.kernel_init, shape, c.param_dtype)
        y = jax.lax.conv_general_dilated(
            x.astype(c.dtype),
            w.astype(c.dtype),
            (self.stride, self.stride),
            padding,
            rhs_dilation=(self.dilation, self.dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=self.groups,
        )
        y = unfused(y).astype(c.feature_dtype)
        if self.bias:
            b = self.param("bias", nn.initializers.zeros, (self.features,), c.param_dtype)
            y += b.astype(c.feature_dtype)
        return y


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe and Szegedy 2015), with statistics of groups of images.

    In training the batch is viewed as [groups, c.bn_group, H, W, C]; each group is normalised with
    its own mean and biased variance, as on one card of the published recipes, and the running
    statistics move towards their mean over the groups. Groups that lie within a device need no
    communication and give the same numbers on any number of devices.

    All arithmetic and the running statistics are in `c.norm_dtype` (float32): of 16 bits are only
    inputs, outputs and, where the precision says so, parameters. Mean and variance come from one
    pass over the differences from the mean of the group's first image. With n images in a group
    that mean is at most sqrt(n) deviations away, so that E[d²] - E[d]² loses at most a factor
    n + 1 of precision, however far from zero the features are. A BatchNorm whose path `c.frozen`
    names uses its running statistics in training too and leaves them as they are.
    """

    c: Ctx
    scale_init: Callable = nn.initializers.ones

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c, channels = self.c, x.shape[-1]
        dtype = c.norm_dtype
        scale = self.param("scale", self.scale_init, (channels,), c.param_dtype).astype(dtype)
        bias = self.param("bias", nn.initializers.zeros, (channels,), c.param_dtype).astype(dtype)
        stat = lambda name, init: self.variable("batch_stats", name, init, (channels,), dtype)
        running_mean, running_var = stat("mean", jnp.zeros), stat("var", jnp.ones)

        frozen = c.frozen is not None and c.frozen("/".join(self.path))
        values = x.astype(dtype)
        if not c.train or frozen:
            mean, var = running_mean.value, running_var.value
        else:
            group = c.bn_group or x.shape[0]
            assert x.shape[0] % group == 0, f"{x.shape[0]} images in groups of {group}"
            values = values.reshape(-1, group, *x.shape[1:])
            axes = tuple(range(1, values.ndim - 1))
            near = jax.lax.stop_gradient(values[:, :1].mean(axes, keepdims=True))
            values -= near
            mean = values.mean(axes, keepdims=True)
            # rounding can leave a constant channel a hair below zero
            var = jnp.maximum((values * values).mean(axes, keepdims=True) - mean * mean, 0)
            if not self.is_initializing():
                for running, now in ((running_mean, near + mean), (running_var, var)):
                    now = now.reshape(-1, channels).mean(0)
                    running.value = c.bn_momentum * running.value + (1 - c.bn_momentum) * now
        factor = scale * jax.lax.rsqrt(var + c.bn_epsilon)
        return (values * factor + (bias - mean * factor)).astype(x.dtype).reshape(x.shape)


class ConvBN(nn.Module):
    """Convolution, BatchNorm and, where given, an activation."""

    c: Ctx
    features: int
    kernel: int | tuple[int, int] = 1
    stride: int = 1
    padding: Padding | None = None
    groups: int = 1
    act: Callable[[Array], Array] | None = None
    dilation: int = 1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = Conv(
            self.c,
            self.features,
            self.kernel,
            self.stride,
            self.padding,
            self.groups,
            dilation=self.dilation,
            name="conv",
        )(x)
        x = BatchNorm(self.c, name="bn")(x)
        return x if self.act is None else self.act(x)


class ConvReLU(nn.Module):
    """Convolution and ReLU, as before BatchNorm came."""

    c: Ctx
    features: int
    kernel: int
    stride: int = 1
    padding: int | None = None
    bias: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        conv = Conv(
            self.c,
            self.features,
            self.kernel,
            self.stride,
            self.padding,
            bias=self.bias,
            name="conv1",
        )
        return nn.relu(conv(x))


class BNConv(nn.Module):
    """BatchNorm, ReLU and convolution: the order of He et al. 2016, arxiv.org/abs/1603.05027."""

    c: Ctx
    features: int
    kernel: int = 1
    stride: int = 1
    groups: int = 1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = nn.relu(BatchNorm(self.c, name="bn")(x))
        return Conv(
            self.c, self.features, self.kernel, self.stride, groups=self.groups, name="conv"
        )(x)


class BNReLU(nn.Module):
    """BatchNorm and ReLU after the last stage of `BNConv`s."""

    c: Ctx

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return nn.relu(BatchNorm(self.c, name="bn")(x))


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
        y = unfused(x.astype(c.head_dtype) @ w.astype(c.head_dtype))
        if self.bias:
            b = self.param("bias", nn.initializers.zeros, (self.features,), c.param_dtype)
            y += b.astype(c.head_dtype)
        return y


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

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = self.c
        x = x.astype(c.head_dtype)
        x = Dropout(c, self.dropout, self.downscale, name="dropout")(x)
        if c.bottleneck is not None:
            x = Linear(c, c.bottleneck, name="bottleneck")(x)
        return Linear(c, self.num_classes, bias=self.bias, name="fc")(x)


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


def drop_path_rates(c: Ctx, depths: Sequence[int], own: float = 0.0) -> list[list[float]]:
    """Returns the rate of each block of each stage: block l of L has l / L of the last one's.

    The last one's is `c.drop_path`, or where that is None the network's `own`.
    """
    last = own if c.drop_path is None else c.drop_path
    rates = iter(np.linspace(0, last, sum(depths) + 1)[1:].tolist())
    return [[next(rates) for _ in range(depth)] for depth in depths]


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


def round_to_8(features: float) -> int:
    """Returns the nearest multiple of 8, or the next one where that loses more than a tenth."""
    nearest = max(8, int(features + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * features else nearest + 8


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


def global_mean(x: Array, c: Ctx) -> Array:
    """Returns the mean over the image, in `c.head_dtype`: [B, H, W, D] -> [B, D]."""
    return x.astype(c.head_dtype).mean((1, 2))


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


# -- What networks are put together with -----------------------------------------------------------

Factory = Callable[..., nn.Module]  # of a block; called as factory(c, name="block1")


def stages_of(depths: Iterable[int], block: Callable[[int, int], Factory]) -> list[list[Factory]]:
    """Returns the blocks of each stage: block(i, j) is block j of stage i, both from 0."""
    return [[block(i, j) for j in range(depth)] for i, depth in enumerate(depths)]


class Stage(nn.Module):
    """Blocks one after the other, after a pool where there is one."""

    c: Ctx
    blocks: tuple[Factory, ...]
    pool: Callable[[Any], Any] | None = None

    @nn.compact
    def __call__(self, x: Any) -> Any:
        if self.pool is not None:
            x = self.pool(x)
        for i, block in enumerate(self.blocks, 1):
            x = block(self.c, name=f"block{i}")(x)
        return x


def remat(cls: type[nn.Module], c: Ctx) -> type[nn.Module]:
    """Returns the class of a stage, recomputed in the backward pass where `c.remat` says so."""
    return nn.remat(cls) if c.remat else cls


def run_stages(
    c: Ctx, x: Any, stages: Sequence[Sequence[Factory]], pool: Callable[[Any], Any] | None = None
) -> list[Any]:
    """Returns the features after each stage; `pool` is between the stages."""
    features = []
    for i, blocks in enumerate(stages, 1):
        x = remat(Stage, c)(c, tuple(blocks), pool if features else None, name=f"stage{i}")(x)
        features.append(x)
    return features


def outputs(
    c: Ctx, features: Sequence[Array], x: Array, head: Callable[[Array], Array]
) -> dict[str, Array]:
    """Returns what a network does: {"stage1": ..., "pre_logits": [B, D], "logits": [B, K]}.

    Args:
      c: the context.
      features: after each stage.
      x: what the head sees, [B, D], or [B, H, W, D] to be averaged.
      head: pre_logits -> logits.
    """
    out = {f"stage{i}": after for i, after in enumerate(features, 1)}
    out["pre_logits"] = x if x.ndim == 2 else global_mean(x, c)
    return out | {"logits": head(out["pre_logits"])}


def forward(
    c: Ctx,
    images: Array,
    *,
    stem: Callable[[Array], Array],
    stages: Sequence[Sequence[Factory]],
    pool: Callable[[Array], Array] | None = None,
    neck: Callable[[Array], Array] | None = None,
    head: Callable[[Array], Array],
) -> dict[str, Array]:
    """Returns the outputs of a network that is stem, stages, neck, mean over the image and head.

    It is called in a compact method, with modules that have their names. See `run_stages` and
    `outputs`.
    """
    features = run_stages(c, stem(images.astype(c.feature_dtype)), stages, pool)
    return outputs(c, features, features[-1] if neck is None else neck(features[-1]), head)
