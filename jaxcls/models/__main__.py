"""python -m jaxcls.models [PATTERN] [--json]: the table of models."""

import argparse
import json
import sys

from jaxcls import models
from jaxcls.models.count import count


def main(argv: list[str] | None = None) -> int:
    """Prints name, family, input size, parameters and multiply-adds; returns the exit code."""
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
        rows.append(
            {
                "name": name,
                "family": models.family_of(name),
                "size": size,
                **count(models.build(name), size),
            }
        )
    if args.json:
        print(json.dumps(rows, indent=1))
        return 0
    print(f"{'name':<28} {'family':<14} {'size':>4} {'params (M)':>11} {'multiply-adds (G)':>18}")
    for r in rows:
        print(
            f"{r['name']:<28} {r['family']:<14} {r['size']:>4} {r['params'] / 1e6:>11.3f} "
            f"{r['macs'] / 1e9:>18.3f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
