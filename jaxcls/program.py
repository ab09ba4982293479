"""From a config to everything that a run consists of. Takes no step."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from jaxcls import checkpoint, models, objectives, optim, precision, sharding, steps, trees
from jaxcls.config import Plan, choose, plan, refuse_open
from jaxcls.data import augment, device, erasing, loader, mixing, ops, sampling
from jaxcls.data.sources import MAX_CLASSES, Data


class Program(NamedTuple):
    """Everything that is computed in a run, jitted and sharded; nothing has run yet."""

    plan: Plan
    mesh: Mesh
    batch_sharding: NamedSharding
    abstract_state: steps.TrainState  # shapes, dtypes and shardings
    precision: str  # never "auto"
    max_skipped: int  # steps in a row; more of them stop the run
    train_transform: ops.Transform  # of each image, on the host
    eval_transform: ops.Transform
    init: Callable[[], steps.TrainState]
    prepare: Callable[..., steps.Batch]  # (step, batch) -> as the network gets it in training
    train_step: Callable[..., tuple[steps.TrainState, dict[str, jax.Array]]]
    eval_step: Callable[..., dict[str, jax.Array]]


def build(config: ConfigDict, *, num_train: int, num_classes: int) -> Program:
    """Returns the program of a config, for a data set of this size; reads no data.

    Raises:
      ValueError: whatever is wrong with the config; the message names the key.
    """
    refuse_open(config)
    lengths = plan(config, num_train)
    augmentation = augment.make(**config.augment)
    train_transform = ops.make(**config.image, augment=augmentation, train=True)
    eval_transform = ops.make(**config.image, train=False)
    mesh = sharding.make_mesh(data=config.mesh.data, fsdp=config.mesh.fsdp)
    check_batches(config, lengths, mesh.size)
    platform = mesh.devices.flat[0].platform
    numbers = precision.make(**config.precision, platform="gpu" if platform == "cuda" else platform)

    arguments = model_arguments(config)
    outputs = arguments["num_classes"] = arguments["num_classes"] or num_classes
    if outputs > MAX_CLASSES:
        raise ValueError(f"config.model.num_classes = {outputs}: write at most {MAX_CLASSES}")
    if outputs < num_classes:
        raise ValueError(f"config.model.num_classes = {outputs}, the data has {num_classes}")
    if not 0 <= config.ema.decay < 1:
        raise ValueError(f"config.ema.decay = {config.ema.decay}: write a number in [0, 1)")
    choose("config.checkpoint.best", config.checkpoint.best, steps.EVAL_METRICS)
    frozen = tuple(config.optim.frozen)
    model = models.build(
        **arguments,
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
    erase = erasing.make(
        **config.erase,
        size=config.image.size,
        batch_size=lengths.batch_size,
        steps_per_epoch=lengths.steps_per_epoch,
    )
    together = lengths.batch_size // config.optim.accumulate_steps
    mix = mixing.make(**config.mix, group=config.model.bn_group, images=together)

    def prepare(rng, batch, step):
        flip_key, mix_key, erase_key = jax.random.split(rng, 3)
        batch = normalise(flip_key, batch)
        if erase:
            batch = erase(erase_key, batch, step)
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
        precision=numbers.name,
        max_skipped=numbers.max_skipped,
        train_transform=train_transform,
        eval_transform=eval_transform,
        init=jax.jit(init, out_shardings=shardings),
        prepare=jax.jit(
            steps.make_prepare(
                prepare, seed=config.seed, accumulate_steps=config.optim.accumulate_steps
            ),
            in_shardings=(whole, rows),
            out_shardings=rows,
        ),
        train_step=jax.jit(
            traced(train_step),
            in_shardings=(shardings, rows),
            out_shardings=(shardings, whole),
            donate_argnums=0,
        ),
        eval_step=jax.jit(traced(eval_step), in_shardings=(shardings, rows), out_shardings=whole),
    )


def model_arguments(config: ConfigDict) -> dict[str, Any]:
    """Returns what `config.model` sets of the arguments of `models.build`."""
    arguments = dict(config.model)
    options = dict(arguments.pop("options"))
    return {key: value for key, value in arguments.items() if value is not None} | options


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
    loader.check(**config.loader)
    sampling.check(config.data.sampling, config.data.repeats, batch)
    if lengths.eval_batch_size % devices:
        raise ValueError(
            f"config.eval.batch_size = {lengths.eval_batch_size} does not divide over "
            f"{devices} device(s)"
        )


def start(
    config: ConfigDict,
    program: Program,
    class_names: Sequence[str],
    report: Callable[[str], None] = print,
) -> steps.TrainState:
    """Returns the state at step 0, with the weights of `config.init.checkpoint` if one is set.

    `report` is given a line about every tensor that was not taken from it.
    """
    state = program.init()
    if not config.init.checkpoint:
        return state
    variables = checkpoint.initialize(
        {"params": state.params, "batch_stats": state.batch_stats},
        num_classes=config.model.num_classes or len(class_names),
        class_names=class_names,
        model=config.model.name,
        options=model_arguments(config),
        report=report,
        **config.init,
    )
    state = state.replace(**variables)
    if state.ema is not None:
        state = state.replace(ema=steps.start_ema(state.params, state.batch_stats))
    shardings = jax.tree.map(lambda x: x.sharding, program.abstract_state)
    return jax.device_put(state, shardings)


def train_batches(
    config: ConfigDict, data: Data, program: Program, start_step: int
) -> loader.Batches:
    """Returns an iterator over the training batches of this process, from `start_step` on."""
    return loader.train_batches(
        data.train,
        program.train_transform,
        batch_size=program.plan.batch_size,
        seed=config.seed,
        start_step=start_step,
        num_steps=program.plan.total_steps,
        sampling=data.sampling,
        repeats=data.repeats,
        rows=sharding.local_rows(program.batch_sharding, program.plan.batch_size),
        **reading(config, data),
    )


def reading(config: ConfigDict, data: Data) -> dict[str, Any]:
    """Returns the arguments that training and evaluation share in `jaxcls.data.loader`."""
    return {
        "on_bad_image": data.on_bad_image,
        "max_bad_images": data.max_bad_images,
        **config.loader,
    }
