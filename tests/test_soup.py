"""Greedy model soups."""

import json
import shutil

import jax
import numpy as np
import pytest
import runs
from etils import epath

from jaxcls import choices, network, program, record, soup, weights


def scalar(x):
    """Returns variables of one number."""
    return {"params": {"x": np.float32(x)}, "batch_stats": {}}


def cooked(values, rate, goal="max"):
    """Returns what `soup.greedy` makes of networks that are numbers."""
    names = [f"run{i}" for i in range(len(values))]
    there = dict(zip(names, map(scalar, values)))
    number = lambda variables: float(variables["params"]["x"])
    alone = [rate(x) for x in values]
    mean, best, tried = soup.greedy(
        names, alone, there.__getitem__, lambda variables: rate(number(variables)), goal
    )
    return number(mean), best, tried


@pytest.mark.parametrize("goal", ["max", "min"])
def test_what_does_no_good_is_left_out(goal):
    """The best is at 1: 0.5 and 1.5 have it as their mean, 3 and -4 would draw it away."""
    sign = 1 if goal == "max" else -1
    rate = lambda x: -sign * abs(x - 1)
    mean, best, tried = cooked([3, 1.5, -4, 0.75, 0.75], rate, goal)
    assert [t.run for t in tried] == ["run3", "run4", "run1", "run0", "run2"]
    assert [t.taken for t in tried] == [True, True, True, False, False]
    assert (mean, best) == (1.0, 0.0)
    assert tried[2].alone == -sign * 0.5  # worse than all before, but good for them


def test_equal_is_not_worse_and_what_is_not_finite_has_no_part():
    mean, _, tried = cooked([1.0, float("nan"), 4.0], lambda x: x * 0 + 0.5)
    assert [(t.run, t.taken) for t in tried] == [("run0", True), ("run2", True)]
    assert mean == 2.5
    with pytest.raises(ValueError, match="the evaluation of no run is finite"):
        cooked([float("nan")], lambda x: x)


def test_the_mean_is_that_of_float64():
    values = np.random.default_rng(0).standard_normal(9).astype(np.float32)
    mean, *_ = cooked(values, lambda x: 0.5)
    assert mean == np.float32(np.mean(values.astype(np.float64)))


def test_positional_arguments_are_runs():
    line = ["soup", "a", "--workdir", "out", "--config.seed=1", "b", "--config.lr.peak", "0.1", "c"]
    found, rest = soup._split(line)
    assert found == ["a", "b", "c"]
    assert rest == ["soup", "--workdir=out", "--config.seed=1", "--config.lr.peak=0.1"]


@pytest.mark.parametrize("text", ["", "[1]", "{}", "{"])
def test_a_trial_whose_summary_is_damaged_is_named(tmp_path, text):
    trial = tmp_path / "trials" / "0000"
    trial.mkdir(parents=True)
    (trial / "summary.json").write_text(text)
    with pytest.raises(ValueError, match=f"--workdir={trial} writes it again"):
        soup._trials(str(tmp_path))


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Two runs, untrained, whose logits differ by a constant; and one of another network."""
    folder = tmp_path_factory.mktemp("soup")

    def run(name, more=0.0, width=8):
        config = runs.tiny("plain")
        config.model.options = (("stem", "small"), ("depths", (1,)), ("width", width))
        config, data = choices.open_data(config)
        built = program.build(config, **data.facts())
        variables = jax.device_get(built.init().variables())
        head = variables["params"]["head"]["fc"]
        head["bias"] = head["bias"] + np.float32(more)
        path = folder / name
        meta = {"network": built.network.described()}
        weights.export(path / "checkpoints" / "7", variables, meta)
        record.write(config, epath.Path(path), step=0)
        return str(path)

    return run("a"), run("b", more=1.0), run("wide", width=16)


def test_runs_may_differ_in_what_an_evaluation_has_found_for_them(given):
    a, b, wide = given
    ours, _ = network.load(a)
    theirs, _ = network.load(b)
    calibrated = ours.calibrated({"temperature": 1.7, "thresholds": [0.5]})
    soup._check_same(b, calibrated, theirs)
    with pytest.raises(ValueError, match="another network than the config: options is"):
        soup._check_same(wide, network.load(wide)[0], ours)


def cook(capsys, *arguments):
    """Returns the exit code and what was printed."""
    code = soup.main(["soup", *arguments])
    return code, *capsys.readouterr()


@pytest.mark.ci
@pytest.mark.parametrize("statistics", soup.STATISTICS)
def test_what_a_soup_writes_is_what_was_evaluated(given, commands, tmp_path, capsys, statistics):
    a, b, wide = given
    out = tmp_path / "out"
    arguments = [f"--workdir={out}", f"--statistics={statistics}", a, b]
    if statistics == "average":  # the same as a sweep
        sweep = tmp_path / "sweep"
        for i, (run, complete) in enumerate(((a, True), (wide, False), (b, True))):
            shutil.copytree(run, sweep / "trials" / f"000{i}")
            summary = {"complete": complete, "best": {"step": 7}}
            (sweep / "trials" / f"000{i}" / "summary.json").write_text(json.dumps(summary))
        best = f"import runpy\n\nget_config = lambda: runpy.run_path({str(runs.TINY)!r})"
        (sweep / "best.py").write_text(f"{best}['get_config']('plain')\n")
        arguments[2:] = ["--sweep", str(sweep), "--config.mesh.data=1"]
        a, b = str(sweep / "trials" / "0000"), str(sweep / "trials" / "0002")
    code, printed, err = cook(capsys, *arguments)
    assert code == 0, err
    assert "soup of 2 of 2 runs: top1 " in printed
    net, variables = network.load(out)
    _, start = network.load(a)
    assert net.class_names == tuple("0123456789")
    bias = start["params"]["head"]["fc"]["bias"] + np.float32(0.5)
    np.testing.assert_array_equal(variables["params"]["head"]["fc"]["bias"], bias)
    same = [
        np.array_equal(x, y)
        for x, y in zip(*map(jax.tree.leaves, (start["batch_stats"], variables["batch_stats"])))
    ]
    assert same == [statistics == "average"] * len(same)
    told = json.loads((out / "config.json").read_bytes())["run"]["soup"]
    assert told["runs"] == [a, b]
    done = commands.fork(f"--workdir={out}", "--mode=eval")
    assert done.returncode == 0, done.err
    assert json.loads(done.out.splitlines()[-1])["top1"] == pytest.approx(told["top1"], abs=1e-6)
    done = commands.fork(
        f"--config={runs.TINY}:plain",
        f"--config.init.checkpoint={out}",
        f"--workdir={tmp_path / 'tuned'}",
        "--config.duration=1 steps",
        "--config.lr.warmup=",
        "--config.report.enabled=False",
    )
    assert done.returncode == 0, done.err
    assert "initialised 2" in done.out

    code, _, err = cook(capsys, *arguments)
    assert (code, err.count("\n")) == (2, 1)
    assert f"--workdir={out} exists: choose another directory for the soup" in err


def test_mistakes(given, tmp_path, capsys):
    a, b, wide = given
    out = f"--workdir={tmp_path / 'out'}"
    for arguments, text in (
        ([out, a, wide], f"{wide} has another network than the config: options is "),
        ([out, a, b, "--config.data.fraction=2"], "config.data.fraction"),
        ([out, a], "give two runs at least"),
        ([out, a, a], f"{a} is given twice"),
        ([out], "give two runs at least"),
        ([a, b], "--workdir is missing"),
        ([out, a, str(tmp_path)], f"{tmp_path}: no checkpoint there"),
        ([out, str(tmp_path), a], f"{tmp_path}: no checkpoint there"),
        ([out, f"{a}/checkpoints/7/state", a], "no checkpoint there"),
        ([out, f"--sweep={tmp_path}"], "it has no best.py: give the DIR of a sweep"),
        ([out, a, b, "--statistics=none"], "--statistics=none"),
    ):
        code, _, err = cook(capsys, *arguments)
        assert (code, err.count("\n")) == (2, 1), err
        assert text in err
    assert not (tmp_path / "out").exists()
