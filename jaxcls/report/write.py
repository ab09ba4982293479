"""Writes DIR/report: predictions.csv, index.html and metrics.json, the last when all are whole."""

import contextlib
import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from jaxcls import files
from jaxcls.config import consume, defaults, expect
from jaxcls.console import Console
from jaxcls.data.access import Source
from jaxcls.data.ops import transformed
from jaxcls.data.sources import Data
from jaxcls.network import Network
from jaxcls.report import figures, measures, tables
from jaxcls.report.figures import Evaluation
from jaxcls.report.scores import Scores, too_many

MOST = 200  # mistakes that are shown
# Keys of `config.eval` that training does not take.
ALONE = (
    *("tta", "tta_scales", "fuse", "weights", "mean", "against", "predictions"),
    *("average", "calibrate", "accepted_accuracy", "rejected"),
)


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
        _refuse(config)
        self.config, self.workdir, self.network, self.data = config, workdir, network, data
        self.console = console
        self.taken: Scores | None = None

    @property
    def possible(self) -> bool:
        """Whether there will be one: it is asked for, and there is room for the scores."""
        images, classes = self.data.eval, self.network.num_classes
        return self.options.enabled and images is not None and not too_many(images, classes)

    def scores(self, last: bool) -> Scores | None:
        """Returns where the scores of an evaluation go: those of the last one."""
        if self.options.enabled and last:
            try:
                self.taken = Scores.of(self.data.eval, self.network.num_classes)
            except ValueError as e:  # the run is more than its report
                self.console.say(f"no report: {e}")
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


def _refuse(config: Any) -> None:
    """Refuses keys of an evaluation alone, in a run that trains."""
    for key in ALONE:
        if config.eval[key] != defaults()[0][f"eval.{key}"]:
            raise ValueError(
                f"config.eval.{key} = {config.eval[key]!r} is for --mode=eval: leave it out while "
                "training"
            )


def folder_of(workdir: str, begun: epath.Path | None) -> epath.Path:
    """Returns where the report of an evaluation goes.

    DIR/report; of RUN/checkpoints/STEP, where nothing may be added, RUN/report/STEP.

    Args:
      workdir: DIR.
      begun: the config.json of the run that it belongs to, if there is one.
    """
    path = files.absolute(workdir)
    if begun is None or path == begun.parent:
        return path / "report"
    return begun.parent / "report" / (path.name if path.parent.name == "checkpoints" else "")


def log_of(workdir: epath.Path) -> list[dict[str, Any]]:
    """Returns the lines of a run's metrics.jsonl; none where there is no such file.

    One that is being written, or is damaged, is left out.
    """
    try:
        text = (workdir / "metrics.jsonl").read_bytes().decode(errors="replace")
    except files.KINDS:
        return []
    lines = []
    for line in text.splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            if _is_logged(entry := json.loads(line)):
                lines.append(entry)
    return lines


def _is_logged(entry: Any) -> bool:
    if not isinstance(entry, dict) or entry.get("split") not in ("train", "eval"):
        return False
    numbers = [value for key, value in entry.items() if key != "split" and value is not None]
    known = isinstance(entry.get("epoch"), (int, float))
    return known and all(isinstance(x, (int, float)) and not abs(x) > 1e300 for x in numbers)


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
    images, rows = tables.image_names(source, scores.numbers), tables.rows(evaluation)
    mistakes: list[dict[str, Any]] = []
    if scores.labels.ndim == 2:
        table, matrix = figures.measure_several(evaluation), None
    else:
        table = figures.measure(evaluation, samples=options.samples)
        matrix = table["confusion"]
        wrong = figures.most_confident_mistakes(evaluation.predictions, options.mistakes)
        keys = ("label", "prediction", "probability")
        table["mistakes"] = [{"image": images[i], **dict(zip(keys, rows[i]))} for i in wrong]
        looking = variables if options.grad_cam else None
        numbers = scores.numbers[wrong].tolist()
        pictures = _pictures(evaluation.network, source, numbers, looking)
        mistakes = [it | drawn for it, drawn in zip(table["mistakes"], pictures)]
        if against is not None:
            table["against"] = _compared(evaluation, against, images)
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
    texts = {
        "predictions.csv": tables.as_csv(images, rows),
        "index.html": html,
        "metrics.json": figures.as_json(table),
    }
    files.write_together({folder / name: text for name, text in texts.items()})
    return table


def _headline(table: Mapping[str, Any]) -> str:
    kind, value = ("mAP", table["map"]) if "map" in table else ("top-1", table["top1"])
    return f"{kind} {100 * value:.2f} %"


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


def flipped(here: Evaluation, there: Evaluation) -> tuple[np.ndarray, np.ndarray]:
    """Returns the numbers of the images that only the one or only the other network has right.

    Args:
      here, there: evaluations of the same images, of one class each.

    Raises:
      ValueError: they are of other images.
    """
    if not np.array_equal(here.scores.numbers, there.scores.numbers):
        raise ValueError("some images can be read for one of the two networks only: repair them")
    ours, theirs = here.predictions.right, there.predictions.right
    return np.flatnonzero(ours & ~theirs), np.flatnonzero(theirs & ~ours)


def comparison(here: Evaluation, there: Evaluation) -> str:
    """Returns how two evaluations of the same images compare, in a line."""
    counts = [len(rows) for rows in flipped(here, there)]
    return (
        f"against {there.about['checkpoint']}, top-1 {100 * there.result['top1']:.2f} %: "
        f"{counts[0]} images are right only here, {counts[1]} only there; McNemar's exact test: "
        f"p = {measures.mcnemar(*counts):.3g}"
    )


def _compared(here: Evaluation, there: Evaluation, images: Sequence[str]) -> dict[str, Any]:
    """Returns McNemar's test of two evaluations of the same images, and which images flipped."""
    found, other, names = here.predictions, there.predictions, here.names
    only_here, only_there = (
        [
            {
                "image": images[i],
                "label": names[found.labels[i]],
                "here": names[found.predictions[i]],
                "there": names[other.predictions[i]],
            }
            for i in rows.tolist()
        ]
        for rows in flipped(here, there)
    )
    return {
        **there.about,
        **there.result,
        "p_value": measures.mcnemar(len(only_here), len(only_there)),
        "only_here": only_here,
        "only_there": only_there,
    }
