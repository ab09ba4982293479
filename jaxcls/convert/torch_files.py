"""Files of PyTorch, of any version since 0.4: pickles, and the numbers beside them."""

import math
import struct
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxcls.convert.arrays import NUMBERS, Refused, Unfit, array_of, shown, sizes_of
from jaxcls.convert.pickles import Name, Pickles
from jaxcls.convert.zips import Zip

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


class Storage:
    """The numbers that tensors are views of, which are not in the pickle."""

    __slots__ = ("dtype", "key", "numbers")

    def __init__(self, dtype: np.dtype, key: str, numbers: Mapping[str, Any]):
        self.dtype, self.key, self.numbers = dtype, key, numbers


class Tensor:
    """A tensor whose numbers are read when the array is asked for."""

    __slots__ = ("offset", "shape", "storage", "strides")

    def __init__(
        self, storage: Any, offset: Any, shape: Any, strides: Any, *gradients_hooks_more: Any
    ):
        if not isinstance(storage, Storage):
            raise Refused("it has a tensor without numbers")
        if any(gradients_hooks_more[2:]):  # {"neg": True}: the sign of its numbers is to be changed
            raise Unfit("it has a tensor that is a view: save what clone() returns")
        self.storage, (self.offset,) = storage, sizes_of([offset])
        self.shape, self.strides = sizes_of(shape), sizes_of(strides)

    def array(self) -> np.ndarray:
        """Returns a view: tensors that share their numbers do not take memory twice.

        What `Tensor.expand` makes is refused: a few numbers could pass for any amount of them, and
        no weights are saved so.
        """
        dtype, numbers = self.storage.dtype, self.storage.numbers[self.storage.key]
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        count = len(numbers) // dtype.itemsize
        if not math.prod(self.shape):
            return array_of(b"", dtype, self.shape)
        if last >= count:
            raise ValueError(f"a tensor of {self.shape} needs more than {count} numbers")
        if math.prod(self.shape) > count:
            raise Unfit(f"a tensor of {self.shape} has {count} numbers: save what clone() returns")
        strides = [s * dtype.itemsize for s in self.strides]
        return np.ndarray(self.shape, dtype, numbers, self.offset * dtype.itemsize, strides)


class TorchPickles(Pickles):
    """Knows PyTorch's tensors too."""

    def __init__(self, data: bytes, numbers: Mapping[str, Any]):
        super().__init__(data)
        self.numbers = numbers
        self.dtypes: dict[str, np.dtype] = {}  # of the storages
        self.calls |= dict.fromkeys(TORCH_STORAGES)
        self.calls |= {
            "torch.Size": self._tuple,
            "torch._utils._rebuild_tensor_v2": Tensor,
            "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
        }

    def _persistent(self, pid: Any) -> Storage:
        match pid:
            case ("storage", Name(name=name), str(key), _, _, *view) if name in TORCH_STORAGES:
                if view not in ([], [None]):
                    raise Unfit("it has storages that are parts of others")
                dtype = self.dtypes.setdefault(key, TORCH_STORAGES[name])
                return Storage(dtype, key, self.numbers)
        raise Refused("the pickle has parts outside of it that are no numbers")


def read_torch(data: bytes) -> Any:
    return _read_torch_zip(data) if data[:4] == b"PK\3\4" else _read_torch_legacy(data)


def _read_torch_zip(data: bytes) -> Any:
    """Reads PyTorch's format since 1.6: NAME/data.pkl and a file for each storage, NAME/data/N."""
    members = Zip(data)
    if any(name.endswith("/constants.pkl") for name in members):
        raise Refused("it is a TorchScript program")
    pickles = [name for name in members if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ValueError(f"{len(pickles)} files data.pkl in it")
    folder = pickles[0].removesuffix("data.pkl")
    if members.get(folder + "byteorder", b"little") != b"little":
        raise Unfit("its numbers are big-endian")
    return TorchPickles(members[pickles[0]], _Storages(members, folder)).load()


def _read_torch_legacy(data: bytes) -> Any:
    """Reads PyTorch's format before 1.6: five pickles, then length and numbers of each storage."""
    numbers: dict[str, bytes] = {}
    pickles = TorchPickles(data, numbers)
    magic, _, system = (pickles.load() for _ in ("magic", "version", "system"))
    if type(magic) is not int or magic != LEGACY_MAGIC:
        raise Refused("it is a pickle, but not one of PyTorch")
    if isinstance(system, dict) and system.get("little_endian") is False:
        raise Unfit("its numbers are big-endian")
    content, keys = pickles.load(), pickles.load()
    at = pickles.file.tell()
    for key in keys:
        if not isinstance(key, str) or key not in pickles.dtypes or key in numbers:
            raise ValueError("its list of storages is not that of its tensors")
        (count,) = struct.unpack_from("<q", data, at)
        start, at = at + 8, at + 8 + count * pickles.dtypes[key].itemsize
        if not start <= at <= len(data):
            raise EOFError(f"storage {shown(key)} has {len(data) - start} of {at - start} bytes")
        numbers[key] = data[start:at]
    return content


class _Storages(dict):
    """PyTorch's storages by key, each read from its zip file when it is asked for, and once."""

    def __init__(self, members: Zip, folder: str):
        self.members, self.folder = members, folder

    def __missing__(self, key: str) -> bytes:
        self[key] = self.members[f"{self.folder}data/{key}"]
        return self[key]
