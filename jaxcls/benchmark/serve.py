"""python -m jaxcls.benchmark serve: requests/s and latency of a server under load."""

import argparse
import asyncio
import contextlib
import importlib.util
import io
import itertools
import json
import os
import queue
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxcls import benchmark, predictor, weights
from jaxcls.benchmark import load
from jaxcls.command import Arguments
from jaxcls.predict import images

COMPARE = ("fastapi",)
NAMES = {"jaxcls": "jaxcls.serve", "fastapi": "FastAPI, a request a call"}
PATIENCE = 600  # seconds for a server to start: it compiles
AGREE = 1e-5  # of probabilities


def parser() -> Arguments:
    """Returns the options of `serve`."""
    found = Arguments(
        prog="python -m jaxcls.benchmark serve",
        description=benchmark.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = found.add_argument
    add("run", metavar="RUN", help="a run, a checkpoint, converted weights or an export")
    add("--images", help="file, folder or pattern of photographs to send; without: made up")
    add("--clients", default="1,8,32", help="that ask at once; 1,8,32")
    add("--seconds", type=float, default=5.0, help="of a repetition; 5")
    add("--repetitions", type=int, default=3, help="of each, in turn; 3")
    add("--batch-size", type=int, default=32, help="of our server, images together; 32")
    add("--wait", type=float, default=2, help="of our server, for further images, ms; 2")
    add("--compare", default="fastapi", help="fastapi, if it is installed; '': nothing")
    add("--json", action="store_true", help="print a JSON object a line")
    return found


def main(argv: Sequence[str]) -> int:
    """Prints what servers bear, and their ratio; returns the exit code."""
    options = parser().parse_args(argv)
    clients = _numbers("clients", options.clients)
    for name in ("seconds", "repetitions", "batch_size"):
        if not getattr(options, name) > 0:
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag}={getattr(options, name)}: write a number above 0")
    if options.compare not in ("", *COMPARE):
        raise ValueError(f"--compare={options.compare}: write {' or '.join(COMPARE)}, or nothing")
    if not Path(options.run).is_dir():
        raise ValueError(f"{options.run}: {weights.nothing_at(options.run)}")
    for package in ("starlette", "uvicorn", "prometheus_client"):
        if importlib.util.find_spec(package) is None:
            raise ValueError(f"jaxcls.serve needs {package}: pip install 'jaxcls[serve]'")
    given = [*map(_read, images([options.images]))] if options.images else made_up()
    requests = [load.request(data) for data in given]
    say = lambda line: None if options.json else print(line, flush=True)
    kinds = ["jaxcls", *filter(None, [options.compare])]
    if options.compare and importlib.util.find_spec("fastapi") is None:
        kinds.remove(options.compare)
        print("without fastapi, which is not installed: pip install fastapi", file=sys.stderr)
    say(f"{options.run}, {len(given)} images, {len(os.sched_getaffinity(0))} cores: "
        f"{options.repetitions} x {options.seconds:g} s of each, in turn")  # fmt: skip
    with contextlib.ExitStack() as stack:
        servers = {kind: stack.enter_context(Server(kind, options)) for kind in kinds}
        agree(servers, requests)
        for count in clients:
            rows = measure(servers, requests, count, options.seconds, options.repetitions)
            for row in rows:
                say(as_text(row)) if not options.json else print(json.dumps(row), flush=True)
    return 0


class Server(contextlib.AbstractContextManager):
    """A server, in a process of its own."""

    def __init__(self, kind: str, options: argparse.Namespace):
        """Starts one of NAMES and waits until it answers.

        Raises:
          ValueError: it does not start; it has written to stderr why.
        """
        command = [sys.executable, "-m", "jaxcls.benchmark.fastapi_loop", options.run]
        if kind == "jaxcls":
            limits = [f"--batch-size={options.batch_size}", f"--wait={options.wait:g}"]
            named = f"run={Path(options.run).absolute()}"
            command = [sys.executable, "-m", "jaxcls.serve", named, "--port=0", *limits]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        said, lines = [], queue.SimpleQueue()
        pump = lambda: [lines.put(line) for line in self.process.stdout] and lines.put("")
        threading.Thread(target=pump, daemon=True).start()
        end = time.monotonic() + PATIENCE
        while not (found := re.search(r"http://([\w.]+):(\d+)\s*$", said[-1] if said else "")):
            with contextlib.suppress(queue.Empty):
                said.append(lines.get(timeout=1))
            if self.process.poll() is not None or time.monotonic() > end:
                self.process.kill()
                raise ValueError(f"{NAMES[kind]} does not start: {''.join(said[-1:]).strip()}")
        self.address = found[1], int(found[2])

    def __exit__(self, *error: Any) -> None:
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()

    @property
    def processor(self) -> float:
        """Returns the processor seconds that it has taken; nan where that is not told."""
        try:
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return float("nan")
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def ask(self, requests: Iterator[bytes], clients: int, seconds: float) -> list[load.Reply]:
        """Returns replies; see `load.ask`."""
        return asyncio.run(load.ask(self.address, requests, clients, seconds))


def made_up(count: int = 64, seed: int = 0) -> list[bytes]:
    """Returns JPEG files of 500 x 375 pixels, smooth as photographs are."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(count):
        small = rng.integers(0, 256, (15, 20, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(small).resize((500, 375), Image.Resampling.BICUBIC).save(file, "JPEG")
        found.append(file.getvalue())
    return found


def agree(servers: dict[str, Server], requests: Sequence[bytes]) -> None:
    """Asks all the same, which warms them up, too.

    Raises:
      ValueError: one refuses, or says something else than the first.
    """
    first = None
    for kind, server in servers.items():
        replies = server.ask(iter(requests[:8]), 4, float("inf"))
        if bad := [reply for reply in replies if reply.status != 200]:
            raise ValueError(f"{NAMES[kind]} answers {bad[0].status}: {bad[0].body[:200]!r}")
        found = {r.number: json.loads(r.body)["predictions"][0] for r in replies}
        first = first or found
        for number, answer in found.items():
            apart = np.subtract(answer["probabilities"], first[number]["probabilities"])
            if np.abs(apart).max() > AGREE:
                raise ValueError(f"{NAMES[kind]} answers something else: {answer}")


def measure(
    servers: dict[str, Server],
    requests: Sequence[bytes],
    clients: int,
    seconds: float,
    repetitions: int,
) -> list[dict[str, Any]]:
    """Returns a row for each server: rate, latencies, and how much faster the first is.

    The processor's time of a request says the same on machines that have other work, too.
    """
    rates: dict[str, list[float]] = {kind: [] for kind in servers}
    processor = dict.fromkeys(servers, 0.0)
    replies: dict[str, list[load.Reply]] = {kind: [] for kind in servers}
    for i in range(repetitions):
        for kind in list(servers)[:: -1 if i % 2 else 1]:  # in turn, also in being first
            began, before = time.perf_counter(), servers[kind].processor
            found = servers[kind].ask(itertools.cycle(requests), clients, seconds)
            good = sum(reply.status == 200 for reply in found)
            processor[kind] += servers[kind].processor - before
            rates[kind].append(good / (time.perf_counter() - began))
            replies[kind] += found
    rows = []
    for kind, its in rates.items():
        row = {"server": kind, "clients": clients, "requests_per_sec": float(np.median(its))}
        row |= load.latencies(replies[kind])
        row["refused"] = sum(reply.status != 200 for reply in replies[kind])
        row["processor_ms"] = 1e3 * processor[kind] / max(1, len(replies[kind]) - row["refused"])
        ratios = np.divide(rates["jaxcls"], its)
        row["ratio"] = [float(x) for x in np.percentile(ratios, (50, 0, 100))]
        rows.append(row)
    return rows


def as_text(row: dict[str, Any]) -> str:
    """Returns a row of the table."""
    text = f"  {row['clients']:4} clients  {NAMES[row['server']]:<26}"
    text += f"{row['requests_per_sec']:9.1f} requests/s   p50 {row['p50_ms']:8.1f} ms"
    text += f"   p95 {row['p95_ms']:8.1f}   p99 {row['p99_ms']:8.1f}"
    text += f"   processor {row['processor_ms']:.2f} ms"
    if row["refused"]:
        text += f"   {row['refused']} refused"
    if row["server"] != "jaxcls":
        text += "   ours x {:.2f} ({:.2f} to {:.2f})".format(*row["ratio"])
    return text


def _read(path: str) -> bytes:
    return predictor.readable(path)[1]()


def _numbers(flag: str, text: str) -> list[int]:
    numbers = text.split(",")
    if not all(x.isdecimal() and 0 < int(x) < 100_000 for x in numbers):
        raise ValueError(f"--{flag}={text}: write numbers of at least 1, with commas")
    return list(map(int, numbers))
