"""Images in files: in a folder for each class. What they are called, their classes too."""

import dataclasses
import errno
import hashlib
import logging
import os
import stat
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxcls.data import stores
from jaxcls.data.access import MAX_CLASSES, digest, digest_of_labels, evenly, in_threads
from jaxcls.data.decode import SUFFIXES, BadImage
from jaxcls.data.labels import NONE, Labelled, one
from jaxcls.data.sampling import by_class
from jaxcls.output import visible

CLASSES_FILE = "classes.txt"  # beside lists and records: one class name per line, in label order

# What systems and programs leave among images, in lower case; besides names that begin with a dot.
LITTER = {
    *("__macosx", "@eadir", "lost+found", "$recycle.bin", "system volume information"),
    *("#recycle", "#snapshot", "__pycache__", "thumbs.db", "ehthumbs.db", "desktop.ini"),
}
# What folders of evaluation images are called, in lower case; no class is.
EVALUATION = ("val", "valid", "validation", "eval", "evaluation", "test", "testing")
MAX_LABEL = 2**31 - 2
MAX_BYTES = 2**30  # of an image's file
SHOWN = 5  # names of each kind in a message

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Files(Labelled):
    """Image files below `root`. With `listed` set, they are lines of that list file."""

    root: str  # a folder, or a URL
    paths: tuple[str, ...]  # relative to root
    labels: np.ndarray  # int32 [N], or marks [N, K]
    class_names: tuple[str, ...]
    listed: str = ""
    lines: np.ndarray | None = None  # int32, line numbers in `listed`

    @property
    def identity(self) -> dict[str, Any]:
        names = [Path(path).as_posix() for path in self.paths]
        classes = evenly([*by_class(self.labels).items()])
        if len(others := np.flatnonzero(~self.has_label)):
            classes.append((NONE, others))
        ends = [images[[0, -1]].tolist() for _, images in classes]
        found = in_threads(lambda images: [*map(self._fingerprint, images)], ends)
        rest = {NONE: "no label", len(self.class_names): "no class"}
        known = [rest.get(label) or f"class {self.class_names[label]!r}" for label, _ in classes]
        return {
            "images": digest(names),
            "labels": digest_of_labels(self.labels),
            "some": dict(zip(known, found)),
        }

    def _fingerprint(self, index: int) -> str | None:
        """Returns a digest of an image's size and first bytes; None if they cannot be read."""
        path = os.path.join(self.root, self.paths[index])
        try:
            if stores.remote(path):
                return digest([stores.size(path), stores.read(path, 4096).hex()])[:8]
            with open(path, "rb", opener=_at_once) as file:
                found = os.fstat(file.fileno())
                if not stat.S_ISREG(found.st_mode):  # a pipe never ends
                    return None
                return digest([found.st_size, file.read(4096).hex()])[:8]
        except (OSError, ValueError):
            return None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path, name = os.path.join(self.root, self.paths[index]), self.name(index)
        return {"image": read_file(path, name), "label": one(self.labels, index), "name": name}

    def path(self, index: int) -> str:
        """Returns where an image is, without control characters."""
        return printable(os.path.join(self.root, self.paths[index]))

    def name(self, index: int) -> str:
        """Returns what messages call an image: where it is, and where that is written."""
        path = self.path(index)
        return f"{path} ({self.listed}:{self.lines[index]})" if self.listed else path


# Every image would fail: too many open files, no memory.
NOT_THE_IMAGE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
# What a network or a busy system may say once, and not again.
MAY_PASS = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE, errno.EAGAIN)
DELAYS = (0.25, 0.5, 1, 2)  # seconds until an image is tried again


def read_file(path: str, name: str) -> bytes:
    """Returns what stands in an image's file, or at its URL; `name` is what messages call it.

    Raises:
      BadImage: it is not there, no file, or cannot be read.
      ValueError: no file can be read, as there are too many open, or no memory.
    """
    if "\0" in path:
        raise BadImage(f"{name}: no such file")
    if stores.remote(path):
        return _from_store(path, name)
    for delay in (*DELAYS, None):
        try:
            with open(path, "rb", buffering=0, opener=_at_once) as file:
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


def _from_store(url: str, name: str) -> bytes:
    try:
        image = stores.read(url, MAX_BYTES + 1)
    except stores.MISSING as error:
        raise BadImage(f"{name}: no such file") from error
    except ValueError as error:
        raise BadImage(f"{name}: cannot read it: {error}") from error
    if len(image) > MAX_BYTES:
        raise BadImage(f"{name}: more than {MAX_BYTES:,} bytes are no image")
    return image


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
      root: the folder, also one in a store: gs://BUCKET/FOLDER.
      train: sub-folder of training images; "": "train", and `root` itself where that is missing.
      eval: sub-folder of evaluation images; "": "val" where there is one.
      eval_fraction: without an evaluation folder, this share of each class is held out (of two
        images or more at least one, never all). Which ones depends on their names alone. None: 0.2
        without an evaluation folder.

    Raises:
      ValueError: a missing folder, no classes, an empty class, a class in `eval` only, nothing to
        hold out.
    """
    base = directory(root, "root", anywhere=True)
    train_folder, eval_folder = _split_folders(base, train, eval)
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
        train_folder = directory(base / (train or "train"), "train", anywhere=True)
        if eval or (base / "val").is_dir():
            return train_folder, directory(base / (eval or "val"), "eval", anywhere=True)
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


def directory(
    path: str | Path | stores.Place, key: str, *, anywhere: bool = False
) -> Path | stores.Place:
    """Returns a folder that is there; of a store, where that is possible (`anywhere`).

    Raises:
      ValueError: it is not, or cannot be looked at.
    """
    if not str(path):
        raise ValueError(f"config.data.{key} is not set: name a folder")
    if stores.remote(path):
        if not anywhere:
            raise ValueError(
                f"{path}: such images are read from folders of this machine: copy or mount it, and "
                f"name that folder (config.data.{key})"
            )
        place = stores.Place(str(path).rstrip("/"))
        if not place.is_dir():
            raise ValueError(f"{path}: no such bucket or folder (config.data.{key})")
        return place
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


def _entries(folder: str | Path | stores.Place) -> list[os.DirEntry | stores.Entry]:
    """Returns what is in a folder, sorted, without `LITTER`."""
    if stores.remote(folder):
        found = stores.entries(str(folder))
        return sorted((e for e in found if not _is_litter(e.name)), key=lambda e: e.name)
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
    listed = {}
    if stores.remote(folder):  # each is a request, which takes its time
        listed = dict(zip(classes, in_threads(lambda n: stores.below(f"{folder}/{n}"), classes)))
    for name in classes:
        before = left.total()
        if name in listed:
            images[name] = [f"{name}/{path}" for path in _of_images(listed[name], left)]
        else:
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
                    left.total(), some(kinds))  # fmt: skip
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


def _of_images(paths: Sequence[str], left: Counter) -> Iterator[str]:
    """Yields the paths of images, as `_walk` does, of all below a folder in a store."""
    for path in paths:
        if any(map(_is_litter, path.split("/"))):
            continue
        if path.lower().endswith(SUFFIXES):
            yield path
        else:
            left[os.path.splitext(path)[1].lower()] += 1


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


def all_below(folder: Path | stores.Place) -> Files:
    """Returns all images below a folder, without a label.

    Raises:
      ValueError: there are none.
    """
    if stores.remote(folder):
        paths = [*_of_images(stores.below(str(folder)), Counter())]
    else:
        found = _walk(str(folder), Counter(), frozenset())
        paths = sorted(os.path.relpath(path, folder) for path in found)
    if not paths:
        raise ValueError(f"{folder} has no images (config.data.unlabelled)")
    return Files(str(folder), tuple(paths), np.full(len(paths), NONE, np.int32), ())


def names_of_classes(
    base: Path, class_names: Sequence[str], num_classes: int, without: str
) -> tuple[str, ...]:
    """Returns `config.data.class_names`, or the lines of classes.txt; () where there is neither.

    Args:
      base: folder of classes.txt.
      class_names, num_classes: of `config.data`.
      without: what the number of classes is where `num_classes` is 0.

    Raises:
      ValueError: they are none, or not as many as `num_classes`.
    """
    if not 0 <= num_classes <= MAX_CLASSES:
        raise ValueError(
            f"config.data.num_classes = {num_classes}: write a number up to {MAX_CLASSES}, or 0 "
            f"for {without}"
        )
    names = given_class_names(class_names) or read_class_names(base)
    if names and num_classes and len(names) != num_classes:
        where = "config.data.class_names" if class_names else base / CLASSES_FILE
        raise ValueError(
            f"{where} names {len(names)} classes, config.data.num_classes = {num_classes}"
        )
    return names


def given_class_names(names: Sequence[str]) -> tuple[str, ...]:
    """Returns `config.data.class_names`.

    Raises:
      ValueError: they are no names, or one is there twice.
    """
    if not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"config.data.class_names = {names!r}: write texts, one for each class")
    if len(names) == 1:
        raise ValueError(
            f"config.data.class_names = {names!r} names one class: write all, ('cat', 'dog', ...)"
        )
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"config.data.class_names has {twice[0]!r} twice")
    return tuple(names)


def read_class_names(folder: Path) -> tuple[str, ...]:
    """Returns the lines of `folder/classes.txt`, or () where there is none."""
    path = folder / CLASSES_FILE
    if not path.is_file():
        return ()
    names = tuple(read_text(path).splitlines())
    if not names or not all(names):
        raise ValueError(f"{path}: write one class name in each line, and no empty line")
    if len(names) > MAX_CLASSES:
        raise ValueError(f"{path} has {len(names)} lines, more than {MAX_CLASSES}")
    return names


def read_text(path: Path) -> str:
    """Returns the text of a file in UTF-8, its line ends as \\n; other bytes as in file names."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot read it: {error.strerror or error}") from error
    if b"\0" in data:
        raise ValueError(f"{path} is not a text file in UTF-8: there are zero bytes in it")
    text = data.decode("utf-8-sig", errors="surrogateescape")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def quoted(text: str) -> str:
    """Returns a part of a file as a message quotes it."""
    return repr(printable(text if len(text) <= 80 else text[:77] + "..."))


def some(names: Sequence[str]) -> str:
    """Returns the first names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def printable(name: str) -> str:
    """Returns a file name that can be printed in a line and stored: other characters as \\xff."""
    text = os.fsencode(name).decode(errors="backslashreplace")
    return visible(text)
