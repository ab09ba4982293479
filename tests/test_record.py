"""config.json: a run goes on, and is evaluated, from nothing but its working directory."""

import json

import pinned
import pytest
import runs
from absl import flags
from etils import epath

from configs import base, digits
from jaxcls import command, record, train
from jaxcls.config import flatten

CONFIGS = pinned.configs()


def same(config, other):
    """Returns whether two configs agree in values and their types, inside of tuples too."""
    return repr(flatten(config)) == repr(flatten(other))


@pytest.fixture
def written(tmp_path):
    record.write(digits.get_config(), epath.Path(tmp_path), step=0)
    return tmp_path / "config.json"


@pytest.mark.parametrize("name", ["configs/finetune.py", "configs/resnet50_vd.py", "tiny"])
def test_what_is_read_is_what_was_written(name, tmp_path):
    config = runs.tiny() if name == "tiny" else CONFIGS[name]
    record.write(config, epath.Path(tmp_path), step=0)
    read = record.read(tmp_path / "config.json")
    assert same(read, config)
    assert read.is_locked
    with pytest.raises(AttributeError):
        read.optim.momentun = 1.0


def test_every_config_survives_json(tmp_path):
    for name, config in CONFIGS.items():
        (tmp_path / "config.json").write_text(config.to_json_best_effort())
        assert same(record.read(tmp_path / "config.json"), config), name


def test_changes_are_recorded(tmp_path, capsys):
    config, workdir = digits.get_config(), epath.Path(tmp_path)
    record.write(config, workdir, step=0)
    record.write(config, workdir, step=5)
    assert json.loads((tmp_path / "config.json").read_text())["history"] == []
    config.lr.peak, config.model.bn_group = 0.05, 32
    record.write(config, workdir, step=7)
    config.model.bn_group = None
    record.write(config, workdir, step=9)
    assert capsys.readouterr().out.splitlines() == [
        "config.lr.peak was 0.1 before, now 0.05",
        "config.model.bn_group was None before, now 32",
        "config.model.bn_group was 32 before, now None",
    ]
    content = json.loads((tmp_path / "config.json").read_text())
    assert content["lr"]["peak"] == 0.05
    assert [(e["step"], e["changes"]) for e in content["history"]] == [
        (7, {"lr.peak": [0.1, 0.05], "model.bn_group": [None, 32]}),
        (9, {"model.bn_group": [32, None]}),
    ]
    assert same(record.read(tmp_path / "config.json"), config)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "is damaged: it is not JSON"),
        (b'{"seed": 1', "is damaged: it is not JSON"),
        (b"\xff\xfe\x00", "is damaged: it is not JSON"),
        (b"[" * 100_000, "is damaged"),
        (b"[]", "is damaged: it is not a config"),
        (b"null", "is damaged: it is not a config"),
        (b"{}", "is damaged: it is not a config"),
        (b'{"seed": "a"}', "config.seed = 'a': write a whole number"),
        (b'{"lr": {"peak": NaN}}', "config.lr.peak = nan: write a finite number"),
        (b'{"lr": 3}', "config.lr is not a key of this version"),
        (b'{"sed": 3}', "config.sed is not a key of this version"),
    ],
)
def test_a_damaged_file_is_named_and_written_anew(written, content, text, capsys):
    written.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{written}"):
        record.read(written)
    with pytest.raises(ValueError, match=text):
        record.read(written)
    record.write(digits.get_config(), epath.Path(written.parent), step=3)
    said = capsys.readouterr().out
    assert said.startswith(f"{written} is damaged" if "damaged" in text else "config."), said
    assert same(record.read(written), digits.get_config())


def test_keys_that_a_version_before_did_not_have_are_those_of_base(written):
    content = json.loads(written.read_text())
    del content["loader"]["prefetch"], content["ema"], content["history"]
    written.write_text(json.dumps(content))
    assert same(record.read(written), digits.get_config())


def test_found_from_a_checkpoint_too(written):
    run = written.parent
    (run / "checkpoints" / "12").mkdir(parents=True)
    for path in (run, run / "checkpoints", run / "checkpoints" / "12"):
        assert record.find(str(path)) == epath.Path(written)
    for path in (run / "x", run / "checkpoints" / "12" / "x", run / "x" / "y" / "z"):
        assert record.find(str(path)) is None


def test_no_run_begins_among_the_checkpoints_of_another(written):
    run = written.parent
    for path in (run / "checkpoints", run / "checkpoints" / "12", run / "checkpoints" / "13"):
        with pytest.raises(ValueError, match=f"is a checkpoint of a run: .*--workdir={run};"):
            train.run(record.read(written), str(path))
        assert not path.exists()
    for path in (run, run / "tuned"):
        record.check_workdir(str(path))


@pytest.mark.ci
def test_a_run_goes_on_and_is_evaluated_without_its_config_file(commands, tmp_path):
    recipe = tmp_path / "recipe.py"
    recipe.write_text(runs.TINY.read_text())
    whole, run, constant = tmp_path / "whole", tmp_path / "run", "--config.lr.schedule=constant"
    assert commands.fork(f"--config={runs.TINY}", f"--workdir={whole}", constant).returncode == 0
    shorter = commands.fork(
        f"--config={recipe}", f"--workdir={run}", constant, "--config.duration=12 steps"
    )
    assert shorter.returncode == 0, shorter.err
    recipe.unlink()
    done = commands.fork(f"--workdir={run}", "--config.duration=30 steps")
    assert done.returncode == 0, done.err
    assert "config.duration was '12 steps' before, now '30 steps'" in done.out
    (entry,) = json.loads((run / "config.json").read_text())["history"]
    assert (entry["step"], list(entry["changes"])) == (12, ["duration"])
    runs.assert_same_state(runs.saved(run, 30)[0], runs.saved(whole, 30)[0])

    evaluated = commands.fork(f"--workdir={run}", "--mode=eval")
    assert evaluated.returncode == 0, evaluated.err
    last = runs.lines(run)[-1]
    result = json.loads(evaluated.out)
    assert {k: result[k] for k in ("top1", "images")} == {k: last[k] for k in ("top1", "images")}
    one = commands.fork(f"--workdir={run / 'checkpoints' / '28'}", "--mode=eval")
    assert one.returncode == 0, one.err
    mistyped = commands.fork(f"--workdir={run}", "--config.lr.peak=high")
    assert mistyped.err == "jaxcls: config.lr.peak = 'high': write a number\n"


def test_base_itself_is_complete():
    assert same(base.get_config(), base.get_config().copy_and_resolve_references())


def test_a_home_directory_that_the_shell_has_left_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run").mkdir()
    record.write(digits.get_config(), epath.Path(tmp_path / "run"), step=0)
    values = flags.FlagValues()
    command.define_config(values)
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    assert command.parse(["main", "--workdir=~/run"], values) == str(tmp_path / "run/config.json")
    assert values.workdir == str(tmp_path / "run")
    command.parse(["main", "--config=~/run/config.json"], values)
