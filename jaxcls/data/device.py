"""What happens to a batch on the device, inside the jitted step, before the network gets it."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxcls.keys import Keys, first_keys, keys_of

Array = jax.Array
Batch = dict[str, Array]
Prepare = Callable[[Keys, Batch, Array], Batch]  # (keys, batch, step) -> as the network takes it


def make(
    *,
    flip: float,
    normalise: Callable[[Array], Array],
    erase: Callable[[Array, Batch, Array], Batch] | None,
    mix: Callable[[Array, Batch], Batch] | None,
) -> Prepare:
    """Returns what training does to a batch: flip, normalise, and if they are on, erase and mix."""

    def prepare(keys: Keys, batch: Batch, step: Array) -> Batch:
        batch = {**batch, "image": normalise(flipped(keys.flip, batch["image"], flip))}
        if erase:
            batch = erase(keys.erase, batch, step)
        return mix(keys.mix, batch) if mix else batch

    return prepare


def micro_batches(batch: Batch, k: int) -> Batch:
    """Returns a batch as k micro-batches, [k, B / k, ...]; number j has the rows j, j + k, ..."""
    return jax.tree.map(lambda x: x.reshape(-1, k, *x.shape[1:]).swapaxes(0, 1), batch)


def in_a_run(prepare: Prepare, *, seed: int, accumulate_steps: int) -> Callable[..., Batch]:
    """Returns f(step, batch) -> batch as the network gets it in that train step of a run."""
    k = accumulate_steps

    def prepared(step: Array, batch: Batch) -> Batch:
        run = first_keys(seed)[1]
        if k == 1:
            return prepare(keys_of(run, step), batch, step)
        of_micro_batch = lambda xs: prepare(keys_of(run, step, xs[0]), xs[1], step)
        micro = jax.lax.map(of_micro_batch, (jnp.arange(k), micro_batches(batch, k)))
        return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), micro)

    return prepared


def flipped(rng: Array, image: Array, prob: float) -> Array:
    """Returns uint8 images [B, H, W, C], each mirrored left to right with probability `prob`.

    Floating images are taken as prepared and stay as they are. One key draws for the whole batch,
    so the outcome does not depend on how the batch is spread over devices.
    """
    if not prob or jnp.issubdtype(image.dtype, jnp.floating):
        return image
    mirrored = jax.random.bernoulli(rng, prob, image.shape[:1])
    return jnp.where(mirrored[:, None, None, None], image[:, :, ::-1], image)


def normalise(
    image: Array, *, mean: Sequence[float], std: Sequence[float], dtype: DTypeLike = jnp.float32
) -> Array:
    """Returns uint8 images [B, H, W, C] as (image / 255 - mean) / std in `dtype`.

    Floating images are taken as normalised and stay exactly as they are.

    Args:
      image: uint8, or floating.
      mean, std: of each channel, as in `config.image`.
      dtype: float32 or float64.

    Raises:
      ValueError: channels that do not fit `mean`, or images that are neither uint8 nor floating.
    """
    if jnp.issubdtype(image.dtype, jnp.floating):
        return image
    if image.dtype != jnp.uint8:
        raise ValueError(
            f"images are {image.dtype}{list(image.shape)}: give uint8 pixels, or floating "
            "numbers that are already normalised"
        )
    channels = image.shape[-1]
    if channels != len(mean):
        raise ValueError(
            f"images have {channels} channel(s), config.image.mean and config.image.std have "
            f"{len(mean)}: write {channels}-tuples, such as {(0.5,) * channels}"
        )
    return (image.astype(dtype) / 255 - jnp.array(mean, dtype)) / jnp.array(std, dtype)
