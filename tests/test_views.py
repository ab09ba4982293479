"""Test-time augmentation, fusion, comparison and calibration, through the command's function."""

import csv
import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pyarrow.parquet
import pytest
import runs
import sklearn.metrics
from test_network import small

from jaxcls import choices, evaluate, network, predictor, views, weights
from jaxcls.data import ops
from jaxcls.report import write
from jaxcls.report.scores import Scores

NAMES = tuple("0123456789")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two exports of small networks for the digits, of other sizes and preprocessing."""
    folder = tmp_path_factory.mktemp("networks")
    for seed, (size, mean) in enumerate(((8, 0.3), (12, 0.5))):
        image = dataclasses.replace(
            small()[0].image, size=size, eval_resize=size + 4, mean=(mean,), std=(0.4,)
        )
        net, _ = small(num_classes=10, class_names=NAMES, image=image)
        zeros = np.zeros((1, *image.shape), np.float32)
        drawn = jax.jit(net.module.init)(jax.random.key(seed), zeros)
        head = jax.tree.map(lambda x: 8 * x, drawn["params"]["head"])
        variables = {**drawn, "params": {**drawn["params"], "head": head}}
        weights.export(folder / str(seed), variables, {"network": net.described()})
    return [str(folder / name) for name in "01"]


def config_of(**keys):
    """Returns the config of an evaluation of the first network."""
    config = runs.tiny("plain")
    config.image.update({"mean": (0.3,), "std": (0.4,), "eval_resize": 12})
    config.eval.update(keys)
    return config


def evaluated(capsys, config, workdir):
    """Returns the JSON object that an evaluation prints."""
    capsys.readouterr()
    assert evaluate.run(config, workdir) == 0
    return json.loads(capsys.readouterr().out)


def made_in(folder):
    """Returns the metrics.json of a report."""
    return json.loads(Path(folder, "report/metrics.json").read_text())


def expected(paths, shares, views_of, mean="probabilities"):
    """Returns the mean, made by hand: every image, view and network alone, in float64."""
    _, data = choices.open_data(config_of())
    total = 0
    for path, share in zip(paths, shares):
        net, variables = network.load(path, report=lambda line: None)
        for pixels in (np.stack(images) for images in zip(*views_of(net, data.eval))):
            z = np.float64(net.predict(variables, pixels)["logits"])
            p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
            total = total + share * (p if mean == "probabilities" else z)
    labels = np.array(data.eval.labels)
    p = total / total.sum(1, keepdims=True)
    if mean == "logits":
        p = np.exp(total / sum(shares))
        p /= p.sum(1, keepdims=True)
    loss = -np.log(p[np.arange(len(p)), labels] / p.sum(1)).mean()
    return loss, (p.argmax(1) == labels).mean(), p


@pytest.mark.ci
def test_views_are_corners_scales_and_mirrors(trained, tmp_path, capsys):
    def views_of(net, source):
        """Yields the twenty views of each image, cut by hand."""
        for i in range(len(source)):
            out = []
            for size in (net.image.size, 2 * net.image.size):
                resize = size * net.image.eval_resize // net.image.size
                whole = dataclasses.replace(net.image, size=resize, eval_resize=resize)
                pixels = whole.transform(source[i]["image"], None)
                left = resize - size
                middle = left // 2
                for y, x in ((0, 0), (0, left), (left, 0), (left, left), (middle, middle)):
                    crop = pixels[y : y + size, x : x + size]
                    out += [crop, crop[:, ::-1]]
            # networks take one size at a time
            yield out

    config = config_of(
        tta=("ten_crop",), tta_scales=(1.0, 2.0), predictions=str(tmp_path / "p.parquet")
    )
    config.report.update({"enabled": True, "grad_cam": False, "samples": 0})
    own = Path(trained[0], "calibration.json")
    own.write_text('{"temperature": 1.0, "thresholds": [0.9], "average": ""}')
    found = evaluated(capsys, config, trained[0])
    own.unlink()
    loss, top1, p = expected(trained[:1], [1], views_of)
    assert found["top1"] == pytest.approx(top1)
    assert found["loss"] == pytest.approx(loss, rel=1e-4)
    assert found["of"] == "mean of probabilities over 20 views of ResNet18_vd"
    table = pyarrow.parquet.read_table(tmp_path / "p.parquet")
    assert json.loads(table.schema.metadata[b"class_names"]) == list(NAMES)
    rows = np.array(table["probabilities"].to_pylist())
    np.testing.assert_allclose(rows, p, atol=2e-5)
    assert table["prediction"].to_pylist() == [NAMES[k] for k in p.argmax(1)]
    # a prediction is what an evaluation says
    model = predictor.load(trained[0], tta=("ten_crop",), tta_scales=(1.0, 2.0))
    _, data = choices.open_data(config)
    images = [np.asarray(data.eval[i]["image"]) for i in range(len(rows))]
    said = [answer.probabilities for answer in model.predict(images, top=len(NAMES))]
    np.testing.assert_allclose(said, -np.sort(-rows), atol=1e-6)
    # an export with its report is still what was written
    lines = []
    network.load(trained[0], report=lines.append)
    assert not lines
    made = made_in(trained[0])
    assert made["of"] == found["of"]
    assert made["rejection"]["threshold"] == 0  # the network's is not that of a mean
    assert not [it["title"] for it in made["advice"] if "sure" in it["title"]]
    assert "calibrate" not in Path(trained[0], "report/index.html").read_text()


@pytest.mark.parametrize("mean", ["probabilities", pytest.param("logits", marks=pytest.mark.ci)])
def test_networks_of_other_sizes_are_fused(trained, capsys, mean):
    def views_of(net, source):
        for i in range(len(source)):
            yield [net.transform(source[i]["image"], None)]

    config = config_of(fuse=(trained[1],), weights=(1.0, 3.0), mean=mean)
    found = evaluated(capsys, config, trained[0])
    loss, top1, _ = expected(trained, [0.25, 0.75], views_of, mean)
    assert found["top1"] == pytest.approx(top1)
    assert found["loss"] == pytest.approx(loss, rel=1e-5)
    alone = [evaluated(capsys, config_of(), trained[0])["loss"]]
    assert found["loss"] not in alone


def test_comparison(trained, capsys):
    config = config_of(against=trained[1])
    config.report.update({"enabled": True, "grad_cam": False, "samples": 0})
    assert evaluate.run(config, trained[0]) == 0
    said = capsys.readouterr().err
    made = made_in(trained[0])["against"]
    counts = f"{len(made['only_here'])} images are right only here, {len(made['only_there'])} only"
    assert counts in said
    assert f"p = {made['p_value']:.3g}" in said
    _, data = choices.open_data(config)
    right = []
    for path in trained:
        net, variables = network.load(path)
        pixels = np.stack([net.transform(data.eval[i]["image"], None) for i in range(899)])
        right.append(net.predict(variables, pixels)["logits"].argmax(1) == data.eval.labels)
    names = lambda rows: [f"digits/eval[{i}]" for i in np.flatnonzero(rows)]
    assert [it["image"] for it in made["only_here"]] == names(right[0] & ~right[1])
    assert [it["image"] for it in made["only_there"]] == names(right[1] & ~right[0])
    assert made["top1"] == pytest.approx(right[1].mean())
    assert 0 <= made["p_value"] <= 1
    assert "McNemar" in Path(trained[0], "report/index.html").read_text()


def test_a_temperature_is_stored_with_the_weights(trained, capsys):
    before, variables = network.load(trained[1])
    assert before.temperature == 1
    config = config_of(calibrate=True)
    config.image.update({"size": 12, "eval_resize": 16, "mean": (0.5,)})
    plain = evaluated(capsys, config, trained[1])
    lines = []
    after, same = network.load(trained[1], report=lines.append)
    assert not lines  # checksums hold
    jax.tree.map(np.testing.assert_array_equal, same, variables)
    assert after.temperature > 1.5  # of random weights
    logits = np.float32([[3, 1, 0], [0, 0, 2]])
    scaled = np.exp(np.float64(logits) / after.temperature)
    np.testing.assert_allclose(
        after.probabilities(logits), scaled / scaled.sum(1, keepdims=True), rtol=1e-5
    )
    config.eval.calibrate = False
    config.report.update({"enabled": True, "grad_cam": False, "samples": 0})
    assert evaluated(capsys, config, trained[1]) == plain
    made = made_in(trained[1])
    assert made["temperature"]["stored"] == after.temperature
    assert made["temperature"]["fitted"] == pytest.approx(after.temperature, rel=1e-4)
    rows = list(csv.DictReader(Path(trained[1], "report/predictions.csv").read_text().splitlines()))
    _, data = choices.open_data(config)
    pixels = np.stack([after.transform(data.eval[i]["image"], None) for i in range(5)])
    p = after.probabilities(after.predict(variables, pixels)["logits"]).max(1)
    np.testing.assert_allclose([float(row["probability"]) for row in rows[:5]], p, rtol=1e-3)
    # it is of these variables, and travels with an export of them
    assert after.described()["temperature"] == after.temperature
    place = Path(trained[1], "calibration.json")
    other = json.dumps({"temperature": 3.0, "average": "ema"})
    for text, expect in ((other, 1.0), (json.dumps({"temperature": 3.0, "average": ""}), 3.0)):
        place.write_text(text)
        assert network.load(trained[1])[0].temperature == expect
    for text in ("{", "[]", '{"temperature": 2}'):
        place.write_text(text)
        with pytest.raises(ValueError, match="calibration.json is damaged: remove it, or write"):
            network.load(trained[1])
    for value in ("0", "-1", '"x"', "NaN"):
        place.write_text(f'{{"temperature": {value}, "average": ""}}')
        with pytest.raises(ValueError, match="do not describe a network: temperature"):
            network.load(trained[1])
    place.write_text(json.dumps({"temperature": 1.0, "average": ""}))


def test_an_evaluation_of_too_many_scores_has_no_report(trained, capsys, monkeypatch):
    plain = evaluated(capsys, config_of(), trained[0])
    config = config_of()
    config.report.enabled = True
    monkeypatch.setattr("jaxcls.report.scores.MAX_BYTES", 1000)
    assert evaluate.run(config, trained[0]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == plain
    assert "no report: the scores of 899 images and 10 classes take" in said.err
    with pytest.raises(ValueError, match="the scores of 899 images and 10 classes take"):
        evaluate.run(config_of(tta=("flip",)), trained[0])


def test_means_of_images_of_several_classes():
    rng = np.random.default_rng(0)
    marks = rng.integers(0, 2, (20, 3)).astype(np.int32)
    options = views.Options(tta=("flip",), tta_scales=(), fuse=(), weights=(), mean="probabilities")
    mean, total = views.Mean(options), 0
    for share in (0.25, 0.75):
        scores, p = Scores(20), rng.uniform(size=(20, 3)).astype(np.float32)
        scores.add({"logits": p, "label": marks, "mask": np.ones(20, bool)})
        mean.add(scores, share)
        total = total + share * np.float64(p)
    result, scores = mean.finished()
    np.testing.assert_allclose(1 / (1 + np.exp(-np.float64(scores.logits))), total, rtol=1e-4)
    loss = -(marks * np.log(total) + (1 - marks) * np.log(1 - total)).sum(1).mean()
    assert result["loss"] == pytest.approx(loss, rel=1e-4)
    assert result["images"] == 20
    expected = [sklearn.metrics.average_precision_score(marks[:, k], total[:, k]) for k in range(3)]
    assert result["map"] == pytest.approx(np.mean(expected))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"tta": ("flop",)}, r"unknown config.eval.tta 'flop': did you mean flip"),
        ({"tta_scales": (0.0,)}, r"config.eval.tta_scales = \(0.0,\): write factors from 0.1"),
        ({"fuse": ("",)}, r"config.eval.fuse = \('',\): write runs, checkpoints or exports"),
        ({"weights": (1.0,)}, "there is nothing to weight without config.eval.fuse"),
        ({"fuse": ("x",), "weights": (1.0,)}, r"config.eval.weights = \(1.0,\): write 2 numbers"),
        ({"fuse": ("x",), "weights": (0.0, 0.0)}, r"\(0.0, 0.0\): an ensemble of nothing"),
        ({"fuse": ("x",), "weights": (-1.0, 2.0)}, "2 numbers of at least 0"),
        ({"mean": "median"}, "unknown config.eval.mean 'median'"),
        ({"fuse": ("nothing",)}, "nothing: no checkpoint there"),
        ({"against": "nothing"}, "nothing: no checkpoint there"),
        ({"calibrate": True, "tta": ("flip",)}, "as it is: leave out config.eval.tta"),
        ({"average": "swag"}, "unknown config.eval.average 'swag': did you mean swa"),
        ({"average": "swa", "ema": False}, "does nothing with config.eval.ema = False"),
        ({"average": "ema"}, "has no average 'ema', or it has not begun yet"),
        ({"predictions": "x.csv"}, "write the name of a Parquet file"),
        ({"predictions": "/no/such/x.parquet"}, "there is no such folder"),
    ],
)
def test_what_cannot_be_meant(trained, keys, message):
    with pytest.raises(ValueError, match=message):
        evaluate.run(config_of(**keys), trained[0])


def test_scales_need_a_size(trained):
    net, _ = small(image=ops.Image(**{**dict(runs.tiny().image), "eval_resize": 0}))
    options = views.Options(
        tta=(), tta_scales=(1.0, 2.0), fuse=(), weights=(), mean="probabilities"
    )
    with pytest.raises(ValueError, match="without resizing them: set config.image.eval_resize"):
        options.transforms(net)


def test_networks_of_other_classes_are_refused(trained, tmp_path):
    for key in ("fuse", "against"):
        for names, message in (
            ((*NAMES[:4], "x", *NAMES[5:]), "class 4 is 'x' there, '4' here: give networks"),
            (NAMES[:9], "has 9 classes, the network here 10"),
        ):
            net, zeros = small(num_classes=len(names), class_names=names)
            path = tmp_path / f"{key}{len(names)}"
            weights.export(path, zeros, {"network": net.described()})
            value = str(path) if key == "against" else (str(path),)
            with pytest.raises(ValueError, match=f"config.eval.{key}: .*{message}"):
                evaluate.run(config_of(**{key: value}), trained[0])


def test_training_refuses_keys_of_evaluation(tmp_path):
    config = config_of(tta=("flip",))
    with pytest.raises(ValueError, match="config.eval.tta = .* is for --mode=eval: leave it out"):
        write.Report(config, tmp_path, None, None, None)
    config = config_of()
    config.report.mistakes = 1000
    with pytest.raises(ValueError, match="config.report.mistakes = 1000: write 0 to 200"):
        write.Report(config, tmp_path, None, None, None)
    assert set(write.ALONE) >= set(views.KEYS)
