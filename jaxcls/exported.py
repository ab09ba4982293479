"""Exports as networks: the programs that `jaxcls.export` has written answer as their runs do."""

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from jaxcls import files
from jaxcls.network import Network, Variables, of_meta

ABOUT = "network.json"
Call = Callable[[Any], Mapping[str, Any]]  # images as the program takes them -> {"logits", ...}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exported(Network):
    """A network whose program is a file. It answers; its weights and features are inside."""

    path: str  # of the file
    input: str  # "uint8" [B, H, W, C] or "float_nchw", normalised
    call: Call
    traceable: bool  # whether `call` can be compiled into a program

    @functools.cached_property
    def predict(self) -> Callable[[Variables, Any], Mapping[str, Any]]:
        """`f({}, images) -> {"logits": [B, K], ...}`, float32, of uint8 images [B, H, W, C]."""

        def predict(variables: Variables, images: Any) -> Mapping[str, Any]:
            if self.input == "float_nchw":
                images = self.normalise(images).astype(jnp.float32).transpose(0, 3, 1, 2)
            return self.call(images)

        return predict

    @property
    def files(self) -> list[epath.Path]:
        """The program's file, and what belongs to it."""
        return parts(epath.Path(self.path))

    def refused(self, what: str) -> ValueError:
        """Returns the error of what needs the weights."""
        return ValueError(
            f"{what}: {self.path} is an export, which has a program and no weights: give the run "
            "or the checkpoint that it was made of"
        )


def find(path: str | os.PathLike) -> epath.Path | None:
    """Returns the program of an export, of a directory the first of `FILES`; None: there is none.

    Raises:
      ValueError: the directory of an export without a program, a program without its directory, or
        one of its other files.
    """
    place = files.absolute(path)
    beside = (place.parent / ABOUT).is_file()
    if place.name in FILES and beside:
        return place
    if place.name in FILES and place.is_file():
        raise ValueError(f"{os.fspath(path)}: there is no {ABOUT} beside it, which says what it is")
    if beside and place.exists() and not (place / ABOUT).exists():
        raise ValueError(f"{os.fspath(path)}: of an export give the folder, or {_either()} in it")
    if not (place / ABOUT).exists():
        return None
    for name in FILES:
        if (place / name).exists():
            return place / name
    raise ValueError(f"{os.fspath(path)}: an export without {_either()}")


def _either() -> str:
    return " or ".join(FILES)


def parts(program: epath.Path) -> list[epath.Path]:
    """Returns the files of a program: its own, and that of its weights, where they are apart."""
    return [program, *sorted(program.parent.glob(f"{program.name}.data"))]


def described(folder: epath.Path) -> tuple[Network, str, Mapping[str, str]]:
    """Returns the network of an export, what its programs take, and the SHA-256 of their files.

    Raises:
      ValueError: its network.json does not say so.
    """
    about = folder / ABOUT
    try:
        told = json.loads(about.read_text())
        if not isinstance(told, dict) or not isinstance(told.get("num_classes"), int):
            raise ValueError("no network is described there")
        kind, digests = told["input"]["kind"], told.get("sha256", {})  # old ones have none
        if not isinstance(kind, str) or not isinstance(digests, dict):
            raise ValueError("no export is described there")
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise ValueError(f"{about}: {files.line(e)}") from e
    return of_meta({"network": told}, {}, about), kind, digests


def digests(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of the files of the programs in a folder, by their names."""
    every = (part for name in FILES for part in parts(folder / name) if part.is_file())
    return {part.name: files.digest(part) for part in every}


def load(program: epath.Path) -> Exported:
    """Returns the network of what `find` returns.

    Raises:
      ValueError: it cannot be read, or is of another network than its network.json.
    """
    network, kind, said = described(program.parent)
    fields = {field.name: getattr(network, field.name) for field in dataclasses.fields(network)}
    try:
        call, shape, classes = FILES[program.name](program)
    except ModuleNotFoundError as e:
        raise ValueError(f"{program} needs {e.name}: pip install 'jaxcls[export]'") from e
    except Exception as e:  # of a file from anywhere
        reason = files.storage_problem(e) or files.line(e)
        raise ValueError(f"{program} cannot be read: {reason}") from e
    size, channels = network.image.shown, network.image.channels
    known = {"uint8": (size, size, channels), "float_nchw": (channels, size, size)}
    if known.get(kind) != shape or classes != network.num_classes:
        raise ValueError(
            f"{program} takes images {list(shape)} and has {classes} classes, {ABOUT} beside it "
            f"says {kind} {list(known.get(kind, ()))} and {network.num_classes}: they are not of "
            "one export"
        )
    for part in parts(program):
        if said.get(part.name, its := files.digest(part)) != its:
            raise ValueError(
                f"{part} is not what {ABOUT} beside it was written with: damaged, or of another "
                "export"
            )
    traceable = program.name.endswith(".stablehlo")
    return Exported(**fields, path=os.fspath(program), input=kind, call=call, traceable=traceable)


def _stablehlo(file: epath.Path) -> tuple[Call, tuple[int, ...], int]:
    """Returns the program, the shape of an image as it takes it, and the number of classes."""
    from jax import export

    program = export.deserialize(bytearray(file.read_bytes()))
    [images] = program.in_avals
    [logits, _] = program.out_avals
    if jax.default_backend() not in (its := program.platforms):
        raise ValueError(f"it is for {', '.join(its)}, here is {jax.default_backend()}")
    return program.call, tuple(images.shape[1:]), logits.shape[-1]


def _onnx(file: epath.Path) -> tuple[Call, tuple[int, ...], int]:
    import onnxruntime

    # weights beside it are found by the name of the file alone, which must be of this machine
    model = os.fspath(file) if len(parts(file)) > 1 else file.read_bytes()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    [images] = session.get_inputs()

    def call(pixels: Any) -> dict[str, np.ndarray]:
        return dict(zip(names, session.run(names, {images.name: np.asarray(pixels)})))

    logits = session.get_outputs()[names.index("logits")]
    return call, tuple(images.shape[1:]), logits.shape[-1]


FILES = {"model.stablehlo": _stablehlo, "model.onnx": _onnx, "model_int8.onnx": _onnx}
