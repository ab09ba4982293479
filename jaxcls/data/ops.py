"""What happens to each image on the host: crop and resize, uint8 in and out.

Flips, mixing and normalising happen on the device (data/device.py, data/mixing.py).
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import cv2
import numpy as np

from jaxcls.config import choose, refuse_unused

Transform = Callable[[np.ndarray, np.random.Generator | None], np.ndarray]

INTERPOLATION = {
    "nearest": cv2.INTER_NEAREST,
    "bilinear": cv2.INTER_LINEAR,
    "area": cv2.INTER_AREA,
    "bicubic": cv2.INTER_CUBIC,
    "lanczos": cv2.INTER_LANCZOS4,
}
TAKES = {"random_resized": ("crop_scale", "crop_ratio"), "shift": ("shift",), "center": ()}
DEFAULTS = {"crop_scale": (0.08, 1.0), "crop_ratio": (3 / 4, 4 / 3), "shift": 0}

cv2.setNumThreads(0)  # images are what runs in parallel here; threads inside each only compete


def make(
    *,
    size: int,
    eval_size: int,
    eval_resize: int,
    crop: str,
    crop_scale: Sequence[float],
    crop_ratio: Sequence[float],
    shift: int,
    interpolation: str,
    train: bool,
    # The rest of config.image is done on the device, by data/device.py.
    flip: float,
    mean: Sequence[float],
    std: Sequence[float],
) -> Transform:
    """Returns `f(image, rng) -> image`: uint8 [H, W, C] of any size -> uint8 [S, S, C].

    In training S is `size` and `crop` says how it is reached:
      "random_resized": a random part of the image, resized (`random_resized_crop`);
      "shift": the short side is resized to `size`, then the central square moved by up to `shift`
        pixels up or down, left or right; what it uncovers is black (0);
      "center": the same without a shift.
    In evaluation S is `eval_size` (0: `size`), the centre of the image after its short side was
    resized to `eval_resize` (0: of the image as it is). `rng` is not read then and may be None.

    Args:
      size, eval_size, ...: `config.image`.
      train: for training or for evaluation.

    Raises:
      ValueError: here for unknown names and values out of range; from `f` for an image smaller than
        the evaluation's crop.
    """
    del flip, mean, std
    choose("config.image.crop", crop, TAKES)
    values = {"crop_scale": tuple(crop_scale), "crop_ratio": tuple(crop_ratio), "shift": shift}
    refuse_unused("image", crop, values, DEFAULTS, TAKES[crop])
    flag = INTERPOLATION[choose("config.image.interpolation", interpolation, INTERPOLATION)]
    _check(size, eval_size, eval_resize, shift)
    if train and crop == "random_resized":
        _check_range("crop_scale", crop_scale, 1.0)
        _check_range("crop_ratio", crop_ratio, math.inf)
        return partial(
            random_resized_crop,
            size=size,
            scale=tuple(crop_scale),
            ratio=tuple(crop_ratio),
            interpolation=flag,
        )
    if train:
        return partial(shifted_crop, size=size, shift=shift, interpolation=flag)
    return partial(central_crop, size=eval_size or size, resize=eval_resize, interpolation=flag)


def _check(size: int, eval_size: int, eval_resize: int, shift: int) -> None:
    if size < 1:
        raise ValueError(f"config.image.size = {size}: write a number of pixels above 0")
    for key, value in (("eval_size", eval_size), ("eval_resize", eval_resize), ("shift", shift)):
        if value < 0:
            raise ValueError(f"config.image.{key} = {value} is negative")
    if shift >= size:
        raise ValueError(f"config.image.shift = {shift} moves all {size} pixels out of the image")
    if eval_resize and (eval_size or size) > eval_resize:
        raise ValueError(
            f"config.image: evaluation crops {eval_size or size} pixels (eval_size, or else size) "
            f"from a short side of eval_resize = {eval_resize}; make eval_resize at least as large"
        )


def _check_range(key: str, values: Sequence[float], most: float) -> None:
    if len(values) != 2 or not 0 < values[0] <= values[1] <= most:
        limit = f" <= {most:g}" if most < math.inf else ""
        raise ValueError(
            f"config.image.{key} = {values}: write (low, high), 0 < low <= high{limit}"
        )


def random_resized_crop(
    image: np.ndarray,
    rng: np.random.Generator,
    *,
    size: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    interpolation: int,
) -> np.ndarray:
    """Returns a random part of the image, resized to [size, size, C].

    PaddleClas's RandCropImage: width / height is uniform in `ratio` (its logarithm is not), the
    share of the area uniform in `scale`, both ends of which are lowered to the largest share that a
    part of that shape can have; sides are rounded down. It always fits: nothing is drawn again.
    """
    height, width = image.shape[:2]
    u_ratio, u_area, u_x, u_y = rng.random(4).tolist()
    aspect = ratio[0] + (ratio[1] - ratio[0]) * u_ratio
    bound = min(width / height / aspect, height / width * aspect)
    low, high = min(scale[0], bound), min(scale[1], bound)
    area = width * height * (low + (high - low) * u_area)
    w = min(max(int(math.sqrt(area * aspect)), 1), width)  # rounding can leave 0 of a tiny image
    h = min(max(int(math.sqrt(area / aspect)), 1), height)
    x = int((width - w + 1) * u_x)
    y = int((height - h + 1) * u_y)
    return _resize(image[y : y + h, x : x + w], size, size, interpolation)


def shifted_crop(
    image: np.ndarray,
    rng: np.random.Generator | None,
    *,
    size: int,
    shift: int,
    interpolation: int,
) -> np.ndarray:
    """Returns the central [size, size, C], moved by up to `shift` pixels; uncovered pixels are 0.

    The short side is resized to `size` first. Every shift in each direction is equally likely.
    """
    image = _resize_short(image, size, interpolation)
    height, width = image.shape[:2]
    y, x = (height - size) // 2, (width - size) // 2
    if shift:
        u_y, u_x = rng.random(2).tolist()
        y += int((2 * shift + 1) * u_y) - shift
        x += int((2 * shift + 1) * u_x) - shift
    part = image[max(y, 0) : y + size, max(x, 0) : x + size]
    if part.shape[:2] == (size, size):
        return part
    out = np.zeros((size, size, image.shape[2]), np.uint8)
    top, left = max(-y, 0), max(-x, 0)
    out[top : top + part.shape[0], left : left + part.shape[1]] = part
    return out


def central_crop(
    image: np.ndarray,
    rng: np.random.Generator | None = None,
    *,
    size: int,
    resize: int,
    interpolation: int,
) -> np.ndarray:
    """Returns the central [size, size, C] after the short side was resized to `resize` (0: not).

    Raises:
      ValueError: the image is smaller than that.
    """
    if resize:
        image = _resize_short(image, resize, interpolation)
    height, width = image.shape[:2]
    if min(height, width) < size:
        raise ValueError(
            f"an image of {width}x{height} pixels is smaller than the evaluation's "
            f"crop of {size}x{size}: set config.image.eval_resize to {size} or more"
        )
    y, x = (height - size) // 2, (width - size) // 2
    return image[y : y + size, x : x + size]


def _resize_short(image: np.ndarray, short: int, interpolation: int) -> np.ndarray:
    height, width = image.shape[:2]
    factor = short / min(height, width)
    return _resize(image, round(width * factor), round(height * factor), interpolation)


def _resize(image: np.ndarray, width: int, height: int, interpolation: int) -> np.ndarray:
    if image.shape[:2] == (height, width):
        return image
    out = cv2.resize(image, (width, height), interpolation=interpolation)
    return out if out.ndim == 3 else out[..., None]  # OpenCV drops a single channel
