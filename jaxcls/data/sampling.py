"""Which images an epoch has, and in which order: a pure function of (seed, epoch).

The streams of random numbers are Philox's, a counter-based generator: key and counter say which.
Orders come from sorting raw numbers, because NumPy promises that these stay the same in its next
versions, while `Generator.permutation` may change. The last word of the counter keeps the streams
here apart, and clear of the examples' own (data/loader.py).
"""

import dataclasses
import functools
import math
import threading

import numpy as np

from jaxcls.config import choose, labelled_rows
from jaxcls.data.labels import groups

# How many images of each class an epoch has, by the number of images that the class has.
WEIGHTS = {"shuffle": None, "balanced": np.ones_like, "sqrt": np.sqrt}
GOLDEN = (5**0.5 - 1) / 2
EPOCH, CLASS, SUBSET, UNLABELLED = 1, 2, 3, 4  # streams


def permutation(count: int, key: tuple[int, int], stream: int, number: int = 0) -> np.ndarray:
    """Returns a random order of `count` things, int64 [count]."""
    bits = np.random.Philox(key=np.array(key, np.uint64), counter=[0, number, 0, stream])
    return np.argsort(bits.random_raw(count), kind="stable")


@dataclasses.dataclass(frozen=True, eq=False)
class Order:
    """order(epoch) -> the images of an epoch, int64 [floor(N / batch_size) * batch_size].

    Entry i is the number of the image at position i; batches are consecutive entries.

    "shuffle": a random permutation, cut off after the last whole batch: no image twice.
    "balanced", "sqrt": every class gets the same share of the positions, or one proportional to
    the square root of its number of images. What a class gets in an epoch is its share rounded down
    or up (systematic resampling: one offset an epoch for all classes, whose sequence is evenly
    spread), so that over epochs it is the share. A class walks through random permutations of its
    images and goes on in the next epoch where it stopped: of two images of a class neither ever
    is more than one visit ahead.

    With `repeats` = r (repeated augmentation: Hoffer et al. 2019, arXiv:1901.09335; Berman et al.
    2019, arXiv:1902.05509) a batch has batch_size / r images r times, each augmented on its own;
    row i and row i + batch_size / r show the same one. The number of steps stays: an epoch visits
    an r-th as many images.

    Args:
      count: N, images of the source.
      batch_size: of the global batch.
      seed: an int in [0, 2**64).
      sampling: "shuffle", "balanced" or "sqrt".
      repeats: r.
      labels: int [N] or marks [N, K], for all but "shuffle".
    """

    count: int
    batch_size: int
    seed: int
    sampling: str = "shuffle"
    repeats: int = 1
    labels: np.ndarray | None = None

    def __post_init__(self):
        check(self.sampling, self.repeats, self.batch_size)

    def __call__(self, epoch: int) -> np.ndarray:
        with _lock:  # all threads wait for one to make it
            return _order(self, epoch)

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        return self.count // self.batch_size

    def _make(self, epoch: int) -> np.ndarray:
        steps = self.steps
        visits = steps * self.batch_size // self.repeats
        if self.sampling == "shuffle":
            images = permutation(self.count, (self.seed, epoch), EPOCH)[:visits]
        else:
            images = self._resample(visits, epoch)
            images = images[permutation(visits, (self.seed, epoch), EPOCH)]
        return np.tile(images.reshape(steps, -1), self.repeats).ravel()

    @functools.cached_property
    def _classes(self) -> list[np.ndarray]:
        return list(by_class(self.labels).values())

    def _resample(self, visits: int, epoch: int) -> np.ndarray:
        """Returns the images of an epoch, class by class."""
        counts = self._counts(visits, np.array([epoch]))[0]
        before = self._before(visits, epoch)
        walks = map(self._walk, range(len(counts)), before.tolist(), counts.tolist())
        return np.concatenate(list(walks))

    def _counts(self, visits: int, epochs: np.ndarray) -> np.ndarray:
        """Returns how often each class is visited in each epoch, int64 [E, C]; rows sum up."""
        weights = WEIGHTS[self.sampling](np.array([len(c) for c in self._classes], float))
        ends = np.concatenate([[0], np.cumsum(weights)])
        ends = visits * ends / ends[-1]  # class c has the positions from ends[c] to ends[c + 1]
        edges = np.floor(ends + (epochs * GOLDEN % 1)[:, None]).astype(np.int64)
        edges = np.clip(edges, 0, visits)
        edges[:, 0], edges[:, -1] = 0, visits  # whatever was rounded
        return np.diff(edges)

    def _before(self, visits: int, epoch: int) -> np.ndarray:
        """Returns how often each class was visited before an epoch, int64 [C]."""
        known = max((e for e in self._sums if e <= epoch), default=0)
        total = self._sums.get(known, np.zeros(len(self._classes), np.int64))
        for start in range(known, epoch, 1024):  # the next epoch mostly; many after a resume
            epochs = np.arange(start, min(start + 1024, epoch))
            total = total + self._counts(visits, epochs).sum(0)
        self._sums.clear()
        self._sums[epoch] = total
        return total

    @functools.cached_property
    def _sums(self) -> dict[int, np.ndarray]:
        return {}

    def _walk(self, number: int, start: int, length: int) -> np.ndarray:
        """Returns the visits `start` to `start + length` - 1 to the images of a class."""
        return _walk(self._classes[number], self.seed, start, length, CLASS, number)


def _walk(
    images: np.ndarray, seed: int, start: int, length: int, stream: int, number: int = 0
) -> np.ndarray:
    """Returns a part of the endless walk through random permutations of images."""
    first, skip = divmod(start, len(images))
    rounds = range(first, first + -(-(skip + length) // len(images)))
    orders = [permutation(len(images), (seed, k), stream, number) for k in rounds]
    return images[np.concatenate([*orders, np.zeros(0, np.int64)])[skip : skip + length]]


@dataclasses.dataclass(frozen=True, eq=False)
class MixedOrder:
    """As `Order`, with the same number of images with and without a label in every batch.

    An epoch is one of the images with a label, as `order` says. Those without are a walk through
    random permutations of all of them that goes on in the next epoch, so that few are seen several
    times in an epoch and of many a part. Their rows are the same in all batches and spread evenly
    over a batch, over its contiguous parts (devices, groups of BatchNorm) as over every k-th row
    (micro-batches): of the multiples of the root of 2, modulo 1, the smallest are theirs. (Those of
    the golden ratio, a usual choice, come in order at every 8th.)

    Args:
      order: of the images with a label, its batches being their rows.
      labelled, unlabelled: numbers of the images of both kinds, int.
      batch_size: of the global batch.
    """

    order: Order
    labelled: np.ndarray
    unlabelled: np.ndarray
    batch_size: int

    def __call__(self, epoch: int) -> np.ndarray:
        with _lock:
            return _order(self, epoch)

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        return self.order.steps

    def _make(self, epoch: int) -> np.ndarray:
        rows = self.batch_size - self.order.batch_size
        visits = self.steps * rows
        theirs = _walk(self.unlabelled, self.order.seed, epoch * visits, visits, UNLABELLED)
        out = np.empty((self.steps, self.batch_size), np.int64)
        of_row = np.argsort(np.arange(self.batch_size) * 2**0.5 % 1, kind="stable")
        out[:, np.sort(of_row[:rows])] = theirs.reshape(-1, rows)
        ours = self.labelled[self.order._make(epoch)]
        out[:, np.sort(of_row[rows:])] = ours.reshape(self.steps, -1)
        return out.ravel()


_lock = threading.Lock()


@functools.lru_cache(maxsize=2)  # batches made ahead of time may belong to the next epoch
def _order(order: Order | MixedOrder, epoch: int) -> np.ndarray:
    return order._make(epoch)


def check(sampling: str, repeats: int, batch_size: int, unlabelled_share: float = 0.0) -> None:
    """Refuses an unknown sampling, and repeats that do not divide the batch."""
    choose("config.data.sampling", sampling, WEIGHTS)
    labelled = labelled_rows(batch_size, unlabelled_share)
    if repeats > 0 and labelled % repeats and labelled < batch_size:
        raise ValueError(
            f"config.data.repeats = {repeats} does not divide the {labelled} images with a label "
            f"of a batch (config.batch_size = {batch_size}, config.data.unlabelled_share)"
        )
    if repeats < 1 or labelled % repeats:
        raise ValueError(
            f"config.data.repeats = {repeats} does not divide config.batch_size = {batch_size}"
        )


def subset(
    labels: np.ndarray, fraction: float, seed: int, long_tail: float = 1.0, classes: int = 0
) -> np.ndarray:
    """Returns a random share of the images of each class, at least one: their numbers, ascending.

    Of two fractions the larger has all images of the smaller.

    Args:
      labels: int [N] or marks [N, K].
      fraction: the share, in (0, 1].
      seed: an int in [0, 2**64).
      long_tail: class c of K has fraction * long_tail^(-c / (K - 1)) of its images: of a balanced
        set that is a long-tailed one with this imbalance factor (Cui et al. 2019, arXiv:1901.05555,
        section 5.1), the first class the largest.
      classes: K; labels from there on, of images without a class, are a share as without long_tail.

    Raises:
      ValueError: a fraction or a factor out of range.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"config.data.fraction = {fraction}: write a share above 0, at most 1.0")
    if not 1 <= long_tail < math.inf:
        raise ValueError(
            f"config.data.long_tail = {long_tail}: write how many images the first class has for "
            "each of the last, such as 100.0; 1.0: leave them as they are"
        )
    chosen = []
    for label, images in by_class(labels).items():
        order = permutation(len(images), (seed, label), SUBSET)
        share = fraction * (long_tail ** (-label / (classes - 1)) if label < classes else 1)
        chosen.append(images[order[: max(round(share * len(images)), 1)]])
    return np.sort(np.concatenate(chosen))


def by_class(labels: np.ndarray) -> dict[int, np.ndarray]:
    """Returns {label: the numbers of its images, ascending} of the labels that occur.

    Negative ones, of images without a label and records that cannot be read, are left out. Of marks
    [N, K] the label is the image's group, see `labels.groups`.
    """
    labels = groups(labels)
    values, counts = np.unique(labels, return_counts=True)
    images = np.split(np.argsort(labels, kind="stable"), np.cumsum(counts)[:-1])
    return {label: of for label, of in zip(values.tolist(), images) if label >= 0}
