"""What every config of the repository takes on a slice: a table, as of `python -m jaxcls.plan`.

    python tests/plan_configs.py [--topology=v5e:2x4] [--only=PATTERN] [--table=FILE] [--golden]
        [--config.KEY=VALUE ...]

The configs are those of the golden text (tests/golden/configs.txt), at their own batch, or at 512
images where it does not divide, with `--quick`; those that do not fit so, but nearly, once more
without. Each takes half a minute, in a process of its own: all of them four hours on two cores,
those with the fewest parameters first. Prints a line of JSON each, {"config", "fits", ...} or
{"config", "error"}; with --table it is added to that file, and configs that have a line there are
left out: the same command goes on. With --golden tests/golden/plans.tsv is written of that file at
the end: config, GiB a device (quick, so at most) and whether it fits.
"""

import argparse
import fnmatch
import json
import subprocess
import sys
from pathlib import Path

import pinned

NEARLY = 1.4  # of a chip's memory; quick programs took 6 to 18 % more than the others


def row(name, arguments):
    """Returns the plan of a config: whether it fits, quickly, and if not so then for sure."""
    quick = planned(name, ["--quick", *arguments])
    memory = quick.get("memory", {"total": None})
    far = memory["total"] is not None and memory["total"] > NEARLY * memory["limit"]
    if quick.get("fits", True) or far:
        return quick
    return planned(name, arguments)


def planned(name, arguments):
    """Returns what the command says of a config."""
    command = [sys.executable, "-m", "jaxcls.plan", f"--config={name}", "--json", *arguments]
    done = subprocess.run(command, cwd=pinned.ROOT, capture_output=True, text=True)
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1]}
    return json.loads(done.stdout)


def golden(line):
    """Returns a line of the golden table."""
    found = json.loads(line)
    if "error" in found:
        return f"{found['config']}\t\t{found['error']}\n"
    total = found["memory"]["total"]
    size = "" if total is None else f"{total / 2**30:.2f}"
    return f"{found['config']}\t{size}\t{'fits' if found['fits'] else 'does not fit'}\n"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--topology", default="v5e:2x4")
    parser.add_argument("--only", default="*", metavar="PATTERN")
    parser.add_argument("--table", default=Path("/dev/null"), type=Path, metavar="FILE")
    parser.add_argument("--golden", action="store_true")
    options, overrides = parser.parse_known_args()
    if wrong := [a for a in overrides if not a.startswith("--config.")]:
        parser.error(f"not known: {' '.join(wrong)}")
    if options.golden and not options.table.is_file():
        parser.error("--golden needs the --table that it is made of")
    lines = (line.split("\t") for line in pinned.MODELS.read_text().splitlines())
    sizes = {name: int(parameters) for name, parameters, _ in lines}
    table = options.table
    stored = table.read_text().splitlines() if table.exists() else []
    done = {json.loads(line)["config"] for line in stored}
    found = {n: c for n, c in pinned.configs().items() if fnmatch.fnmatch(n, options.only)}
    for name in sorted(found, key=lambda name: sizes.get(found[name].model.name, 0)):
        if name in done:
            continue
        given = [f"--topology={options.topology}", *overrides]
        result = row(name, given)
        if "does not divide" in result.get("error", ""):
            result = row(name, [*given, "--config.batch_size=512", "--config.eval.batch_size=0"])
        line = json.dumps({"config": name, **result})
        print(line, flush=True)
        with table.open("a") as file:
            file.write(line + "\n")
    if options.golden:
        pinned.PLANS.write_text("".join(sorted(map(golden, table.read_text().splitlines()))))


if __name__ == "__main__":
    main()
