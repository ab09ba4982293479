"""Where a network looked: Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391)."""

import re
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxcls import precision
from jaxcls.network import Network

BATCH = 8  # images that are computed together, at most


def grad_cam(
    network: Network, variables: Any, images: np.ndarray, classes: np.ndarray | None = None
) -> np.ndarray:
    """Returns how much each place spoke for a class, float32 [N, H, W] in [0, 1].

    The features of the last map before places are averaged, weighted by the mean gradient of the
    class's logit, what is negative cut off. The map is what the neck returns, or the last stage.

    Args:
      network: that predicts.
      variables: of it.
      images: uint8 [N, S, S, C], as `network.transform` makes them.
      classes: int [N]; None: the predicted ones.
    """
    return together(make(network), variables, images, classes)


def together(
    cam: Callable[..., jax.Array],
    variables: Any,
    images: np.ndarray,
    classes: np.ndarray | None = None,
) -> np.ndarray:
    """Returns what `cam`, of `make`, says of any number of images; see `grad_cam`."""
    classes = np.full(len(images), -1) if classes is None else np.asarray(classes)
    parts = []
    for start in range(0, len(images), BATCH):
        part = slice(start, start + BATCH)
        n = len(images[part])
        room = [(0, (1 << (n - 1).bit_length()) - n)]  # few programs: powers of two
        padded = np.pad(images[part], room + [(0, 0)] * 3, "edge")
        its = np.pad(classes[part].astype(np.int32), room, "edge")
        parts.append(np.asarray(cam(variables, padded, its), np.float32)[:n])
    return np.concatenate(parts)


def make(network: Network) -> Callable[..., jax.Array]:
    """Returns f(variables, images, classes) -> [B, H, W], jitted; a class of -1: the predicted."""

    def cam(variables, images, classes):
        part, shape, grid = _last_map(network, variables, images)

        def score(zero):
            features = []

            def add(call, args, kwargs, context):
                y = call(*args, **kwargs)
                if context.module.path != (part,) or context.method_name != "__call__":
                    return y
                *others, last = jax.tree.leaves(y)
                features.append(last)
                return jax.tree.unflatten(jax.tree.structure(y), [*others, last + zero])

            with nn.intercept_methods(add):
                logits = _outputs(network, variables, images)["logits"]
            its = jnp.where(classes < 0, logits.argmax(-1), classes)
            score = jnp.take_along_axis(logits, its[:, None], -1).sum()
            return score.astype(jnp.float32), features[0]

        found = jax.grad(score, has_aux=True)(jnp.zeros(shape.shape, shape.dtype))
        # behind class tokens the places are in a row
        rows = -grid[0] * grid[1]
        gradient, y = (x if x.ndim == 4 else x[:, rows:].reshape(len(x), *grid, -1) for x in found)
        weights = gradient.astype(jnp.float32).mean((1, 2), keepdims=True)
        heat = jax.nn.relu((weights * y).sum(-1))
        return heat / jnp.maximum(heat.max((1, 2), keepdims=True), 1e-12)

    return jax.jit(cam)


def _last_map(network: Network, variables: Any, images: Any) -> tuple[str, Any, tuple[int, int]]:
    """Returns which part gives the last map, what it returns, and the map's height and width.

    That is [B, H, W, C], or tokens [B, T, C] whose last H x W are the map. Of a part that returns
    several (GoogLeNet: after each block) it is the last one. Where the classifier sees class tokens
    alone, after the last attention, the module says with `looked` which part is before that.
    """
    found, looked = {}, getattr(network.module, "looked", r"stage\d+|neck")

    def look(call, args, kwargs, context):
        y = call(*args, **kwargs)
        name = "/".join(context.module.path)
        if context.method_name == "__call__" and re.fullmatch(looked, name):
            last = jax.tree.leaves(y)[-1]
            found[name] = jax.ShapeDtypeStruct(last.shape, last.dtype)
        return y

    with nn.intercept_methods(look):
        outputs = jax.eval_shape(lambda: _outputs(network, variables, images))
    maps = {n: x for n, x in found.items() if getattr(outputs.get(n, x), "ndim", 0) == 4}
    name, shape = list(maps.items())[-1]
    return name, shape, outputs.get(name, shape).shape[1:3]


def _outputs(network: Network, variables: Any, images: Any) -> dict[str, jax.Array]:
    with jax.default_matmul_precision(precision.matmul(network.precision)):
        return network.module.apply(variables, network.normalise(images), train=False)
