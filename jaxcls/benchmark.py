"""python -m jaxcls.benchmark COMMAND [--config=FILE[:ARG]] [OPTIONS] [--config.KEY=VALUE]

loop     The time of a step in the real loop (`jaxcls.train.run`: reading, feeding, logging) against
         the bare jitted step called again and again on one batch that lies on the device.
train    Images/s of the train step on synthetic images that lie on the device, with compile time,
         memory, FLOPs and the share of the device's peak; every combination of the lists given with
         --model, --precision, --batch and --bn_group. --compare=timm times the same network in
         PyTorch besides.

What is compared is measured in one process, in repetitions. Without --config, loop takes
configs/digits.py (a small ResNet-D, 64 images of 16x16) and train configs/resnet50_vd.py. XLA's
flags come from the environment: XLA_FLAGS='--xla_gpu_...=...' python -m jaxcls.benchmark train.
The options of a command: python -m jaxcls.benchmark COMMAND --help. Exit code 2: a mistake in
command or config, one line on stderr.
"""

import contextlib
import gc
import io
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from jaxcls import precision, program, sharding, train
from jaxcls.config import choose
from jaxcls.data import sources
from jaxcls.main import complain, parse
from jaxcls.models import count

CONFIGS = Path(__file__).parents[1] / "configs"
NUM_TRAIN, NUM_CLASSES = 1_281_167, 1000  # ImageNet's, where the config does not say
LOG_EVERY = 50  # steps, the default of config.log.every

# Dense half-precision peak of a JAX device in FLOP/s by the start of its `device_kind`, from the
# vendors' data sheets. A device is a chip, on TPU v2 and v3 one of its two cores.
PEAKS = {
    "Tesla V100": 125e12,  # float16 only
    "NVIDIA A100": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
    "TPU v2": 23e12,
    "TPU v3": 61e12,
    "TPU v4 lite": 138e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v6": 918e12,
}

# The same networks in timm. Its basic blocks have no convolution in the first shortcut.
TIMM = {
    "ResNet18": "resnet18",
    "ResNet34": "resnet34",
    "ResNet50": "resnet50",
    "ResNet101": "resnet101",
    "ResNet152": "resnet152",
    "ResNet50_vc": "resnet50c",
    "ResNet18_vd": "resnet18d",
    "ResNet34_vd": "resnet34d",
    "ResNet50_vd": "resnet50d",
    "ResNet101_vd": "resnet101d",
    "ResNet152_vd": "resnet152d",  # but timm's resnet200d has other depths
}
AUTOCAST = {
    "float32": None,
    "O0": None,
    "bfloat16": "bfloat16",
    "float16": "float16",
    "O2": "float16",
}


def seconds_per_step(run: Callable[[int], None], repetitions: int) -> list[float]:
    """Returns the time of a step in each repetition, after warming up.

    Args:
      run: takes so many steps and returns when the last one's output is there.
      repetitions: each of as many steps as a fifth of a second has, at least one.
    """
    run(3)

    def once(n):
        began = time.perf_counter()
        run(n)
        return (time.perf_counter() - began) / n

    n = max(1, min(100, round(0.2 / once(1))))
    once(n)
    return [once(n) for _ in range(repetitions)]


def repeat_step(step: Callable, state: Any, batch: dict[str, jax.Array]) -> Callable[[int], None]:
    """Returns run(n): n train steps from where the last run has ended."""

    def run(n):
        nonlocal state
        metrics = None
        for _ in range(n):
            before = metrics
            state, metrics = step(state, batch)
            # One step ahead, as the real loop is: XLA's collectives on virtual CPU devices lock up
            # in a longer queue.
            jax.block_until_ready(before)
        jax.block_until_ready((state, metrics))

    return run


def summary(seconds: Sequence[float]) -> dict[str, float]:
    """Returns median and spread in milliseconds: {"step_ms", "step_ms_p10", "step_ms_p90"}."""
    p10, median, p90 = 1e3 * np.percentile(seconds, (10, 50, 90))
    return {"step_ms": median, "step_ms_p10": p10, "step_ms_p90": p90}


def num_classes(config: ConfigDict) -> int:
    """Returns the classes that the config speaks of, in its model or its fake data; or 1000."""
    return config.model.num_classes or config.data.num_classes or NUM_CLASSES


def device_batch(config: ConfigDict, built: program.Program) -> dict[str, jax.Array]:
    """Returns a global batch of noise, on the devices."""
    rng = np.random.default_rng(0)
    size, batch = config.image.size, built.plan.batch_size
    shape = (batch, size, size, len(config.image.mean))
    labels = rng.integers(0, num_classes(config), batch).astype(np.int32)
    batch = {"image": rng.integers(0, 256, shape, np.uint8), "label": labels}
    return sharding.put(batch, built.batch_sharding)


# -- loop ------------------------------------------------------------------------------------------


def define_loop(values: flags.FlagValues) -> None:
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
            {**sources.DEFAULTS, "source": "fake", **images, "num_classes": num_classes(config)}
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


def loop(config: ConfigDict, options: flags.FlagValues) -> None:
    """Prints the time of a step in the loop and of the bare step, and their ratio."""
    config = short_run(config, options.steps, options.data)
    with tempfile.TemporaryDirectory() as cache:
        # every run compiles the same program
        jax.config.update("jax_compilation_cache_dir", cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        data = sources.open(**config.data, image_size=config.image.size)
        built = program.build(config, num_train=len(data.train), num_classes=len(data.class_names))
        run = repeat_step(built.train_step, built.init(), device_batch(config, built))

        def bare_seconds():
            run(3)
            began = time.perf_counter()
            run(options.steps)
            return (time.perf_counter() - began) / options.steps

        measure = {"bare step": bare_seconds, "loop": lambda: loop_seconds(config)}
        seconds: dict[str, list[float]] = {name: [] for name in measure}
        for i in range(options.repetitions):
            for name in list(measure)[:: -1 if i % 2 else 1]:  # in turn, also in being first
                seconds[name].append(measure[name]())

    ratios = np.divide(seconds["loop"], seconds["bare step"])
    device = built.mesh.devices.flat[0].device_kind
    if options.json:
        row = {"model": config.model.name, "batch": config.batch_size, "size": config.image.size}
        row |= {"data": config.data.source, "device": device, "devices": built.mesh.size}
        row |= {"steps": options.steps, "ratio": float(np.median(ratios))}
        print(json.dumps(row | {"bare_s": seconds["bare step"], "loop_s": seconds["loop"]}))
        return
    print(
        f"{config.model.name}, batch {config.batch_size}, {config.image.size}x{config.image.size}, "
        f"{config.data.source} data, {built.mesh.size} x {device}: "
        f"{options.repetitions} x {options.steps} steps of each, in turn"
    )
    for name, values in seconds.items():
        low, median, high = 1e3 * np.percentile(values, (0, 50, 100))
        print(f"  {name:<10} {median:9.3f} ms/step  ({low:.3f} to {high:.3f})")
    low, median, high = np.percentile(ratios, (0, 50, 100))
    print(f"  {'ratio':<10} {median:9.3f}          ({low:.3f} to {high:.3f})")


# -- train -----------------------------------------------------------------------------------------


def define_train(values: flags.FlagValues) -> None:
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

    Measured, on devices and in precisions that `PEAKS` lacks, is a large matrix product: the best
    of five.
    """
    half = numbers.dtype == jnp.float16 or (
        numbers.dtype == jnp.bfloat16 and not device.device_kind.startswith("Tesla V100")
    )
    known = [peak for kind, peak in PEAKS.items() if device.device_kind.startswith(kind)]
    if half and known:
        return known[0], "data sheet"
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
    device, batch_size = built.mesh.devices.flat[0], built.plan.batch_size
    batch = device_batch(config, built)
    macs = count.multiply_adds(built.eval_step, built.abstract_state, batch) / batch_size
    began = time.perf_counter()
    compiled = built.train_step.lower(built.abstract_state, batch).compile()
    compile_seconds = time.perf_counter() - began

    before = peak_bytes(device)
    times = seconds_per_step(repeat_step(compiled, built.init(), batch), repetitions)
    memory, source = peak_bytes(device), "allocator"
    if memory <= before:  # it does not tell, or an earlier combination needed more
        stats = compiled.memory_analysis()
        memory = stats.argument_size_in_bytes + stats.temp_size_in_bytes
        memory += stats.output_size_in_bytes - stats.alias_size_in_bytes
        source = "compiler"
    per_second = batch_size / float(np.median(times))
    xla_flops = (compiled.cost_analysis() or {}).get("flops", 0.0) * built.mesh.size / batch_size
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


def run_train(config: ConfigDict, options: flags.FlagValues) -> None:
    """Prints what `time_train` returns for every combination, with --compare=timm the ratio too."""
    if options.compare:
        import_timm()
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs memory too
    jobs, peaks = [], {}
    for c in combinations(config, options):
        built = program.build(c, num_train=NUM_TRAIN, num_classes=num_classes(c))
        device = built.mesh.devices.flat[0]
        numbers = precision.make(**c.precision, platform=device.platform)
        if options.compare:
            check_timm(c, numbers, built.mesh)
        jobs.append((c, built, numbers))

    # a compile time from the cache would not be one
    jax.config.update("jax_enable_compilation_cache", False)
    for numbers in {numbers.name: numbers for _, _, numbers in jobs}.values():
        peaks[numbers.name] = peak_flops(device, numbers)

    common = {
        "device": device.device_kind,
        "devices": built.mesh.size,
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
                by_timm[key] = unless_too_large(time_timm, c, numbers, options.repetitions)
                free_torch()
            row["timm"] = by_timm[key]
        row |= unless_too_large(time_train, c, built, options.repetitions)
        if "error" not in row:
            peak, source = peaks[numbers.name]
            share = row["flops_per_sec"] / (peak * built.mesh.size)
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
    """Returns a row of `run_train`'s table."""
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


# -- PyTorch ---------------------------------------------------------------------------------------


def import_timm() -> tuple[Any, Any]:
    """Returns the modules torch and timm.

    Raises:
      ValueError: they are not installed, or fail to import.
    """
    try:
        import timm
        import torch
    except (ImportError, RuntimeError) as e:  # torchvision of another torch is a RuntimeError
        raise ValueError(
            f"--compare=timm needs torch and timm (pip install torch timm): {e}"
        ) from e
    return torch, timm


def check_timm(config: ConfigDict, numbers: precision.Precision, mesh: jax.sharding.Mesh) -> None:
    """Refuses what `time_timm` cannot run alike."""
    torch, _ = import_timm()
    choose("model for --compare=timm", config.model.name, TIMM)
    choose("precision for --compare=timm", numbers.name, AUTOCAST)
    if config.model.options:
        raise ValueError("--compare=timm: config.model.options make a network that timm lacks")
    if mesh.size > 1:
        raise ValueError(
            f"--compare=timm runs on one device, here are {mesh.size}: set --config.mesh.data=1"
        )
    platform = mesh.devices.flat[0].platform
    if platform not in ("cpu", "gpu") or (platform == "gpu" and not torch.cuda.is_available()):
        raise ValueError(f"--compare=timm: this PyTorch has no {platform}")


def time_timm(config: ConfigDict, numbers: precision.Precision, repetitions: int) -> dict[str, Any]:
    """Returns the throughput of the network in timm, trained as PyTorch's users do.

    Channels last, autocast (with a gradient scaler in float16), cross-entropy with the config's
    smoothing, SGD with momentum and L2; without `torch.compile` and, where it works, with it: the
    faster of the two is the result, "compiled" says which. Its images are normalised beforehand;
    the step of jaxcls also normalises, flips and mixes them.
    """
    torch, timm = import_timm()
    on_gpu = jax.default_backend() == "gpu"
    device = torch.device("cuda" if on_gpu else "cpu")
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    half = AUTOCAST[numbers.name]
    size, channels = config.image.size, len(config.image.mean)
    classes, batch_size = num_classes(config), config.batch_size
    model = timm.create_model(TIMM[config.model.name], num_classes=classes, in_chans=channels)
    model = model.to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=1e-3, momentum=config.optim.momentum, weight_decay=config.optim.l2
    )
    scaler = torch.amp.GradScaler(device.type, enabled=half == "float16")
    images = torch.randn(batch_size, channels, size, size, device=device)
    images = images.to(memory_format=torch.channels_last)
    labels = torch.randint(classes, (batch_size,), device=device)

    def steps(network):
        def run(n):
            for _ in range(n):
                optimizer.zero_grad(set_to_none=True)
                with torch.autocast(
                    device.type, getattr(torch, half or "bfloat16"), enabled=half is not None
                ):
                    loss = torch.nn.functional.cross_entropy(
                        network(images), labels, label_smoothing=config.loss.label_smoothing
                    )
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
            if on_gpu:
                torch.cuda.synchronize()

        return run

    result: dict[str, Any] = {
        "name": TIMM[config.model.name],
        "params": sum(p.numel() for p in model.parameters()),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "images_per_sec": 0.0,
    }
    for compiled in (False, True):
        run = steps(torch.compile(model) if compiled else model)
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        try:
            run(1)
        except Exception as e:  # no C++ compiler, no Triton, a Python too new for it, ...
            if not compiled:
                raise
            first, *_ = str(e).splitlines() or [type(e).__name__]
            print(f"torch.compile does not work here: {first}", file=sys.stderr)
            break
        compile_seconds = time.perf_counter() - began
        times = seconds_per_step(run, repetitions)
        per_second = batch_size / float(np.median(times))
        result["images_per_sec_compiled" if compiled else "images_per_sec_eager"] = per_second
        if per_second > result["images_per_sec"]:
            result |= {"images_per_sec": per_second, **summary(times), "compiled": compiled}
            result["compile_s"] = compile_seconds if compiled else 0.0
            result["memory_bytes"] = torch.cuda.max_memory_allocated() if on_gpu else None
    return result


def free_torch() -> None:
    """Gives back the memory that PyTorch no longer uses."""
    torch, _ = import_timm()
    torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# -- the command -----------------------------------------------------------------------------------

COMMANDS = {
    "loop": (define_loop, loop, "digits.py"),
    "train": (define_train, run_train, "resnet50_vd.py"),
}


def main(argv: Sequence[str] = sys.argv) -> int:
    """Runs a command and returns its exit code; a user's mistake is one line on stderr."""
    try:
        command = argv[1] if len(argv) > 1 else "--help"
        if command in ("--help", "-h", "help"):
            print(__doc__)
            return 0
        define, run, default = COMMANDS[choose("command", command, COMMANDS)]
        rest = list(argv[2:])
        if not any(arg.partition("=")[0] in ("--config", "-config") for arg in rest):
            rest.insert(0, f"--config={CONFIGS / default}")
        options = flags.FlagValues()
        config_flags.DEFINE_config_file(
            "config", None, "config file, FILE or FILE:ARG", options, sys_argv=rest
        )
        define(options)
        if "--help" in rest:
            print(
                __doc__,
                f"\nOptions of {command}:",
                options.get_help(include_special_flags=False),
                sep="\n",
            )
            return 0
        parse([argv[0], *rest], options, required=("config",))
        logging.set_verbosity(logging.WARNING)
        run(options.config, options)
        return 0
    except ValueError as e:
        return complain(e)
    except FloatingPointError as e:  # of the loop: noise can make a large learning rate diverge
        complain(e)
        return 1


if __name__ == "__main__":
    sys.exit(main())
