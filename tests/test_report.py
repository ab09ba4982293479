"""Reports: their figures, files and page; written by runs, also by those that were killed."""

import base64
import csv
import hashlib
import html.parser
import json
import os
import re
import types
from pathlib import Path

import jax
import numpy as np
import pytest
import runs
import sklearn.metrics
from etils import epath
from test_network import small

from configs import base
from jaxcls import choices, evaluate, network, program, train
from jaxcls.config import defaults
from jaxcls.data.arrays import Arrays, Subset, WithBackground
from jaxcls.data.feed import Feed
from jaxcls.data.folders import Files
from jaxcls.report import advice, figures, plots, tables, write
from jaxcls.report.grad_cam import grad_cam
from jaxcls.report.scores import Scores

HOSTILE = ("<script>alert(1)</script>", '"><img src=x onerror=alert(2)>', "$x^{", "\u4e2d, '")


def options(**changes):
    """Returns the keys of `config.report`, without what takes long."""
    keys = {"enabled": True, "samples": 50, "mistakes": 5, "grad_cam": False}
    return write.Options(**keys | changes)


def scores_of(logits, labels, batch=7):
    """Returns scores that came in batches, the last one filled up."""
    scores = Scores(len(labels))
    for start in range(0, len(labels), batch):
        rows = np.arange(start, start + batch)
        mask = rows < len(labels)
        rows %= len(labels)
        scores.add({"logits": logits[rows], "label": labels[rows], "mask": mask})
    return scores


def evaluation_of(logits, labels, names, **changes):
    """Returns an evaluation with these scores, and a source of as many images."""
    several = labels.ndim == 2
    net, _ = small(num_classes=len(names), class_names=tuple(names), multi_label=several, **changes)
    right = logits.argmax(1) == labels if labels.ndim == 1 else np.zeros(1)
    result = {"loss": 1.0, "top1": float(right.mean()), "top5": 1.0, "images": len(labels)}
    scores = scores_of(logits, labels)
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), np.uint8)
    source = Arrays("<b>fake", images, np.zeros(len(labels), int), tuple(names))
    about = {"checkpoint": "/<i>run"}
    return figures.Evaluation(
        network=net, class_names=tuple(names), result=result, scores=scores, about=about
    ), source


def random(images, classes, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, images)
    logits = rng.normal(size=(images, classes)) + 3 * np.eye(classes)[labels]
    return logits.astype(np.float32), labels


class Page(html.parser.HTMLParser):
    """What a page consists of."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.shown = [], []
        self.feed(text)
        self.text = "".join(self.shown)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.shown.append(data)


@pytest.mark.parametrize(("images", "classes"), [(203, 4), (900, 1000)])
def test_files_of_a_report(tmp_path, images, classes):
    logits, labels = random(images, classes)
    names = (*HOSTILE, *(f"n{i:04d}" for i in range(4, classes)))
    evaluation, source = evaluation_of(logits, labels, names)
    write.report(epath.Path(tmp_path), evaluation, source, options())
    assert {p.name for p in tmp_path.iterdir()} == {
        "metrics.json", "predictions.csv", "index.html"
    }  # fmt: skip

    made = json.loads((tmp_path / "metrics.json").read_text())
    predictions = logits.argmax(1)
    assert made["top1"] == (predictions == labels).mean()
    expected = sklearn.metrics.confusion_matrix(labels, predictions, labels=range(classes))
    np.testing.assert_array_equal(made["confusion"], expected)
    table = sklearn.metrics.classification_report(
        labels, predictions, labels=range(classes), target_names=names, output_dict=True,
        zero_division=0,
    )  # fmt: skip
    for name, row in made["per_class"].items():
        theirs = table[name]
        expected = [theirs[k] for k in ("precision", "recall", "f1-score", "support")]
        assert [row[k] for k in ("precision", "recall", "f1", "support")] == pytest.approx(expected)
    for kind in ("macro", "micro", "weighted"):
        theirs = sklearn.metrics.f1_score(labels, predictions, average=kind, zero_division=0)
        assert made[kind]["f1"] == pytest.approx(theirs)
    low, high = made["intervals"]["top1"]
    assert low < made["top1"] < high
    assert made["temperature"]["stored"] == 1

    with (tmp_path / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == [f"<b>fake[{i}]" for i in range(images)]
    assert [row["label"] for row in rows] == [names[k] for k in labels]
    assert [row["prediction"] for row in rows] == [names[k] for k in predictions]
    p = np.exp(logits - logits.max(1, keepdims=True))
    p = (p / p.sum(1, keepdims=True)).max(1)
    np.testing.assert_allclose([float(row["probability"]) for row in rows], p, rtol=1e-4)
    wrong = max(p[predictions != labels])
    assert made["mistakes"][0]["probability"] == pytest.approx(wrong)
    worst = min(made["per_class"].values(), key=lambda row: row["f1"] if row["support"] else 1)
    assert made["per_class"][made["worst_classes"][0]]["f1"] == worst["f1"]

    text = (tmp_path / "index.html").read_text()
    page = Page(text)
    assert [tag for tag, _ in page.tags].count("script") == 1
    [policy] = [a["content"] for _, a in page.tags if "http-equiv" in a]
    script = re.search("<script>(.*?)</script>", text[text.index("<h2>Files") :], re.S)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith("default-src 'none';")
    assert policy.endswith(f"script-src 'sha256-{digest}'")  # and no other script runs
    assert not [a for _, a in page.tags if any(key.startswith("on") for key in a)]
    places = [a.get("src") or a.get("href") or "" for _, a in page.tags]
    assert all(place.startswith(("data:", "#")) for place in places if place)
    for name in HOSTILE:
        assert name in page.text
    assert "/<i>run" in page.text
    pictures = [a for tag, a in page.tags if tag == "img" and "jpeg" in a["src"]]
    assert len(pictures) == 5


def test_what_is_no_number_or_has_no_label(tmp_path):
    logits, labels = random(40, 3)
    logits[::3, 0] = np.nan
    logits[1] = -np.inf
    labels[5:9] = -1
    evaluation, source = evaluation_of(logits, labels, ("a", "a", "b"))
    made = write.report(epath.Path(tmp_path), evaluation, source, options())
    text = (tmp_path / "metrics.json").read_text()
    there = json.loads(text, parse_constant=pytest.fail)
    assert list(there["per_class"]) == ["a (0)", "a (1)", "b"]
    assert sum(row["support"] for row in made["per_class"].values()) == 36
    lines = (tmp_path / "predictions.csv").read_text().splitlines()
    assert len(lines) == 41
    assert lines[6].startswith("<b>fake[5],,")

    perfect = 9 * np.eye(3, dtype=np.float32)[labels[:5]]
    evaluation, source = evaluation_of(perfect, labels[:5], ("a", "b", "c"))
    made = write.report(epath.Path(tmp_path), evaluation, source, options())
    assert made["mistakes"] == made["worst_classes"] == []


def test_classes_of_equal_names_are_told_apart():
    assert figures.names_of(("a", "b"), 3) == ["a", "b", "class 2"]
    assert figures.names_of(("a", "a", "b"), 3) == ["a (0)", "a (1)", "b"]
    assert len({*figures.names_of(("a", "a", "a (0)", "a (0) (0)"), 4)}) == 4


def test_images_of_several_classes(tmp_path):
    rng = np.random.default_rng(0)
    marks = (rng.uniform(size=(60, 4)) < 0.4).astype(np.int32)
    marks[:, 3] = 0
    logits = (rng.normal(size=(60, 4)) + 2 * marks - 1).astype(np.float32)
    evaluation, source = evaluation_of(logits, marks, ("a", "b", "c", "d"))
    made = write.report(epath.Path(tmp_path), evaluation, source, options())
    expected = [sklearn.metrics.average_precision_score(marks[:, k], logits[:, k]) for k in (0, 1)]
    found = [made["per_class"][name]["average_precision"] for name in "ab"]
    assert found == pytest.approx(expected)
    for kind in ("macro", "micro", "weighted"):
        theirs = sklearn.metrics.precision_recall_fscore_support(
            marks, logits >= 0, average=kind, zero_division=0
        )
        assert list(made[kind].values()) == pytest.approx(theirs[:3])
    there = json.loads((tmp_path / "metrics.json").read_text())
    assert there["per_class"]["d"]["average_precision"] is None
    rows = list(csv.DictReader((tmp_path / "predictions.csv").open()))
    assert rows[0]["label"] == ";".join(np.array(list("abcd"))[marks[0] > 0])
    assert "average precision" in (tmp_path / "index.html").read_text()


def test_lines_of_a_log_that_are_damaged_are_left_out(tmp_path):
    assert write.log_of(tmp_path / "nothing") == []
    good = [
        {"split": "train", "step": 1, "epoch": 0.5, "loss": None, "lr": 0.1},
        {"split": "eval", "step": 1, "epoch": 0.5, "top1": 0.5},
    ]
    bad = (
        "5", "null", "[1]", "{}", '{"split": "train"}', '{"split": "test", "epoch": 1}',
        '{"split": "eval", "epoch": "1"}', '{"split": "eval", "epoch": 1, "loss": [1]}',
        f'{{"split": "eval", "epoch": 1, "loss": {"9" * 400}}}', "\x00", "[" * 100_000,
    )  # fmt: skip
    text = "\n".join([json.dumps(good[0]), *bad, json.dumps(good[1]), '{"split": "train", "ep'])
    (tmp_path / "metrics.jsonl").write_bytes(text.encode() + b"\xff")
    assert write.log_of(tmp_path) == good
    assert "<svg" in plots.curves(good)
    assert plots.curves([{"split": "train", "epoch": 1.0, "loss": None}]) == ""


# -- Advice ----------------------------------------------------------------------------------------


def advised(training, evaluated, config=None, rare=0.9, after=0.02, **last):
    """Returns the titles of the advice on a run with these accuracies, and all its lines."""
    config = config or base.get_config()
    lines = [
        {"split": "train", "epoch": float(e), **(last or {"top1": training * e / 8})}
        for e in range(1, 9)
    ]
    lines += [{"split": "eval", "epoch": float(e), "top1": evaluated} for e in range(1, 9)]
    classes = {
        str(k): {"support": 10 + 10 * k, "recall": 0.9 if k > 5 else rare} for k in range(12)
    }
    found = advice.advise(
        {
            "top1": evaluated,
            "intervals": {"top1": (evaluated - 0.01, evaluated + 0.01)},
            "per_class": classes,
            "temperature": {
                "stored": 1.0, "fitted": 1.8, "ece_before": 0.05, "ece_after": after
            },
        },
        lines,
        config,
    )  # fmt: skip
    return [it.title for it in found], "\n".join(line for it in found for line in it.turn)


def test_advice_is_given_where_the_figures_bear_it():
    assert advised(0.9, 0.9, after=0.04) == ([], "")
    # of the last epoch: 0.95 and before that less; evaluation 0.8 to 0.82
    titles, turn = advised(0.95, 0.81, after=0.04)
    assert titles == ["Overfitting: regularise more"]
    for key in ("optim.l2", "augment.policy", "mix.cutmix", "loss.label_smoothing", "erase.name"):
        assert f"{key}: now" in turn
    config = base.get_config()
    config.augment.policy, config.optim.l2, config.loss.label_smoothing = "randaugment", 1e-4, 0.1
    titles, turn = advised(0.95, 0.81, config, after=0.04)
    assert titles == ["Overfitting: regularise more"]
    assert "optim.l2: now 0.0001" in turn
    assert "augment.policy" not in turn
    assert "label_smoothing" not in turn

    titles, turn = advised(0.7, 0.8, config, after=0.04)
    assert titles == ["Training below evaluation: expected with strong augmentation"]
    config.augment.policy = ""
    titles, turn = advised(0.7, 0.8, config, after=0.04)
    assert titles == ["Underfitting: regularise less"]
    assert "optim.l2: now 0.0001, try a third" in turn
    assert "crop.scale: now (0.08, 1.0), try (0.2, 1.0)" in turn
    assert "loss.label_smoothing: now 0.1, try 0" in turn
    # mixed labels have another accuracy
    assert advised(0.7, 0.8, config, after=0.04, top1_mixed=0.3)[0] == []

    assert advised(0.9, 0.9, rare=0.6, after=0.04)[0] == ["Rare classes are left behind"]
    assert advised(0.9, 0.9, after=0.01)[0] == ["Probabilities should be less sure"]


def test_every_key_that_advice_names_is_one():
    source = Path(advice.__file__).read_text()
    named = set(re.findall(r"[\"'{\s]([a-z]+\.[a-z_]+): (?:now|with)", source))
    assert len(named) >= 8
    assert named <= set(defaults()[0])


# -- Scores from the pass that counts --------------------------------------------------------------


@pytest.mark.parametrize(("devices", "batch_size"), [(1, 500), (8, 104)])
def test_scores_are_those_of_every_image_once(devices, batch_size):
    config = runs.tiny("plain")
    config.mesh.data, config.eval.batch_size = devices, batch_size
    config, data = choices.open_data(config)
    built = program.build(config, num_train=len(data.train), num_classes=10)
    state, scores = built.init(), Scores(len(data.eval))
    feed = Feed(data, data.eval, built.network.transform, built.layout)
    given = {"batch_size": batch_size, "scores": scores}
    [result] = evaluate.evaluate(built.score_step, feed, state.variables(), **given)
    [plain] = evaluate.evaluate(built.eval_step, feed, state.variables(), batch_size=batch_size)
    assert result == pytest.approx(plain, rel=1e-6)
    np.testing.assert_array_equal(scores.numbers, np.arange(899))
    np.testing.assert_array_equal(scores.labels, data.eval.labels)
    pixels = np.stack([built.network.transform(data.eval[i]["image"], None) for i in range(899)])
    expected = built.network.predict(state.variables(), pixels)["logits"]
    np.testing.assert_allclose(scores.logits, expected, atol=1e-5)
    assert (scores.logits.argmax(1) == scores.labels).mean() == result["top1"]


def test_images_that_cannot_be_read_have_no_scores():
    scores = Scores(5)
    for mask in ([True, False, True], [True, True, False]):
        rows = {"logits": np.zeros((3, 2)), "label": np.arange(3)}
        scores.add({**rows, "mask": np.array(mask)})
    assert scores.numbers.tolist() == [0, 2, 3, 4]
    assert scores.labels.tolist() == [0, 2, 0, 1]


def test_too_many_scores_are_told():
    assert Scores.of(range(50_000), 1000).count == 50_000
    message = "the scores of 50,000 images and 100,000 classes take 18.6 GiB, more than the 4 of"
    with pytest.raises(ValueError, match=message):
        Scores.of(range(50_000), 100_000)
    said = []
    config, net = runs.tiny("plain"), types.SimpleNamespace(num_classes=100_000)
    config.report.enabled = True
    data = types.SimpleNamespace(eval=range(50_000))
    report = write.Report(config, None, net, data, types.SimpleNamespace(say=said.append))
    assert report.scores(last=True) is None  # the run goes on
    assert said[0].startswith(f"no report: {message}")


# -- Where a network looked ------------------------------------------------------------------------


def test_grad_cam_by_its_formula():
    net, _ = small()
    variables = jax.jit(net.module.init)(jax.random.key(0), np.zeros((1, 8, 8, 1), np.float32))
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
    heat = grad_cam(net, variables, images)
    outputs = net.predict(variables, images)
    # behind the last stage there are only the mean over places and the classifier
    kernel = np.float64(variables["params"]["head"]["fc"]["kernel"])
    best = np.asarray(outputs["logits"]).argmax(1)
    stage = np.float64(outputs["stage1"])
    expected = np.maximum((stage * kernel[:, best].T[:, None, None]).sum(-1), 0)
    expected /= np.maximum(expected.max((1, 2), keepdims=True), 1e-12)
    assert expected.max() == 1
    np.testing.assert_allclose(heat, expected, atol=1e-4)


# -- Of a run --------------------------------------------------------------------------------------


@pytest.mark.ci
def test_a_run_that_ends_while_it_writes_the_report(tmp_path, monkeypatch):
    config = runs.tiny("plain")
    config.duration, config.lr.warmup, config.eval.every = "4 steps", "", "2 steps"
    config.report.update({"enabled": True, "samples": 20, "grad_cam": False})
    report = tmp_path / "report"
    fsync = os.fsync

    def full(file):
        if os.path.samestat(os.fstat(file), (report / "index.html.tmp").stat()):
            raise OSError(28, "No space left on device")
        fsync(file)

    report.mkdir()
    (report / "predictions.csv").write_text("before")
    (report / "index.html.tmp").touch()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=f"No space left on device: '{report / 'index.html'}'"):
        train.run(config, str(tmp_path))
    assert [(p.name, p.read_text()) for p in report.iterdir()] == [("predictions.csv", "before")]
    monkeypatch.undo()
    assert train.run(config, str(tmp_path)) == 0
    made = json.loads((report / "metrics.json").read_text())
    last = runs.lines(tmp_path)[-1]
    assert {k: made[k] for k in last if k not in ("split", "epoch")} == {
        k: last[k] for k in last if k not in ("split", "epoch")
    }
    assert np.trace(made["confusion"]) / 899 == made["top1"]
    assert "<svg" in (report / "index.html").read_text()
    # what the report says of an image is what the stored network says
    net, variables = network.load(tmp_path)
    _, data = choices.open_data(config)
    pixels = np.stack([net.transform(data.eval[i]["image"], None) for i in range(9)])
    p = np.asarray(net.probabilities(net.predict(variables, pixels)["logits"]))
    rows = list(csv.DictReader((report / "predictions.csv").open()))[:9]
    assert [row["prediction"] for row in rows] == [str(k) for k in p.argmax(1)]
    np.testing.assert_allclose([float(row["probability"]) for row in rows], p.max(1), rtol=1e-4)


def test_images_are_called_by_their_paths():
    """Whatever list they were read from, and whatever part of it is evaluated."""
    labels = np.array([0, 1, 1], np.int32)
    listed = Files("/photos", ("a.jpg", "b c.jpg", "d\n.jpg"), labels, ("x", "y"), "all.txt",
                   np.array([3, 5, 7]))  # fmt: skip
    assert listed.name(1) == "/photos/b c.jpg (all.txt:5)"
    part = WithBackground(Subset(listed, np.array([2, 1])), 0)
    assert tables.image_names(part, np.array([1, 0])) == ["/photos/b c.jpg", "/photos/d\\n.jpg"]
    arrays = Arrays("digits", np.zeros((2, 4, 4, 1), np.uint8), labels[:2], ("x", "y"))
    assert tables.image_names(arrays, np.array([1])) == [arrays[1]["name"]]
