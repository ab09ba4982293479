"""Weights and images that anyone can recompute from names alone, and PaddleClas's answers on them.

Every tensor's values come from a generator seeded with the CRC-32 of its PaddleClas name, so the
expected numbers are all that has to be stored: `golden/zoo.json` has, for each architecture, the
statistics from which the running mean and variance of each BatchNorm are drawn (in the order of the
layers' names), the number of trainable parameters, the first logits of two images, and the largest
difference between the two images' logits, against which agreement is measured.

`python tests/oracle.py FOLDER` writes that file again from the full reference data.
"""

import hashlib
import json
import sys
import zlib
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parent / "golden" / "zoo.json"
REFERENCE = Path(__file__).parents[2] / "shared" / "oracle"
LOGITS = 24  # stored of each image


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


def images(size: int, n: int = 2, seed: int = 0) -> np.ndarray:
    """Returns n float32 images [n, size, size, 3]: 8x8 coloured blocks with a little noise."""
    rng = np.random.default_rng(seed)
    blocks = rng.standard_normal((n, 3, 8, 8))
    where = np.arange(size) * 8 // size
    noisy = blocks[:, :, where[:, None], where] + 0.3 * rng.standard_normal((n, 3, size, size))
    return noisy.astype(np.float32).transpose(0, 2, 3, 1)


def digest(sizes: dict[str, int]) -> str:
    """Returns a hash of {name of a tensor: number of elements}."""
    lines = "\n".join(f"{name} {size}" for name, size in sorted(sizes.items()))
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


def golden() -> dict[str, dict]:
    """Returns the stored answers by architecture."""
    return json.loads(GOLDEN.read_text())


def reference(name: str, folder: Path = REFERENCE) -> Path:
    """Returns the file of the full answers; there is none for names that are only other weights."""
    return folder / {"ShuffleNetV2": "ShuffleNetV2_x1_0.npz"}.get(name, f"{name}.npz")


def write_golden(folder: Path, names: list[str]) -> None:
    """Writes `golden/zoo.json` from the full answers in `folder`."""
    lines = []
    for name in names:
        if not reference(name, folder).exists():
            continue
        full = np.load(reference(name, folder))
        bn = json.loads(str(full["bn"]))
        outputs = [full[f"out{i}"] for i in range(3) if f"out{i}" in full]  # auxiliary heads too
        entry = {
            "size": int(full["size"]),
            "params": int(full["params"]),
            "signal": [float(np.abs(out[0] - out[1]).max()) for out in outputs],
            "logits": [
                [[float(f"{v:.7g}") for v in row[:LOGITS]] for row in out] for out in outputs
            ],
            "bn": [bn[layer] for layer in sorted(bn)],
        }
        lines.append(f"{json.dumps(name)}: {json.dumps(entry, separators=(',', ':'))}")
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    from jaxcls import models

    write_golden(Path(sys.argv[1]), models.names())
