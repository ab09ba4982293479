"""From a config to everything that a run consists of. Takes no step."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from jaxcls import models, objectives, optim, precision, sharding, steps, trees, weights
from jaxcls.config import (
    LARGEST,
    Plan,
    check,
    choose,
    consuming,
    defaults,
    flatten,
    plan,
    refuse_open,
    short,
)
from jaxcls.data import augment, device, erasing, loader, mixing, ops, sampling
from jaxcls.data.sources import MAX_CLASSES, Data

# Arguments of networks that `build` sets itself.
OURS = ("c", "train", "parent", "dtype", "feature_dtype", "param_dtype", "norm_dtype",
        "head_dtype", "frozen")  # fmt: skip


# Keys that do nothing where another one is off.
NEED = {
    "ema.decay": ("ema.ramp", "eval.ema"),
    "init.checkpoint": ("init.ema", "init.reset"),
    "optim.momentum": ("optim.nesterov",),
}


# Keys that are names, and what they may be; more are checked by what they choose.
NAMES = {
    "model.name": models.MODELS,
    "optim.name": optim.OPTIMIZERS,
    "lr.schedule": optim.SCHEDULES,
    "precision.name": (*precision.DTYPES, "auto"),
    "precision.loss_scale": (*precision.LOSS_SCALES, "auto"),
    "checkpoint.best": steps.EVAL_METRICS,
    "checkpoint.changed_data": ("refuse", "accept"),
}


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
    check(config)
    refuse_open(config)
    check_names(config)
    lengths = plan(config, num_train)
    with consuming("augment"):
        augmentation = augment.make(**config.augment)
    with consuming("image"):
        train_transform = ops.make(**config.image, augment=augmentation, train=True)
        eval_transform = ops.make(**config.image, train=False)
    mesh = sharding.make_mesh(data=config.mesh.data, fsdp=config.mesh.fsdp)
    check_batches(config, lengths, mesh.size)
    check_sections(config, num_classes)
    platform = mesh.devices.flat[0].platform
    with consuming("precision"):
        numbers = precision.make(
            **config.precision, platform="gpu" if platform == "cuda" else platform
        )
    with consuming("image"):
        wide = jnp.promote_types(numbers.feature_dtype, jnp.float32)
        normalise = device.make(**config.image, train=True, dtype=wide)
    image_shape = (config.image.size, config.image.size, len(config.image.mean))
    frozen = tuple(config.optim.frozen)
    trees.check_regexes(frozen, "optim.frozen")
    model, params = build_model(
        config,
        image_shape,
        num_classes=num_classes,
        dtype=numbers.dtype,
        feature_dtype=numbers.feature_dtype,
        param_dtype=numbers.param_dtype,
        norm_dtype=numbers.norm_dtype,
        head_dtype=numbers.head_dtype,
        frozen=trees.frozen_modules(frozen) if frozen else None,
    )
    with consuming("lr"):
        learning_rate = optim.schedule(
            **config.lr,
            total_steps=lengths.total_steps,
            batch_size=lengths.batch_size,
            steps_per_epoch=lengths.steps_per_epoch,
        )
    with consuming("optim"):
        tx = optim.make(**config.optim, params=params, learning_rate=learning_rate)

    with consuming("erase"):
        erase = erasing.make(
            **config.erase,
            batch_size=lengths.batch_size,
            steps_per_epoch=lengths.steps_per_epoch,
        )
    with consuming("mix"):
        mix = mixing.make(
            **config.mix,
            group=config.model.bn_group,
            images=lengths.batch_size // config.optim.accumulate_steps,
        )

    def prepare(rng, batch, step):
        flip_key, mix_key, erase_key = jax.random.split(rng, 3)
        batch = normalise(flip_key, batch)
        if erase:
            batch = erase(erase_key, batch, step)
        return mix(mix_key, batch) if mix else batch

    rows = lengths.batch_size // config.optim.accumulate_steps
    images = jax.ShapeDtypeStruct((rows, *image_shape), jnp.uint8)
    labels, step = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((rows,), ()))
    # what a batch cannot go through shows here, not in the first step
    jax.eval_shape(prepare, jax.random.key(0), {"image": images, "label": labels}, step)
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
    options = arguments.pop("options")
    if not all(map(is_option, options)):
        raise ValueError(
            f"config.model.options = {short(options)}: write pairs of a name and a value, such as "
            '(("dropout", 0.2),); values are numbers of at least 0, texts, True, False, None and '
            "tuples of them"
        )
    names = [name for name, _ in options]
    takes = models.arguments(config.model.name) - {*OURS, *arguments} | {
        "bn_epsilon",
        "bn_momentum",
    }
    if unknown := sorted({*names} - takes - {*OURS, *arguments}):
        raise ValueError(
            f"config.model.options = {short(options)}: {config.model.name} takes no argument "
            f"{', '.join(unknown)}; it takes {', '.join(sorted(takes))}; without: "
            "--config.model.options='()'"
        )
    for name in names:
        # converted weights have the options that they need, BatchNorm's epsilon among them
        key = name in arguments and (arguments[name] is not None or name == "bn_group")
        if key or name in OURS or names.count(name) > 1:
            why = "config.precision or config.optim.frozen sets it"
            why = f"there is config.model.{name}" if key else why
            why = "it is there twice" if names.count(name) > 1 else why
            raise ValueError(f"config.model.options = {short(options)}: {name!r}: {why}")
    return {k: value for k, value in arguments.items() if value is not None} | dict(options)


def is_option(option: Any) -> bool:
    """Returns whether this is a (name, value) that a network and JSON can take."""

    def fits(value):
        if isinstance(value, (tuple, list)):
            return all(map(fits, value))
        if isinstance(value, (int, float)):
            return 0 <= value < LARGEST
        return value is None or isinstance(value, str)

    pair = isinstance(option, (tuple, list)) and len(option) == 2
    return pair and isinstance(option[0], str) and fits(option[1])


def build_model(
    config: ConfigDict, image_shape: tuple[int, ...], *, num_classes: int, **numbers: Any
) -> tuple[nn.Module, Any]:
    """Returns the network of `config.model` and the shapes of its parameters.

    Args:
      config: of the run.
      image_shape: [H, W, C] in training.
      num_classes: of the data.
      **numbers: further fields of `models.spec.Ctx`.

    Raises:
      ValueError: there is no such network for such images, or it does not take these options.
    """
    c = config.model
    arguments = model_arguments(config)
    for key in ("bn_momentum", "bn_epsilon"):
        models.check(key, arguments.get(key), "config.model.")
    arguments["num_classes"] = c.num_classes or num_classes
    if arguments["num_classes"] > MAX_CLASSES:
        raise ValueError(f"config.model.num_classes = {c.num_classes}: write at most {MAX_CLASSES}")
    if arguments["num_classes"] < num_classes:
        raise ValueError(
            f"config.model.num_classes = {c.num_classes}, the data has {num_classes}: write at "
            "least that, or 0"
        )
    image = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
    rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    # With options of the user whatever goes wrong inside is theirs; without, the image's size.
    theirs = Exception if c.options else (ValueError, ArithmeticError)
    try:
        model = models.build(**arguments, **numbers)
        whole = model.clone(c=model.c.replace(bn_group=None))  # two images are enough to try
        outputs, variables = jax.eval_shape(
            lambda x: whole.init_with_output(rngs, x, train=True), image
        )
    except theirs as e:
        options = f", config.model.options = {short(c.options)}" if c.options else ""
        raise ValueError(
            f"config.model.name = {c.name!r}{options}, config.image.size = {image_shape[0]}: the "
            f"network cannot be built: {e or type(e).__name__}"
        ) from e
    weight = defaults()[0]["loss.aux_weight"]
    if config.loss.aux_weight != weight and not any(name.startswith("aux") for name in outputs):
        raise ValueError(
            f"config.loss.aux_weight = {config.loss.aux_weight}: {c.name} has no auxiliary heads"
        )
    return model, variables["params"]


def check_names(config: ConfigDict) -> None:
    """Refuses names that mean nothing; needs no images, which may take long to be looked at."""
    values = flatten(config)
    for key, names in NAMES.items():
        if values[key] is not None:
            choose(f"config.{key}", values[key], names)
    with consuming("augment"):
        augment.make(**config.augment)


def check_sections(config: ConfigDict, num_classes: int) -> None:
    """Refuses what no other function checks: values out of range, and keys without effect."""
    if not 0 <= config.ema.decay < 1:
        raise ValueError(f"config.ema.decay = {config.ema.decay}: write a number in [0, 1)")
    values = flatten(config)
    for needed, keys in NEED.items():
        for key in keys:
            if not values[needed] and values[key] != defaults()[0][key]:
                raise ValueError(
                    f"config.{key} = {values[key]} does nothing without config.{needed}"
                )
    if config.checkpoint.best == "top5" and (config.model.num_classes or num_classes) <= 5:
        raise ValueError(
            "config.checkpoint.best = 'top5' is always 1 with up to 5 classes: write top1 or loss"
        )
    if config.checkpoint.keep < 1:
        raise ValueError(
            f"config.checkpoint.keep = {config.checkpoint.keep}: keep at least 1 checkpoint"
        )
    if config.mesh.fsdp_min_size < 0:
        raise ValueError(
            f"config.mesh.fsdp_min_size = {config.mesh.fsdp_min_size}: write a number of elements, "
            "0 for all"
        )


def check_batches(config: ConfigDict, lengths: Plan, devices: int) -> None:
    """Refuses batches that do not divide over devices, micro-batches and groups of BatchNorm."""
    k, group = config.optim.accumulate_steps, config.model.bn_group
    batch = lengths.batch_size
    if k < 1:
        raise ValueError(f"config.optim.accumulate_steps = {k}: write at least 1")
    if batch % (devices * k):
        raise ValueError(
            f"config.batch_size = {batch} does not divide over {devices} device(s) x "
            f"config.optim.accumulate_steps = {k}: use a multiple of {devices * k}"
        )
    if group is not None and group < 1:
        raise ValueError(
            f"config.model.bn_group = {group}: write a number of images above 0, or None for all"
        )
    if group is not None and batch // k % group:
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
    path = config.init.checkpoint
    if path and not weights.exists(path):
        raise ValueError(f"config.init.checkpoint = {path!r}: {weights.nothing_at(path)}")
    state = program.init()
    if not path:
        return state
    variables = weights.initialize(
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
