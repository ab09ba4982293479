"""Files of weights -> {name: array}, without the frameworks that wrote them.

`.pdparams`, `.pth` and `.pt` are pickles, and a pickle is a program. The unpickler here knows
arrays, tensors and containers and nothing else, so that a file from anywhere can be read safely.
"""

import codecs
import collections
import math
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import jax.numpy as jnp
import numpy as np
import safetensors

Arrays = dict[str, np.ndarray]

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of PyTorch's format before 1.6
TORCH_STORAGES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": jnp.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}

SAFETENSORS_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


class Refused(pickle.UnpicklingError):
    """A pickle asks for something that is neither an array nor a container."""


def read(path: str | os.PathLike, key: str = "") -> Arrays:
    """Returns the arrays of a file by name, in the dtypes that they were saved in.

    Args:
      path: `.pdparams` (PaddleClas), `.pth` or `.pt` (PyTorch, of any version since 0.4), `.npz` or
        `.safetensors`.
      key: which set of weights to take from a training checkpoint that has several, such as
        "state_dict" or "state_dict_ema". "": the only one.

    Raises:
      ValueError: no such file; an unknown suffix; a file that is damaged or was not downloaded to
        its end; a pickle with anything but arrays in it; several sets of weights, or none.
    """
    path = Path(path)
    if path.suffix not in READERS:
        raise ValueError(f"{path}: give a file that ends in {', '.join(READERS)}")
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    try:
        with path.open("rb") as file:
            content = READERS[path.suffix](file)
        return _arrays(_chosen(content, key))
    except Refused as error:
        raise ValueError(
            f"{path}: {error}. It is not read, since it could run any program; save the weights "
            "alone, as a dictionary of arrays"
        ) from error
    except MemoryError:
        raise
    except _NotChosen as error:
        raise ValueError(f"{path}: {error}") from error
    except Exception as error:  # what damage raises depends on where it is
        raise ValueError(
            f"{path}: not a whole {path.suffix} file, is the download complete? "
            f"({path.stat().st_size} bytes; {str(error) or type(error).__name__})"
        ) from error


class _NotChosen(ValueError):
    """The file is sound, but which of its contents are the weights is not clear."""


def _chosen(content: Any, key: str) -> Mapping[str, Any]:
    """Returns the dictionary of arrays that `key` names, or the only one there is."""
    if not isinstance(content, Mapping):
        raise _NotChosen(f"it holds a {type(content).__name__}, not a dictionary of arrays")
    sets = {k: v for k, v in content.items() if isinstance(v, Mapping) and _has_arrays(v)}
    if key:
        if key not in sets:
            known = f"choose one of {', '.join(map(str, sets))}" if sets else "it has only one set"
            raise _NotChosen(f"it has no weights {key!r}: {known}")
        return sets[key]
    if _has_arrays(content):
        return content
    if len(sets) != 1:
        found = f"several sets of weights, {', '.join(map(str, sets))}: choose one with --key"
        raise _NotChosen(f"it has {found if sets else 'no arrays'}")
    return next(iter(sets.values()))


def _has_arrays(content: Mapping[Any, Any]) -> bool:
    return any(isinstance(v, np.ndarray | _Tensor) and v.shape for v in content.values())


def _arrays(content: Mapping[str, Any]) -> Arrays:
    """Returns what is an array; the rest (epochs, tables of names, ...) are no weights."""
    arrays = {
        str(name): value.array() if isinstance(value, _Tensor) else value
        for name, value in content.items()
        if isinstance(value, np.ndarray | _Tensor)
    }
    for name, array in arrays.items():
        if array.dtype.hasobject:
            raise Refused(f"{name} is an array of Python objects")
    prefix = "module."  # what PyTorch's DataParallel adds to every name
    if all(name.startswith(prefix) for name in arrays):
        arrays = {name.removeprefix(prefix): array for name, array in arrays.items()}
    return arrays


# -- Pickles -------------------------------------------------------------------------------------


def _latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise Refused(f"it encodes text as {encoding!r}")
    return codecs.encode(text, encoding)  # how protocol 2 writes bytes


def _reconstruct(kind: type, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    if kind is not np.ndarray:
        raise Refused(f"it makes an array of the type {kind!r}")
    return np.ndarray.__new__(np.ndarray, shape, dtype)


def _from_buffer(buffer: Any, dtype: Any, shape: tuple[int, ...], order: str) -> np.ndarray:
    return np.frombuffer(buffer, dtype).reshape(shape, order=order)


def _scalar(dtype: np.dtype, data: bytes) -> np.ndarray:
    return np.frombuffer(data, dtype)[0]


KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("builtins", "tuple"): tuple,
    ("__builtin__", "tuple"): tuple,
    ("_codecs", "encode"): _latin1,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}
for _core in ("numpy.core", "numpy._core"):
    KNOWN[f"{_core}.multiarray", "_reconstruct"] = _reconstruct
    KNOWN[f"{_core}.multiarray", "scalar"] = _scalar
    KNOWN[f"{_core}.numeric", "_frombuffer"] = _from_buffer


class _Unpickler(pickle.Unpickler):
    """Reads arrays and containers; everything else is refused before it is made."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in KNOWN:
            return KNOWN[module, name]
        raise Refused(f"the pickle asks for {module}.{name}")


def _read_pdparams(file: IO[bytes]) -> Any:
    content = _Unpickler(file, encoding="latin1").load()
    if isinstance(content, dict):
        # Paddle writes (name, array) for a tensor, and cuts what is too large for protocol 2.
        content = {k: v[1] if _is_named(v) else v for k, v in content.items()}
        for name, cut in content.pop("UnpackBigParamInfor@@", {}).items():
            parts = [content.pop(part) for part in cut["slices"]]
            content[name] = np.concatenate(parts).reshape(cut["OriginShape"])
        content.pop("StructuredToParameterName@@", None)
    return content


def _is_named(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], np.ndarray)


# -- PyTorch -------------------------------------------------------------------------------------


class _Storage:
    """The numbers that tensors are views of; in the old format they come after the pickle."""

    def __init__(self, dtype: Any, load: Callable[[], bytes] | None = None):
        self.dtype = np.dtype(dtype)
        self.load = load


class _Tensor:
    """A tensor whose numbers are read when the array is asked for."""

    def __init__(self, storage: _Storage, offset: int, shape: tuple[int, ...], strides: Any, *_):
        self.storage, self.offset = storage, offset
        self.shape, self.strides = tuple(shape), tuple(strides)

    def array(self) -> np.ndarray:
        numbers = np.frombuffer(self.storage.load(), self.storage.dtype)
        if not math.prod(self.shape):
            return np.zeros(self.shape, numbers.dtype)
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        # A view is made without a check of its bounds.
        if min(self.offset, *self.strides, 0) < 0 or last >= len(numbers):
            raise ValueError(f"a tensor of {self.shape} needs more than {len(numbers)} numbers")
        strides = [s * numbers.itemsize for s in self.strides]
        view = np.lib.stride_tricks.as_strided(numbers[self.offset :], self.shape, strides)
        return np.ascontiguousarray(view)


class _TorchUnpickler(_Unpickler):
    """Knows PyTorch's tensors too."""

    def __init__(self, file: IO[bytes], storage: Callable[[Any, str], _Storage]):
        super().__init__(file, encoding="utf-8")
        self.storage = storage

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in TORCH_STORAGES:
            return TORCH_STORAGES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _Tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda tensor, *_: tensor
        if (module, name) == ("torch", "Size"):
            return tuple
        return super().find_class(module, name)

    def persistent_load(self, pid: tuple) -> _Storage:
        kind, dtype, key = pid[:3]
        if kind != "storage":
            raise Refused(f"the pickle has a {kind!r}")
        return self.storage(dtype, key)


def _read_torch(file: IO[bytes]) -> Any:
    is_zip = file.read(4) == b"PK\3\4"
    file.seek(0)
    return _read_torch_zip(file) if is_zip else _read_torch_legacy(file)


def _read_torch_zip(file: IO[bytes]) -> Any:
    """Reads PyTorch's format since 1.6: NAME/data.pkl and a file for each storage, NAME/data/N."""
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        if any(name.endswith("/constants.pkl") for name in names):
            raise Refused("it is a TorchScript program")
        (pickled,) = (name for name in names if name.endswith("/data.pkl"))
        folder = pickled.removesuffix("data.pkl")
        if folder + "byteorder" in names and archive.read(folder + "byteorder") != b"little":
            raise Refused("its numbers are big-endian")
        read: dict[str, bytes] = {}

        def storage(dtype: Any, key: str) -> _Storage:
            read.setdefault(key, archive.read(f"{folder}data/{key}"))
            return _Storage(dtype, lambda: read[key])

        with archive.open(pickled) as data:
            return _TorchUnpickler(data, storage).load()


def _read_torch_legacy(file: IO[bytes]) -> Any:
    """Reads PyTorch's format before 1.6: five pickles, then length and numbers of each storage."""
    storages: dict[str, _Storage] = {}

    def storage(dtype: Any, key: str) -> _Storage:
        return storages.setdefault(key, _Storage(dtype))

    magic, *_ = (_Unpickler(file).load() for _ in ("magic", "version", "system"))
    if magic != LEGACY_MAGIC:
        raise Refused("it is a pickle, but not one of PyTorch")
    content = _TorchUnpickler(file, storage).load()
    for key in _Unpickler(file).load():
        (count,) = struct.unpack("<q", file.read(8))
        size = count * storages[key].dtype.itemsize
        data = file.read(size)
        if len(data) < size:
            raise EOFError(f"storage {key} has {len(data)} of {size} bytes")
        storages[key].load = lambda data=data: data
    return content


# -- Without pickles -----------------------------------------------------------------------------


def _read_npz(file: IO[bytes]) -> Arrays:
    with np.load(file, allow_pickle=False) as arrays:
        return dict(arrays)


def _read_safetensors(file: IO[bytes]) -> Arrays:
    # safetensors.numpy has no bfloat16
    return {
        name: np.frombuffer(x["data"], SAFETENSORS_DTYPES[x["dtype"]]).reshape(x["shape"])
        for name, x in safetensors.deserialize(file.read())
    }


READERS: dict[str, Callable[[IO[bytes]], Any]] = {
    ".pdparams": _read_pdparams,
    ".pth": _read_torch,
    ".pt": _read_torch,
    ".npz": _read_npz,
    ".safetensors": _read_safetensors,
}
