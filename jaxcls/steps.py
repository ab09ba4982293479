"""The train step and the evaluation step: pure functions of variables, to be jitted by the caller.

Variables are {"params", "batch_stats"}. What an objective trains besides the network stands in both
as "extra".
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from jaxcls import averages, losses, trees
from jaxcls.data.device import Batch, Prepare, micro_batches
from jaxcls.keys import first_keys, keys_of
from jaxcls.objectives import Objective
from jaxcls.precision import LossScale, all_finite
from jaxcls.trees import EXTRA

Array = jax.Array
Variables = Mapping[str, Any]


@flax.struct.dataclass
class TrainState:
    """All that a run is at a step. `step` counts global batches and is the position in the data."""

    step: Array  # int32
    params: Any
    batch_stats: Any
    opt_state: Any
    loss_scale: LossScale
    averages: dict[str, Any]  # name -> variables, at least float32
    rng: Array  # uint32, data of the key from which every step's keys are folded

    def variables(self, average: str = "") -> dict[str, Any]:
        """Returns those of the step, or the average of that name where there is one."""
        raw = {"params": self.params, "batch_stats": self.batch_stats}
        return {name: self.averages.get(average, raw)[name] for name in raw}


def init_state(
    model: nn.Module,
    tx: optax.GradientTransformation,
    loss_scale: LossScale,
    image_shape: tuple[int, int, int],
    *,
    seed: int,
    average: Iterable[str] = (),
    extra: nn.Module | None = None,
) -> TrainState:
    """Returns the state at step 0 for images of `image_shape` [H, W, C]."""
    init_key, run = first_keys(seed)
    variables = init_variables(model, image_shape, extra, init_key)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        **variables,
        opt_state=tx.init(variables["params"]),
        loss_scale=loss_scale,
        averages={name: averages.start(variables, name) for name in average},
        rng=run,
    )


def init_variables(
    model: nn.Module, image_shape: tuple[int, ...], extra: nn.Module | None, key: Array
) -> dict[str, Any]:
    """Returns fresh variables of a network, and of what is trained with it."""
    image = jnp.zeros((1, *image_shape), jnp.float32)
    outputs, new = model.init_with_output({"params": key}, image)
    variables = {name: dict(new.get(name, {})) for name in ("params", "batch_stats")}
    if extra is not None:
        batch = {"image": image, "label": jnp.zeros(1, jnp.int32)}
        new = extra.init(jax.random.fold_in(key, 1), outputs, batch, train=False)
        for name in variables:
            variables[name][EXTRA] = new.get(name, {})
    return variables


def make_train_step(
    model: nn.Module,
    tx: optax.GradientTransformationExtraArgs,
    objective: Objective,
    *,
    prepare: Prepare,
    learning_rate: Callable[[TrainState], Array],
    accumulate_steps: int = 1,
    average: Mapping[str, Callable[[Array], Any]] | None = None,
    frozen: tuple[str, ...] = (),
) -> Callable[..., tuple[TrainState, dict[str, Array]]]:
    """Returns step(state, batch, teacher_variables=None) -> (state, metrics).

    A step prepares its batch, asks the teachers, both outside the gradient, and goes down that of
    the objective. One whose loss, gradients or update are not finite leaves no trace but its count:
    parameters, statistics, optimizer and averages stay as they were, and a dynamic loss scale backs
    off.

    Args:
      model: applied in training mode; its `Ctx` has precision and BatchNorm groups.
      tx: its update takes the clock as `step=`, since optax's own counts hold still when a step is
        skipped.
      objective: of `jaxcls.objectives`.
      prepare: makes a batch what the model takes: normalised, flipped, mixed.
      learning_rate: of a state, for the log; `tx` applies it.
      accumulate_steps: number of micro-batches k, which count alike; micro-batch j has the rows j,
        j + k, j + 2k, ..., so that each device cuts its own rows.
      average: those that the state has, of `averages.make`.
      frozen: patterns of parameters that get no gradient, and whose BatchNorms stand still.
    """
    if frozen:
        model = model.clone(c=model.c.replace(frozen=trees.frozen_modules(frozen)))

    def loss_fn(params, batch_stats, scale, dropout, batch, aux):
        params = trees.map_with_path(
            lambda path, p: jax.lax.stop_gradient(p) if trees.matches(frozen, path) else p, params
        )
        outputs, batch_stats = _forward(
            model, objective.extra, {"params": params, "batch_stats": batch_stats}, batch, dropout
        )
        loss, metrics = objective.loss(outputs, batch, aux)
        return scale.scale_loss(loss), (batch_stats, {"loss": loss, **metrics})

    def gradients(state, batch_stats, batch, teacher_variables, micro_batch=None):
        keys = keys_of(state.rng, state.step, micro_batch)
        batch = prepare(keys, batch, state.step)
        aux = objective.teachers(teacher_variables, batch) if objective.teachers else None
        grads, new = jax.grad(loss_fn, has_aux=True)(
            state.params, batch_stats, state.loss_scale, keys.dropout, batch, aux
        )
        return state.loss_scale.unscale(grads), *new

    def accumulated(state, batch, teacher_variables):
        k = accumulate_steps
        if k == 1:
            return gradients(state, state.batch_stats, batch, teacher_variables)

        def body(carry, xs):
            total, batch_stats = carry
            j, rows = xs
            grads, batch_stats, metrics = gradients(state, batch_stats, rows, teacher_variables, j)
            return (jax.tree.map(jnp.add, total, grads), batch_stats), metrics

        zeros = jax.tree.map(
            lambda p: jnp.zeros(p.shape, jnp.promote_types(p.dtype, jnp.float32)), state.params
        )
        (total, batch_stats), metrics = jax.lax.scan(
            body, (zeros, state.batch_stats), (jnp.arange(k), micro_batches(batch, k))
        )
        mean = lambda tree: jax.tree.map(lambda x: x / k, tree)
        return mean(total), batch_stats, jax.tree.map(lambda x: x.mean(0), metrics)

    def step(
        state: TrainState, batch: Batch, teacher_variables: Any = None
    ) -> tuple[TrainState, dict[str, Array]]:
        grads, batch_stats, metrics = accumulated(state, batch, teacher_variables)
        grad_norm = optax.global_norm(grads)
        updates, opt_state = tx.update(grads, state.opt_state, state.params, step=state.step)
        params = optax.apply_updates(state.params, updates)
        new = {"params": params, "batch_stats": batch_stats}
        finite = all_finite((metrics["loss"], grad_norm, params, batch_stats))
        moved = {
            name: averages.after(state.averages[name], new, share, state.step)
            for name, share in (average or {}).items()
        }
        new |= {"opt_state": opt_state, "averages": moved}
        old = {name: getattr(state, name) for name in new}
        kept = jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)
        loss_scale = state.loss_scale.update(finite)
        metrics |= {
            "lr": learning_rate(state),
            "grad_norm": grad_norm,
            "finite": finite,
            "skipped": loss_scale.skipped,
            "skipped_in_a_row": loss_scale.skipped_in_a_row,
            "loss_scale": state.loss_scale.scale,
        }
        return state.replace(step=state.step + 1, loss_scale=loss_scale, **kept), metrics

    return step


def _forward(
    model: nn.Module, extra: nn.Module | None, variables: Variables, batch: Batch, dropout: Array
) -> tuple[dict[str, Array], Any]:
    """Returns outputs and new statistics, in training."""
    own = {k: {n: x for n, x in v.items() if n != EXTRA} for k, v in variables.items()}
    options = {"train": True, "mutable": ["batch_stats"], "rngs": {"dropout": dropout}}
    outputs, new = model.apply(own, batch["image"], **options)
    batch_stats = dict(new.get("batch_stats", {}))
    if extra is not None:
        theirs = {name: tree[EXTRA] for name, tree in variables.items()}
        more, new = extra.apply(theirs, outputs, batch, **options)
        outputs, batch_stats[EXTRA] = outputs | more, new.get("batch_stats", {})
    return outputs, batch_stats


def make_eval_step(
    predict: Callable[[Variables, Array], Mapping[str, Array]],
    per_image: Callable[[Mapping[str, Array], Batch], dict[str, Array]],
) -> Callable[[Variables, Batch], dict[str, Array]]:
    """Returns eval_step(variables, batch) -> sums over the batch: those of `per_image`, and count.

    Args:
      predict: (variables, images) -> outputs, such as `Network.predict`.
      per_image: (outputs, batch) -> metrics [B], such as `objectives.per_image`.

    Images without a label do not count, and where the batch has a bool `mask` [B] neither do those
    where it is False.
    """

    def eval_step(variables: Variables, batch: Batch) -> dict[str, Array]:
        mask = losses.labelled(batch["label"]) & batch.get("mask", True)
        sums = per_image(predict(variables, batch["image"]), batch)
        # where, not a product: a padded row must not spread a NaN
        sums = {name: jnp.where(mask, value, 0).sum() for name, value in sums.items()}
        return sums | {"count": mask.sum(dtype=jnp.int32)}

    return eval_step
