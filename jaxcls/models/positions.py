"""What tells places from each other: values that adapt to images of another size.

How values adapt to images of another size, when a network starts from weights of one and trains on
another, and when it evaluates images of another size than it was trained on:

| value      | how                                                                             |
|------------|---------------------------------------------------------------------------------|
| pos_embed  | the grid by cubic interpolation, with antialiasing where it shrinks, as timm    |
|            | does; what stands before the grid, class tokens, stays as it is                 |
| bias_table | the grid of distances by cubic interpolation as Swin's authors do; what stands  |
|            | after it, of class tokens, stays as it is                                       |
| bias_grid  | likewise, of a table of distances without direction                             |

Both in float32. Grids are square in weights; images may have any shape that the network takes.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxcls.models.spec import Ctx
from jaxcls.models.tokens import normal_02, stored

Array = jax.Array


def cubic(old: int, new: int, antialias: bool) -> np.ndarray:
    """Returns the matrix float32 [new, old] that interpolates `old` values at `new` places.

    Keys 1981. As PyTorch and PIL: with `antialias` the kernel of parameter -0.5, as wide as what it
    shrinks and normalised at the border; without it the one of -0.75, the border repeated.
    """
    at = (np.arange(new) + 0.5) * old / new - 0.5
    if antialias:
        far = np.abs(at[:, None] - np.arange(old)) / max(old / new, 1)
        weights = _keys(far, -0.5)
        return (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    weights, first = np.zeros((new, old)), np.floor(at).astype(int)
    for i in range(-1, 3):
        near = np.clip(first + i, 0, old - 1)
        np.add.at(weights, (np.arange(new), near), _keys(np.abs(at - first - i), -0.75))
    return weights.astype(np.float32)


def _keys(x: np.ndarray, a: float) -> np.ndarray:
    """Returns the cubic kernel at distances x."""
    inner = ((a + 2) * x - (a + 3)) * x * x + 1
    outer = a * (((x - 5) * x + 8) * x - 4)
    return np.where(x < 1, inner, np.where(x < 2, outer, 0))


def side(cells: int, most: int) -> int:
    """Returns the side of a square grid that has so many cells but for at most `most`, or 0."""
    n = math.isqrt(cells)
    return n if cells - n * n <= most else 0


def positions(value: Any, shape: tuple[int, int], before: int) -> Any:
    """Returns position embeddings [1, before + h * w, D] for a grid of that shape.

    Args:
      value: [1, before + n * n, D], or of the grid's own size, which comes back as it is.
      shape: (h, w) of the grid.
      before: class tokens.
    """
    if value.shape[1] == before + math.prod(shape):
        return value
    n = side(value.shape[1] - before, 0)
    assert n, f"position embeddings {value.shape}"
    rows, columns = (cubic(n, m, antialias=True) for m in shape)
    grid = value[0, before:].reshape(n, n, -1).astype(np.float32)
    grid = _interpolated(grid, rows, columns).astype(value.dtype)
    xp = np if isinstance(value, np.ndarray) else jnp
    return xp.concatenate([value[:, :before], grid[None]], 1)


def relative(value: Any, window: tuple[int, int], after: int) -> Any:
    """Returns a table of distances [(2h - 1) (2w - 1) + after, N] of a window h x w.

    Args:
      value: [(2n - 1)^2 + after, N], or of the window's own size, which comes back as it is.
      window: (h, w).
      after: rows of class tokens.
    """
    shape = tuple(2 * n - 1 for n in window)
    if value.shape[0] == math.prod(shape) + after:
        return value
    n = side(value.shape[0] - after, 0)
    assert n, f"a table of distances {value.shape}"
    rows, columns = (cubic(n, m, antialias=False) for m in shape)
    grid = value[: n * n].reshape(n, n, -1).astype(np.float32)
    grid = _interpolated(grid, rows, columns).astype(value.dtype)
    xp = np if isinstance(value, np.ndarray) else jnp
    return xp.concatenate([grid, value[n * n :]], 0)


def undirected(value: Any, shape: tuple[int, int]) -> Any:
    """Returns a table of distances without direction [N, h * w] for a grid of that shape.

    Args:
      value: [N, n * n], or of the grid's own size, which comes back as it is.
      shape: (h, w) of the grid.
    """
    if value.shape[1] == math.prod(shape):
        return value
    n = side(value.shape[1], 0)
    assert n, f"a table of distances {value.shape}"
    rows, columns = (cubic(n, m, antialias=False) for m in shape)
    grid = value.T.reshape(n, n, -1).astype(np.float32)
    return _interpolated(grid, rows, columns).astype(value.dtype).T


def _interpolated(grid: Any, rows: np.ndarray, columns: np.ndarray) -> Any:
    """Returns rows @ grid @ columns.T of each channel, one row a cell: [n, n, D] -> [h * w, D]."""
    xp = np if isinstance(grid, np.ndarray) else jnp
    return xp.einsum("hi,wj,ijd->hwd", rows, columns, grid, optimize=True).reshape(
        -1, grid.shape[-1]
    )


def adapted(path: str, value: np.ndarray, shape: Sequence[int]) -> np.ndarray | None:
    """Returns a value of weights for a network in which it has another shape, or None.

    See the table at the top of this file.

    Args:
      path: of the parameter.
      value: in the weights.
      shape: in the network.
    """
    *_, name, leaf = ["", *path.split("/")]
    if leaf != "value" or len(value.shape) != len(shape):
        return None
    if name == "pos_embed" and value.shape[::2] == tuple(shape)[::2]:
        grids = [(side(n, 2), n) for n in (value.shape[1], shape[1])]
        (a, before), (b, now) = [(n, cells - n * n) for n, cells in grids]
        return positions(value, (b, b), now) if a and b and before == now else None
    if name == "bias_table" and value.shape[1] == shape[1]:
        grids = [(side(n, 3), n) for n in (value.shape[0], shape[0])]
        (a, after), (b, now) = [(n, cells - n * n) for n, cells in grids]
        odd = a % 2 and b % 2 and after == now
        return relative(value, ((b + 1) // 2,) * 2, now) if odd else None
    if name == "bias_grid" and value.shape[0] == shape[0]:
        a, b = (side(n, 0) for n in (value.shape[1], shape[1]))
        return undirected(value, (b, b)) if a and b else None
    return None


class PositionEmbedding(nn.Module):
    """Adds an embedding of each place: tokens [B, before + h * w, D], (h, w) -> the same."""

    c: Ctx
    before: int = 0  # class tokens

    @nn.compact
    def __call__(self, x: Array, shape: tuple[int, int]) -> Array:
        value = stored(self, (1, *x.shape[1:]), normal_02, self.c.param_dtype)
        return x + positions(value, shape, self.before).astype(x.dtype)


def distances(window: tuple[int, int], class_token: bool = False) -> np.ndarray:
    """Returns the row of a table of distances for each pair of places in a window: int [T, T].

    Rows go from the place that is furthest before to the one furthest after. A class token is the
    first place, and has the last three rows: from it, to it, and to itself.
    """
    h, w = window
    y, x = (np.ravel(a) for a in np.mgrid[:h, :w])
    rows = (y[:, None] - y + h - 1) * (2 * w - 1) + x[:, None] - x + w - 1
    if class_token:
        last = (2 * h - 1) * (2 * w - 1)
        rows = np.pad(rows, ((1, 0), (1, 0)))
        rows[0], rows[:, 0], rows[0, 0] = last, last + 1, last + 2
    return rows


class RelativeBias(nn.Module):
    """Bias of attention by how far places are from each other in a window: [1, heads, T, T].

    Shaw et al. 2018 (https://arxiv.org/abs/1803.02155), as Swin has it.
    """

    c: Ctx
    heads: int
    window: tuple[int, int]
    class_token: bool = False
    init: Callable = normal_02

    @nn.compact
    def __call__(self) -> Array:
        rows, after = distances(self.window, self.class_token), 3 * self.class_token
        shape = (math.prod(2 * n - 1 for n in self.window) + after, self.heads)
        value = stored(self, shape, self.init, self.c.param_dtype)
        return relative(value, self.window, after)[rows].transpose(2, 0, 1)[None]
