"""What restarts have cost, from the files of a run."""

import json
import os
import time

import pytest
from etils import epath

from jaxcls import starts


def start(workdir, began, step, seconds, monkeypatch):
    """Returns the clock of a start at a time, from a checkpoint that knows of these seconds."""
    monkeypatch.setattr(time, "time", lambda: began)
    clock = starts.Clock(epath.Path(workdir))
    clock.start(step, {"seconds": seconds})
    return clock


def seen(workdir, at):
    """A run writes its log for the last time."""
    (workdir / "metrics.jsonl").touch()
    for name in ("metrics.jsonl", starts.FILE):
        os.utime(workdir / name, (at, at))


def test_what_restarts_have_cost(tmp_path, monkeypatch):
    # 100 s, of which 60 are in its checkpoint, then 50 s down; 200 s, 150 of them saved, 0 s down
    start(tmp_path, 1000.0, 0, 0.0, monkeypatch)
    seen(tmp_path, 1100.0)
    start(tmp_path, 1150.0, 6, 60.0, monkeypatch)
    seen(tmp_path, 1350.0)
    clock = start(tmp_path, 1350.0, 20, 210.0, monkeypatch)
    monkeypatch.setattr(time, "time", lambda: 1450.0)
    assert clock.seconds == 310.0
    found = clock.summary({"in_steps": 200.0}, 30)
    assert found == {
        "seconds": 310.0,
        "restarts": 2,
        "lost_seconds": 90.0,
        "down_seconds": 50.0,
        "goodput": 0.5,
        "ended": 1450.0,
    }
    lines = [json.loads(line) for line in (tmp_path / starts.FILE).read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 6, 20]
    assert [line.get("last") for line in lines] == [None, 1100.0, 1350.0]
    # begun once more, though complete
    summary = {"steps": 30, "complete": True, **found}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    monkeypatch.setattr(time, "time", lambda: 9000.0)
    known = {"in_steps": 200.0, "seconds": 300.0}
    assert starts.Clock(epath.Path(tmp_path)).summary(known, 30) == found
    # and one that was killed before it could say that it is complete: not as an earlier start ended
    for stale in ({"complete": False}, {"steps": 20}):
        (tmp_path / "summary.json").write_text(json.dumps(summary | stale | {"ended": 1150.0}))
        seen(tmp_path, 1440.0)
        os.utime(tmp_path / "summary.json", (1150.0, 1150.0))
        again = starts.Clock(epath.Path(tmp_path)).summary(known, 30)
        assert (again["seconds"], again["restarts"], again["ended"]) == (300.0, 2, 1440.0)


def test_a_copy_of_a_directory_has_other_times(tmp_path, monkeypatch):
    """A run that was stopped after 100 s, copied a week later, goes on in the copy."""
    clock = start(tmp_path, 1000.0, 0, 0.0, monkeypatch)
    monkeypatch.setattr(time, "time", lambda: 1100.0)
    stopped = clock.summary({"in_steps": 80.0}, 6)
    (tmp_path / "summary.json").write_text(json.dumps({"steps": 6, "complete": False, **stopped}))
    seen(tmp_path, 600_000.0)
    clock = start(tmp_path, 600_100.0, 6, 100.0, monkeypatch)
    monkeypatch.setattr(time, "time", lambda: 600_200.0)
    found = clock.summary({"in_steps": 160.0}, 12)
    assert (found["lost_seconds"], found["down_seconds"]) == (0.0, 599_000.0)
    assert (found["seconds"], found["goodput"]) == (200.0, 0.8)


@pytest.mark.parametrize("text", ["", "[]\nnull\n{}\n", '{"time": "x"}\n', "\x00"])
def test_a_file_that_is_damaged_begins_anew(tmp_path, monkeypatch, text):
    (tmp_path / starts.FILE).write_text(text)
    clock = start(tmp_path, 1000.0, 0, 0.0, monkeypatch)
    monkeypatch.setattr(time, "time", lambda: 1010.0)
    found = clock.summary({"in_steps": 5.0}, 7)
    assert (found["restarts"], found["lost_seconds"], found["goodput"]) == (0, 0.0, 0.5)
