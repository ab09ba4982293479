"""python -m jaxcls: says which commands there are."""

import sys
from collections.abc import Sequence

from jaxcls.command import exit_with, told

COMMANDS = {
    "main": "train and evaluate",
    "models": "the table of models",
    "convert": "weights of PaddleClas or PyTorch",
    "check": "read every image once",
    "preview": "what the network gets to see",
    "config": "what a config stands for, its learning rate as a picture",
    "plan": "whether a run fits on machines that are not here, and what it takes",
    "select": "images without labels that a network is sure of",
    "sweep": "search over the keys of a config",
    "soup": "one network from the weights of several runs",
    "predict": "what images show",
    "export": "a network as other programs run it: StableHLO, ONNX",
    "serve": "answers over HTTP",
    "benchmark": "ratios measured in one run",
}


@told
def main(argv: Sequence[str] = sys.argv) -> int:
    """Prints the commands with --help; otherwise says which may be meant, a user's mistake."""
    if {"--help", "-h"} & {*argv}:
        print("\n".join(f"python -m jaxcls.{name:<11} {what}" for name, what in COMMANDS.items()))
        return 0
    named = next((name for name in COMMANDS if name in argv[1:2]), "main")
    others = ", ".join(f"jaxcls.{name}" for name in COMMANDS if name != named)
    raise ValueError(f"write python -m jaxcls.{named} ...; others are {others}")


if __name__ == "__main__":
    exit_with(main)
