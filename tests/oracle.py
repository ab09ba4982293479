"""Weights and images that anyone can recompute from names alone, and PaddleClas's answers on them.

Every tensor's values come from a generator seeded with the CRC-32 of its PaddleClas name, so the
expected numbers are all that has to be stored: `golden/zoo.json` has, for each architecture, the
statistics from which the running mean and variance of each BatchNorm are drawn (in the order of the
layers' names), the number of trainable parameters, a hash of the tensors' names and shapes, the
first logits of two images, and the largest difference between the two images' logits, against
which agreement is measured. `golden/training.json` has six training steps of two networks: what was
set, losses, learning rates, logits of an evaluation afterwards, and of each tensor its shape and
then mean, root mean square and first three values.

`python tests/oracle.py FOLDER` writes both again from the full reference data, which lie in FOLDER
and in FOLDER/more; what is not there stays as it is.
"""

import hashlib
import json
import math
import re
import sys
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxcls import convert, models, trees
from jaxcls.convert import engine

GOLDEN = Path(__file__).parent / "golden" / "zoo.json"
TRAINING = GOLDEN.with_name("training.json")
LOGITS = 24  # stored of each image
# (family, path, what follows on the shape in PaddleClas) where it is another
SHAPES = (
    ("dla", "head/fc/kernel$", lambda shape: (1, 1, *shape)),
    ("rexnet", "head/fc/kernel$", lambda shape: (1, 1, *shape)),
    ("van", "layer_scale_./value$", lambda shape: (*shape, 1, 1)),
)


def tensor(name: str, shape: tuple[int, ...], kind: str, bn: dict) -> np.ndarray:
    """Returns the float32 values of the PaddleClas tensor `name`.

    Args:
      name: "layer.leaf".
      shape: PaddleClas's: convolutions OIHW, linear [in, out].
      kind: "scale" of a BatchNorm, "linear" weight, or "other".
      bn: layer -> (mean, variance) around which running statistics are drawn.
    """
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    layer, _, leaf = name.rpartition(".")
    if leaf == "_variance":
        values = bn[layer][1] * rng.uniform(0.5, 1.5, shape)
    elif leaf == "_mean":
        values = bn[layer][0] + 0.2 * np.sqrt(bn[layer][1]) * rng.standard_normal(shape)
    elif kind == "scale":
        values = rng.uniform(0.5, 1.5, shape)
    elif len(shape) < 2:
        values = 0.1 * rng.standard_normal(shape)
    else:
        fan_in = shape[0] if kind == "linear" else np.prod(shape[1:])
        values = rng.standard_normal(shape) * np.sqrt(2 / max(int(fan_in), 1))
    return values.astype(np.float32)


def places(name: str, tree: Mapping[str, Any]) -> dict[str, tuple[str, Any]]:
    """Returns {PaddleClas's name: (our path, our leaf)}, by our own rules for the names."""
    module = models.build(name)
    rule = convert.rules(name).paddle
    found = {}
    for path, leaf in zip(trees.paths(tree), jax.tree.leaves(tree)):
        _, *layer, last = path.split("/")
        names = rule(tuple(layer), module), engine.PADDLE_LEAVES[last]
        key = ".".join(filter(None, names))
        assert key not in found, key
        for family, pattern, shape in SHAPES:
            if models.family_of(name) == family and re.search(pattern, path):
                leaf = jax.ShapeDtypeStruct(shape(leaf.shape), leaf.dtype)
        found[key] = path, leaf
    return found


def layout(leaf: Any) -> tuple[int, ...]:
    """Returns the shape that PaddleClas gives our leaf."""
    return tuple(leaf.shape[d] for d in (3, 2, 0, 1)) if len(leaf.shape) == 4 else leaf.shape


def tensors(name: str, tree: Mapping[str, Any], bn: dict | None = None) -> dict[str, np.ndarray]:
    """Returns PaddleClas's tensors of a network with our parameters and statistics `tree`.

    Args:
      name: of the architecture.
      tree: arrays or only their shapes.
      bn: as for `tensor`; None draws all running statistics around 0 and 1.
    """
    arrays = {}
    for key, (path, leaf) in places(name, tree).items():
        leaf_name, linear = path.rpartition("/")[2], len(leaf.shape) == 2
        kind = {"scale": "scale", "kernel": "linear" if linear else "other"}.get(leaf_name, "other")
        around = {key.rpartition(".")[0]: (0, 1)} if bn is None else bn
        arrays[key] = tensor(key, layout(leaf), kind, around)
    return arrays


def images(size: int, n: int = 2, seed: int = 0) -> np.ndarray:
    """Returns n float32 images [n, size, size, 3]: 8x8 coloured blocks with a little noise."""
    rng = np.random.default_rng(seed)
    blocks = rng.standard_normal((n, 3, 8, 8))
    where = np.arange(size) * 8 // size
    noisy = blocks[:, :, where[:, None], where] + 0.3 * rng.standard_normal((n, 3, size, size))
    return noisy.astype(np.float32).transpose(0, 2, 3, 1)


def digest(sizes: dict[str, int | tuple[int, ...]]) -> str:
    """Returns a hash of {name of a tensor: number of elements, or shape}."""
    lines = "\n".join(f"{name} {size}" for name, size in sorted(sizes.items()))
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


def golden() -> dict[str, dict]:
    """Returns the stored answers by architecture."""
    return json.loads(GOLDEN.read_text())


def training() -> dict[str, dict]:
    """Returns the stored training steps by architecture."""
    return json.loads(TRAINING.read_text())


def write_golden(folder: Path, names: list[str]) -> None:
    """Writes `golden/zoo.json` from the full answers in `folder`."""
    known, entries = golden(), {}
    for name in names:
        file = {"ShuffleNetV2": "ShuffleNetV2_x1_0"}.get(name, name) + ".npz"
        files = [path for path in (folder / file, folder / "more" / file) if path.exists()]
        if not files:
            entries |= {name: known[name]} if name in known else {}
            continue
        full = np.load(files[0])
        bn = json.loads(str(full["bn"]))
        tensors, unused = {}, 0
        for key, shape, kind in json.loads(str(full["meta"])):
            if convert.is_unused(name, key):
                unused += math.prod(shape)
            elif _is_learnt(key, kind):
                tensors[key] = tuple(shape)
        outputs = [full[f"out{i}"] for i in range(3) if f"out{i}" in full]  # auxiliary heads too
        entries[name] = {
            "size": int(full["size"]),
            "params": int(full["params"]) - unused,
            "tensors": digest(tensors),
            "signal": [float(np.abs(out[0] - out[1]).max()) for out in outputs],
            "logits": [
                [[float(f"{v:.7g}") for v in row[:LOGITS]] for row in out] for out in outputs
            ],
            "bn": [bn[layer] for layer in sorted(bn)],
        }
    GOLDEN.write_text(lines(entries))


def _is_learnt(name: str, kind: str) -> bool:
    return kind != "buffer" or name.endswith(("._mean", "._variance"))


def write_training(folder: Path, names: Sequence[str]) -> None:
    """Writes `golden/training.json` from the full answers in `folder`."""
    entries = training()
    for name in names:
        run = json.loads((folder / f"train_{name}.json").read_text())
        after = run.pop("params_after")
        learnt = [(k, s) for k, s, kind in run.pop("meta") if _is_learnt(k, kind)]
        tensors = {k: [s, *(float(f"{v:.6g}") for v in after[k])] for k, s in learnt}
        entries[name] = {**run, "tensors": tensors}
    TRAINING.write_text(lines(entries))


def lines(entries: dict[str, dict]) -> str:
    """Returns JSON with a line for each entry."""
    text = (f"{json.dumps(k)}: {json.dumps(v, separators=(',', ':'))}" for k, v in entries.items())
    return "{\n" + ",\n".join(text) + "\n}\n"


if __name__ == "__main__":
    names = models.names()
    write_golden(Path(sys.argv[1]), [n for n in names if not models.MODELS[n].alias_of])
    runs = (
        "ResNet18_vd",
        "MobileNetV3_small_x0_35",
        "RepVGG_A0",
        "SwinTransformer_tiny_patch4_window7_224",
    )
    write_training(Path(sys.argv[1]), runs)
