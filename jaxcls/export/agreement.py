"""What another program makes of an export, beside what the checkpoint says of the same images."""

import math
import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxcls.export.formats import Format
from jaxcls.export.program import Program

# Of the signal, see `compare`. What is equal but for rounding is below 1e-4 in float32.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.2, "float16": 0.05}
# In 8 bits, of images whose first class has at least half of the probability: that others may be
# the first of. Where no class leads, rounding decides, and costs as often as it helps.
OTHERS = 0.2
SURE = 0.5
ROUNDING = 1e-5  # of the largest logit: where nothing tells images apart there is no signal
SHARES = 1e-3  # of probabilities, from the same logits
SECONDS = 600  # that another program may take
PIXELS = 64 * 3 * 224**2  # at once, so that any network's features have place

APART = """\
import sys
import numpy as np

found = []
given = np.load({images!r})
for images in (*np.array_split(given, {parts}), given[:1]):
{run}
    found.append((np.asarray(logits), np.asarray(probabilities)))
assert "jaxcls" not in sys.modules
*several, (first, _) = found
logits, probabilities = map(np.concatenate, zip(*several))
np.savez({out!r}, logits=logits, probabilities=probabilities, first=first)
"""


def generated(program: Program, count: int = 8) -> np.ndarray:
    """Returns smooth noise, where there are no other images to compare with: uint8 [N, H, W, C]."""
    import cv2

    rng, image = np.random.default_rng(0), program.network.image
    size, out = image.shown, []
    for _ in range(count):
        small = rng.integers(0, 256, (7, 7, image.channels), dtype=np.uint8)
        pixels = cv2.resize(small, (size, size), interpolation=cv2.INTER_CUBIC)
        out.append(pixels.reshape(size, size, image.channels))
    return np.stack(out)


def apart(found: Format, folder: Path, images: np.ndarray) -> dict[str, np.ndarray]:
    """Returns what a fresh process, without jaxcls, makes of an export.

    "logits" and "probabilities" of all images, "first": logits of the first one by itself.

    Args:
      found: the format.
      folder: of the export.
      images: as the program takes them.

    Raises:
      ValueError: it fails; the message has its last line.
    """
    with tempfile.TemporaryDirectory() as scratch:
        given, out = os.path.join(scratch, "images.npy"), os.path.join(scratch, "out.npz")
        np.save(given, images)
        parts = math.ceil(images.size / PIXELS)
        run = textwrap.indent(found.run, "    ")
        script = APART.format(images=given, run=run, out=out, parts=parts)
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        # the parts are compiled once
        cache = {"JAX_COMPILATION_CACHE_DIR": scratch}
        cache["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        environment = cache | environment
        try:
            done = subprocess.run(
                [sys.executable, "-c", script],
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
                timeout=SECONDS,
            )
        except subprocess.TimeoutExpired as e:
            raise ValueError(f"{found.file} takes more than {SECONDS} s elsewhere") from e
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise ValueError(f"{found.file} cannot be run elsewhere: {lines[-1]}")
        with np.load(out) as arrays:
            return dict(arrays)


def compare(
    ours: np.ndarray, theirs: Mapping[str, np.ndarray], probabilities: Callable[[Any], Any]
) -> dict[str, Any]:
    """Returns how far what another program says is from what the checkpoint does.

    "images"; "logits", the largest of ours; "largest", the largest difference of logits, alone or
    in a batch; "of_signal", that as a share of the largest difference that images make to a logit;
    "top1_equal", for how many images the first class is the same; "sure", how many the checkpoint
    is sure of, with a probability of `SURE`, and "sure_equal", for how many of those the first
    class is the same; "probability", how far their probabilities are from those of their logits.

    Args:
      ours: logits of the checkpoint, float32 [N, K].
      theirs: what `apart` returns.
      probabilities: `Network.probabilities`, of logits.
    """
    difference = np.abs(ours - theirs["logits"]).max()
    largest = float(np.maximum(difference, np.abs(ours[:1] - theirs["first"]).max()))
    signal = float(np.ptp(ours, axis=0).max()) if len(ours) > 1 else float(np.ptp(ours))
    same = ours.argmax(-1) == theirs["logits"].argmax(-1)
    sure = np.asarray(probabilities(ours)).max(-1) >= SURE
    shares = np.asarray(probabilities(theirs["logits"]))
    share = largest / signal if signal else (0.0 if largest == 0 else float("inf"))
    return {
        "images": len(ours),
        "logits": float(np.abs(ours).max()),
        "largest": largest,
        "of_signal": share,
        "top1_equal": int(same.sum()),
        "sure": int(sure.sum()),
        "sure_equal": int((same & sure).sum()),
        "probability": float(np.abs(shares - theirs["probabilities"]).max()),
    }


def check(name: str, found: Mapping[str, Any], precision: str, quantised: bool = False) -> None:
    """Refuses an export that does not say what the checkpoint says.

    Raises:
      ValueError: they differ by more than rounding can; of 8 bits, in more than `OTHERS` of the
        first classes that the checkpoint is sure of.
    """
    tolerance = 1.0 if quantised else TOLERANCE[precision]
    rounded = found["largest"] <= ROUNDING * found["logits"]
    if not (rounded or found["of_signal"] <= tolerance):  # NaN too
        raise ValueError(
            f"--format={name}: what it says differs from the checkpoint by "
            f"{found['of_signal']:.2g} of what tells images apart, more than {tolerance:g}: "
            "nothing is written"
        )
    if not found["probability"] <= SHARES:
        raise ValueError(
            f"--format={name}: its probabilities differ by {found['probability']:.2g} from those "
            "of its logits: nothing is written"
        )
    if quantised and found["sure_equal"] < (1 - OTHERS) * found["sure"]:
        raise ValueError(
            f"--format={name}: the first class is the checkpoint's for {found['sure_equal']} of "
            f"the {found['sure']} images that it is sure of: fine-tune it with "
            "--config.model.quantise=int8, or export it in 16 bits, with --precision: nothing is "
            "written"
        )
