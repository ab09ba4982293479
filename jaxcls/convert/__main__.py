"""python -m jaxcls.convert: weights of PaddleClas, timm or torchvision -> ours, and back.

NAME --from FILE --to DIR converts a file, --fetch NAME one that is published under a name; DIR, or
that name, then is what config.init.checkpoint takes. --to-torch DIR --out FILE is the way back.
"""

import sys

from jaxcls import output, signals

if __name__ == "__main__":  # before the imports that take a while
    output.prepare()
    signals.watch("stopped")

import argparse
import ast
import contextlib
import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from jaxcls import convert, files, models, network
from jaxcls.command import Arguments, exit_with, told
from jaxcls.config import choose, short
from jaxcls.convert import checkpoint, readers
from jaxcls.convert.fetch import fetch
from jaxcls.network import OURS, is_option, published_image

USAGE = """\
%(prog)s NAME --from FILE --to DIR
       %(prog)s --fetch paddleclas:NAME | timm:NAME
       %(prog)s --to-torch DIR --out FILE.safetensors"""


@told
def main(argv: list[str] | None = None) -> int:
    """Converts or fetches, and returns the exit code."""
    parser = Arguments(
        prog="python -m jaxcls.convert",
        usage=USAGE,
        description="Convert weights of PaddleClas, timm or torchvision to a jaxcls checkpoint, "
        "from a file or, with --fetch, from where they are published; or back, with --to-torch.",
    )
    parser.add_argument("name", nargs="?", help="of the model: python -m jaxcls.models")
    parser.add_argument(
        "--from",
        type=os.path.expanduser,
        dest="file",
        help=f"weights: {', '.join(readers.READERS)}",
    )
    parser.add_argument(
        "--to", type=os.path.expanduser, dest="folder", metavar="DIR", help="directory to write"
    )
    parser.add_argument("--key", help="which weights of a training checkpoint")
    parser.add_argument(
        "--style", choices=("paddle", "torch"), help="who named the tensors, if it is not clear"
    )
    parser.add_argument("--num-classes", type=int, metavar="N", help="in the file (1000)")
    parser.add_argument(
        "--no-head", action="store_true", default=None, help="leave the classifier out"
    )
    parser.add_argument(
        "--option",
        action="append",
        metavar="KEY=VALUE",
        help="argument of the model, as in config.model.options: bn_epsilon=0.001",
    )
    parser.add_argument(
        "--fetch",
        metavar="NAME",
        help="download and convert published weights into the cache, ~/.cache/jaxcls/weights",
    )
    parser.add_argument(
        "--to-torch",
        type=os.path.expanduser,
        metavar="DIR",
        help="run, checkpoint, export or name whose network timm has, too",
    )
    parser.add_argument(
        "--out", type=os.path.expanduser, metavar="FILE", help="of --to-torch: .safetensors"
    )
    args = parser.parse_args(argv)
    for flag, takes, does in (
        ("--fetch", {"fetch"}, lambda: _fetch(args.fetch)),
        ("--to-torch", {"to_torch", "out"}, lambda: to_torch(args.to_torch, args.out)),
    ):
        if getattr(args, flag[2:].replace("-", "_")) is not None:
            _only(args, flag, takes)
            return does()
    return _convert(args)


def _only(args: argparse.Namespace, flag: str, takes: set[str]) -> None:
    """Refuses arguments that `flag` does not take."""
    given = {key for key, value in vars(args).items() if value is not None}
    for key in sorted(given - takes):
        typed = {"file": "--from", "folder": "--to", "name": args.name}
        raise ValueError(f"{flag} takes no {typed.get(key) or '--' + key.replace('_', '-')}")


def _convert(args: argparse.Namespace) -> int:
    """Converts a file."""
    for value, needed in ((args.name, "NAME"), (args.file, "--from"), (args.folder, "--to")):
        if value is None:
            raise ValueError(f"{needed} is missing: write NAME --from FILE --to DIR; see --help")
    if args.out is not None:
        raise ValueError("--out belongs to --to-torch: write --to DIR")
    if Path(args.folder).exists():
        raise ValueError(f"{args.folder} exists: choose another directory for --to")
    classes = 1000 if args.num_classes is None else args.num_classes
    if classes < 1:
        raise ValueError(f"--num-classes={classes}: write how many the file has")
    choose("model", args.name, models.MODELS)  # a file may take a while to be read
    options = dict(map(_option, args.option or ()))
    arrays = readers.read(args.file, args.key or "")
    line = checkpoint.write(
        args.folder,
        args.name,
        arrays,
        style=args.style or style_of(args.file, arrays),
        num_classes=classes,
        image=published_image(args.name),
        head=not args.no_head,
        options=options,
        source={"file": Path(args.file).name, "sha256": files.digest(args.file)},
    )
    print(line)
    return 0


def _fetch(name: str) -> int:
    """Fetches weights by name, with a live line where somebody looks."""
    fetch(name, report=lambda line: print(line, flush=True), progress=_progress())
    return 0


def _progress() -> Callable[[int, int], None]:
    shown = -1

    def show(done: int, total: int) -> None:
        nonlocal shown
        if sys.stdout.isatty() and (now := done >> 20) != shown:
            shown = now
            of = f" of {total / 1e6:,.1f}" if total else ""
            width = shutil.get_terminal_size().columns - 1
            end = "\n" if done == total else ""
            print(f"\r\x1b[K{f'{done / 1e6:,.1f}{of} MB'[:width]}", end=end, flush=True)

    return show


def to_torch(run: str, file: str | None) -> int:
    """Writes what `load_state_dict` of timm's network takes.

    Raises:
      ValueError: timm has no such network, and why; or the file exists.
    """
    if file is None or Path(file).suffix != ".safetensors":
        raise ValueError("--to-torch needs --out FILE.safetensors")
    if os.path.lexists(file):
        raise ValueError(f"{file} exists: choose another file for --out")
    net, variables = network.load(run, report=lambda line: print(line, file=sys.stderr))
    if not net.num_classes:
        raise ValueError(f"{run} has no classifier, which timm's networks have: fine-tune it first")
    arguments = dict(num_classes=net.num_classes, **net.options)
    architecture, theirs = convert.timm_model(net.name, **arguments)
    theirs |= {"num_classes": net.num_classes}
    if net.image.channels != 3:
        theirs |= {"in_chans": net.image.channels}
    arrays = convert.to_torch(net.name, variables, **arguments)
    arrays = {name: np.asarray(array, np.float32) for name, array in arrays.items()}
    temporary = Path(f"{file}.tmp")
    try:
        with signals.undone(lambda: temporary.unlink(missing_ok=True)):
            temporary.write_bytes(save(arrays, metadata={"format": "pt"}))
            temporary.replace(file)
    except OSError as e:
        e.filename = file  # a full disk does not say whose
        raise
    made = ", ".join((repr(architecture), *(f"{key}={value!r}" for key, value in theirs.items())))
    print(
        f"{file}: {net.name}, {len(arrays)} tensors; timm.create_model({made})"
        f".load_state_dict(safetensors.torch.load_file({file!r}))"
    )
    return 0


def style_of(file: str, arrays: Mapping[str, np.ndarray]) -> str:
    """Returns "paddle" or "torch": who named these tensors."""
    if Path(file).suffix == ".pdparams" or any(name.endswith("._mean") for name in arrays):
        return "paddle"
    if Path(file).suffix in (".pth", ".pt") or any("running_mean" in name for name in arrays):
        return "torch"
    raise ValueError(f"{file}: its names do not tell who made it: add --style=paddle or torch")


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--option {text}: write KEY=VALUE")
    if name in ("name", "arrays", "num_classes", "head", *OURS):
        raise ValueError(f"--option {text}: {name} is no option of a model; see --help")
    # what is no literal is a text; "\\d" would warn
    unreadable = (SyntaxError, ValueError, TypeError, MemoryError, RecursionError)
    with contextlib.suppress(*unreadable), warnings.catch_warnings(action="ignore"):
        value = ast.literal_eval(value)
    if not is_option((name, value)):
        raise ValueError(
            f"--option {short(text)}: write a number of at least 0, a text, True, False, None or a "
            "tuple of them"
        )
    return name, value


if __name__ == "__main__":
    exit_with(main)
