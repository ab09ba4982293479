"""The ops of jaxcls/data/primitives.py with Pillow itself: what they are compared with."""

from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image, ImageEnhance, ImageOps

from jaxcls.data.primitives import Op

INTERPOLATION = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
}


def _affine(*matrix: Callable[[float, tuple[int, int]], float] | float) -> Callable[..., Any]:
    def transform(image, value, **options):
        numbers = tuple(m(value, image.size) if callable(m) else m for m in matrix)
        return image.transform(image.size, Image.Transform.AFFINE, numbers, **options)

    return transform


MOVES = {
    "ShearX": _affine(1, lambda v, size: v, 0, 0, 1, 0),
    "ShearY": _affine(1, 0, 0, lambda v, size: v, 1, 0),
    "TranslateX": _affine(1, 0, lambda v, size: v * size[0], 0, 1, 0),
    "TranslateY": _affine(1, 0, 0, 0, 1, lambda v, size: v * size[1]),
    "Rotate": lambda image, value, **options: image.rotate(value, **options),
}
FUNCTIONS = {
    "AutoContrast": lambda image, _: ImageOps.autocontrast(image),
    "Equalize": lambda image, _: ImageOps.equalize(image),
    "Invert": lambda image, _: ImageOps.invert(image),
    "Posterize": ImageOps.posterize,
    "Solarize": ImageOps.solarize,
    "SolarizeAdd": lambda image, add: image.point(
        [min(v + add, 255) if v < 128 else v for v in range(256)] * len(image.getbands())
    ),
    "Brightness": lambda image, factor: ImageEnhance.Brightness(image).enhance(factor),
    "Contrast": lambda image, factor: ImageEnhance.Contrast(image).enhance(factor),
    "Color": lambda image, factor: ImageEnhance.Color(image).enhance(factor),
    "Sharpness": lambda image, factor: ImageEnhance.Sharpness(image).enhance(factor),
    "Grayscale": lambda image, _: image.convert("L").convert(image.mode),
}


def apply(
    image: Image.Image, ops: Sequence[Op], *, interpolation: str = "bilinear", fill: int = 128
) -> Image.Image:
    """Returns the image, of mode "RGB" or "L", after these ops, one after the other.

    All but Hue, Lighting and AugMix.
    """
    for name, value in ops:
        if name in MOVES:
            colour = (fill,) * len(image.getbands())
            image = MOVES[name](
                image, value, resample=INTERPOLATION[interpolation], fillcolor=colour
            )
        else:
            image = FUNCTIONS[name](image, value)
    return image
