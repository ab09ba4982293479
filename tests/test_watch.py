"""A step that takes far longer than others is reported, a run that is stuck ends with code 75."""

import contextlib
import threading
import types

import pytest

from jaxcls import signals, watch


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when a test says so; there is no thread that looks."""
    clock = types.SimpleNamespace(now=1000.0, ended=[])
    monkeypatch.setattr(watch.time, "monotonic", lambda: clock.now)
    monkeypatch.setattr(threading.Thread, "start", lambda self: None)

    def end(text, code):
        clock.ended.append((text, code))

    monkeypatch.setattr(signals, "end_process", end)
    return clock


def begun(clock, **limits):
    """Returns a watch after a compiled step and 20 of a tenth of a second."""
    looking = watch.Watch(**{"slow": 10.0, "least": 0.0, "stuck": 0.0, **limits})
    for step in range(22):
        looking.step(step)
        clock.now += 600.0 if step == 0 else 0.1
        looking._judge(clock.now)
    looking.step(22)
    return looking


def test_a_slow_step_is_reported_once_with_every_thread(clock, capfd):
    looking = begun(clock)
    assert looking.in_steps == pytest.approx(2.1)  # not the compiled one
    clock.now += 0.9
    looking._judge(clock.now)
    assert capfd.readouterr().err == ""
    for _ in range(3):
        clock.now += 1.0
        looking._judge(clock.now)
    first, *stack = capfd.readouterr().err.splitlines()
    assert first == (
        "jaxcls: step 23 has taken 1.9 s until now, the median of the last ones is 0.1 s; what "
        "every thread does:"
    )
    assert sum("in test_a_slow_step" in line for line in stack) == 1
    looking.step(23)
    assert capfd.readouterr().err == "jaxcls: step 23 took 3.9 s\n"


def test_what_is_short_or_no_step_is_not_slow(clock, capfd):
    looking = begun(clock, least=30.0)
    clock.now += 29.0
    looking._judge(clock.now)
    looking.step(23)
    with looking.paused("evaluating"):
        clock.now += 1000.0
        looking._judge(clock.now)
    clock.now += 1.0
    looking._judge(clock.now)
    looking.step(24)
    assert looking.in_steps == pytest.approx(2.1 + 29 + 1)
    assert (capfd.readouterr().err, clock.ended) == ("", [])


@pytest.mark.parametrize("doing", ["", "saving"])
def test_ctrl_z_counts_for_no_step(clock, monkeypatch, doing):
    """Where a process is stopped, in a step or while it saves, no step took that long, or less."""
    looking, looked = begun(clock), []
    before = looking.in_steps

    def wait(seconds):
        looked.append(clock.now)
        clock.now += 14.0 if len(looked) == 2 else 0.0
        return len(looked) == 3

    monkeypatch.setattr(looking._ended, "wait", wait)
    with looking.paused(doing) if doing else contextlib.nullcontext():
        looking._look()
    clock.now += 0.1
    looking.step(23)
    assert looking.in_steps - before == pytest.approx(0.1)


def test_a_stuck_run_ends(clock, capfd):
    looking = begun(clock, slow=0.0, stuck=60.0)
    with looking.paused("evaluating"):
        for _ in range(5):  # a batch
            clock.now += 50.0
            looking._judge(clock.now)
            looking.alive()
    assert clock.ended == []
    clock.now += 61.0
    looking._judge(clock.now)
    end = "jaxcls: no progress in 61 s, config.watch.stuck = 60; "
    assert clock.ended == [(f"{end}the same command goes on", 75)]
    said = capfd.readouterr().err
    assert said.startswith("jaxcls: computing, step 23: what every thread does:\n")
    assert "in test_a_stuck_run_ends" in said


def test_there_are_signs_of_life(clock):
    beats = []
    looking = watch.Watch(slow=0.0, least=0.0, stuck=0.0, beat=lambda: beats.append(clock.now))
    for step in range(60):
        looking.step(step)
        clock.now += 1.0
    assert beats == [1011.0, 1022.0, 1033.0, 1044.0, 1055.0]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"slow": 0.5}, "config.watch.slow = 0.5: write a factor above 1, or 0 for none"),
        ({"least": -1.0}, "config.watch.least = -1: write seconds, 0 or more"),
        ({"stuck": -1.0}, "config.watch.stuck = -1: write seconds, 0 or more"),
    ],
)
def test_limits_that_make_no_sense(changes, text):
    with pytest.raises(ValueError) as e:
        watch.Watch(**{"slow": 10.0, "least": 30.0, "stuck": 0.0, **changes})
    assert str(e.value) == text
