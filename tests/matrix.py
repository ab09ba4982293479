"""Kills, damages, signals: a run ends with the bits of one that nothing happened to, or says why.

    python tests/matrix.py [--kills=N] [--damages=N] [--signals=N] [--seed=S] [--only=NAME]

Each variant of `VARIANTS` is run once, whole. Then, again and again: run, `kill -9` at a random
file operation or moment, and so on until the end; a copy of a run that was killed half-way, one of
its files damaged, run to the end; a signal at a random moment, from the first instruction on, and
run to the end. Prints a table; exit code 1 if a run ended otherwise, or left something behind.
"""

import argparse
import collections
import json
import os
import random
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import runs

PATIENCE = 600  # seconds
END = 30  # steps of tiny.py
AUGMIX = ("--config.augment.policy=augmix", "--config.data.cache=encoded")
VARIANTS = {
    # moving average, float16 with loss scaling (steps are skipped) and accumulation in all but one
    "base": (),
    "encoded, AugMix": AUGMIX,
    "a checkpoint a step": ("--config.checkpoint.every=1 steps", "--config.eval.every=1 steps"),
    "workers": ("--config.loader.workers=2", "--config.data.cache=none"),
    "best loss, keep 1": ("--config.checkpoint.best=loss", "--config.checkpoint.keep=1"),
    "processes": ("--config.mesh.data=2",),  # two of them
}
OTHER_BEST = "differs: the best checkpoint is another"
WRITES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree")


# -- Running ---------------------------------------------------------------------------------------


def in_fork(f: Callable[[], Any], patience: float = PATIENCE) -> tuple[int, Any]:
    """Returns (exit code, f()) of a fork of this process, which itself never starts JAX."""
    with tempfile.NamedTemporaryFile() as file:
        child = os.fork()
        if not child:
            try:
                Path(file.name).write_text(json.dumps(f()))
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        timer = threading.Timer(patience, os.kill, (child, signal.SIGKILL))
        timer.start()
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        timer.cancel()
        text = Path(file.name).read_text()
        return code, json.loads(text) if text else None


class Runner:
    """Runs of one variant."""

    def __init__(self, folder: Path, variant: str):
        self.folder, self.variant = folder, variant
        self.arguments = (f"--config={runs.TINY}", *VARIANTS[variant])

    def __call__(
        self, workdir: Path, *, event: int = 0, after: float = 0.0, log: Path | None = None
    ) -> runs.Done:
        """Runs to the end, or `kill -9` at a file operation or after seconds.

        Args:
          workdir: of the run.
          event: number of the file operation in `workdir` to be killed at.
          after: seconds after which to be killed.
          log: is given the number of file operations.
        """
        if self.variant == "processes":
            return self._processes(workdir, after)

        def run():
            for number, name in ((1, "out"), (2, "err")):
                flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
                os.dup2(os.open(self.folder / name, flags), number)
            count = 0

            def hook(name, arguments):
                nonlocal count
                writes = name in WRITES or (name == "open" and arguments[2] & 3)
                if writes and str(arguments[0]).startswith(str(workdir)):
                    count += 1
                    if count == event:
                        os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(hook)
            if after:
                threading.Timer(after, os.kill, (os.getpid(), signal.SIGKILL)).start()
            sys.argv = ["jaxcls.main", *self.arguments, f"--workdir={workdir}"]
            try:
                runpy.run_module("jaxcls.main", run_name="__main__")
            except SystemExit as e:
                code = e.code
            sys.stdout.flush()
            sys.stderr.flush()
            return code, count

        code, result = in_fork(run)
        if result and log:
            log.write_text(str(result[1]))
        files = [self.folder / name for name in ("out", "err")]
        return runs.Done(result[0] if result else code, *(file.read_text() for file in files))

    def _processes(self, workdir: Path, after: float) -> runs.Done:
        shared = f"--coordinator=127.0.0.1:{runs.free_port()}", "--num_processes=2"
        started = [
            self.start(workdir, *shared, f"--process_id={i}", err=f"err{i}") for i in range(2)
        ]
        if after:
            time.sleep(after)
            random.choice(started).kill()
        try:
            for process in started:
                process.wait(PATIENCE)
        finally:
            for process in started:
                process.kill()
        outputs = [(self.folder / name).read_text() for name in ("out", "err0", "err1")]
        codes = {process.returncode for process in started}
        code = -signal.SIGKILL if -signal.SIGKILL in codes else max(codes)
        return runs.Done(code, outputs[0], outputs[1] + outputs[2])

    def start(self, workdir: Path, *arguments: str, err: str = "err") -> subprocess.Popen:
        """Starts the real command."""
        with open(self.folder / "out", "a") as out, open(self.folder / err, "w") as errors:
            return subprocess.Popen(
                [sys.executable, "-m", "jaxcls.main", *self.arguments, f"--workdir={workdir}"]
                + list(arguments),
                env={**os.environ, "PYTHONPATH": str(runs.ROOT)},
                stdout=out,
                stderr=errors,
            )


def difference(ours: Path, theirs: Path) -> str:
    """Returns in what two runs differ; "" if all bits are the same."""

    def compare():
        try:
            runs.assert_same_run(ours, theirs, END)
            best = runs.summary(ours)["best"]["step"]
            assert best in runs.checkpoints(ours), f"the best checkpoint, {best}, is gone"
            runs.saved(ours, best)
        except AssertionError as e:
            states = [runs.saved(workdir, END)[0] for workdir in (ours, theirs)]
            same = all(a.tobytes() == states[1][path].tobytes() for path, a in states[0].items())
            if same and runs.lines(ours) == runs.lines(theirs):
                return OTHER_BEST
            line = traceback.extract_tb(e.__traceback__)[-1].line
            return f"differs: {str(e).strip() or line}"
        return ""

    code, found = in_fork(compare)
    return f"cannot be compared ({code})" if code else found


def refusal(done: runs.Done, workdir: Path) -> str:
    """Returns what is wrong with how a run refused to go on; "" if nothing is."""
    if done.returncode != 2 or "Traceback" in done.err:
        return f"exit code {done.returncode}: {done.err[-300:]}"
    lines = [line for line in done.err.splitlines() if line.startswith("jaxcls: ")]
    if len(lines) != 1 or str(workdir) not in lines[0]:
        return f"no line that names a file: {done.err[-300:]}"
    return ""


# -- Kills -----------------------------------------------------------------------------------------


def kills(run: Runner, whole: Path, number: int, dice: random.Random) -> collections.Counter:
    """Kills `number` times, in several runs, each to its end."""
    found: collections.Counter = collections.Counter()
    events = int(text) if (text := read(whole.parent / "events")) else 0
    seconds = float(read(whole.parent / "seconds"))
    killed = 0
    while killed < number:
        workdir = run.folder / "killed"
        shutil.rmtree(workdir, ignore_errors=True)
        for _ in range(6):
            if events and dice.random() < 0.8:
                done = run(workdir, event=dice.randint(1, events // 2))
            else:
                done = run(workdir, after=dice.uniform(0.1, seconds))
            if done.returncode != -signal.SIGKILL:
                break
            killed += 1
        done = run(workdir) if done.returncode == -signal.SIGKILL else done
        problem = f"exit code {done.returncode}: {done.err[-300:]}" if done.returncode else ""
        problem = problem or difference(workdir, whole)
        if not problem and any("tmp" in path.name for path in workdir.rglob("*")):
            problem = "half-written files are left"
        found[problem or "equal"] += 1
    return found | {"kills": killed}


# -- Damages ---------------------------------------------------------------------------------------


def flip(path: Path, dice: random.Random) -> None:
    data = bytearray(path.read_bytes())
    if data:
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    path.write_bytes(data)


def replace(content: bytes) -> Callable[[Path, random.Random], None]:
    return lambda path, dice: path.write_bytes(content)


def by_folder(path: Path, dice: random.Random) -> None:
    path.unlink()
    path.mkdir()


def by_link(path: Path, dice: random.Random) -> None:
    path.unlink()
    path.symlink_to("nowhere")


DAMAGES = {
    "a flipped bit": flip,
    "cut in half": lambda p, dice: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]),
    "emptied": replace(b""),
    "deleted": lambda path, dice: path.unlink(),
    "noise": lambda path, dice: path.write_bytes(dice.randbytes(200)),
    "zeros": lambda path, dice: path.write_bytes(bytes(path.stat().st_size)),
    "null": replace(b"null"),
    "[]": replace(b"[]\n"),
    "{}": replace(b"{}\n"),
    "a folder instead": by_folder,
    "a dead link instead": by_link,
    "its folder deleted": lambda path, dice: shutil.rmtree(path.parent),
}
WHERE = ("checksums.json", "evaluation.json", "metrics.jsonl", "config.json", "summary.json")


def damages(run: Runner, whole: Path, number: int, dice: random.Random) -> collections.Counter:
    """Damages a file of a run that stopped half-way, `number` times."""
    found: collections.Counter = collections.Counter()
    half = run.folder / "half"
    seconds = float(read(whole.parent / "seconds"))
    for share in (0.9, 0.8, 0.7, 0.95, 0.6, 1.0):
        if run.variant == "processes":
            run(half, after=seconds * share)
        else:
            run(half, event=int(int(read(whole.parent / "events")) * share))
        if len(runs.checkpoints(half)) > 1 and runs.checkpoints(half)[-1] < END:
            break
        shutil.rmtree(half)
    for i in range(number):
        workdir = run.folder / "damaged"
        shutil.rmtree(workdir, ignore_errors=True)
        shutil.copytree(half, workdir)
        files = sorted(p for p in workdir.rglob("*") if p.is_file() and p.name != ".lock")
        named = [path for path in files if path.name in WHERE]
        path = dice.choice(named if i % 2 and named else files)
        kind = dice.choice(sorted(DAMAGES))
        if kind == "its folder deleted" and path.parent == workdir:
            kind = "deleted"
        DAMAGES[kind](path, dice)
        done = run(workdir)
        what = f"{kind}: {path.relative_to(workdir)}"
        if done.returncode:
            problem = refusal(done, workdir)
            found[f"{what}: {problem}" if problem else "refused"] += 1
            continue
        problem = difference(workdir, whole)
        if problem and f"{workdir / 'metrics.jsonl'} is missing or empty" in done.out:
            found["goes on with a new log, and says so"] += 1
        elif problem == OTHER_BEST and "set aside as damaged-" in done.out:
            found["equal but for the best checkpoint, as it says"] += 1
        else:
            found[f"{what}: {problem}" if problem else "equal"] += 1
    return found | {"damages": number}


# -- Signals ---------------------------------------------------------------------------------------


def signals(run: Runner, whole: Path, number: int, dice: random.Random) -> collections.Counter:
    """Sends a signal to the real command, `number` times: half of them before the first step."""
    found: collections.Counter = collections.Counter()
    workdir = run.folder / "stopped"
    began = time.monotonic()
    process = run.start(workdir)
    while not runs.logged(workdir) and process.poll() is None:
        time.sleep(0.01)
    until_first_step = time.monotonic() - began
    process.kill()
    process.wait()
    for i in range(number):
        shutil.rmtree(workdir, ignore_errors=True)
        sent = dice.choice([signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
        after = until_first_step * (dice.uniform(0.02, 1) if i % 2 else dice.uniform(1, 1.3))
        (run.folder / "out").write_text("")
        process = run.start(workdir)
        time.sleep(after)
        process.send_signal(sent)
        code = process.wait(PATIENCE)
        err = read(run.folder / "err")
        what = f"{sent.name} after {after:.2f} s: exit code {code}: {err[-300:]}"
        if code == 0 and "the same command" not in read(run.folder / "out"):
            problem = difference(workdir, whole)  # its last step was under way
            found[f"{what} {problem}" if problem else "complete all the same"] += 1
        elif "Traceback" in err or code != 128 + sent:
            # before Python takes signals itself, the system ends the process
            early = code == -sent and not err
            found["ended by the system at its start" if early else what] += 1
        elif "with nothing to save yet" in err:
            left = list(workdir.rglob("*")) if workdir.exists() else []
            found[f"{what} leaves {left}" if left else "left at once, nothing left behind"] += 1
        elif not runs.checkpoints(workdir):
            found[f"{what} saved nothing"] += 1
        else:
            done = run(workdir)
            problem = done.err[-300:] if done.returncode else difference(workdir, whole)
            found[f"{what} {problem}" if problem else "saved, then equal"] += 1
    return found | {"signals": number}


# -- All -------------------------------------------------------------------------------------------


def read(path: Path) -> str:
    """Returns a text; "" without a file."""
    return path.read_text() if path.exists() else ""


def leavings() -> set[str]:
    """Returns what a run must not leave: shared memory, temporary folders, processes."""
    found = (
        {str(path) for path in Path("/dev/shm").glob("*")} if os.path.exists("/dev/shm") else set()
    )
    found |= {str(path) for path in Path(tempfile.gettempdir()).glob("jaxcls-*")}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            mine = f"MATRIX={os.getpid()}".encode() in (process / "environ").read_bytes()
            state = (process / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if mine and state != "Z" and process.name != str(os.getpid()):
            found.add(f"process {process.name}")
    return found


def main(arguments: list[str] | None = None) -> int:
    """Prints the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, number in (("kills", 15), ("damages", 15), ("signals", 12), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=number, help="of each variant")
    parser.add_argument("--only", action="append", choices=VARIANTS)
    options = parser.parse_args(arguments)
    import sklearn.datasets  # noqa: F401  once, before all forks

    import jaxcls.evaluate
    import jaxcls.train  # noqa: F401

    jax.config.update("jax_platforms", "cpu")
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=1"
    os.environ["MATRIX"] = str(os.getpid())
    before, bad = leavings(), 0
    dice = random.Random(options.seed)
    for variant in options.only or VARIANTS:
        with tempfile.TemporaryDirectory(prefix="matrix-") as folder:
            run = Runner(Path(folder), variant)
            whole = Path(folder, "whole")
            for _ in range(2):  # the second time with compiled programs
                shutil.rmtree(whole, ignore_errors=True)
                began = time.monotonic()
                done = run(whole, log=Path(folder, "events"))
                assert done.returncode == 0, done.err
            Path(folder, "seconds").write_text(str(time.monotonic() - began))
            parts = [(kills, options.kills), (damages, options.damages)]
            if variant != "processes":  # JAX's own handler; tests/test_resume.py
                parts.append((signals, options.signals))
            for part, number in parts:
                if not number:
                    continue
                for outcome, count in part(run, whole, number, dice).items():
                    known = outcome in GOOD
                    bad += 0 if known else count
                    mark = " " if known else "!"
                    print(
                        f"{mark} {variant:<20} {part.__name__:<8} {count:>4} {outcome}", flush=True
                    )
    time.sleep(2)  # for workers to follow
    for left in sorted(leavings() - before):
        print(f"! left behind: {left}")
        bad += 1
    return 1 if bad else 0


GOOD = {
    "kills",
    "damages",
    "signals",
    "equal",
    "refused",
    "goes on with a new log, and says so",
    "equal but for the best checkpoint, as it says",
    "complete all the same",
    "ended by the system at its start",
    "left at once, nothing left behind",
    "saved, then equal",
}

if __name__ == "__main__":
    sys.exit(main())
