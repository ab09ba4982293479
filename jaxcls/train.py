"""The run: build, restore, loop, save. Read this first; it goes from top to bottom, once."""

import contextlib
import signal
import time
from collections.abc import Callable

import jax
from etils import epath
from ml_collections import ConfigDict

from jaxcls import checkpoint, choices, files, metrics, record, sharding, steps
from jaxcls.config import due
from jaxcls.console import Console, acknowledge
from jaxcls.data import cache, sources
from jaxcls.data.decode import BadImage
from jaxcls.data.ops import transformed
from jaxcls.evaluate import evaluate
from jaxcls.program import Program, build, start, train_batches


def setup(config: ConfigDict) -> tuple[steps.TrainState, Callable, Callable]:
    """Returns (state, train_step, eval_step) as a run uses them, for tests and notebooks.

    train_step(state, batch) -> (state, metrics), which consumes the state it is given;
    eval_step(state, batch) -> sums of loss, top1, top5 and count. A batch is
    {"image": uint8 [B, H, W, C], or floating and already normalised, "label": int32 [B]}.
    """
    config, data = choices.open_data(config)
    program = build(config, num_train=len(data.train), num_classes=len(data.class_names))
    return start(config, program, data.class_names), program.train_step, program.eval_step


class Stop:
    """Remembers that SIGTERM or Ctrl-C came, so that the loop can save and leave.

    With several processes JAX itself takes SIGTERM and all processes agree on the step at which
    they stop (`Checkpoints.reached_preemption`); a handler of ours would disable that. Ctrl-C is
    handed to it as a SIGTERM.
    """

    def __init__(self):
        self.signal = 0
        if jax.process_count() == 1:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._received)
        else:
            signal.signal(signal.SIGINT, lambda *_: signal.raise_signal(signal.SIGTERM))

    def _received(self, number, frame):
        self.signal = number
        acknowledge(number)
        signal.signal(number, signal.SIG_DFL)  # a second one ends the process at once

    def __bool__(self):
        return self.signal != 0


def run(config: ConfigDict, workdir: str) -> int:
    """Trains to the end, or from where the working directory stands. Returns the exit code.

    Raises:
      ValueError: a user's mistake.
      FloatingPointError: training has diverged; the last checkpoint is good.
    """
    console = Console()
    console.status("looking at the images ...")
    # What is wrong with config and data is found before anything is written.
    config, data = choices.open_data(config, workdir=workdir, report=console.later)
    program = build(config, num_train=len(data.train), num_classes=len(data.class_names))
    if data.eval is not None:
        with contextlib.suppress(BadImage):  # whether it may be skipped is up to the evaluation
            transformed(data.eval[0], program.eval_transform, None)
    with files.lock(workdir):
        return _run(config, epath.Path(workdir), data, program, console)


def _run(
    config: ConfigDict,
    workdir: epath.Path,
    data: sources.Data,
    program: Program,
    console: Console,
) -> int:
    began, main_process = time.time(), jax.process_index() == 0
    plan, total = program.plan, program.plan.total_steps
    saved = checkpoint.Checkpoints(
        workdir / "checkpoints",
        keep=config.checkpoint.keep,
        best=config.checkpoint.best,
        report=console.say,
    )
    program = program._replace(
        init=console.announced("initialising the network", program.init),
        train_step=console.announced("compiling the train step", program.train_step),
        eval_step=console.announced("compiling the evaluation step", program.eval_step),
    )
    console.status("looking for checkpoints ...")
    if restored := saved.restore(program.abstract_state):
        state, meta = restored
    else:
        console.describe(config, workdir, data, program)
        state = start(config, program, data.class_names, report=console.say)
        meta = {
            "model": config.model.name,
            "network": choices.network(config),
            "image": config.image.to_dict(),
            "class_names": list(data.class_names),
            "window": {},  # of the log
            "best": None,  # evaluations
            "last": None,
            "seconds": 0.0,
            "bad_images": 0,
        }

    def complete(step):  # with the evaluation of its last step
        last = meta["last"]["step"] if meta["last"] else 0
        return step > total or (step == total and (data.eval is None or last == total))

    first = int(state.step)
    if complete(first):
        saved.close()
        if main_process:
            print(f"{workdir}: the run is complete")
            metrics.finish(config, workdir, plan, first, int(state.loss_scale.skipped), meta, True)
        return 0
    if first:
        console.describe(config, workdir, data, program)
        console.say(f"resuming at step {first} of {total}")
    data, program = cache.use(config, data, program)
    batches = train_batches(config, data, program, start_step=first)
    if main_process:
        about = {"class_names": list(data.class_names), **metrics.environment()}
        record.write(config, workdir, step=first, about=about)
        metrics.write_names(workdir, data.class_names, state.params)

    log = metrics.Log(
        workdir,
        plan,
        every=plan.log_every,
        max_skipped=program.max_skipped,
        tensorboard=config.log.tensorboard,
        from_step=first,
        meta=meta,
        console=console,
    )
    before = {key: meta[key] for key in ("seconds", "bad_images")}
    stop = Stop()
    try:
        # The order, kept in every iteration: log what is done, evaluate and save if due, leave if
        # asked to, next batch, step. Metrics are read one step late: the device never waits.
        for step in range(first, total + 1):
            evaluated = meta["last"] is not None and meta["last"]["step"] == step
            evaluating = data.eval is not None and due(step, plan.eval_every, total)
            saving = due(step, plan.save_every, total)
            stopping = bool(stop) or saved.reached_preemption(step)
            log.drain(keep=0 if evaluating or saving or stopping else 1)
            result = None
            if evaluating and not evaluated and not stopping:
                with log.window.paused():
                    result = evaluate(
                        program,
                        config,
                        data,
                        state,
                        stop=lambda: bool(stop),
                        progress=console.evaluating,
                    )
                stopping = bool(stop)
            if result:
                log.report(step, "eval", result)
                meta["last"] = {"step": step, **result}
                meta["best"] = metrics.better(meta["best"], meta["last"], config.checkpoint.best)
            if (saving or stopping) and saved.latest_step() != step:
                with log.window.paused():
                    log.sync()
                    meta["window"] = log.window.sums
                    meta["seconds"] = round(before["seconds"] + time.time() - began, 1)
                    meta["bad_images"] = before["bad_images"] + len(batches.bad_images)
                    saved.save(step, state, meta, result)
            console.saved(saved.finished())
            if stopping or step == total:
                break
            with log.window.waiting():
                batch = sharding.put(next(batches), program.batch_sharding)
            state, values = program.train_step(state, batch)
            log.add(step + 1, values)
        saved.wait()
        console.saved(saved.finished())
        log.sync()
    finally:
        log.close()
        batches.close()
        saved.close()
    if main_process:
        skipped = int(state.loss_scale.skipped)
        metrics.finish(config, workdir, plan, step, skipped, meta, complete(step))
    return 0 if complete(step) else 128 + (stop.signal or signal.SIGTERM)
