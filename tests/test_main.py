"""The command: files, exit codes, evaluation, fine-tuning; every config; the layout of the code."""

import ast
import graphlib
import json
import shlex
import subprocess
import sys
import types
import zlib
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest
import runs

from jaxcls import command, network, train
from jaxcls.config import stage_mults
from jaxcls.data import arrays

ROOT = Path(__file__).parents[1]
END = 30  # steps of configs/tiny.py


@pytest.fixture(scope="module")
def finished(commands, tmp_path_factory):
    """The working directory of a complete run in float16, without mixup."""
    workdir = tmp_path_factory.mktemp("finished")
    done = commands.fork(f"--config={runs.TINY}", f"--workdir={workdir}", "--config.mix.mixup=0.0")
    assert done.returncode == 0, done.err
    return workdir, done


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder with three classes of JPEG files: dark, bright and striped."""
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for name, (low, high) in {"bright": (150, 255), "dark": (0, 100), "stripes": (0, 255)}.items():
        (root / name).mkdir()
        for i in range(16):
            image = rng.integers(low, high, (20, 24, 3), np.uint8)
            image[::4] = high if name == "stripes" else image[::4]
            cv2.imwrite(str(root / name / f"{i}.jpg"), image)
    return root


# -- The command -----------------------------------------------------------------------------------


def test_help_needs_no_jax(commands):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "jaxcls.main", "--help"],
        env=commands.environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "Exit codes: 0 complete; 2 a mistake" in done.stdout
    for flag in ("--config", "--workdir", "--mode", "--coordinator", "--process_id"):
        assert f"{flag}:" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "jaxcls.config" in imported
    assert not {"jax", "flax", "tensorflow"} & imported


def test_where_compiled_programs_are_kept(monkeypatch, tmp_path):
    updates = {}
    without = types.SimpleNamespace(jax_compilation_cache_dir=None, update=updates.__setitem__)
    monkeypatch.setattr(jax, "config", without)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("", str(tmp_path / "caches")):  # empty is as good as not set
        monkeypatch.setenv("XDG_CACHE_HOME", name)
        command.start_jax()
        folder = tmp_path / ("caches" if name else ".cache") / "jaxcls" / "xla"
        assert updates.pop("jax_compilation_cache_dir") == str(folder)
    updates.clear()

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    command.start_jax()
    assert not updates


COMPILE = """
import sys
import jax
from jaxcls.command import heal_cache

jax.config.update("jax_compilation_cache_dir", sys.argv[1])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
heal_cache()
print(jax.jit(lambda x: x + 1)(1))
"""


def test_damaged_compiled_programs_are_made_anew(commands, tmp_path):
    def compile(most=""):
        done = subprocess.run(
            ["sh", "-c", f'{most} exec "$@"', "sh", sys.executable, "-c", COMPILE, tmp_path],
            env=commands.environment(),
            capture_output=True,
            check=True,
            text=True,
        )
        assert done.stdout == "2\n"
        told = f"jaxcls: compiled programs cannot be kept in {tmp_path} (OSError: [Errno 27] File "
        assert done.stderr == (most and f"{told}too large): they are compiled anew each time\n")
        return {path: path.read_bytes() for path in tmp_path.glob("*-cache")}

    assert not compile("ulimit -f 0;")  # a full disk
    whole = compile()
    for path, content in whole.items():
        path.write_bytes(content[: len(content) // 2])
    again = compile()
    assert again.keys() == whole.keys()
    for content in again.values():
        zlib.decompress(content)  # raises an error if it is cut off


def test_files_of_a_run(finished):
    workdir, done = finished
    assert {p.name for p in workdir.iterdir()} == {
        "checkpoints", "metrics.jsonl", "summary.json", "config.json", "tensorboard", ".lock",
        "classes.txt", "parameters.txt", "starts.jsonl",
    }  # fmt: skip
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    training = [line for line in lines if line["split"] == "train"]
    evaluations = [line for line in lines if line["split"] == "eval"]
    assert [line["step"] for line in training] == [5, 10, 15, 20, 25, 30]
    assert [line["step"] for line in evaluations] == [6, 12, 18, 24, 30]
    for line in training:
        assert line.keys() == {
            "step", "epoch", "split", "loss", "top1", "top5", "lr", "grad_norm",
            "images_per_sec", "data_wait", "skipped", "loss_scale", "time",
        }  # fmt: skip
        assert line["epoch"] == pytest.approx(line["step"] / 7, abs=1e-6)
        assert 0 <= line["top1"] <= line["top5"] <= 1
        assert 0 <= line["data_wait"] <= 1
        assert line["images_per_sec"] > 0
    assert training[-1]["skipped"] >= training[0]["skipped"] > 0
    for line in evaluations:
        assert line.keys() == {
            "step", "epoch", "split", "time", "loss", "top1", "top5", "images",
        }  # fmt: skip
        assert line["images"] == 899

    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["complete"]
    assert (summary["steps"], summary["skipped"]) == (30, training[-1]["skipped"])
    assert summary["seconds"] > 0
    assert (summary["restarts"], summary["lost_seconds"], summary["down_seconds"]) == (0, 0.0, 0.0)
    assert 0 < summary["goodput"] < 1
    result = {k: evaluations[-1][k] for k in ("step", "loss", "top1", "top5", "images")}
    assert summary["last"] == result
    assert summary["best"]["top1"] == max(line["top1"] for line in evaluations)
    config = json.loads((workdir / "config.json").read_text())
    assert config["mix"]["mixup"] == 0.0
    assert config["optim"]["momentum"] == 0.9
    assert (workdir / "classes.txt").read_text().splitlines() == list("0123456789")
    assert "stage1/block1/conv1/conv/kernel" in (workdir / "parameters.txt").read_text()
    for about in (summary, config["run"]):
        assert about["class_names"] == list("0123456789")
        assert about["devices"] == {
            "count": 1, "kind": "cpu", "platform": "cpu", "processes": 1
        }  # fmt: skip
        assert about["versions"]["jax"] == jax.__version__
        assert about["versions"].keys() == {"jaxcls", "jax", "flax", "python"}
    assert all(p.name.isdigit() for p in (workdir / "checkpoints").iterdir())
    assert any("tfevents" in p.name for p in (workdir / "tensorboard").iterdir())

    assert f"best  top-1 {100 * summary['best']['top1']:6.2f} %" in done.out
    assert f"--workdir={workdir} --mode=eval" in done.out


def test_what_a_run_says_where_there_is_no_terminal(finished):
    workdir, done = finished
    said = done.out.splitlines()
    assert max(len(line) for line in said if str(workdir) not in line) <= 100
    first = next(i for i, line in enumerate(said) if line.startswith("train"))
    before = "\n".join(said[:first])
    for text in (
        "images   898 to train, 899 to evaluate",
        "classes  10: 0, 1, 2",
        "devices  1 x cpu, float16",
        "network  ResNet18_vd at 8x8 pixels, ",
        "compiling the train step ... ",
    ):
        assert text in before
    assert said[first].startswith("train  step  1/30  epoch 0.14  loss ")
    told = [line for line in said if line.startswith("saved")]  # but those that another overtook
    due = [step for step in range(1, 31) if step % 4 == 0 or step % 6 == 0]
    assert set(told) <= {f"saved  step {step:>2}/30" for step in due}
    assert told == sorted(set(told))
    assert told[-1] == "saved  step 30/30"
    skipped = [line for line in said if "skipped" in line]
    assert 0 < len(skipped) < len([line for line in said if line.startswith("train")])


@pytest.mark.ci
def test_the_hints_at_the_end_run_as_they_stand(commands, tmp_path):
    workdir = tmp_path / "a run's"
    short = "--config.duration=3 steps", "--config.lr.warmup="
    done = commands.fork(f"--config={runs.TINY}:plain", f"--workdir={workdir}", *short)
    assert done.returncode == 0, done.err
    hints = [line.partition("python -m jaxcls.main ")[2] for line in done.out.splitlines()]
    evaluate, tune = (shlex.split(hint) for hint in hints if hint)
    again = commands.fork(*evaluate)
    assert again.returncode == 0, again.err
    assert json.loads(again.out)["images"] == 899
    tuned = commands.fork(*tune, "--config.duration=2 steps")
    assert tuned.returncode == 0, tuned.err
    tensors, other = (runs.saved(tmp_path / name, step)[0] for name, step in (
        (f"{workdir.name}", 3), (f"{workdir.name}-tuned", 2)
    ))  # fmt: skip
    names = [path for path in tensors if path.startswith("params/")]
    assert [tensors[path].shape for path in names] == [other[path].shape for path in names]


def test_mode_eval_is_the_last_evaluation_and_raw_weights_are_others(commands, finished):
    workdir, _ = finished
    command = f"--config={runs.TINY}", f"--workdir={workdir}", "--mode=eval"
    before = {p: p.stat().st_mtime_ns for p in workdir.rglob("*")}
    done = commands.fork(*command, "--config.eval.batch_size=7")
    assert done.returncode == 0, done.err
    result = json.loads(done.out)
    assert result.pop("checkpoint") == str(workdir)
    last = runs.lines(workdir)[-1]
    # float16: batches of another size round otherwise
    assert result == pytest.approx({k: last[k] for k in result}, rel=2e-3)
    exact = json.loads(commands.fork(*command).out)
    assert {k: exact[k] for k in result} == pytest.approx({k: last[k] for k in result}, rel=1e-6)

    raw = json.loads(commands.fork(*command, "--config.eval.ema=False").out)
    assert abs(raw["loss"] - last["loss"]) > 1e-3
    one = commands.fork(
        f"--config={runs.TINY}", f"--workdir={workdir / 'checkpoints' / '28'}", "--mode=eval"
    )
    assert json.loads(one.out)["loss"] != last["loss"]
    assert {p: p.stat().st_mtime_ns for p in workdir.rglob("*")} == before


@pytest.mark.ci
def test_evaluation_at_another_size(commands, finished, tmp_path):
    workdir, _ = finished
    size = "--config.image.eval_size=12", "--config.image.eval_resize=12"
    done = commands.fork(f"--workdir={workdir}", "--mode=eval", *size)
    assert done.returncode == 0, done.err
    net, variables = network.load(workdir)
    net, source = net.resized(12), arrays.open_digits()[1]
    pixels = np.stack([net.transform(source[i]["image"], None) for i in range(len(source))])
    logits = np.asarray(net.predict(variables, pixels)["logits"])
    top1 = (logits.argmax(-1) == source.labels).mean()
    assert json.loads(done.out)["top1"] == pytest.approx(top1, abs=2e-3)  # float16
    small = "--config.image.eval_size=12", "--config.image.eval_resize=11"
    done = commands.fork(f"--workdir={workdir}", "--mode=eval", *small)
    assert done.returncode == 2
    assert "evaluation crops 12 pixels" in done.err


@pytest.mark.ci
def test_fix_training_trains_the_classifier_alone(commands, finished, tmp_path):
    workdir, _ = finished
    done = commands.fork(
        f"--config={ROOT / 'configs' / 'fix.py'}:12",
        f"--workdir={tmp_path}",
        f"--config.init.checkpoint={workdir}",
        "--config.data.source=digits",
        "--config.duration=60 steps",
        "--config.eval.every=30 steps",
    )
    assert done.returncode == 0, done.err
    state, meta = runs.saved(tmp_path, 60)
    source, _ = runs.saved(workdir, END)
    assert meta["network"]["image"]["size"] == meta["network"]["image"]["eval_resize"] == 12
    for path, array in state.items():
        kind, _, name = path.partition("/")
        if kind in ("params", "batch_stats") and not name.startswith("head/"):
            assert array.tobytes() == source[f"averages/ema/{path}"].tobytes(), path
    size = "--config.image.eval_size=12", "--config.image.eval_resize=12"
    before = commands.fork(f"--workdir={workdir}", "--mode=eval", *size)
    assert runs.lines(tmp_path)[-1]["loss"] < json.loads(before.out)["loss"]
    done = commands.fork(f"--config={ROOT / 'configs' / 'fix.py'}", f"--workdir={tmp_path}")
    assert done.returncode == 2
    assert "configs/fix.py needs the size of the images" in done.err


@pytest.mark.ci
def test_the_moving_average_is_what_is_evaluated():
    config = runs.tiny("plain")
    config.ema.decay = 0.5
    state, train_step, eval_step = train.setup(config)
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (128, 8, 8, 1), np.uint8)
    batch = {"image": image, "label": rng.integers(0, 10, 128).astype(np.int32)}
    for _ in range(3):
        state, _ = train_step(state, batch)
    averaged = eval_step(state.variables("ema"), batch)
    assert int(averaged["count"]) == 128
    assert float(averaged["loss"]) != float(eval_step(state.variables(), batch)["loss"])


# -- Fine-tuning -----------------------------------------------------------------------------------


@pytest.mark.ci
def test_fine_tuning_on_other_classes_with_frozen_parameters(commands, finished, photos, tmp_path):
    workdir, _ = finished
    command = (
        f"--config={runs.TINY}:plain",
        f"--workdir={tmp_path}",
        f"--config.init.checkpoint={workdir}",
        "--config.data.source=folder",
        f"--config.data.root={photos}",
        "--config.data.eval_fraction=0.25",
        "--config.batch_size=12",
        "--config.eval.batch_size=12",
        "--config.lr.warmup=",
        "--config.optim.l2=0.01",
        "--config.optim.frozen=('^stem/', '^stage1/block1/conv1/')",
        "--config.optim.lr_mults=(('^stage1/', 0.0),)",
    )
    done = commands.fork(*command)
    assert done.returncode == 0, done.err
    source, _ = runs.saved(workdir, END)
    tensors = sum(path.startswith(("params/", "batch_stats/")) for path in source)
    assert f"initialised {tensors - 2} of {tensors} tensors from {workdir}" in done.out
    for name in ("bias", "kernel"):
        line = f"not taken: params/head/fc/{name} (10 classes in the checkpoint, 3 here)"
        assert line in done.out

    state, meta = runs.saved(tmp_path, END)
    assert meta["class_names"] == ["bright", "dark", "stripes"]
    assert state["params/head/fc/kernel"].shape == (8, 3)
    frozen = ("stem/", "stage1/block1/conv1/")
    held = "stage1/"  # by a factor of 0, which does not hold its statistics
    for path, array in state.items():
        kind, _, name = path.partition("/")
        if kind not in ("params", "batch_stats") or name.startswith("head/"):
            continue
        same = array.tobytes() == source[f"averages/ema/{path}"].tobytes()
        expected = name.startswith(frozen) or (kind == "params" and name.startswith(held))
        assert same == expected, path

    again = commands.fork(*command, "--mode=eval")
    assert again.returncode == 0, again.err
    result, last = json.loads(again.out), runs.lines(tmp_path)[-1]
    assert result.pop("checkpoint") == str(tmp_path)
    assert result == pytest.approx({k: last[k] for k in result}, rel=1e-6)


@pytest.mark.ci
def test_fine_tuning_starts_from_the_average_and_averages_anew(finished):
    workdir, _ = finished
    config = runs.tiny()
    config.init.checkpoint = str(workdir)
    state, _, _ = train.setup(config)
    source, _ = runs.saved(workdir, END)
    stem = state.params["stem"]["conv1"]["conv"]["kernel"]
    np.testing.assert_array_equal(stem, source["averages/ema/params/stem/conv1/conv/kernel"])
    average = state.averages["ema"]["params"]
    np.testing.assert_array_equal(stem, average["stem"]["conv1"]["conv"]["kernel"])
    assert int(state.step) == 0
    config.init.ema = False
    state, _, _ = train.setup(config)
    stem = state.params["stem"]["conv1"]["conv"]["kernel"]
    np.testing.assert_array_equal(stem, source["params/stem/conv1/conv/kernel"])


@pytest.mark.ci
def test_stage_mults_scale_the_updates():
    batch = {
        "image": np.random.default_rng(0).normal(size=(128, 8, 8, 1)).astype(np.float32),
        "label": np.arange(128, dtype=np.int32) % 10,
    }

    def update(lr_mults):
        config = runs.tiny("plain")
        config.lr.warmup = ""
        config.mix.mixup = 0.0
        config.optim.lr_mults = lr_mults
        state, train_step, _ = train.setup(config)
        before = jax.device_get(state.params)
        state, _ = train_step(state, batch)
        return jax.tree.map(lambda a, b: a - b, jax.device_get(state.params), before)

    base, scaled = update(()), update(stage_mults(0.25, 0.5))
    for name, factor in (("stem", 0.25), ("stage1", 0.5), ("head", 1.0)):
        for a, b in zip(jax.tree.leaves(scaled[name]), jax.tree.leaves(base[name])):
            np.testing.assert_allclose(a, factor * b, atol=1e-3 * np.abs(b).max())


# -- The layout of the code ------------------------------------------------------------------------

MODULES = {
    ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p
    for p in sorted((ROOT / "jaxcls").rglob("*.py"))
}
ENTRY_POINTS = {  # and all of jaxcls.benchmark
    "jaxcls.main",
    "jaxcls.models.__main__",
    "jaxcls.convert.__main__",
    "jaxcls.describe",
    "jaxcls.check",
    "jaxcls.preview",
    "jaxcls.select",
}

# What a module may import of jaxcls; not listed: anything but `train` and the entry points.
MAY_IMPORT = {
    "trees": set(),
    "losses": set(),
    "config": {"config.lengths", "config.multipliers", "config.values"},
    "config.lengths": {"config.values"},
    "config.multipliers": set(),
    "config.values": {"synonyms"},
    "synonyms": set(),
    "hints": {"config", "synonyms"},
    "keys": set(),
    "averages": {"barrier", "config", "trees"},
    "sharding": {"trees"},
    "data.copies": set(),
    "data.decode": set(),
    "data.device": {"keys"},
    "data.erasing": {"config"},
    "data.mixing": {"config", "data.erasing"},
    "data.ops": {"config", "data.decode"},
    "data.primitives": set(),
    "data.augment": {"config", "data.primitives"},
    "data.arrays": {"data.access", "data.labels", "data.ops"},
    "data.labels": set(),
    "data.sampling": {"config", "data.labels"},
    "data.access": set(),
    "data.stores": set(),
    "data.folders": {
        *("data.access", "data.decode", "data.labels", "data.sampling", "data.stores", "output"),
    },
    "data.lists": {"data.access", "data.decode", "data.folders", "data.labels", "data.stores"},
    "data.records": {"data.access", "data.decode", "data.folders", "data.labels", "data.stores"},
    "data.columns": {
        "config",
        "data.access",
        "data.decode",
        "data.folders",
        "data.labels",
    },
    "data.table_labels": {"config", "data.columns", "data.folders", "data.labels"},
    "data.tables": {
        "data.access",
        "data.columns",
        "data.folders",
        "data.labels",
        "data.lists",
        "data.records",
        "data.table_labels",
    },
    "data.workers": set(),
    "data.batches": {"data.access", "data.decode", "data.labels", "data.ops", "data.sampling"},
    "data.loader": {
        "config",
        "data.access",
        "data.batches",
        "data.ops",
        "data.sampling",
        "data.workers",
    },
    "models.spec": set(),
    "models.conv": {"models.spec"},
    "models.assembly": {"models.spec"},
    "models.layers": {"models.assembly", "models.conv", "models.spec"},
    "models.tokens": {"models.layers", "models.spec"},
    "models.positions": {"models.spec", "models.tokens"},
    "models.attention": {"models.layers", "models.spec", "models.tokens"},
    "models.windows": {"models.attention", "models.spec"},
    "models.transformer": {
        "models.attention",
        "models.layers",
        "models.positions",
        "models.spec",
        "models.tokens",
        "models.windows",
    },
    "convert.arrays": set(),
    "convert.pickles": {"convert.arrays"},
    "convert.zips": {"convert.arrays"},
    "convert.torch_files": {"convert.arrays", "convert.pickles", "convert.zips"},
    "convert.readers": {
        "convert.arrays",
        "convert.pickles",
        "convert.torch_files",
        "convert.zips",
    },
    "soft_losses": {"losses"},
    "distillation": {"config", "losses", "models", "soft_losses"},
    "balance": {"config"},
    "objectives": {"balance", "config", "distillation", "losses"},
    "teachers": {"config", "data.access", "data.ops", "files", "network", "precision"},
    "precision": {"config"},
    "optim": {"config", "schedules", "trees"},
    "schedules": {"config"},
    "steps": {"averages", "data.device", "keys", "losses", "objectives", "precision", "trees"},
    "network": {
        "config",
        "data.access",
        "data.device",
        "data.ops",
        "files",
        "models",
        "precision",
        "trees",
        "weights",
    },
    "data.feed": {"config", "data.access", "data.loader", "data.ops", "data.sources", "sharding"},
    "data.cache": {"data.access", "data.decode", "data.feed", "data.ops", "sharding"},
    "barrier": set(),
    "files": {"barrier", "signals"},
    "directory": {"files", "signals"},
    "chips": set(),
    "compiled": {"products"},
    "products": set(),
    "relay": set(),
    "sameness": set(),
    "processes": {"relay", "sameness", "signals"},
    "checksums": {"files"},
    "checkpoint": {"checksums", "files", "signals", "trees"},
    "download": {"files"},
    "scatter": set(),
    "models.pareto": {"scatter"},
    "fetched": {"files"},
    "weights": {
        *("averages", "checksums", "fetched", "files", "models.transformer", "signals", "trees"),
    },
    "console": {"barrier", "config", "trees"},
    "watch": {"signals"},
    "starts": {"files"},
    "metrics": {"config", "console", "files", "starts", "watch"},
}
# arrays in, arrays out
PURE = {"trees", "losses", "soft_losses", "models.spec", "models.layers", "models.conv"}
LIBRARIES = {"jax", "numpy", "flax"}
# files of the packages models and convert that are no family's
OTHERS = {"__main__", "count", "pareto", "engine", "readers", "paddleclas", "hub", "checkpoint"}
OTHERS |= {"fetch"}


def imports(path):
    """Returns the modules that a file imports, as full names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in names}
    return found


def allowed(module):
    """Returns what a module may import of jaxcls; None: see MAY_IMPORT."""
    package, _, family = module.rpartition(".")
    if (
        package == "models"
        and module not in MAY_IMPORT
        and family not in ("__main__", "count", "pareto")
    ):
        return {"models.spec", "models.layers", "models.transformer"}
    if package == "convert" and module not in MAY_IMPORT and family not in OTHERS:
        return {"convert.engine"}
    return MAY_IMPORT.get(module)


def test_who_imports_whom():
    wrong, graph = [], {}
    for name, path in MODULES.items():
        module = name.removeprefix("jaxcls.")
        found = imports(path)
        ours = {n.removeprefix("jaxcls.") for n in found if n.startswith("jaxcls.")}
        # no circle, neither of files nor of folders
        graph[module] = ours
        folder, of = (lambda m: m.partition(".")[0]), f"{module.partition('.')[0]}/"
        graph.setdefault(of, set()).update({f"{folder(n)}/" for n in ours} - {of})
        entry = {"train", "main", "benchmark"} & ours
        if entry and name not in ENTRY_POINTS and not module.startswith("benchmark"):
            wrong.append(f"{module} imports {entry}, which is for entry points")
        back = ("convert.", "export.timm", "benchmark.pytorch")  # the way back to PyTorch's names
        if any(n.startswith("convert") for n in ours) and not f"{module}.".startswith(back):
            wrong.append(f"{module} imports convert")
        if commands := {"main", "check", "preview", "plan", "select", "describe", "soup"} & ours:
            wrong.append(f"{module} imports {commands}, which nothing does")
        may = allowed(module)
        if may is not None and not ours <= may:
            wrong.append(f"{module} imports {ours - may}")
        outside = {n.partition(".")[0] for n in found} - {"jaxcls"} - sys.stdlib_module_names
        if module in PURE and not outside <= LIBRARIES:
            wrong.append(f"{module} imports {outside - LIBRARIES}")
        extra = module in ("benchmark.tf_data", "export.tensorflow")  # optional, imported late
        if {"tensorflow", "configs"} & outside and not extra:
            wrong.append(f"{module} imports {outside}")
        if module.partition(".")[0] == "config" and not outside <= {"ml_collections"}:
            wrong.append(f"{module} imports {outside}: config files may import it, without jax")
    assert not wrong, "\n".join(wrong)
    graphlib.TopologicalSorter(graph).prepare()  # a circle is an error that shows it


IMPORT = """
import contextlib, importlib, logging, os, signal, sys, warnings
import absl.flags, absl.logging, cv2, jax

def state():
    loggers = [logging.getLogger(name) for name in [None, *logging.root.manager.loggerDict]]
    return {
        "hooks": (sys.excepthook, sys.unraisablehook, warnings.showwarning),
        "streams": (sys.stdin, sys.stdout, sys.stderr),
        "loggers": [
            (x.name, x.level, x.filters[:], x.handlers[:])
            for x in loggers if x.level or x.filters or x.handlers or not x.propagate
        ],
        "warnings": warnings.filters[:],
        "signals": [signal.getsignal(number) for number in signal.valid_signals()],
        "environment": dict(os.environ),
        "flags": absl.flags.FLAGS.flag_values_dict(),
        "jax": dict(jax.config.values),
        "threads": cv2.getNumThreads(),
    }

libraries, ours = (line.split() for line in sys.stdin)
for name in libraries:
    with contextlib.suppress(ImportError):
        importlib.import_module(name)
before = state()
for name in ours:
    with contextlib.suppress(ImportError):  # of TensorFlow
        importlib.import_module(name)
after = state()
print(*(f"{key}: {before[key]} -> {after[key]}" for key in before if after[key] != before[key]))
"""


def test_importing_changes_nothing_in_the_process():
    nodes = [node for path in MODULES.values() for node in ast.parse(path.read_text()).body]
    found = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    for node in (node for node in nodes if isinstance(node, ast.ImportFrom)):
        found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    libraries = sorted(name for name in found if not name.startswith("jaxcls"))
    done = subprocess.run(
        [sys.executable, "-c", IMPORT],
        env={"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},  # nothing of this process's
        input=f"{' '.join(libraries)}\n{' '.join(MODULES)}\n",
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "\n"), done.stderr


def test_layout():
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a git repository")
    files = listed.stdout.splitlines()
    assert {f.partition("/")[0] for f in files if not f.startswith(".")} == {
        "jaxcls", "configs", "launch", "data_prep", "tests",
        "pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE",
    }  # fmt: skip
    assert ".ci/run" in files
    assert not [f for f in files if f.endswith("utils.py")]
    core = [f"jaxcls/{name}.py" for name in ("main", "train", "program", "steps")]
    lines = [(ROOT / file).read_text().count("\n") for file in ("configs/resnet50_vd.py", *core)]
    assert sum(lines) <= 700
