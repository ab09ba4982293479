"""From what JAX traced, a jaxpr, to an ONNX graph.

Each equation becomes one node where ONNX has the operation. A value remembers in which order its
axes are stored: convolutions want channels before pixels, and what follows them takes that as it
comes, so that whole networks need one transposition. What depends on constants alone is computed
here. A broadcast is put off until something other than arithmetic needs it: ONNX broadcasts by
itself.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import Literal

from jaxcls.export.arithmetic import ELEMENTWISE
from jaxcls.export.graph import Graph, onnx_type

NCHW = (0, 3, 1, 2)


@dataclasses.dataclass(frozen=True)
class Value:
    """What a variable of the jaxpr stands for: a constant, or the output of a node."""

    shape: tuple[Any, ...]  # sizes, or a symbol of jax.export
    dtype: Any
    name: str = ""  # of a tensor of the graph
    array: np.ndarray | None = None  # of a constant, in the order of the axes
    order: tuple[int, ...] = ()  # the axes as they are stored
    thin: frozenset[int] = frozenset()  # axes that are stored with one entry and stand for more

    @property
    def stored(self) -> list[Any]:
        """Sizes as they are stored."""
        return [1 if axis in self.thin else self.shape[axis] for axis in self.order]

    @property
    def whole(self) -> np.ndarray | None:
        """The constant, of the sizes that it has for a batch of one; None if it is none."""
        if self.array is None:
            return None
        return np.broadcast_to(self.array, [size(n) for n in self.shape])


def size(n: Any) -> int:
    """Returns a size, 1 for the batch."""
    return n if isinstance(n, int) else 1


def symbolic(n: Any) -> bool:
    """Returns whether a size is that of the batch, or has to do with it."""
    return not isinstance(n, int)


class Translator:
    """Adds the equations of a jaxpr to a graph."""

    def __init__(self, graph: Graph, batch: Any, rules: Mapping[str, Callable[..., Any]]):
        """Takes where to add them, and how.

        Args:
          graph: of ONNX.
          batch: size of the first axis of the input, "images".
          rules: f(translator, avals, *values, **parameters) of the primitives that are no
            arithmetic -> a value, or several.
        """
        self.graph, self.batch, self.rules = graph, batch, rules
        self.moved: dict[tuple[str, tuple[int, ...]], str] = {}  # transposed tensors
        self.where = ""  # in the network, of the equation at hand

    # -- Values ------------------------------------------------------------------------------------

    def emit(self, op: str, *inputs: str, **attributes: Any) -> Any:
        """Adds a node that is named by where it is in the network."""
        return self.graph.add(op, *inputs, of=self.where, **attributes)

    def ints(self, numbers: Sequence[int]) -> str:
        """Returns a constant of whole numbers."""
        return self.graph.constant(np.array(numbers, np.int64))

    def tensor(self, x: Value, order: Sequence[int] | None = None, full: bool = True) -> str:
        """Returns the name of a value whose axes are stored in that order, the jaxpr's by default.

        Args:
          x: the value.
          order: of its axes.
          full: spread what is put off; otherwise one entry stands for many.
        """
        order = tuple(range(len(x.shape))) if order is None else tuple(order)
        if x.array is not None:
            array = x.whole if full else x.array
            name = self.graph.constant(array.transpose(order), self.where or "constant")
        else:
            name = x.name
        if x.array is None and x.order != order:
            # where only axes of one entry move, nothing moves in memory
            sizes = [1 if a in x.thin else x.shape[a] for a in order]
            long = [a for a, n in zip(order, sizes) if n != 1]
            if long == [a for a in x.order if a in long]:
                name = self.reshape(name, sizes)
            else:
                perm = tuple(x.order.index(a) for a in order)
                if (name, perm) not in self.moved:  # several may want it so
                    self.moved[name, perm] = self.emit("Transpose", name, perm=perm)
                name = self.moved[name, perm]
        thin = x.thin if x.array is None else {a for a, n in enumerate(x.shape) if symbolic(n)}
        if full and any(x.shape[a] != 1 for a in thin):
            # Expand keeps what is longer than it says
            sizes = [x.shape[a] if a in thin else 1 for a in order]
            name = self.emit("Expand", name, self.sizes(sizes))
        return name

    def sizes(self, sizes: Sequence[Any]) -> str:
        """Returns a tensor of sizes, some of which may be multiples of the batch's."""
        if not any(map(symbolic, sizes)):
            return self.ints(sizes)
        parts = [self.images(n) if symbolic(n) else self.ints([n]) for n in sizes]
        return self.emit("Concat", *parts, axis=0)

    def images(self, n: Any) -> str:
        """Returns a tensor of how many images there are, or a multiple of that."""
        times = n // self.batch
        if symbolic(times) or times * self.batch != n:
            raise NotImplementedError(f"a size of {n}")
        name = self.emit("Shape", "images", start=0, end=1)
        return name if times == 1 else self.emit("Mul", name, self.ints([times]))

    def reshape(self, name: str, sizes: Sequence[Any]) -> str:
        """Returns a tensor with other sizes, one of which may be that of the batch."""
        known = [-1 if symbolic(n) else n for n in sizes]
        if known.count(-1) > 1:
            raise NotImplementedError(f"a reshape to {tuple(sizes)}")
        name = self.emit("Reshape", name, self.ints(known))
        self.graph.shapes[name] = tuple(sizes)
        return name

    def new(self, aval: Any, name: str, order: Sequence[int] | None = None, thin=()) -> Value:
        """Returns the value of a tensor."""
        order = tuple(range(len(aval.shape))) if order is None else tuple(order)
        value = Value(tuple(aval.shape), aval.dtype, name, None, order, frozenset(thin))
        self.graph.shapes[name] = tuple(value.stored)
        return value

    # -- Equations ---------------------------------------------------------------------------------

    def run(self, jaxpr: Any, consts: Sequence[Any], args: Sequence[Value]) -> list[Value]:
        """Returns the outputs of a jaxpr."""
        values: dict[Any, Value] = {}
        known = [constant(c, v.aval) for c, v in zip(consts, jaxpr.constvars, strict=True)]
        values |= zip(jaxpr.constvars, known, strict=True)
        values |= zip(jaxpr.invars, args, strict=True)

        def read(v: Any) -> Value:
            return constant(v.val, v.aval) if isinstance(v, Literal) else values[v]

        outside = self.where
        for eqn in jaxpr.eqns:
            inside = str(eqn.source_info.name_stack)  # of what is traced within
            self.where = "/".join(filter(None, (outside, inside)))
            inputs = [read(v) for v in eqn.invars]
            values |= zip(eqn.outvars, self.equation(eqn, inputs), strict=True)
        self.where = outside
        return [read(v) for v in jaxpr.outvars]

    def equation(self, eqn: Any, inputs: list[Value]) -> list[Value]:
        """Returns what an equation gives."""
        op, avals = eqn.primitive.name, [v.aval for v in eqn.outvars]
        for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
            if key in eqn.params:
                inner = eqn.params[key]
                consts = getattr(inner, "consts", ())
                return self.run(getattr(inner, "jaxpr", inner), consts, inputs)
        if op in ("stop_gradient", "copy", "optimization_barrier", "copy_p"):
            return inputs
        if op == "broadcast_in_dim":
            return [self.broadcast(inputs[0], avals[0], eqn.params["broadcast_dimensions"])]
        if op == "dim_as_value":  # how many images there are
            name = self.emit("Squeeze", self.sizes([eqn.params["dim"]]))
            return [self.new(avals[0], self.emit("Cast", name, to=onnx_type(avals[0].dtype)))]
        if all(x.array is not None for x in inputs):
            return evaluate(eqn, inputs)
        if op in ELEMENTWISE:
            return [self.elementwise(ELEMENTWISE[op], avals[0], inputs, eqn.params)]
        if op not in self.rules:
            raise NotImplementedError(f"ONNX for jax.lax.{op} is not written")
        found = self.rules[op](self, avals, *inputs, **eqn.params)
        return found if isinstance(found, list) else [found]

    def elementwise(
        self, op: Callable[..., str], aval: Any, inputs: list[Value], params: dict[str, Any]
    ) -> Value:
        """Returns arithmetic on the entries of arrays of the same, or no, axes."""
        rank = len(aval.shape)
        leads = [x for x in inputs if x.array is None and len(x.shape) == rank]
        order = min(leads, key=lambda x: len(x.thin)).order if leads else tuple(range(rank))
        names = [
            self.tensor(x, order if len(x.shape) == rank else None, full=False) for x in inputs
        ]
        name = op(self, aval, *names, **params)
        wide = [x for x in inputs if len(x.shape) == rank]
        thin = {i for i in range(rank) if aval.shape[i] != 1 and all(_one(x, i) for x in wide)}
        return self.new(aval, name, order, thin if wide else range(rank))

    def broadcast(self, x: Value, aval: Any, axes: Sequence[int]) -> Value:
        """Returns the value with more axes, or longer ones, which are not written yet."""
        rank = len(aval.shape)
        longer = {axes[i] for i in range(len(axes)) if x.shape[i] != aval.shape[axes[i]]}
        thin = {axes[i] for i in x.thin} | longer | (set(range(rank)) - set(axes))
        thin = frozenset(i for i in thin if aval.shape[i] != 1)
        if x.array is not None:
            sizes = [1] * rank
            for i, axis in enumerate(axes):
                sizes[axis] = x.array.shape[i]
            return Value(tuple(aval.shape), aval.dtype, "", x.array.reshape(sizes))
        # new axes are stored after the one that is before them
        order = [axes[i] for i in x.order]
        for axis in range(rank):
            if axis not in axes:
                order.insert(order.index(axis - 1) + 1 if axis else 0, axis)
        grown = Value(tuple(aval.shape), aval.dtype, x.name, None, tuple(order), thin)
        if rank != len(x.shape):
            grown = dataclasses.replace(grown, name=self.reshape(x.name, grown.stored))
        return grown


def _one(x: Value, axis: int) -> bool:
    return x.array.shape[axis] == 1 if x.array is not None else x.stored[x.order.index(axis)] == 1


def constant(value: Any, aval: Any) -> Value:
    """Returns an array that is known."""
    return Value(tuple(aval.shape), aval.dtype, "", np.asarray(value, aval.dtype))


def evaluate(eqn: Any, inputs: list[Value]) -> list[Value]:
    """Returns what an equation of constants gives, for a batch of one."""

    def at_one(value: Any) -> Any:
        if isinstance(value, tuple):  # or a named one, such as GatherDimensionNumbers
            parts = map(at_one, value)
            return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
        return 1 if type(value).__name__ == "_DimExpr" else value

    if eqn.primitive.name == "iota" and symbolic(eqn.params["shape"][eqn.params["dimension"]]):
        raise NotImplementedError("numbers of the images of a batch")
    arrays = [x.array for x in inputs]
    if eqn.primitive.name in ELEMENTWISE:
        shapes = [a.shape for a in arrays if a.ndim]
        shape = np.broadcast_shapes(*shapes) if shapes else ()
        arrays = [np.broadcast_to(a, shape) if a.ndim else a for a in arrays]
    else:
        arrays = [x.whole for x in inputs]
    params = {k: at_one(v) for k, v in eqn.params.items()}
    with jax.ensure_compile_time_eval():
        found = eqn.primitive.bind(*map(jax.numpy.asarray, arrays), **params)
    found = found if eqn.primitive.multiple_results else [found]
    outs = zip(map(np.asarray, found), eqn.outvars, strict=True)
    return [Value(tuple(v.aval.shape), v.aval.dtype, "", _least(a)) for a, v in outs]


def _least(array: np.ndarray) -> np.ndarray:
    """Returns one entry of many that are equal, such as how many pixels a window has."""
    if array.size > 1 and (array == array.flat[0]).all():
        array = array[(slice(1),) * array.ndim]
    return array
