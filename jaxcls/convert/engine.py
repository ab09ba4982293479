"""Weights of another code base -> {"params", "batch_stats"} of ours, total on both sides.

A family's rule maps the path of one of our layers to the name of theirs; everything else is here.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcls import models, trees

PADDLE_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "_mean",
    "var": "_variance",
}
Rule = Callable[[tuple[str, ...], Any], str]


def from_paddle_layout(array: np.ndarray) -> np.ndarray:
    """Returns a kernel in our layout: convolutions OIHW -> HWIO, linear [in, out] as it is."""
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array


def convert(
    name: str,
    arrays: Mapping[str, np.ndarray],
    rule: Rule,
    leaves: Mapping[str, str],
    layout: Callable[[np.ndarray], np.ndarray],
    **build_overrides,
) -> dict[str, Any]:
    """Returns {"params": ..., "batch_stats": ...} for `models.build(name, **build_overrides)`.

    Args:
      name: of our model.
      arrays: their tensors by name.
      rule: (path of our layer, our module) -> name of their layer.
      leaves: our leaf's name -> theirs.
      layout: their array -> our axis order.

    Raises:
      ValueError: lists every tensor that is missing, unmatched or of another shape.
    """
    module = models.build(name, **build_overrides)
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    target = dict(jax.eval_shape(module.init, jax.random.key(0), image))
    problems, used = [], set()

    def take(path: str, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        _, *layer, last = path.split("/")
        key = f"{rule(tuple(layer), module)}.{leaves[last]}"
        if key not in arrays:
            problems.append(f"{key}: missing (for {path} {leaf.shape})")
            return leaf
        used.add(key)
        array = layout(np.asarray(arrays[key]))
        if array.shape != leaf.shape:
            problems.append(f"{key}: shape {array.shape}, {path} has {leaf.shape}")
        return np.ascontiguousarray(array, dtype=leaf.dtype)

    variables = trees.map_with_path(take, target)
    problems += [f"{key}: no place for it" for key in sorted(arrays.keys() - used)]
    if problems:
        raise ValueError(f"these are not the weights of {name}:\n  " + "\n  ".join(problems))
    return variables
