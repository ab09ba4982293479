"""Labels of the rows of a table: names or numbers of classes, or marks, from its columns."""

import dataclasses
import itertools
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jaxcls.config import closest
from jaxcls.data.columns import Sheet, is_text, texts_of
from jaxcls.data.folders import MAX_LABEL, printable, quoted
from jaxcls.data.labels import NONE, labelled

USUAL = ("label", "labels", "class", "class_name", "target")  # names of their column
BITS = {"0", "1"}
LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)


@dataclasses.dataclass(frozen=True)
class Known:
    """What is known of the classes."""

    names: tuple[str, ...] = ()
    count: int = 0  # 0: as many as the labels have
    needs_labels: bool = True


def labels_of(
    sheet: Sheet, columns: Sequence[str], rows: np.ndarray, known: Known, *, several: bool
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Returns labels, int32 [N] or marks [N, K], and the names of their classes.

    Args:
      sheet: of the rows.
      columns: one, of names or numbers of classes; or one for each class, of its marks. None at
        all: no image has a label.
      rows: which ones, ascending.
      known: of the classes. Without names, those of texts are the texts, sorted; those of marks
        their columns; numbers count up from 0.
      several: one column has several classes of an image: texts with commas between, names or the
        marks of all classes; or a list of names or numbers; lists of floats are marks.

    Raises:
      ValueError: a label is missing, of no class or of no type for it; the message says where.
    """
    if not columns:
        return np.full(len(rows), NONE, np.int32), known.names
    parts = [sheet.rows(name, rows) for name in columns]
    if len(parts) > 1:
        known = dataclasses.replace(known, names=known.names or tuple(columns))
        labels = _of_marks(sheet, columns, parts, rows)
        _check_count(sheet, known, labels.shape[1])
    else:
        feature = sheet.features.get(columns[0]) or {}
        given = _class_label(feature)
        known = known if known.names or not given else dataclasses.replace(known, names=given)
        read = _several if several else _single
        labels, known = read(sheet, columns[0], parts[0], rows, known)
    missing = np.flatnonzero(~labelled(labels))
    if known.needs_labels and len(missing):
        where = sheet.place(int(rows[missing[0]]))
        raise ValueError(f"{where}: no label in the column {', '.join(map(repr, columns))}")
    return labels, known.names


def _class_label(feature: Any) -> tuple[str, ...]:
    """Returns the names of Hugging Face's ClassLabel, or of a list of such."""
    while isinstance(feature, dict) and "feature" in feature:
        feature = feature["feature"]
    if isinstance(feature, list) and feature:  # as lists were written once
        feature = feature[0]
    if isinstance(feature, dict) and feature.get("_type") == "ClassLabel":
        return tuple(map(str, feature.get("names") or ()))
    return ()


def has_class_label(feature: Any) -> bool:
    """Returns whether Hugging Face's features say that a column has classes."""
    return bool(_class_label(feature))


def _check_count(sheet: Sheet, known: Known, marks: int) -> None:
    count = len(known.names) or known.count
    if count and count != marks:
        raise ValueError(f"{sheet.name}: {marks} marks of each image, there are {count} classes")


def _single(
    sheet: Sheet, name: str, column: pa.ChunkedArray, rows: np.ndarray, known: Known
) -> tuple[np.ndarray, Known]:
    """Returns numbers of classes, int32 [N]."""
    kind = column.type
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        numbers = pc.fill_null(column.cast(pa.int64()), NONE).to_numpy()
        return _numbers(sheet, name, numbers, rows, known)
    if not is_text(kind):
        raise ValueError(
            f"{sheet.name}: the column {name!r} holds {kind}, no names or numbers of classes "
            "(config.data.label_columns; of several classes an image: config.data.multi_label)"
        )
    texts, codes = texts_of(column)
    if not known.names and all(re.fullmatch(r"\s*-?[0-9]{1,18}\s*", t) for t in texts if t):
        numbers = np.array([int(t or NONE) for t in texts] + [NONE], np.int64)
        return _numbers(sheet, name, numbers[codes], rows, known)
    names = known.names or tuple(sorted(map(printable, filter(None, texts))))
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
    return table[codes], dataclasses.replace(known, names=names)


def _numbers(
    sheet: Sheet, name: str, numbers: np.ndarray, rows: np.ndarray, known: Known
) -> tuple[np.ndarray, Known]:
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
    names = known.names or tuple(map(str, range(count or largest + 1)))
    return numbers.astype(np.int32), dataclasses.replace(known, names=names)


def _of_marks(
    sheet: Sheet, names: Sequence[str], columns: Sequence[pa.ChunkedArray], rows: np.ndarray
) -> np.ndarray:
    """Returns the marks of columns, one for each class: int8 [N, K], or float32 of soft ones."""
    out = np.full((len(rows), len(columns)), NONE, np.int8)
    for k, (name, column) in enumerate(zip(names, columns)):
        if is_text(column.type):
            texts, codes = texts_of(column)
            values = np.array([_mark(t) for t in texts] + [np.nan])[codes]
            empty = np.array([t == "" for t in texts] + [True])[codes]
        elif pa.types.is_boolean(column.type) or pa.types.is_primitive(column.type):
            empty = column.is_null().to_numpy()
            values = pc.fill_null(column.cast(pa.float64()), np.nan).to_numpy()
        else:
            raise ValueError(f"{sheet.name}: the column {name!r} holds {column.type}, no marks")
        wrong = ~empty & ~((values >= 0) & (values <= 1))
        if wrong.any():
            where = sheet.place(int(rows[wrong.argmax()]))
            raise ValueError(f"{where}: what is in the column {name!r} is no mark: write 0 or 1")
        values = np.where(empty, NONE, values)
        if out.dtype == np.int8 and (values % 1 != 0).any():
            out = out.astype(np.float32)
        out[:, k] = values
    there = out >= 0
    if len(partly := np.flatnonzero(there.any(1) & ~there.all(1))):
        i = int(partly[0])
        name = names[int(there[i].argmin())]
        raise ValueError(f"{sheet.place(int(rows[i]))}: no mark in the column {name!r}")
    return out


def _mark(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return np.nan


def _several(
    sheet: Sheet, name: str, column: pa.ChunkedArray, rows: np.ndarray, known: Known
) -> tuple[np.ndarray, Known]:
    """Returns marks [N, K] of a column that has several classes of an image."""
    kind = column.type
    if is_text(kind):
        texts, codes = texts_of(column)
        parts = [[p.strip() for p in t.split(",")] if t else None for t in texts]
        widths = {len(part) for part in parts if part}
        if (
            len(widths) == 1
            and min(widths) > 1
            and {*itertools.chain(*filter(None, parts))} <= BITS
        ):
            _check_count(sheet, known, width := widths.pop())
            table = np.full((len(texts) + 1, width), NONE, np.int8)
            for i, part in enumerate(parts):
                table[i] = [int(mark) for mark in part] if part else NONE
            names = known.names or tuple(map(str, range(width)))
            return table[codes], dataclasses.replace(known, names=names)
        lists, inverse = pa.array([*parts, None], pa.list_(pa.string())), codes
    elif (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    ):
        if pa.types.is_floating(kind.value_type):
            return _soft(sheet, name, column, rows, known)
        lists, inverse = column.combine_chunks().cast(pa.large_list(kind.value_type)), None
    else:
        raise ValueError(
            f"{sheet.name}: the column {name!r} holds {kind}, which cannot be several classes of "
            "an image (config.data.multi_label)"
        )
    lists = lists if isinstance(lists, pa.Array) else pa.concat_arrays(lists.chunks)
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    owner = np.repeat(np.arange(len(lists)), lengths)
    flat = pa.chunked_array([pc.list_flatten(lists)])
    # a row of the table for each value, to say where one is wrong
    first = np.arange(len(lists)) if inverse is None else _firsts(inverse, len(lists))
    inner = dataclasses.replace(known, needs_labels=False)
    numbers, inner = _single(sheet, name, flat, rows[first[owner]], inner)
    if (numbers < 0).any():
        where = sheet.place(int(rows[first[owner[numbers.argmin()]]]))
        raise ValueError(f"{where}: a class without a name or a number in the column {name!r}")
    marks = np.zeros((len(lists), len(inner.names)), np.int8)
    marks[owner, numbers] = 1
    marks[lists.is_null().to_numpy(zero_copy_only=False)] = NONE
    return marks if inverse is None else marks[inverse], dataclasses.replace(
        inner, needs_labels=known.needs_labels
    )


def _firsts(codes: np.ndarray, count: int) -> np.ndarray:
    """Returns where each of `count` codes comes first, 0 for those that do not."""
    first = np.zeros(count, np.int64)
    first[codes[::-1]] = np.arange(len(codes))[::-1]
    return first


def _soft(
    sheet: Sheet, name: str, column: pa.ChunkedArray, rows: np.ndarray, known: Known
) -> tuple[np.ndarray, Known]:
    """Returns the marks of lists of floats."""
    lists = column.combine_chunks().cast(pa.large_list(pa.float32()))
    lists = lists if isinstance(lists, pa.Array) else pa.concat_arrays(lists.chunks)
    lengths = pc.list_value_length(lists)
    width = pc.max(lengths).as_py() or 0
    _check_count(sheet, known, width)
    lengths = pc.fill_null(lengths, NONE).to_numpy(zero_copy_only=False)
    out = np.full((len(lists), width), NONE, np.float32)
    if len(wrong := np.flatnonzero((lengths != width) & (lengths != NONE))):
        where = sheet.place(int(rows[wrong[0]]))
        raise ValueError(f"{where}: {lengths[wrong[0]]} marks, there are {width} classes")
    values = pc.list_flatten(lists).to_numpy(zero_copy_only=False).reshape(-1, width)
    out[lengths == width] = values
    wrong = (lengths == width) & ~((out >= 0) & (out <= 1)).all(1)
    if wrong.any():
        where = sheet.place(int(rows[wrong.argmax()]))
        raise ValueError(f"{where}: what is in the column {name!r} are no marks, from 0 to 1")
    names = known.names or tuple(map(str, range(width)))
    return out, dataclasses.replace(known, names=names)
