"""What the benchmark command prints, on a network of 3,000 parameters; no test looks at a time."""

import collections
import contextlib
import importlib.util
import json
import os
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from absl import flags
from PIL import Image

from configs import base
from jaxcls import convert, models, precision
from jaxcls.benchmark import contenders, input, loop, peers, pytorch, timing, traffic, train
from jaxcls.benchmark.__main__ import COMMANDS, main
from jaxcls.data import folders
from jaxcls.models import count

TINY = f"--config={runs.TINY}:plain"
FAKE = [
    f"--config.data.{key}"
    for key in ("source=fake", "num_train=512", "num_eval=8", "num_classes=2")
]


@pytest.fixture
def run(commands):
    """Returns run(*arguments) -> stdout of a benchmark that succeeds, in a process of its own."""

    def run(*arguments, devices=1):
        done = subprocess.run(
            [sys.executable, "-m", "jaxcls.benchmark", *arguments],
            env=commands.environment(devices),
            capture_output=True,
            text=True,
            timeout=runs.PATIENCE,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def options(**values):
    """Returns the options of `train`, as if given on the command line."""
    parsed = flags.FlagValues()
    train.define(parsed)
    parsed(["benchmark", *(f"--{key}={value}" for key, value in values.items())])
    return parsed


@pytest.mark.ci
def test_loop_compares_the_real_run_with_the_bare_step(run):
    result = json.loads(run("loop", TINY, "--steps=8", "--repetitions=3", "--json"))
    assert result["model"] == "ResNet18_vd"
    assert (result["batch"], result["size"], result["data"]) == (128, 8, "fake")
    assert (result["steps"], result["devices"]) == (8, 1)
    bare, loop = np.array(result["bare_s"]), np.array(result["loop_s"])
    assert bare.shape == loop.shape == (3,)
    assert (bare > 0).all()
    assert (loop > 0).all()
    assert result["ratio"] == pytest.approx(sorted(loop / bare)[1])


@pytest.mark.ci
def test_loop_as_text(monkeypatch, capsys):
    clock, looped = [0.0], iter((0.006, 0.009, 0.005))

    def run(n):
        clock[0] += 0.005 * n

    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    monkeypatch.setattr(loop, "repeat_step", lambda *_: run)
    monkeypatch.setattr(loop, "loop_seconds", lambda _: next(looped))
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    arguments = [TINY, "--config.mesh.data=1", "--steps=8", "--repetitions=3", "--data=config"]
    assert main(["benchmark", "loop", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "batch 128, 8x8, digits data, 1 x cpu: 3 x 8 steps of each, in turn" in lines[0]
    assert [" ".join(line.split()) for line in lines[1:]] == [
        "bare step 5.000 ms/step (5.000 to 5.000)",
        "loop 6.000 ms/step (5.000 to 9.000)",
        "ratio 1.200 (1.000 to 1.800)",
    ]


@pytest.mark.ci
def test_compile_of_each_model(capsys):
    models = ("ResNet18", "ResNet50")
    assert main(["benchmark", "compile", TINY, f"--model={','.join(models)}", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["model"] for row in rows] == list(models)
    for row in rows:
        assert min(row["trace_s"], row["lower_s"], row["compile_s"]) > 0
    assert rows[1]["operations"] > 1.1 * rows[0]["operations"]  # a block has one convolution more


@pytest.mark.ci
def test_train_measures_every_combination(run):
    arguments = ("--batch=8", "--bn_group=none,4", "--repetitions=2", "--json")
    out = run("train", TINY, *arguments, devices=2)
    rows = [json.loads(line) for line in out.splitlines()]
    assert [(row["batch"], row["bn_group"]) for row in rows] == [(8, None), (8, 4)]
    model = models.build("ResNet18_vd", stem="small", depths=(1,), width=8)
    numbers = count.count(model, size=8, channels=1)
    for row in rows:
        assert (row["model"], row["precision"], row["size"]) == ("ResNet18_vd", "float32", 8)
        assert (row["device"], row["devices"], row["jax"]) == ("cpu", 2, jax.__version__)
        assert row["params"] == numbers["params"]
        assert row["flops_per_image"] == 6 * numbers["macs"]
        assert 0.5 < row["xla_flops_per_image"] / row["flops_per_image"] < 2
        assert row["step_ms_p10"] <= row["step_ms"] <= row["step_ms_p90"]
        assert row["images_per_sec"] == pytest.approx(1000 * row["batch"] / row["step_ms"])
        assert row["compile_s"] > 0
        # parameters and momentum at least, and no more than the images could fill
        assert 2 * 4 * row["params"] < row["memory_bytes"] < 2**27
        assert row["memory_from"] == "compiler"
        assert row["peak_from"] == "measured"
        share = row["images_per_sec"] * row["flops_per_image"] / row["peak_flops_per_sec"] / 2
        assert row["peak_share"] == pytest.approx(share)


@pytest.mark.ci
def test_traffic_of_a_network_and_of_a_peer(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(peers.FLAX, "ResNet18_vd", partial(peers.ResNet, (1,)))
    arguments = [TINY, "--devices=cpu:1", "--model=ResNet18_vd", "--compare=flax", "--images=8"]
    assert main(["benchmark", "traffic", *arguments, "--json"]) == 0
    ours, theirs = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (ours["by"], theirs["by"], ours["ratio"]) == ("jaxcls", "flax", 1)
    assert theirs["ratio"] == ours["bytes"] / theirs["bytes"]
    for row in (ours, theirs):
        assert sum(row["kinds"].values()) == pytest.approx(row["bytes"])
        assert 0.3 < row["bytes"] / row["xla_bytes"] < 3  # a CPU has no scratchpad
        assert row["collectives"] == 0
    # multiply-adds by hand: stem of one channel, 16 pixels; then 4 pixels: 1x1, 3x3, 1x1, short
    macs = 16 * 49 * 64 + 4 * 64 * (64 + 9 * 64 + 256 + 256) + 256_000
    assert 0.5 < theirs["flops"] / (6 * macs) < 1.5
    lines = traffic.as_text(ours, kinds=True).splitlines()
    assert lines[0].split()[:3] == ["ResNet18_vd", "jaxcls", f"{ours['bytes'] / 1e6:.1f}"]
    assert len(lines) == 1 + len(ours["kinds"])


def test_peers_are_the_same_networks():
    for name in ("ResNet50", "ViT_small_patch16_224"):
        params, _ = peers.flax(name, (224, 224, 3)).variables
        ours = count.count(models.build(name), size=224)["params"]
        assert count.parameters(params) == pytest.approx(ours, rel=1e-3), name


def test_train_as_text_with_the_ratio(monkeypatch, capsys):
    result = {"images_per_sec": 500.0, "step_ms": 16.0, "step_ms_p10": 15.0, "step_ms_p90": 19.0}
    result |= {"compile_s": 7.0, "memory_bytes": 3 * 2**29, "memory_from": "compiler"}
    result |= {"flops_per_image": 4e9, "xla_flops_per_image": 5e9, "flops_per_sec": 2e12}
    timed = []

    def time_timm(config, numbers, repetitions):
        timed.append((config.batch_size, numbers.name, repetitions))
        return {"images_per_sec": 400.0}

    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "")
    monkeypatch.setattr(train, "peak_flops", lambda *_: (8e12, "measured"))
    monkeypatch.setattr(pytorch, "import_timm", lambda: (None, None))
    monkeypatch.setattr(pytorch, "check_timm", lambda *_: None)
    monkeypatch.setattr(pytorch, "free_torch", lambda: None)
    monkeypatch.setattr(pytorch, "time_timm", time_timm)
    monkeypatch.setattr(train, "time_train", lambda *_: dict(result))
    arguments = [TINY, "--config.mesh.data=1", "--batch=8", "--bn_group=none,4", "--compare=timm"]
    assert main(["benchmark", "train", *arguments, "--precision=bfloat16"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("device: cpu, devices: 1, size: 8, jax: ")
    assert lines[1] == "peak of a device in bfloat16: 8 TFLOP/s (measured)"
    numbers = "500.0 16.00 15.00 19.00 7.0 1.50 4.000 5.000 25.0 % 400.0 1.250"
    assert [line.split() for line in lines[3:]] == [
        ["ResNet18_vd", "bfloat16", "8", group, *numbers.split()] for group in ("none", "4")
    ]
    assert len({len(line) for line in lines[2:]}) == 1, "columns under their titles"
    assert timed == [(8, "bfloat16", 20)], "PyTorch has no groups: once is enough"


def test_combinations_are_the_product_of_the_lists():
    config = base.get_config()
    config.optim.l2 = 3e-5
    config.eval.batch_size = 1000
    chosen = options(model="ResNet50,ResNet50_vd", batch="64,128", bn_group="none,32")
    found = [
        (c.model.name, c.precision.name, c.batch_size, c.model.bn_group, c.optim.l2)
        for c in train.combinations(config, chosen)
    ]
    assert found == [
        (name, "auto", batch, group, 3e-5)
        for name in ("ResNet50", "ResNet50_vd")
        for batch in (64, 128)
        for group in (None, 32)
    ]
    (same,) = train.combinations(config, options())
    same.eval.batch_size = 1000
    assert same.to_dict() == config.to_dict()


def test_short_run_reads_fake_images_of_the_configs_size():
    config = base.get_config()
    config.data.source, config.data.root = "folder", "nowhere"
    config.model.num_classes = 7
    short = loop.short_run(config, 200, "fake")
    assert (short.duration, short.log.every) == ("250 steps", "50 steps")
    assert (short.data.source, short.data.root, short.data.num_classes) == ("fake", "", 7)
    assert loop.short_run(config, 200, "config").data.root == "nowhere"
    assert base.get_config().log.every == f"{loop.LOG_EVERY} steps"


def test_loop_seconds_leave_out_the_first_line_and_evaluations(monkeypatch):
    """250 steps of 10 images: 100 s of compilation, then 100 steps of 0.5 s and 50 of 0.2 s."""
    lines = [(100, "train", 5.0), (200, "train", 20.0), (250, "eval", None), (250, "train", 50.0)]

    def run(config, workdir):
        with open(f"{workdir}/metrics.jsonl", "w") as file:
            for step, split, speed in lines:
                line = {"step": step, "split": split, "images_per_sec": speed}
                file.write(json.dumps(line) + "\n")
        return 0

    monkeypatch.setattr("jaxcls.train.run", run)
    seconds = loop.loop_seconds(SimpleNamespace(batch_size=10))
    assert seconds == pytest.approx((100 * 0.5 + 50 * 0.2) / 150)


def test_seconds_per_step_warms_up_and_divides_by_the_steps(monkeypatch):
    clock, calls = [0.0], []

    def run(n):  # compilation takes 100 s, the next calls are slow, a step takes 0.01 s then
        clock[0] += 100.0 if not calls else 0.01 * n + (5.0 if len(calls) == 2 else 0.0)
        calls.append(n)

    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    assert timing.seconds_per_step(run, 4) == pytest.approx([0.01] * 4)
    assert calls == [3, 1, 20, 20, 20, 20, 20]


def test_summary():
    found = timing.summary([t / 1000 for t in (11, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10)])
    assert found == pytest.approx({"step_ms": 6, "step_ms_p10": 2, "step_ms_p90": 10})


@pytest.mark.parametrize(
    ("kind", "tera"),
    [
        ("NVIDIA H200", 989),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("Tesla V100-SXM2-16GB", 125),
        ("TPU v4", 275),
        ("TPU v5 lite", 197),
        ("TPU v5", 459),
        ("TPU v5p", 459),
        ("TPU v6 lite", 918),
    ],
)
def test_peak_of_known_devices_in_half_precision(kind, tera):
    device = SimpleNamespace(device_kind=kind, platform="gpu")
    assert train.peak_flops(device, numbers_of("float16")) == (tera * 1e12, "data sheet")


@pytest.mark.parametrize(
    ("kind", "name"), [("cpu", "float32"), ("NVIDIA H200", "O0"), ("Tesla V100", "bfloat16")]
)
def test_other_peaks_are_measured(kind, name, monkeypatch):
    """Data sheets have tensor cores' numbers: not those of float32, on a V100 not of bfloat16."""
    monkeypatch.setattr(train, "seconds_per_step", lambda run, repetitions: [2.0, 0.5, 4.0])
    device = SimpleNamespace(device_kind=kind, platform="cpu")
    peak = train.peak_flops(device, numbers_of(name))
    assert peak == (2 * 1024 * 1024 * 1024 / 0.5, "measured")


def numbers_of(name):
    settings = {**base.get_config().precision.to_dict(), "name": name}
    return precision.make(**settings, platform="cpu")


# Parameters in millions as timm's tables have them (rounded to 0.01).
TIMM_PARAMS = {
    "ResNet50": 25.56,
    "ResNet101": 44.55,
    "ResNet152": 60.19,
    "ResNet50_vc": 25.58,
    "ResNet50_vd": 25.58,
    "ResNet101_vd": 44.57,
    "ResNet152_vd": 60.21,
}


@pytest.mark.parametrize("name", TIMM_PARAMS)
def test_timm_has_the_same_network(name):
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    init = models.build(name).init
    params = count.parameters(jax.eval_shape(init, jax.random.key(0), image)["params"])
    assert params / 1e6 == pytest.approx(TIMM_PARAMS[name], abs=0.0051)
    if importlib.util.find_spec("timm") and importlib.util.find_spec("torch"):
        _, timm = pytorch.import_timm()
        theirs, options = convert.timm_model(name)
        theirs = timm.create_model(theirs, **options)
        assert params == sum(p.numel() for p in theirs.parameters())


def test_a_combination_that_does_not_fit_is_one_row():
    def fails(message):
        raise RuntimeError(message)

    for message in ("RESOURCE_EXHAUSTED: Out of memory allocating", "CUDA out of memory. Tried"):
        assert train.unless_too_large(fails, message) == {"error": "out of memory"}
    with pytest.raises(RuntimeError, match="illegal instruction"):
        train.unless_too_large(fails, "illegal instruction")
    row = {"model": "ResNet50", "precision": "float32", "batch": 9999, "bn_group": None}
    assert train.as_text(row | {"error": "out of memory"}).split() == [
        *("ResNet50", "float32", "9999", "none"),
        *("out", "of", "memory"),
    ]


# -- input -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of six JPEG files."""
    root = tmp_path_factory.mktemp("photos")
    for i in range(6):
        pixels = np.random.default_rng(i).integers(0, 256, (40 + i, 50, 3), np.uint8)
        folder = root / "train" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{i}.jpg")
    return root


def input_config(photos):
    config = base.get_config()
    config.batch_size, config.image.size = 4, 16
    config.data.update(source="folder", root=str(photos))
    return config


@pytest.mark.ci
def test_input_runs_each_in_its_own_process(photos, run):
    changes = ("--config.batch_size=4", "--config.image.size=16", "--config.data.source=folder")
    arguments = (*changes, f"--config.data.root={photos}", "--images=9", "--repetitions=2")
    rows = [json.loads(line) for line in run("input", *arguments, "--json").splitlines()]
    names = ["loader", "bare loop", "bare loop, whole images"]
    assert [row["name"] for row in rows] == names
    bare = np.array(rows[1]["seconds"])
    for row in rows:
        seconds = np.array(row["seconds"])
        assert (row["cores"], row["images"], seconds.shape) == (1, 8, (2,))
        assert (seconds > 0).all()
        assert row["images_per_sec"] == pytest.approx(np.median(8 / seconds))
        assert row["ratio_to_bare"] == pytest.approx(np.median(bare / seconds))


@pytest.mark.parametrize("kind", contenders.KINDS)
@pytest.mark.parametrize("policy", ["", "randaugment"])
def test_a_pass_reads_every_image_as_often(photos, kind, policy, monkeypatch):
    read = collections.Counter()
    original = folders.Files.__getitem__

    def counting(self, index):
        read[index] += 1
        return original(self, index)

    monkeypatch.setattr(folders.Files, "__getitem__", counting)
    config = input_config(photos)
    config.batch_size, config.augment.policy = 3, policy
    contenders.KINDS[kind](config, 12, 2)(5)
    assert read == dict.fromkeys(range(6), 2)


def test_flip_comes_last():
    flip = contenders.Flip(0.5, lambda image, rng: image + 1)
    image, rng = np.arange(6, dtype=np.uint8).reshape(1, 2, 3), np.random.default_rng(0)
    mirrored = image[:, ::-1] + 1
    outcomes = [np.array_equal(flip(image, rng), mirrored) for _ in range(400)]
    assert abs(sum(outcomes) - 200) < 66  # 3.3 standard deviations: once in a thousand


def test_tf_data_makes_batches(photos, monkeypatch):
    pytest.importorskip("tensorflow")
    from jaxcls.benchmark import tf_data

    files = [str(path) for path in photos.rglob("*.jpg")]
    spec = {"files": files, "images": 9, "batch": 4, "size": 16, "threads": 1}
    shapes = [b.shape for b in tf_data.batches(spec | {"scale": [0.1, 1], "ratio": [0.5, 2]}, 0)]
    assert shapes == [(4, 16, 16, 3)] * 2


def test_input_as_text(photos, monkeypatch, capsys):
    """1 ms an image in the bare loop, 2 in Pillow, 0.5 from records, 4 with a policy, ..."""
    monkeypatch.setattr(input.os, "sched_getaffinity", lambda _: {3, 1}, raising=False)
    started = []

    class Fake(contextlib.AbstractContextManager):
        def __init__(self, name, cores, images):
            started.append((name, cores))
            self.ms = {"loader": 1.25, "tf.data": 5, "Pillow": 2}.get(name.split(",")[0], 1)
            self.ms *= 0.5 if "records" in name else 4 if "randaugment" in name else 1
            self.seconds = lambda seed: images * self.ms / 1000 / len(cores)

        def __exit__(self, *_):
            started.append("closed")

    monkeypatch.setattr(input.Contender, "start", lambda self, cores, n: Fake(self.name, cores, n))
    arguments = ["--config.data.source=folder", f"--config.data.root={photos}", "--cores=1,2"]
    arguments += ["--config.batch_size=4", "--compare=pillow,tf", "--records=/records"]
    assert main(["benchmark", "input", *arguments, "--policies=randaugment", "--images=400"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 * (2 + 10)
    assert lines[0].startswith("1 core(s), 5 x 400 images of each, in turn: median")
    assert " ".join(lines[1].split()) == "images/s a core / bare loop / Pillow / tf.data"
    assert [" ".join(line.split()) for line in lines[14:]] == [
        "loader 1600 (1600 to 1600) 800 0.800 (0.800 to 0.800) "
        "1.600 (1.600 to 1.600) 4.000 (4.000 to 4.000)",
        "bare loop 2000 (2000 to 2000) 1000 1.000 (1.000 to 1.000) "
        "2.000 (2.000 to 2.000) 5.000 (5.000 to 5.000)",
        "bare loop, whole images 2000 (2000 to 2000) 1000 1.000 (1.000 to 1.000) "
        "2.000 (2.000 to 2.000) 5.000 (5.000 to 5.000)",
        "Pillow 1000 (1000 to 1000) 500 0.500 (0.500 to 0.500) "
        "1.000 (1.000 to 1.000) 2.500 (2.500 to 2.500)",
        "loader, /records 3200 (3200 to 3200) 1600 0.800 (0.800 to 0.800) 8.000 (8.000 to 8.000)",
        "bare loop, /records 4000 (4000 to 4000) 2000 1.000 (1.000 to 1.000) "
        "10.000 (10.000 to 10.000)",
        "loader, randaugment 400 (400 to 400) 200 0.800 (0.800 to 0.800) "
        "1.600 (1.600 to 1.600) 1.000 (1.000 to 1.000)",
        "bare loop, randaugment 500 (500 to 500) 250 1.000 (1.000 to 1.000) "
        "2.000 (2.000 to 2.000) 1.250 (1.250 to 1.250)",
        "Pillow, randaugment 250 (250 to 250) 125 0.500 (0.500 to 0.500) "
        "1.000 (1.000 to 1.000) 0.625 (0.625 to 0.625)",
        "tf.data 400 (400 to 400) 200 0.200 (0.200 to 0.200) "
        "0.400 (0.400 to 0.400) 1.000 (1.000 to 1.000)",
    ]
    assert {tuple(cores) for name, cores in filter(lambda s: s != "closed", started)} == {
        (1,),
        (1, 3),
    }
    assert started.count("closed") == len(started) // 2


def test_a_contender_that_fails(photos):
    cores, config = sorted(os.sched_getaffinity(0))[:1], input_config(photos)
    with pytest.raises(ValueError, match="cannot start /nowhere/python: No such file"):
        input.Contender("tf", "", config, "/nowhere/python").start(cores, 4)
    with (
        input.Contender("tf", "", config, "/bin/false").start(cores, 4) as running,
        pytest.raises(ValueError, match=r"/bin/false .*tf_data.py has failed, see above"),
    ):
        running.seconds(0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["input"], "config.data.source is not set"),
        (["input", *FAKE, "--cores=0"], "--cores=0: write whole numbers from 1 to"),
        (["input", *FAKE, "--images=9"], "--images=9 is less than config.batch_size"),
        (["input", *FAKE, "--compare=tf"], '--compare needs config.data.source = "folder"'),
        (["input", *FAKE, "--compare=timm"], "unknown value of --compare 'timm'"),
        (["lop"], "unknown command 'lop': did you mean loop?"),
        (["loop", "--stps=3"], "unknown flag --stps: did you mean steps?"),
        (["loop", "--steps=0"], "--steps=0: 0 is not a positive integer"),
        (["loop", "--data=fale"], "--data=fale: value should be one of <fake|config>"),
        (["traffic"], "give --topology=v5e:2x4, or --devices=cpu:8"),
        (["traffic", "--devices=cpu:1", "--compare=timm"], "unknown --compare 'timm'"),
        (["traffic", "--devices=cpu:1", "--model=ResNet51"], "'ResNet51': did you mean ResNet"),
        (["train", "fast"], "unexpected argument 'fast'"),
        (["train", "--config=nowhere.py"], "--config=nowhere.py: there is no such config file"),
        (["train", "--config.batchsize=8"], "no config.batchsize: write --config.batch_size=8"),
        (["train", "--batch=64,many"], "--batch=many: write whole numbers, such as 128,256"),
        (["train", "--bn_group=nine"], "--bn_group=nine: write whole numbers"),
        (
            ["train", TINY, "--model=ResNet51"],
            "unknown config.model.name 'ResNet51': did you mean ResNet",
        ),
        (["train", TINY, "--precision=f16"], "unknown config.precision.name 'f16'"),
        (["train", TINY, "--batch=16,0"], "config.batch_size = 0"),
        (["train", TINY, "--batch=16", "--bn_group=5"], "config.model.bn_group = 5"),
    ],
)
def test_mistakes_are_one_line(arguments, message, capsys):
    assert main(["benchmark", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("jaxcls: ")
    assert message in err
    assert err.count("\n") == 1


def test_compare_without_keras_is_one_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "keras", None)
    assert main(["benchmark", "traffic", "--devices=cpu:1", "--compare=keras"]) == 2
    assert "--compare=keras needs keras (pip install keras)" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["torch", "timm"])
def test_compare_without_pytorch_is_one_line(missing, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, missing, None)
    assert main(["benchmark", "train", TINY, "--compare=timm"]) == 2
    assert "--compare=timm needs torch and timm" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "devices", "message"),
    [
        ({"model.name": "ResNet18_vd"}, 1, "model.options = .*project_first"),
        ({"precision.name": "O3"}, 1, "unknown precision for --compare=timm 'O3'"),
        ({}, 2, "runs on one device, here are 2: set --config.mesh.data=1"),
    ],
)
def test_compare_refuses_what_timm_lacks(change, devices, message, monkeypatch):
    monkeypatch.setattr(pytorch, "import_timm", lambda: (SimpleNamespace(), SimpleNamespace()))
    config = base.get_config()
    config.update_from_flattened_dict(change)
    mesh = jax.make_mesh((devices,), ("data",), devices=jax.devices()[:devices])
    with pytest.raises(ValueError, match=message):
        pytorch.check_timm(config, numbers_of(config.precision.name), mesh)


@pytest.mark.parametrize("command", [[], ["--help"], *([c, "--help"] for c in COMMANDS)])
def test_help(command, capsys):
    assert main(["benchmark", *command]) == 0
    out = capsys.readouterr().out
    assert "configs/digits.py" in out
    assert "XLA_FLAGS" in out
    assert ("JSON object" in out) == (len(command) == 2)
