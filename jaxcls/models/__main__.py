"""python -m jaxcls.models [PATTERN] [--family] [--plot=FILE] [--json]: the table of models."""

import json
import os
import textwrap
from collections.abc import Sequence
from pathlib import Path

from jaxcls import models
from jaxcls.command import Arguments, exit_with, told
from jaxcls.config import closest
from jaxcls.models import pareto
from jaxcls.models.published import ACCURACY
from jaxcls.scatter import SUFFIXES

# name, parameters, multiply-adds; what `count` counts, which a test compares
COUNTS = Path(__file__).with_name("counts.tsv")
INDENTS = ("initial_indent", "subsequent_indent")


def counts() -> dict[str, dict[str, int]]:
    """Returns {"params", "macs"} by the names of networks; of others that they are aliases of."""
    rows = (line.split("\t") for line in COUNTS.read_text().splitlines())
    return {name: {"params": int(params), "macs": int(macs)} for name, params, macs in rows}


def table(names: Sequence[str]) -> list[dict]:
    """Returns the rows of these models, with accuracies published by PaddleClas."""
    counted, rows = counts(), []
    for name in names:
        spec = models.MODELS[name]
        top1, top5 = ACCURACY.get(name, (None, None))
        rows.append(
            {
                "name": name,
                "family": models.family_of(name),
                "alias_of": spec.alias_of,
                "size": spec.size,
                **(counted.get(name) or counted[spec.alias_of]),
                "top1": top1,
                "top5": top5,
            }
        )
    return rows


def text(rows: Sequence[dict]) -> str:
    """Returns the rows for people, 100 columns at most but for the longest names."""
    number = lambda x: "" if x is None else f"{x:.2f}"
    lines = [
        f"{'name':<32} {'family, or = network':<24} {'size':>4} {'params M':>9} {'mult-adds G':>11}"
        f" {'top-1':>6} {'top-5':>6}"
    ]
    for r in rows:
        family = f"= {r['alias_of']}" if r["alias_of"] else r["family"]
        lines.append(
            f"{r['name']:<32} {family:<24} {r['size']:>4} {r['params'] / 1e6:>9.2f} "
            f"{r['macs'] / 1e9:>11.3f} {number(r['top1']):>6} {number(r['top5']):>6}".rstrip()
        )
    return "\n".join(lines)


def by_family(names: Sequence[str]) -> dict[str, list[str]]:
    """Returns these names by their families, whose order is that of `models.FAMILIES`."""
    found: dict[str, list[str]] = {}
    for name in sorted(names, key=lambda name: models.FAMILIES.index(models.family_of(name))):
        found.setdefault(models.family_of(name), []).append(name)
    return found


def families(found: dict[str, list[str]]) -> str:
    """Returns families and their names for people, in 100 columns; "*" marks other weights."""
    blocks = []
    for family, its in found.items():
        networks = sum(not models.MODELS[name].alias_of for name in its)
        some = f"{len(its)} name{'s' * (len(its) != 1)}"
        title = f"{family}: {some}" + (f", {networks} networks" * (networks != len(its)))
        listed = ", ".join(name + "*" * bool(models.MODELS[name].alias_of) for name in its)
        space = " " * 4
        blocks.append(f"{title}\n" + textwrap.fill(listed, 100, **dict.fromkeys(INDENTS, space)))
    return "\n".join(blocks)


@told
def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table; returns the exit code."""
    parser = Arguments(
        prog="python -m jaxcls.models",
        description="The table of models, with the accuracies in percent that PaddleClas published "
        "for its weights of them; '= NETWORK' marks other weights of that network, or a new name.",
    )
    parser.add_argument(
        "pattern", nargs="?", default="*", help="shell pattern, in any case: 'resnet*_vd'"
    )
    parser.add_argument("--json", action="store_true", help="one JSON list, exact numbers")
    parser.add_argument(
        "--family", action="store_true", help="names alone, by family; * marks other weights"
    )
    parser.add_argument(
        "--plot",
        type=os.path.expanduser,
        metavar="FILE",
        help=f"write accuracy over multiply-adds as a picture, {', '.join(SUFFIXES)}",
    )
    args = parser.parse_args(argv)
    if args.plot is not None and Path(args.plot).suffix not in SUFFIXES:
        raise ValueError(f"--plot={args.plot}: write FILE{' or FILE'.join(SUFFIXES)}")
    if args.plot is not None and (args.family or args.json):
        raise ValueError("--plot writes a picture and prints no table: leave --family and --json")
    if not (chosen := models.names(args.pattern)):
        hint = closest(args.pattern, models.MODELS) or "; all names: python -m jaxcls.models"
        raise ValueError(f"no model matches {args.pattern!r}{hint}")
    if args.family:
        found = by_family(chosen)
        print(json.dumps(found, indent=1) if args.json else families(found))
        return 0
    rows = table(chosen)
    if args.plot is not None:
        print(f"{args.plot}: {pareto.draw(rows, Path(args.plot))} names with an accuracy")
        return 0
    print(json.dumps(rows, indent=1) if args.json else text(rows))
    return 0


if __name__ == "__main__":
    exit_with(main)
