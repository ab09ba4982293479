"""Image transformations: AutoAugment, RandAugment, AugMix, colour jitter, rotation, lighting.

They work on the host, after crop and resize. What happens to an image is drawn first, as a list of
ops with their arguments, and then applied by jaxcls/data/primitives.py.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from jaxcls.config import bound, choose, expect
from jaxcls.data.primitives import INTERPOLATION, Op, apply

# Sub-policies of AutoAugment: ops with their probability and magnitude, 0 to 9, as they are printed
# in the appendix of the paper (also magnitudes of ops that take none).
IMAGENET = (
    (("Posterize", 0.4, 8), ("Rotate", 0.6, 9)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 5)),
    (("Equalize", 0.8, 8), ("Equalize", 0.6, 3)),
    (("Posterize", 0.6, 7), ("Posterize", 0.6, 6)),
    (("Equalize", 0.4, 7), ("Solarize", 0.2, 4)),
    (("Equalize", 0.4, 4), ("Rotate", 0.8, 8)),
    (("Solarize", 0.6, 3), ("Equalize", 0.6, 7)),
    (("Posterize", 0.8, 5), ("Equalize", 1.0, 2)),
    (("Rotate", 0.2, 3), ("Solarize", 0.6, 8)),
    (("Equalize", 0.6, 8), ("Posterize", 0.4, 6)),
    (("Rotate", 0.8, 8), ("Color", 0.4, 0)),
    (("Rotate", 0.4, 9), ("Equalize", 0.6, 2)),
    (("Equalize", 0.0, 7), ("Equalize", 0.8, 8)),
    (("Invert", 0.6, 4), ("Equalize", 1.0, 8)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Rotate", 0.8, 8), ("Color", 1.0, 2)),
    (("Color", 0.8, 8), ("Solarize", 0.8, 7)),
    (("Sharpness", 0.4, 7), ("Invert", 0.6, 8)),
    (("ShearX", 0.6, 5), ("Equalize", 1.0, 9)),
    (("Color", 0.4, 0), ("Equalize", 0.6, 3)),
    (("Equalize", 0.4, 7), ("Solarize", 0.2, 4)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 5)),
    (("Invert", 0.6, 4), ("Equalize", 1.0, 8)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Equalize", 0.8, 8), ("Equalize", 0.6, 3)),
)
CIFAR10 = (
    (("Invert", 0.1, 7), ("Contrast", 0.2, 6)),
    (("Rotate", 0.7, 2), ("TranslateX", 0.3, 9)),
    (("Sharpness", 0.8, 1), ("Sharpness", 0.9, 3)),
    (("ShearY", 0.5, 8), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.5, 8), ("Equalize", 0.9, 2)),
    (("ShearY", 0.2, 7), ("Posterize", 0.3, 7)),
    (("Color", 0.4, 3), ("Brightness", 0.6, 7)),
    (("Sharpness", 0.3, 9), ("Brightness", 0.7, 9)),
    (("Equalize", 0.6, 5), ("Equalize", 0.5, 1)),
    (("Contrast", 0.6, 7), ("Sharpness", 0.6, 5)),
    (("Color", 0.7, 7), ("TranslateX", 0.5, 8)),
    (("Equalize", 0.3, 7), ("AutoContrast", 0.4, 8)),
    (("TranslateY", 0.4, 3), ("Sharpness", 0.2, 6)),
    (("Brightness", 0.9, 6), ("Color", 0.2, 8)),
    (("Solarize", 0.5, 2), ("Invert", 0.0, 3)),
    (("Equalize", 0.2, 0), ("AutoContrast", 0.6, 0)),
    (("Equalize", 0.2, 8), ("Equalize", 0.6, 4)),  # PaddleClas: 0.8, 4
    (("Color", 0.9, 9), ("Equalize", 0.6, 6)),
    (("AutoContrast", 0.8, 4), ("Solarize", 0.2, 8)),
    (("Brightness", 0.1, 3), ("Color", 0.7, 0)),
    (("Solarize", 0.4, 5), ("AutoContrast", 0.9, 3)),
    (("TranslateY", 0.9, 9), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.9, 2), ("Solarize", 0.8, 3)),
    (("Equalize", 0.8, 8), ("Invert", 0.1, 3)),
    (("TranslateY", 0.7, 9), ("AutoContrast", 0.9, 1)),
)
SVHN = (
    (("ShearX", 0.9, 4), ("Invert", 0.2, 3)),
    (("ShearY", 0.9, 8), ("Invert", 0.7, 5)),
    (("Equalize", 0.6, 5), ("Solarize", 0.6, 6)),
    (("Invert", 0.9, 3), ("Equalize", 0.6, 3)),
    (("Equalize", 0.6, 1), ("Rotate", 0.9, 3)),
    (("ShearX", 0.9, 4), ("AutoContrast", 0.8, 3)),
    (("ShearY", 0.9, 8), ("Invert", 0.4, 5)),
    (("ShearY", 0.9, 5), ("Solarize", 0.2, 6)),
    (("Invert", 0.9, 6), ("AutoContrast", 0.8, 1)),
    (("Equalize", 0.6, 3), ("Rotate", 0.9, 3)),
    (("ShearX", 0.9, 4), ("Solarize", 0.3, 3)),
    (("ShearY", 0.8, 8), ("Invert", 0.7, 4)),
    (("Equalize", 0.9, 5), ("TranslateY", 0.6, 6)),
    (("Invert", 0.9, 4), ("Equalize", 0.6, 7)),
    (("Contrast", 0.3, 3), ("Rotate", 0.8, 4)),
    (("Invert", 0.8, 5), ("TranslateY", 0.0, 2)),
    (("ShearY", 0.7, 6), ("Solarize", 0.4, 8)),
    (("Invert", 0.6, 4), ("Rotate", 0.8, 4)),
    (("ShearY", 0.3, 7), ("TranslateX", 0.9, 3)),
    (("ShearX", 0.1, 6), ("Invert", 0.6, 5)),
    (("Solarize", 0.7, 2), ("TranslateY", 0.6, 7)),
    (("ShearY", 0.8, 4), ("Invert", 0.8, 8)),
    (("ShearX", 0.7, 9), ("TranslateY", 0.8, 3)),
    (("ShearY", 0.8, 5), ("AutoContrast", 0.7, 3)),
    (("ShearX", 0.7, 2), ("Invert", 0.1, 5)),
)

# -- From magnitudes to arguments ------------------------------------------------------------------

Argument = Callable[[float, int], Any]  # (level in [0, 1], sign 1 or -1) -> what the op takes


def _signed(most: float) -> Argument:
    return lambda level, sign: sign * most * level


_SHEARS = ("ShearX", "ShearY")
_TRANSLATIONS = ("TranslateX", "TranslateY")
_FACTORS = ("Brightness", "Contrast", "Color", "Sharpness")
# Posterize keeps at least one bit: without any the image is black (and Pillow refuses).
_RANDAUGMENT: dict[str, Argument] = {
    **dict.fromkeys(_SHEARS, _signed(0.3)),
    **dict.fromkeys(_TRANSLATIONS, _signed(150 / 331)),
    "Rotate": _signed(30),
    "Posterize": lambda level, sign: max(4 - int(4 * level), 1),
    "Solarize": lambda level, sign: 256 - int(256 * level),
    "SolarizeAdd": lambda level, sign: int(110 * level),
    **dict.fromkeys(_FACTORS, lambda level, sign: 1 + sign * 0.9 * level),
}
_TIMM = _RANDAUGMENT | dict.fromkeys(_TRANSLATIONS, _signed(0.45))
SCALES = {
    "randaugment": _RANDAUGMENT,
    "autoaugment": _RANDAUGMENT
    | {
        "Posterize": lambda level, sign: 8 - round(4 * level),
        "Solarize": lambda level, sign: 256 * (1 - level),
    },
    "augmix": _RANDAUGMENT | dict.fromkeys(_TRANSLATIONS, _signed(1 / 3)),
    "timm_inc1": _TIMM,
    "timm_inc0": _TIMM
    | dict.fromkeys(_FACTORS, lambda level, sign: 0.1 + 1.8 * level)
    | {
        "Posterize": lambda level, sign: max(int(4 * level), 1),
        "Solarize": lambda level, sign: int(256 * level),
    },
}
AUGMIX_OPS = (
    *("AutoContrast", "Equalize", "Posterize", "Rotate", "Solarize"),
    *("ShearX", "ShearY", "TranslateX", "TranslateY"),
)
RANDAUGMENT_OPS = (*AUGMIX_OPS, "Invert", "Brightness", "Contrast", "Color", "Sharpness")
TIMM_OPS = (*RANDAUGMENT_OPS, "SolarizeAdd")


def op(scale: str, name: str, level: float, side: float) -> Op:
    """Returns the op at `level` in [0, 1] of a scale, to the positive side if `side` < 0.5."""
    argument = SCALES[scale].get(name)  # none: the op takes nothing
    return name, argument and argument(level, 1 if side < 0.5 else -1)


# -- What is drawn for an image --------------------------------------------------------------------


def between(low: float, high: float) -> Any:
    """Returns a field that is a key of `config.augment`, with the numbers that it may be."""
    return dataclasses.field(metadata={"limits": (low, high)}, kw_only=True)


class Keys:
    """A dataclass of keys of `config.augment`, which are refused where they are out of range."""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value, limits = getattr(self, field.name), field.metadata.get("limits")
            if limits and value is not None:
                want = f"a number from {limits[0]:g} to {limits[1]:g}"
                right = limits[0] <= value <= limits[1]
                expect(right, f"augment.{field.name}", value, want)


@dataclasses.dataclass(frozen=True)
class AutoAugment:
    """One of the sub-policies, all equally likely; each of its ops with the op's own probability.

    Cubuk et al. 2018, arXiv:1805.09501. Magnitudes 0 to 9 divide the ranges into 9 equal parts, as
    in PaddleClas: shear 0.3, translation 150/331, rotation 30 degrees and factors 1 +- 0.9 with a
    random sign (PaddleClas rotates to one side only), posterize from 8 bits to 4, solarize from 256
    to 0.
    """

    policy: Sequence[tuple[tuple[str, float, int], ...]]

    def draw(self, rng: np.random.Generator) -> list[Op]:
        """Returns the ops for an image."""
        which, *chances = rng.random(5).tolist()
        sub_policy = self.policy[int(which * len(self.policy))]
        return [
            op("autoaugment", name, magnitude / 9, side)
            for (name, prob, magnitude), chance, side in zip(sub_policy, chances[:2], chances[2:])
            if chance < prob
        ]


@dataclasses.dataclass(frozen=True)
class RandAugment(Keys):
    """`num_layers` ops, each drawn from all of them with equal probability.

    Cubuk et al. 2019, arXiv:1909.13719, with PaddleClas's 14 ops and ranges at magnitude 5. At
    others, more is always further from the original; PaddleClas posterizes and solarizes less.
    """

    num_layers: int = between(1, 100)
    magnitude: float = between(0, 10)
    scale: str = "randaugment"  # of SCALES
    ops: Sequence[str] = RANDAUGMENT_OPS
    prob: float = 1.0  # of each op to be applied
    std: float = 0.0  # of the magnitude of each op

    def draw(self, rng: np.random.Generator) -> list[Op]:
        """Returns the ops for an image."""
        ops = []
        for which, chance, side in rng.random((self.num_layers, 3)).tolist():
            magnitude = self.magnitude + (self.std * rng.standard_normal() if self.std else 0.0)
            if chance < self.prob:
                level = min(max(magnitude, 0.0), 10.0) / 10
                ops.append(op(self.scale, self.ops[int(which * len(self.ops))], level, side))
        return ops


@dataclasses.dataclass(frozen=True)
class AugMix(Keys):
    """The image mixed with `width` chains of `depth` ops, at random magnitudes up to `severity`.

    Hendrycks et al. 2020, arXiv:1912.02781: weights of the chains from Dirichlet(alpha, ...), of
    their sum from Beta(alpha, alpha). Without the loss that goes with it in the paper. Angles and
    translations are not rounded to whole degrees and pixels.
    """

    width: int = between(1, 100)
    depth: int = between(0, 100)  # 0: 1 to 3
    severity: float = between(0.1, 10)
    alpha: float = between(1e-3, 1e3)

    def draw(self, rng: np.random.Generator) -> list[Op]:
        """Returns the one op AugMix."""
        weights = rng.dirichlet([self.alpha] * self.width).tolist()
        share = rng.beta(self.alpha, self.alpha)
        return [("AugMix", (share, tuple((w, self._chain(rng)) for w in weights)))]

    def _chain(self, rng: np.random.Generator) -> list[Op]:
        return [
            op(
                "augmix",
                AUGMIX_OPS[int(which * len(AUGMIX_OPS))],
                (0.1 + (self.severity - 0.1) * size) / 10,
                side,
            )
            for which, size, side in rng.random((self.depth or rng.integers(1, 4), 3)).tolist()
        ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augment(Keys):
    """(image, rng) -> image: rotation, policy, colour jitter, grey and lighting, in this order.

    Brightness, Contrast and Color are by factors uniform in [max(0, 1 - j), 1 + j] and Hue uniform
    in +-j, in a random order; j = 0: not that one. Lighting is three normal numbers (Krizhevsky et
    al. 2012). Authors differ in the interpolation: AugMix has "bilinear" and AutoAugment "nearest";
    PaddleClas shears with bicubic interpolation and takes the nearest pixel otherwise; timm draws
    between bilinear and bicubic.
    """

    policy: AutoAugment | RandAugment | AugMix | None
    prob: float | None = between(0, 1)  # None: 1, of AugMix 0.5
    interpolation: str  # of Shear, Translate and Rotate
    fill: int = between(0, 255)  # their grey level outside of the image
    rotation: float = between(0, 180)  # degrees to each side at most
    rotation_prob: float = between(0, 1)
    color_jitter: Sequence[float]
    color_jitter_prob: float = between(0, 1)
    grayscale: float = between(0, 1)  # probability
    lighting: float = between(0, 10)  # standard deviation

    def __post_init__(self):
        super().__post_init__()
        jitter = self.color_jitter
        right = len(jitter) == 4 and all(0 <= j <= 10 for j in jitter) and jitter[3] <= 0.5
        want = "(brightness, contrast, saturation, hue), from 0 to 10 and hue at most 0.5"
        expect(right, "augment.color_jitter", jitter, want)
        choose("config.augment.interpolation", self.interpolation, INTERPOLATION)

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return apply(image, self.draw(rng), interpolation=self.interpolation, fill=self.fill)

    def draw(self, rng: np.random.Generator) -> list[Op]:
        """Returns the ops for an image."""
        ops = []
        if self.rotation and rng.random() < self.rotation_prob:
            ops.append(("Rotate", rng.uniform(-self.rotation, self.rotation)))
        if self.policy:
            usual = 0.5 if isinstance(self.policy, AugMix) else 1.0
            if rng.random() < (usual if self.prob is None else self.prob):
                ops += self.policy.draw(rng)
        if any(self.color_jitter) and rng.random() < self.color_jitter_prob:
            ops += self._jitter(rng)
        if self.grayscale and rng.random() < self.grayscale:
            ops.append(("Grayscale", None))
        if self.lighting:
            ops.append(("Lighting", rng.normal(0, self.lighting, 3)))
        return ops

    def _jitter(self, rng: np.random.Generator) -> list[Op]:
        *ranges, hue = self.color_jitter
        ops = [
            (name, rng.uniform(max(0.0, 1 - most), 1 + most))
            for name, most in zip(("Brightness", "Contrast", "Color"), ranges)
            if most
        ]
        if hue:
            ops.append(("Hue", rng.uniform(-hue, hue)))
        return [ops[i] for i in rng.permutation(len(ops))]


# -- From the config -------------------------------------------------------------------------------


def make(
    *,
    policy: str,
    rotation: float,
    color_jitter: Sequence[float],
    grayscale: float,
    lighting: float,
    channels: int = 3,
    **keys: Any,
) -> Augment | None:
    """Returns the transformation of `config.augment`, or None where it is off.

    It is `f(image, rng) -> image`, uint8 [H, W, C] of the same shape; the image that it is given
    stays as it is.

    Args:
      policy, ...: `config.augment`: a name of `POLICIES`, and what that and `Augment` take.
      channels: of the images.

    Raises:
      ValueError: here for unknown names, values out of range, keys that are not used, and what
        changes colours where there are none (lighting of grey images, all but rotation of images of
        four channels); from `f` for lighting of images that have not three channels.
    """
    kind = TIMM if policy.split("-")[0] == "rand" else policy
    method = POLICIES[choose("config.augment.policy", kind, POLICIES)]
    method = partial(method, policy) if kind == TIMM else method
    used = ["prob"] * bool(policy) + ["interpolation", "fill"] * bool(policy or rotation)
    used += ["rotation_prob"] * bool(rotation) + ["color_jitter_prob"] * any(color_jitter)
    [method] = bound("augment", policy or "no policy", [method], keys, used)
    augment = Augment(
        policy=method(),
        rotation=rotation,
        color_jitter=color_jitter,
        grayscale=grayscale,
        lighting=lighting,
        **{f.name: keys[f.name] for f in dataclasses.fields(Augment) if f.name in keys},
    )
    refused = {
        "policy": channels == 4 and policy,
        "color_jitter": channels == 4 and any(color_jitter) and color_jitter,
        "grayscale": channels == 4 and grayscale,
        "lighting": channels != 3 and lighting,
    }
    for key, value in refused.items():
        if value:
            none = (0.0,) * 4 if key == "color_jitter" else type(value)()
            raise ValueError(
                f"config.augment.{key} = {value!r} is for images of 3 channels, these have "
                f"{channels} (config.image.mean): write {none!r}"
            )
    off = not (policy or rotation or any(color_jitter) or grayscale or lighting)
    return None if off else augment


def timm_policy(notation: str) -> RandAugment:
    """Returns the RandAugment of timm's notation, such as "rand-m9-mstd0.5-inc1".

    Its parts, in any order: m magnitude (10), n ops for an image (2), p probability of each op to
    be applied (0.5), mstd standard deviation of its magnitude (0), inc 1: the larger the magnitude,
    the further from the original (0: posterize and solarize do less then, and factors run from 0.1
    to 1.9).

    Raises:
      ValueError: another part, or a value out of range.
    """
    values = {"m": 10.0, "n": 2.0, "p": 0.5, "mstd": 0.0, "inc": 0.0}
    limits = {"m": (0, 10), "n": (1, 100), "p": (0, 1), "mstd": (0, 10), "inc": (0, 1)}
    _, *parts = notation.split("-")
    if not parts:
        raise ValueError(
            f'config.augment.policy = {notation!r}: write "randaugment" for RandAugment with '
            f"config.augment.num_layers and magnitude, or timm's notation with its parts: {TIMM!r}"
        )
    seen = set()
    for part in parts:
        found = re.fullmatch(r"([a-z]+)(\d+(?:\.\d+)?)", part)
        key, number = (found[1], float(found[2])) if found else (part, math.nan)
        whole = key not in ("n", "inc") or number.is_integer()
        known = key in limits and key not in seen
        if not known or not (limits[key][0] <= number <= limits[key][1] and whole):
            raise ValueError(
                f"config.augment.policy = {notation!r}: {part!r} is not understood; write m0 to "
                f"m10, n1 to n100, p0 to p1, mstd0 to mstd10, inc0 or inc1: {TIMM!r}"
            )
        values[key] = number
        seen.add(key)
    return RandAugment(
        num_layers=int(values["n"]),
        magnitude=values["m"],
        scale="timm_inc1" if values["inc"] else "timm_inc0",
        ops=TIMM_OPS,
        prob=values["p"],
        std=values["mstd"],
    )


SUB_POLICIES = {"autoaugment": IMAGENET, "autoaugment_cifar10": CIFAR10, "autoaugment_svhn": SVHN}
TIMM = "rand-m9-mstd0.5-inc1"  # stands for every policy in timm's notation
POLICIES = {
    "": lambda: None,
    **{name: partial(AutoAugment, table) for name, table in SUB_POLICIES.items()},
    "randaugment": RandAugment,
    "augmix": AugMix,
    TIMM: timm_policy,
}
