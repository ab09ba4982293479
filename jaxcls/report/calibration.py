"""What an evaluation finds out about probabilities, to be stored with the network."""

from typing import Any

import numpy as np

from jaxcls.config import expect
from jaxcls.network import Network
from jaxcls.report import measures, rejection
from jaxcls.report.scores import Scores

LOWER = 1 - 1e-5  # float32 must not push the image that a threshold was found at below it


def check(accuracy: float, rejected: float, calibrate: bool) -> None:
    """Refuses shares that are none, and such that nothing comes of.

    Args:
      accuracy, rejected: `config.eval.accepted_accuracy` and `config.eval.rejected`, 0 for none.
      calibrate: `config.eval.calibrate`.

    Raises:
      ValueError: it is so.
    """
    for key, value in (("accepted_accuracy", accuracy), ("rejected", rejected)):
        expect(0 <= value <= 1, f"eval.{key}", value, "a share, 0.0 to 1.0")
        if value and not calibrate:
            raise ValueError(
                f"config.eval.{key} = {value} does nothing without --config.eval.calibrate=True"
            )
    if accuracy and rejected:
        raise ValueError(
            f"config.eval.accepted_accuracy = {accuracy} and config.eval.rejected = {rejected} ask "
            "for two thresholds: set one"
        )


def fitted(
    network: Network, scores: Scores, *, accuracy: float, rejected: float
) -> tuple[dict[str, Any], str]:
    """Returns what to store with a network, as `weights.calibrate` takes it, and a line about it.

    A temperature, and if one of the shares is not 0 the threshold of `Network.decide`, fitted at
    that temperature. Of images of several classes the threshold of each class, best for its F1; 1/2
    for a class that no image shows.

    Args:
      network: that was evaluated.
      scores: what came out.
      accuracy: of the predictions that are not rejected; 0: not asked for.
      rejected: share of the images at most; 0: not asked for.

    Raises:
      ValueError: no threshold does what was asked for.
    """
    if network.multi_label:
        if accuracy or rejected:
            raise ValueError(
                "config.eval.accepted_accuracy and rejected are for images of one class: of "
                "several, each class has a threshold of its own"
            )
        found = measures.best_thresholds(measures.sigmoid(scores.logits), scores.labels)
        found = np.where(np.isnan(found), 0.5, found * LOWER)
        least, most = found.min(), found.max()
        line = f"thresholds of {len(found)} classes, {least:.3g} to {most:.3g}"
        return {"thresholds": found.tolist()}, line
    there = scores.labels >= 0
    logits, labels = scores.logits[there], scores.labels[there]
    temperature = measures.temperature(logits, labels)
    line = f"temperature {temperature:.4g}"
    if temperature in measures.TEMPERATURES:
        line += " (a bound: these images are all right, or hardly any, so that more are needed)"
    if not accuracy and not rejected:
        return {"temperature": temperature}, line
    curve = rejection.of(network, *measures.by_image(logits, labels, temperature)[:3])
    if accuracy:
        threshold = rejection.for_accuracy(curve, accuracy)
    else:
        threshold = rejection.for_share(curve, rejected)
    at = rejection.at(curve, threshold)
    line += (
        f", threshold {threshold:.4g}, below which {100 * at['rejected']:.2f} % of the images are "
        f"rejected; {100 * at['accuracy']:.2f} % of the others are right"
    )
    return {"temperature": temperature, "thresholds": [threshold * LOWER]}, line
