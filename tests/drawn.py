"""Weights to test with, drawn from a fixed seed."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxcls import trees


def random_like(tree, seed=0):
    """Returns variables of these shapes as training could leave them: nothing is 0, 1 or equal."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        last = path.rpartition("/")[2]
        if last in ("scale", "var"):
            return jnp.asarray(rng.uniform(0.5, 2, leaf.shape), leaf.dtype)
        fan_in = np.prod(leaf.shape[:-1]) if last == "kernel" else 4
        return jnp.asarray(rng.normal(0, fan_in**-0.5, leaf.shape), leaf.dtype)

    return trees.map_with_path(draw, tree)


def steady(shapes):
    """Returns values with which signals keep their size and most ReLUs are open.

    Networks whose ReLUs are closed at random are chaotic: they enlarge rounding by orders of
    magnitude with every few layers. Those with LayerNorms alone have others: there what is added
    everywhere would drown what images differ in.
    """
    rng = np.random.default_rng(0)
    layer_norms = any("/norm" in path for path in trees.paths(shapes))
    added = 0.0 if layer_norms and not shapes.get("batch_stats") else 1.0

    def values(path, leaf):
        normal = rng.standard_normal(leaf.shape, dtype=np.float32)
        if path.endswith("/scale"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        if len(leaf.shape) == 1:
            return (1 if path.endswith("/var") else added) + 0.1 * normal
        return normal * np.sqrt(2 / np.prod(leaf.shape[:-1]), dtype=np.float32)

    return trees.map_with_path(values, shapes)


def settled(module, variables, images):
    """Returns variables whose BatchNorms have the statistics of these images, as it takes them.

    Without them signals grow from layer to layer, the more where features are multiplied with each
    other, and rounding with them.
    """
    if not variables.get("batch_stats"):
        return variables
    module = module.clone(c=module.c.replace(bn_momentum=0.0))

    @jax.jit
    def measure(variables, images):
        rngs = {"dropout": jax.random.key(0)}
        return module.apply(variables, images, train=True, mutable=["batch_stats"], rngs=rngs)[1]

    return variables | jax.device_get(measure(variables, images))
