"""What a run reports: means over a window, metrics.jsonl, TensorBoard, the summary."""

import collections
import contextlib
import functools
import hashlib
import io
import json
import math
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import flax
import jax
from clu import parameter_overview
from etils import epath
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

import jaxcls
from jaxcls import files
from jaxcls.config import Plan, due
from jaxcls.console import Console, command, hints
from jaxcls.starts import TIMES
from jaxcls.watch import Watch

MEASURED = ("time", "images_per_sec", "data_wait")  # of a line; the rest is the same in every run
LAST = ("lr", "skipped", "loss_scale")  # reported as they stand; everything else as a mean


class Log:
    """The log of a training run. Every process has one; process 0 writes and shows it."""

    def __init__(
        self,
        workdir: epath.Path,
        plan: Plan,
        *,
        max_skipped: int,
        tensorboard: bool,
        from_step: int,
        meta: dict[str, Any],
        console: Console,
        watch: Watch,
        evaluation: dict[str, Any] | None,
    ):
        """Opens the files; what was written after `from_step` is removed.

        Args:
          workdir: local or remote.
          plan: of the run.
          max_skipped: skipped steps in a row that stop the run.
          tensorboard: write events too.
          from_step: where the run goes on.
          meta: of its checkpoint: the window, the lines of the log.
          evaluation: the last one that the checkpoints know.
          console: shows the lines.
          watch: is told of each step, and of what is none.

        Raises:
          ValueError: the log that is there is damaged.
        """
        enabled = jax.process_index() == 0
        self.plan, self.max_skipped = plan, max_skipped
        self.window = Window(meta["window"])
        self.waiting: collections.deque = collections.deque()  # (step, metrics on the device)
        self.console, self.watch, self.from_step = console, watch, from_step
        console.begin(plan.total_steps)
        self.writer = None
        if enabled:
            self.writer = Writer(
                workdir,
                tensorboard=tensorboard,
                from_step=from_step,
                evaluation=evaluation,
                known=meta["log"],
            )

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Takes the metrics of a step without waiting for them."""
        self.waiting.append((step, metrics))

    def drain(self, keep: int) -> None:
        """Reads the metrics of all but the last `keep` steps; writes the lines that are due.

        It is called once before each step.

        Raises:
          FloatingPointError: too many steps in a row were not finite.
        """
        self.watch.step(self.waiting[-1][0] if self.waiting else self.from_step)
        while len(self.waiting) > keep:
            step, metrics = self.waiting.popleft()
            values = {name: float(v) for name, v in jax.device_get(metrics).items()}
            values["skipped"] = int(values["skipped"])
            if values.pop("skipped_in_a_row") >= self.max_skipped:
                raise FloatingPointError(_diverged(step, values, self.max_skipped))
            if not values.pop("finite"):  # a skipped step has no part in the means
                values = {k: v if k in LAST else math.nan for k, v in values.items()}
            if step == self.from_step + 1:
                self.window.restart_clock()  # compilation has no part in the throughput
                self.window.add(values, 0)
            else:
                self.window.add(values, self.plan.batch_size)
            latest = {k: values[k] for k in LAST}
            self.console.step(step, self.plan.epoch(step), self.window.means() | latest)
            if due(step, self.plan.log_every, self.plan.total_steps):
                self.report(step, "train", self.window.flush() | latest)

    @contextlib.contextmanager
    def paused(self, doing: str) -> Iterator[None]:
        """Counts the time inside to no step: an evaluation, a checkpoint."""
        with self.window.paused(), self.watch.paused(doing):
            yield

    def evaluating(self, images: int) -> None:
        """Shows how far an evaluation is."""
        self.watch.alive()
        self.console.evaluating(images)

    def report(self, step: int, split: str, metrics: dict[str, Any]) -> None:
        """Writes and shows a line."""
        if self.writer:
            self.writer.write(step, self.plan.epoch(step), split, metrics)
        self.console.report(step, self.plan.epoch(step), split, metrics)

    def sync(self) -> dict[str, Any]:
        """Makes everything written durable, and returns what a checkpoint knows of the log."""
        if not self.writer:
            return {}
        self.writer.sync()
        return self.writer.known

    def known(self) -> dict[str, Any]:
        """Makes everything written durable, and returns what a checkpoint knows besides."""
        in_steps = round(self.watch.in_steps, 3)
        return {"log": self.sync(), "window": self.window.sums, "in_steps": in_steps}

    def close(self) -> None:
        """Syncs and closes everything."""
        self.watch.close()
        self.console.close()
        if self.writer:
            self.writer.close()


def _diverged(step: int, values: dict[str, float], skipped: int) -> str:
    """Returns what to tell a user whose run is no longer finite."""
    if skipped == 1:
        what = "loss or gradients are"
        advice = "lower config.lr.peak, lengthen config.lr.warmup or set config.optim.clip_norm"
    else:
        what = f"{skipped} steps in a row were"
        advice = (
            f"the loss scale is {values['loss_scale']:g}: lower config.lr.peak, or compute in "
            "bfloat16"
        )
    return (
        f"step {step}: {what} not finite (loss {values['loss']:g}, gradient norm "
        f"{values['grad_norm']:g}, learning rate {values['lr']:.4g}); {advice}"
    )


class Window:
    """Means over the steps since the last line of the log.

    `sums` is a part of every checkpoint, so that a resumed run writes the same lines.
    """

    def __init__(self, sums: dict[str, list[float]] | None = None):
        self.sums = dict(sums or {})  # name -> [sum, count]
        self.restart_clock()

    def restart_clock(self) -> None:
        """Begins to measure anew."""
        self.started, self.waited, self.images = time.perf_counter(), 0.0, 0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time inside as waiting for data."""
        began = time.perf_counter()
        yield
        self.waited += time.perf_counter() - began

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves out the time inside: an evaluation, a checkpoint."""
        began = time.perf_counter()
        yield
        self.started += time.perf_counter() - began

    def add(self, metrics: dict[str, float], images: int) -> None:
        """Adds a step; values that are not finite (of a skipped step) have no part in the means."""
        self.images += images
        for name, value in metrics.items():
            if name not in LAST:
                total, count = self.sums.get(name, (0.0, 0))
                finite = math.isfinite(value)
                self.sums[name] = [total + value, count + 1] if finite else [total, count]

    def means(self) -> dict[str, float]:
        """Returns the means, images/s and the share of time spent waiting for data.

        The latter two are NaN where nothing was measured: after the step that was compiled.
        """
        seconds = max(time.perf_counter() - self.started, 1e-9) if self.images else math.nan
        line = {
            name: total / count if count else math.nan for name, (total, count) in self.sums.items()
        }
        return line | {"images_per_sec": self.images / seconds, "data_wait": self.waited / seconds}

    def flush(self) -> dict[str, float]:
        """Returns the `means` and starts anew."""
        line = self.means()
        self.sums = {}
        self.restart_clock()
        return line


class Writer:
    """metrics.jsonl and TensorBoard events of one working directory; only one process writes.

    A remote working directory (gs://...) has local copies, which `sync` copies there.
    """

    def __init__(
        self,
        workdir: epath.Path,
        *,
        tensorboard: bool,
        from_step: int,
        evaluation: dict[str, Any] | None,
        known: dict[str, Any] | None,
    ):
        self.remote = workdir if "://" in os.fspath(workdir) else None
        self.local = Path(tempfile.mkdtemp(prefix="jaxcls-")) if self.remote else Path(workdir)
        path = self.local / "metrics.jsonl"
        if self.remote and (there := self.remote / "metrics.jsonl").exists():
            path.write_bytes(files.patiently(there.read_bytes, there, print))
        self.known = cut_back(path, from_step, evaluation, known)
        self.file = path.open("a")
        self.board = None
        if tensorboard:
            # Not SummaryWriter: its thread would die of a full disk, and the run then wait for it.
            from tensorboardX.event_file_writer import EventsWriter

            folder = self.local / "tensorboard"
            folder.mkdir(exist_ok=True)
            self.board = EventsWriter(str(folder / "events"), f".{os.getpid()}")
            # hides the events after the restored step, of a run that was cut off
            self._event(from_step + 1, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, epoch: float, split: str, metrics: dict[str, Any]) -> None:
        """Appends a line {"step", "epoch", "split", "time", ...}; time is in seconds since 1970."""
        now = round(time.time(), 3)
        line = {"step": step, "epoch": round(epoch, 6), "split": split, "time": now, **metrics}
        self.file.write(json.dumps(plain(line)) + "\n")
        self.file.flush()
        self.known = chain(self.known, plain(line))
        if self.board:
            finite = {k: v for k, v in metrics.items() if v is not None and math.isfinite(v)}
            values = [Summary.Value(tag=f"{split}/{k}", simple_value=v) for k, v in finite.items()]
            self._event(step, summary=Summary(value=values))

    def _event(self, step: int, **what: Any) -> None:
        self.board.write_event(Event(wall_time=time.time(), step=step, **what))

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
                    copy = functools.partial(_copy, path, target)
                    files.patiently(copy, target, print, "written")

    def close(self) -> None:
        """Closes the files; what could not be written (a full disk) has been an error before."""
        with contextlib.suppress(OSError):
            self.sync()
        for file in filter(None, (self.file, self.board)):
            with contextlib.suppress(OSError):
                file.close()
        if self.remote:
            shutil.rmtree(self.local)


def _copy(path: Path, target: epath.Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(path.read_bytes())


def plain(line: dict[str, Any]) -> dict[str, Any]:
    """Returns it as JSON can hold it: no NaN and no infinity."""
    return {
        k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()
    }


NO_LINES = {"lines": 0, "sha256": ""}  # what is known of a log without lines


def chain(known: dict[str, Any], line: dict[str, Any]) -> dict[str, Any]:
    """Returns what is known of a log, how many lines and a digest of them, with one more line."""
    same = {key: value for key, value in line.items() if key not in MEASURED}
    text = known["sha256"] + json.dumps(same, sort_keys=True)
    return {"lines": known["lines"] + 1, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def cut_back(
    path: Path,
    step: int,
    evaluation: dict[str, Any] | None,
    known: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Removes the lines after `step` from a metrics.jsonl, and a last line that was cut off.

    The evaluation at `step` itself stays only if the checkpoints know it. Returns what is known of
    the lines that stay, see `chain`.

    Args:
      evaluation: the last one that the checkpoints know.
      known: of the lines before that of an evaluation at `step`, from the checkpoint; None: of a
        version that did not keep it. Without a file the log begins anew.

    Raises:
      ValueError: a line that should stay is damaged or missing.
    """
    if not path.exists() or not path.stat().st_size:
        if known and known["lines"]:
            print(f"{path} is missing or empty: the log begins anew at step {step}", flush=True)
        return NO_LINES
    last = {"train": step, "eval": min(step, evaluation["step"] if evaluation else 0)}
    kept: list[bytes] = []
    damaged: list[int] = []
    there = NO_LINES
    whole = known in (None, there)
    content = files.patiently(path.read_bytes, path, print)
    for number, line in enumerate(io.BytesIO(content), start=1):
        try:
            entry = json.loads(line.decode())
            stays = line.endswith(b"\n") and entry["step"] <= last[entry["split"]]
        except (ValueError, KeyError, TypeError, RecursionError):
            damaged.append(number)
            continue
        if stays:
            kept.append(line)
            there = chain(there, entry)
            whole = whole or there == known
    if evaluation and evaluation["step"] == step and known is not None:
        whole = whole and bool(kept) and evaluation.items() <= json.loads(kept[-1]).items()
    if whole:
        files.write_atomically(path, b"".join(kept).decode())
        return there
    where = f"{path}:{damaged[0]} is damaged" if damaged else f"{path} is not what was written"
    raise ValueError(
        f"{where}: put the file back, or remove it and the log begins anew at step {step}"
    )


def write_names(workdir: epath.Path, class_names: Sequence[str], params: Any) -> None:
    """Writes classes.txt, a class a line in label order, and parameters.txt, a table of them."""
    names = "".join(f"{name}\n" for name in class_names)
    files.write_atomically(workdir / "classes.txt", names)
    table = parameter_overview.get_parameter_overview(params, include_stats=False)
    files.write_atomically(workdir / "parameters.txt", table + "\n")


def environment() -> dict[str, Any]:
    """Returns the devices and the versions that a run has."""
    devices = jax.devices()
    return {
        "devices": {
            "count": len(devices),
            "kind": devices[0].device_kind,
            "platform": devices[0].platform,
            "processes": jax.process_count(),
        },
        "versions": {
            "jaxcls": jaxcls.__version__,
            "jax": jax.__version__,
            "flax": flax.__version__,
            "python": platform.python_version(),
        },
    }


def finish(
    workdir: epath.Path,
    plan: Plan,
    step: int,
    skipped: int,
    meta: dict[str, Any],
    complete: bool,
    images: dict[str, Any],
) -> None:
    """Writes summary.json; prints the table at the end of a run, and what to do next.

    `images` is `config.data`, for the hint at fine-tuning on the same ones.
    """
    summary = {
        "model": meta["network"]["name"],
        "complete": complete,
        "steps": step,
        "epochs": plan.epoch(step),
        "skipped": skipped,
        **{key: meta[key] for key in ("best", "last", *TIMES, "class_names") if key in meta},
        "bad_images": len(meta["bad_images"]),
        **environment(),
    }
    text = json.dumps(summary, indent=1, allow_nan=False)
    files.write_atomically(workdir / "summary.json", text + "\n")
    if not complete:
        print(f"stopped at step {step} of {plan.total_steps}, and saved; the same command resumes")
        if jax.process_count() == 1:
            print(f"  or:        {command(('workdir', workdir))}")
        return
    print(f"\n{summary['model']}: {step} steps, {plan.epoch(step):g} epochs, {meta['seconds']} s")
    for which in ("best", "last"):
        if result := summary[which]:
            name, value = ("mAP", "map") if "map" in result else ("top-1", "top1")
            rate = "  not finite" if result[value] is None else f"{100 * result[value]:6.2f} %"
            shown = f"{name} {rate}"
            if "top5" in result and len(meta["class_names"]) > 5:
                shown += f"  top-5 {100 * result['top5']:6.2f} %"
            loss = "not finite" if result["loss"] is None else f"{result['loss']:.4f}"
            print(f"  {which}  {shown}  loss {loss}  (step {result['step']})")
    if summary.get("restarts"):
        print(
            f"  restarts   {summary['restarts']}, {summary['lost_seconds']} s computed again, "
            f"{summary['down_seconds']} s down; {100 * summary['goodput']:.1f} % of the time in "
            "steps"
        )
    if meta["bad_images"]:
        print(f"  {len(meta['bad_images'])} unreadable training image(s), replaced by others")
    print(f"  files:     {workdir}")
    if (page := workdir / "report" / "index.html").exists():
        print(f"  report:    {page}")
    for line in hints(images, workdir, evaluated=summary["last"] is not None):
        print(f"  {line}")
