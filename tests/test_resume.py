"""A run that was interrupted ends with the same bits as one that was not.

With moving average, float16 loss scaling (steps are skipped) and accumulation on, where not said
otherwise; epochs, evaluations, checkpoints and lines of the log do not line up.
"""

import dataclasses
import hashlib
import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import runs

from jaxcls import barrier, checkpoint, checksums, metrics, program, sharding, train, trees
from jaxcls.data import arrays, feed, sources
from jaxcls.data.decode import BadImage

END = 30  # steps of tiny.py
NUM_TRAIN = 898


@pytest.fixture(scope="module")
def reference(commands, tmp_path_factory):
    """The working directory of a run that nothing interrupted."""
    workdir = tmp_path_factory.mktemp("reference")
    done = commands.fork(f"--config={runs.TINY}", f"--workdir={workdir}")
    assert done.returncode == 0, done.err
    state, _ = runs.saved(workdir, END)
    assert 0 < state["loss_scale/skipped"] < END
    return workdir


def half_written(workdir):
    """Returns the names of the checkpoints that are being written, or never will be complete."""
    folder = workdir / "checkpoints"
    return {p.name for p in folder.iterdir() if "tmp" in p.name} if folder.exists() else set()


@pytest.mark.ci
def test_kill_9_in_mid_epoch_and_in_mid_save(commands, reference, tmp_path):
    command = f"--config={runs.TINY}", f"--workdir={tmp_path}"
    with commands.started(*command) as process:
        runs.wait_until(lambda: runs.logged(tmp_path) >= 5, process)
        assert runs.interrupt(process, signal.SIGKILL) == -signal.SIGKILL
    assert runs.logged(tmp_path) < 15
    torn = 0
    for delay, cache in ((0, "device"), (0.01, "encoded"), (0.03, "none")):
        # seconds after a save has begun; no cache knows of a position
        before = half_written(tmp_path)
        with commands.started(*command, f"--config.data.cache={cache}") as process:
            runs.wait_until(lambda: half_written(tmp_path) - before, process)  # noqa: B023
            time.sleep(delay)
            assert runs.interrupt(process, signal.SIGKILL) == -signal.SIGKILL
        torn += bool(half_written(tmp_path) - before)
    assert torn > 0
    done = commands.fork(*command)
    assert done.returncode == 0, done.err
    assert not half_written(tmp_path)
    runs.assert_same_run(tmp_path, reference, END)


@pytest.mark.ci
def test_sigterm_and_ctrl_c(commands, reference, tmp_path):
    command = f"--config={runs.TINY}", f"--workdir={tmp_path}"
    with commands.started(*command) as process:
        runs.wait_until(lambda: runs.logged(tmp_path) >= 5, process)
        process.send_signal(signal.SIGSTOP)
        second = commands.fork(*command)
        process.send_signal(signal.SIGCONT)
        assert runs.interrupt(process, signal.SIGTERM) == 143
    assert second.returncode == 2
    assert f"{tmp_path} is in use by process {process.pid} " in second.err
    assert second.err.count("\n") == 1
    (*_, stopped) = runs.checkpoints(tmp_path)
    assert f"stopped at step {stopped} of {END}, and saved" in process.out
    assert "Traceback" not in process.err
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["complete"], summary["steps"]) == (False, stopped)

    with commands.started(*command) as process:
        runs.wait_until(lambda: runs.logged(tmp_path) > stopped, process)
        assert runs.interrupt(process, signal.SIGINT) == 130
    assert f"resuming at step {stopped} of {END}" in process.out
    assert stopped < runs.checkpoints(tmp_path)[-1] < END

    assert commands.run(*command).returncode == 0
    runs.assert_same_run(tmp_path, reference, END)
    again = commands.fork(*command)
    assert again.returncode == 0
    assert "the run is complete" in again.out
    runs.assert_same_run(tmp_path, reference, END)


def test_a_damaged_checkpoint(commands, reference, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(reference, workdir)
    newest = workdir / "checkpoints" / str(END)
    file = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)
    done = commands.fork(f"--config={runs.TINY}", f"--workdir={workdir}")
    assert done.returncode == 0, done.err
    assert f"checkpoint {newest} is damaged" in done.out
    assert f"set aside as damaged-{END}" in done.out
    assert "resuming at step 28 of 30" in done.out
    assert (newest.parent / f"damaged-{END}").exists()
    runs.assert_same_run(workdir, reference, END)


# -- At an exact point, in this process ------------------------------------------------------------


@pytest.fixture
def in_process(monkeypatch):
    """Returns run(workdir, *where) -> (exit code, digests of the training batches, in order).

    A SIGTERM comes before a batch, which is a pair ("train" or "eval", number in this run).
    """
    original = sharding.put

    def run(workdir, *where, config="plain", **changes):
        digests, seen = [], {"train": 0, "eval": 0}

        def put(batch, batch_sharding):
            kind = "eval" if "mask" in batch else "train"
            if (kind, seen[kind]) in where:
                signal.raise_signal(signal.SIGTERM)
            seen[kind] += 1
            if kind == "train":
                digests.append(hashlib.sha256(batch["image"].tobytes()).hexdigest())
            return original(batch, batch_sharding)

        monkeypatch.setattr(sharding, "put", put)
        config = runs.tiny(config)
        config.update_from_flattened_dict(changes)
        return train.run(config, str(workdir)), digests

    return run


@pytest.mark.ci
@pytest.mark.parametrize("cache", ["decoded", "device"])
def test_order_of_images_and_sigterm_during_evaluations(in_process, tmp_path, cache):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    code, order = in_process(whole, config=None, **{"data.cache": cache})
    assert code == 0
    assert len(order) == len(set(order)) == END  # augmented: no batch comes twice
    found = []
    for where, stopped in (
        (("train", 9), 10),  # the signal came before the batch of step 10
        (("eval", 3), 12),  # the first evaluation of this run, at a step that is saved too
        (("eval", 30), 30),  # 9 batches at 12, 18 and 24; the last evaluation
    ):
        code, digests = in_process(parts, where, config=None, **{"data.cache": cache})
        assert code == 143
        found += digests
        assert runs.checkpoints(parts)[-1] == stopped
        assert not json.loads((parts / "summary.json").read_text())["complete"]
    code, digests = in_process(parts, config=None, **{"data.cache": cache})
    assert (code, digests) == (0, [])
    assert found == order
    runs.assert_same_state(runs.saved(parts, END)[0], runs.saved(whole, END)[0])
    assert runs.lines(parts) == runs.lines(whole)
    summary = json.loads((parts / "summary.json").read_text())
    assert summary["complete"]
    assert summary["last"] == json.loads((whole / "summary.json").read_text())["last"]


@pytest.mark.ci
def test_several_processes_leave_in_the_middle_of_an_evaluation(in_process, tmp_path, monkeypatch):
    """JAX answers their questions about preemption, in order; one batch of 4 is evaluated."""
    asked = []

    def answer(number):
        asked.append(number)
        return number == 6 + 2  # steps 0 to 6 have asked, then the evaluation

    monkeypatch.setattr(barrier.multihost_utils, "reached_preemption_sync_point", answer)
    monkeypatch.setattr(barrier, "_preempted", False)
    monkeypatch.setattr(barrier, "_questions", itertools.count())
    assert in_process(tmp_path)[0] == 143
    assert asked == [*range(9)]
    monkeypatch.setattr(barrier, "_preempted", False)  # another process
    assert runs.checkpoints(tmp_path)[-1] == 6
    assert not [line for line in runs.lines(tmp_path) if line["split"] == "eval"]
    assert in_process(tmp_path)[0] == 0
    assert [x["step"] for x in runs.lines(tmp_path) if x["split"] == "eval"] == [6, 12, 18, 24, 30]


@pytest.mark.ci
def test_other_epochs_than_before(in_process, tmp_path):
    """The place in the data is a number of steps: with others in an epoch it is another place."""
    assert in_process(tmp_path, ("train", 13), duration="4 epochs")[0] == 143  # of 7 steps
    text = "an epoch had 7 steps up to the checkpoint of step 14, and has 14 now"
    with pytest.raises(ValueError, match=rf"^{text}: put config.batch_size back, begin another"):
        in_process(tmp_path, duration="4 epochs", batch_size=64)
    text = "an epoch had 7 steps up to the checkpoint of step 14, and has 3 now"
    other = {"batch_size": 256, "checkpoint.changed_data": "accept"}
    with pytest.raises(ValueError, match=rf"{text}, so that the run would be over: say in --conf"):
        in_process(tmp_path, duration="4 epochs", **other)
    assert not runs.summary(tmp_path)["complete"]
    assert in_process(tmp_path, duration="16 steps", **other)[0] == 0
    assert runs.summary(tmp_path)["complete"]


@pytest.mark.ci
def test_a_stop_where_an_evaluation_is_due_saves_what_will_be_evaluated(in_process, tmp_path):
    """With stochastic weight averaging, whose statistics are estimated before either."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    changes = {"duration": "14 steps", "swa.start": "8 steps", "swa.every": "2 steps"}
    assert in_process(whole, **changes)[0] == 0
    # 8 steps, 7 batches for the statistics of the save there, then the one of step 12
    assert in_process(parts, ("train", 18), **changes)[0] == 143
    assert runs.checkpoints(parts)[-1] == 12
    assert in_process(parts, **changes)[0] == 0
    for step in (12, 14):
        runs.assert_same_state(runs.saved(parts, step)[0], runs.saved(whole, step)[0])


SPARSE = {
    "checkpoint.every": "",
    "checkpoint.keep": 1,
    "log.tensorboard": False,
    "lr.warmup": "",
    "lr.schedule": "constant",  # one program for all lengths
}


@pytest.mark.ci
def test_the_best_evaluation_has_a_checkpoint(in_process, tmp_path, monkeypatch):
    """Evaluations and saves do not line up, and every signal comes within an evaluation."""

    def report(log, step, split, metrics):
        if split == "eval":
            metrics["top1"] = 1 - abs(12 - step) / 100
        original(log, step, split, metrics)

    original = train.metrics.Log.report
    monkeypatch.setattr(train.metrics.Log, "report", report)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    changes = {**SPARSE, "checkpoint.every": "7 steps"}
    assert in_process(whole, **changes)[0] == 0
    for where in (("eval", 0), ("eval", 12), ("train", 3)):
        assert in_process(parts, where, **changes)[0] == 143
        known = runs.summary(parts)
        assert known["best"] is None or known["best"]["step"] in runs.checkpoints(parts)
    assert in_process(parts, **changes)[0] == 0
    runs.assert_same_run(parts, whole, END)
    best = runs.summary(whole)["best"]["step"]
    assert best == 12
    for workdir in (whole, parts):
        assert runs.checkpoints(workdir) == [best, END]
    runs.assert_same_state(runs.saved(whole, best)[0], runs.saved(parts, best)[0])


@pytest.mark.ci
def test_whatever_ends_an_evaluation_the_epoch_is_saved(in_process, tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    changes = {**SPARSE, "duration": "14 steps"}
    assert in_process(whole, **changes)[0] == 0

    def unreadable(*args, **kwargs):
        raise ValueError("photo.jpg: cannot decode it")

    def lost(*args, **kwargs):  # as a kill would: the log has its line, the checkpoint does not
        raise RuntimeError

    for module, name, end in (
        (train, "evaluate", unreadable),
        (checkpoint.Checkpoints, "evaluated", lost),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, end)
            with pytest.raises((ValueError, RuntimeError)):
                in_process(parts, **changes)
        assert runs.checkpoints(parts) == [6]
    assert in_process(parts, **changes)[0] == 0
    runs.assert_same_run(parts, whole, 14)


WATCHED = {
    "lr.schedule": "plateau",
    "lr.patience": 0,
    "lr.gamma": 0.5,
    "lr.threshold": 9.0,  # nothing is better than the first evaluation after the warmup
    "lr.warmup": "3 steps",
    "optim.lookahead": 4,
    "optim.layer_decay": 0.8,
}


@pytest.mark.ci
def test_a_plateau_and_lookahead_go_on(in_process, tmp_path, monkeypatch):
    """The checkpoint of an evaluation was saved before it: its factor is found again."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    changes = WATCHED | {"duration": "26 steps", "log.every": "1 steps", "log.tensorboard": False}
    assert in_process(whole, **changes)[0] == 0
    rates = {line["step"]: line["lr"] for line in runs.lines(whole) if line["split"] == "train"}
    # the evaluations are those of steps 6, 12, 18, 24
    want = {6: 0.1, 7: 0.1, 12: 0.1, 13: 0.05, 18: 0.05, 19: 0.025, 24: 0.025, 25: 0.0125}
    assert {step: rates[step] for step in want} == pytest.approx(want)

    def lost(*args, **kwargs):
        raise RuntimeError

    assert in_process(parts, ("train", 14), **changes)[0] == 143  # of its own step: 14
    assert in_process(parts, ("eval", 1), **changes)[0] == 143  # within the evaluation of 18
    with monkeypatch.context() as patch:  # after it, before it is known
        patch.setattr(checkpoint.Checkpoints, "evaluated", lost)
        with pytest.raises(RuntimeError):
            in_process(parts, **changes)
    assert runs.checkpoints(parts)[-1] == 18
    with monkeypatch.context() as patch:  # once it is known, in the next step
        patch.setattr(metrics.Log, "add", lost)
        with pytest.raises(RuntimeError):
            in_process(parts, **changes)
    assert (runs.checkpoints(parts)[-1], runs.logged(parts)) == (18, 18)
    assert in_process(parts, **changes)[0] == 0
    runs.assert_same_run(parts, whole, 26)


@pytest.mark.ci
def test_bad_images_are_counted_once_a_run(in_process, tmp_path, monkeypatch):
    read = arrays.Arrays.__getitem__

    def damaged(self, index):
        if self.kind == "digits/train" and index % 100 == 7:
            raise BadImage(f"{index} is damaged")
        return read(self, index)

    monkeypatch.setattr(arrays.Arrays, "__getitem__", damaged)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    changes = {**SPARSE, "data.on_bad_image": "skip", "duration": "9 steps", "eval.every": ""}
    few = {**changes, "data.max_bad_images": 8}
    assert in_process(whole, **changes)[0] == 0
    for _ in range(3):
        assert in_process(parts, ("train", 1), **changes)[0] == 143
    assert 0 < runs.summary(parts)["bad_images"] < 9
    shutil.copytree(parts, tmp_path / "few")
    assert in_process(parts, **changes)[0] == 0
    assert runs.summary(parts)["bad_images"] == runs.summary(whole)["bad_images"] == 9
    runs.assert_same_run(parts, whole, 9)
    with pytest.raises(ValueError, match="9 images cannot be read, config.data.max_bad_images = 8"):
        in_process(tmp_path / "few", **few)


def test_other_data_are_refused(in_process, tmp_path, monkeypatch):
    changes = {**SPARSE, "duration": "4 steps", "eval.every": "4 steps"}
    assert in_process(tmp_path, ("train", 1), **changes)[0] == 143
    before = runs.saved(tmp_path, 2)[1]
    assert before["class_names"] == list("0123456789")
    original = sources.OPEN["digits"]

    def renamed():
        return [dataclasses.replace(s, class_names=(*"012345678", "ten")) for s in original()]

    monkeypatch.setitem(sources.OPEN, "digits", renamed)
    with pytest.raises(ValueError, match=f"{tmp_path}/checkpoints/2: class 9 was '9', now 'ten'"):
        in_process(tmp_path, **changes)
    assert runs.checkpoints(tmp_path) == [2]
    assert in_process(tmp_path, **changes, **{"checkpoint.changed_data": "accept"})[0] == 0
    assert runs.saved(tmp_path, 4)[1]["class_names"][9] == "ten"
    with pytest.raises(ValueError, match="898 training images before, 450 now"):
        in_process(tmp_path, **changes, **{"data.fraction": 0.5})


def test_another_network_is_named(in_process, tmp_path):
    changes = {**SPARSE, "duration": "2 steps", "eval.every": ""}
    assert in_process(tmp_path, **changes)[0] == 0
    other = {"model.name": "ResNet34_vd", "duration": "3 steps"}
    with pytest.raises(ValueError, match="2 is ResNet18_vd, the config asks for ResNet34_vd"):
        in_process(tmp_path, **{**changes, **other})


@pytest.mark.ci
@pytest.mark.parametrize("every", [1, 0])
def test_a_run_that_diverges_says_which_checkpoint_there_is(in_process, tmp_path, every):
    changes = {**SPARSE, "checkpoint.every": f"{every} steps" if every else "", "eval.every": ""}
    said = r"\. The checkpoint of step 1 is good$" if every else r"\. There is no checkpoint yet$"
    with pytest.raises(FloatingPointError, match=said):
        in_process(tmp_path, **changes, **{"lr.peak": 1e30})


def test_a_hidden_transfer_is_an_error(in_process, tmp_path, monkeypatch):
    monkeypatch.setattr(feed.Feed, "put", lambda self, batch: batch)  # stays on the host
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        in_process(tmp_path, **SPARSE)


def test_an_evaluation_that_is_not_finite(in_process, tmp_path, monkeypatch):
    def evaluate(*args, **kwargs):
        [result] = original(*args, **kwargs)
        return [{**result, "loss": math.nan if len(runs.lines(tmp_path)) < 2 else result["loss"]}]

    original = train.evaluate
    monkeypatch.setattr(train, "evaluate", evaluate)
    changes = {**SPARSE, "checkpoint.best": "loss", "eval.every": "4 steps", "duration": "8 steps"}
    assert in_process(tmp_path, ("train", 6), **changes)[0] == 143
    summary = runs.summary(tmp_path)
    assert (summary["best"], summary["last"]["step"], summary["last"]["loss"]) == (None, 4, None)
    assert in_process(tmp_path, **changes)[0] == 0
    assert runs.summary(tmp_path)["best"]["step"] == 8


DAMAGED_LOG = {
    "a changed number": lambda text: text.replace(b'"step": 5', b'"step": 4', 1),
    "noise in the middle": lambda text: text[:40] + b"\x80\xff" + text[42:],
    "half of it": lambda text: text[: len(text) // 2],
    "another kind": lambda text: b"[]\nnull\n" + text[text.index(b"\n") + 1 :],
}


@pytest.fixture(scope="module")
def stopped(commands, tmp_path_factory):
    """The working directory of a run that stopped after an evaluation and some lines."""
    workdir = tmp_path_factory.mktemp("stopped")
    command = f"--config={runs.TINY}:plain", f"--workdir={workdir}", "--config.duration=14 steps"
    assert commands.fork(*command).returncode == 0
    (workdir / "summary.json").unlink()
    return workdir


def go_on(commands, workdir):
    longer = "--config.duration=15 steps", "--config.lr.schedule=constant"
    return commands.fork(f"--config={runs.TINY}:plain", f"--workdir={workdir}", *longer)


@pytest.mark.ci
@pytest.mark.parametrize("damage", DAMAGED_LOG)
def test_a_damaged_log(commands, stopped, tmp_path, damage):
    workdir = tmp_path / "run"
    shutil.copytree(stopped, workdir)
    log = workdir / "metrics.jsonl"
    log.write_bytes(DAMAGED_LOG[damage](log.read_bytes()))
    done = go_on(commands, workdir)
    assert done.returncode == 2
    assert done.err.startswith(f"jaxcls: {log}")
    assert done.err.endswith("remove it and the log begins anew at step 14\n")
    assert done.err.count("\n") == 1
    log.unlink()
    done = go_on(commands, workdir)
    assert done.returncode == 0, done.err
    assert f"{log} is missing or empty: the log begins anew at step 14" in done.out
    assert [line["step"] for line in runs.lines(workdir)] == [15, 15]


@pytest.mark.ci
def test_meta_data_of_another_kind(commands, stopped, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(stopped, workdir)
    newest = workdir / "checkpoints" / "14"
    (newest / checksums.CHECKSUMS).unlink()
    meta = json.loads((newest / "meta" / "metadata").read_text())
    (newest / "meta" / "metadata").write_text(json.dumps({**meta, "window": [3]}))
    done = go_on(commands, workdir)
    assert done.returncode == 2
    assert (
        done.err
        == f"jaxcls: checkpoint {newest} is damaged: its meta data are not those of a run\n"
    )


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "config.json", "summary.json", "tensorboard", "checkpoints"]
)
def test_a_file_of_the_wrong_kind(commands, tmp_path, name):
    if "." in name:
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_text("")
    done = commands.fork(f"--config={runs.TINY}:plain", f"--workdir={tmp_path}")
    assert done.returncode == 2
    assert done.err.startswith(f"jaxcls: {tmp_path / name} is ")
    assert done.err.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {name, ".lock"}


@pytest.mark.ci
def test_a_share_of_the_matrix(tmp_path):
    """All of it takes an hour: `python tests/matrix.py`."""
    share = ["--kills=2", "--damages=3", "--signals=2", "--only=encoded, AugMix"]
    done = subprocess.run(
        [sys.executable, runs.ROOT / "tests" / "matrix.py", *share],
        env={**os.environ, "PYTHONPATH": str(runs.ROOT), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


# -- Other processes and devices -------------------------------------------------------------------


def descendants(pid):
    """Returns the processes below a process that still run."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:  # it has ended
            continue
        if state != "Z":
            parents.setdefault(int(parent), []).append(int(stat.parent.name))
    below, found = [pid], []
    while below:
        below = [child for parent in below for child in parents.get(parent, [])]
        found += below
    return found


in_proc = pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for processes there")


@pytest.mark.ci
@in_proc
def test_workers_are_killed_then_the_run_and_they_die_with_it(commands, tmp_path):
    end = 60
    config = (
        f"--config={runs.TINY}:plain",
        f"--config.duration={end} steps",
        "--config.eval.every=",
        "--config.log.every=1 steps",
    )
    assert commands.fork(*config, f"--workdir={tmp_path / 'whole'}").returncode == 0

    command = *config, f"--workdir={tmp_path / 'run'}"
    with commands.started(*command, "--config.loader.workers=2") as process:
        runs.wait_until(lambda: runs.logged(tmp_path / "run") >= 3, process)
        killed = workers_of(process)[0]
        os.kill(killed, signal.SIGKILL)
        runs.wait_until(lambda: runs.logged(tmp_path / "run") >= 30, process)
        process.send_signal(signal.SIGSTOP)
        workers = workers_of(process)
        process.kill()
        assert_end(workers)
    assert killed not in workers
    assert runs.logged(tmp_path / "run") < end
    warnings = [line for line in process.err.splitlines() if "starting all again at step" in line]
    assert len(warnings) == 1
    assert "Traceback" not in process.err
    done = commands.run(*command, "--config.loader.workers=1")
    assert done.returncode == 0, done.err
    assert "config.loader.workers was 2 before, now 1" in done.out
    runs.assert_same_run(tmp_path / "run", tmp_path / "whole", end)


@pytest.mark.ci
@in_proc
def test_ctrl_c_with_workers(commands, tmp_path):
    command = f"--config={runs.TINY}:plain", f"--workdir={tmp_path}", "--config.loader.workers=2"
    with commands.started(*command, "--config.duration=9999 steps") as process:
        runs.wait_until(lambda: runs.logged(tmp_path) >= 10, process)
        everyone = descendants(process.pid)
        for pid in (*workers_of(process), process.pid):  # as a terminal does
            os.kill(pid, signal.SIGINT)
        assert runs.finish(process).returncode == 130
        assert_end(everyone)
    (*_, stopped) = runs.checkpoints(tmp_path)
    assert f"stopped at step {stopped} of 9999, and saved" in process.out
    assert process.err == "Ctrl-C: saving after this step, then leaving; once more leaves at once\n"


def workers_of(process):
    """Returns the processes that load data for a run."""
    found = descendants(process.pid)
    commands = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in found}
    workers = [pid for pid, command in commands.items() if b"spawn_main" in command]
    assert len(workers) == 2, commands
    return workers


def assert_end(processes):
    """Asserts that processes end, or have ended."""
    deadline = time.monotonic() + 60
    while any(alive(pid) for pid in processes):
        assert time.monotonic() < deadline, "processes live on"
        time.sleep(0.05)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.ci
def test_from_1_device_to_2_processes_with_2_and_back(commands, tmp_path):
    """In float64, so that the whole run agrees; float16 restores bit for bit, see below."""
    end = 50
    config = (
        f"--config={runs.TINY}",
        f"--config.duration={end} steps",
        "--config.precision.name=float64",
        "--config.precision.loss_scale=dynamic",
        "--config.log.every=1 steps",
    )
    x64 = {"JAX_ENABLE_X64": "1"}
    assert commands.run(*config, f"--workdir={tmp_path / 'whole'}", **x64).returncode == 0

    workdir = tmp_path / "run"
    command = *config, f"--workdir={workdir}"
    with commands.started(*command, **x64) as process:
        runs.wait_until(lambda: runs.logged(workdir) >= 7, process)
        assert runs.interrupt(process, signal.SIGTERM) == 143
    first = runs.checkpoints(workdir)[-1]

    port = runs.free_port()
    shared = (f"--coordinator=127.0.0.1:{port}", "--num_processes=2", "--config.data.cache=device")
    peers = [(*command, *shared, f"--process_id={i}") for i in range(2)]
    with (
        commands.started(*peers[0], devices=2, **x64) as zero,
        commands.started(*peers[1], devices=2, **x64) as one,
    ):
        runs.wait_until(lambda: runs.logged(workdir) >= first + 20, zero)
        one.send_signal(signal.SIGINT)  # which becomes the SIGTERM that all agree on
        assert (runs.finish(zero).returncode, runs.finish(one).returncode) == (143, 130)
    second = runs.checkpoints(workdir)[-1]
    assert first + 20 <= second < end
    assert f"resuming at step {first} of {end}" in zero.out
    assert "step" not in one.out  # one process speaks

    assert commands.run(*command, **x64).returncode == 0
    ours, theirs = runs.lines(workdir), runs.lines(tmp_path / "whole")
    assert len(ours) == len(theirs) == end + end // 6 + 1
    for line, expected in zip(ours, theirs):
        assert line.pop("split") == expected.pop("split")
        # the accuracy is a float32 mean in every precision
        shares = [one.pop("top1_mixed", 0) for one in (line, expected)]
        assert shares[0] == pytest.approx(shares[1], rel=1e-6)
        assert line == pytest.approx(expected, rel=1e-10), line["step"]
    state, expected = (runs.saved(w, end)[0] for w in (workdir, tmp_path / "whole"))
    for path, array in expected.items():
        np.testing.assert_allclose(state[path], array, rtol=1e-9, atol=1e-12, err_msg=path)


@pytest.mark.ci
@pytest.mark.parametrize(("data", "fsdp"), [(1, 1), (4, 1), (2, 2)])
def test_the_state_is_restored_bit_for_bit_on_other_devices(reference, tmp_path, data, fsdp):
    config = runs.tiny()
    config.mesh.data, config.mesh.fsdp, config.mesh.fsdp_min_size = data, fsdp, 1
    built = program.build(config, num_train=NUM_TRAIN, num_classes=10)
    shutil.copytree(reference / "checkpoints", tmp_path / "checkpoints")
    opened = checkpoint.Checkpoints(tmp_path / "checkpoints", keep=3, best="top1")
    state, _ = opened.restore(built.abstract_state)
    opened.close()
    assert int(state.step) == END
    spread = {len(x.sharding.device_set) for x in jax.tree.leaves(state)}
    assert spread == {data * fsdp}
    values = dict(zip(trees.paths(state), map(np.asarray, jax.tree.leaves(state))))
    runs.assert_same_state(values, runs.saved(reference, END)[0])
