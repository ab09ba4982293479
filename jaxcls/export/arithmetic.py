"""Arithmetic of a jaxpr as ONNX has it: f(translator, aval, *tensors, **parameters) -> tensor."""

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxcls.export.graph import onnx_type


def constant_like(t: Any, aval: Any, number: float) -> str:
    """Returns a constant of the dtype of a value."""
    return t.graph.constant(np.array(number, aval.dtype))


def _convert(t: Any, aval: Any, x: str, **_: Any) -> str:
    return t.emit("Cast", x, to=onnx_type(aval.dtype))


def _reciprocal_root(t: Any, aval: Any, x: str, **_: Any) -> str:
    return t.emit("Reciprocal", t.emit("Sqrt", x))


def _power(t: Any, aval: Any, x: str, *, y: int) -> str:
    if y == 2:
        return t.emit("Mul", x, x)
    return t.emit("Pow", x, constant_like(t, aval, y))


def _maximum(t: Any, aval: Any, x: str, y: str, **_: Any) -> str:
    for one, other in ((x, y), (y, x)):
        limit = t.graph.constants.get(one)
        if limit is not None and not limit.any() and np.issubdtype(limit.dtype, np.inexact):
            return t.emit("Relu", other)
    return t.emit("Max", x, y)


def _commutative(op: str) -> Callable[..., str]:
    """Returns the rule of an operation; a constant goes second, where `Graph` looks for it."""

    def rule(t: Any, aval: Any, x: str, y: str, **_: Any) -> str:
        return t.emit(op, *((y, x) if x in t.graph.constants else (x, y)))

    return rule


def _divide(t: Any, aval: Any, x: str, y: str) -> str:
    divisor = t.graph.constants.get(y)
    if divisor is not None and np.issubdtype(divisor.dtype, np.inexact):
        return t.emit("Mul", x, t.graph.constant((1 / divisor.astype(float)).astype(aval.dtype)))
    return t.emit("Div", x, y)


ELEMENTWISE: dict[str, Callable[..., str]] = {
    "add": _commutative("Add"),
    "add_any": _commutative("Add"),
    "sub": lambda t, aval, x, y: t.emit("Sub", x, y),
    "mul": _commutative("Mul"),
    "div": _divide,
    "max": _maximum,
    "min": _commutative("Min"),
    "pow": lambda t, aval, x, y: t.emit("Pow", x, y),
    "integer_pow": _power,
    "square": lambda t, aval, x: t.emit("Mul", x, x),
    "rsqrt": _reciprocal_root,
    "convert_element_type": _convert,
    "clamp": lambda t, aval, low, x, high: t.emit("Min", t.emit("Max", x, low), high),
    "select_n": lambda t, aval, which, no, yes: t.emit("Where", which, yes, no),
    "ne": lambda t, aval, x, y: t.emit("Not", t.emit("Equal", x, y)),
    "expm1": lambda t, aval, x, **_: t.emit("Sub", t.emit("Exp", x), constant_like(t, aval, 1)),
    "erfc": lambda t, aval, x, **_: t.emit("Sub", constant_like(t, aval, 1), t.emit("Erf", x)),
    "log1p": lambda t, aval, x, **_: t.emit("Log", t.emit("Add", x, constant_like(t, aval, 1))),
    **{
        name: lambda t, aval, *x, _op=op, **_: t.emit(_op, *x)
        for name, op in {
            "abs": "Abs", "and": "And", "ceil": "Ceil", "cos": "Cos", "eq": "Equal",
            "erf": "Erf", "exp": "Exp", "floor": "Floor", "ge": "GreaterOrEqual",
            "gt": "Greater", "le": "LessOrEqual", "log": "Log", "logistic": "Sigmoid",
            "lt": "Less", "neg": "Neg", "not": "Not", "or": "Or", "sign": "Sign",
            "sin": "Sin", "sqrt": "Sqrt", "tanh": "Tanh",
        }.items()
    },
}  # fmt: skip
