"""Formats of an export: how each is written, and how a program without jaxcls runs it.

The code that runs it stands in the model card, and is what `agreement` runs.
"""

import dataclasses
import importlib.metadata
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export

from jaxcls.config import choose
from jaxcls.export import tensorflow, timm
from jaxcls.export.program import PLATFORMS, PRECISIONS, Program
from jaxcls.network import Network

BATCH = 8  # images at once, of those that ranges are found with
LARGEST = 2**31 - 2**24  # bytes of weights in a file of Protocol Buffers or FlatBuffers
LEAST = 32  # images to find ranges with


@dataclasses.dataclass(frozen=True)
class Format:
    """A row of `FORMATS`."""

    file: str  # what it writes, a file or a folder below DIR
    write: Callable[[Program, Path, np.ndarray], None]  # uint8 images show it what to expect
    run: str  # Python: `images` -> `logits`, `probabilities`, in the folder of the export
    needs: tuple[str, ...]  # packages, to write and to run it
    precisions: tuple[str, ...]
    quantised: bool = False  # to 8 bits
    extra: str = "export"  # that has the packages
    check: Callable[[Network], None] = lambda network: None  # refuses what it is not for
    input: str = ""  # of `program.INPUTS`, where there is no choice
    note: str = ""  # in the card
    limit: int | None = None  # bytes of weights that a file can have


def stablehlo(program: Program, path: Path, pixels: np.ndarray) -> None:
    """Writes the program as JAX exports it, for all platforms and any number of images.

    See https://docs.jax.dev/en/latest/export/export.html for how long it can be read.
    """
    options = {**program.network.options, "by_platform": True}
    network = dataclasses.replace(program.network, options=options)
    program = dataclasses.replace(program, network=network)
    exported = export.export(jax.jit(program), platforms=PLATFORMS)(program.spec())
    path.write_bytes(exported.serialize())


def onnx(program: Program, path: Path, pixels: np.ndarray) -> None:
    """Writes an ONNX model, opset 21; what it is of stands in its meta data."""
    import onnx

    from jaxcls.export.onnx import convert

    model = convert(program, program.spec(), _about(program))
    large = program.size > LARGEST  # then weights are in a file beside it
    onnx.save(model, path, save_as_external_data=large, location=f"{path.name}.data")


def int8(program: Program, path: Path, pixels: np.ndarray) -> None:
    """Writes the ONNX model with weights and features of 8 bits, for processors; see `quantise`.

    Processors of x86 add up such products exactly from AVX-512 VNNI and AVX-VNNI on.
    """
    import onnx
    import onnxruntime

    from jaxcls.export.onnx import convert
    from jaxcls.export.quantise import quantise

    def change(graph: Any, inputs: Mapping[str, Any], outputs: list[str]) -> None:
        def run(names: list[str]) -> Iterator[dict[str, np.ndarray]]:
            wanted = dict.fromkeys(names, (np.float32, None))
            model = graph.model(inputs, wanted, {}, ("jaxcls", ""))
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3  # errors
            session = onnxruntime.InferenceSession(model.SerializeToString(), options)
            for batch in np.array_split(program.given(pixels), -(-len(pixels) // BATCH)):
                yield dict(zip(names, session.run(names, {"images": batch}), strict=True))

        quantise(graph, outputs, run, len(pixels))

    onnx.save(convert(program, program.spec(), _about(program), change), path)


def _about(program: Program) -> dict[str, str]:
    net = program.network
    return {"network": net.name, "classes": "\n".join(net.class_names)}


RUN_STABLEHLO = """\
import jax
import numpy as np
from jax import export

with open("model.stablehlo", "rb") as file:
    program = export.deserialize(bytearray(file.read()))
outputs = jax.jit(program.call)(images)
logits, probabilities = outputs["logits"], outputs["probabilities"]
"""
RUN_ONNX = """\
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
logits, probabilities = session.run(["logits", "probabilities"], {"images": images})
"""
RUN_SAVEDMODEL = """\
import tensorflow as tf

program = tf.saved_model.load("saved_model")
outputs = program.signatures["serving_default"](images=tf.constant(images))
logits, probabilities = outputs["logits"], outputs["probabilities"]
"""
RUN_TFLITE = """\
import numpy as np
from ai_edge_litert.interpreter import Interpreter

program = Interpreter("model.tflite").get_signature_runner()
outputs = [program(images=image[None]) for image in images]
logits = np.concatenate([output["logits"] for output in outputs])
probabilities = np.concatenate([output["probabilities"] for output in outputs])
"""
LEAST_VERSION = {"tensorflow": (2, 21)}  # that is known to read what JAX writes

FORMATS = {
    "stablehlo": Format(
        "model.stablehlo",
        stablehlo,
        RUN_STABLEHLO,
        ("flatbuffers",),
        PRECISIONS,
        limit=LARGEST,
    ),
    "onnx": Format("model.onnx", onnx, RUN_ONNX, ("onnx", "onnxruntime"), ("float32", "float16")),
    "int8": Format(
        "model_int8.onnx",
        int8,
        RUN_ONNX.replace("model.onnx", "model_int8.onnx"),
        ("onnx", "onnxruntime"),
        ("float32",),
        quantised=True,
        limit=LARGEST,  # of the model that ranges are found with
    ),
    "savedmodel": Format(
        "saved_model",
        tensorflow.saved_model,
        RUN_SAVEDMODEL,
        ("tensorflow",),
        PRECISIONS,
        extra="export-tf",
    ),
    "tflite": Format(
        "model.tflite",
        tensorflow.tflite,
        RUN_TFLITE,
        ("tensorflow", "ai_edge_litert"),
        ("float32", "float16"),
        limit=LARGEST,
        extra="export-tf",
    ),
    "timm": Format(
        "timm",
        timm.folder,
        timm.RUN,
        ("timm", "torch"),
        ("float32",),
        extra="export-timm",
        check=timm.check,
        input="float_nchw",
        note=timm.NOTE,
    ),
}


def check_size(names: Sequence[str], program: Program) -> None:
    """Refuses formats whose files cannot be so large.

    Raises:
      ValueError: one cannot.
    """
    for name in names:
        limit = FORMATS[name].limit
        if limit is not None and program.size > limit:
            raise ValueError(
                f"--format={name}: {program.network.name} has {program.size / 1e9:.1f} GB of "
                f"weights, a file of this format at most {limit / 1e9:.1f}: choose "
                "--format=onnx, or --precision=float16"
            )


def check(names: Sequence[str], precision: str) -> None:
    """Refuses formats that there are not, or not here.

    Raises:
      ValueError: a name, a package that is not installed, or a precision that the format lacks.
    """
    for name in names:
        choose("--format", name, FORMATS)
        found = FORMATS[name]
        if precision not in found.precisions:
            raise ValueError(
                f"--format={name} has no {precision}: choose --precision="
                f"{' or '.join(found.precisions)}"
            )
        missing = [package for package in found.needs if not importlib.util.find_spec(package)]
        if missing:
            raise ValueError(
                f"--format={name} needs {', '.join(missing)}: pip install 'jaxcls[{found.extra}]'"
            )
        for package in LEAST_VERSION.keys() & {*found.needs}:
            version, least = importlib.metadata.version(package), LEAST_VERSION[package]
            if tuple(map(int, version.split(".")[: len(least)])) < least:
                raise ValueError(
                    f"--format={name} needs {package} {'.'.join(map(str, least))} or later, here "
                    f"is {version}: pip install -U 'jaxcls[{found.extra}]'"
                )
