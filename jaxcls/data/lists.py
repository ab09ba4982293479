"""Lists of images in files, as PaddleClas's: a path and a label in each line."""

import dataclasses
import logging
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from jaxcls.data import stores
from jaxcls.data.access import in_threads
from jaxcls.data.decode import SUFFIXES
from jaxcls.data.folders import (
    CLASSES_FILE,
    MAX_LABEL,
    Files,
    all_below,
    directory,
    names_of_classes,
    quoted,
    read_text,
)
from jaxcls.data.labels import NONE, labelled, marks_of

log = logging.getLogger(__name__)


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
      root: the folder that paths and list files are relative to, also gs://BUCKET/FOLDER.
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
    base = directory(root, "root", anywhere=True)
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
        rows = _read_list(train_list, "train", count, **how)  # marks are as many now
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
    is_file = (lambda path: stores.Place(path).is_file()) if stores.remote(root) else os.path.isfile
    folders = [os.path.dirname(path) for path in paths]
    unique = sorted({*folders})
    names = dict(zip(unique, in_threads(lambda f: _file_names(os.path.join(root, f)), unique)))
    # Of what is not in a list the system has the last word: it may not tell upper from lower case,
    # or keep a folder from being listed.
    return [
        i
        for i, (folder, path) in enumerate(zip(folders, paths))
        if os.path.basename(path) not in names[folder] and not is_file(os.path.join(root, path))
    ]


def _file_names(folder: str) -> set[str]:
    try:
        if stores.remote(folder):
            return {e.name for e in stores.entries(folder) if e.is_file()}
        with os.scandir(folder) as entries:
            return {e.name for e in entries if not e.is_symlink() and e.is_file()}
    except (OSError, ValueError):  # ValueError: a NUL in it
        return set()


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
    if stores.remote(root) or stores.remote(path):
        place = stores.Place(root) / path
    else:
        place = Path(root).expanduser() / Path(path).expanduser()
    if not place.is_file():
        return all_below(directory(place, "unlabelled", anywhere=True))
    path_of, paths, lines = unlabelled_path(delimiter), [], []
    for number, line in enumerate(read_text(place).split("\n"), start=1):
        if line := line.rstrip():
            paths.append(path_of(line))
            lines.append(number)
    if not paths:
        raise ValueError(f"{place}: the list is empty")
    none, lines = np.full(len(paths), NONE, np.int32), np.array(lines, np.int32)
    found = Files(str(place.parent), tuple(paths), none, (), str(place), lines)
    return looked_for(found, allowed, "the folder of config.data.unlabelled")


def unlabelled_path(delimiter: str) -> Callable[[str], str]:
    """Returns f(line of a list) -> the path in it, without what follows, a label perhaps."""
    endings = "|".join(map(re.escape, SUFFIXES))
    image = re.compile(rf"(.+({endings}))({re.escape(delimiter)}|\s|$)", re.IGNORECASE)

    def path(line: str) -> str:
        found = image.match(line)
        return found[1] if found else line.rpartition(delimiter)[0].rstrip() or line

    return path


MARKS = re.compile(r"\s*[+-]?[0-9]+(\s*,\s*[+-]?[0-9]+)+\s*")


def _read_list(
    path: Path, key: str, num_classes: int, *, delimiter: str, marks: bool, needs_labels: bool
) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Returns paths, labels and line numbers. num_classes = 0: labels have no upper limit."""
    if not path.is_file():
        raise ValueError(f"{path}: no such list file (config.data.{key}, relative to root)")
    paths, labels, lines = [], [], []
    of_label = _marks if marks else _number
    for number, line in enumerate(read_text(path).split("\n"), start=1):
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
