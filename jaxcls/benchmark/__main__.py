"""The command; see jaxcls/benchmark/__init__.py."""

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from jaxcls import benchmark
from jaxcls.benchmark import compile, input, loop, predict, serve, traffic, train
from jaxcls.command import define_config, exit_with, parse, told
from jaxcls.config import check_complete, choose

CONFIGS = Path(__file__).parents[2] / "configs"

# Each has `define(flags)`, its options; `run(config, flags)`; and CONFIG, what it takes by default;
# or, without a config, `main(arguments)`.
COMMANDS = {
    "compile": compile,
    "input": input,
    "loop": loop,
    "predict": predict,
    "serve": serve,
    "traffic": traffic,
    "train": train,
}


@told
def main(argv: Sequence[str] = sys.argv) -> int:
    """Runs a command and returns its exit code."""
    command = argv[1] if len(argv) > 1 else "--help"
    if command in ("--help", "-h", "help"):
        print(benchmark.__doc__)
        return 0
    chosen = COMMANDS[choose("command", command, COMMANDS)]
    rest = list(argv[2:])
    if hasattr(chosen, "main"):
        return chosen.main(rest)
    if not any(arg.partition("=")[0] in ("--config", "-config") for arg in rest):
        rest.insert(0, f"--config={CONFIGS / chosen.CONFIG}")
    options = flags.FlagValues()
    define_config(options)
    chosen.define(options)
    if "--help" in rest:
        print(
            benchmark.__doc__,
            f"\nOptions of {command}:",
            options.get_help(include_special_flags=False),
            sep="\n",
        )
        return 0
    parse([argv[0], *rest], options)
    check_complete(options.config)
    chosen.run(options.config, options)
    return 0


if __name__ == "__main__":
    exit_with(main)
