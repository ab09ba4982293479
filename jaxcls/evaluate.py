"""Exact evaluation: every image counts once, whatever the batch size and the number of devices."""

import dataclasses
import errno
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from jaxcls import (
    choices,
    files,
    names,
    network,
    objectives,
    precision,
    record,
    sharding,
    steps,
    views,
    weights,
)
from jaxcls.averages import PREFERRED
from jaxcls.barrier import when_compiled
from jaxcls.config import check_complete, check_eval_batch, choose, consume
from jaxcls.console import Console
from jaxcls.data import ops
from jaxcls.data.feed import Feed
from jaxcls.metrics import plain
from jaxcls.report import calibration, measures, tables, write
from jaxcls.report.scores import Scores, make_step, too_many


def evaluate(
    eval_step: Callable[..., dict[str, jax.Array]],
    feed: Feed,
    *variables: Any,
    batch_size: int,
    stop: Callable[[], bool] = lambda: False,
    progress: Callable[[int], None] = lambda images: None,
    scores: Scores | None = None,
) -> list[dict[str, float]] | None:
    """Returns {"loss", "top1", "top5", "images"} of each variables: means over all images.

    Accuracies are in [0, 1]. Of images that may show several classes it is {"loss", "map",
    "macro_f1", "micro_f1", "images"}, see `measures.of_all_classes`; their scores are collected in
    host memory. The images are read once.

    Args:
      eval_step: (variables, batch) -> sums, see `steps.make_eval_step`; or -> (sums, rows), see
        `scores.make_step`, for images that may show several classes.
      feed: of the images.
      *variables: {"params", "batch_stats"} each: as trained, averaged, of several checkpoints.
      batch_size: over all devices.
      stop: asked before each batch; the answer True gives up, and the result is None.
      progress: told the number of images that are done, before each batch.
      scores: takes the rows of the first variables.

    Raises:
      ValueError: no image has a label, or one or too many cannot be read.
    """
    totals: list[dict[str, float]] = [{} for _ in variables]
    kept = [scores, *[None] * (len(variables) - 1)]
    late: list[Any] = []

    def add(results):
        for which, (total, result) in enumerate(zip(totals, results)):
            sums, rows = result if isinstance(result, tuple) else (result, None)
            if rows is not None and rows["label"].ndim == 2:
                kept[which] = kept[which] or Scores(len(feed.source))
            if kept[which] is not None:
                kept[which].add(jax.device_get(rows))
            for name, value in jax.device_get(sums).items():
                total[name] = total.get(name, 0.0) + float(value)  # float64: no image gets lost

    with feed.eval_batches(batch_size) as batches:
        for number, batch in enumerate(batches):
            if stop():
                return None
            progress(min(number * batch_size, len(feed.source)))
            batch = feed.put(batch)
            with jax.transfer_guard("disallow"):
                results = [eval_step(v, batch) for v in variables]
            add(late)  # one batch late, so that the device does not wait
            late = results
        batches.know_bad_images(files.union(batches.bad_images))  # too many of all are refused
    add(late)
    images = [int(total.pop("count")) for total in totals]
    if not all(images):
        raise ValueError("none of the evaluation images has a label")
    results = [{name: value / n for name, value in x.items()} for x, n in zip(totals, images)]
    for result, its, n in zip(results, kept, images, strict=True):
        if its is not None and its.labels.ndim == 2:
            result |= measures.of_all_classes(its.logits, its.labels)
        result["images"] = n
    return results


def run(config: ConfigDict, workdir: str) -> int:
    """Evaluates the newest checkpoint of `workdir`, or without one there `config.init.checkpoint`.

    `workdir` may be all that `weights.load` takes. Prints a JSON object, then writes the report;
    returns the exit code. Views, fusion and comparison are those of `config.eval`.
    """
    path = workdir
    if config.init.checkpoint and not weights.exists(workdir):
        path = config.init.checkpoint
    console = Console()
    names.check(config)
    options, asked = views.Options(**{key: config.eval[key] for key in views.KEYS}), config.eval
    report = consume(config, "report", write.Options)
    if asked.calibrate and options.used:
        raise ValueError(
            "config.eval.calibrate stores the temperature of one network as it is: leave out "
            + ", ".join(f"config.eval.{key}" for key in options.used)
        )
    choose("config.eval.average", asked.average, ("", *PREFERRED))
    if asked.average and not asked.ema:
        raise ValueError(
            f"config.eval.average = {asked.average!r} does nothing with config.eval.ema = False"
        )
    calibration.check(asked.accepted_accuracy, asked.rejected, asked.calibrate)
    if asked.predictions:
        tables.check(asked.predictions)
    console.status("looking at the images ...")
    begun = record.find(workdir)
    config, data = choices.open_data(
        config, workdir=str(begun.parent) if begun else "", weights=path, training=False
    )
    if data.eval is None:
        raise ValueError(f"config.data: this {config.data.source} source has no evaluation images")
    check_complete(config)
    told = lambda line: print(line, file=sys.stderr)
    try:
        layout = consume(config, "mesh", sharding.make)
    except sharding.DevicesError as e:  # those of a run that was elsewhere
        files.only_process_0(told)(f"{e}: evaluated on those that are here, with nothing cut")
        layout = sharding.make(**{**config.mesh, "data": -1, "fsdp": 1, "model": 1})
    batch_size = config.eval.batch_size or config.batch_size
    check_eval_batch(batch_size, layout.mesh.size)
    numbers = consume(config, "precision", precision.make, platform=layout.platform)
    net, _, _ = consume(
        config,
        "model",
        network.make,
        classes=len(data.class_names),
        class_names=data.class_names,
        image=consume(config, "image", ops.Image),
        precision=numbers.name,
        multi_label=data.facts()["multi_label"],
    )
    if asked.against and net.multi_label:
        raise ValueError(
            f"config.eval.against = {asked.against!r}: comparisons are of images of one class each"
        )
    layout = layout.of_classes(net.num_classes)
    console.status("loading the network ...")
    shapes = net.shapes
    average = (asked.average or None) if asked.ema else ""
    stored = weights.load(path, average=average, report=told)
    variables = weights.initialize(
        jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            shapes,
            layout.of(shapes),
        ),
        network=net.described(),
        checkpoint=path,
        strict=True,
        stored=stored,
        report=told,
    )
    net = net.calibrated(weights.described(stored[1]))

    def load(path, key):
        other, values = network.load(path, average=None if asked.ema else "", report=told)
        views.check_classes(net, other, path, key)
        place = lambda x, s: jax.make_array_from_callback(x.shape, s, lambda i: x[i])
        return other, jax.tree.map(place, values, layout.of(values))

    fused = [load(path, "eval.fuse") for path in options.fuse]
    other = load(asked.against, "eval.against") if asked.against else None
    passes = Passes(Feed(data, data.eval, net.transform, layout), batch_size, console)
    if options.used:
        members = [(net, variables), *fused]
        result, scores = passes.mean(members, options)
        # a mean is of probabilities already, and the network's thresholds are of its own
        net = dataclasses.replace(net, temperature=1.0, thresholds=())
    else:
        wanted = asked.calibrate, asked.predictions, asked.against, net.multi_label
        if report.enabled and not any(wanted) and (why := too_many(data.eval, net.num_classes)):
            files.only_process_0(told)(f"no report: {why}")
            report = dataclasses.replace(report, enabled=False)
        result, scores = passes.one(net, variables, needed=report.enabled or any(wanted))
    compared = passes.one(*other) if other else None
    console.erase()
    printed = {"checkpoint": path, **plain(result)}
    if options.used:
        printed["of"] = options.described([net, *(member for member, _ in fused)])
    if jax.process_index() == 0:
        print(json.dumps(printed, allow_nan=False), flush=True)
    if asked.calibrate:
        share = {"accuracy": asked.accepted_accuracy, "rejected": asked.rejected}
        found, line = calibration.fitted(net, scores, **share) if scores else ({}, "")
        weights.calibrate(path, found, average=average)
        files.only_process_0(told)(f"{line}: stored with {path}")
    if jax.process_index() or scores is None:
        return 0
    about = {key: printed[key] for key in ("checkpoint", "of") if key in printed}
    evaluation = write.Evaluation(
        network=net, class_names=data.class_names, result=result, scores=scores, about=about
    )
    against = compared and write.Evaluation(
        network=other[0],
        class_names=data.class_names,
        result=compared[0],
        scores=compared[1],
        about={"checkpoint": asked.against},
    )
    if against:
        print(write.comparison(evaluation, against), file=sys.stderr)
    if asked.predictions:
        tables.write_parquet(asked.predictions, evaluation, data.eval)
    if report.enabled:
        folder = write.folder_of(workdir, begun)
        given = {"variables": None if fused else variables, "against": against}
        if begun:
            given |= {"config": config, "lines": write.log_of(begun.parent)}
        try:
            write.report(folder, evaluation, data.eval, report, **given)
            print(f"report: {folder / 'index.html'}", file=sys.stderr)
        except OSError as e:
            if e.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            # what is evaluated need not be ours
            print(f"no report: {folder} cannot be written: {e.strerror}", file=sys.stderr)
    return 0


@dataclasses.dataclass(frozen=True)
class Passes:
    """Passes over all evaluation images."""

    feed: Feed
    batch_size: int
    console: Console

    def one(
        self, net: network.Network, variables: Any, *, needed: bool = True
    ) -> tuple[dict[str, float], Scores | None]:
        """Returns what came out, and the scores if they are needed: on process 0."""
        make = make_step if needed else steps.make_eval_step
        step = make(net.predict, self.feed.layout.by_class(objectives.per_image))
        return self._over(net, variables, step, net.transform, needed=needed)

    def mean(
        self, members: Sequence[tuple[network.Network, Any]], options: views.Options
    ) -> tuple[dict[str, float], Scores | None]:
        """Returns what came out of the mean over networks and views, and its scores, as `one`."""
        mean = views.Mean(options)
        for share, (net, variables) in zip(options.shares, members):
            if not share:
                continue
            step, transforms = views.make_step(net, options), options.transforms(net)
            for transform in transforms:
                _, scores = self._over(net, variables, step, transform)
                if scores is not None:
                    mean.add(scores, share / len(transforms))
        return mean.finished() if jax.process_index() == 0 else ({}, None)

    def _over(self, net, variables, step, transform, needed=True):
        layout, source = self.feed.layout, self.feed.source
        shardings = {"in_shardings": (layout.of(net.shapes), layout.rows)}
        step = when_compiled(jax.jit(step, **shardings, out_shardings=layout.whole))
        scores = Scores.of(source, net.num_classes) if needed else None
        [result] = evaluate(
            step,
            dataclasses.replace(self.feed, transform=transform),
            variables,
            batch_size=self.batch_size,
            progress=self.console.evaluating,
            scores=scores,
        )
        return result, scores
