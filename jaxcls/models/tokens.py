"""Parameters and matrices of networks whose places are tokens [B, T, D] or grids [B, H, W, D].

What is a parameter by itself (position embeddings, class tokens, tables of relative positions,
factors of channels) is a `Value`, whose leaf is called "value": a rule about all of them, such as
that nothing but matrices decays, is the pattern "/(bias|scale|value)$".
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax

from jaxcls.models.layers import BatchNorm, Linear
from jaxcls.models.spec import Ctx

Array = jax.Array


normal_02 = nn.initializers.truncated_normal(0.02)
"""What vision transformers draw, of two standard deviations at most."""

gelu = partial(nn.gelu, approximate=False)
"""x Phi(x) (Hendrycks and Gimpel 2016, https://arxiv.org/abs/1606.08415)."""


def quick_gelu(x: Array) -> Array:
    """Returns x sigmoid(1.702 x), nearly the same, from the same paper."""
    return x * nn.sigmoid(1.702 * x)


def stored(module: nn.Module, shape: Sequence[int], init: Callable, dtype: Any) -> Array:
    """Returns the parameter "value" of a module; one that is stored in another shape, in that."""
    if module.has_variable("params", "value"):
        return module.get_variable("params", "value")
    return module.param("value", init, tuple(shape), dtype)


class Value(nn.Module):
    """A parameter of its own."""

    c: Ctx
    shape: tuple[int, ...]
    init: Callable = normal_02

    @nn.compact
    def __call__(self) -> Array:
        return self.param("value", self.init, self.shape, self.c.param_dtype)


class Dense(Linear):
    """Linear layer on the last axis, in the precision of convolutions."""

    kernel_init: Callable = normal_02

    @nn.nowrap
    def dtypes(self) -> tuple[Any, Any]:
        """Returns what it computes in, and what comes out."""
        return self.c.dtype, self.c.feature_dtype


class DenseBN(nn.Module):
    """Linear layer and BatchNorm, which `layers.fold` takes for a 1x1 convolution."""

    c: Ctx
    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = Dense(self.c, self.features, self.c.folded, name="conv")(x)
        return x if self.c.folded else BatchNorm(self.c, name="bn")(x)


class LayerNorm(nn.Module):
    """Layer normalisation (Ba et al. 2016, https://arxiv.org/abs/1607.06450) of the last axis.

    Arithmetic is in `c.norm_dtype`, float32; the variance is of the differences from the mean.
    """

    c: Ctx
    epsilon: float = 1e-5
    whole: bool = False  # statistics of a whole image, as of a GroupNorm of one group

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c, shape = self.c, (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, shape, c.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, shape, c.param_dtype)
        wide = x.astype(c.norm_dtype)
        axes = tuple(range(1, x.ndim)) if self.whole else -1
        wide -= wide.mean(axes, keepdims=True)
        wide *= jax.lax.rsqrt((wide * wide).mean(axes, keepdims=True) + self.epsilon)
        return (wide * scale.astype(c.norm_dtype) + bias.astype(c.norm_dtype)).astype(x.dtype)


class LayerScale(nn.Module):
    """A factor for each channel (Touvron et al. 2021, https://arxiv.org/abs/2103.17239)."""

    c: Ctx
    initial: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        init = nn.initializers.constant(self.initial)
        return x * self.param("value", init, x.shape[-1:], self.c.param_dtype).astype(x.dtype)


class MLP(nn.Module):
    """Two linear layers with an activation between them."""

    c: Ctx
    hidden: int
    act: Callable[[Array], Array] = gelu

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = self.act(Dense(self.c, self.hidden, name="fc1")(x))
        return Dense(self.c, x.shape[-1], name="fc2")(y)
