"""python -m jaxcls.convert NAME --from FILE --to DIR: weights of PaddleClas or PyTorch -> ours.

DIR then is what config.init.checkpoint takes.
"""

import ast
import contextlib
import hashlib
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxcls import convert, models, weights
from jaxcls.command import Arguments, exit_with, told
from jaxcls.config import choose, short
from jaxcls.convert import readers
from jaxcls.data import ops
from jaxcls.network import OURS, Network, is_option, published_image


@told
def main(argv: list[str] | None = None) -> int:
    """Converts a file and returns the exit code."""
    parser = Arguments(
        prog="python -m jaxcls.convert",
        description="Convert weights of PaddleClas, timm or torchvision to a jaxcls checkpoint.",
    )
    parser.add_argument("name", help="of the model: python -m jaxcls.models")
    parser.add_argument(
        "--from",
        required=True,
        type=os.path.expanduser,
        dest="file",
        help=f"weights: {', '.join(readers.READERS)}",
    )
    parser.add_argument(
        "--to", required=True, type=os.path.expanduser, dest="folder", help="directory to write"
    )
    parser.add_argument("--key", default="", help="which weights of a training checkpoint")
    parser.add_argument(
        "--style", choices=("paddle", "torch"), help="who named the tensors, if it is not clear"
    )
    parser.add_argument("--num-classes", type=int, default=1000, metavar="N", help="in the file")
    parser.add_argument("--no-head", action="store_true", help="leave the classifier out")
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="argument of the model, as in config.model.options: bn_epsilon=0.001",
    )
    args = parser.parse_args(argv)
    if Path(args.folder).exists():
        raise ValueError(f"{args.folder} exists: choose another directory for --to")
    if args.num_classes < 1:
        raise ValueError(f"--num-classes={args.num_classes}: write how many the file has")
    choose("model", args.name, models.MODELS)  # a file may take a while to be read
    options = dict(map(_option, args.option))
    arrays = readers.read(args.file, args.key)
    style = args.style or style_of(args.file, arrays)
    from_their = {"paddle": convert.from_paddle, "torch": convert.from_torch}[style]
    variables = from_their(
        args.name, arrays, num_classes=args.num_classes, head=not args.no_head, **options
    )
    channels = options.pop("in_channels", 3)  # the shapes say it
    image = published_image(args.name)
    if channels != 3:
        image |= {"mean": (0.5,) * channels, "std": (0.5,) * channels}
    network = Network(
        name=args.name,
        options=options,
        num_classes=0 if args.no_head else args.num_classes,
        class_names=(),
        image=ops.Image(**image),
        precision="float32",
    )
    meta = {
        "network": network.described(),
        "source": {
            "file": Path(args.file).name,
            "sha256": _sha256(args.file),
            "style": style,
        },
    }
    weights.export(args.folder, variables, meta)
    sizes = [np.size(x) for x in jax.tree.leaves(variables["params"])]
    print(f"{args.folder}: {args.name}, {len(sizes)} tensors, {sum(sizes):,} parameters")
    return 0


def style_of(file: str, arrays: Mapping[str, np.ndarray]) -> str:
    """Returns "paddle" or "torch": who named these tensors."""
    if Path(file).suffix == ".pdparams" or any(name.endswith("._mean") for name in arrays):
        return "paddle"
    if Path(file).suffix in (".pth", ".pt") or any("running_mean" in name for name in arrays):
        return "torch"
    raise ValueError(f"{file}: its names do not tell who made it: add --style=paddle or torch")


def _sha256(file: str) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


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
