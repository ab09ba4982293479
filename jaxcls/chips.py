"""What is known of accelerators, which slices of TPUs there are, and what bounds a step on them.

Of TPUs the figures are those of https://docs.cloud.google.com/tpu/docs/NAME (v2, v3, v4, v5e, v5p,
v6e, tpu7x; vCPUs: of the machine types there, in training), but for the memory, which is what their
compiler gives a program (libtpu 0.0.42 says so when one needs more). Where a page does not tell the
interconnect (v3, v4), it is twice the "all-reduce bandwidth per Pod" over the chips of a Pod, as it
is on the pages that tell both. Of GPUs they are those of NVIDIA's data sheets.
"""

import difflib
import math
import re
from typing import NamedTuple

GIB = 2**30


class Chip(NamedTuple):
    """A device of JAX: a chip, or one of its two cores on TPU v2, v3 and 7x. 0: not known."""

    kind: str  # how its `device_kind` begins
    flops: float  # dense peak in half precision, FLOP/s
    memory: float = 0.0  # bytes that a program can have
    bandwidth: float = 0.0  # of the memory, bytes/s
    interconnect: float = 0.0  # with other devices, both ways and over all ports, bytes/s
    ports: int = 1
    vcpus: float = 0.0  # its share of the host's
    slices: str = ""  # "v5e": its slices are called v5e:2x4 and the like
    per_chip: int = 1  # devices in a chip, which is what is rented
    passes: float = 6  # of half precision in the time of a multiplication in float32


# The first whose `kind` begins a device's counts.
CHIPS = (
    Chip("Tesla V100", 125e12, 16 * GIB, 900e9, 300e9, passes=125 / 15.7),  # float16 only
    Chip("NVIDIA A100-SXM4-80GB", 312e12, 80 * GIB, 2039e9, 600e9, passes=312 / 19.5),
    Chip("NVIDIA A100", 312e12, 40 * GIB, 1555e9, 600e9, passes=312 / 19.5),
    Chip("NVIDIA H100 PCIe", 756e12, 80 * GIB, 2000e9, 600e9, passes=756 / 51),
    Chip("NVIDIA H100", 989e12, 80 * GIB, 3350e9, 900e9, passes=989 / 67),
    Chip("NVIDIA H200", 989e12, 141e9, 4800e9, 900e9, passes=989 / 67),
    Chip("NVIDIA B200", 2250e12, 180e9, 8000e9, 1800e9, passes=2250 / 80),
    Chip("TPU v2", 22.5e12, 7.48 * GIB, 350e9, 0, 4, 12, "v2", 2),
    Chip("TPU v3", 61.5e12, 15.48 * GIB, 450e9, 332e9, 4, 12, "v3", 2),
    Chip("TPU v4 lite", 138e12),
    Chip("TPU v4", 275e12, 30.75 * GIB, 1200e9, 537e9, 6, 60, "v4"),
    Chip("TPU v5 lite", 197e12, 15.75 * GIB, 819e9, 400e9, 4, 28, "v5e"),
    Chip("TPU v5e", 197e12, 15.75 * GIB, 819e9, 400e9, 4, 28, "v5e"),
    Chip("TPU v5", 459e12, 95.74 * GIB, 2765e9, 1200e9, 6, 52, "v5p"),
    Chip("TPU v6", 918e12, 31.25 * GIB, 1638e9, 800e9, 4, 45, "v6e"),
    Chip("TPU7x", 1153.5e12, 94.75 * GIB, 3690e9, 600e9, 6, 28, "tpu7x", 2),
)

# Slices that can be had; v4, v5p and 7x also in larger ones of cubes of 4x4x4.
_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16")
SHAPES = {
    "v2": ("2x2", "4x4", "4x8", "8x8", "8x16", "16x16"),
    "v3": ("2x2", "4x4", "4x8", "8x8", "8x16", "16x16", "16x32", "32x32"),
    "v4": _CUBES,
    "v5e": _FLAT,
    "v5p": _CUBES,
    "v6e": _FLAT,
    "tpu7x": _CUBES,
}
# What --accelerator-type of gcloud calls a slice: the name, and what it counts for each chip.
TYPES = {"v2": ("v2", 2), "v3": ("v3", 2), "v4": ("v4", 2), "v5e": ("v5litepod", 1)}
TYPES |= {"v5p": ("v5p", 2), "v6e": ("v6e", 1), "tpu7x": ("tpu7x", 2)}
NAMES = tuple(f"{kind}:{shape}" for kind, shapes in SHAPES.items() for shape in shapes)


def of(device_kind: str) -> Chip | None:
    """Returns what is known of a JAX device, by its `device_kind`; None: nothing."""
    return next((chip for chip in CHIPS if device_kind.startswith(chip.kind)), None)


def shape(name: str) -> tuple[str, tuple[int, ...]]:
    """Returns kind and shape of a slice such as "v5e:2x4": ("v5e", (2, 4)).

    Raises:
      ValueError: there is none of this name; the message has the nearest ones.
    """
    kind, _, sides = name.strip().lower().partition(":")
    cubes = kind in SHAPES and SHAPES[kind] is _CUBES and re.fullmatch(r"\d+x\d+x\d+", sides)
    numbers = tuple(int(n) for n in re.findall(r"\d{1,3}", sides))
    if f"{kind}:{sides}" in NAMES or (cubes and all(n and n % 4 == 0 for n in numbers)):
        return kind, numbers
    raise unknown(name)


def unknown(name: str) -> ValueError:
    """Returns the error for the name of a slice that does not exist."""
    text = name.strip().lower()
    # as gcloud calls it: v5litepod-8, or others do: v5e-8
    named = text.replace("v5e-", "v5litepod-")
    near = [n for n in NAMES if accelerator_type(n.partition(":")[0], size(n)) == named]
    kind, _, sides = text.partition(":")
    if not near and kind in SHAPES:
        chips = math.prod(map(int, re.findall(r"\d+", sides) or [1]))
        same = [n for n in NAMES if n.startswith(f"{kind}:")]
        near = sorted(same, key=lambda n: abs(math.log(size(n) / max(chips, 1))))[:3]
    near = near or difflib.get_close_matches(text, NAMES, 3, 0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"write one such as {NAMES[16]}"
    return ValueError(f"--topology={name}: there is no such slice of TPUs: {hint}")


def size(name: str) -> int:
    """Returns the chips in a slice."""
    return math.prod(map(int, name.partition(":")[2].split("x")))


def accelerator_type(kind: str, chips: int) -> str:
    """Returns what gcloud calls a slice of so many chips: "v5litepod-8"."""
    name, unit = TYPES[kind]
    return f"{name}-{unit * chips}"


def network(chip: Chip, sides: tuple[int, ...] = ()) -> float:
    """Returns the bytes/s that a device of a slice can send, where it has the fewest neighbours.

    A side of a slice is a ring only where it has the Pod's length (16 on v5e and v6e), or in slices
    of whole cubes of 4x4x4; else the devices at its ends have one neighbour there. `()`: a switch.
    """
    cubes = len(sides) == 3 and all(n % 4 == 0 for n in sides)
    links = sum(0 if n == 1 else 2 if cubes or n >= 16 else 1 for n in sides)
    return chip.interconnect / 2 * (min(links / chip.ports, 1) if sides else 1)


def bounds(
    *,
    flops: float,
    passes: float,
    bytes: float,
    sent: float,
    images: int,
    chip: Chip,
    sides: tuple[int, ...] = (),
    input_rate: float = 0.0,
) -> dict[str, float]:
    """Returns the seconds that a step takes at least: {"compute", "memory", "network", "input"}.

    The roofline: each is what one of them would take if it were the only one and never waited. What
    is not known is missing.

    Args:
      flops, bytes, sent: of a device in a step: computed, moved from and to its memory, sent.
      passes: of half precision that a multiplication takes.
      images: of the whole step.
      chip: of the devices.
      sides: of the slice.
      input_rate: images/s that the hosts can prepare together; 0: not known.
    """
    speeds = {
        "compute": (flops * passes, chip.flops),
        "memory": (bytes, chip.bandwidth),
        "network": (sent, network(chip, sides)),
        "input": (images, input_rate),
    }
    return {name: work / speed for name, (work, speed) in speeds.items() if speed}
