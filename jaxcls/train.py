"""The run: build, restore, loop, save. Read this first; it goes from top to bottom, once."""

import contextlib
import functools
import json
import signal
import time
from collections.abc import Callable
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from jaxcls import checkpoint, choices, files, metrics, record, sharding, signals, steps
from jaxcls.config import due
from jaxcls.console import Console
from jaxcls.data import cache, identity, sources
from jaxcls.data.decode import BadImage
from jaxcls.data.ops import transformed
from jaxcls.evaluate import evaluate
from jaxcls.program import Program, build, check_names, start, train_batches

# Of the meta data of a checkpoint, what has to be of the same type here.
MADE_OF = {"model": "", "class_names": [], "data": {}, "log": {}, "window": {}, "seconds": 0.0}


def setup(config: ConfigDict) -> tuple[steps.TrainState, Callable, Callable]:
    """Returns (state, train_step, eval_step) as a run uses them, for tests and notebooks.

    train_step(state, batch) -> (state, metrics), which consumes the state it is given;
    eval_step(state, batch) -> sums of loss, top1, top5 and count. A batch is
    {"image": uint8 [B, H, W, C], or floating and already normalised, "label": int32 [B]}.
    """
    config, data = choices.open_data(config)
    program = build(config, num_train=len(data.train), num_classes=len(data.class_names))
    return start(config, program, data.class_names), program.train_step, program.eval_step


def run(config: ConfigDict, workdir: str) -> int:
    """Trains to the end, or from where the working directory stands. Returns the exit code.

    Raises:
      ValueError: a user's mistake.
      FloatingPointError: training has diverged; the message says which checkpoint there is.
    """
    console = Console()
    record.check_workdir(workdir)
    check_names(config)
    console.status("looking at the images ...")
    # What is wrong with config and data is found before anything is written.
    config, data = choices.open_data(config, workdir=workdir, report=console.later)
    console.status("building the network ...")
    program = build(config, num_train=len(data.train), num_classes=len(data.class_names))
    if data.eval is not None:
        with contextlib.suppress(BadImage):  # whether it may be skipped is up to the evaluation
            transformed(data.eval[0], program.eval_transform, None)
    with signals.watched(jax.process_count()) as stop, files.lock(workdir) as keep:
        return _run(config, epath.Path(workdir), data, program, console, stop, keep)


def _run(
    config: ConfigDict,
    workdir: epath.Path,
    data: sources.Data,
    program: Program,
    console: Console,
    stop: signals.Signals,
    keep: Callable[[], None],
) -> int:
    began, main_process = time.time(), jax.process_index() == 0
    plan, total = program.plan, program.plan.total_steps
    files.check_kinds(workdir)
    images = identity.of(data)
    meta = {
        "model": config.model.name,
        "network": choices.network(config),
        "image": config.image.to_dict(),
        **images,
        "log": metrics.NO_LINES,
        "window": {},  # means since its last line
        "seconds": 0.0,
        "bad_images": [],  # numbers of the unreadable training images met so far
    }
    if files.differs(json.dumps(images)):
        raise ValueError(
            "config.data: the processes see different images or classes; each needs the same "
            "files in config.data.root"
        )
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
    check = functools.partial(_check, meta, config.checkpoint.changed_data, console.say)
    if restored := saved.restore(program.abstract_state, check):
        state, before = restored
        if identity.same_order(before, meta):
            meta["bad_images"] = before["bad_images"]
        meta |= {key: before.get(key) for key in ("log", "window", "seconds")}
    else:
        console.describe(config, workdir, data, program)
        state = start(config, program, data.class_names, report=console.say)

    def complete(step):  # with the evaluation of its last step
        return step > total or (step == total and (data.eval is None or evaluated(total)))

    def evaluated(step):
        return saved.last is not None and saved.last["step"] == step

    def finish(step):
        if main_process:
            meta["seconds"] = elapsed()
            skipped = int(state.loss_scale.skipped)
            evaluations = {"best": saved.best, "last": saved.last}
            known = meta | evaluations
            metrics.finish(config, workdir, plan, step, skipped, known, complete(step))

    def elapsed():
        return round(seconds + time.time() - began, 1)

    first, seconds = int(state.step), meta["seconds"] or 0.0
    if complete(first):
        saved.close()
        if main_process:
            print(f"{workdir}: the run is complete")
        finish(first)
        return 0
    if first:
        console.describe(config, workdir, data, program)
        console.say(f"resuming at step {first} of {total}")
    data, program = cache.use(config, data, program)
    batches = train_batches(config, data, program, start_step=first)
    batches.know_bad_images(meta["bad_images"])
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
        evaluation=saved.last,
    )
    try:
        # The order, kept in every iteration: log what is done; save if that, an evaluation or the
        # end is due; evaluate, log that, add it to the checkpoint; leave if asked to; next batch,
        # step. So whatever ends an evaluation (a signal, an unreadable image, kill -9), the epoch
        # before it is saved, and a resume at this step evaluates unless the checkpoint has that
        # already: it is added last, and the line that the log has without it is cut off.
        # A save goes on while the evaluation runs. Metrics are read one step late: the device
        # never waits.
        for step in range(first, total + 1):
            evaluating = (
                data.eval is not None and due(step, plan.eval_every, total) and not evaluated(step)
            )
            saving = due(step, plan.save_every, total) or evaluating
            stopping = bool(stop.received) or saved.reached_preemption(step)
            log.drain(keep=0 if saving or stopping else 1)
            if (saving or stopping) and saved.latest_step() != step:
                with log.window.paused():
                    meta["log"] = log.sync()
                    meta["window"] = log.window.sums
                    meta["seconds"] = elapsed()
                    meta["bad_images"] = files.union(batches.bad_images)
                    batches.know_bad_images(meta["bad_images"])
                    saved.save(step, state, meta)
            if evaluating and not stopping:
                with log.window.paused():
                    result = evaluate(
                        program,
                        config,
                        data,
                        state,
                        stop=lambda: bool(stop.received),
                        progress=console.evaluating,
                    )
                    if result:
                        saved.wait()
                        log.report(step, "eval", result)
                        log.sync()
                        saved.evaluated(step, metrics.plain(result))
                stopping = bool(stop.received)
            console.saved(saved.finished())
            if stopping or step == total:
                break
            with log.window.waiting():
                batch = sharding.put(next(batches), program.batch_sharding)
            state, values = program.train_step(state, batch)
            log.add(step + 1, values)
            if step == first:  # compiled and under way: from here on there is something to save
                keep()
                stop.save_first(pass_on=jax.process_count() > 1)
        saved.wait()
        console.saved(saved.finished())
        log.sync()
    except FloatingPointError as e:
        saved.wait()
        there = saved.latest_step()
        last = f"The checkpoint of step {there} is good"
        last = "There is no checkpoint yet" if there is None else last
        raise FloatingPointError(f"{e}. {last}") from None
    finally:
        log.close()
        batches.close()
        saved.close()
    finish(step)
    return 0 if complete(step) else 128 + (stop.received or signal.SIGTERM)


def _check(
    ours: dict[str, Any],
    changed_data: str,
    report: Callable[[str], None],
    theirs: dict[str, Any],
    path: epath.Path,
) -> None:
    """Refuses a checkpoint (`theirs`, its meta data) that is not of this network and this data."""
    if any(not isinstance(theirs.get(key, value), type(value)) for key, value in MADE_OF.items()):
        raise ValueError(f"checkpoint {path} is damaged: its meta data are not those of a run")
    if theirs.get("model", ours["model"]) != ours["model"]:
        raise ValueError(
            f"checkpoint {path} is {theirs['model']}, the config asks for {ours['model']}: choose "
            "another --workdir"
        )
    if "data" not in theirs:
        report(f"checkpoint {path} does not know its data: only the classes are compared")
    before = {"data": ours["data"], "class_names": ours["class_names"]} | theirs
    identity.check(before, ours, accept=changed_data == "accept", path=path)
