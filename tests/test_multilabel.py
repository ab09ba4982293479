"""Images that may show several classes: metrics against scikit-learn, a run, and its decisions."""

import dataclasses
import json

import cv2
import jax
import numpy as np
import pytest
import runs
from sklearn.metrics import average_precision_score, f1_score

from jaxcls import evaluate, network, objectives, program, sharding, train
from jaxcls.console import hints
from jaxcls.data import arrays, sources
from jaxcls.data.feed import Feed
from jaxcls.data.ops import Image, transformed
from jaxcls.recipes import read
from jaxcls.report import measures, scores

K = 5


def example(n=400, seed=0):
    """Returns logits with ties, and marks: one class that no image shows, images without any."""
    rng = np.random.default_rng(seed)
    marks = (rng.random((n, K)) < (0.5, 0.2, 0.1, 0.05, 0.0)).astype(np.int8)
    logits = np.round(rng.standard_normal((n, K)) + 2 * marks - 1, 1).astype(np.float32)
    assert marks.any(0).tolist() == [True] * 4 + [False]
    assert not marks.any(1).all()
    return logits, marks


def of_scikit_learn(logits, marks):
    there = marks.any(0)
    each = {"average": "macro", "zero_division": 0.0}
    return {
        "map": average_precision_score(marks[:, there], logits[:, there], average="macro"),
        "macro_f1": f1_score(marks, logits >= 0, **each),
        "micro_f1": f1_score(marks, logits >= 0, average="micro"),
    }


def test_metrics_of_scikit_learn():
    logits, marks = example()
    assert measures.of_all_classes(logits, marks) == pytest.approx(of_scikit_learn(logits, marks))


def test_what_is_not_known_does_not_count():
    logits, marks = example(seed=1)
    hidden = np.random.default_rng(2).random(marks.shape) < 0.2
    hidden[:20] = True  # images without a label
    known = np.where(hidden, -1, marks)
    got = measures.of_all_classes(logits, known)
    one = lambda k: [x[~hidden[:, k], k] for x in (marks, logits)]
    precisions = [average_precision_score(*one(k)) for k in range(4)]
    f1 = [f1_score(m, z >= 0, zero_division=0.0) for m, z in map(one, range(K))]
    assert got["map"] == pytest.approx(np.mean(precisions))
    assert got["macro_f1"] == pytest.approx(np.mean(f1))
    all_of = np.concatenate([np.stack(one(k)) for k in range(K)], 1)
    assert got["micro_f1"] == pytest.approx(f1_score(all_of[0], all_of[1] >= 0))


def test_a_network_that_has_diverged_has_no_metrics():
    logits, marks = example()
    logits[3, 1] = np.nan
    assert all(map(np.isnan, measures.of_all_classes(logits, marks).values()))
    nothing = measures.of_all_classes(logits[:2] * 0, marks[:2] * 0)
    assert np.isnan(nothing["map"])
    assert nothing["macro_f1"] == 0


@pytest.mark.parametrize("devices", [1, 8])
def test_evaluation_counts_every_image_once(devices):
    """With a last batch that is filled up, of two networks at once."""
    logits, marks = example(n=61)
    marks[5] = -1
    pixels = np.arange(61, dtype=np.uint8)[:, None, None, None]
    source = arrays.Arrays("x", pixels, marks, tuple("abcde"))
    data = sources.Data(source, source, source.class_names, "error", 0, "shuffle", 1, "none")
    config = runs.tiny("plain")
    config.image.size = 1
    layout = sharding.make(**{**config.mesh, "data": devices}, devices=jax.devices()[:devices])
    images = Image(**config.image)
    predict = lambda v, x: {"logits": v["params"]["table"][x[:, 0, 0, 0]] * v["params"]["sign"]}
    step = jax.jit(scores.make_step(predict, objectives.per_image), out_shardings=layout.whole)
    feed = Feed(data, source, images.transform, layout)
    variables = [
        jax.device_put({"params": {"table": logits, "sign": np.float32(s)}}, layout.whole)
        for s in (1, -1)
    ]
    results = evaluate.evaluate(step, feed, *variables, batch_size=16)
    known = np.arange(61) != 5
    for result, sign in zip(results, (1, -1)):
        assert result.pop("images") == 60
        z, y = sign * logits[known].astype(np.float64), marks[known]
        loss = (np.logaddexp(0, z) - y * z).sum(1).mean()
        assert result.pop("loss") == pytest.approx(loss, rel=1e-6)
        assert result == pytest.approx(of_scikit_learn(z, y))


# -- Decisions -------------------------------------------------------------------------------------


def net(multi_label=False, **changes):
    config = runs.tiny("plain")
    made = network.make(
        **config.model,
        classes=3,
        class_names=("a", "b", "c"),
        image=Image(**config.image),
        precision="float32",
        multi_label=multi_label,
    )[0]
    return dataclasses.replace(made, **changes)


def test_decisions_of_one_class():
    p = np.array([[0.2, 0.5, 0.3], [0.4, 0.2, 0.4], [0.9, 0.05, 0.05], [np.nan] * 3])
    assert net().decide(p).tolist() == [1, 0, 0, -1]
    assert net(thresholds=(0.5,)).decide(p).tolist() == [1, -1, 0, -1]


def test_a_background_class_is_none_of_these():
    p = np.array([[0.2, 0.5, 0.3], [0.4, 0.2, 0.4], [0.1, 0.3, 0.6]])
    assert net(background="b").decide(p).tolist() == [-1, 0, 2]
    assert net(background="b", thresholds=(0.5,)).decide(p).tolist() == [-1, -1, 2]
    told = json.loads(json.dumps({"network": net(background="b").described()}))
    assert network.of_meta(told, {}, "x").background == "b"
    with pytest.raises(ValueError, match="unknown config.model.background 'd': choose one of a, b"):
        network.of_meta({"network": net(background="d").described()}, {}, "x")
    config = runs.tiny("plain")
    config.model.background = "eleven"
    with pytest.raises(ValueError, match="unknown config.model.background 'eleven'"):
        program.build(config, num_train=898, num_classes=2, class_names=("0", "1"))


def test_decisions_of_several_classes():
    several = net(multi_label=True)
    logits = np.array([[-1.0, 0.0, 3.0], [-9.0, -9.0, -9.0]], np.float32)
    p = several.probabilities(logits)
    np.testing.assert_allclose(p, 1 / (1 + np.exp(-logits)), rtol=1e-6)
    assert several.decide(p).tolist() == [[False, True, True], [False] * 3]
    own = dataclasses.replace(several, thresholds=(0.2, 0.6, 0.99))
    assert own.decide(p).tolist() == [[True, False, False], [False] * 3]


def test_decisions_are_stored_with_the_network():
    own = net(multi_label=True, thresholds=(0.2, 0.6, 0.99))
    told = json.loads(json.dumps({"network": own.described()}))
    back = network.of_meta(told, {}, "x")
    assert (back.multi_label, back.thresholds) == (True, (0.2, 0.6, 0.99))
    before = {k: v for k, v in own.described().items() if k not in ("multi_label", "thresholds")}
    back = network.of_meta({"network": before}, {}, "x")
    assert (back.multi_label, back.thresholds) == (False, ())
    for wrong in ([0.5], [0.1, 0.2, 1.1], [0.1, "x", 0.2]):
        told["network"]["thresholds"] = wrong
        with pytest.raises(ValueError, match="give 3 of 0 to 1, or none, one for each"):
            network.of_meta(told, {}, "x")


# -- Whole runs ------------------------------------------------------------------------------------


def painted(folder, n=96, seed=0):
    """Writes images of 8x8 pixels whose quarters say which of three classes they show."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    lines = []
    for i in range(n):
        marks = rng.random(3) < (0.5, 0.3, 0.2)
        image = rng.integers(0, 60, (8, 8, 3), np.uint8)
        for k in np.flatnonzero(marks):
            image[4 * (k // 2) :, 4 * (k % 2) :][:4, :4] += np.uint8(150)
        cv2.imwrite(str(folder / f"{i}.png"), image)
        lines.append(f"{folder.name}/{i}.png\t{','.join(str(int(m)) for m in marks)}\n")
    (folder.parent / f"{folder.name}_list.txt").write_text("".join(lines))


def of_several(root, loss="bce"):
    config = runs.tiny("plain")
    config.data.update({"source": "list", "root": str(root), "multi_label": True})
    config.data.class_names = ("red", "green", "blue")
    config.image.update({"mean": (0.3,) * 3, "std": (0.3,) * 3})
    config.crop.update({"shift": 0, "flip": 0.0})
    config.loss.name, config.checkpoint.best = loss, "map"
    config.batch_size = config.eval.batch_size = 32
    config.mix.mixup = 0.0
    return config


@pytest.fixture
def shapes(tmp_path):
    painted(tmp_path / "train")
    painted(tmp_path / "val", n=40, seed=1)
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss.name": "supervised"}, "these may show several classes: write bce or asymmetric"),
        ({"checkpoint.best": "top1"}, "'top1': the images may show several classes: write one of"),
    ],
)
def test_what_means_nothing_for_several_classes(shapes, changes, message):
    config = of_several(shapes)
    config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=message):
        train.setup(config)


def test_the_hint_at_fine_tuning_is_for_such_images(shapes):
    told = hints(of_several(shapes).data.to_dict(), "run", evaluated=True)[1]
    config = read(told.partition("--config=")[2].split()[0])
    assert (config.data.source, config.data.multi_label) == ("list", True)
    assert f"--config.data.root={shapes}" in told
    assert "data.source" not in told
    config = of_several(shapes)
    config.data.update(source="table", multi_label=False, label_columns=("a", "b"))
    config.data.update(unlabelled="more", unlabelled_share=0.5)
    told = hints(config.data.to_dict(), "run", evaluated=True)[1]
    assert "multilabel.py" in told
    assert "unlabelled" not in told  # its loss has no teacher


def test_what_means_nothing_for_one_class():
    config = runs.tiny("plain")
    config.checkpoint.best = "map"
    with pytest.raises(ValueError, match="show one class each: write one of top1, top5, loss"):
        program.build(config, num_train=898, num_classes=10)


@pytest.mark.ci
def test_a_run_learns_what_images_show(shapes, tmp_path, capsys):
    config = of_several(shapes)
    config.loss.update({"pos_weights": ("balanced",), "label_smoothing": 0.02})
    config.duration, config.mix.cutmix = "40 steps", 1.0
    config.mix.prob = 0.5
    config.eval.every = "20 steps"
    run = tmp_path / "run"
    assert train.run(config, str(run)) == 0
    lines = runs.lines(run)
    last = [line for line in lines if line["split"] == "eval"][-1]
    assert not {"top1", "top5"} & last.keys()
    assert last["map"] > 0.9
    summary = json.loads((run / "summary.json").read_text())
    assert summary["best"]["map"] == max(x["map"] for x in lines if x["split"] == "eval")
    assert f"best  mAP {100 * summary['best']['map']:6.2f} %" in capsys.readouterr().out

    loaded, variables = network.load(run)
    assert loaded.multi_label
    data = sources.open(**config.data)
    images = [transformed(data.eval[i], loaded.transform, None) for i in range(40)]
    logits = np.asarray(loaded.predict(variables, np.stack(images))["logits"])
    want = of_scikit_learn(logits, data.eval.labels)
    assert {k: last[k] for k in want} == pytest.approx(want)

    config.eval.calibrate = config.report.enabled = True
    assert evaluate.run(config, str(run)) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {k: told[k] for k in want} == pytest.approx(want)

    # the best thresholds are stored, and what they do is what the next report says
    own, _ = network.load(run)
    assert len(own.thresholds) == 3
    said = own.decide(own.probabilities(logits))
    best = f1_score(data.eval.labels, said, average="macro", zero_division=0.0)
    assert best >= last["macro_f1"]
    for k in range(3):
        others = [logits[:, k] >= t for t in logits[:, k]]
        f1 = [f1_score(data.eval.labels[:, k], other) for other in others]
        assert f1_score(data.eval.labels[:, k], said[:, k]) == pytest.approx(max(f1))
    config.eval.calibrate = False
    assert evaluate.run(config, str(run)) == 0
    made = json.loads((run / "report/metrics.json").read_text())
    assert made["thresholds"] == list(own.thresholds)
    assert made["macro"]["f1"] == pytest.approx(best)
    config.eval.against = str(run)
    with pytest.raises(ValueError, match="comparisons are of images of one class each"):
        evaluate.run(config, str(run))


@pytest.mark.ci
def test_the_asymmetric_loss_trains_with_accumulation_and_groups(shapes, tmp_path):
    config = of_several(shapes, "asymmetric")
    config.model.bn_group, config.optim.accumulate_steps = 8, 2
    config.report.enabled = True
    assert train.run(config, str(tmp_path / "run")) == 0
    lines = runs.lines(tmp_path / "run")
    training = [line for line in lines if line["split"] == "train"]
    assert training[-1]["loss"] < training[0]["loss"]
    assert 0 <= training[-1]["micro_f1"] <= 1
    report = json.loads((tmp_path / "run/report/metrics.json").read_text())
    assert report["map"] == pytest.approx(lines[-1]["map"])
    assert list(report["per_class"]) == ["red", "green", "blue"]
