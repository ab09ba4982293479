"""Images in memory, and some of another source's; without grain and jax: workers import this."""

import dataclasses
import functools
from typing import Any

import cv2
import numpy as np

from jaxcls.data.access import MAX_CLASSES, Source, digest, digest_of_labels
from jaxcls.data.labels import NONE, Labelled, one
from jaxcls.data.ops import check_size

BACKGROUND = "background"  # class of images that show none of the others
MAX_IMAGES = 100_000_000


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
    def marks(self) -> int:
        return self.source.marks

    @property
    def has_label(self) -> np.ndarray:
        return self.source.has_label[self.indices]

    @property
    def identity(self) -> dict[str, Any]:
        chosen = digest([self.indices.tolist()])
        whole = self.source.identity
        return whole | {k: digest([v, chosen]) for k, v in whole.items() if k != "some"}

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.source[int(self.indices[index])]


@dataclasses.dataclass(frozen=True, eq=False)
class WithBackground:
    """A source one of whose classes comes last, as `BACKGROUND`; labels are numbers of classes."""

    source: Source
    background: int  # the number that the class has there

    @property
    def class_names(self) -> tuple[str, ...]:
        names, last = self.source.class_names, self.background
        return (*names[:last], *names[last + 1 :], BACKGROUND)

    @functools.cached_property
    def labels(self) -> np.ndarray:
        return self._renumbered(self.source.labels)

    @property
    def marks(self) -> int:
        return 0

    @property
    def has_label(self) -> np.ndarray:
        return self.source.has_label

    @property
    def identity(self) -> dict[str, Any]:
        return self.source.identity  # class names are compared too

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.source[index]
        moved = {"label": int(self._renumbered(np.array(item["label"])))}
        if "teacher_classes" in item:
            moved["teacher_classes"] = self._renumbered(item["teacher_classes"])
        return item | moved

    def _renumbered(self, labels: np.ndarray) -> np.ndarray:
        classes = len(self.source.class_names)
        moved = np.where(
            labels == self.background, classes - 1, labels - (labels > self.background)
        )
        return moved.astype(labels.dtype)


@dataclasses.dataclass(frozen=True, eq=False)
class Joined:
    """Images of a source, and behind them those of another one, whose labels do not count."""

    source: Source
    unlabelled: Source

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.source.class_names

    @functools.cached_property
    def labels(self) -> np.ndarray:
        ours = self.source.labels
        none = np.full((len(self.unlabelled), *ours.shape[1:]), NONE, ours.dtype)
        return np.concatenate([ours, none])

    @property
    def marks(self) -> int:
        return self.source.marks

    @property
    def has_label(self) -> np.ndarray:
        return np.concatenate([self.source.has_label, np.zeros(len(self.unlabelled), bool)])

    @property
    def identity(self) -> dict[str, Any]:
        ours, theirs = self.source.identity, self.unlabelled.identity
        known = {f"{name} of data.unlabelled": v for name, v in theirs.get("some", {}).items()}
        images = digest([ours["images"], theirs["images"]])
        return ours | {"images": images, "some": ours.get("some", {}) | known}

    def __len__(self) -> int:
        return len(self.source) + len(self.unlabelled)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index < len(self.source):
            return self.source[index]
        return self.unlabelled[index - len(self.source)] | {"label": NONE}


@dataclasses.dataclass(frozen=True, eq=False)
class Arrays(Labelled):
    """Images in memory: uint8 [N, H, W, C]; image i is `images[i % N]`."""

    kind: str  # what the names begin with
    images: np.ndarray
    labels: np.ndarray  # int [number of images], or marks [number of images, K]
    class_names: tuple[str, ...]

    @property
    def identity(self) -> dict[str, str]:
        return {"images": digest([self.kind, len(self)]), "labels": digest_of_labels(self.labels)}

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            "image": self.images[index % len(self.images)],
            "label": one(self.labels, index),
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
