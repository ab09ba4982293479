"""What `predict` measures, in processes of their own: python -m jaxcls.benchmark.runtimes.

Each line of stdin is a JSON object, and makes one of stdout. One with "path" opens a network:

    {"format", "path", "precision", "batches", "images": FILE.npy, "threads", "answers", ...}

and tells what runs it, after it has written the logits of so many images as there are in each batch
to the folder "answers". One with "number" (of those opened, from 0) calls it with a batch for so
many seconds, and tells how long each call took:

    {"number", "batch", "seconds", "transfers"}

What goes wrong is {"error"}. Only what a runtime needs is imported.
"""

import ast
import contextlib
import gc
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

WARM = 3  # calls, before any is timed


def itself(x: Any) -> Any:
    """Returns x: where nothing has to be moved, or waited for."""
    return x


class Opened(NamedTuple):
    """A network as a runtime has it."""

    run: Callable[[Any], Any]  # images, as `put` leaves them -> (logits, probabilities)
    runtime: str  # with its version
    device: str
    put: Callable[[np.ndarray], Any] = itself  # to the device
    wait: Callable[[Any], Any] = itself  # until what `run` returns has been computed
    fetch: Callable[[Any], Any] = itself  # that to NumPy
    peak: Callable[[], int] = int  # bytes that the device's allocator had given out; 0: not told


def version(*modules: str) -> str:
    """Returns "package 1.2, other 3.4" of the packages that have these modules."""
    packages = importlib.metadata.packages_distributions()
    names = [packages.get(module, [module])[0] for module in modules]
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)


def on_the_processor() -> bool:
    """Returns whether nothing may use an accelerator."""
    return os.environ.get("JAX_PLATFORMS") == "cpu"


def with_jax(run: Callable[[Any], Any]) -> Opened:
    """Returns a function of images on the first device."""
    import jax

    device = jax.devices()[0]
    return Opened(
        run,
        f"jax {jax.__version__}",
        f"{device.platform}: {device.device_kind}" if device.platform != "cpu" else "cpu",
        put=lambda images: jax.device_put(images, device),
        wait=jax.block_until_ready,
        fetch=jax.device_get,
        peak=lambda: (device.memory_stats() or {}).get("peak_bytes_in_use", 0),
    )


def checkpoint(spec: dict[str, Any]) -> Opened:
    """Opens a run or checkpoint as `python -m jaxcls.predict` has it: weights are arguments."""
    import dataclasses

    import jax

    from jaxcls import network
    from jaxcls.command import start_jax

    start_jax()
    net, variables = network.load(spec["path"], report=lambda line: None)
    net = dataclasses.replace(net, precision=spec["precision"])
    if spec["size"] != net.image.shown:
        net = net.resized(spec["size"])
    variables = jax.device_put(variables, jax.devices()[0])

    @jax.jit
    def answer(variables, images):
        logits = net.predict(variables, images)["logits"]
        return logits, net.probabilities(logits)

    return with_jax(lambda images: answer(variables, images))


def stablehlo(spec: dict[str, Any]) -> Opened:
    """Opens what `jax.export` has written."""
    import jax
    from jax import export

    from jaxcls.command import start_jax

    start_jax()
    program = export.deserialize(bytearray(Path(spec["path"]).read_bytes()))
    run = jax.jit(program.call)

    def answer(images):
        outputs = run(images)
        return outputs["logits"], outputs["probabilities"]

    return with_jax(answer)


def onnx(spec: dict[str, Any]) -> Opened:
    """Opens an ONNX file, on CUDA where the runtime is built for it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = spec["threads"], 1
    options.log_severity_level = 3
    providers = ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers() and not on_the_processor():
        providers.insert(0, "CUDAExecutionProvider")
    session = onnxruntime.InferenceSession(spec["path"], options, providers=providers)
    device = session.get_providers()[0].removesuffix("ExecutionProvider").lower()
    names = ["logits", "probabilities"]
    return Opened(lambda x: session.run(names, {"images": x}), version("onnxruntime"), device)


def litert(spec: dict[str, Any]) -> Opened:
    """Opens a TFLite file, which takes one image at a time."""
    from ai_edge_litert.interpreter import Interpreter

    program = Interpreter(spec["path"], num_threads=spec["threads"]).get_signature_runner()

    def answer(images):
        outputs = [program(images=image[None]) for image in images]
        names = ("logits", "probabilities")
        return tuple(np.concatenate([output[name] for output in outputs]) for name in names)

    return Opened(answer, version("ai_edge_litert"), "cpu")


def torch(spec: dict[str, Any]) -> Opened:
    """Opens a folder of timm, channels last; normalising is done on the device, as by the others.

    With {"compiled": true} by `torch.compile`.
    """
    import timm
    import torch

    torch.set_num_threads(spec["threads"])
    there = torch.cuda.is_available() and not on_the_processor()
    device = torch.device("cuda" if there else "cpu")
    dtype = getattr(torch, spec["precision"])
    model = timm.create_model(f"local-dir:{spec['path']}", pretrained=True).eval()
    model = model.to(device, dtype, memory_format=torch.channels_last)
    mean, std = (torch.tensor(spec[key], device=device) * 255 for key in ("mean", "std"))

    def answer(images):
        images = ((images.float() - mean) / std).permute(0, 3, 1, 2)  # is channels last
        logits = model(images.to(dtype)).float()
        scaled = logits / spec["temperature"]
        return logits, scaled.sigmoid() if spec["multi_label"] else scaled.softmax(-1)

    run = torch.compile(answer, dynamic=False) if spec["compiled"] else answer

    def answer_only(images):
        with torch.inference_mode():
            return run(images)

    def wait(outputs):
        if device.type == "cuda":
            torch.cuda.synchronize()
        return outputs

    return Opened(
        answer_only,
        version("torch", "timm"),
        f"cuda: {torch.cuda.get_device_name()}" if device.type == "cuda" else "cpu",
        put=lambda images: torch.from_numpy(images).to(device),
        wait=wait,
        fetch=lambda outputs: tuple(x.cpu().numpy() for x in outputs),
        peak=torch.cuda.max_memory_allocated if device.type == "cuda" else int,
    )


def card(spec: dict[str, Any]) -> Opened:
    """Runs the code of the model card; what comes before `images` there is done once.

    Any library that computes with threads of its own takes as many as it sees cores.
    """
    body = ast.parse(spec["code"]).body
    asks = lambda statement: any(
        isinstance(node, ast.Name) and node.id == "images" for node in ast.walk(statement)
    )
    first = next(i for i, statement in enumerate(body) if asks(statement))
    before, each = (
        compile(ast.Module(part, []), "card", "exec") for part in (body[:first], body[first:])
    )
    names: dict[str, Any] = {}
    folder = os.getcwd()
    os.chdir(Path(spec["path"]).parent)
    try:
        exec(before, names)
    finally:
        os.chdir(folder)

    def answer(images):
        names["images"] = images
        exec(each, names)
        return names["logits"], names["probabilities"]

    return Opened(answer, version(*spec["needs"]), "cpu")


OPEN = {  # by the name of a format, or of the end of its file
    "jax": checkpoint,
    "stablehlo": stablehlo,
    "timm": torch,
    "timm_compiled": torch,
    ".onnx": onnx,
    ".tflite": litert,
}


def durations(
    call: Callable[[], Any],
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """Returns how long each call takes, of as many as begin in so many seconds; at least one.

    The one before them does not count: it wakes up what has slept.
    """
    call()
    found: list[float] = []
    end = clock() + seconds
    while True:
        began = clock()
        call()
        now = clock()
        found.append(now - began)
        if now >= end:
            return found


def resident() -> int:
    """Returns the most bytes of memory that this process has had."""
    with contextlib.suppress(OSError), open("/proc/self/status") as file:
        # not getrusage, which on Linux begins with what the parent had
        return 1024 * int(next(line for line in file if line.startswith("VmHWM")).split()[1])
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


class Process:
    """What has been opened here."""

    def __init__(self):
        self.opened: list[tuple[Opened, dict[int, np.ndarray]]] = []

    def open(self, spec: dict[str, Any]) -> dict[str, Any]:
        """Opens a network and writes what it answers; returns what runs it."""
        began = time.perf_counter()
        by = (spec["format"], Path(spec["path"]).suffix)
        found = next((OPEN[name] for name in by if name in OPEN), card)(spec)
        images = np.load(spec["images"])
        batches = {n: np.ascontiguousarray(images[:n]) for n in spec["batches"]}
        first = 0.0
        for n, batch in batches.items():
            logits, _ = found.fetch(found.run(found.put(batch)))
            first = first or time.perf_counter() - began
            np.save(Path(spec["answers"], f"{n}.npy"), np.asarray(logits, np.float32))
        for batch in batches.values():
            for _ in range(WARM - 1):
                found.wait(found.run(found.put(batch)))
        self.opened.append((found, batches))
        return {"runtime": found.runtime, "device": found.device, "first_s": first}

    def time(self, number: int, batch: int, seconds: float, transfers: bool) -> dict[str, Any]:
        """Returns how long calls take, and the memory that was needed so far."""
        found, batches = self.opened[number]
        if transfers:
            call = lambda: found.fetch(found.run(found.put(batches[batch])))
        else:
            there = found.wait(found.put(batches[batch]))
            call = lambda: found.wait(found.run(there))
        gc.collect()
        gc.disable()
        taken = durations(call, seconds)
        gc.enable()
        device = found.peak()
        return {
            "seconds": taken,
            "memory_bytes": device or resident(),
            "memory_from": "allocator" if device else "process",
        }


def main() -> None:
    # Libraries print what they like: it goes to stderr.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    process = Process()
    for line in sys.stdin:
        told = json.loads(line)
        try:
            reply = process.open(told) if "path" in told else process.time(**told)
        except Exception as e:  # of whatever library
            lines = str(e).strip().splitlines() or [""]
            reply = {"error": f"{type(e).__name__}: {lines[0]}"}
        print(json.dumps(reply), file=out, flush=True)


if __name__ == "__main__":
    main()
