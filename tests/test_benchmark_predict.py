"""python -m jaxcls.benchmark predict, on a small network; no test looks at a time."""

import csv
import dataclasses
import gc
import importlib.util
import itertools
import json
import os
import xml.etree.ElementTree as ET

import jax
import numpy as np
import pytest
import with_timm
from drawn import random_like
from PIL import Image

from jaxcls import models, network, trees, weights
from jaxcls.benchmark import latency, predict, running, runtimes, scatter, subjects, ways
from jaxcls.benchmark.__main__ import main
from jaxcls.data import ops
from jaxcls.export import __main__ as export
from jaxcls.export import formats, program
from jaxcls.network import Network

QUICK = ("--batches=1,3", "--repetitions=2", "--seconds=0.02", "--threads=1")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Returns the directory of a run, as far as it matters here."""
    image = network.published_image("ResNet18_vd") | {"size": 32, "eval_resize": 36}
    net = Network(
        name="ResNet18_vd",
        options={"width": 8},
        num_classes=5,
        class_names=(),
        image=ops.Image(**image),
        precision="float32",
    )
    path = tmp_path_factory.mktemp("runs") / "tiny"
    where = path / "checkpoints" / "7"
    weights.export(where, random_like(net.shapes), {"network": net.described()})
    (path / "summary.json").write_text('{"best": {"top1": 0.625}}')
    return path


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.ci
def test_table_file_and_picture(run, tmp_path, capsys):
    files = [f"--csv={tmp_path / 'speed.csv'}", f"--plot={tmp_path / 'speed.png'}"]
    arguments = [f"--models={run}", "--formats=jax,onnx", *QUICK, *files]
    assert main(["benchmark", "predict", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "1 thread(s), 2 x 0.02 s of each, in turn" in lines[0]
    _, variables = network.load(run)
    params = sum(x.size for x in jax.tree.leaves(variables["params"]))
    assert lines[2].startswith(f"{run}: 32 x 32 pixels, {params / 1e6:.2f} M parameters")
    assert lines[2].endswith("top-1 62.50 % (of the run)")
    assert lines[3].split()[:2] == ["format", "precision"]
    rows = rows_of(tmp_path / "speed.csv")
    assert [(row["format"], row["batch"]) for row in rows] == [
        *(("jax", "1"), ("onnx", "1"), ("jax", "3"), ("onnx", "3"))
    ]
    for row, line in zip(rows, lines[4:], strict=True):
        assert line.split()[:3] == [row["format"], "float32", row["batch"]]
        p50, p95, p99 = (float(row[f"{p}_ms"]) for p in ("p50", "p95", "p99"))
        assert 0 < p50 <= p95 <= p99
        assert line.split()[3:6] == [f"{x:.2f}" for x in (p50, p95, p99)]
        assert float(row["images_per_sec"]) == pytest.approx(
            1000 * int(row["batch"]) / float(row["mean_ms"])
        )
        assert int(row["calls"]) >= 2
        assert float(row["ratio_low"]) <= float(row["ratio"]) <= float(row["ratio_high"])
        assert (int(row["params"]), row["top1"], row["error"]) == (params, "62.5", "")
        assert 2e7 < int(row["memory_bytes"]) < 4e9
        assert row["memory_from"] == "process"
        assert row["device"] == "cpu"
        assert 4 * params <= int(row["file_bytes"]) < 5 * params
    assert {float(row["ratio"]) for row in rows if row["format"] == "jax"} == {1.0}
    assert {row["runtime"].split()[0] for row in rows} == {"jax", "onnxruntime"}
    with Image.open(tmp_path / "speed.png") as picture:
        assert len(set(picture.convert("RGB").getdata())) > 10


@pytest.mark.ci
def test_every_format_and_precision_of_an_export_and_its_run(run, tmp_path, capsys):
    """Each is one row; an export is measured by its files."""
    names = "jax,stablehlo,onnx,int8"
    arguments = [f"--models={run}", f"--formats={names}", "--precisions=float32,bfloat16,float16"]
    assert main(["benchmark", "predict", *arguments, *QUICK, "--batches=2", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    wanted = {("jax", p) for p in program.PRECISIONS} | {("int8", "int8")}
    for name in ("stablehlo", "onnx"):
        wanted |= {(name, p) for p in formats.FORMATS[name].precisions}
    assert {(row["format"], row["precision"]) for row in rows} == wanted
    size = {(row["format"], row["precision"]): row["file_bytes"] for row in rows}
    assert size["onnx", "float16"] < 0.6 * size["onnx", "float32"]
    assert export.main([str(run), f"--to={tmp_path / 'out'}", "--input=float_nchw"]) == 0
    capsys.readouterr()
    arguments = [f"--models={tmp_path / 'out'}", *QUICK, "--baseline=stablehlo", "--json"]
    assert main(["benchmark", "predict", *arguments]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["format"] for row in rows] == ["stablehlo", "onnx"] * 2
    assert rows[0]["ratio"] == 1.0


def test_one_that_answers_something_else_is_not_timed(run, tmp_path, monkeypatch, capsys):
    def write(program, path, pixels):
        def half(path, x):
            return x * (0.5 if path == "params/head/fc/kernel" else 1)

        variables = trees.map_with_path(half, program.variables)
        formats.onnx(dataclasses.replace(program, variables=variables), path, pixels)

    def no(program, path, pixels):
        path.write_bytes(b"nothing")

    wrong = dataclasses.replace(formats.FORMATS["onnx"], write=write)
    monkeypatch.setitem(formats.FORMATS, "onnx", wrong)
    broken = dataclasses.replace(formats.FORMATS["int8"], write=no)
    monkeypatch.setitem(formats.FORMATS, "int8", broken)
    arguments = [f"--models={run}", "--formats=onnx,int8", *QUICK, f"--csv={tmp_path / 'x.csv'}"]
    assert main(["benchmark", "predict", *arguments]) == 1
    first, second = rows_of(tmp_path / "x.csv")
    assert "answers something else: logits differ by" in first["error"]
    assert first["p50_ms"] == second["p50_ms"] == ""
    assert "INVALID_PROTOBUF" in second["error"]
    assert first["error"] in capsys.readouterr().out


def test_ctrl_c_keeps_what_was_measured(run, tmp_path, monkeypatch, capsys):
    calls, time = itertools.count(), predict.Started.time

    def until(self, *arguments):
        if next(calls) == 3:  # of two repetitions with two batches
            raise KeyboardInterrupt
        time(self, *arguments)

    monkeypatch.setattr(predict.Started, "time", until)
    files = [f"--csv={tmp_path / 'x.csv'}", f"--plot={tmp_path / 'x.svg'}"]
    assert main(["benchmark", "predict", f"--models={run}", "--formats=jax", *QUICK, *files]) == 130
    rows = rows_of(tmp_path / "x.csv")
    assert [row["batch"] for row in rows] == ["1", "3"]
    assert [row["calls"] > "0" for row in rows] == [True, True]
    root = ET.parse(tmp_path / "x.svg").getroot()
    texts = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"1 image a call", "3 images a call", "jax", str(run)} <= {*texts}


@pytest.mark.ci
def test_a_network_that_fails_is_a_row(run, tmp_path, capsys):
    """ResNet18_vd of other weights: the others are measured all the same."""
    broken = tmp_path / "broken"
    net, variables = network.load(run)
    weights.export(broken, variables, {"network": net.described() | {"options": {"width": 16}}})
    arguments = [f"--models={broken},{run}", "--formats=jax", *QUICK, "--json"]
    assert main(["benchmark", "predict", *arguments]) == 1
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["model"] for row in rows] == [str(broken), str(run), str(run)]
    assert "its weights are not those of ResNet18_vd" in rows[0]["error"]
    assert not any("error" in row for row in rows[1:])


@pytest.mark.ci
def test_a_device_that_one_process_has_at_a_time(run, monkeypatch, capsys):
    started = []

    class Counted(running.Running):
        def __init__(self, *arguments):
            started.append(self)
            super().__init__(*arguments)

    monkeypatch.setattr(predict, "Running", Counted)
    monkeypatch.setattr(predict, "SHARED", ("cpu",))
    arguments = [f"--models={run}", "--formats=jax,stablehlo", *QUICK, "--batches=2", "--json"]
    assert main(["benchmark", "predict", *arguments, "--no-transfers"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["format"] for row in rows] == ["jax", "stablehlo"]
    assert len(started) == 1


def test_latency_of_calls():
    rng = np.random.default_rng(0)
    seconds = rng.gamma(2, 0.01, 137)
    found = latency.percentiles([seconds[:50], seconds[50:]], 4)
    ordered = np.sort(seconds)
    for name, share in (("p50_ms", 0.5), ("p95_ms", 0.95), ("p99_ms", 0.99)):
        place = share * (len(ordered) - 1)
        low, part = int(place), place % 1
        between = ordered[low] + part * (ordered[low + 1] - ordered[low])
        assert found[name] == pytest.approx(1000 * between)
    assert found["calls"] == 137
    assert found["images_per_sec"] == pytest.approx(4 * 137 / seconds.sum())


def test_ratio_is_of_the_same_repetition():
    """The machine is twice as slow in the second one: it is for both."""
    ours, theirs = [[1.0, 1.1, 0.9], [2.0]], [[3.0], [6.0, 6.0]]
    assert latency.ratio(ours, theirs) == {"ratio": 3.0, "ratio_low": 3.0, "ratio_high": 3.0}
    assert set(latency.ratio(ours, []).values()) == {None}


def test_calls_are_timed_after_one_that_is_not():
    clock, lasts = [0.0], iter([9.0, 0.4, 0.3, 0.5, 7.0])

    def call():
        clock[0] += next(lasts)

    assert runtimes.durations(call, 1.0, lambda: clock[0]) == pytest.approx([0.4, 0.3, 0.5])
    assert runtimes.durations(lambda: None, 0.0, itertools.count().__next__) == [1]


def test_code_of_a_card_is_begun_once(tmp_path):
    (tmp_path / "model.txt").write_text("10")
    code = "import json\n\nfactor = json.load(open('model.txt'))\ncalls = []\n"
    code += "calls.append(len(images))\nlogits = images * factor\nprobabilities = calls\n"
    spec = {"code": code, "path": str(tmp_path / "model.txt"), "needs": ["numpy"]}
    found = runtimes.card(spec)
    assert found.runtime == f"numpy {np.__version__}"
    for n in (1, 2):
        logits, calls = found.run(np.ones(n))
        assert logits.tolist() == [10.0] * n
    assert calls == [1, 2]


@pytest.mark.ci
@pytest.mark.parametrize("compiled", [False, True])
def test_timm_answers_what_the_network_does(compiled, tmp_path):
    """The folder alone: normalising and the softmax are ours."""
    if not all(map(importlib.util.find_spec, ("timm", "torch"))):
        pytest.skip("needs timm")
    operators = {}
    exec(with_timm.OPERATORS, operators)  # are there as long as this is
    image = ops.Image(**network.published_image("ResNet50_vd") | {"size": 64, "eval_resize": 72})
    net = Network(name="ResNet50_vd", options={}, num_classes=5, class_names=(), image=image,
                  precision="float32", temperature=2.0)  # fmt: skip
    variables = random_like(net.shapes)
    formats.FORMATS["timm"].write(program.make(net, variables), tmp_path / "timm", None)
    name = "timm_compiled" if compiled else "timm"
    contender = ways.Contender(name, "float32", tmp_path / "timm", tmp_path, 0)
    found = runtimes.torch({**contender.spec(net), "threads": 1})
    pixels = np.random.default_rng(1).integers(0, 256, (2, 64, 64, 3), np.uint8)
    try:
        logits, probabilities = found.fetch(found.wait(found.run(found.put(pixels))))
    except Exception as e:
        if not compiled or "compiler" not in str(e).lower():
            raise
        pytest.skip("torch.compile needs a compiler")
    ours = np.asarray(net.predict(variables, pixels)["logits"])
    np.testing.assert_allclose(logits, ours, atol=1e-4 * np.ptp(ours, axis=0).max())
    z = np.exp(np.float64(ours) / 2)
    np.testing.assert_allclose(probabilities, z / z.sum(-1, keepdims=True), atol=1e-4)
    assert (found.runtime.split()[0], found.device) == ("torch", "cpu")


@pytest.mark.ci
def test_litert_answers_image_by_image(run, tmp_path, capsys):
    if not all(map(importlib.util.find_spec, formats.FORMATS["tflite"].needs)):
        pytest.skip("needs jaxcls[export-tf]")
    arguments = [f"--models={run}", "--formats=tflite", *QUICK, "--json"]
    assert main(["benchmark", "predict", *arguments]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["batch"], row["runtime"].split("-")[0]) for row in rows] == [(1, "ai"), (3, "ai")]


def test_memory_is_that_of_the_process():
    gc.collect()
    before = runtimes.resident()
    block = np.ones(2**26)  # 537 MB, far more than what else comes and goes
    assert before + 4e8 < runtimes.resident() < before + 2e8 + block.nbytes


def test_names_patterns_families_and_directories(run):
    names = lambda text: [subject.name for subject in subjects.named(text)]
    assert names("ResNet18_vd, AlexNet,ResNet18_vd") == ["ResNet18_vd", "AlexNet"]
    assert names("ResNet50_vd_ssld") == ["ResNet50_vd_ssld"]
    vd = names("resnet*_vd")
    assert {"ResNet18_vd", "ResNet200_vd"} <= {*vd}
    assert not any(models.MODELS[name].alias_of for name in vd)
    assert names("dpn") == ["DPN68", "DPN92", "DPN98", "DPN107", "DPN131"]
    [subject] = subjects.named(str(run))
    assert subject.accuracy() == (62.5, "of the run")
    assert subjects.Subject("ResNet50_vd").accuracy() == (79.12, "published")


def test_random_weights_keep_to_the_range_of_16_bits(run):
    """Features of 8 blocks neither grow nor vanish, and images make a difference."""
    net, _ = network.load(run)
    image = dataclasses.replace(net.image, size=64, eval_resize=64)
    net = dataclasses.replace(net, image=image)
    variables = subjects.random_variables(net)
    assert not trees.differences(variables, net.shapes)
    pixels = np.random.default_rng(1).integers(0, 256, (4, 64, 64, 3), np.uint8)
    for key, features in net.predict(variables, pixels).items():
        assert 0.1 < np.abs(np.asarray(features)).max() < 100, key
        assert np.ptp(np.asarray(features), axis=0).max() > 0.1, key


def test_names_in_the_picture_do_not_touch():
    rng = np.random.default_rng(2)
    rows = [
        {"model": name, "format": kind, "precision": "float32", "batch": 1, "threads": 2,
         "device": "cpu", "top1": 77 + float(rng.uniform(0, 5)), "top1_from": "published",
         "p50_ms": float(rng.uniform(10, 60)), "macs": 1e9}
        for name in [f"ResNet{i}_something" for i in range(12)] for kind in ("jax", "onnx")
    ]  # fmt: skip
    figure = scatter.figure(rows)
    [axes] = figure.axes
    boxes = {text.get_text(): text.get_window_extent() for text in axes.texts}
    assert boxes.keys() == {row["model"] for row in rows}
    frame = axes.get_window_extent()
    for box in boxes.values():
        assert box.x0 >= frame.x0 - 1
        assert box.x1 <= frame.x1 + 1
    for a, b in itertools.combinations(boxes.values(), 2):
        width, height = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        assert min(width, height) < 3
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["jax", "onnx"]


def test_without_accuracy_it_is_multiply_adds():
    row = {"model": "A", "format": "onnx", "precision": "float16", "batch": 1, "threads": 2,
           "device": "cpu", "top1": None, "p50_ms": 3.0, "macs": 2e9}  # fmt: skip
    [axes] = scatter.figure([row, row | {"model": "B", "macs": 4e9}]).axes
    assert axes.get_ylabel() == "multiply-adds of an image, G"
    assert sorted(axes.collections[0].get_offsets()[:, 1].tolist()) == [2.0, 4.0]
    eight = row | {"format": "int8", "precision": "int8", "top1": 70.0, "top1_from": "published"}
    [axes] = scatter.figure([eight]).axes
    assert axes.get_ylabel() == "top-1, % (published, in float32)"
    some = scatter.figure([row, row | {"model": "B", "top1": 70.0, "top1_from": "of the run"}])
    assert "no accuracy is known of A" in some.get_supxlabel()
    assert [text.get_text() for text in some.legends[0].get_texts()] == ["onnx float16"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: --models"),
        (["--models="], "--models=: write names"),
        (["--models=ResNet50vd"], "unknown model 'ResNet50vd': did you mean ResNet50_vd"),
        (["--models=ResNe7*"], "--models=ResNe7*: no model has such a name"),
        (["--models=nowhere/run"], "--models=nowhere/run: no checkpoint there"),
        (["--models=AlexNet", "--formats=onx"], "unknown --formats 'onx': did you mean onnx?"),
        (["--models=AlexNet", "--formats=,"], "--formats=,: write some of jax, "),
        (["--models=AlexNet", "--precisions=fp16"], "unknown --precisions 'fp16'"),
        (
            ["--models=AlexNet", "--formats=onnx", "--precisions=bfloat16"],
            "--formats=onnx: onnx has no bfloat16: it has float32",
        ),
        (["--models=AlexNet", "--batches=1,x"], "--batches=1,x: write whole numbers"),
        (["--models=AlexNet", "--batches=0"], "--batches=0: write whole numbers"),
        (["--models=AlexNet", "--baseline=torhc"], "unknown --baseline 'torhc'"),
        (["--models=AlexNet", "--threads=9999"], "--threads=9999: write 1 to "),
        (["--models=AlexNet", "--repetitions=0"], "--repetitions=0: write a number above 0"),
        (["--models=AlexNet", "--seconds=nan"], "--seconds=nan: write a number above 0"),
        (["--models=AlexNet", "--csv=/nowhere/x.csv"], "--csv=/nowhere/x.csv: /nowhere is no"),
        (["--models=AlexNet", "--csv=/"], "--csv=/: it cannot be written"),
        (["--models=AlexNet", "--plot=x.jpg"], "--plot=x.jpg: write FILE.svg or FILE.png or"),
        (["--models=AlexNet", "--speed"], "unrecognized arguments: --speed"),
    ],
)
def test_mistakes_are_one_line(arguments, message, capsys):
    assert main(["benchmark", "predict", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("jaxcls: ")
    assert message in err
    assert err.count("\n") == 1


def test_formats_whose_packages_are_missing(monkeypatch):
    """Left out with what to install; an error where they were asked for."""
    row = dataclasses.replace(formats.FORMATS["onnx"], needs=("no_such_runtime",))
    monkeypatch.setitem(formats.FORMATS, "onnx", row)
    chosen, left_out = ways.pairs(None, ["float32"])
    assert ("jax", "float32") in chosen
    assert "onnx" not in [name for name, _ in chosen]
    assert "left out: onnx needs no_such_runtime: pip install 'jaxcls[export]'" in left_out
    with pytest.raises(ValueError, match="--formats=jax,onnx: onnx needs no_such_runtime: pip"):
        ways.pairs("jax,onnx", ["float32"])


def test_cores_are_pinned(tmp_path):
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system does not pin processes")
    ours = os.sched_getaffinity(0)
    with running.Running(1, tmp_path) as process:
        assert os.sched_getaffinity(process.process.pid) == {min(ours)}
    assert os.sched_getaffinity(0) == ours
