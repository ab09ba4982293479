"""Writes DIR/report: predictions.csv, index.html, and when these are complete metrics.json."""

import csv
import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from jaxcls import files
from jaxcls.config import consume, expect
from jaxcls.console import Console
from jaxcls.data.access import Source, in_threads, item_of
from jaxcls.data.ops import transformed
from jaxcls.data.sources import Data
from jaxcls.network import Network
from jaxcls.report import figures, measures
from jaxcls.report.figures import Evaluation
from jaxcls.report.scores import MAX_BYTES, Scores

MOST = 200  # mistakes that are shown


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How a report is made, `config.report`.

    Raises:
      ValueError: a number out of range; the message names the key.
    """

    enabled: bool
    samples: int
    mistakes: int
    grad_cam: bool

    def __post_init__(self):
        expect(0 <= self.samples <= 100_000, "report.samples", self.samples, "0 to 100000")
        expect(0 <= self.mistakes <= MOST, "report.mistakes", self.mistakes, f"0 to {MOST}")


class Report:
    """The report of a run, from its last evaluation."""

    def __init__(
        self, config: Any, workdir: epath.Path, network: Network, data: Data, console: Console
    ):
        """Takes what the report is about. Every process has one; process 0 writes it."""
        self.options = consume(config, "report", Options)
        self.config, self.workdir, self.network, self.data = config, workdir, network, data
        self.console = console
        self.taken: Scores | None = None

    def scores(self, last: bool) -> Scores | None:
        """Returns where the scores of an evaluation go: those of the last one."""
        if self.options.enabled and last:
            self.taken = scores_for(self.data.eval, self.network.num_classes, self.console)
        return self.taken

    def write(self, step: int, result: Mapping[str, float], variables: Any) -> None:
        """Writes the report if this was the last evaluation.

        Args:
          step: that was evaluated.
          result: what came out.
          variables: that were evaluated.
        """
        if self.taken is None:
            return
        with self.console.doing("writing the report"):
            evaluation = Evaluation(
                network=self.network,
                class_names=self.data.class_names,
                result=result,
                scores=self.taken,
                about={"checkpoint": str(self.workdir / "checkpoints" / str(step)), "step": step},
            )
            report(
                self.workdir / "report",
                evaluation,
                self.data.eval,
                self.options,
                variables=variables,
                config=self.config,
                lines=log_of(self.workdir),
            )


def scores_for(source: Source, classes: int, console: Console) -> Scores | None:
    """Returns where the scores of a source's images go, on process 0; None: they are too many."""
    if jax.process_index():
        return None
    needed = 4 * len(source) * classes
    if needed > MAX_BYTES:
        console.say(
            f"no report: the scores of {len(source):,} images and {classes:,} classes take "
            f"{needed / 2**30:.1f} GiB"
        )
        return None
    return Scores(len(source))


def log_of(workdir: epath.Path) -> list[dict[str, Any]]:
    """Returns the lines of a run's metrics.jsonl; none where there is no such file."""
    try:
        text = (workdir / "metrics.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]
    except (*files.KINDS, ValueError):  # a line that is being written
        return []


def report(
    folder: epath.Path,
    evaluation: Evaluation,
    source: Source,
    options: Options,
    *,
    variables: Any = None,
    config: Mapping[str, Any] | None = None,
    lines: Sequence[Mapping[str, Any]] = (),
    against: Evaluation | None = None,
) -> dict[str, Any]:
    """Writes a report; returns the figures of its metrics.json.

    Args:
      folder: DIR/report.
      evaluation: what was evaluated.
      source: of its images.
      options: `config.report`.
      variables: of the network, for Grad-CAM; None: without.
      config, lines: of the run that trained it, and of its metrics.jsonl, where there is one.
      against: another evaluation of the same images.
    """
    from jaxcls.report import advice, page  # what draws is imported where something is drawn

    scores = evaluation.scores
    names = figures.names_of(evaluation.class_names, scores.logits.shape[1])
    images = image_names(source, scores.numbers)
    mistakes: list[dict[str, Any]] = []
    if scores.labels.ndim == 2:
        table, matrix = figures.measure_several(evaluation), None
        rows = _rows_of_several(scores, names)
    else:
        found = figures.predictions_of(evaluation)
        table = figures.measure(evaluation, found, samples=options.samples)
        matrix = table["confusion"] and np.array(table["confusion"])
        rows = _rows(found, names)
        wrong = figures.most_confident_mistakes(found, options.mistakes)
        keys = ("label", "prediction", "probability")
        table["mistakes"] = [{"image": images[i], **dict(zip(keys, rows[i]))} for i in wrong]
        looking = variables if options.grad_cam else None
        numbers = scores.numbers[wrong].tolist()
        pictures = _pictures(evaluation.network, source, numbers, looking)
        mistakes = [it | drawn for it, drawn in zip(table["mistakes"], pictures)]
        if against is not None:
            table["against"] = _compared(found, against, images, names)
    given = advice.advise(table, lines, config)
    table["advice"] = [it._asdict() for it in given]
    html = page.render(
        table,
        title=f"{evaluation.network.name}: {_headline(table)}",
        about=evaluation.about,
        lines=lines,
        advice=given,
        mistakes=mistakes,
        confusion=matrix,
    )
    folder.mkdir(parents=True, exist_ok=True)
    files.write_atomically(folder / "predictions.csv", _csv(images, rows))
    files.write_atomically(folder / "index.html", html)
    files.write_atomically(folder / "metrics.json", figures.as_json(table))
    return table


def image_names(source: Source, numbers: np.ndarray) -> list[str]:
    """Returns what the images of these numbers are called; records are read for it."""
    if hasattr(source, "name"):
        return [source.name(i) for i in numbers.tolist()]
    return in_threads(lambda i: item_of(source, i)["name"], numbers.tolist())


def _headline(table: Mapping[str, Any]) -> str:
    kind, value = ("mAP", table["map"]) if "map" in table else ("top-1", table["top1"])
    return f"{kind} {100 * value:.2f} %"


def _csv(images: Sequence[str], rows: Sequence[tuple[str, str, float]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("image", "label", "prediction", "probability"))
    for image, (label, prediction, probability) in zip(images, rows, strict=True):
        writer.writerow((image, label, prediction, f"{probability:.6g}"))
    return out.getvalue()


def _rows(found: figures.Predictions, names: Sequence[str]) -> list[tuple[str, str, float]]:
    """Returns label, prediction and its probability of each image."""
    columns = (x.tolist() for x in (found.labels, found.predictions, found.probability))
    return [(names[y] if y >= 0 else "", names[k], p) for y, k, p in zip(*columns)]


def _rows_of_several(scores: Scores, names: Sequence[str]) -> list[tuple[str, str, float]]:
    """Returns labels, classes above the threshold and the largest probability of each image."""
    probability = figures.probabilities_of_several(scores.logits)
    joined = lambda marks: ";".join(names[k] for k in np.flatnonzero(marks).tolist())
    shown = probability >= figures.THRESHOLD
    largest = probability.max(1).tolist()
    return [(joined(y), joined(p), q) for y, p, q in zip(scores.labels > 0, shown, largest)]


def _pictures(
    network: Network, source: Source, numbers: Sequence[int], variables: Any
) -> list[dict[str, bytes | None]]:
    """Returns JPEGs of images as the network sees them: "picture", and "cam" with Grad-CAM."""
    from jaxcls.report import page, plots
    from jaxcls.report.grad_cam import grad_cam

    pixels = [transformed(source[number], network.transform, None) for number in numbers]
    heat = None
    if pixels and variables is not None and _is_here(variables):
        heat = grad_cam(network, jax.device_get(variables), np.stack(pixels))
    cams = [None] * len(pixels) if heat is None else [*heat]
    draw = lambda x, cam=None: plots.thumbnail(x, page.SIZE, cam)
    return [
        {"picture": draw(x), "cam": None if cam is None else draw(x, cam)}
        for x, cam in zip(pixels, cams)
    ]


def _is_here(variables: Any) -> bool:
    """Returns whether this process has all of the variables, which several may share."""
    arrays = [x for x in jax.tree.leaves(variables) if isinstance(x, jax.Array)]
    return all(x.is_fully_addressable or x.is_fully_replicated for x in arrays)


def _compared(
    found: figures.Predictions,
    there: Evaluation,
    images: Sequence[str],
    names: Sequence[str],
) -> dict[str, Any]:
    """Returns McNemar's test of two evaluations of the same images, and which images flipped."""
    other = figures.predictions_of(there)
    labelled = found.labels >= 0

    def flips(rows):
        return [
            {
                "image": images[i],
                "label": names[found.labels[i]],
                "here": names[found.predictions[i]],
                "there": names[other.predictions[i]],
            }
            for i in np.flatnonzero(rows & labelled).tolist()
        ]

    only_here, only_there = flips(found.right & ~other.right), flips(other.right & ~found.right)
    return {
        **there.about,
        **there.result,
        "p_value": measures.mcnemar(len(only_here), len(only_there)),
        "only_here": only_here,
        "only_there": only_there,
    }
