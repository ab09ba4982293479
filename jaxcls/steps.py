"""The train step and the evaluation step: pure functions, to be jitted by the caller."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcls import losses, trees
from jaxcls.precision import LossScale, all_finite

Array = jax.Array
Batch = dict[str, Array]
Prepare = Callable[..., Batch]
EVAL_METRICS = ("loss", "top1", "top5")


@flax.struct.dataclass
class TrainState:
    """All that a run is at a step. `step` counts global batches and is the position in the data."""

    step: Array  # int32
    params: Any
    batch_stats: Any
    opt_state: Any
    loss_scale: LossScale
    ema: Any  # None or {"params", "batch_stats"}, at least float32
    rng: Array  # uint32, data of the key from which every step's key is folded


def init_state(
    model: nn.Module,
    tx: optax.GradientTransformation,
    loss_scale: LossScale,
    image_shape: tuple[int, int, int],
    *,
    seed: int,
    ema: bool,
) -> TrainState:
    """Returns the state at step 0 for images of `image_shape` [H, W, C]."""
    init_key, run_key = _first_keys(seed)
    variables = model.init({"params": init_key}, jnp.zeros((1, *image_shape), jnp.float32))
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=tx.init(params),
        loss_scale=loss_scale,
        ema=start_ema(params, batch_stats) if ema else None,
        rng=jax.random.key_data(run_key),
    )


def _first_keys(seed: int) -> tuple[Array, Array]:
    """Returns the keys of the initial weights and of the run, for a seed in [0, 2**64)."""
    # jax.random.key drops the upper half where it computes in 32 bits
    words = jax.random.key_data(jax.random.key(seed % 2**32)).at[0].set(np.uint32(seed >> 32))
    init_key, run_key = jax.random.split(jax.random.wrap_key_data(words))
    return init_key, run_key


def start_ema(params: Any, batch_stats: Any) -> dict[str, Any]:
    """Returns the moving average at its start: copies, in float32 at least."""
    # a copy: the step donates its state, and no buffer may stand in it twice
    wide = lambda x: jnp.array(x, jnp.promote_types(x.dtype, jnp.float32), copy=True)
    return jax.tree.map(wide, {"params": params, "batch_stats": batch_stats})


def make_train_step(
    model: nn.Module,
    tx: optax.GradientTransformationExtraArgs,
    objective: Callable,
    *,
    prepare: Prepare,
    learning_rate: Callable[[Array], Array],
    accumulate_steps: int = 1,
    ema_decay: float = 0.0,
    ema_ramp: bool = False,
    frozen: tuple[str, ...] = (),
) -> Callable[..., tuple[TrainState, dict[str, Array]]]:
    """Returns step(state, batch) -> (state, metrics).

    A step whose loss, gradients or update are not finite leaves no trace but its count: parameters,
    statistics, optimizer and average stay as they were, and a dynamic loss scale backs off.

    Args:
      model: applied in training mode; its `Ctx` has precision and BatchNorm groups.
      tx: its update takes the clock as `step=`, since optax's own counts hold still when a step is
        skipped.
      objective: (outputs, batch) -> (loss, metrics).
      prepare: (rng, batch, step) -> batch as the model takes it: normalised, flipped, mixed.
      learning_rate: of a step, for the log; `tx` applies it.
      accumulate_steps: number of micro-batches k; micro-batch j has the rows j, j + k, j + 2k, ...,
        so that each device cuts its own rows.
      ema_decay: of the moving average; used where the state has one.
      ema_ramp: begin with min(ema_decay, (1 + step) / (10 + step)).
      frozen: patterns of parameters that get no gradient.
    """

    def loss_fn(params, batch_stats, scale, rng, step, batch):
        prepare_key, dropout_key = jax.random.split(rng)
        batch = prepare(prepare_key, batch, step)
        params = trees.map_with_path(
            lambda path, p: jax.lax.stop_gradient(p) if trees.matches(frozen, path) else p, params
        )
        outputs, new = model.apply(
            {"params": params, "batch_stats": batch_stats},
            batch["image"],
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": dropout_key},
        )
        loss, metrics = objective(outputs, batch)
        return scale.scale_loss(loss), (new.get("batch_stats", {}), {"loss": loss, **metrics})

    def gradients(state, rng, batch):
        grad_fn = jax.grad(loss_fn, has_aux=True)
        if accumulate_steps == 1:
            grads, aux = grad_fn(
                state.params, state.batch_stats, state.loss_scale, rng, state.step, batch
            )
            return state.loss_scale.unscale(grads), *aux
        k = accumulate_steps

        def body(carry, xs):
            total, batch_stats = carry
            j, rows = xs
            key = jax.random.fold_in(rng, j)
            grads, (batch_stats, metrics) = grad_fn(
                state.params, batch_stats, state.loss_scale, key, state.step, rows
            )
            grads = state.loss_scale.unscale(grads)
            return (jax.tree.map(jnp.add, total, grads), batch_stats), metrics

        zeros = jax.tree.map(
            lambda p: jnp.zeros(p.shape, jnp.promote_types(p.dtype, jnp.float32)), state.params
        )
        (total, batch_stats), metrics = jax.lax.scan(
            body, (zeros, state.batch_stats), (jnp.arange(k), _micro_batches(batch, k))
        )
        mean = lambda tree: jax.tree.map(lambda x: x / k, tree)
        return mean(total), batch_stats, jax.tree.map(lambda x: x.mean(0), metrics)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        rng = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
        grads, batch_stats, metrics = gradients(state, rng, batch)
        grad_norm = optax.global_norm(grads)
        updates, opt_state = tx.update(grads, state.opt_state, state.params, step=state.step)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema is not None:
            t = state.step.astype(grad_norm.dtype)
            # 1 - decay in Python's doubles, and no decay * old: float32's 0.9999 is so far off that
            # a sum of the two products drifts by 2e-4
            share = jnp.maximum(1 - ema_decay, 9 / (10 + t)) if ema_ramp else 1 - ema_decay
            ema = jax.tree.map(
                lambda old, new: old + share * (new.astype(old.dtype) - old),
                ema,
                {"params": params, "batch_stats": batch_stats},
            )
        finite = all_finite((metrics["loss"], grad_norm, params, batch_stats))
        new = {"params": params, "batch_stats": batch_stats, "opt_state": opt_state, "ema": ema}
        old = {name: getattr(state, name) for name in new}
        kept = jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)
        loss_scale = state.loss_scale.update(finite)
        metrics |= {
            "lr": learning_rate(state.step),
            "grad_norm": grad_norm,
            "finite": finite,
            "skipped": loss_scale.skipped,
            "skipped_in_a_row": loss_scale.skipped_in_a_row,
            "loss_scale": state.loss_scale.scale,
        }
        return state.replace(step=state.step + 1, loss_scale=loss_scale, **kept), metrics

    return step


def _micro_batches(batch: Batch, k: int) -> Batch:
    return jax.tree.map(lambda x: x.reshape(-1, k, *x.shape[1:]).swapaxes(0, 1), batch)


def make_prepare(
    prepare: Prepare, *, seed: int, accumulate_steps: int = 1
) -> Callable[[Array, Batch], Batch]:
    """Returns f(step, batch) -> batch as the network gets it in that train step, for looking at it.

    Args:
      prepare, accumulate_steps: of `make_train_step`.
      seed: of `init_state`.
    """
    k = accumulate_steps

    def prepared(step: Array, batch: Batch) -> Batch:
        rng = jax.random.fold_in(_first_keys(seed)[1], step)
        if k == 1:
            return prepare(jax.random.split(rng)[0], batch, step)

        def of_micro_batch(xs):
            j, rows = xs
            return prepare(jax.random.split(jax.random.fold_in(rng, j))[0], rows, step)

        micro = jax.lax.map(of_micro_batch, (jnp.arange(k), _micro_batches(batch, k)))
        return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), micro)

    return prepared


def make_eval_step(
    model: nn.Module, *, prepare: Prepare, ema: bool = True
) -> Callable[[TrainState, Batch], dict[str, Array]]:
    """Returns eval_step(state, batch) -> sums over the batch: loss, top1, top5 and count.

    Args:
      model: applied in evaluation mode.
      prepare: (rng, batch) -> batch, normalised; the key is not used.
      ema: use the state's moving average where there is one.

    The batch may have a bool `mask` [B]: rows where it is False do not count. The loss is the
    cross-entropy without smoothing.
    """

    def eval_step(state: TrainState, batch: Batch) -> dict[str, Array]:
        raw = {"params": state.params, "batch_stats": state.batch_stats}
        variables = state.ema if ema and state.ema is not None else raw
        batch = prepare(jax.random.key(0), batch)
        label = batch["label"]
        logits = model.apply(variables, batch["image"], train=False)["logits"]
        rank = losses.rank(logits, label)
        mask = batch.get("mask", jnp.ones(label.shape, bool))
        per_image = {
            "loss": losses.cross_entropy(logits, label),
            "top1": rank < 1,
            "top5": rank < min(5, logits.shape[-1]),
            "count": jnp.ones(label.shape, jnp.int32),
        }
        # where, not a product: a padded row must not spread a NaN
        return {k: jnp.where(mask, v, 0).sum() for k, v in per_image.items()}

    return eval_step
