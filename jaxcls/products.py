"""How many multiplications a product of XLA's takes, by its attributes in a program's text."""

import math
import re

import numpy as np


def count(op: str, attributes: str, result: list[int], left: list[int], right: list[int]) -> int:
    """Returns the multiplications of a product, without a convolution's with zeros of its padding.

    Args:
      op: "dot" or "convolution".
      attributes: what the text has after the operands.
      result, left, right: dimensions of the result and the operands.
    """
    if op == "dot":
        axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", attributes)
        inner = [left[int(axis)] for axis in axes[1].split(",") if axis] if axes else []
        return math.prod(result) * math.prod(inner)
    labels = re.search(r"dim_labels=(\S+?)(?:,|$)", attributes)[1]
    images, kernel, out = re.split("_|->", labels)
    window = re.search(r"window=\{([^}]*)\}", attributes)
    given = dict(part.split("=") for part in window[1].split()) if window else {}
    total = result[out.index("b")] * result[out.index("f")] * right[kernel.index("i")]
    for axis in range(len(images) - 2):
        of = lambda key, other, axis=axis: given[key].split("x")[axis] if key in given else other
        label = str(axis)
        total *= _taps(
            result[out.index(label)],
            right[kernel.index(label)],
            left[images.index(label)],
            low=int(of("pad", "0_0").split("_")[0]),
            **{key: int(of(key, 1)) for key in ("stride", "lhs_dilate", "rhs_dilate")},
        )
    return total


def _taps(
    out: int, size: int, length: int, *, low: int, stride: int, lhs_dilate: int, rhs_dilate: int
) -> int:
    """Returns how often, over all places of one axis, the kernel meets what is no zero.

    TPUs' batches of products are convolutions whose kernel is as long as the batch, so that it is
    not tried but solved: start + k rhs_dilate is a multiple of lhs_dilate for every m-th k.
    """
    start = np.arange(out, dtype=np.int64) * stride - low
    common = math.gcd(rhs_dilate, lhs_dilate)
    m = lhs_dilate // common
    first = -(start // common) * pow(rhs_dilate // common, -1, m) % m if m > 1 else 0 * start
    least = np.maximum(0, -(start // rhs_dilate))
    most = np.minimum(size - 1, ((length - 1) * lhs_dilate - start) // rhs_dilate)
    met = (most - first) // m - (least - 1 - first) // m
    return int((np.maximum(met, 0) * (start % common == 0)).sum())
