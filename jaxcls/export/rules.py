"""Primitives of a jaxpr that are no arithmetic, as ONNX has them; see `jaxpr.Translator`."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxcls.export.arithmetic import constant_like
from jaxcls.export.graph import onnx_type
from jaxcls.export.jaxpr import NCHW, Translator, Value, size, symbolic

# -- Convolutions, products, windows ---------------------------------------------------------------


def _pads(padding: Sequence[Sequence[int]]) -> list[int]:
    return [low for low, _ in padding] + [high for _, high in padding]


def _conv(t, avals, x, w, *, dimension_numbers, window_strides, padding, lhs_dilation,
          rhs_dilation, feature_group_count, batch_group_count, **_):  # fmt: skip
    if set(lhs_dilation) != {1} or batch_group_count != 1:
        raise NotImplementedError("a transposed convolution")
    lhs, rhs, out = dimension_numbers
    name = t.emit(
        "Conv",
        t.tensor(x, lhs),
        t.tensor(w, rhs),
        kernel_shape=[size(w.shape[i]) for i in rhs[2:]],
        strides=list(window_strides),
        pads=_pads(padding),
        dilations=list(rhs_dilation),
        group=feature_group_count,
    )
    return t.new(avals[0], name, out)


def _dot(t, avals, x, y, *, dimension_numbers, preferred_element_type=None, **_):
    (left, right), (left_batch, right_batch) = dimension_numbers
    aval = avals[0]

    def split(v: Value, contracted: Sequence[int], batch: Sequence[int]) -> list[int]:
        return [i for i in range(len(v.shape)) if i not in contracted and i not in batch]

    rows, columns = split(x, left, left_batch), split(y, right, right_batch)
    xs = t.tensor(x, (*left_batch, *rows, *left))
    ys = t.tensor(y, (*right_batch, *right, *columns))
    batch = [x.shape[i] for i in left_batch]
    m, n = [x.shape[i] for i in rows], [y.shape[i] for i in columns]
    depth = math.prod(x.shape[i] for i in left)
    # MatMul takes matrices, the left one any number of them where the right one is the same for all
    many = not batch and len(rows) >= 1 and len(left) == 1
    if not many and (len(rows) != 1 or len(left) != 1):
        xs = t.reshape(xs, [*batch, math.prod(m), depth])
    if len(columns) != 1 or len(right) != 1:
        ys = t.reshape(ys, [*batch, depth, math.prod(n)])
    name = t.emit("MatMul", xs, ys, rank=len(batch) + (len(rows) if many else 1) + 1)
    if len(columns) != 1 or (not many and len(rows) != 1):
        name = t.reshape(name, [*batch, *m, *n])
    if aval.dtype != x.dtype:
        name = t.emit("Cast", name, to=onnx_type(aval.dtype))
    return t.new(aval, name)


def _window(op: str, t, avals, x, *, window_dimensions, window_strides, padding, base_dilation,
            window_dilation, **_):  # fmt: skip
    outer = [(window_dimensions[i], window_strides[i], *padding[i]) for i in (0, 3)]
    if len(x.shape) != 4 or outer != [(1, 1, 0, 0)] * 2 or {*base_dilation} != {1}:
        raise NotImplementedError(f"a window of {window_dimensions}")
    attributes = {
        "kernel_shape": list(window_dimensions[1:3]),
        "strides": list(window_strides[1:3]),
        "pads": _pads(padding[1:3]),
    }
    if set(window_dilation) != {1}:  # int8 pools of onnxruntime do not know the attribute
        attributes["dilations"] = list(window_dilation[1:3])
    if op == "AveragePool":
        attributes["count_include_pad"] = 1
    name = t.emit(op, t.tensor(x, NCHW), **attributes)
    if op == "AveragePool":
        count = math.prod(window_dimensions)
        name = t.emit("Mul", name, constant_like(t, avals[0], count))
    return t.new(avals[0], name, NCHW)


def _reduce(op: str, t, avals, x, *, axes, **_):
    order = tuple(i for i in x.order if i not in axes)
    sizes, name = x.stored, x.name
    if any(x.shape[a] != 1 for a in x.thin & {*axes}):
        name, sizes = t.tensor(x, x.order), [x.shape[i] for i in x.order]
    kept = sorted(order)
    order, thin = [kept.index(i) for i in order], {kept.index(i) for i in x.thin - {*axes}}
    where = [x.order.index(a) for a in axes]
    if op == "ReduceSum" and len(sizes) == 4 and sorted(where) == [2, 3]:
        # a mean over pixels, as onnxruntime knows it, times their number
        count = math.prod(x.shape[a] for a in axes)
        name = t.emit("GlobalAveragePool", name)
        t.graph.shapes[name] = (*sizes[:2], 1, 1)
        name = t.reshape(name, [n for i, n in enumerate(sizes) if i not in where])
        name = t.emit("Mul", name, constant_like(t, avals[0], count))
    elif where:
        name = t.emit(op, name, t.ints(where), keepdims=0)
    return t.new(avals[0], name, order, thin)


def _argmax(t, avals, x, *, axes, index_dtype):
    name = t.emit("ArgMax", t.tensor(x), axis=axes[0], keepdims=0)
    return t.new(avals[0], t.emit("Cast", name, to=onnx_type(index_dtype)))


# -- Axes ------------------------------------------------------------------------------------------


def _groups(old: Sequence[Any], new: Sequence[Any]) -> list[tuple[list[int], list[int]]] | None:
    """Returns which axes before and after a reshape hold the same entries, as few as may be."""

    def larger(a: Any, b: Any) -> bool:
        return symbolic(a) if symbolic(a) != symbolic(b) else bool(a > b)

    groups, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        left, right, a, b = [], [], 1, 1
        while not (left or right) or a != b:
            if i < len(old) and not larger(a, b):
                left, a, i = [*left, i], a * old[i], i + 1
            elif j < len(new):
                right, b, j = [*right, j], b * new[j], j + 1
            else:
                return None
        groups.append((left, right))
    return groups


def _reshape(t, avals, x, *, new_sizes, dimensions=None, **_):
    if dimensions is not None:
        raise NotImplementedError("a reshape in another order")
    sizes = tuple(new_sizes)
    groups = _groups(x.shape, sizes)
    if groups is None:
        return t.new(avals[0], t.reshape(t.tensor(x), sizes))
    # as it is stored, if each group's axes are together and in their order there
    place = {axis: i for i, axis in enumerate(x.order)}
    found, last = [], -1.0
    for left, right in groups:
        at = [place[a] for a in left if x.shape[a] != 1]
        if at and at != list(range(at[0], at[0] + len(at))):
            return t.new(avals[0], t.reshape(t.tensor(x), sizes))
        last = at[0] if at else last + 1e-3  # one without entries goes after the one before it
        found.append((last, right))
    order = [a for _, right in sorted(found, key=lambda pair: pair[0]) for a in right]
    return t.new(avals[0], t.reshape(t.tensor(x, x.order), [sizes[a] for a in order]), order)


def _squeeze(t, avals, x, *, dimensions):
    return _reshape(t, avals, x, new_sizes=avals[0].shape)


def _expand_dims(t, avals, x, *, dimensions):
    return _reshape(t, avals, x, new_sizes=avals[0].shape)


def _transpose(t, avals, x, *, permutation):
    place = {axis: i for i, axis in enumerate(permutation)}
    order = tuple(place[a] for a in x.order)
    return t.new(avals[0], x.name, order, {place[a] for a in x.thin})


def _same_order(t: Translator, xs: Sequence[Value]) -> tuple[tuple[int, ...], list[str]]:
    """Returns an order of axes, that of the most entries, and all tensors in it."""
    order = max((x for x in xs if x.array is None), key=lambda x: math.prod(map(size, x.shape)))
    return order.order, [t.tensor(x, order.order) for x in xs]


def _concatenate(t, avals, *xs, dimension):
    order, names = _same_order(t, xs)
    return t.new(avals[0], t.emit("Concat", *names, axis=order.index(dimension)), order)


def _stack(t, avals, *xs, axis):
    order, names = _same_order(t, xs)
    moved = [a + (a >= axis) for a in order]
    moved.insert(moved.index(axis - 1) + 1 if axis else 0, axis)
    sizes = [avals[0].shape[a] if a != axis else 1 for a in moved]
    names = [t.reshape(name, sizes) for name in names]
    return t.new(avals[0], t.emit("Concat", *names, axis=moved.index(axis)), moved)


def _split(t, avals, x, *, sizes, axis):
    name, order = t.tensor(x, x.order), x.order
    parts = t.emit("Split", name, t.ints(sizes), axis=order.index(axis), outputs=len(sizes))
    parts = [parts] if len(sizes) == 1 else parts
    return [t.new(aval, part, order) for aval, part in zip(avals, parts, strict=True)]


def _slice(t, avals, x, *, start_indices, limit_indices, strides=None):
    steps = strides or (1,) * len(x.shape)
    cut = [
        i
        for i, n in enumerate(x.shape)
        if not (start_indices[i] == 0 and limit_indices[i] == n and steps[i] == 1)
    ]
    if any(symbolic(x.shape[i]) for i in cut):
        raise NotImplementedError("a part of the images of a batch")
    name = t.tensor(x, x.order)
    if cut:
        name = t.emit(
            "Slice",
            name,
            t.ints([start_indices[i] for i in cut]),
            t.ints([limit_indices[i] for i in cut]),
            t.ints([x.order.index(i) for i in cut]),
            t.ints([steps[i] for i in cut]),
        )
    return t.new(avals[0], name, x.order)


def _gather(t, avals, x, indices, *, dimension_numbers, slice_sizes, **_):
    d, array = dimension_numbers, indices.whole
    if array is None or d.operand_batching_dims:
        raise NotImplementedError("a gather at places that depend on the image")
    # axes of which one part is taken: a slice
    start, stop, looked = [0] * len(x.shape), list(slice_sizes), {}
    for axis, places in zip(d.start_index_map, np.moveaxis(array, -1, 0), strict=True):
        if places.size == 1 or (places == places.flat[0]).all():
            start[axis] = min(max(int(places.flat[0]), 0), x.shape[axis] - slice_sizes[axis])
            stop[axis] = start[axis] + slice_sizes[axis]
        else:
            looked[axis] = places
            stop[axis] = x.shape[axis]
    if {*looked} - {*d.collapsed_slice_dims}:
        raise NotImplementedError("a gather of parts")
    sizes = tuple(b - a if b != n else n for a, b, n in zip(start, stop, x.shape))
    x = _slice(t, [_like(sizes, x)], x, start_indices=start, limit_indices=stop)
    kept = [i for i in range(len(sizes)) if i in looked or i not in d.collapsed_slice_dims]
    if not looked:
        return _reshape(t, avals, x, new_sizes=avals[0].shape)
    x = _reshape(t, [_like([sizes[i] for i in kept], x)], x, new_sizes=[sizes[i] for i in kept])
    # the axes that are looked into go side by side and become one
    axes, places = [kept.index(i) for i in looked], [*looked.values()]
    rest = [i for i in range(len(kept)) if i not in axes]
    before = [i for i in rest if i < min(axes)]
    lengths = [x.shape[i] for i in axes]
    name = t.tensor(x, (*before, *axes, *rest[len(before) :]))
    if len(axes) > 1:
        around = [x.shape[i] for i in before], [x.shape[i] for i in rest[len(before) :]]
        name = t.reshape(name, [*around[0], math.prod(lengths), *around[1]])
    flat = np.ravel_multi_index(tuple(places), lengths).astype(np.int64)
    name = t.emit("Gather", name, t.graph.constant(flat), axis=len(before))
    offsets, n = list(d.offset_dims), len(before)
    found = [i for i in range(len(avals[0].shape)) if i not in offsets]
    return t.new(avals[0], name, [*offsets[:n], *found, *offsets[n:]])


def _like(sizes: Sequence[Any], x: Value) -> Any:
    return jax.ShapeDtypeStruct(tuple(sizes), x.dtype)


def _dynamic_slice(t, avals, x, *starts, slice_sizes):
    if any(s.array is None for s in starts):
        raise NotImplementedError("a slice at a place that depends on the image")
    start = [
        min(max(int(s.array), 0), n - k) if not symbolic(n) else 0
        for s, n, k in zip(starts, x.shape, slice_sizes, strict=True)
    ]
    stop = [a + n for a, n in zip(start, slice_sizes, strict=True)]
    return _slice(t, avals, x, start_indices=start, limit_indices=stop)


def _pad(t, avals, x, value, *, padding_config):
    if value.array is None or any(inner for _, _, inner in padding_config):
        raise NotImplementedError("padding between entries, or by what depends on the image")
    if any(min(low, high) < 0 for low, high, _ in padding_config):
        raise NotImplementedError("padding that cuts")
    pads = _pads([padding_config[i][:2] for i in x.order])
    number = t.graph.constant(value.whole)
    name = t.emit("Pad", t.tensor(x, x.order), t.ints(pads), number, mode="constant")
    return t.new(avals[0], name, x.order)


def _reverse(t, avals, x, *, dimensions):
    at = [x.order.index(i) for i in dimensions]
    ends = ([-1] * len(at), [np.iinfo(np.int64).min] * len(at), at, [-1] * len(at))
    return t.new(avals[0], t.emit("Slice", t.tensor(x, x.order), *map(t.ints, ends)), x.order)


def _of(rule: Callable[..., Value], op: str) -> Callable[..., Value]:
    return lambda *args, **params: rule(op, *args, **params)


RULES: dict[str, Callable[..., Any]] = {
    "conv_general_dilated": _conv,
    "dot_general": _dot,
    "reduce_window_max": _of(_window, "MaxPool"),
    "reduce_window_sum": _of(_window, "AveragePool"),
    "reduce_sum": _of(_reduce, "ReduceSum"),
    "reduce_max": _of(_reduce, "ReduceMax"),
    "reduce_min": _of(_reduce, "ReduceMin"),
    "reduce_prod": _of(_reduce, "ReduceProd"),
    "argmax": _argmax,
    "reshape": _reshape,
    "squeeze": _squeeze,
    "expand_dims": _expand_dims,
    "transpose": _transpose,
    "concatenate": _concatenate,
    "stack": _stack,
    "split": _split,
    "slice": _slice,
    "dynamic_slice": _dynamic_slice,
    "gather": _gather,
    "pad": _pad,
    "rev": _reverse,
}
