"""What must not change unseen: the tensors of every network, and every config.

`golden/models.tsv` has, for each name, the number of trainable parameters and a hash of the paths
and shapes of parameters and statistics, on which checkpoints depend. `golden/configs.txt` has how
every config differs from `configs/base.py`. `golden/plans.tsv` is of `plan_configs.py`.

`python tests/pinned.py` writes the first two again, and what `models/counts.tsv` lacks.
"""

import argparse
import difflib
import hashlib
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from configs import base
from jaxcls import models, trees
from jaxcls.config import differences
from jaxcls.models.__main__ import COUNTS, counts
from jaxcls.models.count import count, parameters

ROOT = Path(__file__).parents[1]
MODELS, CONFIGS, PLANS = (
    ROOT / "tests" / "golden" / name for name in ("models.tsv", "configs.txt", "plans.tsv")
)
NETWORKS = [name for name in models.names() if not models.MODELS[name].alias_of]
COUNTED = [  # networks, and names of them with images of another size
    name
    for name, spec in models.MODELS.items()
    if not spec.alias_of or spec.size != models.MODELS[spec.alias_of].size
]


def trace(name: str, size: int = 0, channels: int = 3, **overrides: Any) -> tuple[Any, Any]:
    """Returns the shapes of outputs and variables of two images in training; computes nothing.

    They have 96 x 96 pixels, or those of the network's name where these matter to it.
    """
    module = models.build(name, **overrides)
    size = size or (models.MODELS[name].size if getattr(module, "sized", False) else 96)
    rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    images = jax.ShapeDtypeStruct((2, size, size, channels), jnp.float32)
    return jax.eval_shape(lambda x: module.init_with_output(rngs, x, train=True), images)


def row(variables: Mapping[str, Any]) -> str:
    """Returns the parameters of a network and the hash of its paths and shapes."""
    tree = {kind: variables.get(kind, {}) for kind in ("params", "batch_stats")}
    shapes = [leaf.shape for leaf in jax.tree.leaves(tree)]
    lines = sorted(f"{path} {shape}" for path, shape in zip(trees.paths(tree), shapes))
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
    return f"{parameters(tree['params'])}\t{digest}"


def rows() -> dict[str, str]:
    """Returns the stored row of each name."""
    return dict(line.split("\t", 1) for line in MODELS.read_text().splitlines())


def table(rows: Mapping[str, str]) -> str:
    """Returns the text of rows by name."""
    return "".join(f"{name}\t{row}\n" for name, row in rows.items())


def configs() -> dict[str, ConfigDict]:
    """Returns every config: of each file, and of each argument that a file takes."""
    found = {}
    for path in sorted((ROOT / "configs").glob("*.py")):
        if path.stem not in ("__init__", "base"):
            module = importlib.import_module(f"configs.{path.stem}")
            takes = models.names() if path.stem == "imagenet" else getattr(module, "NAMES", ())
            for argument in takes or (None,):
                name = f"configs/{path.name}" + (f":{argument}" if argument else "")
                found[name] = module.get_config(argument)
    return found


def text(configs: Mapping[str, ConfigDict]) -> str:
    """Returns the differences from base: names, one a line, then what they change."""
    blocks: dict[str, list[str]] = {}
    for name, config in configs.items():
        changes = differences(config, base.get_config())
        if name.partition(":")[2] == config.model.name:
            changes.pop("model.name", None)  # the argument says it
        lines = [f"    {key}: {old!r} -> {new!r}" for key, (old, new) in changes.items()]
        blocks.setdefault("\n".join(lines), []).append(name)
    return "\n\n".join("\n".join([*names, block]) for block, names in blocks.items()) + "\n"


def assert_pinned(path: Path, now: str) -> None:
    """Asserts that a golden file is as it would be now; otherwise shows what differs."""
    before, after = path.read_text().splitlines(), now.splitlines()
    diff = list(difflib.unified_diff(before, after, "golden", "now", lineterm="", n=2))
    assert not diff, "\n".join([f"{path.name}; if it is meant: python tests/pinned.py", *diff])


def main() -> None:
    """Writes the golden files."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    of_networks = {name: row(trace(name)[1]) for name in NETWORKS}
    MODELS.write_text(
        table({name: of_networks[spec.alias_of or name] for name, spec in models.MODELS.items()})
    )
    CONFIGS.write_text(text(configs()))
    known = counts()
    for name in set(COUNTED) - known.keys():
        known[name] = count(models.build(name), models.MODELS[name].size)
    COUNTS.write_text("".join("{}\t{params}\t{macs}\n".format(n, **known[n]) for n in COUNTED))


if __name__ == "__main__":
    main()
