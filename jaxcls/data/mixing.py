"""Mixing images of a batch with one another, on the device: (rng, batch) -> batch."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

Batch = dict[str, jax.Array]


def make(*, mixup: float, group: int | None = None) -> Callable[[jax.Array, Batch], Batch] | None:
    """Returns the mixing of `config.mix`, or None where it is off.

    It maps normalised images and labels to {"image", "label", "label2": int32[B], "lam": f32[B]},
    lam being the weight of `label`.

    Args:
      mixup: alpha of `mixup`; 0 is off.
      group: images that share BatchNorm statistics (`config.model.bn_group`), consecutive ones and
        on one device. Partners come from the same group: mixing needs no communication then, and
        statistics depend on no other images than without it. None: see `partners`.

    Raises:
      ValueError: a value out of range.
    """
    if not 0 <= mixup < math.inf:
        raise ValueError(f"config.mix.mixup = {mixup}: write an alpha above 0, or 0.0 for none")
    if not mixup:
        return None

    def mix(rng: jax.Array, batch: Batch) -> Batch:
        rng_partner, rng_lam = jax.random.split(rng)
        other = partners(rng_partner, batch, group)
        # One lam for the batch, as in the paper's code; float32 draws in every precision.
        lam = jax.random.beta(rng_lam, mixup, mixup, dtype=jnp.float32)
        return {
            **batch,
            "image": blend(batch["image"], other["image"], lam),
            "label2": other["label"],
            "lam": jnp.broadcast_to(lam, batch["label"].shape),
        }

    return mix


def blend(image: jax.Array, other: jax.Array, lam: jax.Array) -> jax.Array:
    """Returns lam image + (1 - lam) other, in float32 at least.

    Mixup: Zhang et al. 2018, arXiv:1710.09412, with lam from Beta(alpha, alpha).
    """
    assert jnp.issubdtype(image.dtype, jnp.floating), "mix after normalising"
    dtype = jnp.promote_types(image.dtype, jnp.float32)
    return lam * image.astype(dtype) + (1 - lam) * other.astype(dtype)


def partners(rng: jax.Array, batch: Batch, group: int | None) -> Batch:
    """Returns image and label of each row's partner: another row of its group, each exactly once.

    The rows of every group are rotated by the same random number of places, 1 to group - 1. The
    order of images is random already, so that this pairs them as randomly as a permutation of the
    whole batch would. For the same reason 8 rows are group enough where none is given (4 or 2 or
    all of them in a batch that does not divide by 8): a rotation of the whole batch would gather
    all its images on every device.

    Raises:
      ValueError: the batch does not divide into groups, or a group is a single image.
    """
    images = len(batch["label"])
    if group is None:
        divisor = math.gcd(images, 8)
        group = divisor if divisor > 1 else images
    if group < 2 or images % group:
        raise ValueError(
            f"config.mix needs whole groups of at least 2 images to mix: a batch of {images} "
            f"cannot be divided into groups of {group} (config.model.bn_group)"
        )
    places = jax.random.randint(rng, (), 1, group, dtype=jnp.int32)

    def rotate(x):
        grouped = x.reshape(-1, group, *x.shape[1:])
        return jnp.roll(grouped, -places, axis=1).reshape(x.shape)

    return {"image": rotate(batch["image"]), "label": rotate(batch["label"])}
