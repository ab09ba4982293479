"""Where images come from: random access by number, encoded as they lie on disk.

A source has `len(source)`, `source.class_names`, `source.labels` (int [N]; records have to be read
for it) and `source[i]`, a dict of
  image  bytes (encoded) or uint8 [H, W, C]
  label  int, 0 <= label < len(class_names): the loader makes sure of it
  name   str, what error messages call the image
`source.identity` tells it from others: digests {"images", "labels"} of what the images are called
below their root and of their labels; of records, which would have to be read for both, one of their
files' names, sizes and numbers of records. Names say nothing of two classes that have changed
places, so "some" has {what was looked at: [what was found]}: digests of two images of each class,
labels of records; None where something cannot be read.
It pickles (files are opened late) and may be read from several threads at once.
"""

import builtins
import contextlib
import dataclasses
import errno
import functools
import glob
import hashlib
import importlib
import json
import logging
import os
import re
import stat
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar

import cv2
import numpy as np
from tqdm import tqdm

from jaxcls.config import check_seed, choose, refuse_unused
from jaxcls.data.decode import SUFFIXES, BadImage
from jaxcls.data.ops import check_size
from jaxcls.data.sampling import WEIGHTS, by_class, subset

CLASSES_FILE = "classes.txt"  # beside lists and records: one class name per line, in label order

# What systems and programs leave among images, in lower case; besides names that begin with a dot.
LITTER = {
    *("__macosx", "@eadir", "lost+found", "$recycle.bin", "system volume information"),
    *("#recycle", "#snapshot", "__pycache__", "thumbs.db", "ehthumbs.db", "desktop.ini"),
}
# What folders of evaluation images are called, in lower case; no class is.
EVALUATION = ("val", "valid", "validation", "eval", "evaluation", "test", "testing")
MAX_CLASSES = 10_000_000
MAX_IMAGES = 100_000_000
MAX_LABEL = 2**31 - 2
SOME = 1000  # classes or records that are looked at, to tell images from others of the same name
MAX_BYTES = 2**30  # of an image's file
SHOWN = 5  # names of each kind in a message
CONTROL = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029]")

log = logging.getLogger(__name__)

T = TypeVar("T")

CACHES = ("auto", "none", "encoded", "decoded", "device")  # data/cache.py

# The keys of config.data each source takes, and the values that mean "not set".
TAKES = {
    "digits": (),
    "folder": ("root", "train", "eval", "eval_fraction"),
    "list": ("root", "train", "eval", "delimiter", "num_classes"),
    "array_record": ("root", "train", "eval"),
    "tfds": ("root", "train", "eval", "name"),
    "fake": ("num_train", "num_eval", "num_classes"),
}
DEFAULTS = {
    "root": "",
    "train": "",
    "eval": "",
    "eval_fraction": 0.0,
    "delimiter": " ",
    "name": "imagenet2012",
    "num_train": 0,
    "num_eval": 0,
    "num_classes": 0,
}


class Source(Protocol):
    class_names: tuple[str, ...]
    labels: np.ndarray
    identity: dict[str, Any]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Data:
    """What `config.data` stands for."""

    train: Source
    eval: Source | None  # None: the source has nothing to evaluate on
    class_names: tuple[str, ...]
    on_bad_image: str  # "error" or "skip"
    max_bad_images: int
    sampling: str  # a key of sampling.WEIGHTS
    repeats: int
    cache: str  # a key of cache.KINDS


def open(
    *,
    source: str,
    root: str,
    train: str,
    eval: str,
    eval_fraction: float | None,
    delimiter: str,
    name: str,
    num_train: int,
    num_eval: int,
    num_classes: int,
    on_bad_image: str,
    max_bad_images: int,
    fraction: float,
    fraction_seed: int,
    sampling: str,
    repeats: int,
    cache: str,
    image_size: int = 224,
    training: bool = True,
) -> Data:
    """Returns the images that `config.data` names: `sources.open(**config.data)`.

    Args:
      source, root, ...: `config.data`, see configs/base.py and the function of each source below.
      image_size: pixels of fake images, height and width.
      training: whether training images will be read: if not, those of a list may be missing.

    Raises:
      ValueError: an unknown source, a key that it does not take, or data that is not as it should
        be: a missing folder, an empty class, a list line without a label, ...
    """
    if not source:
        raise ValueError(f"config.data.source is not set: write one of {', '.join(sorted(TAKES))}")
    choose("config.data.source", source, TAKES)
    choose("config.data.sampling", sampling, WEIGHTS)
    choose("config.data.cache", cache, CACHES)
    allowed = bad_images_allowed(on_bad_image, max_bad_images)
    values = {
        "root": root,
        "train": train,
        "eval": eval,
        "eval_fraction": eval_fraction,
        "delimiter": delimiter,
        "name": name,
        "num_train": num_train,
        "num_eval": num_eval,
        "num_classes": num_classes,
    }
    if eval_fraction is None and source != "folder":
        values["eval_fraction"] = 0.0
    refuse_unused("data", source, values, DEFAULTS, TAKES[source])
    check_seed("data.fraction_seed", fraction_seed)
    arguments = {key: values[key] for key in TAKES[source]}
    if source == "fake":
        arguments["image_size"] = image_size
    if source in ("list", "array_record", "tfds"):
        arguments["max_bad_images"] = allowed
    if source == "list":
        arguments["training"] = training
    if fraction == 1 and fraction_seed:
        raise ValueError(f"config.data.fraction_seed = {fraction_seed}: not used by fraction = 1.0")
    train_source, eval_source = OPEN[source](**arguments)
    if len(train_source.class_names) < 2:
        raise ValueError(
            f"config.data: there is one class only, {train_source.class_names[0]!r}, and nothing "
            f"to tell it from: {SECOND_CLASS[source]}"
        )
    if eval_source is not None:
        _report_classes(train_source, eval_source)
    if fraction != 1:
        indices = subset(train_source.labels, fraction, fraction_seed)
        train_source = Subset(train_source, indices)
    return Data(
        train=train_source,
        eval=eval_source,
        class_names=train_source.class_names,
        on_bad_image=on_bad_image,
        max_bad_images=max_bad_images,
        sampling=sampling,
        repeats=repeats,
        cache=cache,
    )


def bad_images_allowed(on_bad_image: str, max_bad_images: int) -> int | None:
    """Returns how many unreadable images do not stop a run; None: each is an error.

    Raises:
      ValueError: one of the two is out of range.
    """
    choose("config.data.on_bad_image", on_bad_image, ("error", "skip"))
    if max_bad_images < 0:
        raise ValueError(
            f"config.data.max_bad_images = {max_bad_images}: write a number of at least 0"
        )
    return max_bad_images if on_bad_image == "skip" else None


# Where a second class comes from.
SECOND_CLASS = {
    "folder": "every class of images needs a sub-folder of its own in config.data.root (or train)",
    "list": "write the labels 0, 1, ... in the list, or set config.data.num_classes",
    "array_record": f"{CLASSES_FILE} has one class in each line",
    "tfds": "choose another set",
    "fake": "write config.data.num_classes of at least 2",
}


def _report_classes(train: Source, evaluation: Source) -> None:
    """Says which classes have images in one of the two only, where labels need no reading."""
    if not isinstance(train, Files):
        return
    count = len(train.class_names)
    there = [np.bincount(s.labels, minlength=count) > 0 for s in (train, evaluation)]
    for what, missing in (
        ("evaluation", there[0] & ~there[1]),
        ("training", there[1] & ~there[0]),
    ):
        names = [train.class_names[i] for i in np.flatnonzero(missing).tolist()]
        if names:
            log.warning("%d of %d classes have no %s images: %s", len(names), count, what,
                        _some(names))  # fmt: skip


def _some(names: Sequence[str]) -> str:
    """Returns the first names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def printable(name: str) -> str:
    """Returns a file name that can be printed in a line and stored: other characters as \\xff."""
    text = os.fsencode(name).decode(errors="backslashreplace")
    return CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)


@dataclasses.dataclass(frozen=True, eq=False)
class Subset:
    """Some images of a source."""

    source: Source
    indices: np.ndarray  # int [number of images]

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.source.class_names

    @functools.cached_property
    def labels(self) -> np.ndarray:
        return self.source.labels[self.indices]

    @property
    def identity(self) -> dict[str, Any]:
        chosen = digest([self.indices.tolist()])
        whole = self.source.identity
        return whole | {k: digest([v, chosen]) for k, v in whole.items() if k != "some"}

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.source[int(self.indices[index])]


def digest(things: Any) -> str:
    """Returns a digest of what JSON can hold."""
    return hashlib.sha256(json.dumps(things).encode()).hexdigest()


def evenly(things: Sequence[T]) -> list[T]:
    """Returns some of the things, evenly spread, if they are many."""
    return [things[i] for i in np.linspace(0, len(things) - 1, min(len(things), SOME)).astype(int)]


def in_threads(f: Callable[[Any], T], things: Sequence[Any]) -> list[T]:
    """Returns f(thing) of each."""
    with ThreadPoolExecutor(16) as pool:
        return [*pool.map(f, things)]


def for_all(f: Callable[[int], T], count: int, what: str) -> Iterator[T]:
    """Yields f(0), ..., f(count - 1), made by a thread for each core.

    Shows the progress of `what`: as a bar on a terminal, as a line now and then elsewhere.
    """

    def part(start: int) -> list[T]:
        return [f(i) for i in range(start, min(start + 64, count))]

    terminal = sys.stderr.isatty()
    bar = tqdm(
        total=count,
        desc=what,
        unit="image",
        mininterval=0.1 if terminal else 30,
        delay=0 if terminal else 10,
    )
    with bar, ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            for results in pool.map(part, range(0, count, 64)):
                yield from results
                bar.update(len(results))
        finally:
            pool.shutdown(cancel_futures=True)


# -- Arrays in memory ------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Arrays:
    """Images in memory: uint8 [N, H, W, C]; image i is `images[i % N]`."""

    kind: str  # what the names begin with
    images: np.ndarray
    labels: np.ndarray  # int [number of images]
    class_names: tuple[str, ...]

    @property
    def identity(self) -> dict[str, str]:
        return {"images": digest([self.kind, len(self)]), "labels": digest(self.labels.tolist())}

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            "image": self.images[index % len(self.images)],
            "label": int(self.labels[index]),
            "name": f"{self.kind}[{index}]",
        }


def open_digits() -> tuple[Arrays, Arrays]:
    """Returns scikit-learn's 1,797 handwritten digits, uint8 [16, 16, 1]: first half, second half.

    That is the split of scikit-learn's example "Recognizing hand-written digits", where its support
    vector classifier reaches 96.9 %. The 8x8 pixels of 0 to 16 become 0 to 255 and are resized with
    cubic interpolation.
    """
    images, labels = _digits()
    half = len(labels) // 2
    names = tuple("0123456789")
    return (
        Arrays("digits/train", images[:half], labels[:half], names),
        Arrays("digits/eval", images[half:], labels[half:], names),
    )


@functools.cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits  # here: it takes a second

    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    large = [cv2.resize(p, (16, 16), interpolation=cv2.INTER_CUBIC) for p in pixels]
    return np.stack(large)[..., None], digits.target


def open_fake(
    *, num_train: int, num_eval: int, num_classes: int, image_size: int
) -> tuple[Arrays, Arrays]:
    """Returns noise with labels 0, 1, 2, ... over and over: for benchmarks and tests of shapes."""
    counts = {"num_train": num_train, "num_eval": num_eval, "num_classes": num_classes}
    for key, value in counts.items():
        if value < 1:
            raise ValueError(f"config.data.{key} = {value}: the fake source needs a number above 0")
        most = MAX_CLASSES if key == "num_classes" else MAX_IMAGES
        if value > most:
            raise ValueError(f"config.data.{key} = {value}: write at most {most}")
    check_size(image_size)
    shape = (8, image_size, image_size, 3)
    images = np.random.Generator(np.random.PCG64(0)).integers(0, 256, shape, np.uint8)
    names = tuple(map(str, range(num_classes)))
    return (
        Arrays("fake/train", images, np.arange(num_train, dtype=np.int32) % num_classes, names),
        Arrays("fake/eval", images, np.arange(num_eval, dtype=np.int32) % num_classes, names),
    )


# -- Files -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Files:
    """Image files below `root`. With `listed` set, they are lines of that list file."""

    root: str
    paths: tuple[str, ...]  # relative to root
    labels: np.ndarray  # int32
    class_names: tuple[str, ...]
    listed: str = ""
    lines: np.ndarray | None = None  # int32, line numbers in `listed`

    @property
    def identity(self) -> dict[str, Any]:
        names = [Path(path).as_posix() for path in self.paths]
        classes = evenly([*by_class(self.labels).items()])
        ends = [images[[0, -1]].tolist() for _, images in classes]
        found = in_threads(lambda images: [*map(self._fingerprint, images)], ends)
        known = [f"class {self.class_names[label]!r}" for label, _ in classes]
        return {
            "images": digest(names),
            "labels": digest(self.labels.tolist()),
            "some": dict(zip(known, found)),
        }

    def _fingerprint(self, index: int) -> str | None:
        """Returns a digest of an image's size and first bytes; None if they cannot be read."""
        try:
            with Path(self.root, self.paths[index]).open("rb") as file:
                return digest([os.fstat(file.fileno()).st_size, file.read(4096).hex()])[:8]
        except OSError:
            return None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path, name = os.path.join(self.root, self.paths[index]), self.name(index)
        return {"image": _read(path, name), "label": int(self.labels[index]), "name": name}

    def name(self, index: int) -> str:
        """Returns what messages call an image."""
        path = printable(os.path.join(self.root, self.paths[index]))
        return f"{path} ({self.listed}:{self.lines[index]})" if self.listed else path


# Every image would fail: too many open files, no memory.
NOT_THE_IMAGE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
# What a network or a busy system may say once, and not again.
MAY_PASS = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE, errno.EAGAIN)
DELAYS = (0.25, 0.5, 1, 2)  # seconds until an image is tried again


def _read(path: str, name: str) -> bytes:
    for delay in (*DELAYS, None):
        try:
            with builtins.open(path, "rb", buffering=0, opener=_at_once) as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):  # a device may have no end
                    raise BadImage(f"{name}: not a file")
                if status.st_size > MAX_BYTES:
                    raise BadImage(f"{name}: {status.st_size:,} bytes are no image")
                return file.read()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise BadImage(f"{name}: no such file") from error
        except OSError as error:
            if delay and error.errno in MAY_PASS:
                time.sleep(delay)
            elif error.errno in NOT_THE_IMAGE:
                raise ValueError(f"{name}: cannot read it: {error.strerror}") from error
            else:
                raise BadImage(f"{name}: cannot read it: {error.strerror}") from error
    raise AssertionError("the last time has no delay")


def _at_once(path: str, flags: int) -> int:
    """Opens a file; a pipe, which would wait for somebody who writes into it, too."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def open_folder(
    *, root: str, train: str, eval: str, eval_fraction: float | None
) -> tuple[Files, Files | None]:
    """Returns the images of `root/train/CLASS/...` and `root/eval/CLASS/...`.

    Classes are the sorted names of the sub-folders of the training folder. Inside a class folders
    may be nested. Hidden files and what systems leave behind (`LITTER`) are left out; so are files
    that are no images by their ending, and how many is said.

    Args:
      root: the folder.
      train: sub-folder of training images; "": "train", and `root` itself where that is missing.
      eval: sub-folder of evaluation images; "": "val" where there is one.
      eval_fraction: without an evaluation folder, this share of each class is held out (of two
        images or more at least one, never all). Which ones depends on their names alone. None: 0.2
        without an evaluation folder.

    Raises:
      ValueError: a missing folder, no classes, an empty class, a class in `eval` only, nothing to
        hold out.
    """
    train_folder, eval_folder = _split_folders(_directory(root, "root"), train, eval)
    if eval_fraction is None:
        eval_fraction = 0.0 if eval_folder else 0.2
    if not 0 <= eval_fraction < 1:
        raise ValueError(f"config.data.eval_fraction = {eval_fraction}: write a share in [0, 1)")
    class_names = _subfolders(train_folder)
    if not class_names:
        raise ValueError(f"{train_folder} has no sub-folders: make one for each class of images")
    images = _images(train_folder, class_names)
    if eval_fraction:
        if eval_folder:
            raise ValueError(
                f"config.data.eval_fraction = {eval_fraction}, but there is an evaluation folder "
                f"already: {eval_folder}"
            )
        eval_folder = train_folder
        held_out = {name: _hold_out(paths, eval_fraction) for name, paths in images.items()}
        if not any(held_out.values()):
            raise ValueError(
                f"config.data.eval_fraction = {eval_fraction} holds out nothing: no class has two "
                "images"
            )
        images = {name: sorted({*paths} - {*held_out[name]}) for name, paths in images.items()}
    elif eval_folder:
        folders = _subfolders(eval_folder)
        unknown = sorted({*folders} - images.keys())
        if unknown:
            raise ValueError(
                f"{eval_folder / unknown[0]}: {train_folder} has no class {unknown[0]!r}"
            )
        if not folders:
            raise ValueError(f"{eval_folder} has no sub-folders: it needs those of {train_folder}")
        held_out = _images(eval_folder, folders)
    train_files = _files(train_folder, images, class_names)
    return train_files, _files(eval_folder, held_out, class_names) if eval_folder else None


def _split_folders(base: Path, train: str, eval: str) -> tuple[Path, Path | None]:
    if train or (base / "train").is_dir():
        train_folder = _directory(base / (train or "train"), "train")
        if eval or (base / "val").is_dir():
            return train_folder, _directory(base / (eval or "val"), "eval")
        for split in _subfolders(base):
            if split.lower() in EVALUATION and base / split != train_folder:
                log.warning("%s is not used: config.data.eval=%s evaluates on it", base / split,
                            split)  # fmt: skip
        return train_folder, None
    for split in _subfolders(base):  # else it would become a class
        if split.lower() in EVALUATION or split == eval:
            raise ValueError(
                f"{base} has a folder {split!r} but no 'train': name the folder of training images "
                "in config.data.train"
            )
    if eval:
        raise ValueError(f"{base / eval}: no such folder (config.data.eval)")
    return base, None


def _directory(path: str | Path, key: str) -> Path:
    if not str(path):
        raise ValueError(f"config.data.{key} is not set: name a folder")
    if "://" in str(path):
        raise ValueError(
            f"{path}: images are read from folders of this machine: copy or mount it, and name "
            f"that folder (config.data.{key})"
        )
    path = Path(path).expanduser()
    try:
        if path.stat() and path.is_dir():
            return path
        reason = "not a folder"
    except (FileNotFoundError, ValueError):  # ValueError: a NUL in it
        reason = "no such folder"
    except OSError as error:
        reason = error.strerror
    raise ValueError(f"{path}: {reason} (config.data.{key})")


def _is_litter(name: str) -> bool:
    return name[0] == "." or name.lower() in LITTER


def _entries(folder: str | Path) -> list[os.DirEntry]:
    """Returns what is in a folder, sorted, without `LITTER`."""
    try:
        with os.scandir(folder) as entries:
            return sorted((e for e in entries if not _is_litter(e.name)), key=lambda e: e.name)
    except OSError as error:
        raise ValueError(f"{folder}: cannot list it: {error.strerror}") from error


def _subfolders(folder: Path) -> tuple[str, ...]:
    return tuple(e.name for e in _entries(folder) if _is_folder(e))


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, a broken mount
        return False


def _images(folder: Path, classes: Sequence[str]) -> dict[str, list[str]]:
    """Returns {class: the sorted paths of its images, relative to `folder`}; says what it leaves.

    Raises:
      ValueError: a class has none.
    """
    left, images = Counter(), {}
    for name in classes:
        before = left.total()
        found = _walk(os.path.join(folder, name), left, _ancestors(folder))
        images[name] = sorted(os.path.relpath(path, folder) for path in found)
        if not images[name]:
            others = left.total() - before
            raise ValueError(
                f"{folder / name}: the class {printable(name)!r} has no images"
                + (f", of {others} files none is one by its ending" if others else "")
            )
    if left:
        kinds = [f"{count} {ending or 'without one'}" for ending, count in left.most_common()]
        log.warning("%s: left out %d files that are no images by their ending: %s", folder,
                    left.total(), _some(kinds))  # fmt: skip
    if loose := sum(e.name.lower().endswith(SUFFIXES) for e in _entries(folder)):
        log.warning("%s: left out %d images that are not in the folder of a class", folder, loose)
    return images


def _walk(folder: str, left: Counter, above: frozenset[tuple[int, int]]) -> Iterator[str]:
    """Yields the images below a folder; counts in `left` the endings of other files.

    Args:
      above: the folders that it is in. A link that leads back to one of them is not followed.
    """
    waiting = [(folder, above)]
    while waiting:
        folder, above = waiting.pop()
        status = os.stat(folder)
        if (here := (status.st_dev, status.st_ino)) in above:
            continue
        for entry in _entries(folder):
            if _is_folder(entry):
                waiting.append((entry.path, above | {here}))
            elif entry.name.lower().endswith(SUFFIXES):
                yield entry.path
            else:
                left[os.path.splitext(entry.name)[1].lower()] += 1


def _ancestors(folder: Path) -> frozenset[tuple[int, int]]:
    path = Path(os.path.realpath(folder))
    return frozenset((s.st_dev, s.st_ino) for s in map(os.stat, (path, *path.parents)))


def _hold_out(paths: Sequence[str], fraction: float) -> list[str]:
    """Returns a share of the paths, those with the least hashes: adding files moves few others."""
    count = min(max(round(fraction * len(paths)), 1), len(paths) - 1)
    ranked = sorted(paths, key=lambda p: hashlib.sha256(os.fsencode(Path(p).as_posix())).digest())
    return sorted(ranked[:count])


def _files(folder: Path, images: dict[str, list[str]], class_names: tuple[str, ...]) -> Files:
    label = {name: i for i, name in enumerate(class_names)}
    counts = [len(paths) for paths in images.values()]
    return Files(
        root=str(folder),
        paths=tuple(path for paths in images.values() for path in paths),
        labels=np.repeat(np.array([label[n] for n in images], np.int32), counts),
        class_names=tuple(map(printable, class_names)),
    )


def open_list(
    *,
    root: str,
    train: str,
    eval: str,
    delimiter: str,
    num_classes: int,
    max_bad_images: int | None = None,
    training: bool = True,
) -> tuple[Files, Files | None]:
    """Returns the images of PaddleClas's list files, a line of which is `relative/path label`.

    Class names are those of `root/classes.txt` where it exists, otherwise the labels themselves.
    Paths may be absolute, and have Windows' backslashes. All are looked for right away.

    Args:
      root: the folder that paths and list files are relative to.
      train: list of training images; "": "train_list.txt".
      eval: list of evaluation images; "": "val_list.txt" where there is one.
      delimiter: between path and label; the last one in the line counts.
      num_classes: 0: largest label of `train` + 1, or as many as `root/classes.txt` names.
      max_bad_images: so many of a list may be missing, which is said. None: none.
      training: whether to look for training images too.

    Raises:
      ValueError: a missing list; a line (named) whose label is missing, not a number, not below the
        number of classes or far above the number of images; missing images (the first one named).
    """
    base = _directory(root, "root")
    delimiter = delimiter.replace("\\t", "\t")  # as it is typed where a shell takes it literally
    if not delimiter:
        raise ValueError("config.data.delimiter is empty: write what is between path and label")
    if not 0 <= num_classes <= MAX_CLASSES:
        raise ValueError(
            f"config.data.num_classes = {num_classes}: write a number up to {MAX_CLASSES}, or 0 "
            "for the largest label + 1"
        )
    names = _read_class_names(base)
    if names and num_classes and len(names) != num_classes:
        raise ValueError(
            f"{base / CLASSES_FILE} names {len(names)} classes, "
            f"config.data.num_classes = {num_classes}"
        )
    count = num_classes or len(names)
    train_list, eval_list = base / (train or "train_list.txt"), base / (eval or "val_list.txt")
    rows = _read_list(train_list, "train", delimiter, count)
    count = count or _count_classes(train_list, *rows[1:])
    if not names and (least := int(rows[1].min())):
        log.warning("%s: the labels begin with %d, and classes are counted from 0: those before it "
                    "have no training images", train_list, least)  # fmt: skip
    names = names or tuple(map(str, range(count)))

    def files(
        listed: Path, rows: tuple[tuple[str, ...], np.ndarray, np.ndarray], look: bool = True
    ) -> Files:
        paths, labels, lines = rows
        found = Files(str(base), paths, labels, names, str(listed), lines)
        return _looked_for(found, max_bad_images) if look else found

    if not eval and not eval_list.is_file():
        return files(train_list, rows, training), None
    eval_rows = _read_list(eval_list, "eval", delimiter, count)
    return files(train_list, rows, training), files(eval_list, eval_rows)


def _count_classes(path: Path, labels: np.ndarray, lines: np.ndarray) -> int:
    """Returns the largest label + 1.

    Raises:
      ValueError: that is more than 10 times the number of images, a slip rather than a label.
    """
    count = int(labels.max()) + 1
    if count > 10 * len(labels):
        raise ValueError(
            f"{path}:{lines[labels.argmax()]}: the label {count - 1} makes {count} classes of "
            f"{len(labels)} images: if that is right, set config.data.num_classes = {count}"
        )
    return count


def _looked_for(files: Files, max_bad_images: int | None) -> Files:
    """Returns the files of a list, those that are only there with / for \\ under that name.

    Raises:
      ValueError: too many are missing, see `open_list`.
    """
    missing = _missing(files.root, files.paths)
    if os.sep == "/" and any("\\" in files.paths[i] for i in missing):
        paths = list(files.paths)
        for i in missing:
            paths[i] = paths[i].replace("\\", "/")
        slashed = {*missing} - {*_missing(files.root, paths)}
        paths = [path if i in slashed else files.paths[i] for i, path in enumerate(paths)]
        files = dataclasses.replace(files, paths=tuple(paths))
        missing = [i for i in missing if i not in slashed]
    if not missing:
        return files
    said = f"{files.name(missing[0])}: no such file"
    if len(missing) > 1:
        said += f", and {len(missing) - 1} more of the {len(files)} listed images are missing"
    if len(missing) == len(files):
        raise ValueError(f"{said}: paths are relative to config.data.root = {files.root}")
    if max_bad_images is None:
        raise ValueError(f'{said}: write config.data.on_bad_image = "skip" to do without')
    if len(missing) > max_bad_images:
        raise ValueError(f"{said}; config.data.max_bad_images = {max_bad_images}")
    log.warning("%s; unreadable images, to be skipped", said)
    return files


def _missing(root: str, paths: Sequence[str]) -> list[int]:
    """Returns the numbers of the paths that are no files, ascending.

    Lists each folder once, which takes a fraction of the time of asking for each file.
    """
    folders = [os.path.dirname(path) for path in paths]
    unique = sorted({*folders})
    with ThreadPoolExecutor(16) as pool:
        names = dict(zip(unique, pool.map(lambda f: _file_names(os.path.join(root, f)), unique)))
    # Of what is not in a list the system has the last word: it may not tell upper from lower case,
    # or keep a folder from being listed.
    return [
        i
        for i, (folder, path) in enumerate(zip(folders, paths))
        if os.path.basename(path) not in names[folder]
        and not os.path.isfile(os.path.join(root, path))
    ]


def _file_names(folder: str) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {e.name for e in entries if not e.is_symlink() and e.is_file()}
    except OSError:
        return set()


def _read_class_names(folder: Path) -> tuple[str, ...]:
    """Returns the lines of `folder/classes.txt`, or () where there is none."""
    path = folder / CLASSES_FILE
    if not path.is_file():
        return ()
    names = tuple(_read_text(path).splitlines())
    if not names or not all(names):
        raise ValueError(f"{path}: write one class name in each line, and no empty line")
    if len(names) > MAX_CLASSES:
        raise ValueError(f"{path} has {len(names)} lines, more than {MAX_CLASSES}")
    return names


def _read_text(path: Path) -> str:
    """Returns the text of a file in UTF-8, its line ends as \\n; other bytes as in file names."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot read it: {error.strerror}") from error
    if b"\0" in data:
        raise ValueError(f"{path} is not a text file in UTF-8: there are zero bytes in it")
    text = data.decode("utf-8-sig", errors="surrogateescape")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _read_list(
    path: Path, key: str, delimiter: str, num_classes: int
) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Returns paths, labels and line numbers. num_classes = 0: labels have no upper limit."""
    if not path.is_file():
        raise ValueError(f"{path}: no such list file (config.data.{key}, relative to root)")
    paths, labels, lines = [], [], []
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        image, found, label = line.rstrip().rpartition(delimiter)
        if not found or not image.strip():
            other = re.search(r"([,;:|\t ])\s*[0-9]+\s*$", line)
            hint = f"; it may be {other[1]!r}" if other else ""
            raise ValueError(
                f"{path}:{number}: no label after the delimiter {delimiter!r} in {_quoted(line)} "
                f"(config.data.delimiter{hint})"
            )
        # int() refuses numbers of more than 4,300 digits
        if not re.fullmatch(r"\s*[+-]?[0-9]{1,100}\s*", label):
            raise ValueError(
                f"{path}:{number}: the label {_quoted(label)} is not a whole number: number the "
                f"classes from 0, their names in the lines of {CLASSES_FILE}"
            )
        value = int(label)
        limit = num_classes or MAX_LABEL + 1
        if not 0 <= value < limit:
            raise ValueError(
                f"{path}:{number}: the label {value} is out of range: there are "
                f"{num_classes} classes, 0 to {num_classes - 1}"
                if num_classes
                else f"{path}:{number}: the label {value} is out of range: labels begin with 0"
                f" and go up to {MAX_LABEL}"
            )
        paths.append(image.rstrip())
        labels.append(value)
        lines.append(number)
    if not paths:
        raise ValueError(f"{path}: the list is empty")
    return tuple(paths), np.array(labels, np.int32), np.array(lines, np.int32)


def _quoted(text: str) -> str:
    """Returns a part of a file as a message quotes it."""
    return repr(printable(text if len(text) <= 80 else text[:77] + "..."))


# -- ArrayRecord -----------------------------------------------------------------------------------

# A record is the length of a header (uint32, little-endian), the header (JSON: {"label": int,
# "name": str}) and the encoded image as it was; or, where the header has a "shape" [H, W, C] too,
# the pixels, uint8. data_prep/folder_to_array_record.py writes them.
_LENGTH = struct.Struct("<I")


def pack_record(image: bytes | np.ndarray, label: int, name: str) -> bytes:
    """Returns the record of an encoded image, or of pixels, uint8 [H, W, C]."""
    fields: dict[str, Any] = {"label": label, "name": name}
    if isinstance(image, np.ndarray):
        fields["shape"] = image.shape
        image = image.tobytes()
    header = json.dumps(fields).encode()
    return _LENGTH.pack(len(header)) + header + image


def unpack_record(record: bytes) -> dict[str, Any]:
    """Returns {"image": bytes or uint8 [H, W, C], "label": int, "name": str}.

    Raises:
      ValueError: it is no such record.
    """
    try:
        end = _LENGTH.size + _LENGTH.unpack_from(record)[0]
        header = json.loads(record[_LENGTH.size : end])
        if "shape" in header:
            image = np.frombuffer(record, np.uint8, offset=end).reshape(header["shape"])
            if image.ndim != 3 or image.shape[2] not in (1, 3) or not image.size:
                raise ValueError(image.shape)
        else:
            image = record[end:]
        return {"image": image, "label": int(header["label"]), "name": str(header["name"])}
    except (struct.error, ValueError, LookupError, TypeError, ArithmeticError, RecursionError) as e:
        raise ValueError("not a record of data_prep/folder_to_array_record.py") from e


def array_record_module(name: str) -> Any:
    """Returns a module of the package array-record.

    Raises:
      ValueError: it is not there.
    """
    try:
        return importlib.import_module(f"array_record.python.{name}")
    except ImportError as error:
        raise ValueError(
            "ArrayRecord files need the package array-record, which is not there (it has no "
            'version for Windows): use images as files, config.data.source = "folder" or "list"'
        ) from error


@dataclasses.dataclass(frozen=True, eq=False)
class _InRecords:
    """Records, read by their number; what cannot be read of them is a `BadImage`."""

    records: Any  # a data source of array_record or TFDS: opens files late, pickles
    files: tuple[str, ...]
    ends: np.ndarray  # int [number of files]: records up to the end of each
    first: np.ndarray  # int [number of files]: number in its file of the first record
    class_names: tuple[str, ...]
    max_bad_images: int | None  # for labels; None: one that cannot be read is an error

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """Labels, which are read; -1 where that is not possible."""

        def label(index):
            try:
                return self[index]["label"], ""
            except BadImage as error:
                if self.max_bad_images is None:
                    raise
                return -1, str(error)

        labels, errors = zip(*for_all(label, len(self), "reading labels"))
        if errors := [*filter(None, errors)]:
            said = f"the labels of {len(errors)} records cannot be read, the first: {errors[0]}"
            if len(errors) > self.max_bad_images:
                raise ValueError(f"{said}; config.data.max_bad_images = {self.max_bad_images}")
            log.warning("%s", said)
        return np.array(labels)

    def __len__(self) -> int:
        return len(self.records)

    @property
    def identity(self) -> dict[str, Any]:
        def label(index):
            with contextlib.suppress(BadImage):
                return self[index]["label"]

        indices = evenly(range(len(self)))
        places = [self.place(index, os.path.basename) for index in indices]
        found = [[label] for label in in_threads(label, indices)]
        return {"images": self.of_files, "some": dict(zip(places, found))}

    def place(self, index: int, name: Callable[[str], str] = str) -> str:
        """Returns which record of which file, called `name(path)`, an image is, for messages."""
        file = int(np.searchsorted(self.ends, index, side="right"))
        begin = self.ends[file - 1] if file else 0
        return f"record {index - begin + self.first[file]} of {name(self.files[file])}"

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            return self._item(index, self.records[index])
        except MemoryError:
            raise
        except Exception as error:  # what its C++ and TFDS raise depends on the damage
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise BadImage(f"{self.place(index)}: {reason}") from error


class Records(_InRecords):
    """Images in ArrayRecord files of data_prep/folder_to_array_record.py."""

    @property
    def of_files(self) -> str:
        """A digest of names, sizes and number of records."""
        files = [(Path(file).name, os.path.getsize(file)) for file in self.files]
        return digest([files, len(self)])

    def _item(self, index: int, record: bytes) -> dict[str, Any]:
        return unpack_record(record)


def open_array_record(
    *, root: str, train: str, eval: str, max_bad_images: int | None = None
) -> tuple[Records, Records | None]:
    """Returns the images of ArrayRecord files that `data_prep/folder_to_array_record.py` wrote.

    Args:
      root: their folder, with `classes.txt`.
      train: pattern of the files of training images; "": "train*.array_record".
      eval: pattern of the files of evaluation images; "": "val*.array_record" where there are some.
      max_bad_images: of so many files that cannot be opened at all, cut short say, each counts as
        one unreadable image, and the others are used; that is said. None: they are an error.

    Raises:
      ValueError: no files, a missing shard, no class names, a file that is no ArrayRecord.
    """
    base = _directory(root, "root")
    names = _read_class_names(base)
    if not names:
        raise ValueError(f"{base / CLASSES_FILE}: no such file; it holds one class name per line")
    train_files = _shards(base, train or "train*.array_record")
    eval_files = _shards(base, eval or "val*.array_record")
    if not train_files:
        raise ValueError(f"{base / (train or 'train*.array_record')}: no such files")
    if eval and not eval_files:
        raise ValueError(f"{base / eval}: no such files (config.data.eval)")
    train_records = _records(train_files, names, max_bad_images)
    return train_records, _records(eval_files, names, max_bad_images) if eval_files else None


def _shards(folder: Path, pattern: str) -> tuple[str, ...]:
    """Returns the files of a pattern, sorted.

    Raises:
      ValueError: one is called NAME-00000-of-00004.*, but not all four are there.
    """
    files = tuple(sorted(glob.glob(str(folder / pattern))))
    matches = (re.search(r"^(.*)-\d{5}-of-(\d{5})", file) for file in files)
    for prefix, total in sorted({match.groups() for match in matches if match}):
        found = glob.glob(f"{glob.escape(prefix)}-[0-9][0-9][0-9][0-9][0-9]-of-{total}*")
        numbers = {int(file[len(prefix) + 1 :][:5]) for file in found}
        missing = sorted({*range(int(total))} - numbers)
        if missing:
            raise ValueError(
                f"{prefix}-{missing[0]:05d}-of-{total}.* is missing ({len(missing)} of "
                f"{int(total)} files are)"
            )
    return files


def _records(files: tuple[str, ...], names: tuple[str, ...], max_bad_images: int | None) -> Records:
    reader = array_record_module("array_record_module").ArrayRecordReader
    data_source = array_record_module("array_record_data_source").ArrayRecordDataSource

    def count(file: str) -> tuple[int, str]:
        try:
            opened = reader(file)
            records = opened.num_records()
            opened.close()  # only now it raises
            return records, ""
        except Exception as error:  # what its C++ raises depends on the damage
            # Stands for the file: reading this record will say what is wrong.
            reason = f": {error}" if str(error) else ""
            return 1, f"{file}: not an ArrayRecord file, or cut short{reason}"

    with ThreadPoolExecutor(16) as pool:
        counts, errors = zip(*pool.map(count, files))
    if errors := [*filter(None, errors)]:
        said = errors[0]
        if len(errors) > 1:
            said += f", and {len(errors) - 1} more of the {len(files)} files"
        if max_bad_images is None or len(errors) == len(files):
            raise ValueError(said)
        if len(errors) > max_bad_images:
            raise ValueError(f"{said}; config.data.max_bad_images = {max_bad_images}")
        log.warning("%s; its images are missing", said)
    if not sum(counts):
        raise ValueError(f"{files[0]}, ...: no records")
    parts = [f"{file}[0:{count}]" for file, count in zip(files, counts)]
    return Records(
        data_source(parts), files, np.cumsum(counts), np.zeros(len(files), int), names,
        max_bad_images,
    )  # fmt: skip


# -- TensorFlow Datasets, without TensorFlow -------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Tfds(_InRecords):
    """Images of a split of a TFDS set, still encoded."""

    label: str  # "imagenet2012/train"
    of_files: str  # a digest of names and records

    def _item(self, index: int, record: dict[str, Any]) -> dict[str, Any]:
        name = f"{self.label}[{index}]"
        if "file_name" in record:
            name += f" {record['file_name'].decode(errors='replace')}"
        return {"image": record["image"], "label": int(record["label"]), "name": name}


def open_tfds(
    *, root: str, train: str, eval: str, name: str, max_bad_images: int | None = None
) -> tuple[Tfds, Tfds | None]:
    """Returns the images of a TFDS classification set, prepared in the array_record format.

    Args:
      root: TFDS's data_dir; "": its default, $TFDS_DATA_DIR or ~/tensorflow_datasets.
      train: split, such as "train[:90%]"; "": "train".
      eval: split; "": "validation" or else "test", where there is one.
      name: of the set, such as "imagenet2012" or "NAME/CONFIG:1.0.0".
      max_bad_images: so many labels may be unreadable where all are needed; None: none.

    Raises:
      ValueError: the set is missing or prepared as tfrecord (with the command that prepares it), an
        unknown split, a missing shard, or features without "image" and "label".
    """
    if not name:
        raise ValueError('config.data.name is not set: name a TFDS set, such as "imagenet2012"')
    array_record_module("array_record_data_source")  # TFDS imports it when images are read
    from tensorflow_datasets.core import constants
    from tensorflow_datasets.core.read_only_builder import builder_from_files
    from tensorflow_datasets.core.registered import DatasetNotFoundError

    where = os.path.expanduser(root) or constants.DATA_DIR
    command = f"tfds build {name} --file_format=array_record --data_dir={where}"
    advice = f"prepare it with `{command}` (needs TensorFlow: pip install 'jaxcls[tf]')"
    try:
        builder = builder_from_files(name, data_dir=where)
    except DatasetNotFoundError as error:
        raise ValueError(f"{where}: no prepared TFDS set {name!r}; {advice}") from error
    except Exception as error:  # what TFDS raises depends on the name and on the damage
        raise ValueError(f"{where}: cannot open the TFDS set {name!r}: {error}") from error
    file_format = builder.info.file_format.value
    if file_format != "array_record":
        raise ValueError(
            f"{builder.data_path}: prepared as {file_format}, without random access; {advice}"
        )
    features = builder.info.features
    if not {"image", "label"} <= set(features) or not hasattr(features["label"], "names"):
        raise ValueError(
            f"TFDS set {name!r}: a classification set has the features image and label, "
            f"this one has {', '.join(sorted(features))}"
        )
    splits = builder.info.splits
    eval = eval or next((split for split in ("validation", "test") if split in splits), "")
    train_split = _split(builder, name, train or "train", max_bad_images)
    return train_split, _split(builder, name, eval, max_bad_images) if eval else None


def _split(builder: Any, name: str, split: str, max_bad_images: int | None) -> Tfds:
    from tensorflow_datasets import decode

    try:
        records = builder.as_data_source(split, decoders={"image": decode.SkipDecoding()})
    except ValueError as error:
        known = ", ".join(builder.info.splits)
        raise ValueError(f"TFDS set {name!r}: no split {split!r}, choose from {known}") from error
    parts = builder.info.splits[split].file_instructions
    of_files = digest([[Path(p.filename).name, p.skip, p.examples_in_shard, p.take] for p in parts])
    files = tuple(os.fspath(part.filename) for part in parts)
    if missing := [file for file in files if not os.path.isfile(file)]:
        raise ValueError(f"{missing[0]} is missing ({len(missing)} of {len(files)} files are)")
    return Tfds(
        records=records,
        files=files,
        ends=np.cumsum([part.take for part in parts]),
        first=np.array([part.skip for part in parts]),
        class_names=tuple(builder.info.features["label"].names),
        max_bad_images=max_bad_images,
        label=f"{name}/{split}",
        of_files=of_files,
    )


OPEN = {
    "digits": open_digits,
    "folder": open_folder,
    "list": open_list,
    "array_record": open_array_record,
    "tfds": open_tfds,
    "fake": open_fake,
}
assert OPEN.keys() == TAKES.keys()
