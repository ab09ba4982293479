"""python -m jaxcls.export RUN --to=DIR [--format=stablehlo,onnx] [--precision=float32] \\
    [--input=uint8] [--images=FOLDER_OR_LIST]

Writes what other programs need to run a network: its program with the weights, preprocessing and
class names. RUN is a working directory, a checkpoint or converted weights. Programs take `images`,
uint8 [B, H, W, C] after resizing and cropping, any number of them, and give `logits` and
`probabilities`; with --input=float_nchw they take float32 [B, C, H, W], normalised. BatchNorms are
folded into the convolutions.

--format=int8 is an ONNX model in 8 bits, for processors; it finds the ranges of features with
--images, several hundred of those that the network is for. Where a network loses much in it,
fine-tuning with --config.model.quantise=int8 brings it back.

DIR/model.tflite takes one image at a time. DIR/timm is what timm.create_model opens, to evaluate or
to fine-tune: normalised images, BatchNorms as they are, for networks that timm has. These need
`pip install 'jaxcls[export-tf]'` (savedmodel, tflite) and 'jaxcls[export-timm]'.

Each file is run by its own runtime in a fresh process, on images of yours or generated ones, and
compared with the checkpoint: DIR/agreement.json. One that says something else is an error, and
nothing is written. DIR/network.json says what the network takes and what its classes are called,
DIR/README.md how to load each file. Exit codes: 0; 2: a mistake in command or data.
"""

import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxcls
from jaxcls import files, network
from jaxcls.command import Arguments, exit_with, start_jax, told
from jaxcls.console import Console
from jaxcls.data import lists
from jaxcls.data.ops import transformed
from jaxcls.export import agreement, card, formats, origin, program
from jaxcls.exported import ABOUT, digests

COMPARED = 512  # images of the user's, at most


@told
def main(argv: Sequence[str] | None = None) -> int:
    """Exports a network; returns the exit code."""
    usage, _, description = __doc__.partition("\n\n")
    parser = Arguments(prog="python -m jaxcls.export", usage=usage, description=description)
    parser.add_argument("run", metavar="RUN", help="a run, a checkpoint or converted weights")
    parser.add_argument("--to", required=True, help="directory to write, not there yet")
    parser.add_argument(
        "--format", default="stablehlo,onnx", help=f"of {', '.join(formats.FORMATS)}, with commas"
    )
    parser.add_argument("--precision", choices=program.PRECISIONS, default="float32")
    parser.add_argument("--input", choices=program.INPUTS, default="uint8")
    parser.add_argument("--images", help="to compare with: a folder, or a list of paths")
    args = parser.parse_args(argv)
    names = [name for name in args.format.split(",") if name]
    if not names:
        raise ValueError(f"--format=: write one of {', '.join(formats.FORMATS)}")
    if again := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ValueError(f"--format={args.format}: {', '.join(again)} is there twice")
    formats.check(names, args.precision)
    for name in ("to", "images"):
        if getattr(args, name) == "":
            raise ValueError(f"--{name}=: write a folder")
    if files.remote(args.to):
        raise ValueError(f"--to={args.to}: write a folder of this machine, and copy it there")
    folder = Path(args.to).expanduser().absolute()
    if os.path.lexists(folder):
        raise ValueError(f"--to={args.to} exists: choose another directory, or remove it")
    start_jax()
    console = Console()
    console.status("loading the network ...")
    net, variables = network.load(args.run, report=lambda line: print(line, file=sys.stderr))
    for name in names:
        formats.FORMATS[name].check(net)
    exported = program.make(net, variables, precision=args.precision, input=args.input)
    formats.check_size(names, exported)
    pixels = _images(args.images, net) if args.images else agreement.generated(exported)
    if any(formats.FORMATS[name].quantised for name in names) and len(pixels) < formats.LEAST:
        raise ValueError(
            f"--format=int8 finds the range of features with images: give at least {formats.LEAST} "
            f"of yours with --images, several hundred are better; there are {len(pixels)}"
            if args.images
            else "--format=int8 finds the range of features with images of yours: add --images=DIR"
        )
    ours = _logits(net, variables, pixels)
    scratch = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        about = card.about(exported, args.run)
        write = lambda name, told: (scratch / name).write_text(json.dumps(told, indent=1) + "\n")
        write(ABOUT, about)
        found: dict[str, Any] = {}
        for name in names:
            to = formats.FORMATS[name]
            console.status(f"writing {to.file} ...")
            try:
                to.write(exported, scratch / to.file, pixels)
            except NotImplementedError as e:
                raise ValueError(f"--format={name} cannot be written of {net.name}: {e}") from e
            console.status(f"running {to.file} elsewhere ...")
            taken = dataclasses.replace(exported, input=to.input or exported.input)
            theirs = agreement.apart(to, scratch, taken.given(pixels))
            found[name] = agreement.compare(ours, theirs, net.probabilities)
            agreement.check(name, found[name], args.precision, to.quantised)
        write(ABOUT, about | {"sha256": digests(scratch)})
        write("agreement.json", found)
        (scratch / "README.md").write_text(card.render(exported, about, found, origin.of(args.run)))
        scratch.rename(folder)
    except OSError as e:  # some do not say where
        raise OSError(e.errno, e.strerror, e.filename or str(folder)) from e
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    console.erase()
    print(f"{folder}: {net.name}, {net.num_classes} classes, jaxcls {jaxcls.__version__}")
    for name, its in found.items():
        size = _size(folder / formats.FORMATS[name].file)
        print(
            f"  {formats.FORMATS[name].file:<18} {size / 1e6:>8.1f} MB  largest difference "
            f"{its['largest']:.2g} ({its['of_signal']:.1g} of the signal), top-1 equal on "
            f"{its['top1_equal']} of {its['images']} images"
        )
    return 0


def _size(path: Path) -> int:
    """Returns the bytes of a file with what belongs to it, or of those in a folder."""
    parts = path.rglob("*") if path.is_dir() else path.parent.glob(f"{path.name}*")
    return sum(part.stat().st_size for part in parts if part.is_file())


def _images(place: str, net: network.Network) -> np.ndarray:
    """Returns images of a folder or a list, evenly spread, as the network sees them."""
    try:
        found = lists.open_unlabelled(place, root="", delimiter=" ", allowed=sys.maxsize)
    except ValueError as e:
        raise ValueError(str(e).replace("config.data.unlabelled", "--images")) from e
    numbers = np.linspace(0, len(found) - 1, min(len(found), COMPARED)).astype(int)
    return np.stack([transformed(found[i], net.transform, None) for i in numbers])


def _logits(net: network.Network, variables: network.Variables, pixels: np.ndarray) -> np.ndarray:
    """Returns what the checkpoint says, in float32, float32 [N, K]."""
    plain = dataclasses.replace(net, precision="float32")
    outputs = [plain.predict(variables, part)["logits"] for part in np.split(pixels, len(pixels))]
    return np.concatenate(jax.device_get(outputs))


if __name__ == "__main__":
    exit_with(main)
