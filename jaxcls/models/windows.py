"""Attention within windows of a grid."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxcls.models.attention import attend
from jaxcls.models.spec import Ctx

Array = jax.Array


def padded(x: Array, multiple: int) -> Array:
    """Returns a grid [B, H, W, D] with zeros after it, so that both sizes are multiples."""
    rest = [(0, -n % multiple) for n in x.shape[1:3]]
    return jnp.pad(x, ((0, 0), *rest, (0, 0))) if any(n for _, n in rest) else x


def windows_of(x: Array, window: tuple[int, int], heads: int) -> Array:
    """Returns a grid as places of windows x heads: [B, H, W, D] -> [B, h * w, windows * heads, .].

    Attention within windows is that of so many heads: no array but the bias depends on which window
    it is, and the batch stays the first axis.
    """
    b, height, width, features = x.shape
    h, w = window
    x = x.reshape(b, height // h, h, width // w, w, heads, features // heads)
    return x.transpose(0, 2, 4, 1, 3, 5, 6).reshape(b, h * w, -1, features // heads)


def unwindowed(x: Array, window: tuple[int, int], shape: tuple[int, int]) -> Array:
    """Returns the inverse of `windows_of`, for a grid of that height and width."""
    b, (h, w), (height, width) = x.shape[0], window, shape
    x = x.reshape(b, h, w, height // h, width // w, -1, x.shape[-1])
    return x.transpose(0, 3, 1, 4, 2, 5, 6).reshape(b, height, width, -1)


def rolled(x: Array, shift: tuple[int, int]) -> Array:
    """Returns a grid [B, H, W, D] whose places have gone down and right, round the border."""
    return jnp.roll(x, shift, (1, 2)) if any(shift) else x


def between_parts(shape: tuple[int, int], window: int, shift: int) -> np.ndarray:
    """Returns which places of a window were apart before `rolled(x, -shift)`: [windows, T, T].

    Liu et al. 2021, Swin (https://arxiv.org/abs/2103.14030), figure 4: windows that have grown
    together at the border are parts of the image that do not see each other.
    """
    part = lambda n: (np.arange(n) >= n - window).astype(int) + (np.arange(n) >= n - shift)
    grid = 3 * part(shape[0])[:, None] + part(shape[1])
    h, w = (n // window for n in shape)
    parts = grid.reshape(h, window, w, window).transpose(0, 2, 1, 3).reshape(h * w, -1)
    return parts[:, :, None] != parts[:, None]


FAR = -100.0  # what is added before the softmax to what is apart


def attend_windows(
    c: Ctx,
    qkv: tuple[Array, Array, Array],
    heads: int,
    window: tuple[int, int],
    bias: Array | None = None,
    shift: int = 0,
    scale: float | None = None,
) -> Array:
    """Returns attention within windows of a grid, which they fill: [B, H, W, D].

    Args:
      c: the context.
      qkv: queries, keys and values, [B, H, W, D] each.
      heads: of the attention.
      window: its height and width.
      bias: [1, heads, T, T], T places of a window.
      shift: that the grid has been rolled up and left.
      scale: see `attend`.
    """
    shape = qkv[0].shape[1:3]
    if bias is not None:
        bias = bias[:, None]
        if shift:
            apart = np.where(between_parts(shape, window[0], shift), FAR, 0).astype(np.float32)
            bias = bias + apart[None, :, None]
        count = math.prod(shape) // math.prod(window)
        bias = jnp.broadcast_to(bias, (1, count, *bias.shape[2:])).reshape(1, -1, *bias.shape[3:])
    parts = (windows_of(x, window, heads) for x in qkv)
    return unwindowed(attend(c, *parts, bias, scale), window, shape)


def merged(x: Array) -> Array:
    """Returns four neighbours as one place: [B, H, W, D] -> [B, H / 2, W / 2, 4 D]."""
    b, h, w, d = (x := padded(x, 2)).shape
    x = x.reshape(b, h // 2, 2, w // 2, 2, d).transpose(0, 1, 3, 4, 2, 5)
    return x.reshape(b, h // 2, w // 2, 4 * d)
