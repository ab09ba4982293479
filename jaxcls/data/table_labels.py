"""Labels of the rows of a table: names or numbers of classes, or marks, from its columns."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jaxcls.config import closest
from jaxcls.data.columns import Sheet, is_list, is_text, shown, texts_of
from jaxcls.data.folders import MAX_LABEL, printable, quoted
from jaxcls.data.labels import NONE, labelled

USUAL = ("label", "labels", "class", "class_name", "target")  # names of their column
NUMBER = re.compile(r"(-?[0-9]{1,18})(\.0*)?")
MISSING = {"", "nan", "na", "n/a", "none", "null"}  # what programs write for a missing number
MARKS = {"true": 1.0, "false": 0.0}  # besides numbers


@dataclasses.dataclass(frozen=True)
class Known:
    """What is known of the classes."""

    names: tuple[str, ...] = ()
    count: int = 0  # 0: as many as the labels have
    needs_labels: bool = True
    numbered: bool | None = None  # labels are numbers, not names; None: as the column looks


def labels_of(
    sheet: Sheet, columns: Sequence[str], rows: np.ndarray, known: Known, *, several: bool
) -> tuple[np.ndarray, Known]:
    """Returns labels, int32 [N] or marks [N, K], and what is known of the classes then.

    Args:
      sheet: of the rows.
      columns: one, of names or numbers of classes; or one for each class, of its marks. None at
        all: no image has a label.
      rows: which ones, ascending.
      known: of the classes. Without names, those of texts are the texts, sorted; those of marks
        their columns; numbers count up from 0.
      several: one column has several classes of an image: texts with commas between, names or the
        marks of all classes; or a list of names or numbers; or of marks: of floats, of booleans, or
        of as many zeros and ones in each row.

    Raises:
      ValueError: a label is missing, of no class or of no type for it; the message says where.
    """
    if not columns:
        return np.full(len(rows), NONE, np.int32), known
    parts = [sheet.rows(name, rows) for name in columns]
    if len(parts) > 1:
        known = dataclasses.replace(known, names=known.names or tuple(columns))
        labels = _of_columns(sheet, columns, parts, rows)
        _check_count(sheet, known, labels.shape[1])
    else:
        given = class_label(sheet.features.get(columns[0]))
        if given and not known.names:
            known = dataclasses.replace(known, names=given)
        read = _several if several else _single
        labels, known = read(sheet, columns[0], parts[0], rows, known)
    missing = np.flatnonzero(~labelled(labels))
    if known.needs_labels and len(missing):
        where = sheet.place(int(rows[missing[0]]))
        raise ValueError(f"{where}: no label in the column {', '.join(map(repr, columns))}")
    return labels, known


def class_label(feature: Any) -> tuple[str, ...]:
    """Returns the names of Hugging Face's ClassLabel, or of a list of such."""
    while isinstance(feature, dict) and "feature" in feature:
        feature = feature["feature"]
    if isinstance(feature, list) and feature:  # as lists were written once
        feature = feature[0]
    if isinstance(feature, dict) and feature.get("_type") == "ClassLabel":
        return tuple(map(str, feature.get("names") or ()))
    return ()


def _check_count(sheet: Sheet, known: Known, marks: int) -> None:
    count = len(known.names) or known.count
    if count and count != marks:
        raise ValueError(f"{sheet.name}: {marks} marks of each image, there are {count} classes")


def _single(
    sheet: Sheet, name: str, column: pa.ChunkedArray, rows: np.ndarray, known: Known
) -> tuple[np.ndarray, Known]:
    """Returns numbers of classes, int32 [N]."""
    kind = column.type
    if is_text(kind):
        texts, codes = texts_of(column)
        numbers = _numbers_in(texts)
        numbered = known.numbered
        if numbered is None:  # classes may be called by numbers
            numbered = numbers is not None and not {*texts} & {*known.names}
        if not numbered or numbers is None:
            return _named(sheet, texts, codes, rows, known)
        return _numbered(sheet, name, numbers[codes], rows, known)
    if pa.types.is_floating(kind):  # where some are missing, integers become floats
        floats = pc.fill_null(column.cast(pa.float64()), np.nan).to_numpy()
        wrong = ~np.isnan(floats) & ~((floats % 1 == 0) & (abs(floats) <= MAX_LABEL))
        if wrong.any():
            where, value = sheet.place(int(rows[wrong.argmax()])), floats[wrong.argmax()]
            raise ValueError(f"{where}: the label {value:g} in {name!r} is no number of a class")
        numbers = np.where(np.isnan(floats), NONE, floats).astype(np.int64)
    elif pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        numbers = pc.fill_null(column.cast(pa.int64()), NONE).to_numpy()
    else:
        raise ValueError(
            f"{sheet.name}: the column {name!r} holds {shown(kind)}, no names or numbers of "
            "classes (config.data.label_columns; of several classes an image: "
            "config.data.multi_label)"
        )
    if known.numbered is False and (numbers >= 0).any():
        raise ValueError(
            f"{sheet.name}: the column {name!r} has numbers, that of the training images has names "
            "of classes: write config.data.class_names"
        )
    return _numbered(sheet, name, numbers, rows, known)


def _numbers_in(texts: Sequence[str]) -> np.ndarray | None:
    """Returns the numbers that texts are, and NONE as the last one; None if one is no number."""
    matches = [NUMBER.fullmatch(text) for text in texts]
    if not all(match or text.lower() in MISSING for match, text in zip(matches, texts)):
        return None
    return np.array([int(match[1]) if match else NONE for match in matches] + [NONE], np.int64)


def _named(
    sheet: Sheet, texts: Sequence[str], codes: np.ndarray, rows: np.ndarray, known: Known
) -> tuple[np.ndarray, Known]:
    """Returns numbers of classes, of which there are the names: texts[codes]."""
    if known.names:
        names, numbered = known.names, known.numbered
    else:
        names, numbered = tuple(sorted({*map(printable, filter(None, texts))})), False
        if names and known.count not in (0, len(names)):
            raise ValueError(
                f"{sheet.name}: {len(names)} names of classes, config.data.num_classes = "
                f"{known.count}: name all in config.data.class_names"
            )
    number_of = {name: i for i, name in enumerate(names)}
    table = np.full(len(texts) + 1, NONE, np.int32)
    for i, value in enumerate(texts):
        if value and printable(value) not in number_of:
            where = sheet.place(int(rows[np.argmax(codes == i)]))
            raise ValueError(
                f"{where}: the label {quoted(value)} is no class of the training images"
                f"{closest(value, names)}"
            )
        if value:
            table[i] = number_of[printable(value)]
    return table[codes], dataclasses.replace(known, names=names, numbered=numbered)


def _numbered(
    sheet: Sheet, name: str, numbers: np.ndarray, rows: np.ndarray, known: Known
) -> tuple[np.ndarray, Known]:
    """Returns numbers of classes, of which there are the numbers, int64 [N]."""
    count = len(known.names) or known.count
    limit = count or MAX_LABEL + 1
    if len(wrong := np.flatnonzero((numbers >= limit) | (numbers < NONE))):
        where, value = sheet.place(int(rows[wrong[0]])), numbers[wrong[0]]
        there = f"there are {count} classes, 0 to {count - 1}" if count else "labels begin with 0"
        raise ValueError(f"{where}: the label {value} in {name!r} is out of range: {there}")
    largest = int(numbers.max(initial=NONE))
    if not count and largest + 1 > 10 * len(numbers):
        where = sheet.place(int(rows[numbers.argmax()]))
        raise ValueError(
            f"{where}: the label {largest} makes {largest + 1} classes of {len(numbers)} images: "
            f"if that is right, set config.data.num_classes = {largest + 1}"
        )
    if not known.names:
        names = tuple(map(str, range(count or largest + 1)))
        known = dataclasses.replace(known, names=names, numbered=True if names else None)
    return numbers.astype(np.int32), known


def _of_columns(
    sheet: Sheet, names: Sequence[str], columns: Sequence[pa.ChunkedArray], rows: np.ndarray
) -> np.ndarray:
    """Returns the marks of columns, one for each class: int8 [N, K], or float32 of soft ones."""
    out = np.full((len(rows), len(columns)), NONE, np.float32)
    for k, (name, column) in enumerate(zip(names, columns)):
        if is_text(column.type):
            texts, codes = texts_of(column)
            values = np.array([*map(_mark, texts), np.nan])[codes]
            empty = np.array([*(t.lower() in MISSING for t in texts), True])[codes]
        elif pa.types.is_boolean(column.type) or pa.types.is_primitive(column.type):
            empty = column.is_null(nan_is_null=True).to_numpy()
            values = pc.fill_null(column.cast(pa.float64()), np.nan).to_numpy()
        else:
            raise ValueError(
                f"{sheet.name}: the column {name!r} holds {shown(column.type)}, no marks"
            )
        wrong = ~empty & ~((values >= 0) & (values <= 1))
        if wrong.any():
            where = sheet.place(int(rows[wrong.argmax()]))
            raise ValueError(f"{where}: what is in the column {name!r} is no mark: write 0 or 1")
        out[:, k] = np.where(empty, NONE, values)
    there = out >= 0
    if len(partly := np.flatnonzero(there.any(1) & ~there.all(1))):
        i = int(partly[0])
        name = names[int(there[i].argmin())]
        raise ValueError(f"{sheet.place(int(rows[i]))}: no mark in the column {name!r}")
    return _whole(out)


def _mark(cell: str) -> float:
    try:
        return float(MARKS.get(cell.lower(), cell))
    except ValueError:
        return np.nan


def _whole(marks: np.ndarray) -> np.ndarray:
    """Returns marks as int8 if none is soft."""
    return marks if (marks % 1).any() else marks.astype(np.int8)


def _several(
    sheet: Sheet, name: str, column: pa.ChunkedArray, rows: np.ndarray, known: Known
) -> tuple[np.ndarray, Known]:
    """Returns marks [N, K] of a column that has several classes of an image."""
    inverse = None
    if is_text(column.type):  # lists of the texts that there are, and which one each row has
        texts, inverse = texts_of(column)
        parts = [None if t in ("", str(NONE)) else [p.strip() for p in t.split(",")] for t in texts]
        lists = pa.array([*parts, None], pa.large_list(pa.large_string()))
        rows = rows[_firsts(inverse, len(lists))]
    elif is_list(column.type):
        lists = column.combine_chunks()
    else:
        raise ValueError(
            f"{sheet.name}: the column {name!r} holds {shown(column.type)}, which cannot be "
            "several classes of an image (config.data.multi_label)"
        )
    there = lists.is_valid().to_numpy(zero_copy_only=False)
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    values = pc.list_flatten(lists)
    if _are_marks(values, lengths[there]) and not class_label(sheet.features.get(name)):
        marks = _of_lists(sheet, name, values, np.where(there, lengths, NONE), rows)
        _check_count(sheet, known, marks.shape[1])
        names = known.names or tuple(map(str, range(marks.shape[1])))
        known = dataclasses.replace(known, names=names)
    else:
        owner = np.repeat(np.arange(len(lists)), lengths)
        numbers, known = _single(sheet, name, pa.chunked_array([values]), rows[owner], known)
        if (numbers < 0).any():
            where = sheet.place(int(rows[owner[numbers.argmin()]]))
            raise ValueError(f"{where}: a class without a name or a number in the column {name!r}")
        marks = np.zeros((len(lists), len(known.names)), np.int8)
        marks[owner, numbers] = 1
        marks[~there] = NONE
    return marks if inverse is None else marks[inverse], known


def _firsts(codes: np.ndarray, count: int) -> np.ndarray:
    """Returns where each of `count` codes comes first, 0 for those that do not."""
    first = np.zeros(count, np.int64)
    first[codes[::-1]] = np.arange(len(codes))[::-1]
    return first


def _are_marks(values: pa.Array, lengths: np.ndarray) -> bool:
    """Returns whether lists, here one after the other, have marks of all classes, not classes."""
    if pa.types.is_floating(values.type) or pa.types.is_boolean(values.type):
        return True
    alike = len(lengths) > 0 and lengths.min() == lengths.max() > 1
    return alike and {*map(str, values.unique().to_pylist())} <= {"0", "1"}


def _of_lists(
    sheet: Sheet, name: str, values: pa.Array, lengths: np.ndarray, rows: np.ndarray
) -> np.ndarray:
    """Returns the marks of lists, here one after the other; their lengths are NONE without one."""
    width = lengths.max(initial=0)
    if len(wrong := np.flatnonzero((lengths != width) & (lengths != NONE))):
        where = sheet.place(int(rows[wrong[0]]))
        raise ValueError(f"{where}: {lengths[wrong[0]]} marks, there are {width} classes")
    out = np.full((len(lengths), width), NONE, np.float32)
    values = pc.fill_null(values.cast(pa.float32()), np.nan)
    out[lengths == width] = values.to_numpy(zero_copy_only=False).reshape(-1, width)
    wrong = (lengths == width) & ~((out >= 0) & (out <= 1)).all(1)
    if wrong.any():
        where = sheet.place(int(rows[wrong.argmax()]))
        raise ValueError(f"{where}: what is in the column {name!r} are no marks, from 0 to 1")
    return _whole(out)
