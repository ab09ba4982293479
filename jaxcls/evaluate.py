"""Exact evaluation: every image counts once, whatever the batch size and the number of devices."""

import json
import sys
from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict

from jaxcls import choices, names, network, objectives, precision, record, sharding, steps, weights
from jaxcls.config import check_complete, check_eval_batch, consume
from jaxcls.console import Console
from jaxcls.data import ops
from jaxcls.data.feed import Feed
from jaxcls.metrics import plain
from jaxcls.report.measures import of_all_classes
from jaxcls.report.scores import Scores
from jaxcls.report.scores import make_step as make_score_step


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
      ValueError: no image has a label, or one cannot be read.
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
    add(late)
    images = [int(total.pop("count")) for total in totals]
    if not all(images):
        raise ValueError("none of the evaluation images has a label")
    results = [{name: value / n for name, value in x.items()} for x, n in zip(totals, images)]
    for result, its, n in zip(results, kept, images, strict=True):
        if its is not None and its.labels.ndim == 2:
            result |= of_all_classes(its.logits, its.labels)
        result["images"] = n
    return results


def run(config: ConfigDict, workdir: str) -> int:
    """Evaluates the newest checkpoint of `workdir`, or without one there `config.init.checkpoint`.

    `workdir` may be all that `weights.load` takes. Prints a JSON object; returns the exit code.
    """
    path = workdir
    if config.init.checkpoint and not weights.exists(workdir):
        path = config.init.checkpoint
    console = Console()
    names.check(config)
    console.status("looking at the images ...")
    begun = record.find(workdir)
    config, data = choices.open_data(
        config, workdir=str(begun.parent) if begun else "", weights=path, training=False
    )
    if data.eval is None:
        raise ValueError(f"config.data: this {config.data.source} source has no evaluation images")
    check_complete(config)
    layout = consume(config, "mesh", sharding.make)
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
    console.status("loading the network ...")
    shapes = net.shapes
    variables = weights.initialize(
        jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            shapes,
            layout.of(shapes),
        ),
        network=net.described(),
        checkpoint=path,
        ema=config.eval.ema,
        strict=True,
        report=lambda line: print(line, file=sys.stderr),
    )
    make_step = make_score_step if net.multi_label else steps.make_eval_step
    eval_step = jax.jit(
        make_step(net.predict, objectives.per_image),
        in_shardings=(layout.of(shapes), layout.rows),
        out_shardings=layout.whole,
    )
    feed = Feed(data, data.eval, net.transform, layout)
    [result] = evaluate(
        eval_step, feed, variables, batch_size=batch_size, progress=console.evaluating
    )
    console.erase()
    if jax.process_index() == 0:
        print(json.dumps({"checkpoint": path, **plain(result)}, allow_nan=False))
    return 0
