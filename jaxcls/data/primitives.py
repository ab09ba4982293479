"""Pillow's operations on uint8 images, computed with OpenCV in a fraction of the time.

The papers' image transformations are made of these:

    ShearX, ShearY          a row (column) moves left (up) by argument x its distance from the edge
    TranslateX, TranslateY  the image moves left (up) by argument x its width (height)
    Rotate                  degrees about the centre, counter-clockwise
    AutoContrast            stretches the values of each channel linearly to 0 ... 255
    Equalize                makes the histogram of each channel as flat as can be
    Invert                  v -> 255 - v
    Posterize               keeps this number of the upper bits
    Solarize                inverts values that are not below the argument
    SolarizeAdd             adds the argument to values below 128
    Brightness              black + argument x (image - black)
    Contrast                likewise, from the mean grey level
    Color                   likewise, from the grey image
    Sharpness               likewise, from the smoothed image
    Hue                     turns the colours by this share of the circle
    Grayscale               the grey image, in as many channels
    Lighting                adds ImageNet's principal colours, each times one of three arguments
    AugMix                  (m, ((w, ops), ...)): (1 - m) image + m times the sum of w ops(image)

Images of one channel have no colours: Color, Hue and Grayscale leave them as they are.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import cv2
import numpy as np

Op = tuple[str, Any]  # name and argument; None: it takes none

INTERPOLATION = {"nearest": cv2.INTER_NEAREST, "bilinear": cv2.INTER_LINEAR}
VALUES = np.arange(256, dtype=np.uint8)
# Weights of ITU-R 601 in 16 bits, and one half: float32 computes the sum without rounding.
LUMA = np.float32([[19595, 38470, 7471, 32768]]) / 65536
# Columns: the principal components of the colours of ImageNet, times their variances.
PRINCIPAL_COLORS = 255 * np.array(
    [
        [-0.5675 * 0.2175, 0.7192 * 0.0188, 0.4009 * 0.0045],
        [-0.5808 * 0.2175, -0.0045 * 0.0188, -0.8140 * 0.0045],
        [-0.5836 * 0.2175, -0.6948 * 0.0188, 0.4203 * 0.0045],
    ]
)


def apply(
    image: np.ndarray, ops: Sequence[Op], *, interpolation: str = "bilinear", fill: int = 128
) -> np.ndarray:
    """Returns the image after these ops, one after the other; with none the image itself.

    Args:
      image: uint8 [H, W, C].
      ops: names and arguments, see the module's docstring.
      interpolation: "nearest" or "bilinear", of Shear, Translate and Rotate.
      fill: their grey level outside of the image.

    Raises:
      ValueError: Lighting of an image that has not three channels.
    """
    shape = image.shape
    for name, value in ops:
        if name in MOVES:
            image = MOVES[name](image, value, interpolation, fill)
        elif name == "AugMix":
            share, chains = value
            mixed = np.multiply(image, 1 - share, dtype=np.float32)
            for weight, chain in chains:
                other = apply(image, chain, interpolation=interpolation, fill=fill)
                mixed += np.multiply(other, share * weight, dtype=np.float32)
            image = (mixed + 0.5).astype(np.uint8)
        else:
            image = FUNCTIONS[name](image, value)
        image = image.reshape(shape)  # OpenCV drops a single channel
    return image


def _shear_x(image: np.ndarray, slope: float, interpolation: str, fill: int) -> np.ndarray:
    return _warp(image, ((1, slope, 0), (0, 1, 0)), interpolation, fill)


def _shear_y(image: np.ndarray, slope: float, interpolation: str, fill: int) -> np.ndarray:
    return _warp(image, ((1, 0, 0), (slope, 1, 0)), interpolation, fill)


def _rotate(image: np.ndarray, degrees: float, interpolation: str, fill: int) -> np.ndarray:
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    y, x = image.shape[0] / 2, image.shape[1] / 2
    matrix = ((cos, -sin, x - cos * x + sin * y), (sin, cos, y - sin * x - cos * y))
    return _warp(image, matrix, interpolation, fill)


def _warp(
    image: np.ndarray, matrix: Sequence[Sequence[float]], interpolation: str, fill: int
) -> np.ndarray:
    """Returns the image whose point (x, y) is the point (a x + b y + c, d x + e y + f) of `image`.

    Args:
      matrix: ((a, b, c), (d, e, f)) for points in pixels from the upper left corner.
    """
    rows = []
    for a, b, c in matrix:
        c += (a + b) / 2  # OpenCV's points are pixels from the middle of the first one
        if interpolation == "nearest":
            # Pillow's numbers are multiples of 2**-16; of two equally near pixels it takes the
            # later one.
            a, b, c = (math.floor(65536 * v + 0.5) / 65536 for v in (a, b, c))
            c += 2**-17
        rows.append((a, b, c - 0.5))
    wide = interpolation == "bilinear" and image.shape[2] == 3  # takes half the time in 4 channels
    out = cv2.warpAffine(
        cv2.cvtColor(image, cv2.COLOR_RGB2RGBA) if wide else image,
        np.array(rows),
        (image.shape[1], image.shape[0]),
        flags=INTERPOLATION[interpolation] | cv2.WARP_INVERSE_MAP,
        borderValue=(fill,) * 4,
    )
    return cv2.cvtColor(out, cv2.COLOR_RGBA2RGB) if wide else out


def _translate(
    image: np.ndarray, share: float, interpolation: str, fill: int, *, axis: int
) -> np.ndarray:
    pixels = share * image.shape[axis]
    if interpolation == "nearest":
        return _shift(image, math.floor(pixels + 0.5), axis, fill)
    whole = math.floor(pixels)
    near, far = (_shift(image, p, axis, fill) for p in (whole, whole + 1))
    return cv2.addWeighted(near, 1 - (pixels - whole), far, pixels - whole, 0)


def _shift(image: np.ndarray, pixels: int, axis: int, fill: int) -> np.ndarray:
    size = image.shape[axis]
    ahead, back = min(max(pixels, 0), size), min(max(-pixels, 0), size)
    out = np.full_like(image, fill)
    target, source = np.moveaxis(out, axis, 0), np.moveaxis(image, axis, 0)
    target[back : size - ahead] = source[ahead : size - back]
    return out


def _lookup(channels: Sequence[np.ndarray], tables: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the image of these channels, each mapped by its table."""
    return cv2.merge([cv2.LUT(c, table) for c, table in zip(channels, tables, strict=True)])


# To be added before rounding to the nearest in order to round down, as Pillow does; the small part
# is for the float32 of OpenCV.
DOWN = 1e-4 - 0.5


def _blend(degenerate: np.ndarray | int, image: np.ndarray, factor: float) -> np.ndarray:
    """Returns degenerate + factor (image - degenerate), clipped and rounded down."""
    if isinstance(degenerate, int):
        return cv2.addWeighted(image, factor, image, 0, (1 - factor) * degenerate + DOWN)
    return cv2.addWeighted(image, factor, degenerate, 1 - factor, DOWN)


def _grey(image: np.ndarray) -> np.ndarray:
    """Returns the luminance, uint8 [H, W]."""
    if image.shape[2] != 3:
        return image[..., 0]
    return cv2.transform(image.astype(np.float32), LUMA).astype(np.uint8)


def _autocontrast(image: np.ndarray, _: None) -> np.ndarray:
    channels = []
    for channel in cv2.split(image):
        low, high, _, _ = cv2.minMaxLoc(channel)
        if high > low:
            channel = cv2.subtract(channel, low)
            channel = cv2.convertScaleAbs(channel, alpha=255 / (high - low), beta=DOWN)
        channels.append(channel)
    return cv2.merge(channels)


def _equalize(image: np.ndarray, _: None) -> np.ndarray:
    channels = cv2.split(image)
    counts = [cv2.calcHist([c], [0], None, [256], [0, 256]) for c in channels]
    counts = np.array(counts, np.int64).reshape(-1, 256)
    below = counts.cumsum(axis=1) - counts
    # The pixels of the largest value that there is are left out.
    step = np.where(counts > 0, below, 0).max(axis=1, keepdims=True) // 255
    tables = np.where(step > 0, (below + step // 2) // np.maximum(step, 1), VALUES)
    return _lookup(channels, np.minimum(tables, 255).astype(np.uint8))


def _posterize(image: np.ndarray, bits: int) -> np.ndarray:
    return image & np.uint8(256 - (1 << (8 - bits)))


def _solarize(image: np.ndarray, threshold: float) -> np.ndarray:
    _, inverted = cv2.threshold(image, math.ceil(threshold) - 1, 255, cv2.THRESH_BINARY)
    return cv2.bitwise_xor(image, inverted)


def _solarize_add(image: np.ndarray, add: int) -> np.ndarray:
    return cv2.add(image, cv2.threshold(image, 127, add, cv2.THRESH_BINARY_INV)[1])


def _brightness(image: np.ndarray, factor: float) -> np.ndarray:
    return _blend(0, image, factor)


def _contrast(image: np.ndarray, factor: float) -> np.ndarray:
    return _blend(int(cv2.mean(_grey(image))[0] + 0.5), image, factor)


def _grayscale(image: np.ndarray, _: None) -> np.ndarray:
    return cv2.cvtColor(_grey(image), cv2.COLOR_GRAY2RGB) if image.shape[2] == 3 else image


def _color(image: np.ndarray, factor: float) -> np.ndarray:
    return _blend(_grayscale(image, None), image, factor) if image.shape[2] == 3 else image


def _sharpness(image: np.ndarray, factor: float) -> np.ndarray:
    # Smoothed by [[1, 1, 1], [1, 5, 1], [1, 1, 1]] / 13.
    total = cv2.boxFilter(image, cv2.CV_16S, (3, 3), normalize=False).reshape(image.shape)
    total += np.multiply(image, 4, dtype=np.int16)
    smooth = cv2.convertScaleAbs(total, alpha=1 / 13).reshape(image.shape)
    out = _blend(smooth, image, factor).reshape(image.shape)
    for edge in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):  # Pillow does not smooth these
        out[edge] = image[edge]
    return out


def _hue(image: np.ndarray, turns: float) -> np.ndarray:
    if image.shape[2] != 3:
        return image
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] += np.uint8(round(256 * turns) % 256)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


def _lighting(image: np.ndarray, alphas: Sequence[float]) -> np.ndarray:
    if image.shape[2] != 3:
        raise ValueError(
            f"config.augment.lighting needs images of 3 channels, not {image.shape[2]}: write 0.0"
        )
    shifts = PRINCIPAL_COLORS @ alphas
    tables = np.clip(np.rint(VALUES + shifts[:, None]), 0, 255).astype(np.uint8)
    return _lookup(cv2.split(image), tables)


MOVES: dict[str, Callable[[np.ndarray, float, str, int], np.ndarray]] = {
    "ShearX": _shear_x,
    "ShearY": _shear_y,
    "TranslateX": partial(_translate, axis=1),
    "TranslateY": partial(_translate, axis=0),
    "Rotate": _rotate,
}
FUNCTIONS: dict[str, Callable[[np.ndarray, Any], np.ndarray]] = {
    "AutoContrast": _autocontrast,
    "Equalize": _equalize,
    "Invert": lambda image, _: ~image,
    "Posterize": _posterize,
    "Solarize": _solarize,
    "SolarizeAdd": _solarize_add,
    "Brightness": _brightness,
    "Contrast": _contrast,
    "Color": _color,
    "Sharpness": _sharpness,
    "Hue": _hue,
    "Grayscale": _grayscale,
    "Lighting": _lighting,
}
