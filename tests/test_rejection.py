"""Thresholds of "none of these", against every threshold tried."""

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

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
