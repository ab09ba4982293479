"""A run that was interrupted ends with the same bits as one that was not.

With moving average, float16 loss scaling (steps are skipped) and accumulation on, where not said
otherwise; epochs, evaluations, checkpoints and lines of the log do not line up.
"""

import hashlib
import json
import os
import shutil
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import runs

from jaxcls import checkpoint, program, sharding, train, trees

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
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    original = sharding.put

    def run(workdir, *where, cache="auto"):
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
        config = runs.tiny()
        config.data.cache = cache
        return train.run(config, str(workdir)), digests

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.ci
@pytest.mark.parametrize("cache", ["decoded", "device"])
def test_order_of_images_and_sigterm_during_evaluations(in_process, tmp_path, cache):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    code, order = in_process(whole, cache=cache)
    assert code == 0
    assert len(order) == len(set(order)) == END  # augmented: no batch comes twice
    found = []
    for where, stopped in (
        (("train", 9), 10),  # the signal came before the batch of step 10
        (("eval", 3), 12),  # the first evaluation of this run, at a step that is saved too
        (("eval", 30), 30),  # 9 batches at 12, 18 and 24; the last evaluation
    ):
        code, digests = in_process(parts, where, cache=cache)
        assert code == 143
        found += digests
        assert runs.checkpoints(parts)[-1] == stopped
        assert not json.loads((parts / "summary.json").read_text())["complete"]
    code, digests = in_process(parts, cache=cache)
    assert (code, digests) == (0, [])
    assert found == order
    runs.assert_same_state(runs.saved(parts, END)[0], runs.saved(whole, END)[0])
    assert runs.lines(parts) == runs.lines(whole)
    summary = json.loads((parts / "summary.json").read_text())
    assert summary["complete"]
    assert summary["last"] == json.loads((whole / "summary.json").read_text())["last"]


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
        assert (runs.finish(zero).returncode, runs.finish(one).returncode) == (143, 143)
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
    arrays = dict(zip(trees.paths(state), map(np.asarray, jax.tree.leaves(state))))
    runs.assert_same_state(arrays, runs.saved(reference, END)[0])
