"""python -m jaxcls.benchmark train: throughput, memory and FLOPs of the train step."""

import itertools
import json
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from jaxcls import chips, precision, program
from jaxcls.benchmark import pytorch
from jaxcls.benchmark.timing import (
    NUM_TRAIN,
    device_batch,
    num_classes,
    repeat_step,
    seconds_per_step,
    summary,
)
from jaxcls.models import count

CONFIG = "resnet50_vd.py"


def define(values: flags.FlagValues) -> None:
    """Declares the options of `train`."""
    several = "; several: a,b,c"
    flags.DEFINE_list("model", [], f"instead of config.model.name{several}", flag_values=values)
    flags.DEFINE_list(
        "precision", [], f"instead of config.precision.name{several}", flag_values=values
    )
    flags.DEFINE_list("batch", [], f"instead of config.batch_size{several}", flag_values=values)
    flags.DEFINE_list(
        "bn_group", [], f"instead of config.model.bn_group{several}; or none", flag_values=values
    )
    flags.DEFINE_integer("repetitions", 20, "timed repetitions", 1, flag_values=values)
    flags.DEFINE_enum(
        "compare", None, ["timm"], "time the same network in PyTorch too", flag_values=values
    )
    flags.DEFINE_bool("json", False, "print a JSON object a line", flag_values=values)


def combinations(config: ConfigDict, options: flags.FlagValues) -> list[ConfigDict]:
    """Returns a config for every combination of the options' lists, in their order."""

    def integer(name):
        def read(text):
            try:
                return int(text)
            except ValueError:
                raise ValueError(f"--{name}={text}: write whole numbers, such as 128,256") from None

        return read

    def group(text):
        return None if text == "none" else integer("bn_group")(text)

    configs = []
    for name, numbers, batch, bn_group in itertools.product(
        options.model or [config.model.name],
        options.precision or [config.precision.name],
        map(integer("batch"), options.batch) if options.batch else [config.batch_size],
        map(group, options.bn_group) if options.bn_group else [config.model.bn_group],
    ):
        c = config.copy_and_resolve_references()
        c.model.name, c.precision.name = name, numbers
        c.batch_size, c.model.bn_group = batch, bn_group
        c.eval.batch_size = 0  # nothing is evaluated; the config's own may not divide here
        configs.append(c)
    return configs


def peak_flops(device: jax.Device, numbers: precision.Precision) -> tuple[float, str]:
    """Returns a device's peak in FLOP/s, and whether "data sheet" or "measured".

    Measured, on devices and in precisions that `chips.CHIPS` lacks, is a large matrix product: the
    best of five.
    """
    half = numbers.dtype == jnp.float16 or (
        numbers.dtype == jnp.bfloat16 and not device.device_kind.startswith("Tesla V100")
    )
    if half and (chip := chips.of(device.device_kind)):
        return chip.flops, "data sheet"
    n = 1024 if device.platform == "cpu" else 8192
    with jax.default_matmul_precision(numbers.matmul_precision):
        a = jax.random.normal(jax.random.key(0), (n, n), numbers.dtype) / n**0.5
        product = jax.jit(jnp.matmul).lower(a, a).compile()

    def run(steps):
        for _ in range(steps):
            out = product(a, a)
        jax.block_until_ready(out)

    return 2 * n**3 / min(seconds_per_step(run, repetitions=5)), "measured"


def peak_bytes(device: jax.Device) -> int:
    """Returns the most that the device's allocator has given out so far; 0 where it is not told."""
    return (device.memory_stats() or {}).get("peak_bytes_in_use", 0)


def time_train(config: ConfigDict, built: program.Program, repetitions: int) -> dict[str, Any]:
    """Returns what `train` shows of a config: throughput, compilation, memory and FLOPs.

    Times are of all devices together, memory is of the first. FLOPs count a multiply-add as two.
    "flops_per_image" is three times the network's forward pass (backward is taken as twice
    forward), "xla_flops_per_image" what XLA says of the compiled step.
    """
    device, batch_size = built.layout.mesh.devices.flat[0], built.plan.batch_size
    batch = device_batch(config, built)
    variables = built.abstract_state.variables()
    macs = count.multiply_adds(built.eval_step, variables, batch) / batch_size
    began = time.perf_counter()
    arguments = batch, *jax.device_put(built.teachers, built.layout.of(built.teachers))
    compiled = built.train_step.lower(built.abstract_state, *arguments).compile()
    compile_seconds = time.perf_counter() - began

    before = peak_bytes(device)
    times = seconds_per_step(repeat_step(compiled, built.init(), *arguments), repetitions)
    memory, source = peak_bytes(device), "allocator"
    if memory <= before:  # it does not tell, or an earlier combination needed more
        stats = compiled.memory_analysis()
        memory = stats.argument_size_in_bytes + stats.temp_size_in_bytes
        memory += stats.output_size_in_bytes - stats.alias_size_in_bytes
        source = "compiler"
    per_second = batch_size / float(np.median(times))
    xla_flops = (
        (compiled.cost_analysis() or {}).get("flops", 0.0) * built.layout.mesh.size / batch_size
    )
    return {
        "images_per_sec": per_second,
        **summary(times),
        "compile_s": compile_seconds,
        "memory_bytes": memory,
        "memory_from": source,
        "params": count.parameters(built.abstract_state.params),
        "flops_per_image": 3 * 2 * macs,
        "xla_flops_per_image": xla_flops,
        "flops_per_sec": 3 * 2 * macs * per_second,
    }


def unless_too_large(measure: Callable[..., dict[str, Any]], *args: Any) -> dict[str, Any]:
    """Returns measure(*args), or {"error": "out of memory"}: the next combination may fit."""
    try:
        return measure(*args)
    except RuntimeError as e:  # of both JAX and PyTorch
        if "RESOURCE_EXHAUSTED" in str(e) or "out of memory" in str(e):
            return {"error": "out of memory"}
        raise


def run(config: ConfigDict, options: flags.FlagValues) -> None:
    """Prints what `time_train` returns for every combination, with --compare=timm the ratio too."""
    if options.compare:
        pytorch.import_timm()
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs memory too
    jobs, peaks = [], {}
    for c in combinations(config, options):
        built = program.build(c, num_train=NUM_TRAIN, num_classes=num_classes(c))
        device = built.layout.mesh.devices.flat[0]
        numbers = precision.make(**c.precision, platform=device.platform)
        if options.compare:
            pytorch.check_timm(c, numbers, built.layout.mesh)
        jobs.append((c, built, numbers))

    # a compile time from the cache would not be one
    jax.config.update("jax_enable_compilation_cache", False)
    for numbers in {numbers.name: numbers for _, _, numbers in jobs}.values():
        peaks[numbers.name] = peak_flops(device, numbers)

    common = {
        "device": device.device_kind,
        "devices": built.layout.mesh.size,
        "size": config.image.size,
        "jax": jax.__version__,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }
    if not options.json:
        print(*(f"{key}: {value}" for key, value in common.items() if value), sep=", ")
        for name, (peak, source) in peaks.items():
            print(f"peak of a device in {name}: {peak / 1e12:.4g} TFLOP/s ({source})")
        print(HEADER + TIMM_HEADER * bool(options.compare), flush=True)
    by_timm: dict[Any, dict[str, Any]] = {}
    for c, built, numbers in jobs:
        row = {
            "model": c.model.name,
            "precision": numbers.name,
            "batch": c.batch_size,
            "bn_group": c.model.bn_group,
        }
        if options.compare:  # before JAX, which keeps the memory it once had
            key = (c.model.name, numbers.name, c.batch_size)
            if key not in by_timm:
                by_timm[key] = unless_too_large(pytorch.time_timm, c, numbers, options.repetitions)
                pytorch.free_torch()
            row["timm"] = by_timm[key]
        row |= unless_too_large(time_train, c, built, options.repetitions)
        if "error" not in row:
            peak, source = peaks[numbers.name]
            share = row["flops_per_sec"] / (peak * built.layout.mesh.size)
            row |= {"peak_flops_per_sec": peak, "peak_from": source, "peak_share": share}
        if "images_per_sec" in row and "images_per_sec" in row.get("timm", {}):
            row["ratio"] = row["images_per_sec"] / row["timm"]["images_per_sec"]
        print(json.dumps(common | row) if options.json else as_text(row), flush=True)


HEADER = (
    f"{'model':<16} {'precision':<10} {'batch':>6} {'bn_group':>8} {'images/s':>9} {'ms/step':>9} "
    f"{'p10':>8} {'p90':>8} {'compile s':>9} {'GiB':>6} {'GFLOP/image':>11} {'(XLA)':>8} "
    f"{'of peak':>8}"
)
TIMM_HEADER = f" {'timm images/s':>13} {'ratio':>6}"


def as_text(row: dict[str, Any]) -> str:
    """Returns a row of `run`'s table."""
    text = f"{row['model']:<16} {row['precision']:<10} {row['batch']:>6} "
    text += f"{row['bn_group'] or 'none':>8} "
    if "error" in row:
        text += f"{row['error']:<90}"
    else:
        text += (
            f"{row['images_per_sec']:>9.1f} {row['step_ms']:>9.2f} {row['step_ms_p10']:>8.2f} "
            f"{row['step_ms_p90']:>8.2f} {row['compile_s']:>9.1f} "
            f"{row['memory_bytes'] / 2**30:>6.2f} {row['flops_per_image'] / 1e9:>11.3f} "
            f"{row['xla_flops_per_image'] / 1e9:>8.3f} {100 * row['peak_share']:>6.1f} %"
        )
    if timm := row.get("timm"):
        text += f" {timm.get('error') or format(timm['images_per_sec'], '.1f'):>13}"
        text += f" {row['ratio']:>6.3f}" if "ratio" in row else ""
    return text
