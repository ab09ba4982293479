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

from jaxcls.config import choose, taken, tuples
from jaxcls.data.decode import CHANNELS, BadImage, Part, decode

INTERPOLATION = {
    "nearest": (cv2.INTER_NEAREST,),
    "bilinear": (cv2.INTER_LINEAR,),
    "area": (cv2.INTER_AREA,),
    "bicubic": (cv2.INTER_CUBIC,),
    "lanczos": (cv2.INTER_LANCZOS4,),
    "random": (cv2.INTER_LINEAR, cv2.INTER_CUBIC),
}
MAX_SIDE = 16384  # pixels; OpenCV resizes to less than 32768


@dataclasses.dataclass(frozen=True, kw_only=True)
class Image:
    """How images reach a network, `config.image`: stored with the weights, which need it.

    Evaluation shows `eval_size` (0: `size`) pixels, the centre of the image after its short side
    was resized to `eval_resize` (0: of the image as it is).

    Raises:
      ValueError: an unknown name, or a value out of range.
    """

    size: int
    eval_size: int
    eval_resize: int
    interpolation: str
    scaled_decode: str
    exif: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self):
        choose("config.image.interpolation", self.interpolation, INTERPOLATION)
        choose("config.image.scaled_decode", self.scaled_decode, ("never", "train", "always"))
        check_size(self.size)
        for key in ("eval_size", "eval_resize"):
            _check_pixels(f"image.{key}", getattr(self, key))
        if self.eval_resize and self.shown > self.eval_resize:
            raise ValueError(
                f"config.image: evaluation crops {self.shown} pixels (eval_size, or else size) "
                f"from a short side of eval_resize = {self.eval_resize}; make eval_resize at least "
                "as large"
            )
        mean, std = self.mean, self.std
        if len(mean) not in CHANNELS:
            raise ValueError(
                f"config.image.mean has {len(mean)} numbers: write 3 for images in colour, 1 for "
                "grey, 4 for colour and transparency or another band"
            )
        given = f"config.image.mean = {mean}, config.image.std = {std}"
        if len(mean) != len(std) or not all(s > 0 for s in std):
            raise ValueError(
                f"{given}: write as many means as standard deviations, and these above 0"
            )
        if not all(-10 <= m <= 10 for m in mean) or not all(1e-3 <= s <= 10 for s in std):
            raise ValueError(
                f"{given}: pixels are numbers from 0 to 1 here; divide what is meant for 0 to 255 "
                "by 255"
            )

    @property
    def channels(self) -> int:
        """How many an image has."""
        return len(self.mean)

    @property
    def shape(self) -> tuple[int, int, int]:
        """[H, W, C] in training."""
        return self.size, self.size, self.channels

    @property
    def shown(self) -> int:
        """Pixels in evaluation, height and width."""
        return self.eval_size or self.size

    @property
    def transform(self) -> "Transform":
        """`f(image, rng) -> uint8 [S, S, C]` of evaluation; `rng` is not read."""
        interpolation = "bilinear" if self.interpolation == "random" else self.interpolation
        return Transform(
            size=self.shown,
            crop=Shifted(resize=self.eval_resize, shift=0),
            interpolation=INTERPOLATION[interpolation],
            scaled_decode=self.scaled_decode == "always",
            pad=False,
            channels=self.channels,
            exif=self.exif,
        )


def training(
    *, name: str, flip: float, image: Image, augment: "Augment | None" = None, **keys: Any
) -> "Transform":
    """Returns `f(image, rng) -> uint8 [S, S, C]` of training, S being `image.size`.

    Args:
      name, flip, ...: `config.crop`: a name of `CROPS` and what it takes.
      image: `config.image`.
      augment: `augment.make(**config.augment)`: applied last.

    Raises:
      ValueError: here for an unknown name, values out of range, a key that is not used; from `f`
        for an image that cannot be read (`BadImage`).
    """
    crop = CROPS[choose("config.crop.name", name, CROPS)]
    keys = {key: tuples(value) for key, value in keys.items()}
    if not 0 <= flip <= 1:
        raise ValueError(f"config.crop.flip = {flip}: write a probability, from 0 to 1")
    transform = image.transform
    if crop is not as_evaluated:
        transform = dataclasses.replace(
            transform,
            interpolation=INTERPOLATION[image.interpolation],
            scaled_decode=image.scaled_decode != "never",
            pad=True,
        )
    cut = crop(image, **taken("crop", name, crop, keys))
    return dataclasses.replace(transform, size=image.size, crop=cut, augment=augment, flip=flip)


def check_size(size: int) -> None:
    """Refuses sizes of images that are none."""
    if size < 1:
        raise ValueError(f"config.image.size = {size}: write a number of pixels above 0")
    _check_pixels("image.size", size)


def _check_pixels(key: str, value: int) -> None:
    if value < 0:
        raise ValueError(f"config.{key} = {value} is negative")
    if value > MAX_SIDE:
        raise ValueError(f"config.{key} = {value}: write at most {MAX_SIDE} pixels")


def _check_range(key: str, values: Sequence[float], limits: tuple[float, float]) -> None:
    least, most = limits
    if len(values) != 2 or not (0 < values[0] <= values[1] <= most and least <= values[0]):
        raise ValueError(
            f"config.crop.{key} = {values}: write (low, high), {least:g} "
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
        factor = self.resize / min(height, width) or 1
        top, left = 0, 0
        if factor > 1:  # of a line of pixels, enlarged, the centre will do: all takes gigabytes
            most = max(int(MAX_SIDE / factor), min(height, width))
            top, left = max(height - most, 0) // 2, max(width - most, 0) // 2
            height, width = min(height, most), min(width, most)
        part = (top, left, height, width)
        height, width = round(height * factor), round(width * factor)
        y, x = shifts(rng, self.shift)
        y += (height - size) // 2 - self.shift
        x += (width - size) // 2 - self.shift
        return Crop(part, (height, width), (y, x))


def random_resized(
    image: Image, *, scale: Sequence[float], ratio: Sequence[float], log_ratio: bool
) -> RandomResized:
    """Returns the crop of a random part of the image, resized to `image.size` pixels."""
    _check_range("scale", scale, (0.0, 1.0))
    _check_range("ratio", ratio, (1e-3, 1e3))
    return RandomResized(scale, ratio, log_ratio)


def shift(image: Image, *, shift: int) -> Shifted:
    """Returns the crop of the centre, moved by up to `shift` pixels after resizing to `image.size`.

    What that uncovers is black.
    """
    _check_pixels("crop.shift", shift)
    if shift >= image.size:
        raise ValueError(
            f"config.crop.shift = {shift} moves all {image.size} pixels out of the image"
        )
    return Shifted(image.size, shift)


def center(image: Image) -> Shifted:
    """Returns the crop of the centre after resizing the short side to `image.size` pixels."""
    return Shifted(image.size, 0)


def as_evaluated(image: Image) -> Shifted:
    """Returns the crop of evaluation, of `image.size` pixels; all of the transform is as there."""
    return image.transform.crop


CROPS = {f.__name__: f for f in (random_resized, shift, center)} | {"eval": as_evaluated}


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
    """f(image, rng): an encoded image, or uint8 [H, W, 1, 3 or 4] -> uint8 [size, size, channels].

    The crop, the interpolation and `augment` draw from `rng`, in this order; `training` and
    `Image` say the rest.
    """

    size: int
    crop: RandomResized | Shifted
    interpolation: tuple[int, ...]  # OpenCV's; of several each image draws one
    scaled_decode: bool  # large JPEGs
    pad: bool  # with black what lies outside of the image; False: that is an error
    channels: int
    exif: bool
    augment: Augment | None = None
    flip: float = 0.0  # probability of a left-right flip, which data/device.py does

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

        Images so large that parts of them are decoded smaller stay as they are, and so do damaged
        ones, of which a part may be whole; `name` is what an image is called.
        """
        try:
            pixels = decode(image, channels=self.channels, exif=self.exif, name=name)
        except BadImage:
            return image
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
