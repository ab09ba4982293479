"""Tables of images: CSV, lines of JSON, Parquet and Arrow files, read column by column.

What a row costs in memory is its label and, of images in files, its path; images that lie in a
table stay there. An Arrow file is mapped into memory, so that reading an image touches its bytes
alone; of a Parquet file a group of rows is read and decompressed at a time, and the last groups
stay in memory, up to `GROUP_BYTES`.

Importing this needs pyarrow: data/tables.py imports it where a table is opened.
"""

import collections
import csv
import dataclasses
import functools
import json
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jaxcls.config import closest
from jaxcls.data.access import digest, digest_of_labels
from jaxcls.data.decode import BadImage
from jaxcls.data.folders import Files, printable, quoted
from jaxcls.data.labels import Labelled, one

GROUP_BYTES = 2**29  # of row groups of Parquet files that stay in memory, in each process
CHUNK = 65536  # rows of text that are converted at a time
IMAGES = ("image", "img", "path", "image_path", "file_name", "filename", "filepath", "file")
# what reading a damaged file raises, sooner or later
Damage = (pa.ArrowException, UnicodeDecodeError)
# What Git puts in the place of a file that it has not fetched.
POINTER = b"version https://git-lfs.github.com/"


def reason(error: Exception) -> str:
    """Returns the first line of what Arrow says."""
    return printable((str(error).splitlines() or [type(error).__name__])[0])


class Texts(Sequence):
    """Texts in a few arrays: a million paths without a million objects."""

    def __init__(self, data: np.ndarray, ends: np.ndarray):
        """Takes their bytes, uint8, one after the other, and where each ends, int64 [N]."""
        self._data, self._ends = data, ends

    @classmethod
    def of(cls, column: pa.ChunkedArray) -> "Texts":
        """Returns those of a column of texts of a `Sheet` without a missing one."""
        array = column.combine_chunks()
        _, offsets, data = array.buffers()
        ends = np.frombuffer(offsets, np.int64)[array.offset :][: len(array) + 1]
        data = np.frombuffer(data, np.uint8)[ends[0] : ends[-1]] if data else np.zeros(0, np.uint8)
        return cls(data.copy(), ends[1:] - ends[0])

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        begin = self._ends[index - 1] if index else 0
        return self._data[begin : self._ends[index]].tobytes().decode(errors="surrogateescape")


@dataclasses.dataclass(frozen=True, eq=False)
class Sheet:
    """The columns of one split: of one file, or of several one after the other."""

    name: str  # in messages
    names: tuple[str, ...]  # of the columns
    kind: Callable[[str], pa.DataType]  # of the cells of a column, without reading them
    column: Callable[[str], pa.ChunkedArray]  # of such cells, read whole
    base: Path  # folder that paths are relative to
    count: int
    files: tuple[str, ...] = ()  # of Parquet and Arrow, which images may lie in
    ends: np.ndarray | None = None  # rows up to the end of each of them
    lines: np.ndarray | None = None  # of a text: the line of each row
    features: dict[str, Any] = dataclasses.field(default_factory=dict)  # Hugging Face's, by column

    def rows(self, name: str, rows: np.ndarray) -> pa.ChunkedArray:
        """Returns some rows of a column."""
        return self.column(name).take(pa.array(rows))

    def place(self, row: int) -> str:
        """Returns where a row is, for messages."""
        if self.lines is not None:
            return f"{self.name}:{self.lines[row]}"
        file = int(np.searchsorted(self.ends, row, side="right"))
        return f"{self.files[file]}: row {row - (self.ends[file - 1] if file else 0)}"

    def chosen(self, key: str, name: str, usual: Sequence[str]) -> str:
        """Returns a column, the given one or the first of the usual ones.

        Raises:
          ValueError: it is not there, and the message names those that are; or it is there twice.
        """
        found = [name] if name else usual
        there = [column for column in found if column in self.names]
        if not there:
            what = f"no column {name!r}" if name else f"no column {', '.join(usual)}"
            near = closest(name, self.names).rstrip("?") if name else ""
            if len(self.names) == 1 and (other := re.search(r"[,;|\t]", self.names[0])):
                near += f"; or config.data.delimiter, is it {other[0]!r}?"
            raise ValueError(
                f"{self.name}: {what}, the columns are {', '.join(map(printable, self.names))} "
                f"(config.data.{key}{near})"
            )
        if self.names.count(there[0]) > 1:
            raise ValueError(f"{self.name}: there are several columns {there[0]!r}: rename them")
        return there[0]


# -- Reading ---------------------------------------------------------------------------------------


def text(path: Path, delimiter: str, base: Path) -> Sheet:
    """Returns the columns of a CSV file, all of them text, or of a file of JSON objects in lines.

    The first line of a CSV has the names of its columns. Cells may be quoted, and then contain line
    ends and the delimiter.

    Raises:
      ValueError: it cannot be read; the message names the line.
    """
    rows = _json(path) if path.suffix.lower() == ".jsonl" else _csv(path, delimiter)
    names = next(rows)
    columns: list[list[Any]] = [[] for _ in names]
    chunks: list[list[pa.Array]] = [[] for _ in names]
    lines: list[np.ndarray] = []
    some: list[int] = []

    def convert():
        lines.append(np.array(some, np.int32))
        some.clear()
        for name, cells, done in zip(names, columns, chunks):
            done.append(_array(path, name, cells))
            cells.clear()

    for line, cells in rows:
        some.append(line)
        for cell, column in zip(cells, columns):
            column.append(cell)
        if len(some) == CHUNK:
            convert()
    convert()
    table = {name: _joined(path, name, part) for name, part in zip(names, chunks)}
    where = np.concatenate(lines)
    if not len(where):
        raise ValueError(f"{path}: there are no rows below the names of the columns")
    kind = lambda name: table[name].type
    return Sheet(str(path), tuple(names), kind, table.__getitem__, base, len(where), lines=where)


def _array(path: Path, name: str, cells: list[Any]) -> pa.Array:
    try:
        return pa.array(cells)
    except UnicodeEncodeError as error:
        raise ValueError(f"{path}: the column {name!r} is not text in UTF-8") from error
    except (pa.ArrowException, OverflowError) as error:
        raise ValueError(
            f"{path}: the column {name!r} is of no one type: {reason(error)}"
        ) from error


def _joined(path: str | Path, name: str, chunks: list[pa.Array]) -> pa.ChunkedArray:
    kind = _common(path, name, [chunk.type for chunk in chunks])
    return pa.chunked_array([_cast(chunk, kind) for chunk in chunks], kind)


def _lines(path: Path) -> Iterator[str]:
    """Yields the lines of a text, with their ends; bytes that are no UTF-8 as in file names."""
    try:
        with path.open("rb") as file:
            _refuse_pointer(path, file.read(len(POINTER)))
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            for line in file:
                if "\0" in line:
                    raise ValueError(
                        f"{path} is not a text file in UTF-8: there are zero bytes in it"
                    )
                yield line
    except OSError as error:
        raise ValueError(f"{path}: cannot read it: {error.strerror}") from error


def _csv(path: Path, delimiter: str) -> Iterator[Any]:
    """Yields the names of the columns, then (line, cells) of each row."""
    reader = csv.reader(_lines(path), delimiter=delimiter, strict=True, skipinitialspace=True)
    line = 1
    try:
        names = [name.strip() for name in next(reader, [])]
        try:
            "".join(names).encode()
        except UnicodeEncodeError:
            raise ValueError(
                f"{path}:1: the names of the columns are no text in UTF-8: save the table as that"
            ) from None
        named = [*filter(None, names)]
        if not named or len({*named}) < len(named):
            raise ValueError(
                f"{path}:1: the first line names the columns, each once; it has "
                f"{', '.join(map(quoted, names)) or 'nothing'}"
            )
        yield names
        line = reader.line_num + 1
        for cells in reader:
            if cells:
                if len(cells) != len(names):
                    raise ValueError(
                        f"{path}:{line}: {len(cells)} cells, there are {len(names)} columns "
                        f"(config.data.delimiter = {delimiter!r})"
                    )
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{path}:{line}: no row of a CSV: {error}") from error


def _json(path: Path) -> Iterator[Any]:
    names: list[str] = []
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("write an object: {...}")
            "".join(row).encode()  # half a character can be written as an escape
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}:{number}: no object of JSON: {error}") from error
        if not names:
            names = list(row)
            yield names
        if unknown := row.keys() - {*names}:
            raise ValueError(f"{path}:{number}: {min(unknown)!r} is not in the first line")
        yield number, [row.get(name) for name in names]
    if not names:
        raise ValueError(f"{path}: the file is empty")


def binary(files: Sequence[str], *, name: str, base: Path) -> Sheet:
    """Returns the columns of Parquet files, or of Arrow files, one after the other.

    Raises:
      ValueError: one cannot be read, or has other columns than the first.
    """
    opened = [_schema(file) for file in files]
    schema = opened[0][0]
    for file, (other, _) in zip(files, opened):
        if other.names != schema.names:
            raise ValueError(
                f"{file}: its columns are {', '.join(other.names)}, those of {files[0]} are "
                f"{', '.join(schema.names)}"
            )

    def kind(key: str) -> pa.DataType:
        return _common(name, key, [schema.field(key).type for schema, _ in opened])

    def column(key: str) -> pa.ChunkedArray:
        chunks = [chunk for file in files for chunk in _whole(file, key).chunks]
        return pa.chunked_array([_cast(chunk, kind(key)) for chunk in chunks], kind(key))

    ends = np.cumsum([rows for _, rows in opened])
    if not ends[-1]:
        raise ValueError(f"{name}: there are no rows")
    features = _features((schema.metadata or {}).get(b"huggingface", b"{}"))
    of = (name, tuple(schema.names), kind, column, base, int(ends[-1]), tuple(files), ends)
    return Sheet(*of, features=features)


def _features(data: bytes) -> dict[str, Any]:
    try:
        return dict(json.loads(data)["info"]["features"])
    except (ValueError, LookupError, TypeError):
        return {}


def _refuse_pointer(path: str | Path, data: bytes) -> None:
    if data.startswith(POINTER):
        raise ValueError(f"{path}: Git has not fetched this file: run `git lfs pull` in its folder")


@functools.lru_cache(maxsize=4096)
def _metadata(file: str, stamp: tuple[int, int]) -> pq.FileMetaData:
    return pq.read_metadata(file)


@functools.lru_cache(maxsize=4096)
def _mapped(file: str, stamp: tuple[int, int]) -> pa.Table:
    """Returns an Arrow file, a stream or not, that stays where it is."""
    data = pa.memory_map(file)
    try:
        return pa.ipc.open_stream(data).read_all()
    except pa.ArrowInvalid:
        return pa.ipc.open_file(data).read_all()


@functools.lru_cache(maxsize=4096)
def _mapped_column(file: str, stamp: tuple[int, int], key: str) -> pa.ChunkedArray:
    """Returns a column of an Arrow file.

    Raises:
      pa.ArrowInvalid: its cells would lie outside of the file. Reading them would end the process.
    """
    column = _mapped(file, stamp).column(key)
    column.validate(full=True)
    return column


def _stamp(file: str) -> tuple[int, int]:
    status = os.stat(file)
    return status.st_size, status.st_mtime_ns


def _is_parquet(file: str) -> bool:
    return file.lower().endswith(".parquet")


def _schema(file: str) -> tuple[pa.Schema, int]:
    """Returns columns and number of rows of a file."""
    try:
        with open(file, "rb") as opened:
            _refuse_pointer(file, opened.read(len(POINTER)))
        if _is_parquet(file):
            metadata = _metadata(file, _stamp(file))
            schema, count = metadata.schema.to_arrow_schema(), metadata.num_rows
        else:
            table = _mapped(file, _stamp(file))
            schema, count = table.schema, table.num_rows
        assert all(isinstance(name, str) for name in schema.names)  # they are decoded here
        return schema, count
    except OSError as error:
        raise ValueError(f"{file}: cannot read it: {error.strerror or reason(error)}") from error
    except Damage as error:
        kind = "Parquet" if _is_parquet(file) else "Arrow"
        raise ValueError(f"{file}: no {kind} file: {reason(error)}") from error


def _whole(file: str, key: str) -> pa.ChunkedArray:
    try:
        if _is_parquet(file):
            return pq.ParquetFile(file).read([key]).column(key)
        return _mapped_column(file, _stamp(file), key)
    except (OSError, *Damage) as error:
        raise ValueError(f"{file}: the column {key!r} cannot be read: {reason(error)}") from error


class _Groups:
    """Row groups of Parquet files, the last ones of which stay in memory."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bytes = 0
        self._entries: collections.OrderedDict[Any, list[Any]] = collections.OrderedDict()

    def get(self, file: str, stamp: tuple[int, int], group: int, key: str) -> pa.ChunkedArray:
        """Returns a column of a group; of several threads that ask one reads it."""
        place = (file, stamp, group, key)
        with self._lock:
            entry = self._entries.setdefault(place, [threading.Lock(), None])
            self._entries.move_to_end(place)
        with entry[0]:
            if entry[1] is None:
                opened = pq.ParquetFile(file, metadata=_metadata(file, stamp))
                entry[1] = opened.read_row_group(group, [key], use_threads=False).column(key)
                self._keep(place, entry)
        return entry[1]

    def _keep(self, place: Any, entry: list[Any]) -> None:
        """Counts a group that was read, and drops those that were not asked for the longest."""
        with self._lock:
            if self._entries.get(place) is not entry:  # dropped while it was read
                return
            self._bytes += entry[1].nbytes
            while self._bytes > GROUP_BYTES and len(self._entries) > 1:
                _, (_, dropped) = self._entries.popitem(last=False)
                self._bytes -= dropped.nbytes if dropped is not None else 0


_groups = _Groups()


@dataclasses.dataclass(frozen=True, eq=False)
class Cells(Labelled):
    """Images in a column of Parquet or Arrow files: their bytes, or {"bytes", "path"}."""

    files: tuple[str, ...]
    stamps: tuple[tuple[int, int], ...]  # size and time of each
    groups: np.ndarray  # int [number of groups, 2]: file, and rows of all up to the end of it
    column: str
    rows: np.ndarray  # int [N]: which rows the images are
    root: str  # folder of images that are in files
    labels: np.ndarray
    class_names: tuple[str, ...]

    @property
    def identity(self) -> dict[str, Any]:
        files = [(Path(file).name, size) for file, (size, _) in zip(self.files, self.stamps)]
        chosen = [len(self), digest_of_labels(self.rows)]
        return {
            "images": digest([files, self.column, chosen]),
            "labels": digest_of_labels(self.labels),
        }

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        file, group, row, number = self._find(index)
        name = f"{self.files[file]}: row {number}"
        try:
            if _is_parquet(self.files[file]):
                column = _groups.get(self.files[file], self.stamps[file], group, self.column)
            else:
                column = _mapped_column(self.files[file], self.stamps[file], self.column)
                row = number
            cell = column[row].as_py()
        except MemoryError:
            raise
        except Exception as error:  # what Arrow raises depends on the damage
            raise BadImage(f"{name}: {reason(error)}") from error
        path = None
        if isinstance(cell, dict):
            cell, path = cell.get("bytes"), cell.get("path")
            name += f" ({printable(path)})" if path else ""
        if cell is None and path:
            cell = Files(self.root, (path,), np.zeros(1, np.int32), ())[0]["image"]
        if cell is None:
            raise BadImage(f"{name}: there is no image in the column {self.column!r}")
        return {"image": bytes(cell), "label": one(self.labels, index), "name": name}

    def _find(self, index: int) -> tuple[int, int, int, int]:
        """Returns file, group in the file, row in the group and in the file of an image."""
        row = int(self.rows[index])
        at = int(np.searchsorted(self.groups[:, 1], row, side="right"))
        file = int(self.groups[at, 0])
        first = int(np.searchsorted(self.groups[:, 0], file))
        begin = lambda group: int(self.groups[group - 1, 1]) if group else 0
        return file, at - first, row - begin(at), row - begin(first)


def cells(sheet: Sheet, column: str, rows: np.ndarray, labels: np.ndarray, names: Any) -> Cells:
    """Returns the images in a column of a table."""
    groups, total = [], 0
    stamps = tuple(map(_stamp, sheet.files))
    for number, (file, stamp, end) in enumerate(zip(sheet.files, stamps, sheet.ends)):
        if _is_parquet(file):
            metadata = _metadata(file, stamp)
            for group in range(metadata.num_row_groups):
                total += metadata.row_group(group).num_rows
                groups.append((number, total))
        else:
            groups.append((number, total := int(end)))
    groups = np.array(groups, np.int64)
    return Cells(sheet.files, stamps, groups, column, rows, str(sheet.base), labels, names)


def group_bytes(sheet: Sheet, column: str) -> tuple[int, int]:
    """Returns the bytes of a column of Parquet files, and of its largest group of rows."""
    sizes = []
    for file in filter(_is_parquet, sheet.files):
        metadata = _metadata(file, _stamp(file))
        for group in map(metadata.row_group, range(metadata.num_row_groups)):
            parts = map(group.column, range(group.num_columns))
            of = [p for p in parts if p.path_in_schema.split(".")[0] == column]
            sizes.append(sum(part.total_uncompressed_size for part in of))
    return sum(sizes), max(sizes, default=0)


# -- Kinds of columns ------------------------------------------------------------------------------

BYTES = {"binary", "large_binary", "binary_view"}
TEXT = {"string", "large_string", "string_view"}
LISTS = re.compile(r"(large_)?list(_view)?<|fixed_size_list<")


def shown(kind: pa.DataType) -> str:
    """Returns what messages call a type."""
    text = str(kind).replace("large_", "")
    return text if len(text) <= 80 else text[:77] + "..."


def is_bytes(kind: pa.DataType) -> bool:
    """Returns whether cells of a type are images: bytes, or {"bytes", "path"}."""
    if pa.types.is_struct(kind):
        return "bytes" in [kind.field(i).name for i in range(kind.num_fields)]
    return str(kind) in BYTES or pa.types.is_fixed_size_binary(kind)


def is_text(kind: pa.DataType) -> bool:
    """Returns whether cells of a type, one of a `Sheet`, are text."""
    return pa.types.is_large_string(kind)


def is_list(kind: pa.DataType) -> bool:
    """Returns whether cells of a type, one of a `Sheet`, are lists."""
    return pa.types.is_large_list(kind)


def _plain(kind: pa.DataType) -> pa.DataType:
    """Returns the one of several types of the same values that the others become."""
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    if str(kind) in TEXT or pa.types.is_null(kind):
        return pa.large_string()
    if LISTS.match(str(kind)):
        return pa.large_list(_plain(kind.value_type))
    return kind


def _common(name: str | Path, column: str, kinds: Sequence[pa.DataType]) -> pa.DataType:
    """Returns the type that cells of several types become."""
    there = [_plain(kind) for kind in kinds if not pa.types.is_null(kind)]
    schemas = [pa.schema([(column, kind)]) for kind in there or [pa.large_string()]]
    try:
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except pa.ArrowException as error:
        raise ValueError(f"{name}: the column {column!r} is of no one type") from error


def _cast(array: pa.Array, kind: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(array.type):  # some of which Arrow cannot cast
        texts = array.dictionary.cast(_plain(array.type.value_type))
        array = pa.DictionaryArray.from_arrays(array.indices, texts)
    return array.cast(kind)


def texts_of(column: pa.ChunkedArray) -> tuple[list[str], np.ndarray]:
    """Returns the texts that there are, and the number of each row's; of a missing one the last.

    Spaces around them are left out.
    """
    encoded = pc.utf8_trim_whitespace(column).combine_chunks().dictionary_encode()
    texts = encoded.dictionary.to_pylist()
    return texts, pc.fill_null(encoded.indices.cast(pa.int64()), len(texts)).to_numpy()
