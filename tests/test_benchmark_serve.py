"""python -m jaxcls.benchmark serve: what it prints; no test looks at a time."""

import importlib.util
import json

import numpy as np
import pytest
import serve_load
from test_predict import store

from jaxcls.benchmark import load, serve
from jaxcls.benchmark.__main__ import main


@pytest.mark.ci
def test_what_a_server_bears(tmp_path, capsys):
    run = store(tmp_path / "run")
    (tmp_path / "x.png").write_bytes(serve_load.picture(0))
    arguments = [
        f"--images={tmp_path}/*.png",
        "--clients=1,3",
        "--seconds=0.5",
        "--repetitions=2",
        "--batch-size=4",
        "--json",
    ]
    assert main(["benchmark", "serve", run, *arguments]) == 0
    out, err = capsys.readouterr()
    rows = [json.loads(line) for line in out.splitlines()]
    servers = ["jaxcls", "fastapi"]
    if importlib.util.find_spec("fastapi") is None:
        servers = ["jaxcls"]
        assert "pip install fastapi" in err
    assert [(row["clients"], row["server"]) for row in rows] == [
        (count, kind) for count in (1, 3) for kind in servers
    ]
    for row in rows:
        assert row["refused"] == 0
        assert row["requests_per_sec"] > 0
        assert 0 < row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"]
        assert row["server"] != "jaxcls" or row["ratio"] == [1, 1, 1]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--clients=1,x"], "--clients=1,x: write numbers of at least 1, with commas"),
        (["--clients=0"], "--clients=0: write"),
        (["--seconds=0"], "--seconds=0.0: write a number above 0"),
        (["--batch-size=-1"], "--batch-size=-1: write"),
        (["--compare=flask"], "--compare=flask: write fastapi, or nothing"),
        ([], "no checkpoint there"),
        (["--speed"], "--help"),
    ],
)
def test_mistakes(arguments, text, capsys):
    assert main(["benchmark", "serve", "nowhere", *arguments]) == 2
    error = capsys.readouterr().err
    assert text in error
    assert error.count("\n") == 1


def test_a_row():
    replies = [load.Reply(i, 200 if i else 503, 0.001 * i, b"", b"") for i in range(101)]
    row = load.latencies(replies)
    assert row["p50_ms"] == pytest.approx(50.5)
    assert row["p99_ms"] == pytest.approx(99.01)
    assert np.isnan(load.latencies(replies[:1])["p50_ms"])
    row |= {"clients": 8, "server": "fastapi", "requests_per_sec": 12.34, "refused": 1}
    row["processor_ms"] = 0.5
    text = serve.as_text(row | {"ratio": [2.0, 1.5, 2.5]})
    assert "8 clients  FastAPI, a request a call" in text
    assert text.endswith("1 refused   ours x 2.00 (1.50 to 2.50)")
