"""Zip files, and what NumPy writes into them."""

import io
import re
import struct
import sys
from collections.abc import Iterator, Mapping
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile

import numpy as np

from jaxcls.convert.arrays import (
    MAX_HEADER,
    MAX_MEMBERS,
    MAX_RATIO,
    NUMBERS,
    Arrays,
    Unfit,
    array_of,
    shown,
    sizes_of,
)


class _Limited(io.BytesIO):
    """A file of which no more than `limit` bytes can be read at once."""

    limit = MAX_HEADER

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > self.limit:
            raise ValueError(f"its table of contents has {size:,} bytes")
        return super().read(size)


class Zip(Mapping[str, bytes]):
    """The members of a zip file by name; none is read before the sizes of all are checked."""

    def __init__(self, data: bytes):
        if data.count(b"PK\1\2") > MAX_MEMBERS:
            raise Unfit(f"there are more than {MAX_MEMBERS:,} files in it")
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
            raise Unfit(f"the files in it claim {size:,} bytes, and it has {len(data):,}")

    def __getitem__(self, name: str) -> bytes:
        member = self.members[name]
        with self.archive.open(member) as file:
            data = file.read(member.file_size)  # without a size it unpacks what there is
        if len(data) < member.file_size:
            raise EOFError(f"{shown(name)} has {len(data)} of {member.file_size} bytes")
        return data

    def __iter__(self) -> Iterator[str]:
        return iter(self.members)

    def __len__(self) -> int:
        return len(self.members)


NPY_HEADER = re.compile(
    r"\{'descr': *'([<>|=]?)([a-z]\d)', *'fortran_order': *(True|False), *"
    r"'shape': *\(([\dL, ]*)\),? *\} *\n?"
)


def read_npz(data: bytes) -> Arrays:
    members = Zip(data)
    return {
        name.removesuffix(".npy"): _npy(name, members[name])
        for name in members
        if name.endswith(".npy")
    }


def _npy(name: str, data: bytes) -> np.ndarray:
    """Returns the array of a .npy file: magic, version, length of the header, header, numbers."""
    if data[:6] != b"\x93NUMPY" or data[6:7] not in (b"\1", b"\2"):
        raise ValueError(f"{shown(name)} is no array")
    length = "<H" if data[6:7] == b"\1" else "<I"
    start = 8 + struct.calcsize(length)
    end = start + struct.unpack_from(length, data, 8)[0]
    header = NPY_HEADER.fullmatch(data[start : min(end, start + 0xFFFF)].decode("latin1"))
    if not header or header[2] not in NUMBERS:
        raise ValueError(f"{shown(name)} is not an array of numbers")
    shape = sizes_of([int(n) for n in header[4].replace("L", "").split(",") if n.strip()])
    dtype = NUMBERS[header[2]].newbyteorder(header[1] or "=")
    return array_of(memoryview(data)[end:], dtype, shape, "F" if header[3] == "True" else "C")
