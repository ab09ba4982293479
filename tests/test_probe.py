"""Linear probes: against scikit-learn, on features that are those of the classifier, cached."""

import dataclasses
import json
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from sklearn.linear_model import LogisticRegression
from test_network import small
from test_zoo import AT_LEAST, SIBLINGS, tier

from configs import base
from configs import probe as recipe
from jaxcls import features, models, network, probe, weights
from jaxcls.data.arrays import open_digits
from jaxcls.network import Network


def blobs(n=300, d=12, k=4, seed=0):
    """Returns features of classes that overlap, at an offset and a scale of their own."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, k, n)
    x = rng.normal(size=(k, d))[label] + 1.5 * rng.normal(size=(n, d))
    return probe.Features((7 * x + 30).astype(np.float32), label, np.arange(n))


@pytest.mark.parametrize("decay", [1.0, 0.01, 1e-4])
def test_a_classifier_is_that_of_scikit_learn(decay):
    of, others = blobs(), blobs(seed=1)
    head = probe.Fit(of, 4)(decay)
    mean = of.x.mean(0, dtype=np.float64)
    scale = np.sqrt(((of.x - mean) ** 2).mean())
    theirs = LogisticRegression(C=1 / (decay * len(of.x)), tol=1e-8, max_iter=10_000)
    theirs.fit((of.x - mean) / scale, of.label)
    ours = jax.nn.softmax(others.x @ head.kernel + head.bias)
    want = theirs.predict_proba((others.x - mean) / scale)
    np.testing.assert_allclose(ours, want, atol=2e-3)
    nll = -np.log(want[np.arange(len(others.label)), others.label]).mean()
    measured = head.measured(others)
    assert measured["loss"] == pytest.approx(nll, abs=2e-3)
    assert measured["top1"] == np.mean(np.argmax(ours, 1) == others.label)
    assert (measured["top5"], measured["images"]) == (1.0, 300)


@pytest.mark.ci
def test_the_decay_is_chosen_on_what_was_held_out():
    of = blobs(n=120, d=40)
    lines = []
    grid = probe.make(decays=(1e-5, 1e-2, 30.0), held_out=0.25)
    head, figures, best = probe.search(of, grid, classes=4, seed=3, report=lines.append)
    assert [line["decay"] for line in figures] == [30.0, 1e-2, 1e-5]
    held = {line["decay"]: (line["top1"], -line["loss"]) for line in figures}
    assert best == max(held, key=held.get)
    assert {line["images"] for line in figures} == {30}
    assert figures[-1]["train_top1"] > figures[0]["train_top1"]
    whole = probe.Fit(of, 4)(best)  # not of a part of them
    np.testing.assert_allclose(head.kernel, whole.kernel, atol=1e-5)
    again = probe.search(of, grid, classes=4, seed=3)
    np.testing.assert_array_equal(again[0].kernel, head.kernel)
    assert len(lines) >= 5
    one = probe.Features(of.x[:3], np.arange(3), np.arange(3))
    with pytest.raises(ValueError, match="holds out none of 3 images with a label"):
        probe.search(one, grid, classes=4, seed=0)


NOT_LINEAR = ["micronet", "squeezenet"]


@pytest.mark.parametrize("family", [pytest.param(f, marks=tier(f)) for f in SIBLINGS])
def test_the_logits_are_linear_in_the_features(family):
    name, options = SIBLINGS[family]
    if family == "mobilenet_v1":
        options = options | {"bottleneck": 5, "dropout": 0.2, "downscale": True}
    size = AT_LEAST.get(family, 32)
    image = dataclasses.replace(small()[0].image, size=size, mean=(0.5,) * 3, std=(0.5,) * 3)
    net = Network(name=name, options=options, num_classes=6, class_names=(), image=image,
                  precision="float32")  # fmt: skip
    if family in NOT_LINEAR:
        with pytest.raises(ValueError, match=f"the classifier of {name} is not a linear"):
            features.of_classifier(net)
        return
    images = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), np.uint8)
    variables = jax.jit(net.module.init)(jax.random.key(0), jnp.zeros((1, size, size, 3)))
    seen = jax.jit(features.of_classifier(net))(variables, images)
    logits = net.predict(variables, images)["logits"]
    fc = variables["params"]["head"]["fc"]
    np.testing.assert_allclose(seen @ fc["kernel"] + fc["bias"], logits, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def weights_of(tmp_path_factory):
    """An export of a network with random weights, on images of 8 pixels, of other classes."""
    net, zeros = small(class_names=("a", "b", "c", "d"))
    rng = np.random.default_rng(0)
    net = dataclasses.replace(net, image=dataclasses.replace(net.image, interpolation="area"))
    drawn = jax.tree.map(lambda x: rng.uniform(0.1, 0.5, x.shape).astype(np.float32), zeros)
    kernel = lambda path, x: x - 0.3 if path[-1].key == "kernel" else x
    drawn["params"] = jax.tree_util.tree_map_with_path(kernel, drawn["params"])
    path = tmp_path_factory.mktemp("weights") / "w"
    weights.export(path, drawn, {"network": net.described()})
    return path


def config_of(weights_of, **changes):
    config = recipe.get_config()
    config.data.source = "digits"
    config.init.checkpoint = str(weights_of)
    config.probe.decays = (0.1, 1e-3)
    config.eval.batch_size = 104
    config.report.enabled = False
    with config.ignore_type():
        config.update_from_flattened_dict(changes)
    return config


@pytest.mark.ci
def test_what_a_probe_leaves_is_a_network(weights_of, tmp_path, capsys):
    config = config_of(weights_of)
    config.report.enabled, config.report.grad_cam = True, False
    assert probe.run(config, str(tmp_path)) == 0
    out = capsys.readouterr().out
    assert "898 training images of 10 classes" in out
    assert "not taken: params/head/fc/kernel (4 classes in the checkpoint, 10 here)" in out
    summary = runs.summary(tmp_path)
    assert summary["complete"]
    assert summary["best"] == summary["last"]
    assert summary["last"]["top1"] > 0.5  # of random features
    lines = runs.lines(tmp_path)
    assert [line["split"] for line in lines] == ["held_out", "held_out", "eval"]
    assert lines[-1]["loss"] == summary["last"]["loss"]

    report = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert report["top1"] == pytest.approx(summary["last"]["top1"])
    assert np.trace(report["confusion"]) == round(899 * report["top1"])
    assert (tmp_path / "report" / "index.html").exists()

    net, variables = network.load(tmp_path)
    assert (net.num_classes, net.class_names) == (10, tuple("0123456789"))
    assert net.image.interpolation == "area"  # the network's own
    _, source = open_digits()
    pixels = np.stack([net.transform(source[i]["image"], None) for i in range(len(source))])
    logits = np.asarray(net.predict(variables, pixels)["logits"])
    top1 = (logits.argmax(-1) == source.labels).mean()
    assert summary["last"]["top1"] == pytest.approx(top1, abs=2e-3)
    before, _ = network.load(weights_of)
    assert before.name == net.name
    old, _ = weights.load(weights_of)
    stem = lambda v: v["params"]["stem"]["conv1"]["conv"]["kernel"]
    np.testing.assert_array_equal(stem(variables), stem(old))


@pytest.mark.ci
def test_features_are_computed_once(weights_of, tmp_path, monkeypatch):
    config, computed = config_of(weights_of), []
    assert probe.run(config, str(tmp_path)) == 0
    real = features.each
    monkeypatch.setattr(
        features, "each", lambda *a, **k: computed.append(len(a[1].source)) or real(*a, **k)
    )
    stored = {p: p.stat().st_mtime_ns for p in (tmp_path / "features").iterdir()}
    config.probe.decays = (0.01,)
    assert probe.run(config, str(tmp_path)) == 0
    assert not computed
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "features").iterdir()} == stored
    assert runs.summary(tmp_path)["decay"] == 0.01
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["2"]

    # a damaged file is; others where weights, preprocessing or images are others
    next(p for p in stored if p.name.startswith("eval")).write_bytes(b"PK")
    assert probe.run(config, str(tmp_path)) == 0
    assert computed == [899]
    assert probe.run(config_of(weights_of, **{"data.fraction": 0.5}), str(tmp_path)) == 0
    assert computed[1:] == [450]
    larger = {"image.eval_size": 9, "image.eval_resize": 9}
    assert probe.run(config_of(weights_of, **larger), str(tmp_path)) == 0
    assert computed[2:] == [898, 899]
    assert len([*(tmp_path / "features").iterdir()]) == 2


def test_a_probe_that_was_killed_goes_on(weights_of, tmp_path, monkeypatch):
    monkeypatch.setattr(probe, "SHARD", 400)
    config, real, computed = config_of(weights_of), features.each, []

    def each(compute, feed, **rest):
        if len(computed) == 2:
            raise KeyboardInterrupt
        computed.append(len(feed.source))
        return real(compute, feed, **rest)

    monkeypatch.setattr(features, "each", each)
    with pytest.raises(KeyboardInterrupt):
        probe.run(config, str(tmp_path / "cut"))
    assert computed == [400, 400]
    monkeypatch.setattr(features, "each", real)
    sources = []
    monkeypatch.setattr(
        features, "each", lambda c, f, **k: sources.append(len(f.source)) or real(c, f, **k)
    )
    assert probe.run(config, str(tmp_path / "cut")) == 0
    assert sources == [98, 400, 400, 99]
    assert probe.run(config, str(tmp_path / "whole")) == 0
    cut, whole = (weights.load(tmp_path / name)[0] for name in ("cut", "whole"))
    jax.tree.map(np.testing.assert_array_equal, cut, whole)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init.checkpoint": ""}, "config.init.checkpoint is not set"),
        ({"lr.peak": 0.2, "mix.mixup": 0.2}, "config.lr.peak, config.mix.mixup: not used by a pr"),
        ({"data.sampling": "sqrt"}, "config.data.sampling: not used by a probe"),
        ({"probe.decays": (0.0,)}, r"config.probe.decays = \(0.0,\): write numbers above 0"),
        ({"probe.held_out": 1.0}, "config.probe.held_out = 1.0: write a share"),
        ({"image.eval_size": -8}, "config.image.eval_size = -8 is negative"),
    ],
)
def test_what_is_no_probe(weights_of, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        probe.run(config_of(weights_of, **changes), str(tmp_path / "p"))
    assert not (tmp_path / "p").exists()


def test_a_probe_of_itself(weights_of):
    with pytest.raises(ValueError, match="is the run to probe: choose another --workdir"):
        probe.run(config_of(weights_of), str(weights_of))


def test_several_processes(weights_of, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="a probe is computed by one process"):
        probe._check(config_of(weights_of), str(tmp_path))


def test_marks(monkeypatch):
    with pytest.raises(ValueError, match="a probe needs a class for each image"):
        probe._check_labels(types.SimpleNamespace(train=types.SimpleNamespace(marks=3)))


def test_every_other_network_has_a_linear_classifier():
    """By its row: the families whose head is a Classifier."""
    refused = []
    for family in SIBLINGS:
        text = Path(models.__file__).with_name(f"{family}.py").read_text()
        if "Classifier(" not in text:
            refused.append(family)
    assert refused == NOT_LINEAR
    assert not base.get_config().probe.decays


@pytest.mark.ci
def test_the_command(commands, weights_of, tmp_path):
    command = (
        f"--config={runs.ROOT / 'configs' / 'probe.py'}",
        f"--config.init.checkpoint={weights_of}",
        "--config.data.source=digits",
        f"--workdir={tmp_path / 'p'}",
    )
    done = commands.fork(*command)
    assert done.returncode == 0, done.err
    again = commands.fork(f"--workdir={tmp_path / 'p'}")
    assert again.returncode == 0, again.err
    evaluated = commands.fork(f"--workdir={tmp_path / 'p'}", "--mode=eval")
    result, last = json.loads(evaluated.out), runs.summary(tmp_path / "p")["last"]
    assert result["top1"] == pytest.approx(last["top1"], abs=2e-3)
    assert result["loss"] == pytest.approx(last["loss"], rel=1e-3)
    tuned = commands.fork(
        f"--config={runs.ROOT / 'configs' / 'finetune.py'}",
        f"--config.init.checkpoint={tmp_path / 'p'}",
        "--config.data.source=digits",
        "--config.duration=2 steps",
        f"--workdir={tmp_path / 'tuned'}",
    )
    assert tuned.returncode == 0, tuned.err
    assert "initialised 22 of 22 tensors" in tuned.out
    wrong = commands.fork(*command, "--config.optim.l2=0.1")
    assert (wrong.returncode, wrong.out) == (2, "")
    assert wrong.err.startswith("jaxcls: config.optim.l2: not used by a probe")
