"""Files of weights -> {name: array}, without the frameworks that wrote them.

Every file is taken for hostile until it is read. `.pdparams`, `.pth` and `.pt` are pickles, and a
pickle is a program: here it runs on numbers, text and containers alone, and what it asks to call
is looked up in a list and made by this module. No memory is taken for a size that a file claims;
it has to have the bytes. Time and memory are thus bounded by the size of the file and the limits
below.
"""

import itertools
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors

from jaxcls.convert.arrays import (
    MAX_HEADER,
    MAX_NAME,
    NUMBERS,
    Arrays,
    Refused,
    Unfit,
    array_of,
    shown,
    sizes_of,
)
from jaxcls.convert.pickles import LazyArray, read_pdparams
from jaxcls.convert.torch_files import Tensor, read_torch
from jaxcls.convert.zips import read_npz

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
    except Unfit as error:
        raise ValueError(f"{path}: {error}") from error
    except MemoryError as error:
        raise ValueError(f"{path}: there is not enough memory to read it") from error
    except Exception as error:  # what damage raises depends on where it is
        what = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ValueError(
            f"{path}: not a whole {path.suffix} file, is the download complete? "
            f"({len(data)} bytes; {what}{shown(str(error), 300)})"
        ) from error


def _some(names: Mapping[str, Any]) -> str:
    """Returns the first ten names, and how many more there are."""
    more = f" and {len(names) - 10:,} more" if len(names) > 10 else ""
    return ", ".join(shown(name) for name in itertools.islice(names, 10)) + more


def _chosen(content: Any, key: str) -> Mapping[str, Any]:
    """Returns the dictionary of arrays that `key` names, or the only one there is."""
    if not isinstance(content, dict):
        raise Unfit(f"it holds a {type(content).__name__}, not a dictionary of arrays")
    # A pickle can have one dictionary in many places: each is searched once.
    inner = {id(v): v for v in content.values() if isinstance(v, dict)}
    found = {i for i, v in inner.items() if _has_arrays(v)}
    sets = {k: v for k, v in content.items() if id(v) in found}
    if key:
        if key not in sets:
            known = f"choose one of {_some(sets)}" if sets else "it has only one set"
            raise Unfit(f"it has no weights {key!r}: {known}")
        return sets[key]
    # Beside a set of weights, the state of a random generator is none.
    if _has_arrays(content, kinds="fV" if sets else "fViub"):
        return content
    if len(sets) != 1:
        several = f"several sets of weights, {_some(sets)}: choose one with --key"
        raise Unfit(f"it has {several if sets else 'no arrays'}")
    return next(iter(sets.values()))


def _has_arrays(content: Mapping[str, Any], kinds: str = "fViub") -> bool:
    """Returns whether there are arrays of these kinds of numbers ("V": bfloat16) in it."""
    arrays = (v for v in content.values() if isinstance(v, np.ndarray | LazyArray | Tensor))
    return any(array.shape and _dtype(array).kind in kinds for array in arrays)


def _dtype(array: Any) -> np.dtype:
    if isinstance(array, Tensor):
        return array.storage.dtype
    return array.dtype.numpy() if isinstance(array, LazyArray) else array.dtype


def _arrays(content: Mapping[str, Any]) -> Arrays:
    """Returns what is an array; the rest (epochs, tables of names, ...) are no weights."""
    arrays = {
        name: value if isinstance(value, np.ndarray) else value.array()
        for name, value in content.items()
        if isinstance(value, np.ndarray | LazyArray | Tensor)
    }
    for name in arrays:
        if len(name) > MAX_NAME or not name.isprintable():
            raise Unfit(f'"{shown(name)}" is no name of a tensor')
    prefix = "module."  # what PyTorch's DataParallel adds to every name
    if all(name.startswith(prefix) for name in arrays):
        arrays = {name.removeprefix(prefix): array for name, array in arrays.items()}
    return arrays


def _read_safetensors(data: bytes) -> Arrays:
    if len(data) < 8 or struct.unpack_from("<Q", data)[0] > MAX_HEADER:
        raise ValueError(f"its header is not one, or of more than {MAX_HEADER:,} bytes")
    arrays = {}
    for name, tensor in safetensors.deserialize(data):  # safetensors.numpy has no bfloat16
        if tensor["dtype"] not in SAFETENSORS_DTYPES:
            raise ValueError(f"{shown(name)} is of {tensor['dtype']}, which is not read")
        dtype = SAFETENSORS_DTYPES[tensor["dtype"]]
        arrays[name] = array_of(tensor["data"], dtype, sizes_of(tensor["shape"]))
    return arrays


READERS: dict[str, Callable[[bytes], Any]] = {
    ".pdparams": read_pdparams,
    ".pth": read_torch,
    ".pt": read_torch,
    ".npz": read_npz,
    ".safetensors": _read_safetensors,
}
