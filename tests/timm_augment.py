"""AutoAugment's tables against torchvision's, RandAugment's ops and magnitudes against timm's.

`python tests/timm_augment.py [FOLDER]`, in an environment that also has PyTorch, timm and
torchvision, prints a line for each op: the largest difference in grey levels, and the share of
values that differ, over magnitudes 0 to 10 on the images of a folder (or synthetic ones).
"""

import random
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from timm_parity import timm, torchvision  # of torchvision only the Python part

from jaxcls.data import augment, primitives

timm_ops = timm.data.auto_augment
torchvision_ops = torchvision.transforms.autoaugment
NAMES = {"TranslateX": "TranslateXRel", "TranslateY": "TranslateYRel"}
INTERPOLATION = {"nearest": Image.NEAREST, "bilinear": Image.BILINEAR}


def check_tables():
    """The three policies; torchvision leaves out magnitudes of ops that take none."""
    for policy in torchvision_ops.AutoAugmentPolicy:
        theirs = torchvision_ops.AutoAugment(policy).policies
        ours = augment.SUB_POLICIES[
            "autoaugment" + {"imagenet": ""}.get(policy.value, "_" + policy.value)
        ]
        assert len(ours) == len(theirs) == 25
        for row, (mine, other) in enumerate(zip(ours, theirs)):
            for (name, prob, magnitude), (name2, prob2, magnitude2) in zip(mine, other):
                same = (name, prob) == (name2, prob2) and magnitude2 in (None, magnitude)
                assert same, (policy, row, mine, other)
        print(f"{policy.value}: the same 25 sub-policies as torchvision {torchvision.__version__}")


def photos(folder):
    if folder:
        for path in sorted(Path(folder).iterdir()):
            yield np.array(Image.open(path).convert("RGB").resize((224, 224)))
    else:
        y, x = np.mgrid[:224, :224]
        for seed in range(4):
            noise = np.random.default_rng(seed).normal(0, 15, (224, 224, 3))
            waves = [110 + 90 * np.sin(x / (9 + c) + y / (21 - c) + seed) for c in range(3)]
            yield np.clip(np.stack(waves, -1) + noise, 0, 255).astype(np.uint8)


def compare(name, increasing, interpolation, images):
    """Returns the largest difference, the share of values that differ, and by more than 1."""
    suffix = "Increasing" if increasing and name + "Increasing" in timm_ops.NAME_TO_OP else ""
    theirs = timm_ops.NAME_TO_OP[NAMES.get(name, name + suffix)]
    to_argument = timm_ops.LEVEL_TO_ARG[NAMES.get(name, name + suffix)]
    largest, different, more, count = 0, 0, 0, 0
    for magnitude in range(11):
        for sign in (1, -1):
            random.random = lambda sign=sign: 0.2 if sign > 0 else 0.8  # of timm's sign
            arguments = to_argument(magnitude, {}) if to_argument else ()
            scale = "timm_inc1" if increasing else "timm_inc0"
            op = augment.op(scale, name, magnitude / 10, 0.2 if sign > 0 else 0.8)
            if name == "Posterize" and arguments == (0,):
                assert op[1] == 1  # no bits are left there, which Pillow refuses
                continue
            if arguments:
                assert np.isclose(op[1], arguments[0], atol=1e-12), (name, magnitude, op, arguments)
            for image in images:
                kwargs = {"fillcolor": (128,) * 3, "resample": INTERPOLATION[interpolation]}
                expected = np.asarray(theirs(Image.fromarray(image), *arguments, **kwargs))
                got = primitives.apply(image, [op], interpolation=interpolation)
                error = np.abs(got.astype(int) - expected)
                largest = max(largest, error.max())
                different += np.count_nonzero(error)
                more += np.count_nonzero(error > 1)
                count += error.size
    return largest, different / count, more / count


def main():
    check_tables()
    images = list(photos(sys.argv[1] if len(sys.argv) > 1 else ""))
    print(f"{'op':13} inc interpolation   max   differ    by > 1   ({len(images)} images)")
    for name in augment.TIMM_OPS:
        for increasing in (0, 1):
            for interpolation in INTERPOLATION if name in primitives.MOVES else ("-",):
                how = "nearest" if interpolation == "-" else interpolation
                largest, different, more = compare(name, increasing, how, images)
                print(
                    f"{name:13} {increasing:3d} {interpolation:13} {largest:5d} "
                    f"{different:8.4%} {more:9.5%}"
                )


if __name__ == "__main__":
    main()
