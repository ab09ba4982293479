"""python -m jaxcls.benchmark loop: the real loop against the bare step."""

import contextlib
import io
import itertools
import json
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from jaxcls import program, train
from jaxcls.benchmark.timing import device_batch, num_classes, repeat_step
from jaxcls.data import sources

CONFIG = "digits.py"
LOG_EVERY = 50  # steps, the default of config.log.every


def define(values: flags.FlagValues) -> None:
    """Declares the options of `loop`."""
    flags.DEFINE_integer("steps", 200, "steps of a repetition", 1, flag_values=values)
    flags.DEFINE_integer("repetitions", 5, "of each, in turn", 1, flag_values=values)
    flags.DEFINE_enum(
        "data", "fake", ["fake", "config"], "fake images, or the config's own", flag_values=values
    )
    flags.DEFINE_bool("json", False, "print one JSON object", flag_values=values)


def short_run(config: ConfigDict, steps: int, data: str) -> ConfigDict:
    """Returns the config of a run that logs, but evaluates and saves at its end only.

    It has `steps` steps after those of the first line of its log, which have the compilation.
    """
    config = config.copy_and_resolve_references()
    log_every = min(LOG_EVERY, steps)
    config.duration = f"{log_every + steps} steps"
    config.log.every = f"{log_every} steps"
    config.eval.every = config.checkpoint.every = ""
    config.lr.warmup = config.lr.warmup_if_scaled = ""  # may be longer than such a run
    if data == "fake" and config.data.source != "fake":
        images = {"num_train": config.batch_size * LOG_EVERY, "num_eval": config.batch_size}
        config.data.update(
            {**sources.unset(), "source": "fake", **images, "num_classes": num_classes(config)}
        )
    return config


def loop_seconds(config: ConfigDict) -> float:
    """Returns the time of a step in `jaxcls.train.run`, by what it logs after its first line."""
    with tempfile.TemporaryDirectory() as workdir:
        with contextlib.redirect_stdout(io.StringIO()):
            train.run(config, workdir)
        log = [json.loads(line) for line in (Path(workdir) / "metrics.jsonl").open()]
    log = [line for line in log if line["split"] == "train"]
    spans = [line["step"] - before["step"] for before, line in itertools.pairwise(log)]
    seconds = [n * config.batch_size / line["images_per_sec"] for n, line in zip(spans, log[1:])]
    return sum(seconds) / sum(spans)


def run(config: ConfigDict, options: flags.FlagValues) -> None:
    """Prints the time of a step in the loop and of the bare step, and their ratio."""
    config = short_run(config, options.steps, options.data)
    with tempfile.TemporaryDirectory() as cache:
        # every run compiles the same program
        jax.config.update("jax_compilation_cache_dir", cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        data = sources.open(**config.data, image_size=config.image.size)
        built = program.build(config, **data.facts())
        teachers = jax.device_put(built.teachers, built.layout.of(built.teachers))
        arguments = device_batch(config, built), *teachers
        take_steps = repeat_step(built.train_step, built.init(), *arguments)

        def bare_seconds():
            take_steps(3)
            began = time.perf_counter()
            take_steps(options.steps)
            return (time.perf_counter() - began) / options.steps

        measure = {"bare step": bare_seconds, "loop": lambda: loop_seconds(config)}
        seconds: dict[str, list[float]] = {name: [] for name in measure}
        for i in range(options.repetitions):
            for name in list(measure)[:: -1 if i % 2 else 1]:  # in turn, also in being first
                seconds[name].append(measure[name]())

    ratios = np.divide(seconds["loop"], seconds["bare step"])
    device = built.layout.mesh.devices.flat[0].device_kind
    if options.json:
        row = {"model": config.model.name, "batch": config.batch_size, "size": config.image.size}
        row |= {"data": config.data.source, "device": device, "devices": built.layout.mesh.size}
        row |= {"steps": options.steps, "ratio": float(np.median(ratios))}
        print(json.dumps(row | {"bare_s": seconds["bare step"], "loop_s": seconds["loop"]}))
        return
    print(
        f"{config.model.name}, batch {config.batch_size}, {config.image.size}x{config.image.size}, "
        f"{config.data.source} data, {built.layout.mesh.size} x {device}: "
        f"{options.repetitions} x {options.steps} steps of each, in turn"
    )
    for name, values in seconds.items():
        low, median, high = 1e3 * np.percentile(values, (0, 50, 100))
        print(f"  {name:<10} {median:9.3f} ms/step  ({low:.3f} to {high:.3f})")
    low, median, high = np.percentile(ratios, (0, 50, 100))
    print(f"  {'ratio':<10} {median:9.3f}          ({low:.3f} to {high:.3f})")
