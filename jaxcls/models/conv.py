"""Convolutions and BatchNorms, and how the ones are folded into the others."""

from collections.abc import Callable, Mapping, Sequence
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


def unfused(x: Array, c: Ctx) -> Array:
    """Returns `x`, the result of a convolution or matrix product, to be computed by itself.

    XLA:CPU of jaxlib 0.12 fuses chains of them, and means that follow, into one kernel, which makes
    NaN and infinity of the bfloat16 between them. Elsewhere it must not be: statistics come with
    the convolution before them.
    """
    if x.dtype == jnp.bfloat16 and (c.platform or jax.default_backend()) == "cpu":
        x = jax.lax.optimization_barrier(x)
    return x


def quantised(x: Array, axis: int | None = None) -> Array:
    """Returns what 8 bits hold of `x`, with the gradient of `x` (straight-through estimator).

    Jacob et al. 2018, arXiv:1712.05877, with the range of the batch at hand; that of
    `export.quantise` is found with images.

    Args:
      x: features, which become uint8 of one scale, zero at one of its steps.
      axis: of weights, int8 with a scale for each entry of that axis.
    """
    wide = jax.lax.stop_gradient(x).astype(jnp.float32)
    if axis is None:
        low, high = jnp.minimum(wide.min(), 0), jnp.maximum(wide.max(), 0)
        scale, least, most = (high - low) / 255, 0, 255
    else:
        others = [i for i in range(x.ndim) if i != axis % x.ndim]
        low, scale = 0.0, jnp.abs(wide).max(others, keepdims=True) / 127
        least, most = -127, 127
    scale = jnp.where(scale > 0, scale, 1)
    zero = jnp.round(-low / scale)
    stored = jnp.clip(jnp.round(wide / scale) + zero, least, most)
    return x + ((stored - zero) * scale - wide).astype(x.dtype)


class Conv(nn.Module):
    """Convolution with explicit padding; by default what keeps the size at stride 1.

    Flax's 'SAME' is not used: at stride 2 it pads more at the end than the reference does. With
    `c.by_platform` depthwise ones are `shifted` on a CPU: the same up to rounding.
    """

    c: Ctx
    features: int
    kernel: int | tuple[int, int] = 1
    stride: int | tuple[int, int] = 1
    padding: Padding | None = None
    groups: int = 1
    bias: bool = False
    dilation: int = 1
    kernel_init: Callable = he_normal

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = self.c
        kernel, stride, padding = self._sizes()
        shape = (*kernel, x.shape[-1] // self.groups, self.features)
        w = self.param("kernel", self.kernel_init, shape, c.param_dtype)
        if c.quantise:
            x, w = quantised(x), quantised(w, -1)

        def of_shifts(x: Array, w: Array) -> Array:
            return shifted(x, w, stride, padding, self.dilation)

        operands = x.astype(c.dtype), w.astype(c.dtype)
        if c.by_platform and 1 < self.groups == self.features == x.shape[-1]:
            y = jax.lax.platform_dependent(*operands, cpu=of_shifts, default=self.convolve)
        else:
            y = self.convolve(*operands)
        y = unfused(y, c).astype(c.feature_dtype)
        if self.bias:
            b = self.param("bias", nn.initializers.zeros, (self.features,), c.param_dtype)
            y += b.astype(c.feature_dtype)
        return y

    def convolve(self, x: Array, w: Array) -> Array:
        """Returns features convolved with a kernel; where devices share images, it is wrapped."""
        _, stride, padding = self._sizes()
        return jax.lax.conv_general_dilated(
            x,
            w,
            stride,
            padding,
            rhs_dilation=(self.dilation, self.dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=self.groups,
        )

    @nn.nowrap
    def _sizes(self) -> tuple[tuple[int, int], tuple[int, int], Padding]:
        """Returns kernel, stride and padding as the convolution takes them."""
        kernel = (self.kernel,) * 2 if isinstance(self.kernel, int) else tuple(self.kernel)
        stride = (self.stride,) * 2 if isinstance(self.stride, int) else tuple(self.stride)
        padding = self.padding
        if padding is None:
            padding = [((k - 1) // 2 * self.dilation,) * 2 for k in kernel]
        if isinstance(padding, int):
            padding = [(padding, padding)] * 2
        return kernel, stride, padding


def shifted(x: Array, w: Array, stride: tuple[int, int], padding: Padding, dilation: int) -> Array:
    """Returns a depthwise convolution: for each place of the kernel the features there, weighted.

    XLA:CPU has no kernel for these convolutions but a loop over single numbers: as a sum they take
    a twentieth to a hundredth of the time, as long as in onnxruntime. Elsewhere they take longer.

    Args:
      x: [B, H, W, C].
      w: [h, w, 1, C].
      stride, padding, dilation: as of `Conv`, of an explicit padding or "SAME".
    """
    reach = [(k - 1) * dilation + 1 for k in w.shape[:2]]
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(x.shape[1:3], reach, stride, padding)
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    down, right = stride
    rows, columns = (s * ((n - r) // s) + 1 for s, n, r in zip(stride, x.shape[1:3], reach))
    wide, total = jnp.promote_types(x.dtype, jnp.float32), 0.0
    for i, j in np.ndindex(*w.shape[:2]):
        top, left = i * dilation, j * dilation
        here = x[:, top : top + rows : down, left : left + columns : right]
        total += here.astype(wide) * w[i, j, 0].astype(wide)
    # fused into each of what takes it, it would be computed several times
    return jax.lax.optimization_barrier(total.astype(x.dtype))


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe and Szegedy 2015), with statistics of groups of images.

    In training the batch is viewed as [groups, c.bn_group, H, W, C]; each group is normalised with
    its own mean and biased variance, as on one card of the published recipes, and the running
    statistics move towards their mean over the groups. Groups that lie within a device need no
    communication and give the same numbers on any number of devices.

    All arithmetic and the running statistics are in `c.norm_dtype` (float32): of 16 bits are only
    inputs, outputs and, where the precision says so, parameters. Mean and variance come from one
    pass over differences d from a number that is near: E[d²] - E[d]². That is the mean of the
    group's first image: with n images in a group it is at most sqrt(n) deviations away, so that at
    most a factor n + 1 of precision is lost, however far from zero the features are. Features in
    bfloat16 take the running mean, which is known before they are, so that a convolution adds up
    while it computes. Where that is not near yet, r deviations away, sums lose a few times
    r² / 2²⁴ of the variance: less than the features' own rounding, by r / 256 deviations, does.

    A BatchNorm whose path `c.frozen` names uses its running statistics in training too and leaves
    them as they are.
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
        if not c.train or frozen:
            values, mean, var = x.astype(dtype), running_mean.value, running_var.value
        else:
            group = c.bn_group or x.shape[0]
            assert x.shape[0] % group == 0, f"{x.shape[0]} images in groups of {group}"
            grouped = x.reshape(-1, group, *x.shape[1:])
            axes = tuple(range(1, grouped.ndim - 1))
            near = running_mean.value
            if x.dtype != jnp.bfloat16:
                # cut out before it is made wide: XLA for TPUs would keep all of the wide features
                first = jax.lax.stop_gradient(grouped[:, :1]).astype(dtype)
                near = first.mean(axes, keepdims=True)
            values = grouped.astype(dtype) - near
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
    stride: int | tuple[int, int] = 1
    padding: Padding | None = None
    groups: int = 1
    act: Callable[[Array], Array] | None = None
    dilation: int = 1
    bias: bool = False  # of the convolution, although BatchNorm has one

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = Conv(
            self.c,
            self.features,
            self.kernel,
            self.stride,
            self.padding,
            self.groups,
            bias=self.bias or self.c.folded,
            dilation=self.dilation,
            name="conv",
        )(x)
        if not self.c.folded:
            x = BatchNorm(self.c, name="bn")(x)
        # BatchNorm's factors change the scales of the weights, which are those of channels; a limit
        # is part of the convolution
        if self.c.quantise and self.act not in (nn.relu, nn.relu6):
            x = quantised(x)
        return x if self.act is None else self.act(x)


class Norm(nn.Module):
    """BatchNorm where others have a convolution before it."""

    c: Ctx

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return BatchNorm(self.c, name="bn")(x)


class BranchedConvBN(nn.Module):
    """The sum of convolutions with kernels of several sizes, each with BatchNorm.

    Ding et al. 2021, RepVGG (https://arxiv.org/abs/2101.03697). Folded it is one convolution, see
    `fold`.
    """

    c: Ctx
    features: int
    kernels: tuple[int, ...]  # the largest first
    stride: int = 1
    groups: int = 1
    identity: bool = False  # a further branch of BatchNorm alone

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c, shape = self.c, (self.stride, None, self.groups)
        if c.folded:
            return Conv(c, self.features, self.kernels[0], *shape, bias=True, name="conv")(x)
        y = sum(ConvBN(c, self.features, k, *shape, name=f"conv{k}")(x) for k in self.kernels)
        return y + Norm(c, name="identity")(x) if self.identity else y


def fold(variables: Any, wanted: Any, epsilon: float) -> dict[str, Any]:
    """Returns variables with BatchNorms folded into the convolutions before them.

    BatchNorm with running statistics is a factor and an offset of each channel, and branches that
    add up are one convolution with the sum of their kernels, padded to the size of the largest; a
    branch of BatchNorm alone has a kernel of ones on the diagonal.
    Computed in float64. It is for evaluation: what comes out does not train as it did.

    Args:
      variables: {"params", "batch_stats"} of a network.
      wanted: those, or their shapes, of the same with `Ctx.folded`, or of another form of it: by
        them it is seen what has to be folded.
      epsilon: of its BatchNorms.

    Raises:
      ValueError: that form does not follow by folding.
    """
    stats, left = variables.get("batch_stats", {}), wanted.get("batch_stats", {})
    params = _fold(variables["params"], stats, wanted["params"], epsilon)
    return {"params": params, "batch_stats": _pick(stats, left)}


def _pick(tree: Any, wanted: Any) -> Any:
    return {k: _pick(tree[k], wanted[k]) for k in wanted} if isinstance(tree, Mapping) else tree


def _fold(params: Any, stats: Any, wanted: Any, epsilon: float) -> Any:
    if not isinstance(wanted, Mapping):
        return params
    if wanted.keys() == params.keys():
        return {k: _fold(params[k], stats.get(k, {}), wanted[k], epsilon) for k in wanted}
    branches = [(params, stats)] if "bn" in params else [(params[k], stats.get(k)) for k in params]
    if wanted.keys() != {"conv"} or any(p.keys() | {"conv"} != {"conv", "bn"} for p, _ in branches):
        raise ValueError(f"{sorted(params)} cannot be folded into {sorted(wanted)}")
    *size, inputs, features = wanted["conv"]["kernel"].shape
    diagonal = {"kernel": np.tile(np.eye(inputs), features // inputs)[None, None]}
    kernel, bias = 0.0, 0.0
    for p, s in branches:
        conv = p.get("conv", diagonal)
        w, offset, scale, shift, mean, var = (
            np.asarray(x, np.float64)
            for x in (conv["kernel"], conv.get("bias", 0), *map(p["bn"].get, ("scale", "bias")),
                      *map(s["bn"].get, ("mean", "var")))
        )  # fmt: skip
        factor = scale / np.sqrt(var + epsilon)
        around = [((most - n) // 2,) * 2 for most, n in zip(size, w.shape[:-2])]
        kernel += np.pad(w * factor, (*around, (0, 0), (0, 0)))
        bias += shift + (offset - mean) * factor
    dtype = jax.tree.leaves(params)[0].dtype
    return {"conv": {"kernel": kernel.astype(dtype), "bias": bias.astype(dtype)}}


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
