"""Exact evaluation: every image counts once, whatever the batch size and the number of devices."""

import json
import sys
from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict

from jaxcls import choices, record, sharding, weights
from jaxcls.console import Console
from jaxcls.data import loader, sources
from jaxcls.metrics import plain
from jaxcls.program import Program, build, check_names, model_arguments, reading


def evaluate(
    program: Program,
    config: ConfigDict,
    data: sources.Data,
    state: Any,
    stop: Callable[[], bool] = lambda: False,
    progress: Callable[[int], None] = lambda images: None,
) -> dict[str, float] | None:
    """Returns {"loss", "top1", "top5", "images"}: means over all images (accuracies in [0, 1]).

    Args:
      program, config, data: of the run.
      state: a train state.
      stop: asked before each batch; the answer True gives up, and the result is None.
      progress: told the number of images that are done, before each batch.
    """
    batches = loader.eval_batches(
        data.eval,
        program.eval_transform,
        batch_size=program.plan.eval_batch_size,
        rows=sharding.local_rows(program.batch_sharding, program.plan.eval_batch_size),
        **reading(config, data),
    )
    totals: dict[str, float] = {}
    late: dict[str, jax.Array] = {}

    def add(sums):
        for name, value in jax.device_get(sums).items():
            totals[name] = totals.get(name, 0.0) + float(value)  # float64: no image gets lost

    with batches:
        for number, batch in enumerate(batches):
            if stop():
                return None
            progress(min(number * program.plan.eval_batch_size, len(data.eval)))
            sums = program.eval_step(state, sharding.put(batch, program.batch_sharding))
            add(late)  # one batch late, so that the device does not wait
            late = sums
    add(late)
    images = int(totals.pop("count"))
    return {name: value / images for name, value in totals.items()} | {"images": images}


def run(config: ConfigDict, workdir: str) -> int:
    """Evaluates the newest checkpoint of `workdir`, or without one there `config.init.checkpoint`.

    `workdir` may be all that `weights.load` takes. Prints a JSON object; returns the exit code.
    """
    path = workdir
    if config.init.checkpoint and not weights.exists(workdir):
        path = config.init.checkpoint
    console = Console()
    check_names(config)
    console.status("looking at the images ...")
    begun = record.find(workdir)
    config, data = choices.open_data(
        config, workdir=str(begun.parent) if begun else "", weights=path, training=False
    )
    if data.eval is None:
        raise ValueError(f"config.data: this {config.data.source} source has no evaluation images")
    config = config.copy_and_resolve_references()
    averaged = config.eval.ema
    # the weights to evaluate are in the state itself
    config.ema.decay, config.ema.ramp, config.eval.ema = 0.0, False, True
    # its training images may be fewer than a batch: nothing is trained
    few = len(data.train) < config.batch_size
    images = config.batch_size * 1000 if few else len(data.train)
    program = build(config, num_train=images, num_classes=len(data.class_names))
    console.status("initialising the network ...")
    state = program.init()
    variables = weights.initialize(
        {"params": state.params, "batch_stats": state.batch_stats},
        num_classes=config.model.num_classes or len(data.class_names),
        class_names=data.class_names,
        model=config.model.name,
        options=model_arguments(config),
        checkpoint=path,
        ema=averaged,
        strict=True,
        report=lambda line: print(line, file=sys.stderr),
    )
    state = state.replace(**variables)
    result = evaluate(program, config, data, state, progress=console.evaluating)
    console.erase()
    if jax.process_index() == 0:
        print(json.dumps({"checkpoint": path, **plain(result)}, allow_nan=False))
    return 0
