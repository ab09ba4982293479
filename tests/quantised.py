"""What 8 bits cost and gain, measured: accuracy on CIFAR-10's test images, and speed.

    python tests/quantised.py --data=CIFAR --out=DIR [--threads=1]

CIFAR has train/CLASS/* and test/CLASS/*. Trains a ResNet50_vd of half its width and a
MobileNetV3_small_x1_0 from scratch at 32 x 32 pixels, for 1.2 and 2.5 epochs, and fine-tunes the
second one for half an epoch with `config.model.quantise`: each is a run in a folder of DIR that
goes on where it was stopped. Exports them in 32 and in 8 bits, ranges from 512 training images, and
runs both with onnxruntime on all test images. Speed is that of onnxruntime on images of noise, both
models in turn, in one process and on that many threads: the medians, and that of the ratio of each
pair, of the networks as published (their time does not depend on the weights).
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from claims import Claims
from drawn import random_like

from jaxcls import network
from jaxcls.data import ops
from jaxcls.export import agreement, formats, program
from jaxcls.export.__main__ import _images
from jaxcls.network import Network

SCRATCH = (
    "--config=configs/cifar10.py",
    "--config.eval.every=2 epochs",
    "--config.checkpoint.every=0.5 epochs",
    "--config.report.enabled=False",
    "--config.batch_size=64",
)
RESNET = (
    *SCRATCH,
    "--config.model.name=ResNet50_vd",
    '--config.model.options=(("width",32),)',
    "--config.duration=1.2 epochs",
    "--config.optim.name=adamw",
    "--config.optim.l2=0.0",
    "--config.optim.weight_decay=0.05",
    "--config.lr.peak=0.001",
    "--config.lr.warmup=0.2 epochs",
)
MOBILE = (
    *SCRATCH,
    "--config.model.name=MobileNetV3_small_x1_0",
    "--config.model.options=()",
    "--config.duration=2.5 epochs",
    "--config.optim.l2=4e-5",
)
TUNING = (
    "--config=configs/finetune.py",
    "--config.data.eval=test",
    "--config.duration=0.5 epochs",
    "--config.eval.every=0.5 epochs",
    "--config.report.enabled=False",
)
SPEED = (("ResNet50_vd", 224), ("MobileNetV3_large_x1_0", 224), ("MobileNetV3_small_x1_0", 224))
BATCHES = (1, 8)


def write(net: Network, variables: Any, pixels: np.ndarray, folder: Path) -> None:
    """Writes a network in 32 and in 8 bits."""
    folder.mkdir(parents=True, exist_ok=True)
    exported = program.make(net, variables)
    for name in ("onnx", "int8"):
        formats.FORMATS[name].write(exported, folder / formats.FORMATS[name].file, pixels)


def sessions(folder: Path, threads: int) -> list[onnxruntime.InferenceSession]:
    """Returns that of 32 bits and that of 8."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    files = (folder / formats.FORMATS[name].file for name in ("onnx", "int8"))
    return [onnxruntime.InferenceSession(file, options) for file in files]


def accuracy(data: Path, run: Path, folder: Path, threads: int) -> dict[str, float]:
    """Returns the accuracies of a run's exports, and how often they agree, in percent."""
    net, variables = network.load(run, report=lambda line: None)
    write(net, variables, _images(str(data / "train"), net), folder)
    both = sessions(folder, threads)
    right, equal, count = np.zeros(2), 0, 0
    for label, name in enumerate(net.class_names):
        files = sorted((data / "test" / name).iterdir())
        for part in np.array_split(np.array(files, object), -(-len(files) // 100)):
            pixels = np.stack([net.transform(Path(f).read_bytes(), None) for f in part])
            said = [s.run(["logits"], {"images": pixels})[0].argmax(-1) for s in both]
            right += [(s == label).sum() for s in said]
            equal, count = equal + (said[0] == said[1]).sum(), count + len(part)
    top1 = 100 * right / count
    return {"float32": top1[0], "int8": top1[1], "equal": 100 * equal / count, "images": count}


def speed(name: str, size: int, batch: int, folder: Path, threads: int) -> dict[str, float]:
    """Returns milliseconds of a batch in 32 bits and in 8, and how many times as fast it is."""
    image = network.published_image(name) | {"size": size, "eval_resize": size}
    given = {"class_names": (), "image": ops.Image(**image), "precision": "float32"}
    net = Network(name=name, options={}, num_classes=1000, **given)
    if not (folder / "model_int8.onnx").exists():
        variables = random_like(net.shapes)
        pixels = agreement.generated(program.make(net, variables), formats.LEAST)
        write(net, variables, pixels, folder)
    both = sessions(folder, threads)
    pixels = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
    taken = []
    for _ in range(2 + max(160 // batch, 20)):
        pair = []
        for session in both:
            start = time.perf_counter()
            session.run(["logits"], {"images": pixels})
            pair.append(1000 * (time.perf_counter() - start))
        taken.append(pair)
    times = np.array(taken[2:])
    plain, eight = np.median(times, 0)
    return {"float32": plain, "int8": eight, "ratio": np.median(times[:, 0] / times[:, 1])}


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="CIFAR-10 as a folder of images")
    parser.add_argument("--out", type=Path, required=True, help="for runs and figures")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="accuracy,speed", help="one of them")
    arguments = parser.parse_args()
    c, threads = Claims(arguments.data, arguments.out, 1), arguments.threads
    root = f"--config.data.root={c.data}"
    found: dict[str, Any] = {}
    if "accuracy" in arguments.only:
        resnet, mobile = c.run("resnet", 0, *RESNET, root), c.run("mobile", 0, *MOBILE, root)
        tuning = (*TUNING, root, f"--config.init.checkpoint={mobile}")
        rounded = c.run("rounded", 0, *tuning, "--config.model.quantise=int8")
        runs = {
            "ResNet50_vd, half the width": resnet,
            "MobileNetV3_small_x1_0": mobile,
            "fine-tuned with config.model.quantise": rounded,
        }
        print("| network | float32 | int8 | difference | same class |\n|---|---|---|---|---|")
        for name, run in runs.items():
            its = accuracy(c.data, run, c.out / "exports" / run.name, threads)
            found[name] = its
            lost = its["int8"] - its["float32"]
            print(
                f"| {name} | {its['float32']:.2f} % | {its['int8']:.2f} % | {lost:+.2f} | "
                f"{its['equal']:.1f} % |",
                flush=True,
            )
    if "speed" in arguments.only:
        print("| network | batch | float32 | int8 | times as fast |\n|---|---|---|---|---|")
        for name, size in SPEED:
            for batch in BATCHES:
                its = speed(name, size, batch, c.out / "exports" / f"{name}_{size}", threads)
                found[f"{name}, {size} pixels, batch {batch}, {threads} threads"] = its
                print(
                    f"| {name}, {size} pixels | {batch} | {its['float32']:.1f} ms | "
                    f"{its['int8']:.1f} ms | {its['ratio']:.2f} |",
                    flush=True,
                )
    name = f"quantised_{arguments.only.replace(',', '_')}.json"
    (c.out / name).write_text(json.dumps(found, indent=1, default=float) + "\n")


if __name__ == "__main__":
    sys.exit(main())
