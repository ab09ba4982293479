"""Programs compiled for devices that need not be here, and what is kept of them.

What the compiler says of a program lies below the user's cache directory, by the program's hash:
compiling a network for TPUs takes minutes.
"""

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcls import chips, compiled, console, files, program
from jaxcls.output import one_line

VERSION = 4  # of what is kept: another one makes all of it anew
TRIES = 8  # compilations for the largest batch


class Target(NamedTuple):
    """What is compiled for."""

    name: str  # as typed
    devices: list[Any]
    chip: chips.Chip | None
    sides: tuple[int, ...] = ()  # of a slice


def topology(name: str) -> Target:
    """Returns a slice of TPUs, none of which is here.

    Raises:
      ValueError: there is no such slice, or no libtpu.
    """
    kind, sides = chips.shape(name)
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            "--topology needs libtpu, the compiler for TPUs: pip install -e '.[tpu]' (no TPU is "
            "needed); --devices=cpu:8 works without"
        )
    # libtpu would ask for them the metadata server of a TPU VM, and it locks the TPUs of a machine
    os.environ |= {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        "TPU_ACCELERATOR_TYPE": chips.accelerator_type(kind, math.prod(sides)),
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")
    jax.config.update("jax_platforms", "cpu")
    # JAX's own cache takes programs for devices that are not here, and cannot read them again
    jax.config.update("jax_enable_compilation_cache", False)
    from jax.experimental import topologies

    options = {"chips_per_host_bounds": [*(min(2, n) for n in sides[:2]), 1]}
    if kind == "v4":
        options["chip_config_name"] = "megacore"  # both cores are one device, as on its VMs
    try:
        devices = topologies.get_topology_desc(
            name.strip().lower(), platform="tpu", **options
        ).devices
    except Exception as e:  # the name is right
        raise ValueError(f"--topology={name}: libtpu {_libtpu()} says: {one_line(e)}") from e
    return Target(name, list(devices), chips.of(devices[0].device_kind), sides)


def here(name: str) -> Target:
    """Returns devices of this machine: "cpu:8", virtual ones, or "gpu:1".

    Raises:
      ValueError: they are not there.
    """
    found = re.fullmatch(r"(cpu|gpu|tpu):([1-9]\d*)", name)
    if not found:
        raise ValueError(f"--devices={name}: write cpu:8, or gpu:1 for those of this machine")
    platform, count = found[1], int(found[2])
    if platform == "cpu":
        jax.config.update("jax_platforms", "cpu")
        with contextlib.suppress(RuntimeError):  # JAX has begun
            jax.config.update("jax_num_cpu_devices", count)
    try:
        devices = jax.devices(platform)
    except RuntimeError as e:
        raise ValueError(f"--devices={name}: JAX finds no {platform} here") from e
    if len(devices) < count:
        raise ValueError(f"--devices={name}: there are {len(devices)} here")
    chip = this_cpu(count) if platform == "cpu" else chips.of(devices[0].device_kind)
    given = (devices[0].memory_stats() or {}).get("bytes_limit")  # JAX leaves some of a GPU's
    chip = chip._replace(memory=given) if chip and given else chip
    return Target(name, devices[:count], chip)


def this_cpu(devices: int) -> chips.Chip:
    """Returns what a virtual device has of this machine: a share, as far as a moment can tell."""

    def best(f: Callable[[], Any], work: float) -> float:
        times = []
        for _ in range(4):
            began = time.perf_counter()
            f()
            times.append(time.perf_counter() - began)
        return work / min(times) / devices

    n = 1024
    a, big = np.ones((n, n), np.float32), np.ones(2**23, np.float32)
    flops = best(lambda: a @ a, 2 * n**3)
    bandwidth = best(big.copy, 2 * big.nbytes)
    memory = 0
    if hasattr(os, "sysconf"):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / devices
    return chips.Chip("cpu", flops, memory, bandwidth, bandwidth, passes=1)


def examine(
    built: program.Program,
    target: Target,
    extra: dict[str, tuple[tuple[int, ...], Any]],
    quick: bool = False,
) -> dict[str, Any]:
    """Returns what `of_compiler` does, of a program's train step.

    Args:
      built: for the devices of `target`.
      target: what it is compiled for.
      extra: what a batch has beside images and labels: name -> shape of a row, dtype.
      quick: as of `of_compiler`.
    """
    batch = built.plan.batch_size
    rows = {"image": (built.network.image.shape, jnp.uint8), "label": ((), jnp.int32)}
    if built.network.multi_label:
        rows["label"] = ((built.network.num_classes,), jnp.float32)
    rows |= extra
    arguments = (
        built.abstract_state,
        {k: jax.ShapeDtypeStruct((batch, *shape), dtype) for k, (shape, dtype) in rows.items()},
        *jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), built.teachers),
    )
    show(f"tracing the step at a batch of {batch} ...")
    lowered = built.train_step.lower(*arguments)
    show(f"compiling it for {target.name} at a batch of {batch}: takes minutes ...")
    micro = built.optimizer.accumulate_steps
    return of_compiler(lowered, target, built.layout.mesh.size, micro, quick)


def of_compiler(
    lowered: Any, target: Target, devices: int, micro_batches: int = 1, quick: bool = False
) -> dict[str, Any]:
    """Returns what the compiler says of a program, of one device; keeps it for next time.

    Args:
      lowered: `jax.jit(...).lower(...)`.
      target: what it is compiled for.
      devices: that it runs on.
      micro_batches: of its loop over them, which the compiler counts once.
      quick: with the least effort of TPUs' compiler: another program, that takes more memory and
        moves more.

    Returns:
      {"flops", "bytes", "xla_bytes", "kinds", "sent", "collectives", "activations", "temporaries",
      "total"}, of which "bytes", by "kinds", is as `compiled` reads the program and "xla_bytes" as
      XLA says; where there is not enough memory {"total"} alone, as far as the compiler tells, and
      more than there is. In a slice "total" is at most the chip's memory otherwise: libtpu refuses
      what does not fit, and its sum does not know which buffers share memory.
    """
    flags = map(os.environ.get, ("XLA_FLAGS", "LIBTPU_INIT_ARGS"))
    versions = (VERSION, jax.__version__, _libtpu(), *flags)
    versions += ("quick",) * quick
    asked = f"{target.name} {versions} {lowered.as_text()}"
    kept = f"plan/{hashlib.sha256(asked.encode()).hexdigest()}.json"
    with contextlib.suppress(OSError, ValueError, AttributeError, RuntimeError):
        found = json.loads((files.caches() / kept).read_text())
        if found.keys() >= {"total", "collectives"} or found.keys() == {"total"}:
            return found
    level = jax.config.jax_optimization_level
    try:
        jax.config.update("jax_optimization_level", "O0" if quick else level)
        found = _compiled(lowered, devices, micro_batches)
    finally:
        jax.config.update("jax_optimization_level", level)
    if target.sides and target.chip and "flops" in found:
        found["total"] = min(found["total"], int(target.chip.memory))
    # no home, a full disk: it is found anew the next time
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        path = files.caches() / kept
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_atomically(path, json.dumps(found))
    return found


def show(text: str) -> None:
    """Shows what is waited for, on a terminal."""
    if sys.stderr.isatty():
        console.show_passing(text)


def _libtpu() -> str:
    try:
        return importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:
        return ""


def _compiled(lowered: Any, devices: int, micro_batches: int) -> dict[str, Any]:
    try:
        done = lowered.compile()
    except jax.errors.JaxRuntimeError as e:
        if "RESOURCE_EXHAUSTED" not in str(e):
            raise
        return {"total": needed(str(e))}
    stats, reading = done.memory_analysis(), compiled.read(done.as_text(), devices)
    total = stats.argument_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
    cost = done.cost_analysis() or {}
    return {
        # XLA counts one turn of a loop; the reading counts all, but not what a library computes
        "flops": max(cost.get("flops", 0.0) * micro_batches, reading.flops),
        "bytes": reading.bytes,
        "xla_bytes": cost.get("bytes accessed", 0.0) * micro_batches,
        "kinds": reading.kinds,
        "sent": reading.sent,
        "collectives": reading.collectives,
        "activations": int(min(reading.activations, stats.temp_size_in_bytes)),
        "temporaries": stats.temp_size_in_bytes,
        "total": total + stats.temp_size_in_bytes + stats.generated_code_size_in_bytes,
    }


def needed(message: str) -> int | None:
    """Returns the bytes that a program needs, of the compiler's refusal; None: it says nothing."""
    unit = {"B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    found = re.search(r"(?:required|Used|requires)\D*?([\d.]+)([BKMGT])\b", message)
    return int(float(found[1]) * unit[found[2]]) if found else None


def state_bytes(state: Any) -> dict[str, int]:
    """Returns the bytes of a state that a device has: {"parameters", "optimizer", "averages"}."""
    tree = lambda x: sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(x)
    )
    parameters, averages = tree(state.variables()), tree(state.averages)
    optimizer = tree(state) - parameters - averages
    return {"parameters": parameters, "optimizer": optimizer, "averages": averages}


def largest_batch(
    total: Callable[[int], float | None],
    *,
    limit: float,
    unit: int,
    most: int,
    batch: int,
    fixed: float,
) -> int:
    """Returns the largest multiple of `unit` that fits; 0: not even one.

    Memory grows nearly in proportion to the batch, so that a line through what is known finds it in
    about three calls; what it misses, bisection finds.

    Args:
      total: bytes that a batch needs; None: it cannot be had at all. It is called `TRIES` times at
        most; what is returned then is the largest of those that were found to fit.
      limit: bytes that there are.
      unit, most: images; of which it is a multiple, and not more.
      batch: that is tried first, and `fixed` of its bytes are needed for any.
    """
    low, high, guess = 0, most // unit + 1, max(batch // unit, 1)
    for trial in range(TRIES):
        if high - low == 1:
            break
        guess = max(low + 1, min(guess, high - 1))
        need = total(guess * unit)
        if need is not None and need <= limit:
            low = guess
        else:
            high = guess
        line = int((limit - fixed) / max(need - fixed, 1) * guess) if need else guess // 2
        guess = (low + high) // 2 if trial % 2 else line
    return low * unit
