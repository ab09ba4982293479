"""Files of weights -> {name: array}, without the frameworks that wrote them.

Every file is taken for hostile until it is read. `.pdparams`, `.pth` and `.pt` are pickles, and a
pickle is a program: here it runs on numbers, text and containers alone, and what it asks to call
is looked up in a list and made by this module. No memory is taken for a size that a file claims;
it has to have the bytes. Time and memory are thus bounded by the size of the file and the limits
below.
"""

import io
import itertools
import math
import os
import pickletools
import re
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile

import jax.numpy as jnp
import numpy as np
import safetensors

Arrays = dict[str, np.ndarray]

NUMBERS = {
    name: np.dtype(name)
    for name in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")
}
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of PyTorch's format before 1.6
TORCH_STORAGES = {
    "torch.DoubleStorage": NUMBERS["f8"],
    "torch.FloatStorage": NUMBERS["f4"],
    "torch.HalfStorage": NUMBERS["f2"],
    "torch.BFloat16Storage": np.dtype(jnp.bfloat16),
    "torch.LongStorage": NUMBERS["i8"],
    "torch.IntStorage": NUMBERS["i4"],
    "torch.ShortStorage": NUMBERS["i2"],
    "torch.CharStorage": NUMBERS["i1"],
    "torch.ByteStorage": NUMBERS["u1"],
    "torch.BoolStorage": NUMBERS["b1"],
}
SAFETENSORS_DTYPES = {
    "F64": NUMBERS["f8"],
    "F32": NUMBERS["f4"],
    "F16": NUMBERS["f2"],
    "BF16": np.dtype(jnp.bfloat16),
    "I64": NUMBERS["i8"],
    "I32": NUMBERS["i4"],
    "I16": NUMBERS["i2"],
    "I8": NUMBERS["i1"],
    "U8": NUMBERS["u1"],
    "BOOL": NUMBERS["b1"],
}

# Far above what the largest network with optimizer state and moving averages needs.
MAX_STEPS = 1_000_000  # opcodes of the pickles of a file: 250,000
MAX_BITS = 256  # of an integer: 128, in the state of a random generator
MAX_MEMBERS = 50_000  # of a zip file: 15,000
MAX_HEADER = 4 << 20  # bytes of a table of contents: 1 MB
MAX_RATIO = 16  # of the members of a zip file to the file: 1.1
MAX_NAME = 300  # characters of a tensor's name


class Refused(ValueError):
    """A pickle asks for something that is neither an array nor a container."""


class _Unfit(ValueError):
    """The file may be sound, but it is too much, or it is not clear what of it is meant."""


def read(path: str | os.PathLike, key: str = "") -> Arrays:
    """Returns the arrays of a file by name, in the dtypes that they were saved in.

    The arrays may be read-only, and views of each other. Reading runs nothing of the file;
    its size and the limits above bound the memory that it takes.

    Args:
      path: `.pdparams` (PaddleClas), `.pth` or `.pt` (PyTorch, of any version since 0.4), `.npz` or
        `.safetensors`.
      key: which set of weights to take from a training checkpoint that has several, such as
        "state_dict" or "state_dict_ema". "": the only one.

    Raises:
      ValueError: no such file; an unknown suffix; a file that is damaged or was not downloaded to
        its end; a pickle with anything but arrays in it; a tensor larger than its numbers; several
        sets of weights, or none. One line that begins with the path.
    """
    path = Path(path)
    if path.suffix not in READERS:
        raise ValueError(f"{path}: give a file that ends in {', '.join(READERS)}")
    try:
        if not path.is_file():
            raise ValueError(f"{path}: there is no such file")
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: it cannot be read: {error.strerror}") from error
    except MemoryError as error:
        raise ValueError(f"{path}: there is not enough memory to read it") from error
    try:
        return _arrays(_chosen(READERS[path.suffix](data), key))
    except Refused as error:
        raise ValueError(
            f"{path}: {error}. It is not read, since it could run any program; save the weights "
            "alone, as a dictionary of arrays"
        ) from error
    except _Unfit as error:
        raise ValueError(f"{path}: {error}") from error
    except MemoryError as error:
        raise ValueError(f"{path}: there is not enough memory to read it") from error
    except Exception as error:  # what damage raises depends on where it is
        what = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ValueError(
            f"{path}: not a whole {path.suffix} file, is the download complete? "
            f"({len(data)} bytes; {what}{_shown(str(error), 300)})"
        ) from error


def _shown(text: str, length: int = 80) -> str:
    """Returns text of a file for a message: cut, on one line, without a terminal's commands."""
    text = text if len(text) <= length else text[: length - 3] + "..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _some(names: Mapping[str, Any]) -> str:
    """Returns the first ten names, and how many more there are."""
    more = f" and {len(names) - 10:,} more" if len(names) > 10 else ""
    return ", ".join(_shown(name) for name in itertools.islice(names, 10)) + more


def _chosen(content: Any, key: str) -> Mapping[str, Any]:
    """Returns the dictionary of arrays that `key` names, or the only one there is."""
    if not isinstance(content, dict):
        raise _Unfit(f"it holds a {type(content).__name__}, not a dictionary of arrays")
    # A pickle can have one dictionary in many places: each is searched once.
    inner = {id(v): v for v in content.values() if isinstance(v, dict)}
    found = {i for i, v in inner.items() if _has_arrays(v)}
    sets = {k: v for k, v in content.items() if id(v) in found}
    if key:
        if key not in sets:
            known = f"choose one of {_some(sets)}" if sets else "it has only one set"
            raise _Unfit(f"it has no weights {key!r}: {known}")
        return sets[key]
    # Beside a set of weights, the state of a random generator is none.
    if _has_arrays(content, kinds="fV" if sets else "fViub"):
        return content
    if len(sets) != 1:
        several = f"several sets of weights, {_some(sets)}: choose one with --key"
        raise _Unfit(f"it has {several if sets else 'no arrays'}")
    return next(iter(sets.values()))


def _has_arrays(content: Mapping[str, Any], kinds: str = "fViub") -> bool:
    """Returns whether there are arrays of these kinds of numbers ("V": bfloat16) in it."""
    arrays = (v for v in content.values() if isinstance(v, np.ndarray | _Array | _Tensor))
    return any(array.shape and _dtype(array).kind in kinds for array in arrays)


def _dtype(array: Any) -> np.dtype:
    if isinstance(array, _Tensor):
        return array.storage.dtype
    return array.dtype.numpy() if isinstance(array, _Array) else array.dtype


def _arrays(content: Mapping[str, Any]) -> Arrays:
    """Returns what is an array; the rest (epochs, tables of names, ...) are no weights."""
    arrays = {
        name: value if isinstance(value, np.ndarray) else value.array()
        for name, value in content.items()
        if isinstance(value, np.ndarray | _Array | _Tensor)
    }
    for name in arrays:
        if len(name) > MAX_NAME or not name.isprintable():
            raise _Unfit(f'"{_shown(name)}" is no name of a tensor')
    prefix = "module."  # what PyTorch's DataParallel adds to every name
    if all(name.startswith(prefix) for name in arrays):
        arrays = {name.removeprefix(prefix): array for name, array in arrays.items()}
    return arrays


def _array(data: Any, dtype: np.dtype, shape: tuple[int, ...], order: str = "C") -> np.ndarray:
    """Returns a view of `data`, which has to have exactly the bytes of such an array."""
    size = math.prod(shape) * dtype.itemsize
    if len(data) != size:
        raise ValueError(f"an array of {shape} has {len(data)} bytes instead of {size}")
    return np.ndarray(shape, dtype, data, order=order)


def _sizes(values: Any) -> tuple[int, ...]:
    """Returns a shape or strides from a file, once it is nothing else."""
    if not isinstance(values, list | tuple) or len(values) > 32:
        raise ValueError("a shape is not a tuple of at most 32 numbers")
    if not all(type(n) is int and 0 <= n < 1 << 63 for n in values):
        raise ValueError("a shape is not made of whole numbers")
    return tuple(values)


# -- Pickles -------------------------------------------------------------------------------------


class _Name:
    """A class or function as a pickle knows it: by name."""

    __slots__ = ("name",)

    def __init__(self, name: str):
        self.name = name


class _Dtype:
    """A dtype of NumPy's: the call that makes it gives the name, the state the order of bytes."""

    __slots__ = ("name", "order")

    def __init__(self, name: Any, *_: Any):
        if type(name) is not str or name not in NUMBERS:
            shown = _shown(name) if type(name) is str else type(name).__name__
            raise Refused(f"it has an array of {shown!r}, not of numbers")
        self.name, self.order = name, "="

    def build(self, state: Any) -> None:
        order, *structure = state[1:5]
        if order not in ("<", ">", "=", "|") or structure != [None] * 3:
            raise Refused("it has an array of records")
        self.order = order

    def numpy(self) -> np.dtype:
        return NUMBERS[self.name].newbyteorder(self.order)


class _Array:
    """An array of NumPy's, which is made when its numbers are asked for."""

    __slots__ = ("axes", "data", "dtype", "order", "shape")

    def __init__(self) -> None:
        self.dtype, self.data = _Dtype("u1"), b""
        self.shape: tuple[int, ...] = (0,)
        self.order, self.axes = "C", None

    def fill(self, data: Any, dtype: Any, shape: Any) -> "_Array":
        if not isinstance(dtype, _Dtype) or not isinstance(data, bytes | bytearray):
            raise Refused("it has an array that is not made of numbers")
        self.data, self.dtype, self.shape = data, dtype, _sizes(shape)
        return self

    def array(self) -> np.ndarray:
        array = _array(self.data, self.dtype.numpy(), self.shape, self.order)
        return array if self.axes is None else array.transpose(self.axes)


MODULES = {  # other names of those below: Python 2's and NumPy 2's
    "__builtin__": "builtins",
    "numpy._core.multiarray": "numpy.core.multiarray",
    "numpy._core.numeric": "numpy.core.numeric",
}


class _Pickles:
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
            "numpy.dtype": _Dtype,
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
                    call = self.calls[called.name] if isinstance(called, _Name) else None
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
            raise _Unfit(f"its pickle has more than {MAX_STEPS:,} steps; save the weights alone")

    def _find(self, opcode: str, module: Any, symbol: Any) -> _Name:
        if type(module) is not str or type(symbol) is not str:
            raise Refused("the pickle asks for a name that is no text")
        name = f"{module}.{symbol}"
        known = f"{MODULES.get(module, module)}.{symbol}"
        if known in self.calls and opcode != "INST":
            return _Name(known)
        raise Refused(f"the pickle asks for {_shown(name)}")

    def _build(self, value: Any, state: Any) -> None:
        """Sets the state of an array or a dtype; attributes of a dictionary are left out."""
        if isinstance(value, dict):
            return
        if not isinstance(value, _Array | _Dtype) or type(state) is not tuple or len(state) < 5:
            raise Refused(f"the pickle changes a {type(value).__name__}")
        if isinstance(value, _Dtype):
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

    def _reconstruct(self, kind: Any, *_: Any) -> _Array:
        if not isinstance(kind, _Name) or kind.name != "numpy.ndarray":
            raise Refused("it makes an array of another class than NumPy's")
        return _Array()

    def _scalar(self, dtype: Any, data: Any) -> Any:
        data = self._encode(data, "latin1") if type(data) is str else data
        return _Array().fill(data, dtype, ()).array().item()

    def _from_buffer(self, data: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> Any:
        if order not in ("C", "F", "K"):
            raise Refused("it has an array of another order than C, F or K")
        array = _Array().fill(data, dtype, shape)
        array.order = "F" if order == "F" else "C"
        array.axes = None if axes is None else _sizes(axes)
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


def _read_pdparams(data: bytes) -> Any:
    content = _Pickles(data).load()
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
        content[name] = np.concatenate(parts).reshape(_sizes(cut["OriginShape"]))
    return content


def _is_named(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], _Array)


# -- PyTorch -------------------------------------------------------------------------------------


class _Storage:
    """The numbers that tensors are views of, which are not in the pickle."""

    __slots__ = ("dtype", "key", "numbers")

    def __init__(self, dtype: np.dtype, key: str, numbers: Mapping[str, Any]):
        self.dtype, self.key, self.numbers = dtype, key, numbers


class _Tensor:
    """A tensor whose numbers are read when the array is asked for."""

    __slots__ = ("offset", "shape", "storage", "strides")

    def __init__(
        self, storage: Any, offset: Any, shape: Any, strides: Any, *gradients_hooks_more: Any
    ):
        if not isinstance(storage, _Storage):
            raise Refused("it has a tensor without numbers")
        if any(gradients_hooks_more[2:]):  # {"neg": True}: the sign of its numbers is to be changed
            raise _Unfit("it has a tensor that is a view: save what clone() returns")
        self.storage, (self.offset,) = storage, _sizes([offset])
        self.shape, self.strides = _sizes(shape), _sizes(strides)

    def array(self) -> np.ndarray:
        """Returns a view: tensors that share their numbers do not take memory twice.

        What `Tensor.expand` makes is refused: a few numbers could pass for any amount of them, and
        no weights are saved so.
        """
        dtype, numbers = self.storage.dtype, self.storage.numbers[self.storage.key]
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        count = len(numbers) // dtype.itemsize
        if not math.prod(self.shape):
            return _array(b"", dtype, self.shape)
        if last >= count:
            raise ValueError(f"a tensor of {self.shape} needs more than {count} numbers")
        if math.prod(self.shape) > count:
            raise _Unfit(f"a tensor of {self.shape} has {count} numbers: save what clone() returns")
        strides = [s * dtype.itemsize for s in self.strides]
        return np.ndarray(self.shape, dtype, numbers, self.offset * dtype.itemsize, strides)


class _TorchPickles(_Pickles):
    """Knows PyTorch's tensors too."""

    def __init__(self, data: bytes, numbers: Mapping[str, Any]):
        super().__init__(data)
        self.numbers = numbers
        self.dtypes: dict[str, np.dtype] = {}  # of the storages
        self.calls |= dict.fromkeys(TORCH_STORAGES)
        self.calls |= {
            "torch.Size": self._tuple,
            "torch._utils._rebuild_tensor_v2": _Tensor,
            "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
        }

    def _persistent(self, pid: Any) -> _Storage:
        match pid:
            case ("storage", _Name(name=name), str(key), _, _, *view) if name in TORCH_STORAGES:
                if view not in ([], [None]):
                    raise _Unfit("it has storages that are parts of others")
                dtype = self.dtypes.setdefault(key, TORCH_STORAGES[name])
                return _Storage(dtype, key, self.numbers)
        raise Refused("the pickle has parts outside of it that are no numbers")


def _read_torch(data: bytes) -> Any:
    return _read_torch_zip(data) if data[:4] == b"PK\3\4" else _read_torch_legacy(data)


def _read_torch_zip(data: bytes) -> Any:
    """Reads PyTorch's format since 1.6: NAME/data.pkl and a file for each storage, NAME/data/N."""
    members = _Zip(data)
    if any(name.endswith("/constants.pkl") for name in members):
        raise Refused("it is a TorchScript program")
    pickles = [name for name in members if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ValueError(f"{len(pickles)} files data.pkl in it")
    folder = pickles[0].removesuffix("data.pkl")
    if members.get(folder + "byteorder", b"little") != b"little":
        raise _Unfit("its numbers are big-endian")
    return _TorchPickles(members[pickles[0]], _Storages(members, folder)).load()


def _read_torch_legacy(data: bytes) -> Any:
    """Reads PyTorch's format before 1.6: five pickles, then length and numbers of each storage."""
    numbers: dict[str, bytes] = {}
    pickles = _TorchPickles(data, numbers)
    magic, _, system = (pickles.load() for _ in ("magic", "version", "system"))
    if type(magic) is not int or magic != LEGACY_MAGIC:
        raise Refused("it is a pickle, but not one of PyTorch")
    if isinstance(system, dict) and system.get("little_endian") is False:
        raise _Unfit("its numbers are big-endian")
    content, keys = pickles.load(), pickles.load()
    at = pickles.file.tell()
    for key in keys:
        if not isinstance(key, str) or key not in pickles.dtypes or key in numbers:
            raise ValueError("its list of storages is not that of its tensors")
        (count,) = struct.unpack_from("<q", data, at)
        start, at = at + 8, at + 8 + count * pickles.dtypes[key].itemsize
        if not start <= at <= len(data):
            raise EOFError(f"storage {_shown(key)} has {len(data) - start} of {at - start} bytes")
        numbers[key] = data[start:at]
    return content


# -- Zip files -----------------------------------------------------------------------------------


class _Limited(io.BytesIO):
    """A file of which no more than `limit` bytes can be read at once."""

    limit = MAX_HEADER

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > self.limit:
            raise ValueError(f"its table of contents has {size:,} bytes")
        return super().read(size)


class _Zip(Mapping[str, bytes]):
    """The members of a zip file by name; none is read before the sizes of all are checked."""

    def __init__(self, data: bytes):
        if data.count(b"PK\1\2") > MAX_MEMBERS:
            raise _Unfit(f"there are more than {MAX_MEMBERS:,} files in it")
        file = _Limited(data)
        self.archive = ZipFile(file)
        file.limit = sys.maxsize
        members = self.archive.infolist()
        self.members = {member.filename: member for member in members}
        if len(self.members) < len(members):
            raise ValueError("two files of one name in it")
        if not {member.compress_type for member in members} <= {ZIP_STORED, ZIP_DEFLATED}:
            raise ValueError("a file in it is compressed in a way that is not read")
        size = sum(member.file_size for member in members)
        # A few zeros are packed better than 1:16, the weights of a network are not.
        if size > MAX_RATIO * len(data) + MAX_HEADER:
            raise _Unfit(f"the files in it claim {size:,} bytes, and it has {len(data):,}")

    def __getitem__(self, name: str) -> bytes:
        member = self.members[name]
        with self.archive.open(member) as file:
            data = file.read(member.file_size)  # without a size it unpacks what there is
        if len(data) < member.file_size:
            raise EOFError(f"{_shown(name)} has {len(data)} of {member.file_size} bytes")
        return data

    def __iter__(self) -> Iterator[str]:
        return iter(self.members)

    def __len__(self) -> int:
        return len(self.members)


class _Storages(dict):
    """PyTorch's storages by key, each read from its zip file when it is asked for, and once."""

    def __init__(self, members: _Zip, folder: str):
        self.members, self.folder = members, folder

    def __missing__(self, key: str) -> bytes:
        self[key] = self.members[f"{self.folder}data/{key}"]
        return self[key]


NPY_HEADER = re.compile(
    r"\{'descr': *'([<>|=]?)([a-z]\d)', *'fortran_order': *(True|False), *"
    r"'shape': *\(([\dL, ]*)\),? *\} *\n?"
)


def _read_npz(data: bytes) -> Arrays:
    members = _Zip(data)
    return {
        name.removesuffix(".npy"): _npy(name, members[name])
        for name in members
        if name.endswith(".npy")
    }


def _npy(name: str, data: bytes) -> np.ndarray:
    """Returns the array of a .npy file: magic, version, length of the header, header, numbers."""
    if data[:6] != b"\x93NUMPY" or data[6:7] not in (b"\1", b"\2"):
        raise ValueError(f"{_shown(name)} is no array")
    length = "<H" if data[6:7] == b"\1" else "<I"
    start = 8 + struct.calcsize(length)
    end = start + struct.unpack_from(length, data, 8)[0]
    header = NPY_HEADER.fullmatch(data[start : min(end, start + 0xFFFF)].decode("latin1"))
    if not header or header[2] not in NUMBERS:
        raise ValueError(f"{_shown(name)} is not an array of numbers")
    shape = _sizes([int(n) for n in header[4].replace("L", "").split(",") if n.strip()])
    dtype = NUMBERS[header[2]].newbyteorder(header[1] or "=")
    return _array(memoryview(data)[end:], dtype, shape, "F" if header[3] == "True" else "C")


def _read_safetensors(data: bytes) -> Arrays:
    if len(data) < 8 or struct.unpack_from("<Q", data)[0] > MAX_HEADER:
        raise ValueError(f"its header is not one, or of more than {MAX_HEADER:,} bytes")
    arrays = {}
    for name, tensor in safetensors.deserialize(data):  # safetensors.numpy has no bfloat16
        if tensor["dtype"] not in SAFETENSORS_DTYPES:
            raise ValueError(f"{_shown(name)} is of {tensor['dtype']}, which is not read")
        dtype = SAFETENSORS_DTYPES[tensor["dtype"]]
        arrays[name] = _array(tensor["data"], dtype, _sizes(tensor["shape"]))
    return arrays


READERS: dict[str, Callable[[bytes], Any]] = {
    ".pdparams": _read_pdparams,
    ".pth": _read_torch,
    ".pt": _read_torch,
    ".npz": _read_npz,
    ".safetensors": _read_safetensors,
}
