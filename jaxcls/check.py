"""python -m jaxcls.check --config=FILE[:ARG] [--json=FILE] [--config.KEY=VALUE]

Reads every training and evaluation image of a config once and tells what is wrong with them:
unreadable files, labels out of range, duplicates, evaluation images that are among the training
images too. --json=FILE writes all of it, with every name. Exit codes: 0; 2: training would fail, or
a mistake in command or config.

Two images are the same if their bytes are, and nearly the same if their perceptual hashes differ in
at most 4 of 64 bits: copies that were compressed or resized, not ones that were cropped or turned.
Drawings of a few lines, such as digits, look the same sooner than photographs.
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from jaxcls import choices
from jaxcls.command import define_config, exit_with, parse, told
from jaxcls.config import plan
from jaxcls.console import Console
from jaxcls.data import arrays, sources
from jaxcls.data.access import BadLabel, Source, for_all, item_of
from jaxcls.data.copies import NEAR, content_hash, nearest, perceptual_hash
from jaxcls.data.decode import BadImage, decode
from jaxcls.data.labels import NONE, counts, labelled

SHOWN = 10  # names of each kind in the summary
SPLITS = {"train": "training", "eval": "evaluation"}


class Image(NamedTuple):
    """What is kept of an image that was read."""

    content: int = 0  # `content_hash`
    look: int = 0  # `perceptual_hash`
    label: Any = NONE  # int, or marks [K]
    misplaced: bool = False  # the label is out of range
    width: int = 0
    height: int = 0
    error: str = ""


def examine(source: Source, index: int, **how: Any) -> Image:
    """Reads and decodes an image; `how`: arguments of `decode`."""
    try:
        item, misplaced = source[index], False
    except BadLabel as error:
        item, misplaced = error.item, True
    except BadImage as error:
        return Image(error=str(error))
    try:
        data = item["image"]
        pixels = decode(data, name=item["name"], **how)
    except BadImage as error:
        return Image(error=str(error))
    height, width = pixels.shape[:2]
    return Image(
        content_hash(data), perceptual_hash(pixels), item["label"], misplaced, width, height
    )


class Split:
    """The images of a source as columns, int or uint64 [N]."""

    def __init__(self, source: Source, what: str, **how: Any):
        """Reads and decodes them all."""
        count = len(source)
        cv2.setNumThreads(0)  # as in `loader.Batches`
        images = for_all(lambda i: examine(source, i, **how), count, f"reading {what}")
        self.source, self.class_names = source, source.class_names
        self.content, self.look = np.zeros((2, count), np.uint64)
        self.width, self.height = np.zeros((2, count), np.int64)
        shape = (count, source.marks) if source.marks else count
        self.label = np.zeros(shape, np.float32 if source.marks else np.int64)
        self.unreadable: dict[int, str] = {}
        self.out_of_range: list[int] = []
        for i, image in enumerate(images):
            self.content[i], self.look[i], self.label[i] = image.content, image.look, image.label
            self.width[i], self.height[i] = image.width, image.height
            if image.error:
                self.unreadable[i] = image.error
            elif image.misplaced:
                self.out_of_range.append(i)
        self.readable = np.delete(np.arange(count), list(self.unreadable))

    def name(self, index: int) -> str:
        """Returns what error messages call an image."""
        return item_of(self.source, index)["name"]

    def counts(self) -> np.ndarray:
        """Returns how many images can be read of each class."""
        return counts(self.label[self._good()], len(self.class_names))

    def _good(self) -> np.ndarray:
        return np.setdiff1d(self.readable, self.out_of_range)

    def duplicates(self) -> list[list[int]]:
        """Returns the groups of images with the same bytes."""
        groups: dict[int, list[int]] = {}
        for index in self.readable.tolist():
            groups.setdefault(int(self.content[index]), []).append(index)
        return [group for group in groups.values() if len(group) > 1]

    def report(self) -> dict[str, Any]:
        """Returns what there is to tell, with names."""
        size = {}
        if len(self.readable):
            for side, pixels in (("width", self.width), ("height", self.height)):
                of = np.percentile(pixels[self.readable], (0, 50, 100))
                size[side] = dict(zip(("min", "median", "max"), of.tolist()))
        return {
            "images": len(self.source),
            "counts": dict(zip(self.class_names, self.counts().tolist())),
            "unlabelled": int((~labelled(self.label[self._good()])).sum()),
            "size": size,
            "unreadable": list(self.unreadable.values()),
            "out_of_range": [
                {"name": self.name(i), "label": int(self.label[i])} for i in self.out_of_range
            ],
            "duplicates": [
                {
                    "names": [self.name(i) for i in group],
                    "same_label": same_label(self.label[group]),
                }
                for group in self.duplicates()
            ],
        }


def same_label(labels: np.ndarray) -> bool:
    """Returns whether images, int [N] or marks [N, K], have no two labels that differ."""
    labels = labels[labelled(labels)]
    return bool((labels == labels[:1]).all())


def leakage(train: Split, evaluation: Split) -> dict[str, list[dict[str, Any]]]:
    """Returns the evaluation images that the training images have too: {"exact", "near"}.

    For each the first that is the same, or else the nearest of those that are near.
    """
    ours, theirs = evaluation.readable, train.readable
    first = dict(zip(train.content[theirs][::-1].tolist(), theirs[::-1].tolist()))
    number, distance = nearest(train.look[theirs], evaluation.look[ours], NEAR)
    found: dict[str, list[dict[str, Any]]] = {"exact": [], "near": []}
    for i, near, bits in zip(ours.tolist(), number.tolist(), distance.tolist()):
        same = first.get(int(evaluation.content[i]))
        if same is None and near < 0:
            continue
        other = int(theirs[near]) if same is None else same
        pair = {
            "eval": evaluation.name(i),
            "train": train.name(other),
            "same_label": same_label(np.stack([evaluation.label[i], train.label[other]])),
        }
        if same is None:
            found["near"].append(pair | {"bits": bits})
        else:
            found["exact"].append(pair)
    return found


def check(config: ConfigDict) -> dict[str, Any]:
    """Returns all there is to tell about the images of a config; "problems" stop a training.

    Raises:
      ValueError: the data cannot be opened.
    """
    began = time.perf_counter()
    allowed = sources.bad_images_allowed(config.data.on_bad_image, config.data.max_bad_images)
    tolerant = config.copy_and_resolve_references()
    tolerant.data.update(on_bad_image="skip", max_bad_images=arrays.MAX_IMAGES)  # name them all
    tolerant, data = choices.open_data(tolerant)
    tolerant.data = config.data
    config = tolerant
    how = {"channels": len(config.image.mean), "exif": config.image.exif}
    splits = {"train": Split(data.train, "training images", **how)}
    if data.eval is not None:
        splits["eval"] = Split(data.eval, "evaluation images", **how)
    result: dict[str, Any] = {key: split.report() for key, split in splits.items()}
    if "eval" in splits:
        result["leakage"] = leakage(splits["train"], splits["eval"])
    problems = []
    try:
        plan(config, data.num_train)
    except ValueError as error:
        problems.append(str(error))
    for key, split in splits.items():
        if len(split.unreadable) > (allowed or 0):
            problems.append(
                f"{len(split.unreadable)} unreadable {SPLITS[key]} image(s), "
                f"config.data.on_bad_image = {config.data.on_bad_image!r} and max_bad_images = "
                f"{config.data.max_bad_images} allow {allowed or 0}"
            )
        if split.out_of_range:
            problems.append(
                f"{len(split.out_of_range)} {SPLITS[key]} image(s) with a label that is not in 0 "
                f"to {len(data.class_names) - 1}"
            )
    crop = config.image.eval_size or config.image.size
    if "eval" in splits and not config.image.eval_resize:
        evaluation = splits["eval"]
        side = np.minimum(evaluation.width, evaluation.height)[evaluation.readable]
        if (side < crop).any():
            problems.append(
                f"{(side < crop).sum()} evaluation image(s) are smaller than the crop of {crop}: "
                f"set config.image.eval_resize"
            )
    return {
        "source": config.data.source,
        "class_names": list(data.class_names),
        **result,
        "problems": problems,
        "seconds": round(time.perf_counter() - began, 1),
    }


def summary(result: dict[str, Any]) -> str:
    """Returns the summary of what `check` returned."""
    keys = [key for key in SPLITS if key in result]
    images = " and ".join(f"{result[key]['images']} {SPLITS[key]}" for key in keys)
    lines = [
        f"{result['source']}: {images} images of {len(result['class_names'])} classes, read in "
        f"{result['seconds']} s"
    ]

    def several(title, entries):
        if entries:
            lines.append(f"  {len(entries)} {title}")
            lines.extend(f"    {entry}" for entry in entries[:SHOWN])
            if len(entries) > SHOWN:
                lines.append(f"    and {len(entries) - SHOWN} more (--json=FILE names all)")

    for key in keys:
        part = result[key]
        lines.append(f"{SPLITS[key]}:")
        for side, of in part["size"].items():
            lines.append(
                f"  {side:<6} {of['min']:g} to {of['max']:g} pixels, median {of['median']:g}"
            )
        counts = sorted(part["counts"].items(), key=lambda entry: -entry[1])
        least, most = counts[-1], counts[0]
        lines.append(f"  {least[1]} ({least[0]}) to {most[1]} ({most[0]}) images in a class")
        if len(counts) <= 2 * SHOWN:
            lines.extend(f"    {count:>8} {name}" for name, count in part["counts"].items())
        if part["unlabelled"]:
            lines.append(f"  {part['unlabelled']} images without a label")
        several("classes without an image", [name for name, count in counts if not count])
        several("unreadable images", part["unreadable"])
        several("labels out of range", [f"{e['name']}: {e['label']}" for e in part["out_of_range"]])
        groups = part["duplicates"]
        for title, same in (("", True), (", under different labels", False)):
            names = [" = ".join(group["names"]) for group in groups if group["same_label"] == same]
            several(f"groups of images with the same bytes{title}", names)
    for kind, title in (("exact", "with the bytes of"), ("near", "that look like")):
        pairs = result.get("leakage", {}).get(kind, [])
        labels = {True: "", False: " (another label)"}
        several(
            f"evaluation images {title} a training image",
            [f"{e['eval']} = {e['train']}{labels[e['same_label']]}" for e in pairs],
        )
    several("reasons why training would fail:", result["problems"])
    return "\n".join(lines)


@told
def main(argv: Sequence[str] = sys.argv) -> int:
    """Runs the command and returns its exit code."""
    values = flags.FlagValues()
    define_config(values)
    flags.DEFINE_string("json", None, "file to write everything to", flag_values=values)
    parse(argv, values, help=__doc__)
    if values.json:  # it is known early: reading all images takes a while
        values.json = os.path.expanduser(values.json)
        file = Path(values.json)
        if file.is_dir() or not file.parent.is_dir():
            why = "it is a folder" if file.is_dir() else f"there is no folder {file.parent}"
            raise ValueError(f"--json={file}: {why}")
    Console()  # shows what the input warns of
    result = check(values.config)
    if values.json:
        Path(values.json).write_text(json.dumps(result, indent=1) + "\n")
    print(summary(result))
    return 2 if result["problems"] else 0


if __name__ == "__main__":
    exit_with(main)
