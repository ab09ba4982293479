"""Pickles, which run on numbers, text and containers alone here, and PaddleClas's files."""

import io
import pickletools
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxcls.convert.arrays import (
    MAX_BITS,
    MAX_STEPS,
    NUMBERS,
    Refused,
    Unfit,
    array_of,
    shown,
    sizes_of,
)


class Name:
    """A class or function as a pickle knows it: by name."""

    __slots__ = ("name",)

    def __init__(self, name: str):
        self.name = name


class Dtype:
    """A dtype of NumPy's: the call that makes it gives the name, the state the order of bytes."""

    __slots__ = ("name", "order")

    def __init__(self, name: Any, *_: Any):
        if type(name) is not str or name not in NUMBERS:
            kind = shown(name) if type(name) is str else type(name).__name__
            raise Refused(f"it has an array of {kind!r}, not of numbers")
        self.name, self.order = name, "="

    def build(self, state: Any) -> None:
        order, *structure = state[1:5]
        if order not in ("<", ">", "=", "|") or structure != [None] * 3:
            raise Refused("it has an array of records")
        self.order = order

    def numpy(self) -> np.dtype:
        return NUMBERS[self.name].newbyteorder(self.order)


class LazyArray:
    """An array of NumPy's, which is made when its numbers are asked for."""

    __slots__ = ("axes", "data", "dtype", "order", "shape")

    def __init__(self) -> None:
        self.dtype, self.data = Dtype("u1"), b""
        self.shape: tuple[int, ...] = (0,)
        self.order, self.axes = "C", None

    def fill(self, data: Any, dtype: Any, shape: Any) -> "LazyArray":
        if not isinstance(dtype, Dtype) or not isinstance(data, bytes | bytearray):
            raise Refused("it has an array that is not made of numbers")
        self.data, self.dtype, self.shape = data, dtype, sizes_of(shape)
        return self

    def array(self) -> np.ndarray:
        array = array_of(self.data, self.dtype.numpy(), self.shape, self.order)
        return array if self.axes is None else array.transpose(self.axes)


MODULES = {  # other names of those below: Python 2's and NumPy 2's
    "__builtin__": "builtins",
    "numpy._core.multiarray": "numpy.core.multiarray",
    "numpy._core.numeric": "numpy.core.numeric",
}


class Pickles:
    """Runs the pickles of a file.

    All values are None, numbers, text, bytes, lists, tuples, dictionaries and the classes above.
    None of them is compared, hashed or printed unless it is text or a number: a few bytes can make
    a tuple that is too deep or too large for that.
    """

    def __init__(self, data: bytes):
        self.file = io.BytesIO(data)
        self.steps = MAX_STEPS
        self.text = len(data)  # characters that may still be encoded
        self.calls: dict[str, Callable[..., Any] | None] = {
            "builtins.bytes": lambda: b"",  # protocol 2 writes others as encoded text
            "builtins.tuple": self._tuple,
            "builtins.set": self._tuple,
            "builtins.frozenset": self._tuple,
            "collections.OrderedDict": self._dict,
            "_codecs.encode": self._encode,
            "numpy.dtype": Dtype,
            "numpy.ndarray": None,
            "numpy.core.multiarray._reconstruct": self._reconstruct,
            "numpy.core.multiarray.scalar": self._scalar,
            "numpy.core.numeric._frombuffer": self._from_buffer,
        }

    def load(self) -> Any:
        """Returns the value of the next pickle."""
        stack: list[Any] = []
        outer: list[list[Any]] = []  # what lies below each mark
        memo: dict[int, Any] = {}
        for opcode, arg, _ in pickletools.genops(self.file):
            self._spend(1)
            match opcode.name:
                case "INT" | "BININT" | "BININT1" | "BININT2" | "LONG" | "LONG1" | "LONG4":
                    if arg.bit_length() > MAX_BITS:
                        raise ValueError(f"an integer of {arg.bit_length():,} bits")
                    stack.append(arg)
                case "BINUNICODE" | "SHORT_BINUNICODE" | "BINUNICODE8" | "UNICODE":
                    stack.append(arg)
                case "BINSTRING" | "SHORT_BINSTRING" | "STRING":  # Python 2's text and bytes
                    stack.append(arg)
                case "BINBYTES" | "SHORT_BINBYTES" | "BINBYTES8" | "BYTEARRAY8":
                    stack.append(arg)
                case "FLOAT" | "BINFLOAT":
                    stack.append(arg)
                case "BINPUT" | "LONG_BINPUT" | "PUT":
                    if not 0 <= arg <= len(memo) + 1:  # as every pickler counts
                        raise ValueError("a value is remembered out of turn")
                    memo[arg] = stack[-1]
                case "MEMOIZE":
                    memo[len(memo)] = stack[-1]
                case "BINGET" | "LONG_BINGET" | "GET":
                    stack.append(memo[arg])
                case "MARK":
                    outer.append(stack)
                    stack = []
                case "NONE":
                    stack.append(None)
                case "NEWTRUE" | "NEWFALSE":
                    stack.append(opcode.name == "NEWTRUE")
                case "EMPTY_TUPLE":
                    stack.append(())
                case "TUPLE1" | "TUPLE2" | "TUPLE3":
                    size = int(opcode.name[-1])
                    if len(stack) < size:
                        raise ValueError("a tuple of nothing")
                    stack[-size:] = [tuple(stack[-size:])]
                case "TUPLE" | "FROZENSET":  # a set is not needed as such
                    items, stack = stack, outer.pop()
                    stack.append(tuple(items))
                case "EMPTY_LIST" | "EMPTY_SET":
                    stack.append([])
                case "LIST":
                    items, stack = stack, outer.pop()
                    stack.append(items)
                case "APPEND":
                    item = stack.pop()
                    _extend(stack[-1], [item])
                case "APPENDS" | "ADDITEMS":
                    items, stack = stack, outer.pop()
                    _extend(stack[-1], items)
                case "EMPTY_DICT":
                    stack.append({})
                case "DICT":
                    items, stack = stack, outer.pop()
                    stack.append(_update({}, items))
                case "SETITEM":
                    items = stack[-2:]
                    del stack[-2:]
                    _update(stack[-1], items)
                case "SETITEMS":
                    items, stack = stack, outer.pop()
                    _update(stack[-1], items)
                case "GLOBAL" | "INST":
                    stack.append(self._find(opcode.name, *arg.split(" ", 1)))
                case "STACK_GLOBAL":
                    symbol, module = stack.pop(), stack.pop()
                    stack.append(self._find(opcode.name, module, symbol))
                case "REDUCE":
                    args, called = stack.pop(), stack.pop()
                    call = self.calls[called.name] if isinstance(called, Name) else None
                    if call is None or type(args) is not tuple:
                        raise Refused("the pickle calls what is no function")
                    stack.append(call(*args))
                case "BUILD":
                    state = stack.pop()
                    self._build(stack[-1], state)
                case "BINPERSID":
                    stack.append(self._persistent(stack.pop()))
                case "PROTO" | "FRAME":
                    pass
                case "STOP":
                    return stack.pop()
                case _:
                    raise Refused(f"the pickle has a {opcode.name}")

    def _spend(self, steps: int) -> None:
        self.steps -= steps
        if self.steps < 0:
            raise Unfit(f"its pickle has more than {MAX_STEPS:,} steps; save the weights alone")

    def _find(self, opcode: str, module: Any, symbol: Any) -> Name:
        if type(module) is not str or type(symbol) is not str:
            raise Refused("the pickle asks for a name that is no text")
        name = f"{module}.{symbol}"
        known = f"{MODULES.get(module, module)}.{symbol}"
        if known in self.calls and opcode != "INST":
            return Name(known)
        raise Refused(f"the pickle asks for {shown(name)}")

    def _build(self, value: Any, state: Any) -> None:
        """Sets the state of an array or a dtype; attributes of a dictionary are left out."""
        if isinstance(value, dict):
            return
        if not isinstance(value, LazyArray | Dtype) or type(state) is not tuple or len(state) < 5:
            raise Refused(f"the pickle changes a {type(value).__name__}")
        if isinstance(value, Dtype):
            value.build(state)
            return
        _, shape, dtype, fortran, data = state[:5]
        # Python 2 has no bytes
        value.fill(self._encode(data, "latin1") if type(data) is str else data, dtype, shape)
        value.order = "F" if isinstance(fortran, int) and fortran else "C"

    def _persistent(self, pid: Any) -> Any:
        del pid
        raise Refused("the pickle has parts outside of it")

    def _tuple(self, items: Any = ()) -> tuple[Any, ...]:
        if not isinstance(items, list | tuple):
            raise Refused("the pickle makes a tuple of what is none")
        self._spend(len(items))
        return tuple(items)

    def _dict(self, pairs: Any = ()) -> dict[str, Any]:
        return _update({}, [x for pair in self._tuple(pairs) for x in _pair(pair)])

    def _encode(self, text: Any, encoding: Any) -> bytes:
        """Returns bytes as protocol 2 writes them, which no file has more of than its size."""
        if type(text) is not str or encoding != "latin1":
            raise Refused("the pickle encodes text otherwise than as latin1")
        self.text -= len(text)
        if self.text < 0:
            raise ValueError("it encodes more text than it has")
        return text.encode("latin1")

    def _reconstruct(self, kind: Any, *_: Any) -> LazyArray:
        if not isinstance(kind, Name) or kind.name != "numpy.ndarray":
            raise Refused("it makes an array of another class than NumPy's")
        return LazyArray()

    def _scalar(self, dtype: Any, data: Any) -> Any:
        data = self._encode(data, "latin1") if type(data) is str else data
        return LazyArray().fill(data, dtype, ()).array().item()

    def _from_buffer(self, data: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> Any:
        if order not in ("C", "F", "K"):
            raise Refused("it has an array of another order than C, F or K")
        array = LazyArray().fill(data, dtype, shape)
        array.order = "F" if order == "F" else "C"
        array.axes = None if axes is None else sizes_of(axes)
        return array


def _pair(value: Any) -> tuple[Any, Any]:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError("a dictionary is not made of pairs")
    return value[0], value[1]


def _extend(target: Any, items: list[Any]) -> None:
    if not isinstance(target, list):
        raise Refused(f"the pickle appends to a {type(target).__name__}")
    target.extend(items)


def _update(target: Any, items: list[Any]) -> dict[str, Any]:
    """Adds keys and values in turn to a dictionary and returns it.

    Numbers become text, and what else can be a key names no weights: text alone is hashed, with
    a secret of the process, so that no file can choose keys that collide.
    """
    if not isinstance(target, dict) or len(items) % 2:
        raise Refused(f"the pickle sets items of a {type(target).__name__}")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if key is None or isinstance(key, str | int | float):
            target[str(key)] = value
    return target


def read_pdparams(data: bytes) -> Any:
    content = Pickles(data).load()
    if not isinstance(content, dict):
        return content
    # Paddle writes (name, array) for a tensor, and cuts what is too large for protocol 2.
    content = {k: v[1] if _is_named(v) else v for k, v in content.items()}
    content.pop("StructuredToParameterName@@", None)
    size = 0
    for name, cut in content.pop("UnpackBigParamInfor@@", {}).items():
        if not all(isinstance(part, str) for part in cut["slices"]):
            raise ValueError("the parts of a cut array have no names")
        parts = [content.pop(part).array() for part in cut["slices"]]
        size += sum(part.nbytes for part in parts)
        if size > len(data):
            raise ValueError("its cut arrays have more numbers than the file")
        content[name] = np.concatenate(parts).reshape(sizes_of(cut["OriginShape"]))
    return content


def _is_named(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], LazyArray)
