"""Mixing images of a batch with one another, on the device: (rng, batch) -> batch.

As published, mixup, CutMix and FMix draw one weight, one box, one mask for all images of a batch;
`mix.each` draws them for each image.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcls.config import bound, expect
from jaxcls.data.erasing import box, whole

Array = jax.Array
Batch = dict[str, Array]

ALPHAS = (1e-3, 1e8)  # beyond, lam is 0 or 1, or is 1/2
MAX_DECAY = 8.0  # amplitudes are still finite in float32


def make(
    *,
    prob: float,
    each: bool,
    weights: Sequence[float],
    group: int | None = None,
    images: int | None = None,
    **keys: Any,
) -> Callable[[Array, Batch], Batch] | None:
    """Returns the mixing of `config.mix`, or None where it is off.

    It maps normalised images and labels to {"image", "label", "label2": as "label", "lam": f32[B]},
    lam being the weight of `label`: the share of the image that comes from the row's own; 1 where
    it is not mixed at all. A batch is mixed in one way, drawn anew each time, with one lam and one
    box or mask, as in the papers and their code; with `each` every image draws way, lam, box and
    mask for itself. (FMix then sorts the pixels of every image, and where several are on, all ways
    are computed for all images. On several devices Beta's rejection sampler goes on until all have
    their lam: a bit is exchanged each round.)

    Args:
      mixup, cutmix, ...: of each of `KINDS` alpha of Beta(alpha, alpha), which its lam comes from,
        0 is off; and what they take.
      prob: share of the batches that are mixed; with `each`, of the images.
      each: draw for each image, not for each batch.
      weights: of `KINDS` in the draw; those that are off do not count.
      group: images that share BatchNorm statistics (`config.model.bn_group`), consecutive ones and
        on one device. Partners come from the same group: mixing needs no communication then, and
        statistics depend on no other images than without it. None: see `partners`.
      images: of the batch, where it is known: whether it divides is then said here.

    Raises:
      ValueError: a value out of range, or one that is not used.
    """
    alphas = {kind: keys.pop(kind) for kind in KINDS}
    want = f"an alpha from {ALPHAS[0]:g} to {ALPHAS[1]:g}, or 0.0 for none"
    for kind, alpha in alphas.items():
        expect(not alpha or ALPHAS[0] <= alpha <= ALPHAS[1], f"mix.{kind}", alpha, want)
    on = [kind for kind in KINDS if alphas[kind]]
    keys |= {"prob": prob, "each": each, "weights": tuple(weights)}
    used = ["prob", "each"] * bool(on) + ["weights"] * (len(on) > 1)
    functions = [KINDS[kind] for kind in on]
    functions = bound("mix", " + ".join(on) or "no mixing", functions, keys, used)
    if not on:
        return None
    expect(0 < prob <= 1, "mix.prob", prob, "a share of the batches, above 0 up to 1")
    if len(weights) != len(KINDS) or not all(w > 0 for w in weights):
        raise ValueError(
            f"config.mix.weights = {tuple(weights)}: write three numbers above 0, for mixup, "
            "cutmix and fmix; an alpha of 0.0 turns one off"
        )
    if images is not None:
        _group_size(images, group)

    weights = [weight for kind, weight in zip(KINDS, weights, strict=True) if alphas[kind]]
    shares = [prob * weight / sum(weights) for weight in weights]
    alpha_of = [alphas[kind] for kind in on]
    if prob < 1:
        functions, shares, alpha_of = [*functions, unmixed], [*shares, 1 - prob], [*alpha_of, 1]
    ends = np.cumsum(shares)[:-1].astype(np.float32)

    def mix_one(kind, rng, lam, image, other):
        lam, image = jax.lax.switch(kind, functions, rng, lam, image[None], other[None])
        return lam, image[0]

    def mix(rng: Array, batch: Batch) -> Batch:
        assert jnp.issubdtype(batch["image"].dtype, jnp.floating), "mix after normalising"
        rng_partner, rng_lam, rng_kind, rng_mask = jax.random.split(rng, 4)
        other = partners(rng_partner, batch, group)
        wide = jnp.promote_types(batch["image"].dtype, jnp.float32)
        images = batch["image"].astype(wide), other["image"].astype(wide)
        draws = batch["label"].shape[:1] if each else ()
        u = jax.random.uniform(rng_kind, draws, jnp.float32)
        kind = (u[..., None] >= ends).sum(-1, dtype=jnp.int32)
        alpha = jnp.array(alpha_of, jnp.float32)[kind]
        # float32 draws in every precision
        lam = jax.random.beta(rng_lam, alpha, alpha, dtype=jnp.float32)
        if each:
            keys = jax.random.split(rng_mask, len(batch["label"]))
            lam, image = jax.vmap(mix_one)(kind, keys, lam, *images)
        else:
            lam, image = jax.lax.switch(kind, functions, rng_mask, lam, *images)
        return {
            **batch,
            "image": image,
            "label2": other["label"],
            "lam": jnp.broadcast_to(lam, batch["label"].shape[:1]),
        }

    return mix


# -- The kinds: (rng, lam, image, other) -> (lam, image), images floating [B, H, W, C], lam f32[] --


def unmixed(rng: Array, lam: Array, image: Array, other: Array) -> tuple[Array, Array]:
    """The image as it is."""
    del rng, other
    return jnp.ones_like(lam), image


def blend(rng: Array, lam: Array, image: Array, other: Array) -> tuple[Array, Array]:
    """Mixup: lam image + (1 - lam) other.

    Zhang et al. 2018, arXiv:1710.09412.
    """
    del rng
    return lam, lam * image + (1 - lam) * other


def cut(rng: Array, lam: Array, image: Array, other: Array) -> tuple[Array, Array]:
    """CutMix: a box of the other image, sqrt(1 - lam) as high and as wide as the image.

    Yun et al. 2019, arXiv:1905.04899. The centre of the box is any pixel and its sides are rounded
    down; it is clipped at the border, and lam becomes the share of the image outside what is left.
    """
    h, w = image.shape[1:3]
    u = jax.random.uniform(rng, (2,), jnp.float32)
    side = jnp.sqrt(1 - lam)
    height, width = whole(side, h), whole(side, w)
    top, left = whole(u[0], h) - height // 2, whole(u[1], w) - width // 2
    inside = box(top, left, height, width, (h, w))
    lam = 1 - inside.mean(dtype=jnp.float32)
    return lam, jnp.where(inside[..., None], other, image)


def cut_fourier(
    rng: Array, lam: Array, image: Array, other: Array, *, decay_power: float, max_soft: float
) -> tuple[Array, Array]:
    """FMix: the other image outside the highest lam of a random smooth landscape.

    Harris et al. 2020, arXiv:2002.12047: `fourier_mask`, whose mean becomes lam.
    """
    expect(0 <= max_soft <= 0.5, "mix.max_soft", max_soft, "a share, from 0 to 0.5")
    want = f"a number from 0 to {MAX_DECAY:g}"
    expect(0 <= decay_power <= MAX_DECAY, "mix.decay_power", decay_power, want)
    shape = image.shape[1:3]
    mask = fourier_mask(rng, shape, lam, decay_power=decay_power, max_soft=max_soft)
    weight = mask[..., None]
    return mask.mean(), weight * image + (1 - weight) * other


KINDS = {"mixup": blend, "cutmix": cut, "fmix": cut_fourier}


def fourier_mask(
    rng: Array, shape: tuple[int, int], lam: Array, *, decay_power: float, max_soft: float
) -> Array:
    """Returns f32[H, W] in [0, 1] with a mean of lam (up to a pixel): 1 on hills, 0 in valleys.

    The landscape is noise whose amplitude at a frequency f (in cycles a pixel) is
    1 / max(f, 1 / max(H, W))^decay_power. `max_soft` is half the share of pixels that lie in the
    slopes between 1 and 0, a linear function of their rank; 0: a binary mask.
    """
    h, w = shape
    frequency = np.hypot(np.fft.fftfreq(h)[:, None], np.fft.rfftfreq(w))
    amplitude = 1 / np.maximum(frequency, 1 / max(h, w)) ** decay_power
    noise = jax.random.normal(rng, (2, *frequency.shape), jnp.float32)
    spectrum = jnp.array(amplitude, jnp.float32) * (noise[0] + 1j * noise[1])
    landscape = jnp.fft.irfft2(spectrum, s=shape)
    rank = jnp.argsort(jnp.argsort(-landscape, axis=None)).reshape(shape)  # 0: the highest
    soft = jnp.floor(h * w * jnp.minimum(max_soft, jnp.minimum(lam, 1 - lam)))
    first, last = jnp.round(h * w * lam) - soft, jnp.round(h * w * lam) + soft - 1
    slope = (last - rank) / jnp.maximum(last - first, 1)
    return jnp.where(rank < first, 1, jnp.where(rank > last, 0, slope)).astype(jnp.float32)


def partners(rng: Array, batch: Batch, group: int | None) -> Batch:
    """Returns image and label of each row's partner: another row of its group, each exactly once.

    The rows of every group are rotated by the same random number of places, 1 to group - 1. The
    order of images is random already, so that this pairs them as randomly as a permutation of the
    whole batch would. For the same reason 8 rows are group enough where none is given (4 or 2 or
    all of them in a batch that does not divide by 8): a rotation of the whole batch would gather
    all its images on every device.

    Raises:
      ValueError: the batch does not divide into groups, or a group is a single image.
    """
    group = _group_size(len(batch["label"]), group)
    places = jax.random.randint(rng, (), 1, group, dtype=jnp.int32)

    def rotate(x):
        grouped = x.reshape(-1, group, *x.shape[1:])
        return jnp.roll(grouped, -places, axis=1).reshape(x.shape)

    return {"image": rotate(batch["image"]), "label": rotate(batch["label"])}


def _group_size(images: int, group: int | None) -> int:
    """Returns how many consecutive images of a batch are partners of one another."""
    if group is None:
        divisor = math.gcd(images, 8)
        group = divisor if divisor > 1 else images
    if group < 2 or images % group:
        raise ValueError(
            f"config.mix needs whole groups of at least 2 images to mix: a batch of {images} "
            f"cannot be divided into groups of {group} (config.batch_size / "
            "config.optim.accumulate_steps, config.model.bn_group)"
        )
    return group
