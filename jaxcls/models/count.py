"""Parameters and multiply-adds, counted from the program that runs."""

import math
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


def equations(jaxpr: Any) -> Iterator[Any]:
    """Yields every equation of a program, inner programs' too, each once: loops count once."""
    for eqn in jaxpr.eqns:
        yield eqn
        for value in eqn.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)


def _macs(jaxpr: Any) -> int:
    total = 0
    for eqn in equations(jaxpr):
        out = eqn.outvars[0].aval
        if eqn.primitive.name == "conv_general_dilated":
            kernel = eqn.invars[1].aval.shape
            features = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
            total += out.size * math.prod(kernel) // features
        elif eqn.primitive.name == "dot_general":
            (contract, _), _ = eqn.params["dimension_numbers"]
            total += out.size * math.prod(eqn.invars[0].aval.shape[d] for d in contract)
    return total


def multiply_adds(fn, *args) -> int:
    """Returns the multiply-adds of convolutions and matrix products in `fn(*args)`.

    Args:
      fn: any function that JAX can trace; loops count once.
      *args: arrays or `jax.ShapeDtypeStruct`s.
    """
    return _macs(jax.make_jaxpr(fn)(*args).jaxpr)


def parameters(tree: Any) -> int:
    """Returns the number of elements in a tree of arrays or shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def count(module: nn.Module, size: int, channels: int = 3) -> dict[str, int]:
    """Returns {"params": trainable parameters, "macs": multiply-adds of one image's forward pass}.

    Nothing is computed: shapes alone are followed.
    """
    image = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)

    def forward(image):
        out, variables = module.init_with_output(jax.random.key(0), image)
        return out["logits"], variables["params"]

    jaxpr, (_, params) = jax.make_jaxpr(forward, return_shape=True)(image)
    return {"params": parameters(params), "macs": _macs(jaxpr.jaxpr)}
