"""What every config of the repository takes on a slice: a table, as of `python -m jaxcls.plan`.

    python tests/plan_configs.py [--topology=v5e:2x4] [--only=PATTERN] [--table=FILE]
        [--config.KEY=VALUE ...]

The configs are those of the golden text (tests/golden/configs.txt), at their own batch, or at 512
images where it does not divide. Each takes minutes the first time (what was found is kept), in a
process of its own: all of them a day on two cores, those with the fewest parameters first. Prints
a line of JSON each, {"config", "fits", ...} or {"config", "error"}; with --table it is added to
that file, and configs that have a line there are left out: the same command goes on.
"""

import fnmatch
import json
import subprocess
import sys
from pathlib import Path

import pinned


def row(name, arguments):
    """Returns the plan of a config."""
    command = [sys.executable, "-m", "jaxcls.plan", f"--config={name}", "--json", *arguments]
    done = subprocess.run(command, cwd=pinned.ROOT, capture_output=True, text=True)
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1]}
    return json.loads(done.stdout)


def main():
    options = dict(a[2:].partition("=")[::2] for a in sys.argv[1:] if not a.startswith("--config."))
    topology = options.get("topology", "v5e:2x4")
    overrides = [a for a in sys.argv[1:] if a.startswith("--config.")]
    lines = (line.split("\t") for line in pinned.MODELS.read_text().splitlines())
    sizes = {name: int(parameters) for name, parameters, _ in lines}
    table = Path(options.get("table", "/dev/null"))
    done = (
        {json.loads(x)["config"] for x in table.read_text().splitlines()} if table.exists() else ()
    )
    found = {
        n: c for n, c in pinned.configs().items() if fnmatch.fnmatch(n, options.get("only", "*"))
    }
    for name in sorted(found, key=lambda name: sizes.get(found[name].model.name, 0)):
        if name in done:
            continue
        given = [f"--topology={topology}", *overrides]
        result = row(name, given)
        if "does not divide" in result.get("error", ""):
            result = row(name, [*given, "--config.batch_size=512", "--config.eval.batch_size=0"])
        line = json.dumps({"config": name, **result})
        print(line, flush=True)
        with table.open("a") as file:
            file.write(line + "\n")


if __name__ == "__main__":
    main()
