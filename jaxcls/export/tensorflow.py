"""SavedModel and TFLite: the StableHLO that JAX exports, in what TensorFlow knows.

TensorFlow is run in a process of its own: it says much, and takes memory of accelerators.
"""

import concurrent.futures
import contextlib
import dataclasses
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export
from jax.extend.mlir.dialects import stablehlo

from jaxcls.export.program import PLATFORMS, Program

# TensorFlow reads an older StableHLO than JAX writes: 2.21 up to 1.13, where jax 0.12 has 1.22.
# What networks are made of has been there from the first.
STABLEHLO = "1.0.0"


@dataclasses.dataclass(frozen=True)
class Exported:
    """A program with its weights, without JAX."""

    module: bytes  # StableHLO, of weights and images
    version: int  # of how it is called
    platforms: tuple[str, ...]
    kept: tuple[int, ...]  # arguments that it has; the others are not needed
    weights: list[np.ndarray]
    images: tuple[tuple[int | None, ...], str]  # shape, None: any number; dtype
    outputs: dict[str, tuple[tuple[int | None, ...], str]]


def saved_model(program: Program, path: Path, pixels: np.ndarray) -> None:
    """Writes a SavedModel, for all platforms and any number of images."""
    _apart(_saved_model, exported(program, program.spec(), PLATFORMS), path)


def tflite(program: Program, path: Path, pixels: np.ndarray) -> None:
    """Writes a TFLite model of one image: with any number of them it is 25 times slower.

    Of "float16" it has weights of 16 bits, which processors compute with in 32.
    """
    half = program.network.precision == "float16"
    wide = dataclasses.replace(
        program,
        network=dataclasses.replace(program.network, precision="float32"),
        variables=jax.tree.map(lambda x: np.asarray(x, np.float32), program.variables),
    )
    _apart(_tflite, exported(wide, wide.spec(1), ("cpu",)), path, half)


def exported(program: Program, images: jax.ShapeDtypeStruct, platforms: Sequence[str]) -> Exported:
    """Returns a program as `export` has it, its weights apart."""
    weights, tree = jax.tree.flatten(program.variables)

    def call(weights: list[jax.Array], images: jax.Array) -> dict[str, jax.Array]:
        variables = jax.tree.unflatten(tree, weights)
        return dataclasses.replace(program, variables=variables)(images)

    found = export.export(jax.jit(call), platforms=platforms)(weights, images)

    def described(aval: Any) -> tuple[tuple[int | None, ...], str]:
        return tuple(n if isinstance(n, int) else None for n in aval.shape), str(aval.dtype)

    outputs = jax.tree.unflatten(found.out_tree, [described(x) for x in found.out_avals])
    return Exported(
        module=stablehlo.serialize_portable_artifact_str(found.mlir_module(), STABLEHLO),
        version=found.calling_convention_version,
        platforms=tuple(platform.upper() for platform in found.platforms),
        kept=tuple(found.module_kept_var_idx),
        weights=weights,
        images=described(images),
        outputs=outputs,
    )


def _apart(function: Callable[..., None], *arguments: Any) -> None:
    """Calls a function in a process of its own.

    Raises:
      ValueError: it fails there.
    """
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context, _quiet) as pool:
        try:
            pool.submit(function, *arguments).result()
        except OSError:  # a full disk
            raise
        except Exception as e:  # of whatever part of TensorFlow
            line = (str(e).strip() or type(e).__name__).partition("\n")[0]
            raise ValueError(f"TensorFlow cannot write it: {line}") from e


# -- In the other process --------------------------------------------------------------------------


def _quiet() -> None:
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"}
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _saved_model(found: Exported, path: Path) -> None:
    import tensorflow as tf
    from tensorflow.compiler.tf2xla.python import xla

    tf.get_logger().setLevel("ERROR")
    module = tf.Module()
    module.weights = [tf.Variable(array, trainable=False) for array in found.weights]
    shape, dtype = found.images

    @tf.function(autograph=False, input_signature=[tf.TensorSpec(shape, dtype, "images")])
    def serve(images: Any) -> dict[str, Any]:
        arguments = [*module.weights, images]
        results = xla.call_module(
            [arguments[i] for i in found.kept],
            version=found.version,
            module=found.module,
            platforms=found.platforms,
            Tout=[tf.as_dtype(dtype) for _, dtype in found.outputs.values()],
            Sout=[shape for shape, _ in found.outputs.values()],
        )
        return dict(zip(found.outputs, results, strict=True))

    module.serve = serve
    tf.saved_model.save(module, os.fspath(path), signatures={"serving_default": serve})


def _tflite(found: Exported, path: Path, half: bool) -> None:
    import tensorflow as tf

    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(None):
        _saved_model(found, Path(scratch))
        converter = tf.lite.TFLiteConverter.from_saved_model(scratch)
        if half:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.target_spec.supported_types = [tf.float16]
        path.write_bytes(converter.convert())
