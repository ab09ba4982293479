"""Unpacks ILSVRC2012 (ImageNet-1k) into folders with lists, or straight into ArrayRecord.

    python data_prep/imagenet.py OUT --devkit ILSVRC2012_devkit_t12.tar.gz \\
        --train-tar ILSVRC2012_img_train.tar --val-tar ILSVRC2012_img_val.tar

The three files come from https://image-net.org after registration; training and validation may be
done in separate calls. Labels are the positions of the sorted WordNet ids (n01440764 is 0), as in
all published ImageNet-1k models. OUT gets

    --format folder        train/n01440764/n01440764_10026.JPEG, val/n01440764/..., train_list.txt,
                           val_list.txt, classes.txt: for data.source = folder and list. Images that
                           are there already are not written again.
    --format array_record  train-00000-of-00016.array_record, ..., val-..., classes.txt; see
                           folder_to_array_record.py
"""

import argparse
import io
import os
import re
import sys
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import scipy.io

# A script's own folder is on its path: this is the one next to it.
from folder_to_array_record import Example, add_record_arguments, write_classes, write_split


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--devkit", type=Path, required=True)
    parser.add_argument("--train-tar", type=Path)
    parser.add_argument("--val-tar", type=Path)
    parser.add_argument("--format", choices=("folder", "array_record"), default="folder")
    add_record_arguments(parser)
    args = parser.parse_args(argv)
    if not args.train_tar and not args.val_tar:
        raise ValueError("nothing to do: give --train-tar, --val-tar or both")

    classes, val_labels = read_devkit(args.devkit)
    args.out.mkdir(parents=True, exist_ok=True)
    splits = {}
    if args.train_tar:
        splits["train"] = train_examples(args.train_tar, classes)
    if args.val_tar:
        splits["val"] = val_examples(args.val_tar, classes, val_labels)
    for split, examples in splits.items():
        if args.format == "folder":
            write_folder(examples, args.out, split)
        else:
            write_split(examples, args, args.out, split, args.shards)
    write_classes(args.out, classes)


def read_devkit(path: Path) -> tuple[list[str], list[int]]:
    """Returns the sorted WordNet ids, and the label of each validation image in their order."""
    files = {}
    with _open_tar(path) as tar:
        for member in tar:
            files[Path(member.name).name] = member
        try:
            meta = tar.extractfile(files["meta.mat"]).read()
            truth = tar.extractfile(files["ILSVRC2012_validation_ground_truth.txt"]).read()
        except KeyError as error:
            raise ValueError(f"{path}: no {error} in it: is it the devkit?") from error
    synsets = scipy.io.loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
    # Inner nodes of WordNet's tree have children and are no classes.
    wnid = {int(s["ILSVRC2012_ID"]): str(s["WNID"]) for s in synsets if s["num_children"] == 0}
    classes = sorted(wnid.values())
    label = {name: i for i, name in enumerate(classes)}
    try:
        return classes, [label[wnid[int(number)]] for number in truth.split()]
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path}: the ground truth has the unknown class {error}") from error


def train_examples(path: Path, classes: list[str]) -> Iterator[Example]:
    """Yields the images of a tar of one tar for each class."""
    label = {name: i for i, name in enumerate(classes)}
    found = set()
    with _open_tar(path) as tar:
        for member in tar:
            if not member.isfile():
                continue
            name = Path(member.name).stem
            if name not in label:
                raise ValueError(f"{path}: {member.name} is no class of the devkit")
            found.add(name)
            with tarfile.open(fileobj=tar.extractfile(member)) as images:
                for image in images:
                    if image.isfile():
                        file = f"train/{name}/{Path(image.name).name}"
                        yield images.extractfile(image).read(), label[name], file
    missing = sorted(label.keys() - found)
    if missing:
        raise ValueError(f"{path}: no images of {len(missing)} classes, the first {missing[0]}")


def val_examples(path: Path, classes: list[str], labels: list[int]) -> Iterator[Example]:
    """Yields the images of a flat tar, whose numbered names are the lines of the ground truth."""
    count = 0
    with _open_tar(path) as tar:
        for member in tar:
            if not member.isfile():
                continue
            name = Path(member.name).name
            match = re.fullmatch(r"ILSVRC2012_val_(\d{8})\.JPEG", name)
            if not match or not 1 <= int(match[1]) <= len(labels):
                raise ValueError(f"{path}: {name} has no line in the devkit's ground truth")
            label = labels[int(match[1]) - 1]
            count += 1
            yield tar.extractfile(member).read(), label, f"val/{classes[label]}/{name}"
    if count != len(labels):
        raise ValueError(f"{path}: {count} images, the devkit's ground truth has {len(labels)}")


def write_folder(examples: Iterable[Example], out: Path, split: str) -> None:
    lines = []
    for data, label, name in examples:
        path = out / name
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, data)
        lines.append(f"{name} {label}\n")
    _write(out / f"{split}_list.txt", "".join(sorted(lines)).encode())
    print(f"{split}: {len(lines)} images")


def _write(path: Path, data: bytes) -> None:
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_bytes(data)
    os.replace(unfinished, path)


def _open_tar(path: Path) -> tarfile.TarFile:
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    return tarfile.open(path)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, tarfile.TarError, EOFError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
