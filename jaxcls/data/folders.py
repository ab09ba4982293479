"""Images in files: in a folder for each class, or named by a list."""

import dataclasses
import errno
import hashlib
import logging
import os
import re
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxcls.data.access import MAX_CLASSES, digest, digest_of_labels, evenly, in_threads
from jaxcls.data.decode import SUFFIXES, BadImage
from jaxcls.data.labels import NONE, labelled, marks_of, one
from jaxcls.data.sampling import by_class

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
CONTROL = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029]")

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Files:
    """Image files below `root`. With `listed` set, they are lines of that list file."""

    root: str
    paths: tuple[str, ...]  # relative to root
    labels: np.ndarray  # int32 [N], or marks [N, K]
    class_names: tuple[str, ...]
    listed: str = ""
    lines: np.ndarray | None = None  # int32, line numbers in `listed`

    @property
    def marks(self) -> int:
        return marks_of(self.labels)

    @property
    def has_label(self) -> np.ndarray:
        return labelled(self.labels)

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
        try:
            with Path(self.root, self.paths[index]).open("rb") as file:
                return digest([os.fstat(file.fileno()).st_size, file.read(4096).hex()])[:8]
        except OSError:
            return None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path, name = os.path.join(self.root, self.paths[index]), self.name(index)
        return {"image": _read(path, name), "label": one(self.labels, index), "name": name}

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
    if "\0" in path:
        raise BadImage(f"{name}: no such file")
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
    train_folder, eval_folder = _split_folders(directory(root, "root"), train, eval)
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
        train_folder = directory(base / (train or "train"), "train")
        if eval or (base / "val").is_dir():
            return train_folder, directory(base / (eval or "val"), "eval")
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


def directory(path: str | Path, key: str) -> Path:
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
    multi_label: bool,
    class_names: Sequence[str],
    allowed: int | None = None,
    training: bool = True,
    needs_labels: str = "supervised",
    other_names: Callable[[], tuple[str, ...]] = tuple,
) -> tuple[Files, Files | None]:
    """Returns the images of PaddleClas's list files, a line of which is `relative/path label`.

    Class names are those of `root/classes.txt` where it exists, otherwise the labels themselves.
    Paths may be absolute, and have Windows' backslashes. All are looked for right away. An image
    without a label has the label -1, an empty one, or none at all: the line is its path.

    Args:
      root: the folder that paths and list files are relative to.
      train: list of training images; "": "train_list.txt".
      eval: list of evaluation images; "": "val_list.txt" where there is one.
      delimiter: between path and label; the last one in the line counts.
      num_classes: 0: largest label of `train` + 1, or as many as there are names or marks.
      multi_label: a label is a mark for each class, 0 or 1, with commas between: `path 0,1,1`.
        Where the delimiter is a space, a tab is one too.
      class_names: in place of the lines of `root/classes.txt`.
      allowed: so many of a list may be missing, which is said. None: none.
      training: whether to look for training images too.
      needs_labels: name of the loss that learns from labels alone; "": some may be missing.
      other_names: returns class names where no image has a label and nothing names the classes.

    Raises:
      ValueError: a missing list; a line (named) whose label is missing, not a number, not below the
        number of classes or far above the number of images; missing images (the first one named);
        no image with a label and no class names.
    """
    base = directory(root, "root")
    delimiter = delimiter.replace("\\t", "\t")  # as it is typed where a shell takes it literally
    if not delimiter:
        raise ValueError("config.data.delimiter is empty: write what is between path and label")
    names = names_of_classes(base, class_names, num_classes, "the largest label + 1")
    count = num_classes or len(names)
    train_list, eval_list = base / (train or "train_list.txt"), base / (eval or "val_list.txt")
    how = {"delimiter": delimiter, "marks": multi_label, "needs_labels": bool(needs_labels)}
    rows = _read_list(train_list, "train", count, **how)
    labels = rows[1][labelled(rows[1])]
    if not count and not len(labels) and (names := other_names()):
        count = len(names)
    if not count and not len(labels):
        raise ValueError(
            f"{train_list}: no image has a label, and nothing names the classes: write a name in "
            f"each line of {base / CLASSES_FILE}, or config.data.class_names"
        )
    count = count or marks_of(rows[1]) or _count_classes(train_list, *rows[1:])
    if not names and not multi_label and len(labels) and (least := int(labels.min())):
        log.warning("%s: the labels begin with %d, and classes are counted from 0: those before it "
                    "have no training images", train_list, least)  # fmt: skip
    names = names or tuple(map(str, range(count)))

    def files(
        listed: Path, rows: tuple[tuple[str, ...], np.ndarray, np.ndarray], look: bool = True
    ) -> Files:
        paths, labels, lines = rows
        found = Files(str(base), paths, labels, names, str(listed), lines)
        return looked_for(found, allowed) if look else found

    if not eval and not eval_list.is_file():
        return files(train_list, rows, training), None
    eval_rows = _read_list(eval_list, "eval", count, **how)
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


def looked_for(files: Files, max_bad_images: int | None, root: str = "config.data.root") -> Files:
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
        raise ValueError(f"{said}: paths are relative to {root} = {files.root}")
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
    names = dict(zip(unique, in_threads(lambda f: _file_names(os.path.join(root, f)), unique)))
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
    except (OSError, ValueError):  # ValueError: a NUL in it
        return set()


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
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"config.data.class_names has {twice[0]!r} twice")
    return tuple(names)


def open_unlabelled(path: str, *, root: str, delimiter: str, allowed: int | None) -> Files:
    """Returns images without a label, of `config.data.unlabelled`.

    Args:
      path: a folder: all images below it; or a list, a line of which is a path relative to the
        list's folder. What follows the path, a label perhaps, is not read. Relative to `root`.
      root, delimiter: of `config.data`.
      allowed: so many of a list may be missing; None: none.

    Raises:
      ValueError: neither is there, or there are no images.
    """
    place = Path(root).expanduser() / Path(path).expanduser()
    if not place.is_file():
        folder = directory(place, "unlabelled")
        left = Counter()
        found = _walk(str(folder), left, frozenset())
        paths = sorted(os.path.relpath(image, folder) for image in found)
        if not paths:
            raise ValueError(f"{folder} has no images (config.data.unlabelled)")
        return Files(str(folder), tuple(paths), np.full(len(paths), NONE, np.int32), ())
    endings = "|".join(map(re.escape, SUFFIXES))
    image = re.compile(rf"(.+({endings}))({re.escape(delimiter)}|\s|$)", re.IGNORECASE)
    paths, lines = [], []
    for number, line in enumerate(_read_text(place).split("\n"), start=1):
        if line := line.rstrip():
            found = image.match(line)
            paths.append(found[1] if found else line.rpartition(delimiter)[0].rstrip() or line)
            lines.append(number)
    if not paths:
        raise ValueError(f"{place}: the list is empty")
    none, lines = np.full(len(paths), NONE, np.int32), np.array(lines, np.int32)
    found = Files(str(place.parent), tuple(paths), none, (), str(place), lines)
    return looked_for(found, allowed, "the folder of config.data.unlabelled")


def read_class_names(folder: Path) -> tuple[str, ...]:
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


MARKS = re.compile(r"\s*[+-]?[0-9]+(\s*,\s*[+-]?[0-9]+)+\s*")


def _read_list(
    path: Path, key: str, num_classes: int, *, delimiter: str, marks: bool, needs_labels: bool
) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Returns paths, labels and line numbers. num_classes = 0: labels have no upper limit."""
    if not path.is_file():
        raise ValueError(f"{path}: no such list file (config.data.{key}, relative to root)")
    paths, labels, lines = [], [], []
    of_label = _marks if marks else _number
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        of_line = "\t" if marks and delimiter == " " and "\t" in line else delimiter
        image, found, label = line.rstrip().rpartition(of_line)
        if not needs_labels and line.rstrip().lower().endswith(SUFFIXES):
            image, found, label = line.rstrip(), delimiter, ""
        elif marks and found:  # there may be spaces between marks
            match = re.fullmatch(rf"(.+?){re.escape(of_line)}({MARKS.pattern})", line)
            image, label = match.groups()[:2] if match else (image, label)
        if not found or not image.strip():
            other = re.search(r"([,;:|\t ])\s*[0-9]+\s*$", line)
            hint = f"; it may be {other[1]!r}" if other else ""
            raise ValueError(
                f"{path}:{number}: no label after the delimiter {delimiter!r} in {quoted(line)} "
                f"(config.data.delimiter{hint})"
            )
        if not needs_labels and label.strip() in ("", "-1"):
            labels.append(NONE)
        else:
            labels.append(of_label(label, f"{path}:{number}", num_classes))
            if marks:
                num_classes = num_classes or len(labels[-1])
        paths.append(image.rstrip())
        lines.append(number)
    if not paths:
        raise ValueError(f"{path}: the list is empty")
    if marks:
        out = np.full((len(labels), num_classes), NONE, np.int8)
        for row, label in zip(out, labels):
            row[:] = label if label is NONE else np.frombuffer(label, np.int8)
    else:
        out = np.array(labels, np.int32)
    return tuple(paths), out, np.array(lines, np.int32)


def _number(label: str, where: str, num_classes: int) -> int:
    """Returns the number of a class, as a list has it."""
    # int() refuses numbers of more than 4,300 digits
    if not re.fullmatch(r"\s*[+-]?[0-9]{1,100}\s*", label):
        several = "; marks of several classes need config.data.multi_label = True"
        raise ValueError(
            f"{where}: the label {quoted(label)} is not a whole number: number the "
            f"classes from 0, their names in the lines of {CLASSES_FILE}"
            + (several if MARKS.fullmatch(label) else "")
        )
    value = int(label)
    limit = num_classes or MAX_LABEL + 1
    if not 0 <= value < limit:
        raise ValueError(
            f"{where}: the label {value} is out of range: there are "
            f"{num_classes} classes, 0 to {num_classes - 1}"
            if num_classes
            else f"{where}: the label {value} is out of range: labels begin with 0"
            f" and go up to {MAX_LABEL}"
        )
    return value


def _marks(label: str, where: str, num_classes: int) -> bytes:
    """Returns the marks of the classes, as a list has them."""
    marks = [mark.strip() for mark in label.split(",")]
    if {*marks} - {"0", "1"}:
        raise ValueError(
            f"{where}: the label {quoted(label)} is no marks: write 0 or 1 for each class, with "
            "commas between (config.data.multi_label)"
        )
    if num_classes and len(marks) != num_classes:
        raise ValueError(f"{where}: {len(marks)} marks, there are {num_classes} classes")
    return bytes(map(int, marks))


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
    return CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)
