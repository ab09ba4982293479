"""What an image shows: the number of a class, none, or a mark for each class.

    int         the class; -1 (`NONE`) where the image has no label
    [K]         marks, of images that show several classes: 1 or 0, in soft labels the weight of the
                class in between; NONE in all of them where the image has no label

Labels of N images are int [N], or [N, K], of whole marks int8 and of others float32; those of a
batch, `batch["label"]`, int32 [B] or float32 [B, K]. An image all of whose marks are 0 does have a
label: it shows none of the classes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

NONE = -1


def marks_of(labels: np.ndarray) -> int:
    """Returns K of marks [N, K]; 0 of numbers [N]."""
    return labels.shape[1] if labels.ndim == 2 else 0


class Labelled:
    """What a source (data/access.py) tells of its `labels`, where they need no reading."""

    labels: np.ndarray  # int [N], or marks [N, K]

    @property
    def marks(self) -> int:
        return marks_of(self.labels)

    @property
    def has_label(self) -> np.ndarray:
        return labelled(self.labels)


def one(labels: np.ndarray, index: int) -> Any:
    """Returns the label of an image: an int, or marks [K]."""
    return labels[index] if labels.ndim == 2 else int(labels[index])


def labelled(labels: np.ndarray) -> np.ndarray:
    """Returns which images have a label, bool [N]."""
    return (labels >= 0).any(-1) if labels.ndim == 2 else labels >= 0


def of_batch(labels: Sequence[Any], marks: int) -> np.ndarray:
    """Returns the labels of a batch, int32 [B] or float32 [B, K].

    Args:
      labels: of each image; NONE may stand for marks, too.
      marks: K; 0: they are numbers of classes.
    """
    if not marks:
        return np.asarray(labels, np.int32)
    out = np.empty((len(labels), marks), np.float32)
    for row, label in zip(out, labels):
        row[:] = label
    return out


def groups(labels: np.ndarray) -> np.ndarray:
    """Returns for each image one class to count it in, int [N]; NONE without a label.

    Of several that an image shows, the rarest one, by the number of images that show it: it is the
    one that resampling is for. K where it shows none of them.
    """
    if labels.ndim == 1:
        return labels
    shown = labels > 0
    by_rarity = np.argsort(counts(labels, labels.shape[1]), kind="stable")
    group = by_rarity[shown[:, by_rarity].argmax(1)]
    group[~shown.any(1)] = labels.shape[1]
    group[~labelled(labels)] = NONE
    return group


def counts(labels: np.ndarray, classes: int) -> np.ndarray:
    """Returns how many images show each class, int [K]."""
    if labels.ndim == 2:
        return (labels > 0).sum(0)
    return np.bincount(labels[labels >= 0], minlength=classes)


def names_of(label: Any, class_names: Sequence[str]) -> list[str]:
    """Returns what a label, a number or marks [K], says, for people: [] without one."""
    marks = np.atleast_1d(label)
    if np.ndim(label):
        return [class_names[i] for i in np.flatnonzero(marks > 0).tolist()]
    return [class_names[i] for i in marks.tolist() if i >= 0]
