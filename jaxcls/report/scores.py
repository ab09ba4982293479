"""What a network says about every evaluation image, on the host, from the pass that counts."""

from collections.abc import Callable, Mapping, Sized
from typing import Any

import jax
import numpy as np

from jaxcls import steps

Rows = Mapping[str, Any]  # "logits" [B, K], "label" [B] or [B, K], "mask" [B]
MAX_BYTES = 4 * 2**30  # of all logits


def make_step(
    predict: Callable[..., Mapping[str, jax.Array]],
    per_image: Callable[..., dict[str, jax.Array]],
) -> Callable[..., tuple[dict[str, jax.Array], dict[str, jax.Array]]]:
    """Returns score_step(variables, batch) -> (sums, rows), sums as of `steps.make_eval_step`.

    The rows are of the global batch; where its images are spread over processes, jitted without a
    sharding of its output, each has them all.
    """

    def score_step(variables: Any, batch: Mapping[str, jax.Array]):
        outputs = predict(variables, batch["image"])
        count = steps.make_eval_step(lambda variables, images: outputs, per_image)
        rows = {"logits": outputs["logits"], "label": batch["label"], "mask": batch["mask"]}
        return count(variables, batch), rows

    return score_step


def too_many(source: Sized, classes: int) -> str:
    """Returns why there can be no scores of all images of a source; "" if there can."""
    needed = 4 * len(source) * classes
    if needed <= MAX_BYTES:
        return ""
    return (
        f"the scores of {len(source):,} images and {classes:,} classes take "
        f"{needed / 2**30:.1f} GiB, more than the {MAX_BYTES / 2**30:g} of a report"
    )


class Scores:
    """Logits and labels of the images of a source, in its order, each that can be read once."""

    def __init__(self, count: int):
        """Makes room for `count` images."""
        self.count = count
        self.next = 0  # number in the source of the next row
        self.filled = 0
        self.parts: dict[str, np.ndarray] = {}

    @classmethod
    def of(cls, source: Sized, classes: int) -> "Scores | None":
        """Returns room for the images of a source on process 0, None on others.

        Raises:
          ValueError: there are too many for memory.
        """
        if problem := too_many(source, classes):
            raise ValueError(problem)
        return None if jax.process_index() else cls(len(source))

    def add(self, rows: Rows) -> None:
        """Takes the rows of the next batch; those that are masked are left out."""
        mask = np.asarray(rows["mask"])
        numbers = np.arange(self.next, self.next + len(mask))
        self.next += len(mask)
        kept = {"numbers": numbers, "labels": rows["label"], "logits": rows["logits"]}
        kept = {name: np.asarray(value)[mask] for name, value in kept.items()}
        end = self.filled + int(mask.sum())
        for name, value in kept.items():
            if name not in self.parts:
                kind = np.float32 if name == "logits" else value.dtype
                self.parts[name] = np.empty((self.count, *value.shape[1:]), kind)
            self.parts[name][self.filled : end] = value
        self.filled = end

    @property
    def numbers(self) -> np.ndarray:
        """Numbers of the images in the source, int [N], ascending."""
        return self.parts["numbers"][: self.filled]

    @property
    def labels(self) -> np.ndarray:
        """int [N], -1 for images without; or marks [N, K]."""
        return self.parts["labels"][: self.filled]

    @property
    def logits(self) -> np.ndarray:
        """float32 [N, K]."""
        return self.parts["logits"][: self.filled]
