"""ONNX, from what JAX traces: one node an operation, the batch of any size."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import onnx

import jaxcls
from jaxcls.export.graph import Graph
from jaxcls.export.jaxpr import NCHW, Translator, Value
from jaxcls.export.rules import RULES

BATCH = "batch"  # what the first axis is called


def convert(
    program: Callable[[jax.Array], Mapping[str, jax.Array]],
    images: jax.ShapeDtypeStruct,
    metadata: Mapping[str, str],
    change: Callable[[Graph, Mapping[str, Any], list[str]], None] | None = None,
) -> onnx.ModelProto:
    """Returns the model of a function of images, whose outputs have its names.

    Args:
      program: images -> {name: [B, ...]}; weights are constants of it.
      images: shape and dtype; the size of the batch may be a symbol of `jax.export`.
      metadata: goes into the model.
      change: is given the graph before it is written, its inputs, {name: (dtype, shape)}, and the
        names of its outputs.

    Raises:
      NotImplementedError: it does what ONNX, or `rules`, cannot.
    """
    traced = jax.jit(program).trace(images)
    graph = Graph()
    translator = Translator(graph, images.shape[0], RULES)
    graph.name("images")  # taken
    name, order = "images", tuple(range(images.ndim))
    if images.dtype == np.uint8 and images.ndim == 4:  # as convolutions want them, while small
        name, order = graph.add("Transpose", name, perm=list(NCHW)), NCHW
    given = Value(tuple(images.shape), images.dtype, name, None, order)
    graph.shapes[name] = tuple(given.stored)
    outs = translator.run(traced.jaxpr.jaxpr, traced.jaxpr.consts, [given])
    names = sorted(traced.out_info)  # the order of leaves
    results = {}
    for name, value in zip(names, outs, strict=True):
        graph.add_as(name, "Identity", translator.tensor(value))
        results[name] = value
    graph.simplify(names)

    def shape(sizes: Any) -> list[Any]:
        return [n if isinstance(n, int) else BATCH for n in sizes]

    inputs = {"images": (images.dtype, shape(images.shape))}
    if change is not None:
        change(graph, inputs, names)
    return graph.model(
        inputs,
        {name: (np.dtype(v.dtype), shape(v.shape)) for name, v in results.items()},
        metadata,
        ("jaxcls", jaxcls.__version__),
    )
