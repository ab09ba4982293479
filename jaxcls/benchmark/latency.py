"""What `predict` says of the calls that it has timed: percentiles, ratios, a table."""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def percentiles(repetitions: Sequence[Sequence[float]], batch: int) -> dict[str, float]:
    """Returns percentiles of calls in milliseconds, and images/s one call after another."""
    seconds = np.concatenate([np.asarray(r, float) for r in repetitions])
    p50, p95, p99 = 1e3 * np.percentile(seconds, (50, 95, 99))
    mean = float(seconds.mean())
    return {"p50_ms": p50, "p95_ms": p95, "p99_ms": p99, "mean_ms": 1e3 * mean,
            "calls": len(seconds), "images_per_sec": batch / mean}  # fmt: skip


def ratio(
    ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]
) -> dict[str, float | None]:
    """Returns how many times as fast as `theirs` calls are: the median repetition, and range."""
    each = [np.median(b) / np.median(a) for a, b in zip(ours, theirs)]
    if not each:
        return {"ratio": None, "ratio_low": None, "ratio_high": None}
    low, median, high = map(float, np.percentile(each, (0, 50, 100)))
    return {"ratio": median, "ratio_low": low, "ratio_high": high}


HEADER = (
    f"  {'format':<10} {'precision':<9} {'batch':>5} {'p50 ms':>9} {'p95 ms':>9} {'p99 ms':>9} "
    f"{'images/s':>9} {'times as fast':>22} {'file MB':>8} {'memory MB':>9}"
)


def as_text(row: Mapping[str, Any]) -> str:
    """Returns a row of the table."""
    text = f"  {row.get('format', ''):<10} {row.get('precision', ''):<9} {row.get('batch', ''):>5} "
    if row.get("error"):
        return f"{text}{row['error']}"
    text += "".join(f"{row[key]:>9.2f} " for key in ("p50_ms", "p95_ms", "p99_ms"))
    text += f"{row['images_per_sec']:>9.1f} "
    spread = ""
    if row["ratio"] is not None:
        spread = f"{row['ratio']:.2f} ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})"
    return (
        f"{text}{spread:>22} {row['file_bytes'] / 1e6:>8.1f} {row['memory_bytes'] / 1e6:>9.0f}"
    ).rstrip()


def headline(row: Mapping[str, Any]) -> str:
    """Returns what is said of a network above its rows."""
    if "params" not in row:
        return str(row["model"])
    text = f"{row['model']}: {row['size']} x {row['size']} pixels, {row['params'] / 1e6:.2f} M "
    text += f"parameters, {row['macs'] / 1e9:.3f} G multiply-adds"
    if row["top1"] is not None:
        text += f", top-1 {row['top1']:.2f} % ({row['top1_from']})"
    return text


def introduction(options: argparse.Namespace) -> list[str]:
    """Returns what is said above the table."""
    where = "images and answers stay on the device" if options.no_transfers else (
        "from uint8 images in memory to probabilities there, transfers included"
    )  # fmt: skip
    return [
        f"{options.threads} thread(s), {options.repetitions} x {options.seconds:g} s of each, in "
        f"turn, each in its own process; a call is {where}",
        f"times as fast: as {options.baseline} in the same run, median repetition (least to most); "
        "memory is the peak of the process, or of the device where it is told",
    ]
