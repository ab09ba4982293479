"""Erasing parts of images, on the device: (rng, batch, step) -> batch.

Every image draws for itself, from one key for the whole batch, so that the outcome does not depend
on how the batch is spread over devices. Draws are float32 in every precision.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from einops import repeat

from jaxcls.config import bound, choose, defaults, expect, steps_of

Array = jax.Array
Batch = dict[str, Array]
Erase = Callable[[Array, Batch, Array | int], Batch]

FILLS = ("constant", "random", "pixel")
ATTEMPTS = 100  # of random erasing, at a rectangle that fits


def make(
    *,
    name: str,
    prob: float | None,
    ramp: str,
    fill: str,
    batch_size: int = 1,
    steps_per_epoch: int = 1,
    **keys: Any,
) -> Erase | None:
    """Returns the erasing of `config.erase`, or None where it is off.

    f(rng, batch, step) replaces parts of normalised images [B, H, W, C] by `fill`; which parts, the
    function called `name` below says. At step t an image is erased with probability

        prob * min(1, t / ramp)

    Args:
      name: a key of `METHODS`; "": off.
      prob: None: 0.5 for random erasing, as in its paper, and 1 for the others.
      ramp: duration; "": `prob` from the start.
      fill: "constant", 0, which is the mean of normalised pixels; or standard normal numbers, which
        spread like them: "random", a colour for each image, or "pixel", one for each pixel.
      batch_size, steps_per_epoch: of the run, for `ramp`.
      keys: the rest of `config.erase`, what the methods take. What is in pixels is not scaled.

    Raises:
      ValueError: an unknown name, a key that it does not take, or a value out of range; values of
        the methods are refused by `f`, which sees the size of the images.
    """
    methods = [METHODS[choose("config.erase.name", name, METHODS)]] if name else []
    common = {"prob": prob, "ramp": ramp, "fill": fill}
    used = common if name else ()
    methods = bound("erase", name or "no erasing", methods, keys | common, used)
    if not methods:
        return None
    [method] = methods
    choose("config.erase.fill", fill, FILLS)
    if prob is None:
        prob = 0.5 if name == "random_erasing" else 1.0
    expect(0 <= prob <= 1, "erase.prob", prob, "a probability, from 0 to 1")
    rising = steps_of(
        ramp, key="erase.ramp", batch_size=batch_size, steps_per_epoch=steps_per_epoch
    )

    def erase(rng: Array, batch: Batch, step: Array | int) -> Batch:
        rng_image, rng_mask, rng_fill = jax.random.split(rng, 3)
        image = batch["image"]
        now = prob * jnp.minimum(step / rising, 1) if rising else prob
        erased = jax.random.uniform(rng_image, image.shape[:1], jnp.float32) < now
        mask = erased[:, None, None] & method(rng_mask, image.shape[:3])
        new = filling(rng_fill, image.shape, fill).astype(image.dtype)
        return {**batch, "image": jnp.where(mask[..., None], new, image)}

    return erase


def filling(rng: Array, shape: tuple[int, ...], fill: str) -> Array:
    """Returns what takes the place of erased pixels, to be broadcast to `shape` [B, H, W, C]."""
    if fill == "constant":
        return jnp.zeros((), jnp.float32)
    batch, _, _, channels = shape
    return jax.random.normal(
        rng, shape if fill == "pixel" else (batch, 1, 1, channels), jnp.float32
    )


def box(top: Array, left: Array, height: Array, width: Array, shape: tuple[int, int]) -> Array:
    """Returns bool[..., H, W], True inside a box of int[...] corners and sides, clipped to (H, W).

    Args:
      top, left: first row and column; may be negative.
      height, width: rows and columns before clipping.
      shape: (H, W).
    """

    def inside(first, count, pixels):
        i = jnp.arange(pixels, dtype=jnp.int32) - first[..., None]
        return (i >= 0) & (i < count[..., None])

    rows, columns = inside(top, height, shape[0]), inside(left, width, shape[1])
    return rows[..., :, None] & columns[..., None, :]


def whole(u: Array, n: Array | int) -> Array:
    """Returns floor(u * n), int32: whole numbers below n, all equally likely where u is uniform."""
    # randint takes three times as many random bits, and as long to compile
    return jnp.floor(u * n).astype(jnp.int32)


# -- The methods: (rng, (B, H, W), keys of config.erase) -> bool[B, H, W], True where erased -------


def fitting(shape: tuple[int, int, int], *keys: str) -> str:
    """Returns what to write for keys in pixels: their defaults, scaled to the images."""
    size, (values, _) = min(shape[1:]), defaults()

    def scaled(key):
        return jax.tree.map(lambda n: round(n * size / 224), values[f"erase.{key}"])

    like = " and ".join(f"{key} = {scaled(key)}" for key in keys)
    return f"pixels that fit images of {size}, such as {like}"


def cutout(rng: Array, shape: tuple[int, int, int], *, holes: int, length: int) -> Array:
    """Cutout: squares around any pixels, clipped at the border.

    DeVries & Taylor 2017, arXiv:1708.04552.

    Args:
      holes: number of squares in an image.
      length: pixels, side of a square.
    """
    b, h, w = shape
    expect(1 <= holes <= 1000, "erase.holes", holes, "a number from 1 to 1000")
    expect(1 <= length < min(h, w), "erase.length", length, fitting(shape, "length"))
    u = jax.random.uniform(rng, (2, b, holes), jnp.float32)
    y, x = whole(u[0], h) - length // 2, whole(u[1], w) - length // 2
    side = jnp.full((b, holes), length, jnp.int32)
    return box(y, x, side, side, (h, w)).any(1)


def random_erasing(
    rng: Array,
    shape: tuple[int, int, int],
    *,
    area: tuple[float, float],
    aspect: tuple[float, float],
) -> Array:
    """Random erasing: one rectangle of random area and shape, wholly inside the image.

    Zhong et al. 2017, arXiv:1708.04896: area and height / width are uniform and drawn again until
    height and width are below the image's, `ATTEMPTS` times at most; then every place is as likely
    as any other (the authors' program; the paper's listing draws all again if the place is wrong,
    which favours small rectangles).

    Args:
      area: (low, high), share of the image.
      aspect: (low, high), height / width.
    """
    b, h, w = shape
    right = len(area) == 2 and 0 < area[0] <= area[1] <= 1
    expect(right, "erase.area", area, "(low, high), 0 < low <= high <= 1")
    right = len(aspect) == 2 and 1e-3 <= aspect[0] <= aspect[1] <= 1e3
    expect(right, "erase.aspect", aspect, "(low, high), 0.001 <= low <= high <= 1000")
    u = jax.random.uniform(rng, (2, b, ATTEMPTS + 1), jnp.float32)
    pixels = h * w * (area[0] + (area[1] - area[0]) * u[0, :, 1:])
    shapes = aspect[0] + (aspect[1] - aspect[0]) * u[1, :, 1:]
    heights = jnp.round(jnp.sqrt(pixels * shapes)).astype(jnp.int32)
    widths = jnp.round(jnp.sqrt(pixels / shapes)).astype(jnp.int32)
    fits = (heights < h) & (widths < w)
    first = fits & (jnp.cumsum(fits, axis=1) == 1)
    # the first that fits; 0, and nothing erased, where none does
    height = jnp.where(first, heights, 0).sum(1, dtype=jnp.int32)
    width = jnp.where(first, widths, 0).sum(1, dtype=jnp.int32)
    top, left = whole(u[0, :, 0], h - height + 1), whole(u[1, :, 0], w - width + 1)
    return box(top, left, height, width, (h, w))


def hide_and_seek(
    rng: Array, shape: tuple[int, int, int], *, grids: tuple[int, ...], hide: float
) -> Array:
    """Hide-and-seek: the cells of a grid, each hidden or not.

    Singh & Lee 2017, arXiv:1704.04232. The grid begins in the upper left corner; cells at the other
    borders may be cut off.

    Args:
      grids: pixels, side of a cell; each image takes one of them. 0 hides nothing.
      hide: probability of a cell.
    """
    b, h, w = shape
    right = any(grids) and all(0 <= n < min(h, w) and n == int(n) for n in grids)
    expect(right, "erase.grids", grids, fitting(shape, "grids"))
    expect(0 <= hide <= 1, "erase.hide", hide, "a probability, from 0 to 1")
    finest = min(pixels for pixels in grids if pixels)
    rows, columns = -(-h // finest), -(-w // finest)
    u = jax.random.uniform(rng, (b, 1 + rows * columns), jnp.float32)
    choice = whole(u[:, 0], len(grids))[:, None, None]
    hidden = u[:, 1:].reshape(b, rows, columns) < hide  # coarser grids take a part
    mask = jnp.zeros(shape, bool)
    for i, pixels in enumerate(grids):
        if pixels:
            cells = hidden[:, : -(-h // pixels), : -(-w // pixels)]
            hides = repeat(cells, "b y x -> b (y h) (x w)", h=pixels, w=pixels)[:, :h, :w]
            mask |= (choice == i) & hides
    return mask


def grid_mask(
    rng: Array,
    shape: tuple[int, int, int],
    *,
    d1: int,
    d2: int,
    ratio: float,
    rotate: int,
    mode: int,
) -> Array:
    """GridMask: a lattice of random period, phase and angle.

    Chen et al. 2020, arXiv:2001.04086. Bands of l = round(ratio * d) pixels repeat every d pixels
    across and down, turned about the centre of the image. Mode 1 erases the squares between them,
    as in the paper's figures, and keeps 1 - (1 - l/d)^2 of the image; mode 0 erases the bands and
    keeps (1 - l/d)^2. The paper's ImageNet runs: ratio 0.6, rotate 360, mode 1, and a probability
    that rises to 0.8 in the first 240 of 300 epochs.

    Args:
      d1, d2: pixels; the period d is a whole number, d1 <= d < d2, all equally likely.
      ratio: of a band's width to the period.
      rotate: degrees; the angle is a whole number, 0 <= angle < rotate. 1: no rotation.
      mode: 0 or 1.
    """
    b, h, w = shape
    expect(d1 < d2 <= min(h, w), "erase.d2", d2, fitting(shape, "d1", "d2"))
    expect(d1 >= 2, "erase.d1", d1, "a number of pixels, at least 2")
    expect(0 < ratio < 1, "erase.ratio", ratio, "a share of the period, above 0 and below 1")
    expect(1 <= rotate <= 360, "erase.rotate", rotate, "degrees, from 1 (none) to 360")
    expect(mode in (0, 1), "erase.mode", mode, "0 (bands) or 1 (squares)")
    u = jax.random.uniform(rng, (4, b), jnp.float32)
    d = d1 + whole(u[0], d2 - d1)
    band = jnp.floor(d * jnp.float32(ratio) + 0.5)
    bands = lattice((h, w), d, band, whole(u[1:3], d), whole(u[3], rotate))
    return ~bands if mode else bands


def lattice(shape: tuple[int, int], d: Array, band: Array, phase: Array, angle: Array) -> Array:
    """Returns bool[B, H, W], True in the bands of a lattice turned about the centre of the image.

    Args:
      shape: (H, W).
      d, band: pixels [B], the period and the width of a band.
      phase: int[2, B], pixels by which the pattern of rows and that of columns is shifted.
      angle: degrees [B], counter-clockwise.
    """
    h, w = shape
    theta = jnp.deg2rad(angle.astype(jnp.float32))[:, None, None]
    cos, sin = jnp.cos(theta), jnp.sin(theta)
    y = (jnp.arange(h, dtype=jnp.float32) - (h - 1) / 2)[:, None]
    x = jnp.arange(w, dtype=jnp.float32) - (w - 1) / 2

    def bands(position, phase):
        pixel = jnp.floor(position).astype(jnp.int32) + phase[:, None, None]
        return pixel % d[:, None, None] < band[:, None, None]

    row, column = cos * y + sin * x + h / 2, cos * x - sin * y + w / 2
    return bands(row, phase[0]) | bands(column, phase[1])


METHODS = {f.__name__: f for f in (cutout, random_erasing, hide_and_seek, grid_mask)}
