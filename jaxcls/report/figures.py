"""The figures of a report: what metrics.json has."""

import dataclasses
import functools
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxcls.network import Network
from jaxcls.report import measures, rejection
from jaxcls.report.scores import Scores

MAX_CONFUSION = 2000  # classes: of more the matrix is left out of metrics.json
WORST = 10  # classes
PER_CLASS = ("precision", "recall", "f1", "support")
THRESHOLD = 0.5  # of a network without thresholds, see `Network.decide`


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What was evaluated, and what came out."""

    network: Network
    class_names: tuple[str, ...]  # of the data
    result: Mapping[str, float]  # means over all images, as in metrics.jsonl
    scores: Scores
    about: Mapping[str, Any]  # checkpoint, step, ...: shown as it is

    @functools.cached_property
    def predictions(self) -> "Predictions":
        """Those of every image, of one class each, at the network's temperature."""
        scores = self.scores
        found = measures.by_image(scores.logits, scores.labels, self.network.temperature)
        return Predictions(scores.labels, *found[:3])

    @functools.cached_property
    def names(self) -> list[str]:
        """A name of each class of the network."""
        return names_of(self.class_names, self.scores.logits.shape[1])


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Predictions of images of one class each; the label is -1 where there is none."""

    labels: np.ndarray  # int [N]
    predictions: np.ndarray  # int [N]
    probability: np.ndarray  # [N], of the prediction, at the network's temperature
    ranks: np.ndarray  # int [N]: number of classes before the label

    @property
    def right(self) -> np.ndarray:
        """bool [N]."""
        return self.ranks < 1


def names_of(class_names: Sequence[str], classes: int) -> list[str]:
    """Returns a name of each class, all different: of equal ones the number is added."""
    names = [*class_names, *(f"class {i}" for i in range(len(class_names), classes))]
    while len(times := Counter(names)) < len(names):  # again, where one was called "x (0)" before
        names = [f"{name} ({i})" if times[name] > 1 else name for i, name in enumerate(names)]
    return names


def measure(evaluation: Evaluation, *, samples: int) -> dict[str, Any]:
    """Returns the figures of images of one class each.

    Args:
      evaluation: what was evaluated.
      samples: of the bootstrap; 0: no intervals.
    """
    scores, found, names = evaluation.scores, evaluation.predictions, evaluation.names
    classes = len(names)
    there = found.labels >= 0
    labels, predictions, ranks = found.labels[there], found.predictions[there], found.ranks[there]
    table = measures.per_class(labels, predictions, classes)
    ece, bins = measures.reliability(found.probability[there], ranks < 1)
    figures = {**evaluation.about, **evaluation.result, "ece": ece}
    if samples:
        kinds = {"classes": classes, "samples": samples}
        figures["intervals"] = measures.intervals(labels, predictions, ranks, **kinds)
    figures |= measures.averages(table)
    logits = scores.logits if there.all() else scores.logits[there]
    figures["temperature"] = _temperature(logits, labels, evaluation.network.temperature)
    figures["reliability"] = [bin._asdict() for bin in bins]
    figures["rejection"] = _rejection(evaluation, there)
    rows = zip(*(getattr(table, key).tolist() for key in PER_CLASS))
    figures["per_class"] = {name: dict(zip(PER_CLASS, row)) for name, row in zip(names, rows)}
    worst = np.argsort(table.f1, kind="stable").tolist()
    worst = [i for i in worst if table.support[i] and table.f1[i] < 1][:WORST]
    figures["worst_classes"] = [names[i] for i in worst]
    pairs = measures.confused(labels, predictions)
    mostly = dict.fromkeys(worst, "")
    for a, b, n in pairs[np.isin(pairs[:, 0], worst)].tolist():
        mostly[a] = mostly[a] or f"{names[b]} ({n})"
    figures["mostly_taken_for"] = {names[i]: found for i, found in mostly.items()}
    figures["confused"] = [
        {"label": names[a], "prediction": names[b], "images": n} for a, b, n in pairs[:100].tolist()
    ]
    figures["confusion"] = None
    if classes <= MAX_CONFUSION:
        figures["confusion"] = measures.confusion(labels, predictions, classes)
    return figures


def _rejection(evaluation: Evaluation, there: np.ndarray) -> dict[str, Any] | None:
    """Returns what the network's threshold does, and what others would; None without any number."""
    found, network = evaluation.predictions, evaluation.network
    kinds = (found.predictions[there], found.probability[there], found.ranks[there])
    if not np.isfinite(kinds[1]).any():
        return None
    curve = rejection.of(network, *kinds)
    stored = network.thresholds[0] if network.thresholds else 0.0
    points = {key: x.tolist() for key, x in rejection.thinned(curve)._asdict().items()}
    return {**rejection.at(curve, stored), "curve": points}


def most_confident_mistakes(found: Predictions, count: int) -> list[int]:
    """Returns the rows of the wrong predictions of the highest probability."""
    wrong = np.flatnonzero((found.labels >= 0) & ~found.right & np.isfinite(found.probability))
    return wrong[np.argsort(-found.probability[wrong], kind="stable")][:count].tolist()


def _temperature(logits: np.ndarray, labels: np.ndarray, stored: float) -> dict[str, Any]:
    """Returns the temperature that fits best, and what it does to images that it was not fitted on.

    Each half of the images (every second one) is judged at the temperature that was fitted on the
    other half.
    """
    half = np.arange(len(labels)) % 2 == 1
    after = np.ones(len(labels))
    for part in (half, ~half):
        after[part] = measures.temperature(logits[~part], labels[~part])

    def judged(temperatures):
        _, probability, ranks, of_label = measures.by_image(
            logits / temperatures[:, None].astype(np.float32), labels
        )
        with np.errstate(divide="ignore"):
            loss = -np.log(of_label).mean()
        return measures.reliability(probability, ranks < 1)[0], float(loss)

    (ece_before, loss_before), (ece_after, loss_after) = (
        judged(np.full(len(labels), stored)),
        judged(after),
    )
    return {
        "stored": stored,
        "fitted": measures.temperature(logits, labels),
        "ece_before": ece_before,
        "ece_after": ece_after,
        "loss_before": loss_before,
        "loss_after": loss_after,
        "note": "fitted on all of these images; 'after' judges each half of them at the "
        "temperature that was fitted on the other half, 'before' is at the stored one",
    }


# -- Images of several classes ---------------------------------------------------------------------


def measure_several(evaluation: Evaluation) -> dict[str, Any]:
    """Returns the figures of images of several classes: average precisions, best thresholds.

    What is not known of an image, a mark below 0, has no part in them.
    """
    logits, marks, names = evaluation.scores.logits, evaluation.scores.labels, evaluation.names
    probability = measures.sigmoid(logits)
    found = measures.of_several(evaluation.network.decide(probability), marks)
    columns = {key: getattr(found, key) for key in PER_CLASS}
    columns["average_precision"] = measures.average_precision(logits, marks)
    columns["best_threshold"] = measures.best_thresholds(probability, marks)
    rows = zip(*(column.tolist() for column in columns.values()))
    there, support = found.support > 0, found.support
    worst = np.argsort(np.where(there, columns["average_precision"], np.inf), kind="stable")
    means = PER_CLASS[:3]
    return {
        **evaluation.about,
        **evaluation.result,
        **measures.of_all_classes(logits, marks),
        "thresholds": list(evaluation.network.thresholds) or THRESHOLD,
        "macro": {n: float(columns[n].mean()) for n in means},
        "micro": dict(zip(means, found.micro)),
        "weighted": {n: float((columns[n] * support).sum() / max(support.sum(), 1)) for n in means},
        "per_class": {name: dict(zip(columns, row)) for name, row in zip(names, rows)},
        "worst_classes": [names[i] for i in worst[:WORST].tolist() if there[i]],
    }


def as_json(figures: Mapping[str, Any]) -> str:
    """Returns JSON without NaN, a line for each figure."""

    def plain(x):
        if isinstance(x, np.ndarray):  # of integers
            return x.tolist()
        if isinstance(x, Mapping):
            return {key: plain(value) for key, value in x.items()}
        if isinstance(x, (list, tuple)):
            return [plain(value) for value in x]
        return None if isinstance(x, float) and not math.isfinite(x) else x

    dump = lambda x: json.dumps(x, ensure_ascii=False, allow_nan=False)
    lines = [f"{dump(key)}: {dump(plain(value))}" for key, value in figures.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"
