"""Where images come from: random access by number, encoded as they lie on disk.

A source has `len(source)`, `source.class_names`, `source.labels` (int [N]; records have to be read
for it) and `source[i]`, a dict of
  image  bytes (encoded) or uint8 [H, W, C]
  label  int, 0 <= label < len(class_names): the loader makes sure of it
  name   str, what error messages call the image
`source.identity` tells it from others: digests {"images", "labels"} of what the images are called
below their root and of their labels; of records, which would have to be read for both, one of their
files' names, sizes and numbers of records.
It pickles (files are opened late) and may be read from several threads at once.
"""

import dataclasses
import functools
import glob
import hashlib
import json
import os
import re
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar

import cv2
import numpy as np
from tqdm import tqdm

from jaxcls.config import check_seed, choose, refuse_unused
from jaxcls.data.decode import BadImage
from jaxcls.data.sampling import WEIGHTS, subset

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
CLASSES_FILE = "classes.txt"  # beside lists and records: one class name per line, in label order

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
    "name": "",
    "num_train": 0,
    "num_eval": 0,
    "num_classes": 0,
}


class Source(Protocol):
    class_names: tuple[str, ...]
    labels: np.ndarray
    identity: dict[str, str]

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
) -> Data:
    """Returns the images that `config.data` names: `sources.open(**config.data)`.

    Args:
      source, root, ...: `config.data`, see configs/base.py and the function of each source below.
      image_size: pixels of fake images, height and width.

    Raises:
      ValueError: an unknown source, a key that it does not take, or data that is not as it should
        be: a missing folder, an empty class, a list line without a label, ...
    """
    if not source:
        raise ValueError(f"config.data.source is not set: write one of {', '.join(sorted(TAKES))}")
    choose("config.data.source", source, TAKES)
    choose("config.data.on_bad_image", on_bad_image, ("error", "skip"))
    choose("config.data.sampling", sampling, WEIGHTS)
    choose("config.data.cache", cache, CACHES)
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
    if fraction == 1 and fraction_seed:
        raise ValueError(f"config.data.fraction_seed = {fraction_seed}: not used by fraction = 1.0")
    train_source, eval_source = OPEN[source](**arguments)
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
    def identity(self) -> dict[str, str]:
        chosen = digest([self.indices.tolist()])
        return {key: digest([value, chosen]) for key, value in self.source.identity.items()}

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.source[int(self.indices[index])]


def digest(things: Any) -> str:
    """Returns a digest of what JSON can hold."""
    return hashlib.sha256(json.dumps(things).encode()).hexdigest()


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
    shape = (8, image_size, image_size, 3)
    images = np.random.Generator(np.random.PCG64(0)).integers(0, 256, shape, np.uint8)
    names = tuple(map(str, range(num_classes)))
    return (
        Arrays("fake/train", images, np.arange(num_train) % num_classes, names),
        Arrays("fake/eval", images, np.arange(num_eval) % num_classes, names),
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
    def identity(self) -> dict[str, str]:
        names = [Path(path).as_posix() for path in self.paths]
        return {"images": digest(names), "labels": digest(self.labels.tolist())}

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = os.path.join(self.root, self.paths[index])
        name = f"{path} ({self.listed}:{self.lines[index]})" if self.listed else path
        return {"image": _read(path, name), "label": int(self.labels[index]), "name": name}


def _read(path: str, name: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BadImage(f"{name}: no such file") from error
    except (PermissionError, IsADirectoryError) as error:
        raise BadImage(f"{name}: cannot read it: {error.strerror}") from error


def open_folder(
    *, root: str, train: str, eval: str, eval_fraction: float | None
) -> tuple[Files, Files | None]:
    """Returns the images of `root/train/CLASS/...` and `root/eval/CLASS/...`.

    Classes are the sorted names of the sub-folders of the training folder. Inside a class folders
    may be nested; hidden files and files that are no images by their suffix are left out.

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
    images = {name: _images(train_folder / name) for name in class_names}
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
        held_out = {name: _images(eval_folder / name) for name in _subfolders(eval_folder)}
        unknown = sorted(held_out.keys() - images.keys())
        if unknown:
            raise ValueError(
                f"{eval_folder / unknown[0]}: {train_folder} has no class {unknown[0]!r}"
            )
        if not held_out:
            raise ValueError(f"{eval_folder} has no sub-folders: it needs those of {train_folder}")
    train_files = _files(train_folder, images, class_names)
    return train_files, _files(eval_folder, held_out, class_names) if eval_folder else None


def _split_folders(base: Path, train: str, eval: str) -> tuple[Path, Path | None]:
    if train or (base / "train").is_dir():
        train_folder = _directory(base / (train or "train"), "train")
        if eval or (base / "val").is_dir():
            return train_folder, _directory(base / (eval or "val"), "eval")
        return train_folder, None
    for split in (eval, "val", "valid", "validation", "test"):  # else it would become a class
        if split and (base / split).is_dir():
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
    path = Path(path)
    if not path.is_dir():
        raise ValueError(f"{path}: no such folder (config.data.{key})")
    return path


def _subfolders(folder: Path) -> tuple[str, ...]:
    with os.scandir(folder) as entries:
        return tuple(sorted(e.name for e in entries if e.is_dir() and e.name[0] != "."))


def _images(folder: Path) -> list[str]:
    """Returns the sorted paths of a class's images, relative to the folder of its class's folder.

    Raises:
      ValueError: there are none.
    """
    paths = []
    for directory, subdirectories, names in os.walk(folder, onerror=_raise, followlinks=True):
        subdirectories[:] = [name for name in subdirectories if name[0] != "."]
        images = [n for n in names if n[0] != "." and n.lower().endswith(IMAGE_SUFFIXES)]
        paths += [os.path.relpath(os.path.join(directory, n), folder.parent) for n in images]
    if not paths:
        raise ValueError(f"{folder}: the class {folder.name!r} has no images")
    return sorted(paths)


def _raise(error: OSError) -> None:
    raise error


def _hold_out(paths: Sequence[str], fraction: float) -> list[str]:
    """Returns a share of the paths, those with the least hashes: adding files moves few others."""
    count = min(max(round(fraction * len(paths)), 1), len(paths) - 1)
    ranked = sorted(paths, key=lambda p: hashlib.sha256(Path(p).as_posix().encode()).digest())
    return sorted(ranked[:count])


def _files(folder: Path, images: dict[str, list[str]], class_names: tuple[str, ...]) -> Files:
    label = {name: i for i, name in enumerate(class_names)}
    counts = [len(paths) for paths in images.values()]
    return Files(
        root=str(folder),
        paths=tuple(path for paths in images.values() for path in paths),
        labels=np.repeat(np.array([label[n] for n in images], np.int32), counts),
        class_names=class_names,
    )


def open_list(
    *, root: str, train: str, eval: str, delimiter: str, num_classes: int
) -> tuple[Files, Files | None]:
    """Returns the images of PaddleClas's list files, a line of which is `relative/path label`.

    Class names are those of `root/classes.txt` where it exists, otherwise the labels themselves.

    Args:
      root: the folder that paths and list files are relative to.
      train: list of training images; "": "train_list.txt".
      eval: list of evaluation images; "": "val_list.txt" where there is one.
      delimiter: between path and label; the last one in the line counts.
      num_classes: 0: largest label of `train` + 1, or as many as `root/classes.txt` names.

    Raises:
      ValueError: a missing list, or a line (named) whose label is missing, not a number or not
        below the number of classes. Images are looked for only when they are read.
    """
    base = _directory(root, "root")
    if not delimiter:
        raise ValueError("config.data.delimiter is empty: write what is between path and label")
    names = _read_class_names(base)
    if names and num_classes and len(names) != num_classes:
        raise ValueError(
            f"{base / CLASSES_FILE} names {len(names)} classes, "
            f"config.data.num_classes = {num_classes}"
        )
    count = num_classes or len(names)
    train_rows = _read_list(base / (train or "train_list.txt"), "train", delimiter, count)
    count = count or int(train_rows[1].max()) + 1
    names = names or tuple(map(str, range(count)))

    def files(listed: Path, rows: tuple[tuple[str, ...], np.ndarray, np.ndarray]) -> Files:
        paths, labels, lines = rows
        return Files(str(base), paths, labels, names, str(listed), lines)

    train_files = files(base / (train or "train_list.txt"), train_rows)
    eval_list = base / (eval or "val_list.txt")
    if not eval and not eval_list.is_file():
        return train_files, None
    return train_files, files(eval_list, _read_list(eval_list, "eval", delimiter, count))


def _read_class_names(folder: Path) -> tuple[str, ...]:
    """Returns the lines of `folder/classes.txt`, or () where there is none."""
    path = folder / CLASSES_FILE
    if not path.is_file():
        return ()
    names = tuple(path.read_text(encoding="utf-8").splitlines())
    if not names or not all(names):
        raise ValueError(f"{path}: write one class name in each line, and no empty line")
    return names


def _read_list(
    path: Path, key: str, delimiter: str, num_classes: int
) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Returns paths, labels and line numbers. num_classes = 0: labels have no upper limit."""
    if not path.is_file():
        raise ValueError(f"{path}: no such list file (config.data.{key}, relative to root)")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file in UTF-8: {error.reason}") from error
    paths, labels, lines = [], [], []
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.rstrip("\r")
        if not line.strip():
            continue
        image, found, label = line.rstrip().rpartition(delimiter)
        if not found or not image.strip():
            raise ValueError(
                f"{path}:{number}: no label after the delimiter {delimiter!r} in {line!r}"
            )
        if not re.fullmatch(r"\s*[+-]?[0-9]+\s*", label):
            raise ValueError(f"{path}:{number}: the label {label!r} is not a whole number")
        value = int(label)
        limit = num_classes or 2**31
        if not 0 <= value < limit:
            raise ValueError(
                f"{path}:{number}: the label {value} is out of range: there are "
                f"{num_classes} classes, 0 to {num_classes - 1}"
                if num_classes
                else f"{path}:{number}: the label {value} is out of range: labels begin with 0"
            )
        paths.append(image.rstrip())
        labels.append(value)
        lines.append(number)
    if not paths:
        raise ValueError(f"{path}: the list is empty")
    return tuple(paths), np.array(labels, np.int32), np.array(lines, np.int32)


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
        else:
            image = record[end:]
        return {"image": image, "label": int(header["label"]), "name": str(header["name"])}
    except (struct.error, ValueError, KeyError, TypeError) as error:
        raise ValueError("not a record of data_prep/folder_to_array_record.py") from error


@dataclasses.dataclass(frozen=True, eq=False)
class Records:
    """Images in ArrayRecord files."""

    files: tuple[str, ...]
    records: Any  # array_record's data source: opens files late, pickles
    class_names: tuple[str, ...]

    @property
    def identity(self) -> dict[str, str]:
        files = [(Path(file).name, os.path.getsize(file)) for file in self.files]
        return {"images": digest([files, len(self)])}

    @functools.cached_property
    def labels(self) -> np.ndarray:
        return np.array(list(for_all(lambda i: self[i]["label"], len(self), "reading labels")))

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            return unpack_record(self.records[index])
        except ValueError as error:
            raise ValueError(f"record {index} of {self.files[0]}, ...: {error}") from error


def open_array_record(*, root: str, train: str, eval: str) -> tuple[Records, Records | None]:
    """Returns the images of ArrayRecord files that `data_prep/folder_to_array_record.py` wrote.

    Args:
      root: their folder, with `classes.txt`.
      train: pattern of the files of training images; "": "train*.array_record".
      eval: pattern of the files of evaluation images; "": "val*.array_record" where there are some.

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
    return _records(train_files, names), _records(eval_files, names) if eval_files else None


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


def _records(files: tuple[str, ...], names: tuple[str, ...]) -> Records:
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    try:
        records = ArrayRecordDataSource(files)
    except Exception as error:  # what its C++ raises depends on the damage
        raise ValueError(f"{files[0]}, ...: not ArrayRecord files: {error}") from error
    if not len(records):
        raise ValueError(f"{files[0]}, ...: no records")
    return Records(files, records, names)


# -- TensorFlow Datasets, without TensorFlow -------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Tfds:
    """Images of a split of a TFDS set, still encoded."""

    label: str  # "imagenet2012/train"
    records: Any  # TFDS's data source: opens files late, pickles
    class_names: tuple[str, ...]
    identity: dict[str, str]

    @functools.cached_property
    def labels(self) -> np.ndarray:
        return np.array(list(for_all(lambda i: self[i]["label"], len(self), "reading labels")))

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.records[index]
        name = f"{self.label}[{index}]"
        if "file_name" in item:
            name += f" {item['file_name'].decode(errors='replace')}"
        return {"image": item["image"], "label": int(item["label"]), "name": name}


def open_tfds(*, root: str, train: str, eval: str, name: str) -> tuple[Tfds, Tfds | None]:
    """Returns the images of a TFDS classification set, prepared in the array_record format.

    Args:
      root: TFDS's data_dir; "": its default, ~/tensorflow_datasets.
      train: split, such as "train[:90%]"; "": "train".
      eval: split; "": "validation" or else "test", where there is one.
      name: of the set, such as "imagenet2012" or "NAME/CONFIG:1.0.0".

    Raises:
      ValueError: the set is missing or prepared as tfrecord (with the command that prepares it), an
        unknown split, or features without "image" and "label".
    """
    if not name:
        raise ValueError('config.data.name is not set: name a TFDS set, such as "imagenet2012"')
    from tensorflow_datasets.core.read_only_builder import builder_from_files
    from tensorflow_datasets.core.registered import DatasetNotFoundError

    where = root or "~/tensorflow_datasets"
    command = f"tfds build {name} --file_format=array_record --data_dir={where}"
    advice = f"prepare it with `{command}` (needs TensorFlow: pip install 'jaxcls[tf]')"
    try:
        builder = builder_from_files(name, data_dir=root or None)
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
    return _split(builder, name, train or "train"), _split(builder, name, eval) if eval else None


def _split(builder: Any, name: str, split: str) -> Tfds:
    from tensorflow_datasets import decode

    try:
        records = builder.as_data_source(split, decoders={"image": decode.SkipDecoding()})
    except ValueError as error:
        known = ", ".join(builder.info.splits)
        raise ValueError(f"TFDS set {name!r}: no split {split!r}, choose from {known}") from error
    parts = builder.info.splits[split].file_instructions
    identity = digest([[Path(p.filename).name, p.skip, p.examples_in_shard, p.take] for p in parts])
    class_names = tuple(builder.info.features["label"].names)
    return Tfds(f"{name}/{split}", records, class_names, {"images": identity})


OPEN = {
    "digits": open_digits,
    "folder": open_folder,
    "list": open_list,
    "array_record": open_array_record,
    "tfds": open_tfds,
    "fake": open_fake,
}
assert OPEN.keys() == TAKES.keys()
