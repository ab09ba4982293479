"""Writes list files for Oxford's 102 flowers, with its own split and labels 0 to 101.

FOLDER has jpg/ (unpacked from 102flowers.tgz), setid.mat and imagelabels.mat, all from
https://www.robots.ox.ac.uk/~vgg/data/flowers/102/. It gets

    train_list.txt        1,020 images, 10 of each class
    val_list.txt          1,020 images, 10 of each class
    extra_list.txt        6,149 images, the set's own test split
    train_extra_list.txt  train and extra together: the larger training set for distillation

    python data_prep/flowers102.py FOLDER
    python -m jaxcls.main --config=... --config.data.source=list --config.data.root=FOLDER
"""

import argparse
import os
import sys
from pathlib import Path

import numpy as np
import scipy.io

SPLITS = {"train": "trnid", "val": "valid", "extra": "tstid"}  # name of the list -> key in setid


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args(argv).folder

    labels = _load(folder / "imagelabels.mat", "labels")  # 1 to 102; image i has labels[i - 1]
    lists = {}
    for split, key in SPLITS.items():
        numbers = _load(folder / "setid.mat", key)
        if numbers.size and not 1 <= numbers.min() <= numbers.max() <= len(labels):
            raise ValueError(f"{folder / 'setid.mat'}: {key} numbers images without a label")
        lists[split] = [f"jpg/image_{n:05d}.jpg {labels[n - 1] - 1}" for n in numbers.tolist()]
    lists["train_extra"] = lists["train"] + lists["extra"]
    for line in lists["train_extra"] + lists["val"]:
        image = folder / line.split(" ")[0]
        if not image.is_file():
            raise ValueError(f"{image}: no such file; unpack 102flowers.tgz in {folder}")
    for split, lines in lists.items():
        unfinished = folder / f".{split}_list.txt.{os.getpid()}"
        unfinished.write_text("".join(f"{line}\n" for line in lines))
        os.replace(unfinished, folder / f"{split}_list.txt")
        print(f"{split}_list.txt: {len(lines)} images")


def _load(path: Path, key: str) -> np.ndarray:
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        values = scipy.io.loadmat(path)[key]
    except KeyError as error:
        raise ValueError(f"{path} has no {key!r}: is it the right file?") from error
    except Exception as error:  # what scipy raises depends on the damage
        raise ValueError(f"{path}: not a MATLAB file: {error}") from error
    return values.ravel().astype(np.int64)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
