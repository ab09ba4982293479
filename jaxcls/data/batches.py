"""Batch number `step` of a run or an evaluation: which images, in which order, augmented how.

It is a pure function of the step and does not depend on the number of processes, threads and
workers. Image number g = step * batch_size + row of a run is

    order(epoch)[position in the epoch]      epoch = step // floor(N / batch_size)

(of N images and rows with a label, where a share of each batch has none)

and draws its augmentation from Philox, a counter-based generator, with the key (seed, g). Worker
processes import this module: it needs neither JAX nor grain.
"""

import dataclasses
import functools
from typing import Any

import numpy as np

from jaxcls.data.access import TEACHER, Source
from jaxcls.data.decode import BadImage
from jaxcls.data.labels import of_batch
from jaxcls.data.ops import Transform, transformed
from jaxcls.data.sampling import MixedOrder, Order

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class MakeBatch:
    """Random access to batches by step, for grain: (batch, [(index, message) of bad images])."""

    source: Source
    transform: Transform
    batch_size: int
    rows: np.ndarray  # int [L]
    num_batches: int
    order: Order | MixedOrder | None  # None: evaluation
    seed: int
    max_bad_images: int | None  # None: a bad image is an error

    def __len__(self) -> int:
        return self.num_batches

    @functools.cached_property
    def _kinds(self) -> np.ndarray:
        mixed = isinstance(self.order, MixedOrder)
        return self.source.has_label if mixed else np.zeros(len(self.source), bool)

    def __getitem__(self, step: int) -> tuple[Batch, list[tuple[int, str]]]:
        count = len(self.source)
        examples = step * self.batch_size + self.rows  # g of the module's docstring
        if self.order:
            epoch, step_in_epoch = divmod(step, self.order.steps)
            indices = self.order(epoch)[step_in_epoch * self.batch_size + self.rows]
            mask = np.ones(len(indices), bool)
        else:
            indices = examples % count
            mask = examples < count

        rng = np.random.Generator(np.random.Philox(0))
        bad: dict[int, str] = {}
        images, labels, others = None, [], {}
        for row, (index, example) in enumerate(zip(indices.tolist(), examples.tolist())):
            if row and not mask[row]:
                images[row] = images[0]
                labels.append(labels[0])
                for values in others.values():
                    values.append(values[0])
                continue
            image, item, found = self._read(index, example, rng, bad)
            labels.append(item["label"])
            for key in TEACHER & item.keys():
                others.setdefault(key, []).append(item[key])
            if found != index and not self.order:
                mask[row] = False
            if images is None:
                images = np.empty((len(indices), *image.shape), image.dtype)
            images[row] = image

        marks = getattr(self.source, "marks", 0)  # a source of one's own may know numbers only
        batch = {"image": images, "label": of_batch(labels, marks)}
        for key, values in others.items():
            if len(values) < len(labels) or len({*map(len, values)}) > 1:
                raise ValueError(
                    "some training images have outputs of a teacher and some have none, or others: "
                    "write all records with one command"
                )
            batch[key] = np.stack(values)
        return batch if self.order else batch | {"mask": mask}, list(bad.items())

    def _read(
        self, index: int, example: int, rng: np.random.Generator, bad: dict[int, str]
    ) -> tuple[np.ndarray, dict[str, Any], int]:
        """Returns the first readable image from `index` on, transformed, its item, and which.

        Where rows are for images with a label or for such without, it is one of the same kind.

        Raises:
          BadImage: `index` is unreadable and not to be skipped.
          ValueError: too many are unreadable.
        """
        for candidate in range(index, index + len(self.source)):
            candidate %= len(self.source)
            if bad and self._kinds[candidate] != self._kinds[index]:
                continue
            try:
                item = self.source[candidate]
                _seek(rng.bit_generator, self.seed, example)
                image = transformed(item, self.transform, rng)
            except BadImage as error:
                if self.max_bad_images is None:
                    raise
                bad[candidate] = str(error)
                if len(bad) > self.max_bad_images:
                    refuse(bad, self.max_bad_images)
                continue
            return image, item, candidate
        raise ValueError(f"none of the {len(self.source)} images can be read: {bad[index]}")


def _seek(bits: np.random.Philox, seed: int, example: int) -> None:
    """Puts the generator where `Philox(key=[seed, example])` begins, in a sixth of the time."""
    bits.state = {
        "bit_generator": "Philox",
        "state": {
            "counter": np.zeros(4, np.uint64),
            "key": np.array([seed, example], np.uint64),
        },
        "buffer": np.zeros(4, np.uint64),
        "buffer_pos": 4,  # nothing in the buffer
        "has_uint32": 0,
        "uinteger": 0,
    }


def refuse(bad_images: dict[int, str], limit: int) -> None:
    """Raises the error of too many unreadable images."""
    raise ValueError(
        f"{len(bad_images)} images cannot be read, config.data.max_bad_images = {limit}; the last: "
        f"{list(bad_images.values())[-1]}"
    )
