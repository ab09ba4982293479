"""Thresholds of "none of these", against every threshold tried."""

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from test_network import small
from test_views import config_of, evaluated, made_in, trained  # noqa: F401

from jaxcls import choices, evaluate, network
from jaxcls.report import rejection


def example(n=300, seed=0):
    rng = np.random.default_rng(seed)
    p = np.round(rng.uniform(0.2, 1, n), 2)  # many are equal
    return p, rng.random(n) < p


def tried(p, right, threshold):
    kept = p >= threshold
    return 1 - kept.mean(), right[kept].mean()


def test_the_curve_is_every_threshold():
    p, right = example()
    p[7] = np.nan
    found = rejection.curve(p, right)
    assert found.threshold.tolist() == sorted(set(p[~np.isnan(p)]))
    for threshold, *point in zip(*found):
        assert point == pytest.approx(tried(p, right, threshold))
    many = np.random.default_rng(1).random(9999)
    thin = rejection.thinned(rejection.curve(many, many > 0.5))
    assert len(thin.threshold) == rejection.POINTS
    with pytest.raises(ValueError, match="no probability"):
        rejection.curve(p[7:8], right[7:8])


@pytest.mark.parametrize("accuracy", [0.0, 0.6, 0.8, 0.9])
def test_for_an_accuracy_no_threshold_rejects_fewer(accuracy):
    p, right = example()
    threshold = rejection.for_accuracy(rejection.curve(p, right), accuracy)
    rejected, got = tried(p, right, threshold)
    assert got >= accuracy
    others = [tried(p, right, t) for t in set(p)]
    assert rejected == pytest.approx(min(r for r, a in others if a >= accuracy))


def test_an_accuracy_that_none_reaches():
    with pytest.raises(ValueError, match="99 % right: 50.00 % is the most, with 0.0 % rejected"):
        rejection.for_accuracy(rejection.curve(np.array([0.9, 0.9]), np.array([True, False])), 0.99)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.35, 1.0])
def test_for_a_share_no_threshold_rejects_more(share):
    p, right = example()
    threshold = rejection.for_share(rejection.curve(p, right), share)
    rejected, _ = tried(p, right, threshold)
    assert rejected <= share
    above = p[p > threshold]
    assert not len(above) or tried(p, right, above.min())[0] > share
    p[:] = np.nan
    p[0] = 0.5
    assert rejection.for_share(rejection.curve(p, right), 0.2) == 0


def test_what_is_rejected_of_digits_that_were_never_seen():
    """A classifier of seven digits is asked about ten: most of the three others are rejected."""
    x, y = load_digits(return_X_y=True)
    seen = y < 7
    model = LogisticRegression(max_iter=200).fit(x[:900][seen[:900]], y[:900][seen[:900]])
    p = model.predict_proba(x[900:])
    known = seen[900:]
    found = rejection.curve(p.max(1)[known], p.argmax(1)[known] == y[900:][known])
    threshold = rejection.for_share(found, 0.15)
    rejected = p.max(1) < threshold
    assert rejected[known].mean() <= 0.15
    assert rejected[~known].mean() > 0.5


# -- Stored with the network -----------------------------------------------------------------------


def decided(path):
    """Returns the loaded network, what it decides of all evaluation images, and their labels."""
    net, variables = network.load(path)
    _, data = choices.open_data(config_of())
    pixels = np.stack([net.transform(data.eval[i]["image"], None) for i in range(len(data.eval))])
    p = net.probabilities(net.predict(variables, pixels)["logits"])
    return net, net.decide(p), data.eval.labels


def test_a_threshold_is_stored_with_the_weights(trained, capsys):  # noqa: F811
    config = config_of(calibrate=True, rejected=0.25)
    config.report.update({"enabled": True, "grad_cam": False, "samples": 0})
    evaluated(capsys, config, trained[0])
    net, found, labels = decided(trained[0])
    assert len(net.thresholds) == 1
    assert 0.24 < (found < 0).mean() <= 0.25
    right = (found == labels)[found >= 0].mean()
    config.eval.update({"calibrate": False, "rejected": 0.0})
    evaluated(capsys, config, trained[0])
    told = made_in(trained[0])["rejection"]
    assert told["threshold"] == net.thresholds[0]
    assert told["rejected"] == pytest.approx((found < 0).mean())
    assert told["accuracy"] == pytest.approx(right)
    assert told["curve"]["rejected"][0] == 0
    assert "None of these" in Path(trained[0], "report/index.html").read_text()

    aim = (right + (net.decide(np.eye(10)[found]) == labels).mean()) / 2
    config.eval.update({"calibrate": True, "accepted_accuracy": float(aim)})
    evaluated(capsys, config, trained[0])
    _, found, _ = decided(trained[0])
    assert (found == labels)[found >= 0].mean() >= aim
    config.eval.accepted_accuracy = 1.0
    with pytest.raises(ValueError, match="no threshold makes the accepted images 100 % right"):
        evaluate.run(config, trained[0])
    config.eval.accepted_accuracy = 0.0
    evaluated(capsys, config, trained[0])
    assert network.load(trained[0])[0].thresholds == ()
    place = Path(trained[0], "calibration.json")
    for wrong in ([1.5], [0.1, 0.2], ["x"]):
        place.write_text(json.dumps({"temperature": 1.0, "thresholds": wrong, "average": ""}))
        with pytest.raises(ValueError, match="thresholds = .*: give 1 of 0 to 1, or none, of the"):
            network.load(trained[0])
    place.unlink()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"rejected": 0.1}, "config.eval.rejected = 0.1 does nothing without --config.eval.calib"),
        ({"calibrate": True, "rejected": 1.1}, "config.eval.rejected = 1.1: write a share"),
        ({"calibrate": True, "accepted_accuracy": -0.1}, "accepted_accuracy = -0.1: write a share"),
        ({"calibrate": True, "accepted_accuracy": 0.9, "rejected": 0.1}, "ask for two thresholds"),
    ],
)
def test_what_cannot_be_asked_for(trained, keys, message):  # noqa: F811
    with pytest.raises(ValueError, match=message):
        evaluate.run(config_of(**keys), trained[0])


def test_the_background_is_rejected_whatever_its_probability():
    net = network_of(background="b")
    predictions, ranks = np.array([0, 1, 2, 0]), np.array([0, 0, 1, 0])
    found = rejection.of(net, predictions, np.array([0.5, 0.99, 0.6, 0.7]), ranks)
    assert found.threshold.tolist() == [0.5, 0.6, 0.7]
    np.testing.assert_allclose(found.rejected, [1 / 4, 2 / 4, 3 / 4])
    np.testing.assert_allclose(found.accuracy, [2 / 3, 1 / 2, 1])
    assert np.isnan(rejection.at(found, 0.8)["accuracy"])


def network_of(**changes):
    return small(num_classes=3, class_names=("a", "b", "c"), **changes)[0]
