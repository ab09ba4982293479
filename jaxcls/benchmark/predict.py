"""python -m jaxcls.benchmark predict: latency, throughput and memory of networks that answer."""

import argparse
import contextlib
import csv
import dataclasses
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxcls import benchmark
from jaxcls.benchmark import latency, scatter, subjects
from jaxcls.benchmark.running import Running
from jaxcls.benchmark.subjects import Loaded, Subject
from jaxcls.benchmark.ways import (
    FORMATS,
    Contender,
    contenders,
    described,
    differs,
    pairs,
    unflagged,
)
from jaxcls.command import Arguments, start_jax
from jaxcls.config import choose
from jaxcls.console import Console
from jaxcls.export import agreement, formats, program
from jaxcls.output import one_line
from jaxcls.scatter import SUFFIXES

LEAST = 8  # images that contenders have to agree on, or the largest batch
SHARED = ("tpu",)  # devices that one process has at a time
COLUMNS = (
    *("model", "format", "precision", "batch", "size", "threads", "device", "runtime"),
    *("params", "macs", "top1", "top1_from"),
    *("p50_ms", "p95_ms", "p99_ms", "mean_ms", "calls", "images_per_sec"),
    *("ratio", "ratio_low", "ratio_high"),
    *("file_bytes", "memory_bytes", "memory_from", "first_s", "error"),
)


def parser() -> Arguments:
    """Returns the options of `predict`."""
    found = Arguments(
        prog="python -m jaxcls.benchmark predict",
        description=benchmark.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = found.add_argument
    add("--models", required=True, help="names, patterns, families, runs or exports, with commas")
    add("--formats", help=f"of {', '.join(FORMATS)}; without: those whose packages are installed")
    add("--precisions", default="float32", help=f"of {', '.join(program.PRECISIONS)}")
    add("--batches", default="1,4,8", help="images of a call; 1,4,8")
    add("--baseline", default="jax", help="format that the others are compared with; jax")
    add("--size", type=int, help="pixels of a side, where not those of the network")
    add("--threads", type=int, help="of each contender, and cores; all without it")
    add("--repetitions", type=int, default=5, help="of each, in turn; 5")
    add("--seconds", type=float, default=1.0, help="of calls in a repetition; 1")
    add("--no-transfers", action="store_true", help="leave images and answers on the device")
    add("--csv", help="file to write, a line for each row of the table")
    add("--plot", help="picture to write: FILE.svg, .png or .pdf")
    add("--json", action="store_true", help="print a JSON object a line")
    return found


# -- Measuring -------------------------------------------------------------------------------------


@dataclasses.dataclass
class Started:
    """A contender that answers what it should, and how long it has taken."""

    contender: Contender
    running: Running
    number: int  # in that process
    told: Mapping[str, Any]
    seconds: dict[int, list[list[float]]]  # by batch, of each repetition
    memory: dict[int, dict[str, Any]]

    def time(self, batch: int, options: argparse.Namespace) -> None:
        """Calls it for a while."""
        ask = {"number": self.number, "batch": batch, "seconds": options.seconds}
        found = self.running.ask(ask | {"transfers": not options.no_transfers})
        self.seconds[batch].append(found.pop("seconds"))
        self.memory[batch] = found


class Bench:
    """Measures networks, one after another; what is known is told at once."""

    def __init__(
        self,
        options: argparse.Namespace,
        batches: Sequence[int],
        chosen: Sequence[tuple[str, str]],
        tell: Callable[[dict[str, Any]], None],
        status: Callable[[str], None],
    ):
        """Takes the command's options.

        Args:
          options: of `parser`.
          batches: images of a call.
          chosen: formats and precisions.
          tell: is given each row.
          status: is given what is going on.
        """
        self.options, self.batches, self.chosen = options, batches, chosen
        self.tell, self.status = tell, status

    def measure(self, subject: Subject) -> None:
        """Tells the rows of a network, one with an "error" for what does not work."""
        facts = {"model": subject.name}
        try:
            self.status(f"{subject.name}: loading ...")
            loaded = subjects.load(subject, self.options.size)
            facts = loaded.facts
            with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
                started = self._start(loaded, facts, Path(scratch), stack)
                for batch in self.batches:
                    self._time(started, batch, facts)
        except Exception as e:  # whatever is wrong with this one, the next may do
            self.tell(facts | {"error": one_line(e)})

    def _start(
        self,
        loaded: Loaded,
        facts: Mapping[str, Any],
        scratch: Path,
        stack: contextlib.ExitStack,
    ) -> list[Started]:
        """Returns the contenders that answer what they should; tells of those that do not."""
        made = program.Program(loaded.net, loaded.variables, loaded.input)
        pixels = agreement.generated(made, max(LEAST, formats.LEAST, *self.batches))
        given, reference = made.given(pixels), None
        images = scratch / "images.npy"
        np.save(images, given[: max(self.batches)])
        if loaded.variables is not None:
            self.status(f"{loaded.subject.name}: what it should answer ...")
            plain = dataclasses.replace(loaded.net, precision="float32")
            few = pixels[: max(LEAST, *self.batches)]
            parts = [few[i : i + LEAST] for i in range(0, len(few), LEAST)]
            outputs = [plain.predict(loaded.variables, part)["logits"] for part in parts]
            reference = np.concatenate(jax.device_get(outputs))
        found: list[Started] = []
        shared: Running | None = None
        there = contenders(loaded, self.chosen, pixels[: formats.LEAST], scratch)
        while True:
            self.status(
                f"{loaded.subject.name}: writing {len(found) + 1} of {len(self.chosen)} ..."
            )
            name, precision, contender = next(there, ("", "", None))
            if contender is None:
                return found
            row = {**facts, **described(name, precision)}
            if isinstance(contender, Exception):
                self.tell(row | {"error": f"cannot be written: {unflagged(contender)}"})
                continue
            self.status(f"{loaded.subject.name}: starting {name} in {precision} ...")
            try:
                its = name in ("jax", "stablehlo") and shared
                running = its or stack.enter_context(Running(self.options.threads, scratch))
                here = {"batches": self.batches, "images": str(images)}
                here["threads"] = self.options.threads
                told = running.ask(contender.spec(loaded.net) | here)
                running.opened += 1
                if told["device"].partition(":")[0] in SHARED:
                    shared = running
                if reference is None:  # an export: the first one is what the others have to say
                    reference = np.load(contender.answers / f"{max(self.batches)}.npy")
                for batch in self.batches:
                    if why := differs(contender, batch, reference):
                        raise ValueError(why)
            except ValueError as e:
                self.tell(row | {"error": one_line(e)})
                continue
            seconds = {batch: [] for batch in self.batches}
            found.append(Started(contender, running, running.opened - 1, told, seconds, {}))

    def _time(self, started: list[Started], batch: int, facts: Mapping[str, Any]) -> None:
        """Tells a row of each contender, also when it is interrupted."""
        failed: dict[int, str] = {}
        try:
            for i in range(self.options.repetitions):
                self.status(f"{facts['model']}: batch {batch}, repetition {i + 1} ...")
                turn = [its for its in started if id(its) not in failed]
                for its in turn[:: -1 if i % 2 else 1]:  # in turn, also in being first
                    try:
                        its.time(batch, self.options)
                    except ValueError as e:
                        failed[id(its)] = one_line(e)
        finally:
            order = sorted(started, key=lambda its: its.contender.precision != "float32")
            base = [s for s in order if s.contender.format == self.options.baseline]
            base = base[0].seconds[batch] if base else []
            for its in started:
                if its.seconds[batch] or id(its) in failed:
                    self.tell(self._row(its, batch, facts, base, failed.get(id(its))))
            started[:] = [its for its in started if id(its) not in failed]

    def _row(
        self,
        its: Started,
        batch: int,
        facts: Mapping[str, Any],
        base: Sequence[Sequence[float]],
        error: str | None,
    ) -> dict[str, Any]:
        row = {**facts, **its.contender.facts, **its.told}
        row |= {"batch": batch, "threads": self.options.threads}
        if error:
            return row | {"error": error}
        times = its.seconds[batch]
        row |= latency.percentiles(times, batch) | latency.ratio(times, base)
        return row | its.memory[batch]


# -- The command -----------------------------------------------------------------------------------


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns 0, or 1 if something could not be measured.

    Raises:
      ValueError: a mistake in the options.
    """
    options = parser().parse_args(argv)
    check(options)
    batches = numbers("batches", options.batches)
    precisions = [p for p in map(str.strip, options.precisions.split(",")) if p]
    for name in precisions:
        choose("--precisions", name, program.PRECISIONS)
    chosen, left_out = pairs(options.formats, list(dict.fromkeys(precisions)) or ["float32"])
    choose("--baseline", options.baseline, FORMATS)
    cores = available()
    options.threads = cores if options.threads is None else options.threads
    if not 1 <= options.threads <= cores:
        raise ValueError(f"--threads={options.threads}: write 1 to {cores}")
    jax.config.update("jax_platforms", "cpu")  # here; whoever is measured has what there is
    start_jax()
    found = subjects.named(options.models)
    rows: list[dict[str, Any]] = []
    shown: list[str] = []
    with contextlib.ExitStack() as stack:
        writer = None
        if options.csv:
            file = stack.enter_context(open(Path(options.csv).expanduser(), "w", newline=""))
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            file.flush()
        console = Console()

        def tell(row: dict[str, Any]) -> None:
            row = {key: row[key] for key in COLUMNS if key in row}
            rows.append(row)
            if writer:
                writer.writerow(row)
                file.flush()
            if options.json:
                console.say(json.dumps(row))
                return
            if shown[-1:] != [row["model"]]:
                shown.append(row["model"])
                console.say(f"{latency.headline(row)}\n{latency.HEADER}")
            console.say(latency.as_text(row))

        if not options.json:
            for line in (*latency.introduction(options), *left_out):
                console.say(line)
        bench = Bench(options, batches, chosen, tell, console.status)
        try:
            for subject in found:
                bench.measure(subject)
        finally:
            console.erase()
            if options.plot and (drawn := [row for row in rows if "p50_ms" in row]):
                scatter.draw(drawn, Path(options.plot).expanduser())
    return 1 if any("error" in row for row in rows) else 0


def check(options: argparse.Namespace) -> None:
    """Refuses what cannot be.

    Raises:
      ValueError: numbers out of range, files that cannot be written.
    """
    for name in ("size", "repetitions", "seconds"):
        value = getattr(options, name)
        if value is not None and not 0 < value < 1e6:
            raise ValueError(f"--{name}={value:g}: write a number above 0")
    for name in ("csv", "plot"):
        path = Path(getattr(options, name) or "x").expanduser()
        if not path.parent.is_dir():
            raise ValueError(f"--{name}={path}: {path.parent} is no folder")
        if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
            raise ValueError(f"--{name}={path}: it cannot be written")
    if options.plot and Path(options.plot).suffix not in SUFFIXES:
        raise ValueError(f"--plot={options.plot}: write FILE{' or FILE'.join(SUFFIXES)}")


def numbers(name: str, text: str) -> list[int]:
    """Returns the whole numbers of an option, in their order of size.

    Raises:
      ValueError: something else.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdigit() and 0 < int(part) < 1e6 for part in parts):
        raise ValueError(f"--{name}={text}: write whole numbers, such as 1,4,8")
    return sorted({int(part) for part in parts})


def available() -> int:
    """Returns how many cores there are for this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
