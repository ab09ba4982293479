"""What happens to images on the device, inside the jitted step: flip and normalise."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

Batch = dict[str, jax.Array]


def make(
    *,
    flip: float,
    mean: Sequence[float],
    std: Sequence[float],
    train: bool,
    dtype: DTypeLike = jnp.float32,
    **on_host: Any,  # the rest of config.image: data/ops.py, which refuses what it does not know
) -> Callable[[jax.Array, Batch], Batch]:
    """Returns `f(rng, batch) -> batch` that makes uint8 images ready for the network.

    The images, uint8[B,H,W,C], become (x / 255 - mean) / std in `dtype`; in training each is
    mirrored left to right before with probability `flip`. Floating images are taken as normalised
    and stay exactly as they are. One key draws for the whole batch, so the outcome does not depend
    on how the batch is spread over devices.

    Args:
      flip, mean, std, ...: `config.image`.
      train: whether to flip.
      dtype: of normalised images, float32 or float64.

    Raises:
      ValueError: here for values out of range; from `f` for images whose channels do not fit `mean`
        and `std`, or that are neither uint8 nor floating.
    """
    del on_host
    if not 0 <= flip <= 1:
        raise ValueError(f"config.image.flip = {flip}: write a probability, from 0 to 1")
    mean, std = tuple(mean), tuple(std)
    if len(mean) != len(std) or not all(s > 0 for s in std):
        raise ValueError(
            f"config.image.mean = {mean}, config.image.std = {std}: write as many means as "
            "standard deviations, and these above 0"
        )
    if not all(-10 <= m <= 10 for m in mean) or not all(1e-3 <= s <= 10 for s in std):
        raise ValueError(
            f"config.image.mean = {mean}, config.image.std = {std}: pixels are numbers from 0 to "
            "1 here; divide what is meant for 0 to 255 by 255"
        )

    def prepare(rng: jax.Array, batch: Batch) -> Batch:
        image = batch["image"]
        if jnp.issubdtype(image.dtype, jnp.floating):
            return batch
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
        if train and flip:
            mirrored = jax.random.bernoulli(rng, flip, image.shape[:1])
            image = jnp.where(mirrored[:, None, None, None], image[:, :, ::-1], image)
        image = (image.astype(dtype) / 255 - jnp.array(mean, dtype)) / jnp.array(std, dtype)
        return {**batch, "image": image}

    return prepare
