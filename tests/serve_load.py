"""A server under more load than it can bear: what is answered, how late, and in how much memory.

    python tests/serve_load.py [RUN] [--requests=10000] [--seconds=20] [--limit=64]

Starts `python -m jaxcls.serve` with RUN, or a small network of random weights, three times:
1. --requests at once, each on a connection of its own with an image of its own: all are answered,
   with what `predict` says of that image.
2. Five times as many clients as images that it holds (--limit), who ask again at once when they are
   refused: memory is bounded, and how long those wait who are accepted; others get a 503 with
   Retry-After.
3. SIGTERM under that load: what was accepted is answered, and it ends with 0.
The exit code is 1 if one of these is not so.
"""

import argparse
import asyncio
import io
import itertools
import json
import re
import signal
import sys
import tempfile
import threading
import time

import numpy as np
import served
from PIL import Image
from test_predict import store

from jaxcls import predictor
from jaxcls.benchmark import load
from jaxcls.serve import connections

TOLERANCE = 1e-5  # of probabilities: batches of other sizes round otherwise
GROWTH = 250_000_000  # bytes under overload, beyond what there was after a little load
LATE = 4.0  # times as long as it takes to answer all that is held, and a slow one without overload


def picture(number):
    """Returns the PNG file of an image that is no other's."""
    rng = np.random.default_rng(number)
    small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    file = io.BytesIO()
    small.resize((32, 32), Image.Resampling.NEAREST).save(file, "PNG", compress_level=1)
    return file.getvalue()


def rows(answers, classes):
    """Returns the probabilities of answers, in the order of classes."""
    order = {name: i for i, name in enumerate(classes)}
    found = np.zeros((len(answers), len(classes)))
    for row, answer in zip(found, answers):
        row[[order[name] for name in answer["classes"]]] = answer["probabilities"]
    return found


def none_lost_none_crossed(run, count):
    """Returns what is wrong with the answers to so many at once."""
    model = predictor.load(run)
    files = [picture(i) for i in range(count)]
    top = len(model.class_names)
    expected = rows([a._asdict() for a in model.predict(files, top=top)], model.class_names)
    # an answer that is another image's is seen: no two are alike
    ordered = expected[np.lexsort(expected.T)]
    apart = np.abs(np.diff(ordered, axis=0)).max(1)
    alike = int((apart < 2 * TOLERANCE).sum())
    limits = [f"--requests={count}", f"--connections={count + 100}", "--seconds=600"]
    with served.in_process(f"m={run}", *limits) as (process, address):
        before, began = served.memory(process.pid), time.monotonic()
        requests = [load.request(data, f"/predict?top={top}") for data in files]
        replies = asyncio.run(load.ask(address, requests, count))
        took, after = time.monotonic() - began, served.memory(process.pid)
    statuses = [reply.status for reply in replies]
    good = [reply for reply in replies if reply.status == 200]
    found = rows([json.loads(r.body)["predictions"][0] for r in good], model.class_names)
    differences = np.abs(found - expected[[r.number for r in good]]).max(1)
    crossed = int((differences > TOLERANCE).sum())
    print(f"{count} at once: {len(good)} answered in {took:.1f} s, {crossed} crossed, largest "
          f"difference {differences.max():.1e}, {alike} images of alike answers; "
          f"{before / 1e6:.0f} -> {after / 1e6:.0f} MB", flush=True)  # fmt: skip
    wrong = []
    if len({r.number for r in good}) != count:
        wrong.append(f"lost: {count - len(good)}, by status {np.unique(statuses).tolist()}")
    if crossed or alike > count // 1000:
        wrong.append(f"crossed: {crossed}, alike: {alike}")
    return wrong


class Memory(threading.Thread):
    """Follows the resident memory of a process."""

    def __init__(self, pid):
        super().__init__(daemon=True)
        self.pid, self.most, self.stopped = pid, 0, threading.Event()

    def run(self):
        while not self.stopped.wait(0.1):
            self.most = max(self.most, served.memory(self.pid))


def overload(run, seconds, limit):
    """Returns what is wrong under five times the load that it can bear, and when it is ended."""
    requests = [load.request(picture(i)) for i in range(256)]
    wrong = []
    with served.in_process(f"m={run}", f"--requests={limit}") as (process, address):
        ask = lambda clients, seconds: asyncio.run(
            load.ask(address, itertools.cycle(requests), clients, seconds)
        )
        ask(limit // 2, seconds / 4)
        calm = ask(limit // 2, seconds)
        bears = sum(r.status == 200 for r in calm) / seconds
        before = served.memory(process.pid)
        watching = Memory(process.pid)
        watching.start()
        replies = ask(5 * limit, seconds)
        watching.stopped.set()
        good = [r for r in replies if r.status == 200]
        refused = [r for r in replies if r.status == 503]
        late = load.latencies(replies)
        rate = len(good) / seconds
        # who asks again at once is not heard for a while, and counts that as waiting
        bound = LATE * (1e3 * limit / max(rate, 1) + load.latencies(calm)["p99_ms"])
        bound += 1e3 * connections.PAUSE
        print(f"bears {bears:.0f}/s, p99 {load.latencies(calm)['p99_ms']:.0f} ms; asked "
              f"{len(replies) / seconds:.0f}/s by {5 * limit}: {rate:.0f}/s answered, p50 "
              f"{late['p50_ms']:.0f}, p99 {late['p99_ms']:.0f} ms (at most {bound:.0f}), "
              f"{len(refused)} refused; {before / 1e6:.0f} -> {watching.most / 1e6:.0f} MB",
              flush=True)  # fmt: skip
        if len(good) + len(refused) != len(replies):
            others = {r.status for r in replies} - {200, 503}
            wrong.append(f"under overload there are {others}")
        if not refused or not all(b"\r\nretry-after: 1" in r.headers for r in refused):
            wrong.append("nothing is refused, or without Retry-After")
        if watching.most > before + GROWTH:
            wrong.append(f"memory: {before:,} -> {watching.most:,} bytes")
        if late["p99_ms"] > bound:
            wrong.append(f"p99 of the accepted: {late['p99_ms']:.0f} ms, more than {bound:.0f}")
        wrong += ended(process, address, requests, limit, seconds)
    return wrong


def ended(process, address, requests, limit, seconds):
    """Returns what is wrong when it is told to end under load."""
    with served.Client(address) as client:
        client.send(served.head("/metrics", "GET"))
        text = client.response()[2].decode()
    before = sum(map(float, re.findall(r'requests_total{route="/predict",.*} (\S+)', text)))
    timer = threading.Timer(min(3.0, seconds / 3), process.send_signal, [signal.SIGTERM])
    timer.start()
    replies = asyncio.run(load.ask(address, itertools.cycle(requests), limit // 2, 60.0))
    code = process.wait(90)
    answered = sum(r.status == 200 for r in replies)
    cut = [r for r in replies if r.status not in (200, 503, 0)]
    # 0: its door was closed. Who was accepted holds a place until he is answered: none is left.
    print(f"SIGTERM: {answered} answered, {sum(r.status == 0 for r in replies)} found the door "
          f"closed, exit code {code} (before: {before:.0f})", flush=True)  # fmt: skip
    said = "".join(process.said)
    problems = re.findall(r"Traceback|Cancel .* running", said)
    return (
        [f"SIGTERM: exit code {code}, {len(cut)} cut, {problems}"]
        if code or cut or problems
        else []
    )


def main(arguments=None):
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", nargs="?")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--limit", type=int, default=64)
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        run = args.run or store(f"{folder}/m")
        wrong = none_lost_none_crossed(run, args.requests)
        wrong += overload(run, args.seconds, args.limit)
    print(*wrong, sep="\n")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
