"""Attention of all places to all."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcls.models.layers import DropPath, unfused
from jaxcls.models.spec import Ctx
from jaxcls.models.tokens import MLP, Dense, LayerNorm, LayerScale, gelu

Array = jax.Array


def heads_of(x: Array, heads: int) -> Array:
    """Returns [B, T, D] as [B, T, heads, D / heads]."""
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)


def attend(
    c: Ctx, q: Array, k: Array, v: Array, bias: Array | None = None, scale: float | None = None
) -> Array:
    """Returns softmax(scale q k + bias) v of each head: [B, T, N, H], [B, S, N, H] -> [B, T, N, H].

    Products are of `c.dtype`, the softmax is in float32. On GPUs in half precision it is cuDNN's
    kernel, which keeps no T x S array, where that takes the shapes and there is no bias. Elsewhere
    training in bfloat16 rounds the scaled queries and the scores before the softmax, as the mixed
    precision of PaddleClas and PyTorch does: T x S arrays are most of what attention moves. There
    it has no forward-mode derivative.

    Args:
      c: the context.
      q, k, v: queries, keys and values; v may have another width than q and k.
      bias: [1 or B, N, T, S], added before the softmax.
      scale: None: 1 / sqrt(H).
    """
    q, k, v = (x.astype(c.dtype) for x in (q, k, v))
    bits, equal = jnp.finfo(c.dtype).bits, q.shape[-1] == v.shape[-1]
    kernel = c.kernels and bias is None and bits == 16 and equal and _flash(q.shape[-1])
    lean = c.train and c.dtype == jnp.bfloat16
    # JAX's function refuses float16 on CPUs and rounds float64
    if kernel or (equal and not lean and c.dtype in (jnp.bfloat16, jnp.float32)):
        y = jax.nn.dot_product_attention(
            q, k, v, bias, scale=scale, implementation="cudnn" if kernel else None
        )
    else:
        y = _attend(q, k, v, bias, scale or q.shape[-1] ** -0.5, lean)
    return unfused(y, c).astype(c.feature_dtype)


def _attend(q: Array, k: Array, v: Array, bias: Array | None, scale: float, lean: bool) -> Array:
    """Returns what `attend` does by its formula, of any widths; lean: for training in bfloat16."""
    wide = jnp.promote_types(q.dtype, jnp.float32)
    if lean:  # scaled before, so that scores are written once, in 16 bits
        q = (q.astype(wide) * scale).astype(q.dtype)
        logits = jnp.einsum("btnh,bsnh->bnts", q, k).astype(wide)
    else:
        logits = jnp.einsum("btnh,bsnh->bnts", q, k, preferred_element_type=wide) * scale
    logits = logits if bias is None else logits + bias
    weights = _weights(logits, v.dtype) if lean else jax.nn.softmax(logits).astype(v.dtype)
    return jnp.einsum("bnts,bsnh->btnh", weights, v)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _weights(logits: Array, dtype: Any) -> Array:
    """Returns the softmax in `dtype`, of which nothing wider is kept for the backward pass."""
    return jax.nn.softmax(logits).astype(dtype)


def _weights_forward(logits: Array, dtype: Any) -> tuple[Array, Array]:
    weights = _weights(logits, dtype)
    return weights, weights


def _weights_backward(dtype: Any, weights: Array, gradient: Array) -> tuple[Array]:
    wide = jnp.promote_types(dtype, jnp.float32)
    weights, gradient = weights.astype(wide), gradient.astype(wide)
    return (weights * (gradient - (weights * gradient).sum(-1, keepdims=True)),)


_weights.defvjp(_weights_forward, _weights_backward)


def _flash(width: int) -> bool:
    """Returns whether the device that is computed on has cuDNN's kernel for heads so wide."""
    if jax.default_backend() != "gpu" or width % 8 or width > 128:
        return False
    return float(getattr(jax.local_devices()[0], "compute_capability", 0)) >= 8


class Attention(nn.Module):
    """Self-attention of several heads (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762)."""

    c: Ctx
    heads: int
    bias: bool = True  # of queries, keys and values
    scale: float | None = None  # None: 1 / sqrt(width of a head)
    relative: Callable[..., nn.Module] | None = None  # makes the bias; called with `c` and `name`

    @nn.compact
    def __call__(self, x: Array) -> Array:
        qkv = Dense(self.c, 3 * x.shape[-1], self.bias, name="qkv")(x)
        q, k, v = (heads_of(y, self.heads) for y in jnp.split(qkv, 3, -1))
        bias = self.relative(self.c, name="bias_table")() if self.relative is not None else None
        y = attend(self.c, q, k, v, bias, self.scale)
        return Dense(self.c, x.shape[-1], name="proj")(y.reshape(x.shape))


def beside(
    c: Ctx,
    x: Array,
    *branches: Callable[[Array], Array],
    drop_path: float,
    epsilon: float = 1e-5,
    gamma: float | None = None,
) -> Array:
    """Returns what comes out of branches, each after a LayerNorm and beside a shortcut.

    It is called in a compact method, whose modules are norm1, gamma1, drop_path1, norm2, ...

    Args:
      c: the context.
      x: tokens or a grid.
      branches: one after the other.
      drop_path: how often a branch is left out in training.
      epsilon: of the LayerNorms.
      gamma: first factor of each channel of a branch; None: no `LayerScale`.
    """
    for i, branch in enumerate(branches, 1):
        y = branch(LayerNorm(c, epsilon, name=f"norm{i}")(x))
        if gamma is not None:
            y = LayerScale(c, gamma, name=f"gamma{i}")(y)
        x += DropPath(c, drop_path, name=f"drop_path{i}")(y)
    return x


class Block(nn.Module):
    """Attention and MLP, each after a LayerNorm and beside a shortcut."""

    c: Ctx
    heads: int
    hidden: int  # features inside the MLP
    qkv_bias: bool = True
    scale: float | None = None
    epsilon: float = 1e-6
    drop_path: float = 0.0
    gamma: float | None = None  # first factor of each channel; None: no `LayerScale`
    relative: Callable[..., nn.Module] | None = None
    act: Callable[[Array], Array] = gelu

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = self.c
        attention = Attention(c, self.heads, self.qkv_bias, self.scale, self.relative, name="attn")
        mlp = MLP(c, self.hidden, self.act, name="mlp")
        options = {"drop_path": self.drop_path, "epsilon": self.epsilon, "gamma": self.gamma}
        return beside(c, x, attention, mlp, **options)
