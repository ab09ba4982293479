"""What a user sees of a run: rows, parts, the live line, what is waited for, signals."""

import logging
import os
import pty
import re
import subprocess
import sys
import termios

import jax
import jax.numpy as jnp
import pytest

from jaxcls import console, trees
from jaxcls.console import Console

EVERYTHING = {
    "loss": 123.456789,
    "top1_mixed": 1 / 3,
    "lr": 1.23456e-05,
    "grad_norm": 1234.5678,
    "images_per_sec": 123456.789,
    "data_wait": 1 / 3,
    "skipped": 123456,
    "loss_scale": 65536.0,
}


def test_rows_fit_and_begin_with_what_matters():
    for split, metrics in (
        ("train", EVERYTHING),
        ("train", EVERYTHING | {"top1": 0.5, "top5": 0.75, "another": 1.0}),
        ("eval", {"loss": 1e-7, "top1": 0.5, "top5": 0.75, "images": 50_000}),
    ):
        row = console.row(450_000, 1_251_000, 100.125, split, metrics, classes=1000)
        assert len(row) <= 100
        assert row.startswith(
            f"{split:<5}  step  450000/1251000  epoch 100.12  loss {metrics['loss']:.4g}"
        )
    early, late = (console.row(step, 840, 1.0, "train", {}, 10) for step in (7, 700))
    assert len(early) == len(late)


@pytest.mark.parametrize(
    ("metrics", "classes", "shown"),
    [
        ({"skipped": 0, "loss_scale": 1.0}, 10, []),
        ({"skipped": 2, "loss_scale": 1.0}, 10, ["skipped 2"]),
        ({"skipped": 0, "loss_scale": 1024.0}, 10, ["loss_scale 1024"]),
        ({"top1": 0.5, "top5": 1.0}, 5, ["top1 0.5000"]),
        ({"top1": 0.5, "top5": 0.9}, 6, ["top1 0.5000", "top5 0.9000"]),
        ({"images_per_sec": float("nan"), "data_wait": float("nan")}, 10, []),
        ({"images_per_sec": 12.6, "data_wait": 0.0}, 10, ["images/s 13", "data_wait 0.00"]),
    ],
)
def test_only_what_means_something(metrics, classes, shown):
    assert console.fields(metrics, classes) == shown


def test_parts_of_a_network():
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
    params = {
        "head": {"fc": {"kernel": shape(30, 10), "bias": shape(10)}},
        "stage1": {"conv": {"kernel": shape(3, 3, 2, 5)}, "bn": {"scale": shape(5)}},
        "stem": {"kernel": shape(1000, 2)},
    }
    assert console.parts(params, frozen=(), factors=trees.multipliers(params, ())) == [
        "2,405 parameters", "stem           2,000", "stage1            95", "head             310"
    ]  # fmt: skip
    factors = trees.multipliers(params, (("^stage1/", 0.1),))
    assert console.parts(params, frozen=("^stem/", "/bn/"), factors=factors) == [
        "2,405 parameters",
        "2,005 frozen",
        "90 with a learning rate of their own",
        "stem           2,000  frozen",
        "stage1            95  5 frozen, 90 learning rate x 0.1",
        "head             310",
    ]
    blocks = {f"block{i}": {"kernel": shape(10)} for i in range(1, 7)}
    params = {"head": {"kernel": shape(7)}, "stage1": blocks, "stem": {"kernel": shape(5)}}
    factors = jax.tree.map(lambda n: 0.5**n, trees.layers_above(params))
    assert console.parts(params, frozen=("block6/",), factors=factors) == [
        "72 parameters",
        "10 frozen",
        "55 with a learning rate of their own",
        "stem               5  learning rate x 0.007812",
        "stage1            60  10 frozen, 50 learning rate x 0.01562 to 0.25",
        "head               7",
    ]


def test_what_is_waited_for(capsys):
    out = Console()
    with out.doing("compiling"):
        assert capsys.readouterr().out == "compiling ..."  # before it is done
    assert re.fullmatch(r" \d+\.\d s\n", capsys.readouterr().out)
    with out.doing("reading"):
        out.say("a line")
    assert re.fullmatch(
        r"reading \.\.\.\na line\nreading \.\.\. \d+\.\d s\n", capsys.readouterr().out
    )
    with pytest.raises(KeyError), out.doing("breaking"):
        raise KeyError
    assert capsys.readouterr().out == "breaking ... failed\n"
    f = out.announced("calling", lambda x: x + 1)
    assert [f(1), f(2)] == [2, 3]
    assert capsys.readouterr().out.count("calling") == 1


def test_the_first_step_is_a_row_where_there_is_no_terminal(capsys):
    out = Console()
    out.begin(30)
    for step in (11, 12):
        out.step(step, step / 10, {"loss": 2.5})
    assert capsys.readouterr().out == "train  step 11/30  epoch 1.10  loss 2.5\n"


# On a terminal of 80 columns: 2,000 steps with the longest values, an evaluation, lines between.
LIVE = """
import time
from jaxcls.console import Console
out = Console()
out.status("looking at the images ...")
out.say("first line")
with out.doing("compiling the train step"):
    time.sleep(1.2)
out.begin(1251000)
metrics = {"loss": 123.456789, "top1_mixed": 1 / 3, "images_per_sec": 12345.7, "data_wait": 0.5}
for step in range(1001, 1201):
    out.step(step, step / 5004, metrics)
    time.sleep(0.002)
out.evaluating(49_999)
out.report(1200, 0.24, "train", metrics)
results = {"loss": 1.23456, "top1": 0.5, "top5": 0.75, "images": 50000}
out.classes = 1000
out.report(1200, 0.24, "eval", results)
out.saved(1200)
out.close()
"""


def on_a_terminal(program, columns=80):
    """Returns what a program writes to a terminal."""
    main, side = pty.openpty()
    termios.tcsetwinsize(side, (24, columns))
    process = subprocess.Popen([sys.executable, "-c", program], stdout=side, stderr=side)
    os.close(side)
    written = b""
    while True:
        try:
            part = os.read(main, 65536)
        except OSError:  # the other side is closed
            break
        if not part:
            break
        written += part
    assert process.wait() == 0, written.decode()
    os.close(main)
    return written.decode()


def test_the_live_line():
    written = on_a_terminal(LIVE)
    states = [re.sub(r"\x1b\[[\dA-Z]*", "", s).rstrip() for s in re.split(r"[\r\n]+", written)]
    assert max(map(len, states)) <= 80  # nothing wraps
    assert "compiling the train step ... 1 s" in states  # the seconds pass
    (compiled,) = [s for s in states if re.fullmatch(r"compiling the train step \.\.\. 1\.\d s", s)]
    live = [s for s in states if "/1251000" in s and s[0] == "|"]
    (*_, moving) = (s for s in live if " left" in s)
    for text in ("loss 123.5", "top1_mixed 0.3333", "images/s 12346"):
        assert text in moving
    assert any("evaluating, 49,999 images done" in s for s in live)
    rows = [s for s in states if s.startswith(("train", "eval", "saved"))]
    assert rows == [
        "eval   step    1200/1251000  epoch 0.24  loss 1.235  top1 0.5000  top5 0.7500",
        "saved  step    1200/1251000",
    ]
    # what stays on the screen: nothing twice, nothing of the live line
    screen = [line.rpartition("\r")[2] for line in written.replace("\r\n", "\n").split("\n")]
    screen = [re.sub(r"\x1b\[[\dA-Z]*", "", line).rstrip() for line in screen]
    assert [line for line in screen if line] == ["first line", compiled, *rows]


def test_warnings_of_the_input(capsys):
    """Once, and of single images in the process that reads them."""
    console = Console()
    for enabled in (True, False):
        console.enabled = enabled
        for name in ("sources", "loader"):
            logging.getLogger(f"jaxcls.data.{name}").warning("%d of %s", 3, name)
    assert capsys.readouterr() == ("", "3 of sources\n3 of loader\n3 of loader\n")
    with Console().doing("reading"):
        logging.getLogger("jaxcls.data.loader").warning("skipped")
    assert capsys.readouterr().err == "skipped\n"
