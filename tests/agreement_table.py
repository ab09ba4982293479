"""What every format of an export makes of photographs, beside what the checkpoint says.

    python tests/agreement_table.py FOLDER --out=table.csv [MODEL ...] [--formats=onnx,...]

For each network, of weights drawn from a fixed seed and BatchNorm statistics of the photographs
themselves, it writes each format, runs it in a process without jaxcls, and adds a row to the table:
the largest difference of logits, alone or in a batch, as a share of the largest difference that
images make to one, and for how many images the first class is the same. Rows that are there stay,
so that it goes on where it was stopped. It ends with the table as Markdown, and 1 if a float32
format differs by 1e-4 or more, or in more than one of 500 first classes.

TensorFlow's formats and timm's need jaxcls[export-tf,export-timm].
"""

import argparse
import contextlib
import csv
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from drawn import settled
from with_timm import torchvision_there

from jaxcls import convert, network, trees
from jaxcls.data import ops
from jaxcls.export import __main__ as command
from jaxcls.export import agreement, formats, program
from jaxcls.network import Network

MODELS = (  # one of each family, and the most used
    "AlexNet", "DarkNet53", "DenseNet121", "DPN68", "EfficientNetB0", "GoogLeNet", "HRNet_W18_C",
    "InceptionV4", "MobileNetV1", "MobileNetV2", "MobileNetV3_large_x1_0", "MobileNetV3_small_x1_0",
    "Res2Net50_26w_4s", "ResNet18_vd", "ResNet50_vd", "SE_ResNeXt50_32x4d", "ShuffleNetV2",
    "SqueezeNet1_1", "VGG11", "Xception41",
)  # fmt: skip
VARIANTS = (  # format, precision
    ("stablehlo", "float32"), ("onnx", "float32"), ("savedmodel", "float32"), ("tflite", "float32"),
    ("timm", "float32"), ("stablehlo", "bfloat16"), ("stablehlo", "float16"), ("onnx", "float16"),
    ("tflite", "float16"),
)  # fmt: skip
COLUMNS = ("model", "size", "format", "precision", "images", "of_signal", "top1_equal", "largest",
           "logits", "probability", "megabytes", "seconds")  # fmt: skip
CALIBRATED = 32  # photographs that BatchNorm's statistics are of
BATCH = 25


def draw(path, leaf):
    """Returns a weight as training could leave it, from the path alone."""
    rng = np.random.default_rng([*path.encode()])
    name = path.rpartition("/")[2]
    if name in ("scale", "var"):
        return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
    spread = (2 / np.prod(leaf.shape[:-1])) ** 0.5 if name == "kernel" else 0.1
    return rng.normal(0, spread, leaf.shape).astype(np.float32)


def make(name, size):
    """Returns the network, for images of `size` pixels, or as published."""
    image = network.published_image(name)
    if size:
        image |= {"size": size, "eval_resize": round(size / 0.875)}
    return Network(
        name=name,
        options={},
        num_classes=1000,
        class_names=(),
        image=ops.Image(**image),
        precision="float32",
    )


def weights_of(net, pixels):
    """Returns variables whose BatchNorms have the statistics of these images."""
    return settled(net.module, trees.map_with_path(draw, net.shapes), net.normalise(pixels))


def rows_of(name, args, there):
    """Yields the rows of a network that are not there."""
    wanted = [
        v for v in VARIANTS if v[0] in args.formats.split(",") and (name, *v) not in there
    ]  # fmt: skip
    wanted = [v for v in wanted if v[1] == "float32" or args.half != 0]
    net = make(name, args.size)
    if ("timm", "float32") in wanted:
        try:
            convert.timm_model(name)
        except ValueError:
            wanted.remove(("timm", "float32"))
    if not wanted:
        return
    pixels = command._images(args.folder, net)
    variables = weights_of(net, pixels[:CALIBRATED])
    parts = np.array_split(pixels, -(-len(pixels) // BATCH))
    ours = np.concatenate([net.predict(variables, part)["logits"] for part in parts])
    for to, precision in wanted:
        start, found = time.time(), formats.FORMATS[to]
        some = slice(None) if precision == "float32" else slice(args.half)
        made = program.make(net, variables, precision=precision, input=found.input or "uint8")
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            found.write(made, folder / found.file, pixels)
            if to == "timm":
                about = '{"temperature": 1.0, "multi_label": false}'
                (folder / "network.json").write_text(about)
            with torchvision_there() if to == "timm" else contextlib.nullcontext():
                theirs = agreement.apart(found, folder, made.given(pixels[some]))
            size = command._size(folder / found.file)
        told = agreement.compare(ours[some], theirs, net.probabilities)
        yield told | {
            "model": name,
            "size": net.image.shown,
            "format": to,
            "precision": precision,
            "megabytes": round(size / 1e6, 1),
            "seconds": round(time.time() - start),
        }


def markdown(rows):
    """Returns the table: a line a network, share of the signal and first classes a format."""
    kinds = [v for v in VARIANTS if any((r["format"], r["precision"]) == v for r in rows)]
    titles = [to + {"float32": "", "bfloat16": " bf16", "float16": " f16"}[p] for to, p in kinds]
    lines = ["| | pixels | " + " | ".join(titles) + " |", "|---" * (len(kinds) + 2) + "|"]
    for name in dict.fromkeys(row["model"] for row in rows):
        its = {(r["format"], r["precision"]): r for r in rows if r["model"] == name}
        size = next(iter(its.values()))["size"]
        cells = [
            f"{float(its[k]['of_signal']):.0e}, {its[k]['top1_equal']}/{its[k]['images']}"
            if k in its
            else ""
            for k in kinds
        ]
        lines.append(f"| {name} | {size} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", help="of photographs")
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--out", required=True, type=Path, help="table, CSV")
    parser.add_argument("--formats", default=",".join(dict.fromkeys(v[0] for v in VARIANTS)))
    parser.add_argument("--size", type=int, help="of images, in pixels; as published without")
    half = "images to try 16 bits with, 0: not at all; all without"
    parser.add_argument("--half", type=int, help=half)
    args = parser.parse_intermixed_args()
    rows = list(csv.DictReader(args.out.open())) if args.out.exists() else []
    with args.out.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        if not rows:
            writer.writeheader()
        there = {(r["model"], r["format"], r["precision"]) for r in rows}
        for name in args.models:
            for row in rows_of(name, args, there):
                writer.writerow(row)
                file.flush()
                print(*(f"{key}={row[key]}" for key in COLUMNS), flush=True)
            jax.clear_caches()
    rows = list(csv.DictReader(args.out.open()))
    print(markdown(rows))
    wrong = [
        row
        for row in rows
        if row["precision"] == "float32"
        and not (
            float(row["of_signal"]) < 1e-4
            and int(row["images"]) - int(row["top1_equal"]) <= int(row["images"]) / 500
        )
    ]
    print(f"{len(rows)} rows, {len(wrong)} wrong", *(f"{r['model']} {r['format']}" for r in wrong))
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
