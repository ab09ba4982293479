"""The log of a run: means, files, what is cut back."""

import dataclasses
import json
import math
import struct
import time

import numpy as np
import pytest
from etils import epath

from jaxcls import metrics
from jaxcls.config import Plan
from jaxcls.console import Console
from jaxcls.watch import Watch

PLAN = Plan(
    batch_size=4,
    eval_batch_size=4,
    steps_per_epoch=5,
    total_steps=20,
    eval_every=0,
    save_every=0,
    log_every=4,
)
STEP = {"grad_norm": 1.0, "finite": 1.0, "skipped": 0, "skipped_in_a_row": 0, "lr": 0.1}


def open_log(workdir, from_step=0, window=None, max_skipped=1, tensorboard=False, every=4):
    return metrics.Log(
        epath.Path(workdir),
        dataclasses.replace(PLAN, log_every=every),
        max_skipped=max_skipped,
        tensorboard=tensorboard,
        from_step=from_step,
        meta={"window": window or {}, "log": None},
        evaluation=None,
        console=Console(),
        watch=Watch(slow=0.0, least=0.0, stuck=0.0),
    )


def lines(workdir):
    """Returns metrics.jsonl, without the time."""
    whole = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert all(abs(line.pop("time") - time.time()) < 600 for line in whole)
    return whole


def test_means_of_a_window(tmp_path):
    losses = np.random.default_rng(0).normal(size=20)
    log = open_log(tmp_path)
    for i, loss in enumerate(losses):
        log.add(i + 1, {**STEP, "loss": loss, "loss_scale": 2.0 * i})
        log.drain(keep=1)
    log.drain(keep=0)
    log.close()
    written = lines(tmp_path)
    assert [line["step"] for line in written] == [4, 8, 12, 16, 20]
    np.testing.assert_allclose(
        [line["loss"] for line in written], losses.reshape(5, 4).mean(1), rtol=1e-12
    )
    assert [line["loss_scale"] for line in written] == [6, 14, 22, 30, 38]  # of the last step
    assert [line["epoch"] for line in written] == [0.8, 1.6, 2.4, 3.2, 4.0]
    keys = {"split", "lr", "grad_norm", "images_per_sec", "data_wait", "skipped"}
    assert all(keys < line.keys() for line in written)


def test_the_first_throughput_leaves_compilation_out(tmp_path, monkeypatch):
    now = 0.0
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: now)
    log = open_log(tmp_path)
    for step in range(1, 9):
        now += 100 if step == 1 else 2  # seconds
        log.add(step, {**STEP, "loss": 1.0, "loss_scale": 1.0})
        log.drain(keep=0)
    log.close()
    assert [line["images_per_sec"] for line in lines(tmp_path)] == [2.0, 2.0]

    (tmp_path / "b").mkdir()
    log = open_log(tmp_path / "b", every=1)
    for step in (1, 2):
        log.add(step, {**STEP, "loss": 1.0, "loss_scale": 1.0})
        now += 2
        log.drain(keep=0)
    first, second = lines(tmp_path / "b")
    assert (first["images_per_sec"], first["data_wait"]) == (None, None)  # nothing was measured
    assert second["images_per_sec"] == 2.0


def test_window_goes_on_after_a_checkpoint(tmp_path):
    losses = np.random.default_rng(1).normal(size=8).tolist()

    def feed(log, start, stop):
        for i in range(start, stop):
            log.add(i + 1, {**STEP, "loss": losses[i], "loss_scale": 1.0})
        log.drain(keep=0)

    (tmp_path / "a").mkdir()
    whole = open_log(tmp_path / "a")
    feed(whole, 0, 8)
    whole.close()
    (tmp_path / "b").mkdir()
    first = open_log(tmp_path / "b")
    feed(first, 0, 6)
    saved = json.loads(json.dumps(first.window.sums))  # as in a checkpoint at step 6
    feed(first, 6, 8)  # what a killed run wrote after it
    first.close()
    second = open_log(tmp_path / "b", from_step=6, window=saved)
    feed(second, 6, 8)
    second.close()
    a, b = ([{k: l[k] for k in ("step", "loss")} for l in lines(tmp_path / d)] for d in "ab")
    assert a == b


def test_skipped_steps(tmp_path):
    log = open_log(tmp_path, max_skipped=2)
    bad = {**STEP, "finite": 0.0, "loss": math.nan, "grad_norm": math.inf, "loss_scale": 1.0}
    for i in range(4):
        values = {**bad, "skipped": 1, "skipped_in_a_row": 1} if i == 2 else {**STEP, "loss": 3.0}
        log.add(i + 1, {"loss_scale": 8.0, **values})
    log.drain(keep=0)
    (line,) = lines(tmp_path)
    assert line["loss"] == 3.0
    assert line["grad_norm"] == 1.0
    log.add(5, {**bad, "skipped": 2, "skipped_in_a_row": 2})
    with pytest.raises(FloatingPointError, match="step 5: 2 steps in a row were not finite"):
        log.drain(keep=0)


def test_cut_back(tmp_path):
    path = tmp_path / "metrics.jsonl"
    entries = [(2, "train"), (4, "train"), (4, "eval"), (6, "train")]
    text = [json.dumps({"step": s, "split": split}) + "\n" for s, split in entries]
    path.write_text("".join(text) + '{"step": 7, "spl')
    metrics.cut_back(path, 4, {"step": 4})
    assert path.read_text() == "".join(text[:3])
    metrics.cut_back(path, 4, None)  # stopped in the middle of the evaluation at 4
    assert path.read_text() == "".join(text[:2])


def test_numbers_that_json_lacks(tmp_path):
    log = open_log(tmp_path)
    log.report(3, "eval", {"loss": math.inf, "top1": 0.5})
    log.close()
    assert lines(tmp_path) == [
        {"step": 3, "epoch": 0.6, "split": "eval", "loss": None, "top1": 0.5}
    ]


def test_tensorboard_events(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    log = open_log(tmp_path, tensorboard=True)
    log.report(4, "eval", {"top1": 0.75})
    log.close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    data, found = file.read_bytes(), {}
    while data:  # TFRecord: length, its checksum, the event, its checksum
        (length,) = struct.unpack("<Q", data[:8])
        event = Event.FromString(data[12 : 12 + length])
        found |= {v.tag: (event.step, v.simple_value) for v in event.summary.value}
        data = data[16 + length :]
    assert found == {"eval/top1": (4, 0.75)}
