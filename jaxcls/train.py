"""The run: build, restore, loop, save. Read this first; it goes from top to bottom, once."""

import contextlib
import functools
from collections.abc import Callable

import jax
from etils import epath
from ml_collections import ConfigDict

from jaxcls import checkpoint, choices, files, meta, metrics, names, record, signals, steps, weights
from jaxcls.averages import preferred, settled
from jaxcls.barrier import reached_preemption
from jaxcls.config import consume, due
from jaxcls.console import Console
from jaxcls.data import cache, sources
from jaxcls.data.decode import BadImage
from jaxcls.data.feed import Feed
from jaxcls.data.ops import transformed
from jaxcls.directory import check_kinds, lock
from jaxcls.evaluate import evaluate
from jaxcls.program import Program, build
from jaxcls.report.write import Report
from jaxcls.starts import Clock
from jaxcls.watch import Watch


def setup(config: ConfigDict) -> tuple[steps.TrainState, Callable, Callable]:
    """Returns (state, train_step, eval_step) as a run uses them, for tests and notebooks.

    train_step(state, batch) -> (state, metrics), which consumes the state it is given;
    eval_step(variables, batch) -> sums of loss, top1, top5 and count, the variables being
    {"params", "batch_stats"}: state.variables(), or state.variables("ema"). A batch is
    {"image": uint8 [B, H, W, C], or floating and normalised, "label": int32 [B] or marks [B, K]}.
    """
    config, data = choices.open_data(config)
    program = build(config, **data.facts())
    teachers = jax.device_put(program.teachers, program.layout.of(program.teachers))
    train_step = lambda state, batch: program.train_step(state, batch, *teachers)
    return _start(config, program), train_step, program.eval_step


def _start(
    config: ConfigDict, program: Program, report: Callable[[str], None] = print
) -> steps.TrainState:
    """Returns the state at step 0; `report` is told what is not taken from `init.checkpoint`."""
    given = {"network": program.network.described(), "report": report}
    start = functools.partial(weights.start, program.init, program.abstract_state, **given)
    return consume(config, "init", start)


def run(config: ConfigDict, workdir: str) -> int:
    """Trains to the end, or from where the working directory stands. Returns the exit code.

    Raises:
      ValueError: a user's mistake.
      FloatingPointError: training has diverged; the message says which checkpoint there is.
    """
    console = Console()
    record.check_workdir(workdir)
    names.check(config)
    console.status("looking at the images ...")
    # What is wrong with config and data is found before anything is written.
    config, data = choices.open_data(config, workdir=workdir, report=console.later)
    console.status("building the network ...")
    program = build(config, **data.facts())
    if data.eval is not None:
        with contextlib.suppress(BadImage):  # whether it may be skipped is up to the evaluation
            transformed(data.eval[0], program.network.transform, None)
    with signals.watched(jax.process_count()) as stop, lock(workdir) as keep:
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
    main_process, clock = jax.process_index() == 0, Clock(workdir)
    plan, total = program.plan, program.plan.total_steps
    check_kinds(workdir)
    report = Report(config, workdir, program.network, data, console)
    scoring = program.network.multi_label or report.possible
    eval_step = program.score_step if scoring else program.eval_step
    watch = consume(config, "watch", Watch, beat=clock.beat)
    known = meta.new(program.network, config.crop, data, program.teachers, plan.steps_per_epoch)
    leaving = lambda: bool(stop.received) or reached_preemption()
    saved = checkpoint.Checkpoints(
        workdir / "checkpoints",
        keep=config.checkpoint.keep,
        best=config.checkpoint.best,
        report=console.say,
    )
    program = program._replace(
        init=console.announced("initialising the network", program.init),
        train_step=console.announced("compiling the train step", program.train_step),
        eval_step=console.announced("compiling the evaluation step", eval_step),
    )
    console.status("looking for checkpoints ...")
    accept = config.checkpoint.changed_data == "accept"
    check = functools.partial(meta.check, known, total=total, accept=accept, report=console.say)
    if restored := saved.restore(program.abstract_state, check):
        state, before = restored
        known |= meta.taken_up(before, known)
    else:
        console.describe(workdir, data, program)
        state = _start(config, program, report=console.say)

    def complete(step):  # with the evaluation of its last step
        return step > total or (step == total and (data.eval is None or evaluated(total)))

    def evaluated(step):
        return saved.last is not None and saved.last["step"] == step

    def finish(step):
        if main_process:
            now = {**clock.summary(known, step), "best": saved.best, "last": saved.last}
            skipped = int(state.loss_scale.skipped)
            images = config.data.to_dict()
            metrics.finish(workdir, plan, step, skipped, known | now, complete(step), images)

    state = program.optimizer.watched(state, saved.last)
    first, watch.in_steps = int(state.step), known["in_steps"]
    if complete(first):
        saved.close()
        if main_process:
            print(f"{workdir}: the run is complete")
        finish(first)
        return 0
    if first:
        console.describe(workdir, data, program)
        console.say(f"resuming at step {first} of {total}")
    feed = cache.use(Feed(data, data.train, program.transform, program.layout), "training")
    if data.eval is not None:
        eval_feed = Feed(data, data.eval, program.network.transform, program.layout)
        eval_feed = cache.use(eval_feed, "evaluation")
    teachers = jax.device_put(program.teachers, program.layout.of(program.teachers))
    batches = feed.train_batches(plan, config.seed, start_step=first)
    batches.know_bad_images(known["bad_images"])
    if main_process:
        about = {"class_names": list(data.class_names), **metrics.environment()}
        record.write(config, workdir, step=first, about=about)
        metrics.write_names(workdir, data.class_names, state.params)
    clock.start(first, known)
    log = metrics.Log(
        workdir,
        plan,
        max_skipped=program.max_skipped,
        tensorboard=config.log.tensorboard,
        from_step=first,
        meta=known,
        console=console,
        watch=watch,
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
            stopping = leaving()
            log.drain(keep=0 if saving or stopping else 1)
            if saving and (step == total or evaluating or not stopping):  # it is evaluated, or kept
                with log.paused("averaging"):
                    state = settled(state, program, feed, config.seed)
            if (saving or stopping) and saved.latest_step() != step:
                with log.paused("saving"):
                    known |= log.known() | {"seconds": clock.seconds}
                    known["bad_images"] = files.union(batches.bad_images)
                    batches.know_bad_images(known["bad_images"])
                    saved.save(step, state, known)
            if evaluating and not stopping:
                with log.paused("evaluating"):
                    kind = preferred(state.averages) if config.eval.ema else ""
                    variables = state.variables(kind)
                    results = evaluate(
                        program.eval_step,
                        eval_feed,
                        variables,
                        batch_size=plan.eval_batch_size,
                        stop=leaving,
                        progress=log.evaluating,
                        scores=report.scores(last=step == total),
                    )
                    if results:
                        saved.wait()
                        log.report(step, "eval", results[0])
                        log.sync()
                        report.write(step, results[0], variables)
                        saved.evaluated(step, metrics.plain(results[0]))
                        state = program.optimizer.watched(state, saved.last)
                stopping = leaving()
            console.saved(saved.finished())
            if stopping or step == total:
                break
            with log.window.waiting():
                batch = feed.put(next(batches))
            with jax.transfer_guard("disallow"):  # all that a step takes is on the devices
                state, values = program.train_step(state, batch, *teachers)
            log.add(step + 1, values)
            if step == first:  # compiled and under way: from here on there is something to save
                keep()
                stop.save_first(pass_on=jax.process_count() > 1)
        with log.paused("saving"):
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
    return 0 if complete(step) else 128 + (stop.received or stop.passed_on)
