"""Predictions below a probability are "none of these": what that costs, and where to draw the line.

NumPy arrays in, numbers out. Chow 1970, "On optimum recognition error and reject tradeoff": of all
rules the threshold on the largest probability rejects least for an accuracy, if the probabilities
are right.
"""

import math
from typing import NamedTuple

import numpy as np

from jaxcls.network import Network

POINTS = 200  # of a curve that is stored


class Curve(NamedTuple):
    """Thresholds that tell images apart, ascending, and what comes of each, [M]."""

    threshold: np.ndarray  # images of a lower probability are rejected
    rejected: np.ndarray  # share of all images
    accuracy: np.ndarray  # of those that are accepted: at least one


def curve(probability: np.ndarray, right: np.ndarray) -> Curve:
    """Returns what every threshold does that rejects other images than the one before.

    Args:
      probability: of each image's prediction, [N] in [0, 1]; NaN is always rejected.
      right: which predictions are right, bool [N].

    Raises:
      ValueError: there is no image, or none with a probability.
    """
    known = ~np.isnan(probability)
    if not known.any():
        raise ValueError("there is no probability to draw a line through")
    order = np.argsort(-probability[known], kind="stable")
    p, right = probability[known][order], right[known][order]
    last = np.flatnonzero(np.append(p[1:] != p[:-1], True))[::-1]  # of equal ones
    accepted = last + 1
    accuracy = np.cumsum(right)[last] / accepted
    return Curve(p[last], 1 - accepted / len(probability), accuracy)


def of(
    network: Network, predictions: np.ndarray, probability: np.ndarray, ranks: np.ndarray
) -> Curve:
    """Returns the curve of predictions of labelled images; of the background all are rejected.

    Args:
      network: that predicts.
      predictions, probability, ranks: of `measures.by_image`, [N] each.
    """
    if network.background:
        background = network.class_names.index(network.background)
        probability = np.where(predictions == background, np.nan, probability)
    return curve(probability, ranks < 1)


def at(found: Curve, threshold: float) -> dict[str, float]:
    """Returns {"threshold", "rejected", "accuracy"} of a threshold; if all are rejected, NaN."""
    i = int(np.searchsorted(found.threshold, threshold))
    if i == len(found.threshold):
        return {"threshold": threshold, "rejected": 1.0, "accuracy": math.nan}
    accuracy, rejected = float(found.accuracy[i]), float(found.rejected[i])
    return {"threshold": threshold, "rejected": rejected, "accuracy": accuracy}


def thinned(found: Curve) -> Curve:
    """Returns at most `POINTS` of the points, evenly spread over the images."""
    if len(found.threshold) <= POINTS:
        return found
    wanted = np.linspace(found.rejected[0], found.rejected[-1], POINTS)
    chosen = np.unique(np.searchsorted(found.rejected, wanted).clip(0, len(found.rejected) - 1))
    return Curve(*(x[chosen] for x in found))


def for_accuracy(found: Curve, accuracy: float) -> float:
    """Returns the threshold that rejects fewest for this accuracy of the accepted images.

    Raises:
      ValueError: no threshold reaches it.
    """
    good = found.accuracy >= accuracy
    if not good.any():
        best = int(found.accuracy.argmax())
        raise ValueError(
            f"no threshold makes the accepted images {100 * accuracy:g} % right: "
            f"{100 * found.accuracy[best]:.2f} % is the most, with "
            f"{100 * found.rejected[best]:.1f} % rejected"
        )
    return float(found.threshold[good.argmax()])


def for_share(found: Curve, share: float) -> float:
    """Returns the highest threshold that rejects at most this share of the images; 0 if none does.

    Where many have the same probability it may be fewer.
    """
    few = np.flatnonzero(found.rejected <= share)
    return float(found.threshold[few[-1]]) if len(few) else 0.0
