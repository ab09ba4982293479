"""The same networks in PyTorch, for `train --compare=timm`."""

import gc
import sys
import time
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxcls import convert, precision
from jaxcls.benchmark.timing import num_classes, seconds_per_step, summary
from jaxcls.config import choose

AUTOCAST = {
    "float32": None,
    "O0": None,
    "bfloat16": "bfloat16",
    "float16": "float16",
    "O2": "float16",
}


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
    """Refuses what `time_timm` cannot run alike.

    Raises:
      ValueError: timm has not this network, precision or device.
    """
    torch, _ = import_timm()
    try:
        convert.timm_model(config.model.name, **dict(config.model.options))
    except ValueError as e:
        raise ValueError(f"--compare=timm: {e}") from e
    choose("precision for --compare=timm", numbers.name, AUTOCAST)
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
    name, options = convert.timm_model(config.model.name, **dict(config.model.options))
    model = timm.create_model(name, num_classes=classes, in_chans=channels, **options)
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
        "name": name,
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
