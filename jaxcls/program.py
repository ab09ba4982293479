"""From a config to everything that is computed in a run, a call a section. Takes no step."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxcls import averages, network, objectives, optim, precision, sharding, steps, teachers
from jaxcls.config import Plan, check_complete, consume, plan, refuse_idle
from jaxcls.data import augment, device, erasing, mixing, ops
from jaxcls.keys import first_keys, keys_of
from jaxcls.report import scores
from jaxcls.schedules import schedule


class Program(NamedTuple):
    """Everything that is computed in a run, jitted and sharded; nothing has run yet."""

    plan: Plan
    network: network.Network
    layout: sharding.Layout
    abstract_state: steps.TrainState  # shapes, dtypes and shardings
    max_skipped: int  # steps in a row; more of them stop the run
    optimizer: optim.Optimizer
    transform: ops.Transform  # of each training image, on the host
    teachers: tuple[Any, ...]  # their variables, on the host: what the step takes besides
    init: Callable[[], steps.TrainState]
    prepare: Callable[..., device.Batch]  # (step, batch) -> as the network gets it in training
    train_step: Callable[..., tuple[steps.TrainState, dict[str, jax.Array]]]
    eval_step: Callable[..., dict[str, jax.Array]]
    score_step: Callable[..., Any]  # the same, and what a report needs: see `scores.make_step`
    statistics_step: Callable[..., Any]  # see `averages.make_statistics_step`


def build(
    config: ConfigDict,
    *,
    num_train: int,
    num_classes: int,
    class_names: Sequence[str] = (),
    class_counts: Callable[[], Any] | None = None,
    multi_label: bool = False,
    devices: Sequence[jax.Device] | None = None,
) -> Program:
    """Returns the program of a config, for a data set of this size; reads no data.

    Args:
      config: of a run, with nothing left open.
      num_train, ..., multi_label: of the data, see `sources.Data.facts`.
      devices: to compile for, also ones that are not here; None: those that are.

    Raises:
      ValueError: whatever is wrong with the config; the message names the key.
    """
    check_complete(config)
    refuse_idle(config)
    use = functools.partial(consume, config)
    lengths = plan(config, num_train)
    durations = {"batch_size": lengths.batch_size, "steps_per_epoch": lengths.steps_per_epoch}
    layout = use("mesh", sharding.make, devices=devices)
    numbers = use("precision", precision.make, platform=layout.platform)
    image = use("image", ops.Image)
    augmented = use("augment", augment.make, channels=image.channels)
    transform = use("crop", ops.training, image=image, augment=augmented)
    net, model, outputs = use(
        "model",
        network.make,
        classes=num_classes,
        class_names=class_names,
        image=image,
        precision=numbers.name,
        multi_label=multi_label,
    )
    model = model.clone(c=model.c.replace(platform=layout.platform))
    layout = layout.of_classes(net.num_classes)
    objectives.check_labels(config.loss.name, config.checkpoint.best, num_classes, multi_label)
    given = {"class_names": class_names, "class_counts": class_counts, "module": model}
    given["teachers"] = use("teacher", teachers.make, student=net)
    objective = use("loss", objectives.make, outputs=outputs, **given)
    average = use("ema", averages.make)
    average |= use("swa", averages.stochastic, total_steps=lengths.total_steps, **durations)
    lr = {"total_steps": lengths.total_steps, "eval_every": lengths.eval_every, **durations}
    learning_rate = use("lr", schedule, metric=config.checkpoint.best, **lr)
    shapes = functools.partial(steps.init_variables, model, image.shape, objective.extra)
    params = jax.eval_shape(shapes, jax.random.key(0))["params"]
    optimizer = use("optim", optim.make, params=params, learning_rate=learning_rate)
    rows = lengths.rows(layout.mesh.size, optimizer.accumulate_steps, model.c.bn_group)
    erase = use("erase", erasing.make, **durations)
    mix = use("mix", mixing.make, group=model.c.bn_group, images=rows)

    def init():
        scale, more = numbers.initial_loss_scale(), {"average": average, "extra": objective.extra}
        return steps.init_state(model, optimizer.tx, scale, image.shape, seed=config.seed, **more)

    if config.teacher.stored:
        teachers.check_unchanged(transform, erase, mix)
        if config.mesh.model > 1:
            raise ValueError(
                f"config.mesh.model = {config.mesh.model}: the stored outputs of a teacher are not "
                "split by class: write 1, or run the teacher, with config.teacher.checkpoints"
            )
    prepare = device.make(flip=transform.flip, normalise=net.normalise, erase=erase, mix=mix)
    # what a batch cannot go through shows here, not in the first step
    images = jax.ShapeDtypeStruct((rows, *image.shape), jnp.uint8)
    labels, step = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((rows,), ()))
    keys = keys_of(first_keys(0)[1], 0)
    jax.eval_shape(prepare, keys, {"image": images, "label": labels}, step)

    layout.check(params)
    taught = (objective.teacher_variables,) if objective.teachers else ()
    objective = objective._replace(loss=layout.by_class(objective.loss))
    per_image = layout.by_class(objectives.per_image)
    state = jax.eval_shape(init)
    shardings, batch, whole = layout.of(state), layout.rows, layout.whole
    variables = shardings.variables()
    jit = numbers.jit
    evaluating = {"in_shardings": (variables, batch), "out_shardings": whole}
    train_step = steps.make_train_step(
        model,
        optimizer.tx,
        objective,
        prepare=prepare,
        learning_rate=optimizer.rate,
        accumulate_steps=optimizer.accumulate_steps,
        average=average,
        frozen=optimizer.frozen,
    )
    return Program(
        plan=lengths,
        network=net,
        layout=layout,
        abstract_state=jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings
        ),
        max_skipped=numbers.max_skipped,
        optimizer=optimizer,
        transform=transform,
        teachers=taught,
        init=jax.jit(init, out_shardings=shardings),
        prepare=jax.jit(
            device.in_a_run(prepare, seed=config.seed, accumulate_steps=optimizer.accumulate_steps),
            in_shardings=(whole, batch),
            out_shardings=batch,
        ),
        train_step=jit(
            layout.by_image(train_step, rows),
            in_shardings=(shardings, batch, *layout.of(taught)),
            out_shardings=(shardings, whole),
            donate_argnums=0,
        ),
        eval_step=jit(steps.make_eval_step(net.predict, per_image), **evaluating),
        score_step=jit(scores.make_step(net.predict, per_image), **evaluating),
        statistics_step=jit(
            averages.make_statistics_step(model, optimizer.frozen),
            in_shardings=(variables, batch, whole),
            out_shardings=variables["batch_stats"],
        ),
    )
