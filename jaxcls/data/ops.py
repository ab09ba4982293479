"""What happens to each image on the host: decode, crop, resize, transform; uint8 out.

Flips, erasing, mixing and normalising happen on the device (data/device.py, data/erasing.py,
data/mixing.py).
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from jaxcls.config import choose, refuse_unused
from jaxcls.data.decode import BadImage, Part, decode

INTERPOLATION = {
    "nearest": (cv2.INTER_NEAREST,),
    "bilinear": (cv2.INTER_LINEAR,),
    "area": (cv2.INTER_AREA,),
    "bicubic": (cv2.INTER_CUBIC,),
    "lanczos": (cv2.INTER_LANCZOS4,),
    "random": (cv2.INTER_LINEAR, cv2.INTER_CUBIC),
}
TAKES = {
    "random_resized": ("crop_scale", "crop_ratio", "crop_log_ratio"),
    "shift": ("shift",),
    "center": (),
}
DEFAULTS = {
    "crop_scale": (0.08, 1.0),
    "crop_ratio": (3 / 4, 4 / 3),
    "crop_log_ratio": False,
    "shift": 0,
}

MAX_SIDE = 16384  # pixels; OpenCV resizes to less than 32768


def make(
    *,
    size: int,
    eval_size: int,
    eval_resize: int,
    crop: str,
    crop_scale: Sequence[float],
    crop_ratio: Sequence[float],
    crop_log_ratio: bool,
    shift: int,
    interpolation: str,
    scaled_decode: str,
    exif: bool,
    train: bool,
    augment: "Augment | None" = None,
    # The rest of config.image is done on the device, by data/device.py.
    flip: float,
    mean: Sequence[float],
    std: Sequence[float],
) -> "Transform":
    """Returns `f(image, rng) -> pixels`: an encoded image or uint8 [H, W, C] -> uint8 [S, S, C].

    In training S is `size` and `crop` says how it is reached:
      "random_resized": a random part of the image, resized (`RandomResized`);
      "shift": the short side is resized to `size`, then the central square moved by up to `shift`
        pixels up or down, left or right; what it uncovers is black (0);
      "center": the same without a shift.
    In evaluation S is `eval_size` (0: `size`), the centre of the image after its short side was
    resized to `eval_resize` (0: of the image as it is). `rng` is not read then and may be None.

    Args:
      size, eval_size, ...: `config.image`.
      train: for training or for evaluation.
      augment: of training, `augment.make(**config.augment)`: applied last.

    Raises:
      ValueError: here for unknown names and values out of range; from `f` for an image that cannot
        be read (`BadImage`), or is smaller than the evaluation's crop.
    """
    del flip, std
    choose("config.image.crop", crop, TAKES)
    values = {
        "crop_scale": tuple(crop_scale),
        "crop_ratio": tuple(crop_ratio),
        "crop_log_ratio": crop_log_ratio,
        "shift": shift,
    }
    refuse_unused("image", crop, values, DEFAULTS, TAKES[crop])
    choose("config.image.interpolation", interpolation, INTERPOLATION)
    choose("config.image.scaled_decode", scaled_decode, ("never", "train", "always"))
    _check(size, eval_size, eval_resize, shift, len(mean))
    _check_range("crop_scale", crop_scale, (0.0, 1.0))
    _check_range("crop_ratio", crop_ratio, (1e-3, 1e3))
    common = {"channels": len(mean), "exif": exif}
    if not train:
        interpolation = "bilinear" if interpolation == "random" else interpolation
        return Transform(
            size=eval_size or size,
            crop=Shifted(resize=eval_resize, shift=0),
            interpolation=INTERPOLATION[interpolation],
            scaled_decode=scaled_decode == "always",
            pad=False,
            **common,
        )
    if crop == "random_resized":
        cropping = RandomResized(tuple(crop_scale), tuple(crop_ratio), crop_log_ratio)
    else:
        cropping = Shifted(resize=size, shift=shift)
    return Transform(
        size=size,
        crop=cropping,
        interpolation=INTERPOLATION[interpolation],
        scaled_decode=scaled_decode != "never",
        pad=True,
        augment=augment,
        **common,
    )


def _check(size: int, eval_size: int, eval_resize: int, shift: int, channels: int) -> None:
    check_size(size)
    for key, value in (("eval_size", eval_size), ("eval_resize", eval_resize), ("shift", shift)):
        if value < 0:
            raise ValueError(f"config.image.{key} = {value} is negative")
        if value > MAX_SIDE:
            raise ValueError(f"config.image.{key} = {value}: write at most {MAX_SIDE} pixels")
    if shift >= size:
        raise ValueError(f"config.image.shift = {shift} moves all {size} pixels out of the image")
    if eval_resize and (eval_size or size) > eval_resize:
        raise ValueError(
            f"config.image: evaluation crops {eval_size or size} pixels (eval_size, or else size) "
            f"from a short side of eval_resize = {eval_resize}; make eval_resize at least as large"
        )
    if channels not in (1, 3):
        raise ValueError(
            f"config.image.mean has {channels} numbers: write 3 for images in colour, 1 for grey"
        )


def check_size(size: int) -> None:
    """Refuses sizes of images that are none."""
    if size < 1:
        raise ValueError(f"config.image.size = {size}: write a number of pixels above 0")
    if size > MAX_SIDE:
        raise ValueError(f"config.image.size = {size}: write at most {MAX_SIDE} pixels")


def _check_range(key: str, values: Sequence[float], limits: tuple[float, float]) -> None:
    least, most = limits
    if len(values) != 2 or not (0 < values[0] <= values[1] <= most and least <= values[0]):
        raise ValueError(
            f"config.image.{key} = {values}: write (low, high), {least:g} "
            f"{'<=' if least else '<'} low <= high <= {most:g}"
        )


# -- Which pixels ----------------------------------------------------------------------------------


class Crop(NamedTuple):
    """How the result is cut out of an image: part -> resized -> window."""

    part: tuple[int, int, int, int]  # top, left, height, width in the image
    resized: tuple[int, int]  # height, width of the part afterwards
    window: tuple[int, int]  # top, left of the result in there; what lies outside is black


@dataclasses.dataclass(frozen=True)
class RandomResized:
    """A random part of the image, resized to the result.

    PaddleClas's RandCropImage: width / height is uniform in `ratio` (or its logarithm is), the
    share of the area uniform in `scale`, both ends of which are lowered to the largest share that a
    part of that shape can have; sides are rounded down. It always fits: nothing is drawn again.
    """

    scale: tuple[float, float]
    ratio: tuple[float, float]
    log_ratio: bool

    def __call__(self, height: int, width: int, size: int, rng: np.random.Generator) -> Crop:
        u_ratio, u_area, u_x, u_y = rng.random(4).tolist()
        least, most = self.ratio
        if self.log_ratio:
            aspect = least * (most / least) ** u_ratio
        else:
            aspect = least + (most - least) * u_ratio
        bound = min(width / height / aspect, height / width * aspect)
        low, high = min(self.scale[0], bound), min(self.scale[1], bound)
        area = width * height * (low + (high - low) * u_area)
        w = min(max(int(math.sqrt(area * aspect)), 1), width)  # rounding can leave 0 of a tiny one
        h = min(max(int(math.sqrt(area / aspect)), 1), height)
        x = int((width - w + 1) * u_x)
        y = int((height - h + 1) * u_y)
        return Crop((y, x, h, w), (size, size), (0, 0))


@dataclasses.dataclass(frozen=True)
class Shifted:
    """The centre, moved by up to `shift` pixels after the short side was resized (0: it was not).

    Every shift in each direction is equally likely.
    """

    resize: int
    shift: int

    def __call__(self, height: int, width: int, size: int, rng: np.random.Generator | None) -> Crop:
        part, factor = (0, 0, height, width), (self.resize / min(height, width) or 1)
        height, width = round(height * factor), round(width * factor)
        y, x = shifts(rng, self.shift)
        y += (height - size) // 2 - self.shift
        x += (width - size) // 2 - self.shift
        return Crop(part, (height, width), (y, x))


def shifts(rng: np.random.Generator | None, shift: int) -> tuple[int, int]:
    """Returns (y, x), each a random number from 0 to 2 shift."""
    if not shift:
        return 0, 0
    u_y, u_x = rng.random(2).tolist()
    return int((2 * shift + 1) * u_y), int((2 * shift + 1) * u_x)


# -- The transform ---------------------------------------------------------------------------------

Augment = Callable[[np.ndarray, np.random.Generator], np.ndarray]  # uint8 [S, S, C] -> the same


@dataclasses.dataclass(frozen=True)
class Transform:
    """f(image, rng): an encoded image, or uint8 [H, W, 1 or 3] -> uint8 [size, size, channels].

    The crop, the interpolation and `augment` draw from `rng`, in this order; `make` says the rest.
    """

    size: int
    crop: RandomResized | Shifted
    interpolation: tuple[int, ...]  # OpenCV's; of several each image draws one
    scaled_decode: bool  # large JPEGs
    pad: bool  # with black what lies outside of the image; False: that is an error
    channels: int
    exif: bool
    augment: Augment | None = None

    def __call__(self, image: bytes | np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
        crop = None

        def part(height: int, width: int) -> Part:
            nonlocal crop
            crop = crop or self.crop(height, width, self.size, rng)
            return Part(*crop.part, crop.resized if self.scaled_decode else crop.part[2:])

        pixels = decode(image, channels=self.channels, exif=self.exif, part=part)
        flags = self.interpolation
        flag = flags[int(rng.random() * len(flags))] if len(flags) > 1 else flags[0]
        pixels = _resize(pixels, *crop.resized, flag)
        height, width = pixels.shape[:2]
        if min(height, width) < self.size and not self.pad:
            raise ValueError(
                f"an image of {width}x{height} pixels is smaller than the evaluation's crop of "
                f"{self.size}x{self.size}: set config.image.eval_resize to {self.size} or more"
            )
        pixels = _window(pixels, *crop.window, self.size)
        return self.augment(pixels, rng) if self.augment else pixels

    def decoded(self, image: bytes | np.ndarray, name: str) -> bytes | np.ndarray:
        """Returns what may take the image's place: its pixels, and the result is the same.

        Images so large that parts of them are decoded smaller stay as they are.

        Raises:
          BadImage: it cannot be read; `name` is what it is called.
        """
        pixels = decode(image, channels=self.channels, exif=self.exif, name=name)
        least = self.crop.resize if isinstance(self.crop, Shifted) else self.size
        large = self.scaled_decode and 0 < 2 * least <= min(pixels.shape[:2])
        return image if large else pixels


def transformed(
    item: dict[str, Any], transform: Transform, rng: np.random.Generator | None
) -> np.ndarray:
    """Returns the transformed image of a source's item; errors begin with its name."""
    try:
        return transform(item["image"], rng)
    except BadImage as error:
        raise BadImage(f"{item['name']}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{item['name']}: {error}") from error


def _resize(image: np.ndarray, height: int, width: int, interpolation: int) -> np.ndarray:
    if image.shape[:2] == (height, width):
        return image
    out = cv2.resize(image, (width, height), interpolation=interpolation)
    return out if out.ndim == 3 else out[..., None]  # OpenCV drops a single channel


def _window(image: np.ndarray, top: int, left: int, size: int) -> np.ndarray:
    part = image[max(top, 0) : top + size, max(left, 0) : left + size]
    if part.shape[:2] == (size, size):
        return part
    out = np.zeros((size, size, image.shape[2]), np.uint8)
    top, left = max(-top, 0), max(-left, 0)
    out[top : top + part.shape[0], left : left + part.shape[1]] = part
    return out
