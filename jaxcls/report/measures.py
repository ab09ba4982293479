"""Measures of predictions: NumPy arrays in, numbers out, computed in float64.

Labels and predictions are numbers of classes, int [N]; every image has a label here. Where a
measure divides by nothing (a class without images, or that is never predicted) it is 0.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

BINS = 15  # of calibration, as Guo et al. 2017 have
CHUNK = 1024  # images that are computed together
INTERVAL = 0.95


# -- Scores ----------------------------------------------------------------------------------------


def chunks(*arrays: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    """Yields some rows of all arrays at a time, of floating ones in float64."""
    for start in range(0, len(arrays[0]), CHUNK):
        rows = (array[start : start + CHUNK] for array in arrays)
        yield tuple(x.astype(np.float64) if x.dtype.kind == "f" else x for x in rows)


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Returns softmax(logits / temperature) of rows [..., K]."""
    scaled = logits / temperature
    with np.errstate(invalid="ignore"):  # rows that are not finite stay so
        e = np.exp(scaled - scaled.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Returns 1 / (1 + exp(-logits)), in float64."""
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-logits.astype(np.float64)))


def by_image(
    logits: np.ndarray, labels: np.ndarray, temperature: float = 1.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns prediction, its probability, rank and probability of the label, [N] each.

    The prediction is the first class of the largest logit. The rank is the number of classes before
    the label (`losses.rank`), K where logits are NaN or the label is -1; its probability is then 0.
    """
    predictions, ranks = (np.empty(len(labels), np.int64) for _ in range(2))
    probability, of_label = (np.empty(len(labels)) for _ in range(2))
    classes, start = np.arange(logits.shape[1]), 0
    for z, y in chunks(logits, labels):
        at, rows = slice(start, start + len(y)), np.arange(len(y))
        p = softmax(z, temperature)
        predictions[at] = z.argmax(1)
        probability[at] = p[rows, predictions[at]]
        mine = z[rows, y][:, None]
        before = (z > mine) | ((z == mine) & (classes < y[:, None]))
        wrong = np.isnan(z).any(1) | (y < 0)
        ranks[at] = np.where(wrong, len(classes), before.sum(1))
        of_label[at] = np.where(wrong, 0, p[rows, y])
        start += len(y)
    return predictions, probability, ranks, of_label


# -- Classes ---------------------------------------------------------------------------------------


class PerClass(NamedTuple):
    """Of each class, [K]."""

    precision: np.ndarray  # right ones among those predicted
    recall: np.ndarray  # right ones among those there are: the accuracy of the class
    f1: np.ndarray  # harmonic mean of both
    support: np.ndarray  # int, images
    predicted: np.ndarray  # int, images


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.zeros(np.shape(b)), where=np.asarray(b) > 0)


def per_class(labels: np.ndarray, predictions: np.ndarray, classes: int) -> PerClass:
    """Returns precision, recall, F1 and number of images of each class."""
    count = lambda x: np.bincount(x, minlength=classes)
    right, support, predicted = map(count, (labels[labels == predictions], labels, predictions))
    precision, recall = _ratio(right, predicted), _ratio(right, support)
    return PerClass(precision, recall, _ratio(2 * right, support + predicted), support, predicted)


def averages(table: PerClass) -> dict[str, dict[str, float]]:
    """Returns {"macro", "micro", "weighted": {"precision", "recall", "f1"}}, as scikit-learn's.

    Macro: the mean over the classes that have images or are predicted. Weighted: each class counts
    as often as it has images. Micro: over all images, where all three are the accuracy.
    """
    names = ("precision", "recall", "f1")
    there = (table.support + table.predicted) > 0
    weights = {"macro": there.astype(float), "weighted": table.support.astype(float)}
    out = {
        kind: {n: float((getattr(table, n) * w).sum() / max(w.sum(), 1)) for n in names}
        for kind, w in weights.items()
    }
    accuracy = float((table.recall * table.support).sum() / max(table.support.sum(), 1))
    return out | {"micro": dict.fromkeys(names, accuracy)}


def confusion(labels: np.ndarray, predictions: np.ndarray, classes: int) -> np.ndarray:
    """Returns the number of images of each label (row) and prediction (column), int [K, K]."""
    cells = np.bincount(labels * classes + predictions, minlength=classes * classes)
    return cells.reshape(classes, classes)


def confused(labels: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """Returns (label, prediction, images) of every mistake that occurs, the most frequent first."""
    wrong = labels != predictions
    pairs = np.stack([labels[wrong], predictions[wrong]], 1)
    pairs, counts = np.unique(pairs, axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return np.concatenate([pairs, counts[:, None]], 1)[order]


# -- Calibration -----------------------------------------------------------------------------------


class Bin(NamedTuple):
    """The images whose probability is in (low, high]."""

    low: float
    high: float
    images: int
    probability: float  # mean
    accuracy: float


def reliability(
    probability: np.ndarray, right: np.ndarray, bins: int = BINS
) -> tuple[float, list[Bin]]:
    """Returns the expected calibration error and the bins that it is the sum of.

    Guo et al. 2017 (arXiv:1706.04599), equations 2, 3 and 5: predictions are put into M = 15 bins
    of equal width by their probability, bin m being ((m - 1) / M, m / M], and

        ECE = sum_m |B_m| / N  | accuracy(B_m) - mean probability(B_m) |

    Args:
      probability: of the predicted class, [N] in [0, 1].
      right: whether it is the label, bool [N].
    """
    edges = np.linspace(0, 1, bins + 1)
    # one that is not finite counts as certain: the network says nothing better
    probability = np.where(np.isfinite(probability), probability, 1.0)
    which = np.digitize(probability, edges[1:-1], right=True)
    images = np.bincount(which, minlength=bins)
    sums = (np.bincount(which, values, bins) for values in (probability, right.astype(float)))
    confidence, accuracy = (_ratio(total, images) for total in sums)
    error = float((images * abs(accuracy - confidence)).sum() / max(len(right), 1))
    columns = (edges[:-1], edges[1:], images, confidence, accuracy)
    return error, [Bin(*row) for row in zip(*(column.tolist() for column in columns))]


TEMPERATURES = (0.05, 20.0)  # that are looked at: of images that are all right the best is 0


def temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Returns T that minimises the mean cross-entropy of softmax(logits / T) with the labels.

    Guo et al. 2017, section 4.2. The cross-entropy is convex in 1 / T: Newton's method on its
    derivative, the mean over the images of E[z] - z_label, inside `TEMPERATURES`, one of which it
    is where all images are right, or hardly any. Rows that are not finite are left out; without
    any, and where no T changes anything, such as for equal logits, T is 1.
    """
    finite = np.isfinite(logits).all(1) & (labels >= 0)
    if not finite.any():
        return 1.0
    if not finite.all():
        logits, labels = logits[finite], labels[finite]

    def derivatives(b: float) -> tuple[float, float]:
        first = second = 0.0
        for z, y in chunks(logits, labels):
            z -= z.max(1, keepdims=True)  # so that what does not differ is 0
            p = softmax(z, 1 / b)
            mean = (p * z).sum(1)
            first += float((mean - z[np.arange(len(y)), y]).sum())
            second += float((p * (z - mean[:, None]) ** 2).sum())
        return first / len(labels), second / len(labels)

    b, low, high = 1.0, 1 / TEMPERATURES[1], 1 / TEMPERATURES[0]
    slope, curvature = derivatives(b)
    if slope == 0:
        return 1.0
    end = high if slope < 0 else low
    if slope * derivatives(end)[0] >= 0:
        return 1 / end
    for _ in range(50):
        low, high = (b, high) if slope < 0 else (low, b)
        step = b - slope / curvature if curvature > 0 else math.nan
        new = step if low < step < high else math.sqrt(low * high)
        if abs(new / b - 1) < 1e-7:
            break
        b = new
        slope, curvature = derivatives(b)
    return 1 / b


# -- Intervals and comparison ----------------------------------------------------------------------


def intervals(
    labels: np.ndarray, predictions: np.ndarray, ranks: np.ndarray, *, classes: int, samples: int
) -> dict[str, tuple[float, float]]:
    """Returns the 95 % intervals of top1, top5 and macro_f1, by the percentile bootstrap.

    N images drawn with replacement are a multinomial draw of their kinds (label, prediction, among
    the first five or not), so that is what is drawn, `samples` times with one seed.
    """
    among = ranks < min(5, classes)
    kinds, counts = np.unique(
        np.stack([labels, predictions, ranks < 1, among], 1), axis=0, return_counts=True
    )
    label, prediction = kinds[:, 0], kinds[:, 1]
    hit, n = label == prediction, len(labels)
    rng = np.random.Generator(np.random.PCG64(0))
    drawn: dict[str, list[float]] = {"top1": [], "top5": [], "macro_f1": []}
    for _ in range(samples):
        times = rng.multinomial(n, counts / n)
        both = np.bincount(label, times, classes) + np.bincount(prediction, times, classes)
        f1 = _ratio(2 * np.bincount(label[hit], times[hit], classes), both)
        drawn["top1"].append(times[kinds[:, 2] > 0].sum() / n)
        drawn["top5"].append(times[kinds[:, 3] > 0].sum() / n)
        drawn["macro_f1"].append(f1.sum() / (both > 0).sum())
    ends = 50 * (1 - INTERVAL), 50 * (1 + INTERVAL)
    return {name: tuple(np.percentile(values, ends).tolist()) for name, values in drawn.items()}


def mcnemar(only_a: int, only_b: int) -> float:
    """Returns the two-sided p-value of McNemar's exact test (McNemar 1947; binomial).

    Of the images that just one of two classifiers gets right, each would be right with probability
    1/2 if both were equally good: twice the probability of so few on the side of the fewer.
    """
    n, few = only_a + only_b, min(only_a, only_b)
    k = np.arange(few + 1)
    log = [math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in k.tolist()]
    return min(1.0, 2 * float(np.exp(np.array(log) - n * math.log(2)).sum()))


# -- Images of several classes ---------------------------------------------------------------------


class OfSeveral(NamedTuple):
    """Of each class, [K]."""

    precision: np.ndarray  # right ones among those said to show it
    recall: np.ndarray  # right ones among those that do
    f1: np.ndarray
    support: np.ndarray  # int, images that show it
    micro: tuple[float, float, float]  # precision, recall and F1 of all classes together


def of_several(said: np.ndarray, marks: np.ndarray) -> OfSeveral:
    """Returns how right it is which images show which classes, bool [N, K].

    `marks` [N, K] say which do: above 0; below, it is not known, and does not count.
    """
    shown, said = marks > 0, said & (marks >= 0)
    right, support, predicted = (x.sum(0) for x in (said & shown, shown, said))
    kinds = ((right, predicted), (right, support), (2 * right, support + predicted))
    of_all = (float(_ratio(a.sum(), b.sum())) for a, b in kinds)
    precision, recall, f1 = (_ratio(a, b) for a, b in kinds)
    return OfSeveral(precision, recall, f1, support, tuple(of_all))


def of_all_classes(logits: np.ndarray, marks: np.ndarray) -> dict[str, float]:
    """Returns {"map", "macro_f1", "micro_f1"} of images of several classes, as scikit-learn has.

    The mean of the average precisions of the classes that an image shows; F1 at probability 1/2, as
    a mean over all classes (0 for one that is neither shown nor said) and of all together. NaN
    where a logit is.

    Args:
      logits: [N, K].
      marks: [N, K], see `of_several`.
    """
    if np.isnan(logits).any():
        return dict.fromkeys(("map", "macro_f1", "micro_f1"), math.nan)
    precisions, found = average_precision(logits, marks), of_several(logits >= 0, marks)
    there = ~np.isnan(precisions)
    return {
        "map": float(precisions[there].mean()) if there.any() else math.nan,
        "macro_f1": float(found.f1.mean()),
        "micro_f1": found.micro[2],
    }


def average_precision(scores: np.ndarray, marks: np.ndarray) -> np.ndarray:
    """Returns the average precision of each class, [K]; NaN of one that no image shows.

    sum_n (R_n - R_{n-1}) P_n over the images in the order of their scores, those of equal score
    together, as scikit-learn's average_precision_score.

    Args:
      scores: [N, K], the larger, the more likely.
      marks: which image shows which class, [N, K]: above 0; below, it is not known.
    """
    return _of_each_class(scores, marks, _average_precision)


def best_thresholds(scores: np.ndarray, marks: np.ndarray) -> np.ndarray:
    """Returns the score from which on a class is best taken as shown, by F1, [K]; NaN as above."""
    return _of_each_class(scores, marks, _best_threshold)


def _of_each_class(scores: np.ndarray, marks: np.ndarray, f: Callable) -> np.ndarray:
    out = np.full(scores.shape[1], np.nan)
    for k in range(scores.shape[1]):
        known = marks[:, k] >= 0
        if (shown := marks[known, k] > 0).any():
            out[k] = f(*_curve(scores[known, k], shown))
    return out


def _curve(scores: np.ndarray, marks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns precision, recall and the threshold, of each that differs, from the highest on."""
    order = np.argsort(-scores, kind="stable")
    scores, marks = scores[order], marks[order]
    last = np.flatnonzero(np.append(scores[1:] != scores[:-1], True))  # of equal ones
    right = np.cumsum(marks)[last]
    return right / (last + 1), right / marks.sum(), scores[last]


def _average_precision(precision: np.ndarray, recall: np.ndarray, _: np.ndarray) -> float:
    return float((np.diff(recall, prepend=0) * precision).sum())


def _best_threshold(precision: np.ndarray, recall: np.ndarray, thresholds: np.ndarray) -> float:
    return float(thresholds[np.argmax(_ratio(2 * precision * recall, precision + recall))])
