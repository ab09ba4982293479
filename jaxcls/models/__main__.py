"""python -m jaxcls.models [PATTERN] [--json]: the table of models."""

import argparse
import json
import sys

from jaxcls import models
from jaxcls.command import exit_with
from jaxcls.models.count import count
from jaxcls.models.published import ACCURACY


def main(argv: list[str] | None = None) -> int:
    """Prints the table, with accuracies published by PaddleClas; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m jaxcls.models", description=__doc__)
    parser.add_argument("pattern", nargs="?", default="*", help="shell pattern, such as 'Res*_vd'")
    parser.add_argument("--json", action="store_true", help="one JSON list, exact numbers")
    args = parser.parse_args(argv)
    chosen = models.names(args.pattern)
    if not chosen:
        print(
            f"no model matches {args.pattern!r}; all names: python -m jaxcls.models",
            file=sys.stderr,
        )
        return 2
    rows = []
    for name in chosen:
        size = models.MODELS[name].size
        top1, top5 = ACCURACY.get(name, (None, None))
        rows.append(
            {
                "name": name,
                "family": models.family_of(name),
                "alias_of": models.MODELS[name].alias_of,
                "size": size,
                **count(models.build(name), size),
                "top1": top1,
                "top5": top5,
            }
        )
    if args.json:
        print(json.dumps(rows, indent=1))
        return 0
    number = lambda x: "" if x is None else f"{x:.2f}"
    print(
        f"{'name':<33} {'family':<13} {'size':>4} {'params (M)':>10} {'multiply-adds (G)':>17} "
        f"{'top-1 %':>8} {'top-5 %':>8}  other weights of"
    )
    for r in rows:
        print(
            f"{r['name']:<33} {r['family']:<13} {r['size']:>4} {r['params'] / 1e6:>10.2f} "
            f"{r['macs'] / 1e9:>17.3f} {number(r['top1']):>8} {number(r['top5']):>8}  "
            f"{r['alias_of']}".rstrip()
        )
    return 0


if __name__ == "__main__":
    exit_with(main)
