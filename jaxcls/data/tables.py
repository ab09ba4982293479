"""Images that a table tells of: CSV and Parquet files, and folders of Hugging Face's datasets.

`datasets` itself is not needed: its files are Arrow and Parquet, read by data/columns.py, which is
imported where a table is opened.
"""

import contextlib
import dataclasses
import functools
import glob
import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxcls.data import lists
from jaxcls.data.access import Source
from jaxcls.data.folders import (
    CLASSES_FILE,
    EVALUATION,
    Files,
    directory,
    names_of_classes,
    some,
)
from jaxcls.data.labels import NONE, marks_of
from jaxcls.data.records import shards

if TYPE_CHECKING:
    from jaxcls.data.columns import Sheet
    from jaxcls.data.table_labels import Known

TEXTS = {".csv": ",", ".tsv": "\t", ".jsonl": ""}  # delimiters
KINDS = (*TEXTS, ".parquet", ".arrow")
TRAINING = ("train", "training")  # what a column of splits calls training rows
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")  # of an imagefolder

log = logging.getLogger(__name__)


def open_table(
    *,
    root: str,
    train: str,
    eval: str,
    delimiter: str,
    image_column: str,
    label_columns: Sequence[str],
    split_column: str,
    num_classes: int,
    multi_label: bool,
    class_names: Sequence[str],
    allowed: int | None = None,
    training: bool = True,
    needs_labels: str = "supervised",
    other_names: Callable[[], tuple[str, ...]] = tuple,
) -> tuple[Source, Source | None]:
    """Returns the images of CSV, TSV, JSON-lines, Parquet or Arrow files.

    A row is an image. It is a path, relative to `root`, or in a Parquet or Arrow file its bytes, or
    both ({"bytes", "path"}, as Hugging Face's datasets have them).

    Args:
      root: the folder that files and paths are relative to.
      train: file of training images, or a pattern of several; "": "train.csv", "train.tsv", ...,
        whichever is there, or "train*.parquet".
      eval: likewise, "val..."; "": where there is one. With `split_column`, which of its texts
        evaluates; "": "val", "valid", "validation", "eval", "evaluation", "test", "testing",
        whichever is there first.
      delimiter: of a CSV; " " is what its name says: a comma, in a .tsv a tab.
      image_column: "": "image", "path", "file_name", ..., whichever is there.
      label_columns: one, of names or numbers of classes; or one for each class, of its marks; ():
        "label", "class", ..., whichever is there.
      split_column: column that tells "train" from others; "": there is none.
      num_classes, multi_label, class_names: see configs/base.py and `columns.labels_of`.
      allowed, training, needs_labels, other_names: as `lists.open_list`.

    Raises:
      ValueError: a missing file or column, a label that is missing or none, missing images, ...
    """
    base = directory(root, "root")
    known = _known(base, class_names, num_classes, needs_labels)
    how = _How(image_column, label_columns, multi_label, allowed, other_names)
    files = _found(base, train or "train", "train", bool(train))
    if delimiter != " " and not TEXTS.get(files[0].suffix.lower()):
        raise ValueError(
            f"config.data.delimiter = {delimiter!r}: {files[0]} has none: leave it out"
        )
    sheet = _sheet(files, base, delimiter)
    if split_column:
        rows, evaluated = _split(sheet, split_column, eval)
    else:
        rows, evaluated = np.arange(sheet.count), None
    opened, known = _images(sheet, rows, how, known, look=training)
    if split_column:
        return opened, None if evaluated is None else _images(sheet, evaluated, how, known)[0]
    files = _found(base, eval or "val", "eval", bool(eval))
    if not files:
        return opened, None
    sheet = _sheet(files, base, delimiter)
    return opened, _images(sheet, np.arange(sheet.count), how, known)[0]


def open_huggingface(
    *,
    root: str,
    train: str,
    eval: str,
    image_column: str,
    label_columns: Sequence[str],
    num_classes: int,
    multi_label: bool,
    class_names: Sequence[str],
    allowed: int | None = None,
    training: bool = True,
    needs_labels: str = "supervised",
    other_names: Callable[[], tuple[str, ...]] = tuple,
) -> tuple[Source, Source | None]:
    """Returns the images of a folder of Hugging Face's datasets.

    That is what `save_to_disk` wrote, a clone from the hub with Parquet files in "data" or beside
    it, its cache of a set (.arrow files), or images with a metadata.csv, .jsonl or .parquet in the
    folder of each split. Images, classes and their names are those of its features, where these say
    so: the first column of images, and the first of classes.

    Args:
      root: the folder.
      train: split of training images; "": "train".
      eval: split of evaluation images; "": "validation", "val", "valid", "dev" or "test", whichever
        is there first.
      image_column, label_columns, ..., class_names: as `open_table`; "", (): by the features, or
        else as there.
      allowed, training, needs_labels, other_names: as `lists.open_list`.

    Raises:
      ValueError: no such folder or split, and as `open_table`.
    """
    base = directory(root, "root")
    known = _known(base, class_names, num_classes, needs_labels)
    how = _How(image_column, label_columns, multi_label, allowed, other_names)
    found = _splits(base)
    if not found:
        raise ValueError(
            f"{base}: no folder of Hugging Face's datasets: there is no state.json, "
            "dataset_dict.json, Parquet or Arrow file, and no metadata.csv beside the images (of "
            'images in a folder for each class: config.data.source = "folder")'
        )
    train = train or "train"
    if train not in found and len(found) == 1 and "" in found:  # one split, which has no name
        found = {train: found[""]}
    for key, split in (("train", train), ("eval", eval)):
        if split and split not in found:
            raise ValueError(
                f"{base}: no split {split!r}, there are {', '.join(found)} (config.data.{key})"
            )
    names = (name for name in ("validation", "val", "valid", "dev", "test") if name in found)
    eval = eval or next(names, "")
    files = found[train]()
    sheet = _sheet(files, files[0].parent, " ")
    opened, known = _images(sheet, np.arange(sheet.count), how, known, look=training)
    if not eval:
        return opened, None
    files = found[eval]()
    sheet = _sheet(files, files[0].parent, " ")
    return opened, _images(sheet, np.arange(sheet.count), how, known)[0]


def open_unlabelled(
    path: str, *, root: str, delimiter: str, image_column: str, allowed: int | None
) -> Source:
    """Returns images without a label, of `config.data.unlabelled`.

    Args:
      path: a table, or a pattern of several, of whose columns only that of the images is read;
        paths are relative to its folder. Or what `lists.open_unlabelled` takes.
      root, delimiter, image_column, allowed: as `open_table`.

    Raises:
      ValueError: as `open_table`.
    """
    place = Path(root).expanduser() / Path(path).expanduser()
    if place.suffix.lower() not in KINDS:
        return lists.open_unlabelled(path, root=root, delimiter=delimiter, allowed=allowed)
    base = place.parent
    sheet = _sheet(_found(base, place.name, "unlabelled", True), base, delimiter)
    rows = np.arange(sheet.count)
    with _told(sheet):
        none = np.full(len(rows), NONE, np.int32)
        return _source(sheet, rows, _image_column(sheet, image_column), none, (), allowed)


@dataclasses.dataclass(frozen=True)
class _How:
    """Which columns are read, and how: arguments of `open_table`."""

    image_column: str
    label_columns: Sequence[str]
    multi_label: bool
    allowed: int | None
    other_names: Callable[[], tuple[str, ...]]

    def __post_init__(self):
        if not all(isinstance(name, str) for name in self.label_columns):
            raise ValueError(
                f"config.data.label_columns = {self.label_columns!r}: write names of columns"
            )


def _known(base: Path, class_names: Sequence[str], num_classes: int, needs_labels: str) -> "Known":
    """Returns what is known of the classes before any label is read."""
    from jaxcls.data import table_labels

    names = names_of_classes(base, class_names, num_classes, "as many as the labels have")
    return table_labels.Known(names, num_classes, bool(needs_labels))


# -- Which files -----------------------------------------------------------------------------------


def _found(base: Path, name: str, key: str, given: bool) -> list[Path]:
    """Returns the files of a name or pattern; of a usual one none, if the evaluation has none."""
    if given:
        if (base / name).is_dir():
            raise ValueError(f"{base / name} is a folder: name its files (config.data.{key})")
        files = [Path(file) for file in shards(base, name)]
        if not all(file.is_file() for file in files) or not files:  # a pipe would never end
            raise ValueError(f"{base / name}: no such file (config.data.{key}, relative to root)")
    else:
        files = [base / f"{name}{kind}" for kind in KINDS if (base / f"{name}{kind}").is_file()]
        if len(files) > 1:
            raise ValueError(
                f"{base} has {' and '.join(file.name for file in files)}: name one in "
                f"config.data.{key}"
            )
        files = files or [Path(file) for file in shards(base, f"{name}*.parquet")]
        if not files and key == "train":
            raise ValueError(
                f"{base}: no train.csv, .tsv, .jsonl, .parquet or .arrow: name the file in "
                "config.data.train"
            )
    kinds = {file.suffix.lower() for file in files}
    if kinds - {*KINDS} or (len(kinds) > 1):
        raise ValueError(
            f"{files[0]}: a table is a file of one of {', '.join(KINDS)} (config.data.{key})"
        )
    if kinds & TEXTS.keys() and len(files) > 1:
        raise ValueError(f"{files[0]}, {files[1]}: name a single text file in config.data.{key}")
    return files


def _sheet(files: Sequence[Path], base: Path, delimiter: str) -> "Sheet":
    from jaxcls.data import columns

    kind = files[0].suffix.lower()
    if kind not in TEXTS:
        name = str(files[0]) if len(files) == 1 else f"{files[0]}, ..."
        return columns.binary([str(file) for file in files], name=name, base=base)
    delimiter = TEXTS[kind] if delimiter == " " else delimiter.replace("\\t", "\t")
    if kind != ".jsonl" and len(delimiter) != 1:
        raise ValueError(f"config.data.delimiter = {delimiter!r}: write one character")
    return columns.text(files[0], delimiter, base)


def _split(sheet: "Sheet", column: str, eval: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns the rows of training, and those of evaluation or None."""
    from jaxcls.data import columns

    name = sheet.chosen("split_column", column, ())
    if not columns.is_text(kind := sheet.kind(name)):
        raise ValueError(f"{sheet.name}: the column {name!r} holds {columns.shown(kind)}, no names")
    there, splits = columns.texts_of(sheet.column(name))
    plain = {split.lower(): split for split in there}
    ours = next((plain[name] for name in TRAINING if name in plain), None)
    if ours is None:
        raise ValueError(
            f"{sheet.name}: the column {name!r} has no 'train', but {some(sorted(there))} "
            "(config.data.split_column)"
        )
    if eval and eval not in there:
        raise ValueError(
            f"{sheet.name}: the column {name!r} has no {eval!r}, but {some(sorted(there))} "
            "(config.data.eval)"
        )
    theirs = eval or next((plain[name] for name in EVALUATION if name in plain), "")
    used = [there.index(split) for split in (ours, theirs) if split]
    left = int((~np.isin(splits, used)).sum())
    if left:
        log.warning("%s: %d rows are neither %s nor %s in the column %s, and left out", sheet.name,
                    left, ours, theirs or "of an evaluation", name)  # fmt: skip
    training, *evaluation = (np.flatnonzero(splits == number) for number in used)
    return training, evaluation[0] if evaluation else None


def _splits(base: Path) -> dict[str, Callable[[], list[Path]]]:
    """Returns {split: what returns its files} of a folder of Hugging Face's datasets."""
    described = base / "dataset_dict.json"
    if described.is_file():
        splits = _json(described).get("splits")
        if not isinstance(splits, list) or not all(isinstance(name, str) for name in splits):
            raise ValueError(f"{described}: it does not name the splits")
        return {split: functools.partial(_state, base / split) for split in splits}
    if (base / "state.json").is_file():
        return {"": functools.partial(_state, base)}
    found = _shards_of(base / "data") or _shards_of(base) or _metadata(base)
    return {split: functools.partial(_whole, files) for split, files in found.items()}


def _whole(files: list[Path]) -> list[Path]:
    """Returns the files of a split, of which no shard is missing."""
    for file in files:
        shards(file.parent, glob.escape(file.name))
    return files


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: cannot read it: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: it holds no object of JSON")
    return found


def _state(folder: Path) -> list[Path]:
    """Returns the Arrow files of a split that `save_to_disk` wrote."""
    files = _json(folder / "state.json").get("_data_files")
    try:
        paths = [folder / file["filename"] for file in files]
    except (TypeError, LookupError) as error:
        raise ValueError(f"{folder / 'state.json'}: it does not name the data files") from error
    if missing := [path for path in paths if not path.is_file()]:
        raise ValueError(f"{missing[0]} is missing ({len(missing)} of {len(paths)} files are)")
    if not paths:
        raise ValueError(f"{folder / 'state.json'}: there are no data files")
    return paths


SHARD = re.compile(r"-\d{5}-of-\d{5}.*|-\d+$")


def _shards_of(folder: Path) -> dict[str, list[Path]]:
    """Returns {split: files} of SPLIT-00000-of-00004.parquet, NAME-SPLIT.arrow, SPLIT/*.parquet."""
    found: dict[str, list[Path]] = {}
    for kind in ("parquet", "arrow"):
        for file in (*sorted(folder.glob(f"*.{kind}")), *sorted(folder.glob(f"*/*.{kind}"))):
            if file.name in METADATA or file.name.startswith("cache-"):
                continue
            name = SHARD.sub("", file.stem).rpartition("-")[2]
            if file.parent != folder and "-of-" not in file.stem:
                name = file.parent.name
            found.setdefault(name, []).append(file)
        if found:
            break
    for name, files in found.items():
        if len(folders := sorted({file.parent for file in files})) > 1:
            raise ValueError(
                f"{folder}: the split {name!r} is in {' and in '.join(map(str, folders[:2]))}: "
                "name one of these folders in config.data.root"
            )
    return found


def _metadata(base: Path) -> dict[str, list[Path]]:
    """Returns {split: its metadata file} of folders of images."""
    found = {}
    for folder in (base, *sorted(path for path in base.iterdir() if path.is_dir())):
        for name in METADATA:
            if (folder / name).is_file():
                found["" if folder == base else folder.name] = [folder / name]
    return {split: files for split, files in found.items() if split} or found


# -- Images and labels -----------------------------------------------------------------------------


@contextlib.contextmanager
def _told(sheet: "Sheet") -> Iterator[None]:
    """Makes errors of Arrow, on damaged data, those of a user."""
    from jaxcls.data import columns

    try:
        yield
    except columns.Damage as error:
        raise ValueError(f"{sheet.name}: {columns.reason(error)}") from error


def _images(
    sheet: "Sheet", rows: np.ndarray, how: _How, known: "Known", look: bool = True
) -> tuple[Source, "Known"]:
    """Returns the images of some rows of a table, and what is known of the classes then."""
    from jaxcls.data import table_labels

    with _told(sheet):
        image = _image_column(sheet, how.image_column)
        of_classes = [n for n, kind in sheet.features.items() if table_labels.class_label(kind)]
        usual = of_classes or table_labels.USUAL
        columns = [sheet.chosen("label_columns", name, ()) for name in how.label_columns]
        if not columns and (known.needs_labels or any(name in sheet.names for name in usual)):
            columns = [sheet.chosen("label_columns", "", usual)]
        several = how.multi_label
        labels, known = table_labels.labels_of(sheet, columns, rows, known, several=several)
        known = dataclasses.replace(known, names=known.names or how.other_names())
        if not known.names:
            raise ValueError(
                f"{sheet.name}: no image has a label, and nothing names the classes: write their "
                f"names in {CLASSES_FILE}, a line each, or config.data.class_names"
            )
        if how.multi_label and marks_of(labels) != len(known.names):  # none has a label
            labels = np.full((len(rows), len(known.names)), NONE, np.int8)
        return _source(sheet, rows, image, labels, known.names, how.allowed, look), known


def _image_column(sheet: "Sheet", given: str) -> str:
    from jaxcls.data import columns

    kinds = sheet.features.items()
    of_images = [name for name, kind in kinds if _type(kind) == "Image" and name in sheet.names]
    return sheet.chosen("image_column", given, of_images or columns.IMAGES)


def _type(feature: Any) -> Any:
    return feature.get("_type") if isinstance(feature, dict) else None


def _source(
    sheet: "Sheet", rows: np.ndarray, image: str, labels: np.ndarray, names: tuple[str, ...],
    allowed: int | None, look: bool = True,
) -> Source:  # fmt: skip
    """Returns the images in a column of a table, with their labels and the names of classes."""
    from jaxcls.data import columns

    kind = sheet.kind(image)
    if columns.is_bytes(kind):
        total, largest = columns.group_bytes(sheet, image)
        if look and total > columns.GROUP_BYTES:
            log.warning(
                "%s: of a Parquet file whole groups of rows are read, up to %.3g MiB for an image "
                "of theirs: config.data.cache=encoded keeps the images, %.3g GiB", sheet.name,
                largest / 2**20, total / 2**30,
            )  # fmt: skip
        return columns.cells(sheet, image, rows, labels, names)
    if not columns.is_text(kind):
        raise ValueError(
            f"{sheet.name}: the column {image!r} holds {columns.shown(kind)}, no images: these are "
            "paths, bytes, or both (config.data.image_column)"
        )
    paths = sheet.rows(image, rows)
    if missing := paths.null_count:
        where = sheet.place(int(rows[paths.is_null().to_numpy().argmax()]))
        raise ValueError(
            f"{where}: no path in the column {image!r}, as in {missing} of {len(rows)} rows"
        )
    lines = rows if sheet.lines is None else sheet.lines[rows]
    texts, lines = columns.Texts.of(paths), lines.astype(np.int32)
    files = Files(str(sheet.base), texts, labels, names, sheet.name, lines)
    return lists.looked_for(files, allowed) if look else files
