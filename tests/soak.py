"""Random kills of random processes of a run: no step's record lost or doubled, the same end.

    python tests/soak.py [--kills=20] [--processes=4] [--elastic] [--steps=60] [--seed=0]

A run of several processes, two virtual devices each, is done once, undisturbed. Then, again and
again, one of its processes, drawn at random, is killed (`kill -9`) at a random moment: while it
starts, compiles, computes, evaluates or saves. All others have to end within 20 seconds with one
line and exit code 75 (if it was not there yet, after the 120 that they wait), and the same command
goes on, until all kills are done and then to the end. With --elastic each start has 1, 2 or all of
the processes, in float64: the ends agree to 1e-9, else in every bit. Prints a line for each kill;
exit code 1 if anything was otherwise.
"""

import argparse
import os
import random
import runpy
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

import jax
import numpy as np
import runs

LIMIT = 20.0  # seconds until all have ended
WAIT = 120.0  # seconds for all to come at the start
# said of one that was killed before it was there, after WAIT
NEVER_THERE = (" did not come to ", " does not reach process 0", "is not of a run")
PATIENCE = 900.0  # of a run, on a busy machine


class Run:
    """Processes of one start, forks of this one, which itself never starts JAX."""

    def __init__(self, folder: Path, arguments: list[str], count: int):
        self.folder, self.children = folder, {}
        address = f"--coordinator=127.0.0.1:{runs.free_port()}"
        for i in range(count):
            several = [address, f"--num_processes={count}", f"--process_id={i}", f"--wait={WAIT}"]
            child = os.fork()
            if not child:
                self._run([*arguments, *(several if count > 1 else [])], i)
            self.children[i] = child
        self.codes: dict[int, int] = {}

    def _run(self, arguments: list[str], number: int) -> None:
        code = 1
        try:
            for file, name in ((1, f"out{number}"), (2, f"err{number}")):
                os.dup2(os.open(self.folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), file)
            sys.argv = ["jaxcls.main", *arguments]
            runpy.run_module("jaxcls.main", run_name="__main__")
        except SystemExit as e:
            code = e.code
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    def running(self) -> list[int]:
        """Returns the numbers of the processes that have not ended."""
        for i, child in self.children.items():
            if i not in self.codes:
                pid, status = os.waitpid(child, os.WNOHANG)
                if pid:
                    self.codes[i] = os.waitstatus_to_exitcode(status)
        return [i for i in self.children if i not in self.codes]

    def wait(self, seconds: float) -> float:
        """Waits for all to end, kills those that do not, and returns how long it took."""
        began = time.monotonic()
        while left := self.running():
            if time.monotonic() > began + seconds:
                for i in left:
                    os.kill(self.children[i], signal.SIGKILL)
            time.sleep(0.05)
        return time.monotonic() - began

    def said(self, number: int) -> str:
        """Returns what a process has said on stderr."""
        return (self.folder / f"err{number}").read_text()


def to_the_end(folder: Path, arguments: list[str], count: int) -> tuple[Run, float]:
    """Returns the start that came to the end, and its seconds; 75 is to be tried again.

    On a busy machine Gloo's processes may not find each other in its 30 seconds.
    """
    for _ in range(5):
        run = Run(folder, arguments, count)
        took = run.wait(PATIENCE)
        if 75 not in run.codes.values():
            break
        print(f"  again: {run.said(0).splitlines()[-1]}", flush=True)
    return run, took


def problems_of_a_kill(run: Run, victim: int, took: float) -> list[str]:
    """Returns what the others did that they should not do."""
    found, limit = [], LIMIT
    for i, code in run.codes.items():
        if i == victim:
            continue
        lines = [line for line in run.said(i).splitlines() if " waits " not in line]
        lost = f"process {victim} of {len(run.codes)} was lost"
        if code == 75 and len(lines) == 1 and any(text in lines[0] for text in NEVER_THERE):
            limit = LIMIT + WAIT
        elif code != 75 or len(lines) != 1 or lost not in lines[0]:
            found.append(f"process {i}: exit code {code}, said {lines[-3:]}")
    return found + ([f"they took {took:.1f} s"] if took > limit else [])


def problems_of_the_end(ours: Path, theirs: Path, steps: int, elastic: bool) -> list[str]:
    """Returns in what a run that was killed again and again differs from one that was not."""
    found = []
    trained = [line["step"] for line in runs.lines(ours) if line["split"] == "train"]
    if trained != list(range(1, steps + 1)):
        found.append(f"records of the steps {trained}")
    if not elastic:
        try:
            runs.assert_same_run(ours, theirs, steps)
        except AssertionError as e:
            found.append(f"differs: {str(e)[:300]}")
        return found
    for line, expected in zip(runs.lines(ours), runs.lines(theirs), strict=True):
        for key, value in expected.items():
            if key not in ("split", "top1_mixed") and not np.isclose(line[key], value, rtol=1e-9):
                found.append(f"step {line['step']}: {key} is {line[key]}, not {value}")
    state, expected = (runs.saved(workdir, steps)[0] for workdir in (ours, theirs))
    for path, array in expected.items():
        if not np.allclose(state[path], array, rtol=1e-8, atol=1e-11):
            found.append(f"{path} differs by {abs(state[path] - array).max()}")
    return found


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, number in (("kills", 20), ("processes", 4), ("steps", 60), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=number)
    parser.add_argument("--elastic", action="store_true", help="another number at each start")
    options = parser.parse_args()
    os.environ |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(runs.ROOT)}
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
    jax.config.update("jax_enable_x64", options.elastic)  # it is imported: no variable counts
    import sklearn.datasets  # noqa: F401  once, before all forks

    import jaxcls.train  # noqa: F401

    dice, bad = random.Random(options.seed), 0
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        folder = Path(name)
        arguments = [
            f"--config={runs.TINY}:plain",
            "--config.mesh.data=-1",
            "--config.eval.batch_size=96",
            f"--config.duration={options.steps} steps",
            "--config.log.every=1 steps",
            "--config.watch.stuck=120",
            *(["--config.precision.name=float64"] if options.elastic else []),
        ]
        whole, workdir = folder / "whole", folder / "run"
        where = [*arguments, f"--workdir={whole}"]
        run, took = to_the_end(folder, where, options.processes)
        if {*run.codes.values()} != {0}:
            print(f"! undisturbed: exit codes {run.codes}\n{run.said(0)}")
            return 1
        print(f"  undisturbed: {took:.1f} s", flush=True)
        arguments.append(f"--workdir={workdir}")
        done, share = 0, took / options.steps

        def end(run: Run) -> bool:
            """Tells whether something is wrong with a run that has come to its end."""
            if child := os.fork():  # comparing starts JAX
                return bool(os.waitpid(child, 0)[1])
            found = [] if {*run.codes.values()} == {0} else [f"exit codes {run.codes}", run.said(0)]
            try:
                found += problems_of_the_end(workdir, whole, options.steps, options.elastic)
            except Exception as e:
                found.append(repr(e))
            print(f"{'!' if found else ' '} the end: {'; '.join(found) or 'equal'}", flush=True)
            os._exit(bool(found))

        while done < options.kills:
            few = [n for n in (1, 2, options.processes) if n <= options.processes]
            count = dice.choice(few) if options.elastic else options.processes
            before = runs.logged(workdir)
            run = Run(folder, arguments, count)
            # in half of them at a moment of the start; else some steps later
            after, steps = dice.uniform(0, took), dice.randint(1, max(options.steps // 10, 2))
            began, computing = time.monotonic(), dice.random() < 0.5
            while run.running() and time.monotonic() < began + PATIENCE:
                if computing and runs.logged(workdir) >= before + steps:
                    time.sleep(dice.uniform(0, 2 * share))
                    break
                if not computing and time.monotonic() > began + after:
                    break
                time.sleep(0.01)
            if len(run.running()) < count:  # it has come to its end before
                run.wait(PATIENCE)
                if 75 not in run.codes.values():
                    bad += end(run)
                    shutil.rmtree(workdir, ignore_errors=True)
                continue
            victim = dice.randrange(count)
            os.kill(run.children[victim], signal.SIGKILL)
            took_now = run.wait(WAIT + 3 * LIMIT)
            problems = problems_of_a_kill(run, victim, took_now)
            done += 1
            bad += bool(problems)
            when = f"step {runs.logged(workdir)}" if computing else f"{after:.1f} s"
            print(
                f"{'!' if problems else ' '} kill {done}: process {victim} of {count} at {when}: "
                f"all ended in {took_now:.1f} s {'; '.join(problems)}",
                flush=True,
            )
        run, _ = to_the_end(folder, arguments, options.processes)
        bad += end(run)
        summary = runs.summary(workdir)
        times = ("restarts", "seconds", "lost_seconds", "down_seconds", "goodput")
        print("  " + ", ".join(f"{key} {summary[key]}" for key in times))
        return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
