"""The run: build, restore, loop, save. Read this first; it goes from top to bottom, once."""

import collections
import json
import math
import signal
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from clu import parameter_overview
from etils import epath
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from jaxcls import (
    checkpoint,
    evaluate,
    metrics,
    models,
    objectives,
    optim,
    precision,
    sharding,
    steps,
    trees,
)
from jaxcls.config import Plan, differences, due, plan
from jaxcls.data import device, loader, mixing, ops, sources


class NotFinite(Exception):
    """The numbers of a run are no longer finite; the message says what to do about it."""


class Program(NamedTuple):
    """Everything that is computed in a run, jitted and sharded; nothing has run yet."""

    plan: Plan
    mesh: Mesh
    batch_sharding: NamedSharding
    abstract_state: steps.TrainState  # shapes, dtypes and shardings
    max_skipped: int  # steps in a row; more of them stop the run
    init: Callable[[], steps.TrainState]
    train_step: Callable[..., tuple[steps.TrainState, dict[str, jax.Array]]]
    eval_step: Callable[..., dict[str, jax.Array]]


def build(config: ConfigDict, *, num_train: int, num_classes: int) -> Program:
    """Returns the program of a config, for a data set of this size; reads no data.

    Raises:
      ValueError: whatever is wrong with the config; the message names the key.
    """
    lengths = plan(config, num_train)
    mesh = sharding.make_mesh(data=config.mesh.data, fsdp=config.mesh.fsdp)
    check_batches(config, lengths, mesh.size)
    platform = mesh.devices.flat[0].platform
    numbers = precision.make(**config.precision, platform="gpu" if platform == "cuda" else platform)

    settings = dict(config.model)
    name, options = settings.pop("name"), dict(settings.pop("options"))
    if 0 < settings["num_classes"] < num_classes:
        raise ValueError(
            f"config.model.num_classes = {settings['num_classes']}, the data has {num_classes}"
        )
    settings["num_classes"] = settings["num_classes"] or num_classes
    frozen = tuple(config.optim.frozen)
    model = models.build(
        name,
        **{key: value for key, value in settings.items() if value is not None},
        **options,
        dtype=numbers.dtype,
        feature_dtype=numbers.feature_dtype,
        param_dtype=numbers.param_dtype,
        norm_dtype=numbers.norm_dtype,
        head_dtype=numbers.head_dtype,
        frozen=trees.frozen_modules(frozen) if frozen else None,
    )
    image_shape = (config.image.size, config.image.size, len(config.image.mean))
    learning_rate = optim.schedule(
        **config.lr,
        total_steps=lengths.total_steps,
        batch_size=lengths.batch_size,
        steps_per_epoch=lengths.steps_per_epoch,
    )
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    tx = optim.make(**config.optim, params=params, learning_rate=learning_rate)

    wide = jnp.promote_types(numbers.feature_dtype, jnp.float32)
    normalise = device.make(**config.image, train=True, dtype=wide)
    mix = mixing.make(**config.mix, group=config.model.bn_group)

    def prepare(rng, batch):
        flip_key, mix_key = jax.random.split(rng)
        batch = normalise(flip_key, batch)
        return mix(mix_key, batch) if mix else batch

    train_step = steps.make_train_step(
        model,
        tx,
        objectives.supervised(**config.loss),
        prepare=prepare,
        learning_rate=learning_rate,
        accumulate_steps=config.optim.accumulate_steps,
        ema_decay=config.ema.decay,
        ema_ramp=config.ema.ramp,
        frozen=frozen,
    )
    eval_step = steps.make_eval_step(
        model, prepare=device.make(**config.image, train=False, dtype=wide), ema=config.eval.ema
    )

    def init():
        return steps.init_state(
            model,
            tx,
            numbers.initial_loss_scale(),
            image_shape,
            seed=config.seed,
            ema=config.ema.decay > 0,
        )

    def traced(f):
        def with_precision(*args):
            with jax.default_matmul_precision(numbers.matmul_precision):
                return f(*args)

        return with_precision

    shardings = sharding.state_shardings(mesh, jax.eval_shape(init), config.mesh.fsdp_min_size)
    rows, whole = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    return Program(
        plan=lengths,
        mesh=mesh,
        batch_sharding=rows,
        abstract_state=jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            jax.eval_shape(init),
            shardings,
        ),
        max_skipped=numbers.max_skipped,
        init=jax.jit(init, out_shardings=shardings),
        train_step=jax.jit(
            traced(train_step),
            in_shardings=(shardings, rows),
            out_shardings=(shardings, whole),
            donate_argnums=0,
        ),
        eval_step=jax.jit(traced(eval_step), in_shardings=(shardings, rows), out_shardings=whole),
    )


def check_batches(config: ConfigDict, lengths: Plan, devices: int) -> None:
    """Refuses batches that do not divide over devices, micro-batches and groups of BatchNorm."""
    k, group = config.optim.accumulate_steps, config.model.bn_group
    batch = lengths.batch_size
    if k < 1 or batch % (devices * k):
        raise ValueError(
            f"config.batch_size = {batch} does not divide over {devices} device(s) x "
            f"config.optim.accumulate_steps = {k}: use a multiple of {devices * max(k, 1)}"
        )
    if group is not None and (group < 1 or batch // k % group):
        raise ValueError(
            f"config.model.bn_group = {group} does not divide the {batch // k} images that are "
            "computed together (config.batch_size / config.optim.accumulate_steps)"
        )
    if lengths.eval_batch_size % devices:
        raise ValueError(
            f"config.eval.batch_size = {lengths.eval_batch_size} does not divide over "
            f"{devices} device(s)"
        )


def start(config: ConfigDict, program: Program, class_names: Sequence[str]) -> steps.TrainState:
    """Returns the state at step 0, with the weights of `config.init.checkpoint` if one is set."""
    state = program.init()
    if not config.init.checkpoint:
        return state
    variables = checkpoint.initialize(
        {"params": state.params, "batch_stats": state.batch_stats},
        num_classes=config.model.num_classes or len(class_names),
        class_names=class_names,
        **config.init,
    )
    state = state.replace(**variables)
    if state.ema is not None:
        state = state.replace(ema=steps.start_ema(state.params, state.batch_stats))
    shardings = jax.tree.map(lambda x: x.sharding, program.abstract_state)
    return jax.device_put(state, shardings)


def setup(config: ConfigDict) -> tuple[steps.TrainState, Callable, Callable]:
    """Returns (state, train_step, eval_step) as a run uses them, for tests and notebooks.

    train_step(state, batch) -> (state, metrics), which consumes the state it is given;
    eval_step(state, batch) -> sums of loss, top1, top5 and count. A batch is
    {"image": uint8 [B, H, W, C], or floating and already normalised, "label": int32 [B]}.
    """
    data = sources.open(**config.data, image_size=config.image.size)
    program = build(config, num_train=len(data.train), num_classes=len(data.class_names))
    return start(config, program, data.class_names), program.train_step, program.eval_step


class Stop:
    """Remembers that SIGTERM or Ctrl-C came, so that the loop can save and leave.

    With several processes JAX itself takes SIGTERM and all processes agree on the step at which
    they stop (`Checkpoints.reached_preemption`); a handler of ours would disable that.
    """

    def __init__(self):
        self.signal = 0
        if jax.process_count() == 1:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._received)

    def _received(self, number, frame):
        self.signal = number
        signal.signal(number, signal.SIG_DFL)  # a second one ends the process at once

    def __bool__(self):
        return self.signal != 0


def run(config: ConfigDict, workdir: str) -> int:
    """Trains to the end, or from where the working directory stands. Returns the exit code.

    Raises:
      ValueError: a user's mistake.
      NotFinite: training has diverged; the last checkpoint is good.
    """
    workdir = epath.Path(workdir)
    main_process = jax.process_index() == 0
    began = time.time()
    with checkpoint.lock(workdir):
        data = sources.open(**config.data, image_size=config.image.size)
        program = build(config, num_train=len(data.train), num_classes=len(data.class_names))
        lengths = program.plan
        total = lengths.total_steps
        saved = checkpoint.Checkpoints(
            workdir / "checkpoints", keep=config.checkpoint.keep, best=config.checkpoint.best
        )
        restored = saved.restore(program.abstract_state)
        if restored:
            state, meta = restored
        else:
            state = start(config, program, data.class_names)
            meta = {"window": {}, "best": None, "last": None, "seconds": 0.0, "bad_images": 0}
        first = int(state.step)
        if first >= total:
            saved.close()
            if main_process:
                print(f"{workdir}: the run is complete")
                finish(workdir, config, lengths, state, meta)
            return 0

        console = metrics.Console(total, first, main_process)
        if main_process:
            write_config(config, workdir, console.say)
            if first:
                console.say(f"resuming at step {first} of {total}")
            else:
                overview = parameter_overview.get_parameter_overview
                console.say(overview(state.params, include_stats=False))
        writer = None
        if main_process:
            writer = metrics.Writer(
                workdir,
                tensorboard=config.log.tensorboard,
                from_step=first,
                evaluated=meta["last"],
            )

        train_ops, eval_ops = (ops.make(**config.image, train=train) for train in (True, False))
        reading = {
            "channels": len(config.image.mean),
            "on_bad_image": data.on_bad_image,
            "max_bad_images": data.max_bad_images,
            **config.loader,
        }
        batches = loader.train_batches(
            data.train,
            train_ops,
            batch_size=lengths.batch_size,
            seed=config.seed,
            start_step=first,
            num_steps=total,
            rows=sharding.local_rows(program.batch_sharding, lengths.batch_size),
            **reading,
        )

        def eval_batches():
            return loader.eval_batches(
                data.eval,
                eval_ops,
                batch_size=lengths.eval_batch_size,
                rows=sharding.local_rows(program.batch_sharding, lengths.eval_batch_size),
                **reading,
            )

        stop = Stop()
        window = metrics.Window(meta["window"])
        waiting = collections.deque()  # (step, its metrics), still on the device

        def report(step, split, line):
            if writer:
                writer.write(step, lengths.epoch(step), split, line)
            console.report(step, lengths.epoch(step), split, line)

        def log_one():
            step, values = waiting.popleft()
            values = {name: float(v) for name, v in jax.device_get(values).items()}
            if values.pop("skipped_in_a_row") >= program.max_skipped:
                raise NotFinite(diverged(step, values, program.max_skipped))
            if not values.pop("finite"):  # a skipped step has no part in the means
                values = {k: v if k in metrics.LAST else math.nan for k, v in values.items()}
            values["skipped"] = int(values["skipped"])
            window.add(values, lengths.batch_size)
            console.advance(step)
            if due(step, lengths.log_every, total):
                report(step, "train", window.flush() | {k: values[k] for k in metrics.LAST})

        try:
            # The order, kept in every iteration: log what is done, evaluate and save if due, leave
            # if asked to, next batch, step. Metrics are read one step late: the device never waits.
            for step in range(first, total + 1):
                stopping = saved.reached_preemption(step) or stop
                evaluating = data.eval is not None and due(step, lengths.eval_every, total)
                if meta["last"] and meta["last"]["step"] == step:  # before it was interrupted
                    evaluating = False
                saving = (step > first and due(step, lengths.save_every, total)) or stopping
                while len(waiting) > (0 if evaluating or saving or step == total else 1):
                    log_one()
                result = None
                if evaluating and not stopping:
                    paused = time.perf_counter()
                    result = evaluate.evaluate(
                        program.eval_step,
                        state,
                        eval_batches(),
                        program.batch_sharding,
                        stop=lambda: bool(stop),
                    )
                    stopping = stopping or stop
                    saving = saving or stopping
                    window.started += time.perf_counter() - paused
                if result:
                    report(step, "eval", result)
                    meta["last"] = {"step": step, **result}
                    meta["best"] = better(meta["best"], meta["last"], config.checkpoint.best)
                if saving and saved.latest_step() != step:
                    paused = time.perf_counter()
                    if writer:
                        writer.sync()
                    meta |= {
                        "window": window.sums,
                        "class_names": list(data.class_names),
                        "model": config.model.name,
                        "bad_images": meta["bad_images"] + len(batches.bad_images),
                        "seconds": round(meta["seconds"] + time.time() - began, 1),
                    }
                    began = time.time()
                    saved.save(step, state, meta, result)
                    window.started += time.perf_counter() - paused
                if stopping or step == total:
                    break
                asked = time.perf_counter()
                batch = sharding.put(next(batches), program.batch_sharding)
                window.waited += time.perf_counter() - asked
                state, values = program.train_step(state, batch)
                waiting.append((step + 1, values))
            saved.wait()
        finally:
            console.close()
            batches.close()
            saved.close()
            if writer:
                writer.close()

        if main_process:
            finish(workdir, config, lengths, state, meta)
        return 0 if step == total else 128 + (stop.signal or signal.SIGTERM)


def run_eval(config: ConfigDict, workdir: str) -> int:
    """Evaluates `config.init.checkpoint`, or the newest checkpoint of the working directory."""
    data = sources.open(**config.data, image_size=config.image.size)
    if data.eval is None:
        raise ValueError(f"config.data: this {config.data.source} source has no evaluation split")
    config = config.copy_and_resolve_references()
    config.optim.frozen = config.optim.lr_mults = config.optim.no_decay = ()
    config.init.checkpoint = config.init.checkpoint or workdir
    config.init.ema = config.eval.ema
    config.ema.decay = 0.0
    program = build(
        config, num_train=max(len(data.train), config.batch_size), num_classes=len(data.class_names)
    )
    state = start(config, program, data.class_names)
    result = evaluate.evaluate(
        program.eval_step,
        state,
        loader.eval_batches(
            data.eval,
            ops.make(**config.image, train=False),
            batch_size=program.plan.eval_batch_size,
            rows=sharding.local_rows(program.batch_sharding, program.plan.eval_batch_size),
            channels=len(config.image.mean),
            on_bad_image=data.on_bad_image,
            max_bad_images=data.max_bad_images,
            **config.loader,
        ),
        program.batch_sharding,
    )
    if jax.process_index() == 0:
        print(json.dumps({"checkpoint": config.init.checkpoint, **result}))
    return 0


def better(best: dict | None, new: dict, name: str) -> dict:
    """Returns the better of two evaluations by the metric `name`; the newer of equals, as orbax keeps."""
    sign = -1 if name == "loss" else 1
    return new if best is None or sign * new[name] >= sign * best[name] else best


def diverged(step: int, values: dict[str, float], skipped: int) -> str:
    """Returns what to tell a user whose run is no longer finite."""
    scale = values["loss_scale"]
    what = "loss or gradients" if skipped == 1 else f"{skipped} steps in a row"
    advice = (
        "lower config.lr.peak, lengthen config.lr.warmup or set config.optim.clip_norm"
        if skipped == 1
        else f"the loss scale has come down to {scale:g}: lower config.lr.peak, or use bfloat16"
    )
    return (
        f"step {step}: {what} not finite (learning rate {values['lr']:.4g}, gradient norm "
        f"{values['grad_norm']:.4g}). The last checkpoint is good; {advice}"
    )


def write_config(config: ConfigDict, workdir: epath.Path, say: Callable[[str], None]) -> None:
    """Writes config.json; says what has changed since the run began."""
    path = workdir / "config.json"
    ours = json.loads(config.to_json_best_effort())
    if path.exists():
        for key, (old, new) in differences(ours, json.loads(path.read_text())).items():
            say(f"config.{key} was {old!r} when this run began, now {new!r}")
    else:
        metrics.write_atomically(path, json.dumps(ours, indent=1) + "\n")


def finish(
    workdir: epath.Path, config: ConfigDict, lengths: Plan, state: steps.TrainState, meta: dict
) -> None:
    """Writes summary.json; prints the table at the end of a run, and what to do next."""
    step, total = int(state.step), lengths.total_steps
    summary = {
        "model": config.model.name,
        "complete": step >= total,
        "steps": step,
        "epochs": lengths.epoch(step),
        "skipped": int(state.loss_scale.skipped),
        **{key: meta[key] for key in ("best", "last", "seconds", "bad_images")},
    }
    metrics.write_atomically(workdir / "summary.json", json.dumps(summary, indent=1) + "\n")
    if step < total:
        print(f"stopped at step {step} of {total}, and saved; the same command resumes")
        return
    epochs = f"{lengths.epoch(step):g} epochs"
    print(f"\n{config.model.name}: {step} steps, {epochs}, {meta['seconds']} s")
    for which in ("best", "last"):
        if result := summary[which]:
            top1, top5 = (f"{100 * result[name]:6.2f} %" for name in ("top1", "top5"))
            print(
                f"  {which}  top-1 {top1}  top-5 {top5}  loss {result['loss']:.4f}"
                f"  (step {result['step']})"
            )
    print(f"  {workdir}: checkpoints/, metrics.jsonl, summary.json, config.json, tensorboard/")
    print(f"  evaluate again:  python -m jaxcls.main --config=... --workdir={workdir} --mode=eval")
    print(
        "  fine-tune from it: python -m jaxcls.main --config=configs/finetune.py "
        f"--config.init.checkpoint={workdir} --config.data.root=IMAGES --workdir=NEW"
    )
