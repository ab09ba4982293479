"""Arrays of files that are hostile until they are read: what all formats have, and the limits."""

import math
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]

NUMBERS = {
    name: np.dtype(name)
    for name in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")
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


class Unfit(ValueError):
    """The file may be sound, but it is too much, or it is not clear what of it is meant."""


def shown(text: str, length: int = 80) -> str:
    """Returns text of a file for a message: cut, on one line, without a terminal's commands."""
    text = text if len(text) <= length else text[: length - 3] + "..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def array_of(data: Any, dtype: np.dtype, shape: tuple[int, ...], order: str = "C") -> np.ndarray:
    """Returns a view of `data`, which has to have exactly the bytes of such an array."""
    size = math.prod(shape) * dtype.itemsize
    if len(data) != size:
        raise ValueError(f"an array of {shape} has {len(data)} bytes instead of {size}")
    return np.ndarray(shape, dtype, data, order=order)


def sizes_of(values: Any) -> tuple[int, ...]:
    """Returns a shape or strides from a file, once it is nothing else."""
    if not isinstance(values, list | tuple) or len(values) > 32:
        raise ValueError("a shape is not a tuple of at most 32 numbers")
    if not all(type(n) is int and 0 <= n < 1 << 63 for n in values):
        raise ValueError("a shape is not made of whole numbers")
    return tuple(values)
