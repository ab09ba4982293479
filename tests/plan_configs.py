"""What every config of the repository takes on a slice: a table, as of `python -m jaxcls.plan`.

    python tests/plan_configs.py [--topology=v5e:2x4] [--only=PATTERN] [--config.KEY=VALUE ...]

The configs are those of the golden text (tests/golden/configs.txt), at their own batch, or at 512
images where it does not divide. Each takes minutes the first time (what was found is kept), in a
process of its own: all of them a day on two cores. Prints a line of JSON each, {"config", "fits",
...} or {"config", "error"}.
"""

import fnmatch
import json
import subprocess
import sys

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
    names = [n for n in pinned.configs() if fnmatch.fnmatch(n, options.get("only", "*"))]
    for name in names:
        given = [f"--topology={topology}", *overrides]
        result = row(name, given)
        if "does not divide" in result.get("error", ""):
            result = row(name, [*given, "--config.batch_size=512", "--config.eval.batch_size=0"])
        print(json.dumps({"config": name, **result}), flush=True)


if __name__ == "__main__":
    main()
