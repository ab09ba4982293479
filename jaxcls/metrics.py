"""What a run reports: means over a window, metrics.jsonl, TensorBoard, the console."""

import json
import math
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from etils import epath
from tqdm import tqdm

LAST = ("lr", "skipped", "loss_scale")  # reported as they stand; everything else as a mean


class Window:
    """Means over the steps since the last line of the log.

    `sums` is a part of every checkpoint, so that a resumed run writes the same lines.
    """

    def __init__(self, sums: dict[str, list[float]] | None = None):
        self.sums = dict(sums or {})  # name -> [sum, count]
        self.restart_clock()

    def restart_clock(self) -> None:
        """Forgets the time that has passed: an evaluation, a checkpoint."""
        self.started, self.waited, self.images = time.perf_counter(), 0.0, 0

    def add(self, metrics: dict[str, float], images: int) -> None:
        """Adds a step; values that are not finite (of a skipped step) are left out."""
        self.images += images
        for name, value in metrics.items():
            if name not in LAST and math.isfinite(value):
                total, count = self.sums.get(name, (0.0, 0))
                self.sums[name] = [total + value, count + 1]

    def flush(self) -> dict[str, float]:
        """Returns the means, images/s and the share of time spent waiting for data; starts anew."""
        seconds = max(time.perf_counter() - self.started, 1e-9)
        line = {name: total / count for name, (total, count) in self.sums.items()}
        line |= {"images_per_sec": self.images / seconds, "data_wait": self.waited / seconds}
        self.sums = {}
        self.restart_clock()
        return line


class Writer:
    """metrics.jsonl and TensorBoard events of one working directory; only one process writes.

    A remote working directory (gs://...) has local copies, which `sync` copies there.
    """

    def __init__(
        self, workdir: epath.Path, *, tensorboard: bool, from_step: int, evaluated: dict | None
    ):
        """Opens the files; what was written after `from_step` is removed.

        Args:
          workdir: local or remote.
          tensorboard: write events too.
          from_step: where the run goes on.
          evaluated: the last evaluation that its checkpoint knows.
        """
        self.remote = workdir if "://" in os.fspath(workdir) else None
        self.local = Path(tempfile.mkdtemp(prefix="jaxcls-")) if self.remote else Path(workdir)
        path = self.local / "metrics.jsonl"
        if self.remote and (self.remote / "metrics.jsonl").exists():
            path.write_bytes((self.remote / "metrics.jsonl").read_bytes())
        cut_back(path, from_step, evaluated["step"] if evaluated else 0)
        self.file = path.open("a")
        self.board = None
        if tensorboard:
            from tensorboardX import SummaryWriter

            # events after the restored step are those of a run that was cut off
            purge = {"purge_step": from_step + 1} if from_step else {}
            self.board = SummaryWriter(str(self.local / "tensorboard"), **purge)

    def write(self, step: int, epoch: float, split: str, metrics: dict[str, Any]) -> None:
        """Appends a line {"step", "epoch", "split", ...}."""
        line = {"step": step, "epoch": round(epoch, 6), "split": split, **metrics}
        self.file.write(json.dumps(_plain(line)) + "\n")
        self.file.flush()
        if self.board:
            for name, value in metrics.items():
                if value is not None and math.isfinite(value):
                    self.board.add_scalar(f"{split}/{name}", value, step)

    def sync(self) -> None:
        """Makes everything written durable, before a checkpoint that counts on it."""
        self.file.flush()
        os.fsync(self.file.fileno())
        if self.board:
            self.board.flush()
        if self.remote:
            for path in self.local.rglob("*"):
                if path.is_file():
                    target = self.remote / path.relative_to(self.local)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(path.read_bytes())

    def close(self) -> None:
        """Syncs and closes the files."""
        self.sync()
        self.file.close()
        if self.board:
            self.board.close()
        if self.remote:
            shutil.rmtree(self.local)


def _plain(line: dict[str, Any]) -> dict[str, Any]:
    # JSON has no NaN and no infinity
    return {
        k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()
    }


def cut_back(path: Path, step: int, evaluated: int) -> None:
    """Removes the lines after `step` from a metrics.jsonl, and a last line that was cut off.

    An evaluation at `step` itself stays only if `evaluated`, the last one in the checkpoint, is it.
    """
    if not path.exists():
        return
    last = {"train": step, "eval": min(step, evaluated)}
    kept = []
    for line in path.read_text().splitlines(keepends=True):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if line.endswith("\n") and entry["step"] <= last[entry["split"]]:
            kept.append(line)
    write_atomically(path, "".join(kept))


def write_atomically(path: Path | epath.Path, text: str) -> None:
    """Writes a small file so that it is there whole or not at all."""
    temporary = path.parent / (path.name + ".tmp")
    temporary.write_text(text)
    temporary.replace(path)


class Console:
    """A progress bar on a terminal, plain lines otherwise; silent in all processes but one."""

    def __init__(self, total: int, start: int, enabled: bool):
        self.enabled, self.total = enabled, total
        self.bar = None
        if enabled and sys.stderr.isatty():
            self.bar = tqdm(
                total=total, initial=start, unit="step", dynamic_ncols=True, smoothing=0.1
            )

    def advance(self, step: int) -> None:
        """Moves the bar to `step`."""
        if self.bar:
            self.bar.update(step - self.bar.n)

    def report(self, step: int, epoch: float, split: str, metrics: dict[str, Any]) -> None:
        """Shows a line of the log."""
        if not self.enabled:
            return
        short = {
            k: f"{v:.4g}" for k, v in metrics.items() if k not in ("finite", "skipped_in_a_row")
        }
        if split == "train" and self.bar:
            shown = ("loss", "top1", "top1_mixed", "images_per_sec")
            self.bar.set_postfix({k: short[k] for k in shown if k in short})
            return
        text = " ".join(f"{k}={v}" for k, v in short.items())
        self.say(f"{split:<5} step {step}/{self.total} epoch {epoch:.2f}: {text}")

    def say(self, text: str) -> None:
        """Prints a line, above the bar where there is one."""
        if not self.enabled:
            return
        if self.bar:
            self.bar.write(text)
        else:
            print(text, flush=True)

    def close(self) -> None:
        """Ends the bar."""
        if self.bar:
            self.bar.close()
