"""Searches: spaces and their mistakes, what is proposed, whole sweeps that are killed."""

import csv
import itertools
import json
import math
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import types

import pytest
import runs

from jaxcls import command
from jaxcls import config as configs
from jaxcls.recipes import read
from jaxcls.sweep import recipe, space

optuna = pytest.importorskip("optuna")
sqlalchemy = pytest.importorskip("sqlalchemy")

from optuna.trial import TrialState, create_trial  # noqa: E402

from jaxcls.sweep import __main__ as sweep  # noqa: E402
from jaxcls.sweep import study as studies  # noqa: E402
from jaxcls.sweep import trials  # noqa: E402
from jaxcls.sweep.propose import distributions, propose  # noqa: E402

PLAIN = f"{runs.TINY}:plain"
TRANSFER = runs.ROOT / "configs" / "spaces" / "transfer.py"
GRID = "def get_space():\n    return {'lr.peak': (0.1, 0.01), 'mix.mixup': (0.0, 0.2)}\n"


def file(folder, text):
    """Returns a space file of `text`."""
    path = folder / "space.py"
    path.write_text(text)
    return path


def of(folder, entries):
    """Returns the space of a file that returns these entries."""
    head = "from jaxcls.sweep.space import choices, integers, linear, log\n\n"
    return space.read(str(file(folder, f"{head}def get_space():\n    return {{{entries}}}\n")))


# -- Spaces ----------------------------------------------------------------------------------------


def test_a_space_of_every_kind(tmp_path):
    there = of(
        tmp_path,
        "'lr.peak': log(1e-4, 0.1), 'ema.decay': linear(0, 0.9), 'batch_size': integers(32, 64, "
        "step=16), 'optim.frozen': choices((), ['^stem/']), 'model.name': ('ResNet18', 'AlexNet'), "
        "'optim.epsilon': (None, 1)",
    )
    assert space.size(there) is None
    assert list(space.all_values(there["batch_size"])) == [32, 48, 64]
    assert there["optim.frozen"].values == ((), ("^stem/",))
    assert there["optim.epsilon"].values == (None, 1.0)
    assert isinstance(there["optim.epsilon"].values[1], float)


def test_the_points_of_a_grid():
    there = space.check({"seed": (1, 2), "batch_size": space.integers(4, 9, step=2)})
    expected = itertools.product((1, 2), (4, 6, 8))
    assert [tuple(space.point(there, i).values()) for i in range(6)] == list(expected)


def test_the_space_of_the_seeds():
    there = space.read(str(TRANSFER))
    assert [len(d.values) for d in there.values()] == [7, 7, 2, 2]
    assert space.size(there) == 196


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        ("'lr.peek': (0.1,)", "there is no config.lr.peek: did you mean lr.peak"),
        ("'learning_rate': (0.1,)", "there is no config.learning_rate: write config.lr.peak"),
        ("'lr': (0.1,)", "config.lr is a section: write config.lr.peak"),
        ("'lr.peak': ()", "config.lr.peak has no choices"),
        ("'lr.peak': (0.1, 'high')", "config.lr.peak = 'high': write a number"),
        ("'lr.peak': (0.1, 0.2, 0.1)", "config.lr.peak: 0.1 is among its choices twice"),
        ("'lr.peak': log(0.1, 0.01)", "config.lr.peak: 0.1 to 0.01 is no range"),
        ("'lr.peak': linear(0.1, 0.1)", "config.lr.peak: 0.1 to 0.1 is no range"),
        ("'lr.peak': log(0, 0.1)", "config.lr.peak: 0 to 0.1 has no logarithm"),
        ("'lr.peak': linear(0, float('inf'))", "config.lr.peak = inf: write a finite number"),
        ("'lr.peak': 0.1", "config.lr.peak: 0.1 is no dimension"),
        ("'lr.peak': {'low': 1}", "config.lr.peak: {'low': 1} is no dimension"),
        ("'batch_size': linear(16, 64)", "config.batch_size is a whole number: write integers(16"),
        ("'batch_size': integers(16, 64, step=0)", "config.batch_size is a whole number"),
        ("'batch_size': integers(16, 64, step=-1)", "config.batch_size: step = -1: write 1"),
        ("'batch_size': (16, 32.5)", "config.batch_size = 32.5: write a whole number"),
        ("'model.name': log(1, 2)", "config.model.name is no number: write choices"),
        ("'checkpoint.best': ('top1',)", "config.checkpoint.best is the metric that"),
        ("", "get_space() returns {}"),
    ],
)
def test_a_space_that_is_wrong(tmp_path, entries, text):
    with pytest.raises(ValueError) as e:
        of(tmp_path, entries)
    assert text in str(e.value)
    assert str(e.value).startswith("--space=")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def get_space(:\n", "space.py:1: SyntaxError"),
        ("x = 1\n", "it has no function get_space()"),
        ("def get_space():\n    return {'a': b}\n", "space.py:2: NameError"),
        ("def get_space():\n    return [1]\n", "get_space() returns [1]"),
    ],
)
def test_a_space_file_that_is_wrong(tmp_path, text, expected):
    with pytest.raises(ValueError) as e:
        space.read(str(file(tmp_path, text)))
    assert expected in str(e.value)


def test_a_space_file_that_is_not_there():
    for name in ("configs/spaces/transfr.py", "transfer", "transfer.py:x"):
        with pytest.raises(ValueError, match=r"such file: did you mean .*spaces.transfer\.py\?"):
            space.read(name)
    with pytest.raises(ValueError, match=r"there is no such file; jaxcls has .*spaces$"):
        space.read("nonsense/")


# -- Proposals -------------------------------------------------------------------------------------


def quality(values):
    """Returns how good a point is: 1 at lr.peak = 0.01 and optim.l2 = 1e-4."""
    lr, l2 = math.log10(values["lr.peak"]), math.log10(values["optim.l2"])
    return 1 - 0.1 * (lr + 2) ** 2 - 0.02 * (l2 + 4) ** 2


def searched(there, strategy, seed, count, rate=quality):
    """Returns the parameters of the trials of a search."""
    trials = []
    for _ in range(count):
        params = propose(there, strategy, seed, trials, "maximize")
        state, value = TrialState.COMPLETE, rate(params)
        state = TrialState.FAIL if value is None else state
        dists = distributions(there)
        trials.append(create_trial(state=state, value=value, params=params, distributions=dists))
    return [trial.params for trial in trials]


@pytest.mark.parametrize("strategy", sweep.STRATEGIES)
def test_a_search_ends_without_repeats_or_holes(strategy):
    there = space.check({"lr.peak": (0.1, 0.01, 0.001), "optim.l2": (1e-3, 1e-4)})
    found = searched(there, strategy, 3, 6)
    key = lambda p: (p["lr.peak"], p["optim.l2"])
    assert sorted(map(key, found)) == sorted(key(space.point(there, i)) for i in range(6))
    assert found == searched(there, strategy, 3, 6)


def test_a_proposal_knows_all_trials_and_nothing_else():
    """So a search that goes on after a kill tries what it would have tried."""
    there = space.check({"lr.peak": space.log(1e-4, 1), "optim.l2": space.log(1e-6, 1e-2)})
    whole = searched(there, "bayes", 0, 12)
    assert whole[:8] == searched(there, "bayes", 0, 8)
    assert whole != searched(there, "bayes", 1, 12)
    assert len({p["lr.peak"] for p in whole}) == 12
    assert all(p["lr.peak"] == float(f"{p['lr.peak']:.4g}") for p in whole)


def test_bayes_finds_in_a_tenth_of_the_grid_what_random_seldom_does():
    there = space.read(str(TRANSFER))
    optimum = max(quality(space.point(there, i)) for i in range(196))
    left = {
        strategy: [
            optimum - max(map(quality, searched(there, strategy, seed, 16))) for seed in range(3)
        ]
        for strategy in ("bayes", "random")
    }
    assert max(left["bayes"]) < 0.001  # neighbours of the optimum are worse by 0.005
    assert sum(left["random"]) > 0.01


def test_bayes_learns_from_what_failed():
    """Large learning rates diverge: after the first few, hardly one is tried again."""
    there = space.check({"lr.peak": space.log(1e-4, 1), "optim.l2": space.log(1e-6, 1e-2)})
    rate = lambda p: None if p["lr.peak"] > 0.1 else 0.5
    found = searched(there, "bayes", 0, 30, rate)
    assert sum(p["lr.peak"] > 0.1 for p in found[10:]) <= 2


# -- Files and mistakes, in this process -----------------------------------------------------------


def test_a_config_that_was_written_is_the_config(tmp_path):
    config = runs.tiny()
    config.data.root = 'C:\\new "x" \u00e9'
    config.optim.frozen = ("^stem/", r"\d\"")
    config.optim.epsilon = 1e-6
    path = tmp_path / "best.py"
    found = {"lr.peak": 0.012345, "seed": 2**60, "eval.ema": False, "mix.weights": (1.0, 2.0, 0.5)}
    path.write_text(recipe.written(config, 'of "C:\\new" """x"""', found))
    config.update_from_flattened_dict(found)
    assert configs.flatten(read(str(path))) == configs.flatten(config)


@pytest.fixture
def sweep_of(tmp_path, monkeypatch, capsys):
    """Returns run(*arguments) -> (exit code, stderr) of a sweep that opens its study and ends."""
    monkeypatch.setattr(sweep, "search", lambda *_: 0)
    monkeypatch.setattr(studies, "PATIENCE", 0.1)

    def run(*arguments, text=GRID, workdir=tmp_path / "dir"):
        there = [f"--config={PLAIN}", f"--space={file(tmp_path, text)}", f"--workdir={workdir}"]
        code = command.told(sweep.main)(["jaxcls.sweep", *there, *arguments])
        return code, capsys.readouterr().err

    return run


def one(key, *values):
    """Returns the text of a space of one key."""
    return f"def get_space():\n    return {{{key!r}: {values!r}}}\n"


@pytest.mark.parametrize(
    ("arguments", "text", "expected"),
    [
        ([], GRID, "--trials is missing: write how many to run in all"),
        (["--trials=0"], GRID, "--trials=0: write a number above 0"),
        (["--trials=5"], GRID, "--trials=5: the space has 4 points, and none is tried twice"),
        (["--strategy=gird"], GRID, "--strategy=gird"),
        (["--trial=4"], GRID, "unknown flag --trial"),
        (["--trials=4", "--jobs=0"], GRID, "--jobs=0"),
        (["--trials=4", "--config.lr.peak=1"], GRID, "config.lr.peak is in the space: leave"),
        (["--trials=4", "--storage=nonsense"], GRID, "--storage=nonsense: write the URL of a"),
        (["--trials=4", "--storage=sqlite://"], GRID, "--storage=sqlite://: write the URL of a"),
        (
            ["--trials=4", "--storage=oracle://me:secret@h/x"],
            GRID,
            "--storage=oracle://me:***@h/x: No module named",
        ),
        (["--trials=1"], one("optim.name", "adamm"), "unknown config.optim.name 'adamm'"),
        (["--trials=1"], one("duration", "9 epoks"), "config.duration = '9 epoks' is not a"),
        (
            ["--strategy=grid"],
            "from jaxcls.sweep.space import log\n"
            "def get_space():\n    return {'lr.peak': log(0.1, 1)}\n",
            "--strategy=grid: config.lr.peak is a range",
        ),
    ],
)
def test_a_mistake_is_one_line(sweep_of, tmp_path, arguments, text, expected):
    code, err = sweep_of(*arguments, text=text)
    assert (code, err.count("\n")) == (2, 1), err
    assert expected in err
    assert not {studies.FILE, studies.DATABASE} & {path.name for path in tmp_path.rglob("*")}


def test_optuna_is_missing(sweep_of, monkeypatch):
    monkeypatch.setattr(sweep.importlib.util, "find_spec", lambda name: None)
    assert sweep_of("--strategy=grid") == (
        2,
        "jaxcls: python -m jaxcls.sweep needs Optuna: pip install 'jaxcls[sweep]'\n",
    )


def test_a_remote_directory_has_no_file_locks():
    with pytest.raises(ValueError, match="--workdir=gs://x/y: a sweep needs a folder with file"):
        sweep.needed(types.SimpleNamespace(workdir="gs://x/y"))


def test_another_sweep_in_the_same_directory(sweep_of, tmp_path):
    command = "--strategy=random", "--trials=4"
    assert sweep_of(*command) == (0, "")
    assert sweep_of("--strategy=random", "--trials=3") == (0, "")  # the same, shorter
    for arguments, text, expected in (
        (["--config.optim.l2=0.5"], GRID, "config.optim.l2 is 0.0001 there, 0.5 here"),
        (["--config.checkpoint.best=loss"], GRID, "config.checkpoint.best is 'top1' there, 'loss'"),
        (["--seed=1"], GRID, "seed is 0 there, 1 here"),
        (["--strategy=bayes"], GRID, "strategy is 'random' there, 'bayes' here"),
        ([], GRID.replace("0.01", "0.02"), "space.lr.peak.choices is [0.1, 0.01] there, [0.1, 0."),
        ([f"--storage=sqlite:///{tmp_path}/x.db"], GRID, "storage is '' there"),
    ):
        code, err = sweep_of(*command, *arguments, text=text)
        assert (code, err.count("\n")) == (2, 1), err
        assert f"{tmp_path / 'dir'} has another sweep: " in err
        assert expected in err


def test_a_directory_that_is_none_for_a_sweep(sweep_of, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    (tmp_path / "file").write_text("")
    for name, expected in (("run", "is a run: choose another"), ("file", "is a file: give a")):
        code, err = sweep_of("--strategy=grid", workdir=tmp_path / name)
        assert (code, err.count("\n")) == (2, 1)
        assert expected in err


def test_a_database_that_is_none_of_ours(sweep_of, tmp_path):
    folder = tmp_path / "dir"
    database = folder / studies.DATABASE

    def refused(expected, *arguments):
        code, err = sweep_of("--strategy=grid", *arguments)
        assert (code, err.count("\n")) == (2, 1), err
        assert expected in err

    assert sweep_of("--strategy=grid") == (0, "")
    ours = database.read_bytes()
    with sqlite3.connect(database) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        refused(f"{database} cannot be used: database is locked: another program holds it")
    connection.close()
    assert sweep_of("--strategy=grid") == (0, "")
    database.write_bytes(b"no database at all, but a text that is long enough" * 100)
    refused(f"{database} is not a database")
    database.unlink()
    with sqlite3.connect(database) as connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")
    connection.close()
    refused(f"{database} is a database of another program")
    database.unlink()
    optuna.create_study(storage=f"sqlite:///{database}", study_name="theirs")
    refused(f"{database} has the studies of another program (theirs)")
    database.unlink()
    optuna.create_study(storage=f"sqlite:///{database}", study_name=studies.NAME)
    refused("has a study 'sweep' that is not of")
    database.unlink()
    (folder / "trials" / "0000.log").touch()
    refused("has no study of")
    database.write_bytes(ours)
    assert sweep_of("--strategy=grid") == (0, "")
    (folder / studies.FILE).unlink()
    refused("is not of a sweep that was begun here")


def test_a_database_of_a_newer_optuna(sweep_of, tmp_path):
    assert sweep_of("--strategy=grid") == (0, "")
    with sqlite3.connect(tmp_path / "dir" / studies.DATABASE) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'v99.0.0.a'")
    connection.close()
    code, err = sweep_of("--strategy=grid")
    assert (code, err.count("\n")) == (2, 1), err
    assert "no longer compatible with the table schema" in err


@pytest.mark.parametrize("storage", [False, pytest.param(True, marks=pytest.mark.ci)])
def test_a_sweep_that_is_killed_while_it_makes_its_database(tmp_path, storage):
    """Whatever is there after one of its statements, the same command goes on."""
    place, copies = tmp_path / "place", []
    given = {"storage": f"sqlite:///{place}/x.db"} if storage else {}
    place.mkdir()

    def look(*_):
        copies.append(tmp_path / str(len(copies)))
        shutil.copytree(place, copies[-1])

    sqlalchemy.event.listen(sqlalchemy.Engine, "after_cursor_execute", look)
    try:
        study = opened(place / "dir", **given)
    finally:
        sqlalchemy.event.remove(sqlalchemy.Engine, "after_cursor_execute", look)
    assert len(copies) > 40
    for copy in (*copies[5::24], copies[-4]):
        shutil.rmtree(place)
        copy.rename(place)
        assert opened(place / "dir", **given).claim(1).values.keys() == study.space.keys()


def test_a_database_that_can_only_be_read(sweep_of, tmp_path):
    optuna.create_study(storage=f"sqlite:///{tmp_path}/x.db")
    readonly = f"--storage=sqlite:///file:{tmp_path}/x.db?mode=ro&uri=true"
    code, err = sweep_of("--strategy=grid", readonly)
    assert (code, err.count("\n")) == (2, 1), err
    assert "readonly database: change its permissions, or choose another --storage" in err


# -- Trials, in this process -----------------------------------------------------------------------


def opened(folder, strategy="random", entries=None, **more):
    """Returns the study of a folder."""
    there = space.check(entries or {"lr.peak": space.log(1e-3, 1.0)})
    config = configs.flatten(runs.tiny("plain"))
    options = {"strategy": strategy, "pruner": "median", "seed": 0, **more}
    return studies.Study(folder, config=config, space=there, **options)


def test_no_trial_twice_and_none_forgotten(tmp_path):
    one, two = opened(tmp_path), opened(tmp_path)
    claims = [one.claim(3), two.claim(3), one.claim(3)]
    assert [claim.number for claim in claims] == [0, 1, 2]
    assert one.claim(3) is two.claim(3) is None
    one.report(claims[2], 1, 0.25)
    os.close(claims[2].log)  # as the system does when a process ends
    again = two.claim(3)
    assert (again.number, again.values, again.known) == (2, claims[2].values, {1: 0.25})
    two.tell(again, TrialState.COMPLETE, 0.5)
    os.close(again.log)
    assert two.claim(3) is None
    assert len(one.trials()) == 3
    assert one.claim(4).number == 3  # more are wanted


def evaluated(study, claim, *top1, more=True):
    """Writes what a trial has reported: evaluations with a line of training after each."""
    lines = []
    for step, value in enumerate(top1):
        lines += [{"split": "eval", "step": step, "top1": value}, {"split": "train", "step": step}]
    folder = study.run_dir(claim.number)
    folder.mkdir(exist_ok=True)
    text = "".join(json.dumps(line) + "\n" for line in lines[: None if more else -1])
    (folder / "metrics.jsonl").write_text(text + '{"split": "eval", "st')


def test_the_pruner_is_asked_of_every_evaluation_but_the_last(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(trials.Trial, "_start", lambda self: started.append(self))
    study, slot = opened(tmp_path), trials.Slot("", {}, None)
    for _ in range(4):
        claim = study.claim(9)
        for step, value in enumerate((0.4, 0.6, 0.8, 0.9), start=1):
            study.report(claim, step, value)
        study.tell(claim, TrialState.COMPLETE, 0.9)
    for top1, more, pruned, reported in (
        ((0.1, 0.7), True, False, 2),  # the first is not asked for
        ((0.5, 0.5), False, False, 2),  # there may be nothing left to save
        ((0.5, 0.5, 0.9), True, True, 2),  # as if it had been asked in time
        ((0.5, 0.7, 0.7, 0.95), True, True, 3),
        ((None, None), True, True, 2),  # not finite
    ):
        claim = study.claim(9)
        evaluated(study, claim, *top1, more=more)
        trial = trials.Trial(study, claim, slot, [])
        assert (trial.pruned, len(claim.known)) == (pruned, reported), top1
        assert (trial in started) == (not pruned)
        if pruned:
            assert trial.poll() == TrialState.PRUNED
        else:
            study.tell(claim, TrialState.FAIL)
        trial.close()
    ends = [trial.state for trial in study.trials()[4:]]
    assert ends == [TrialState.FAIL, TrialState.FAIL, *[TrialState.PRUNED] * 3]


def test_a_trial_has_a_gpu_of_its_own(tmp_path, monkeypatch):
    (tmp_path / "trials").mkdir()
    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,2,GPU-ab/c")
    two = trials.slots(2, tmp_path)
    third = trials.slots(1, tmp_path)
    names = [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in (*two, *third)]
    assert names == ["0", "2", "GPU-ab/c"]
    with pytest.raises(ValueError, match=r"--jobs=1: 0 of 3 GPU\(s\) are free"):
        trials.slots(1, tmp_path)
    two[1].close()
    assert trials.slots(1, tmp_path)[0].environment == {"CUDA_VISIBLE_DEVICES": "2"}


def test_jobs_share_the_cores(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 5, 7}, raising=False)
    assert [slot.cores for slot in trials.slots(1, tmp_path)] == [""]
    assert [slot.cores for slot in trials.slots(2, tmp_path)] == ["0,1", "2,5,7"]
    many = [slot.cores for slot in trials.slots(7, tmp_path)]
    assert {*many} == {"0", "1", "2", "5", "7"}


def test_metrics_of_a_table_are_rounded():
    from jaxcls.sweep.table import lines

    for metric in ("top1", "loss", "map", "macro_f1", "micro_f1"):
        rows = [{"trial": "0000", metric: 0.123456789, "lr.peak": 0.001234}]
        assert lines(rows)[1].split() == ["0000", "0.1235", "0.001234"]


# -- Whole sweeps ----------------------------------------------------------------------------------


def started(commands, workdir, *arguments, config=PLAIN):
    """Starts a sweep in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "jaxcls.sweep", f"--config={config}", f"--workdir={workdir}",
         *arguments],
        env=commands.environment(),
        cwd=commands.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


def table(workdir):
    """Returns the rows of trials.csv, without what measures time."""
    rows = list(csv.DictReader((workdir / "trials.csv").open()))
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def ended(process):
    """Returns what a sweep has printed, which ended well."""
    out, err = process.communicate(timeout=runs.PATIENCE)
    assert process.returncode == 0, err
    return out


@pytest.mark.ci
def test_a_grid_that_is_killed_in_a_trial(commands, tmp_path):
    there = [f"--space={file(tmp_path, GRID)}", "--strategy=grid", "--config.report.enabled=True"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    out = ended(started(commands, whole, *there))
    rows = table(whole)
    assert {row["state"] for row in rows} == {"complete"}
    points = {(float(row["lr.peak"]), float(row["mix.mixup"])) for row in rows}
    assert points == set(itertools.product((0.1, 0.01), (0.0, 0.2)))
    best = max(rows, key=lambda row: float(row["top1"]))
    assert f"best       trial {best['trial']}: top1 {float(best['top1']):.4f}" in out
    names = {path.name for path in whole.iterdir()}
    assert names >= {
        "study.db",
        "trials.csv",
        "best.py",
        "history.png",
        "slice.png",
        "parallel.png",
    }

    process = started(commands, killed, *there)
    second = killed / "trials" / "0001"
    runs.wait_until(lambda: runs.logged(second) >= 10, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    ended(started(commands, killed, *there))
    assert "resuming at step" in second.with_suffix(".log").read_text()
    assert table(killed) == rows
    for row in rows:
        runs.assert_same_run(killed / "trials" / row["trial"], whole / "trials" / row["trial"], 30)

    done = commands.fork(f"--config={whole / 'best.py'}", f"--workdir={tmp_path / 'again'}")
    assert done.returncode == 0, done.err
    runs.assert_same_run(tmp_path / "again", whole / "trials" / best["trial"], 30)
    reports = [path.parent.name for path in tmp_path.rglob("report")]
    assert reports == ["again"]  # a trial has none


@pytest.mark.zoo
def test_two_of_three_processes_are_killed_at_once(commands, tmp_path):
    workdir, space_file = tmp_path / "dir", file(tmp_path, one("seed", *range(5)))
    there = [f"--space={space_file}", "--strategy=random", "--trials=5"]
    processes = [started(commands, workdir, *there) for _ in range(3)]
    trial = [workdir / "trials" / f"000{i}" for i in range(5)]
    runs.wait_until(lambda: all(runs.logged(trial[i]) >= 5 for i in range(3)), processes[0])
    for process in processes[:2]:
        process.send_signal(signal.SIGKILL)
    for process in processes[:2]:
        process.communicate()
    ended(processes[2])
    rows = table(workdir)
    assert [row["trial"] for row in rows] == [f"000{i}" for i in range(5)]
    assert {row["state"] for row in rows} == {"complete"}
    assert {row["seed"] for row in rows} == {*"01234"}
    assert [runs.summary(t)["complete"] for t in trial] == [True] * 5
    logs = [t.with_suffix(".log").read_text() for t in trial]
    assert sum("resuming at step" in log for log in logs) <= 2  # the two that were taken up
    assert sum(log.count("initialising the network") for log in logs) <= 7
    assert ended(started(commands, workdir, *there)).count("trial 000") == 1  # the best: all done


@pytest.mark.zoo
def test_trials_that_are_given_up_and_that_fail(commands, tmp_path):
    """Learning rates of 1e-9 learn nothing, of 1e30 diverge."""
    workdir = tmp_path / "dir"
    text = "def get_space():\n    return {'lr.peak': (0.1, 1e-9, 1e30), 'seed': (1, 2, 3)}\n"
    options = ("--config.lr.warmup=", "--config.model.bn_momentum=0.5", "--seed=3")
    there = [f"--space={file(tmp_path, text)}", "--strategy=grid", *options]
    out = ended(started(commands, workdir, *there))
    rows = table(workdir)
    states = {row["trial"]: (float(row["lr.peak"]), row["state"]) for row in rows}
    assert {rate for rate, state in states.values() if state == "failed"} == {1e30}
    assert (1e-9, "pruned") in states.values()
    assert [row["problem"].startswith("step ") for row in rows if row["state"] == "failed"] == [
        True
    ] * 3
    for number, (_, state) in states.items():
        kept = (workdir / "trials" / number / "checkpoints").exists()
        assert kept == (state == "complete"), number
    assert "pruned" in out


@pytest.mark.ci
def test_a_mistake_in_the_first_trial_stops_the_sweep(commands, tmp_path):
    there = [f"--space={file(tmp_path, one('batch_size', 100000, 128))}", "--strategy=grid"]
    process = started(commands, tmp_path / "dir", *there, "--seed=1")
    out, err = process.communicate(timeout=runs.PATIENCE)
    assert process.returncode == 2
    assert (out.count("trial 0000"), err.count("\n")) == (1, 1)  # and it is not begun again
    assert "trial 0000" in err
    assert "config.batch_size = 100000 is more than the 898 training images" in err
