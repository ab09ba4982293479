"""Images in records: ArrayRecord files of ours, and sets of TensorFlow Datasets."""

import contextlib
import dataclasses
import fnmatch
import functools
import glob
import importlib
import json
import logging
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxcls.data import stores
from jaxcls.data.access import check_label, digest, evenly, for_all, in_threads, item_of
from jaxcls.data.decode import CHANNELS, BadImage
from jaxcls.data.folders import CLASSES_FILE, directory, read_class_names
from jaxcls.data.labels import NONE

log = logging.getLogger(__name__)

# A record is the length of a header (uint32, little-endian), the header (JSON: {"label": int,
# "name": str}) and the encoded image as it was; or, where the header has a "shape" [H, W, C] too,
# the pixels, uint8. data_prep/folder_to_array_record.py writes them. Where the header has "top", k,
# a teacher's outputs stand between header and image: k classes, int32, and k + 1 scores, float16
# (data/access.py). data_prep/teacher.py writes these.
_LENGTH = struct.Struct("<I")
UNLABELLED = "unlabelled-"  # in the name of a file: its images have no label


def pack_record(
    image: bytes | np.ndarray,
    label: int,
    name: str,
    teacher: tuple[np.ndarray, np.ndarray] | None = None,
) -> bytes:
    """Returns the record of an encoded image, or of pixels, uint8 [H, W, C].

    Args:
      label: -1 for none.
      teacher: its k classes and k + 1 scores.
    """
    fields: dict[str, Any] = {"label": label, "name": name}
    outputs = b""
    if teacher is not None:
        classes, scores = teacher
        fields["top"] = len(classes)
        outputs = np.asarray(classes, "<i4").tobytes() + np.asarray(scores, "<f2").tobytes()
    if isinstance(image, np.ndarray):
        fields["shape"] = image.shape
        image = image.tobytes()
    header = json.dumps(fields).encode()
    return _LENGTH.pack(len(header)) + header + outputs + image


def unpack_record(record: bytes) -> dict[str, Any]:
    """Returns an item: "image", "label" and "name", and a teacher's outputs if they are there.

    Raises:
      ValueError: it is no such record.
    """
    try:
        end = _LENGTH.size + _LENGTH.unpack_from(record)[0]
        header = json.loads(record[_LENGTH.size : end])
        teacher = {}
        if "top" in header:
            if (top := header["top"]) < 1:
                raise ValueError(top)
            fields = ("teacher_classes", "<i4", top), ("teacher_scores", "<f2", top + 1)
            for key, kind, number in fields:
                teacher[key] = np.frombuffer(record, kind, number, end).copy()
                end += teacher[key].nbytes
        if "shape" in header:
            image = np.frombuffer(record, np.uint8, offset=end).reshape(header["shape"])
            if image.ndim != 3 or image.shape[2] not in CHANNELS or not image.size:
                raise ValueError(image.shape)
        else:
            image = record[end:]
        known = {"label": int(header["label"]), "name": str(header["name"])}
        return {"image": image, **known, **teacher}
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

    marks = 0  # a label is a number

    @functools.cached_property
    def has_label(self) -> np.ndarray:
        return np.ones(len(self), bool)

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """Labels, which are read; -1 where that is not possible."""

        def label(index):
            try:
                return item_of(self, index)["label"], ""
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
                return item_of(self, index)["label"]

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
            item = self._item(index, self.records[index])
        except MemoryError:
            raise
        except Exception as error:  # what its C++ and TFDS raise depends on the damage
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise BadImage(f"{self.place(index)}: {reason}") from error
        if item["label"] != NONE or self.has_label[index]:
            check_label(item, len(self.class_names))
        return item


class Records(_InRecords):
    """Images in ArrayRecord files of data_prep/folder_to_array_record.py."""

    @functools.cached_property
    def has_label(self) -> np.ndarray:
        there = [UNLABELLED not in os.path.basename(file) for file in self.files]
        return np.repeat(there, np.diff(self.ends, prepend=0))

    @property
    def of_files(self) -> str:
        """A digest of names, sizes and number of records."""
        size = stores.size if stores.remote(self.files[0]) else os.path.getsize
        files = [(Path(file).name, size(file)) for file in self.files]
        return digest([files, len(self)])

    def _item(self, index: int, record: bytes) -> dict[str, Any]:
        return unpack_record(record)


def open_array_record(
    *, root: str, train: str, eval: str, allowed: int | None = None
) -> tuple[Records, Records | None]:
    """Returns the images of ArrayRecord files that `data_prep/folder_to_array_record.py` wrote.

    Args:
      root: their folder, with `classes.txt`; also gs://BUCKET/FOLDER, which array_record reads.
      train: pattern of the files of training images; "": "train*.array_record".
      eval: pattern of the files of evaluation images; "": "val*.array_record" where there are some.
      allowed: of so many files that cannot be opened at all, cut short say, each counts as
        one unreadable image, and the others are used; that is said. None: they are an error.

    Raises:
      ValueError: no files, a missing shard, no class names, a file that is no ArrayRecord.
    """
    base = directory(root, "root", anywhere=True)
    names = read_class_names(base)
    if not names:
        raise ValueError(f"{base / CLASSES_FILE}: no such file; it holds one class name per line")
    train_files = shards(base, train or "train*.array_record")
    eval_files = shards(base, eval or "val*.array_record")
    if not train_files:
        raise ValueError(f"{base / (train or 'train*.array_record')}: no such files")
    if eval and not eval_files:
        raise ValueError(f"{base / eval}: no such files (config.data.eval)")
    train_records = _records(train_files, names, allowed)
    return train_records, _records(eval_files, names, allowed) if eval_files else None


def shards(folder: Path, pattern: str) -> tuple[str, ...]:
    """Returns the files of a pattern, sorted.

    Raises:
      ValueError: one is called NAME-00000-of-00004.*, but not all four are there.
    """
    files = _matching(folder / pattern)
    matches = (re.search(r"^(.*)-\d{5}-of-(\d{5})", file) for file in files)
    for prefix, total in sorted({match.groups() for match in matches if match}):
        digits = "[0-9]" * 5
        found = _matching(f"{glob.escape(prefix)}-{digits}-of-{total}*")
        numbers = {int(file[len(prefix) + 1 :][:5]) for file in found}
        missing = sorted({*range(int(total))} - numbers)
        if missing:
            raise ValueError(
                f"{prefix}-{missing[0]:05d}-of-{total}.* is missing ({len(missing)} of "
                f"{int(total)} files are)"
            )
    return files


def _matching(pattern: Any) -> tuple[str, ...]:
    """Returns the files of a pattern, sorted; in a store the last part of it is one."""
    if not stores.remote(pattern):
        return tuple(sorted(glob.glob(str(pattern))))
    folder, _, pattern = str(pattern).rpartition("/")
    try:
        found = [entry.path for entry in stores.entries(folder) if entry.is_file()]
    except stores.MISSING:
        return ()
    return tuple(sorted(p for p in found if fnmatch.fnmatchcase(os.path.basename(p), pattern)))


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

    counts, errors = zip(*in_threads(count, files))
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
    *, root: str, train: str, eval: str, name: str, allowed: int | None = None
) -> tuple[Tfds, Tfds | None]:
    """Returns the images of a TFDS classification set, prepared in the array_record format.

    Args:
      root: TFDS's data_dir, also gs://BUCKET/FOLDER; "": its default, $TFDS_DATA_DIR or
        ~/tensorflow_datasets.
      train: split, such as "train[:90%]"; "": "train".
      eval: split; "": "validation" or else "test", where there is one.
      name: of the set, such as "imagenet2012" or "NAME/CONFIG:1.0.0".
      allowed: so many labels may be unreadable where all are needed; None: none.

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

    if stores.remote(root):
        directory(root, "root", anywhere=True)
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
    train_split = _split(builder, name, train or "train", allowed)
    return train_split, _split(builder, name, eval, allowed) if eval else None


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
    if stores.remote(files[0]):
        missing = sorted({*files} - {*_matching(f"{os.path.dirname(files[0])}/*")})
    else:
        missing = [file for file in files if not os.path.isfile(file)]
    if missing:
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
