"""Measures of predictions against scikit-learn, SciPy and the definitions."""

import math

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import sklearn.metrics

from jaxcls.report import measures


def random_logits(images=500, classes=7, seed=0, scale=1.0):
    """Returns logits that are right more often than not, and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(classes, images, p=rng.dirichlet(np.ones(classes)))
    logits = rng.normal(size=(images, classes)) + 1.5 * np.eye(classes)[labels]
    return (scale * logits).astype(np.float32), labels


@pytest.mark.parametrize(("images", "classes"), [(500, 7), (60, 40)])
def test_classes_as_scikit_learn(images, classes):
    logits, labels = random_logits(images, classes)
    predictions, probability, ranks, of_label = measures.by_image(logits, labels)
    z = logits.astype(float)
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    np.testing.assert_array_equal(predictions, p.argmax(1))
    np.testing.assert_allclose(probability, p.max(1), rtol=1e-12)
    np.testing.assert_allclose(of_label, p[np.arange(images), labels], rtol=1e-12)
    for k in (1, 5):
        ours = (ranks < k).mean()
        assert ours == sklearn.metrics.top_k_accuracy_score(
            labels, logits, k=k, labels=range(classes)
        )
    everything = range(classes)
    table = measures.per_class(labels, predictions, classes)
    theirs = sklearn.metrics.precision_recall_fscore_support(
        labels, predictions, labels=everything, zero_division=0
    )
    for ours, expected in zip(table, theirs):
        np.testing.assert_allclose(ours, expected, atol=1e-15)
    for kind, means in measures.averages(table).items():
        expected = sklearn.metrics.precision_recall_fscore_support(
            labels, predictions, average=kind, zero_division=0
        )
        assert list(means.values()) == pytest.approx(expected[:3], abs=1e-14)
    matrix = measures.confusion(labels, predictions, classes)
    expected = sklearn.metrics.confusion_matrix(labels, predictions, labels=everything)
    np.testing.assert_array_equal(matrix, expected)
    pairs = measures.confused(labels, predictions)
    assert pairs[:, 2].sum() == (labels != predictions).sum()
    assert (np.diff(pairs[:, 2]) <= 0).all()
    assert all(matrix[a, b] == n for a, b, n in pairs.tolist())


def test_scores_that_are_not_finite_are_wrong():
    logits = np.array([[np.nan, 0, 1], [0, np.inf, 1], [2, 1, 0], [1, 1, 0]], np.float32)
    _, probability, ranks, _ = measures.by_image(logits, np.array([0, 1, 0, 1]))
    assert ranks.tolist() == [3, 0, 0, 1]  # of equal logits the lower class comes first
    error, _ = measures.reliability(probability, ranks < 1)
    assert 0 <= error <= 1
    assert measures.temperature(np.full((2, 3), np.nan), np.array([0, 1])) == 1


def test_calibration_error_by_its_definition():
    rng = np.random.default_rng(1)
    probability = np.append(rng.uniform(0, 1, 300), [0.0, 1.0, 0.2, 3 / 15])
    right = rng.uniform(size=304) < probability**2
    error, bins = measures.reliability(probability, right)
    expected = 0.0
    for m in range(1, 16):
        inside = [i for i, p in enumerate(probability) if (m - 1) / 15 < p <= m / 15]
        inside += [i for i, p in enumerate(probability) if m == 1 and p == 0]
        assert bins[m - 1].images == len(inside)
        if inside:
            expected += abs(right[inside].sum() - probability[inside].sum()) / 304
    assert error == pytest.approx(expected, abs=1e-12)
    assert measures.reliability(np.ones(4), np.array([1, 0, 0, 0], bool))[0] == 0.75


@pytest.mark.parametrize("scale", [0.5, 1.0, 4.0])
def test_temperature_is_the_minimum(scale):
    logits, labels = random_logits(3000, 5, scale=scale)

    def loss(t):
        z = logits.astype(float) / t
        return (scipy.special.logsumexp(z, axis=1) - z[np.arange(len(z)), labels]).mean()

    best = scipy.optimize.minimize_scalar(loss, bounds=(0.05, 20), options={"xatol": 1e-9})
    found = measures.temperature(logits, labels)
    assert found == pytest.approx(best.x, rel=1e-5)
    assert measures.temperature(found * logits, labels) == pytest.approx(found**2, rel=1e-4)


def test_temperature_of_what_is_always_right_or_wrong_has_an_end():
    low, high = measures.TEMPERATURES
    for scale in (1, 3, 30, 300):
        eye = scale * np.eye(4, dtype=np.float32)
        assert measures.temperature(eye, np.arange(4)) == low
        assert measures.temperature(eye, np.array([1, 2, 3, 0])) == high


def test_temperature_of_what_none_changes_is_one():
    labels = np.arange(12) % 3
    assert measures.temperature(np.full((12, 3), 0.1, np.float32), labels) == 1
    assert measures.temperature(np.full((12, 1), 5, np.float32), 0 * labels) == 1
    certain = 2000 * np.eye(3, dtype=np.float32)[labels]
    assert measures.temperature(certain, labels) == 1


def macro_f1(labels, predictions, classes):
    """Returns macro F1 of many draws of images at once, [S], of labels and predictions [S, N]."""
    first = classes * np.arange(len(labels))[:, None]
    count = lambda x: np.bincount(x, minlength=classes * len(labels)).reshape(-1, classes)
    right = count((first + labels)[labels == predictions])
    both = count((first + labels).ravel()) + count((first + predictions).ravel())
    f1 = np.where(both > 0, 2 * right / np.maximum(both, 1), np.nan)
    return np.nanmean(f1, 1)


def test_intervals_are_those_of_drawing_images():
    logits, labels = random_logits(400, 12)
    predictions, _, ranks, _ = measures.by_image(logits, labels)
    given = {"classes": 12, "samples": 4000}
    found = measures.intervals(labels, predictions, ranks, **given)
    i = np.random.default_rng(5).integers(0, 400, (4000, 400))
    drawn = {"top1": (ranks[i] < 1).mean(1), "top5": (ranks[i] < 5).mean(1)}
    drawn["macro_f1"] = macro_f1(labels[i], predictions[i], 12)
    for row, f1 in zip(i[:20], drawn["macro_f1"]):
        expected = sklearn.metrics.f1_score(labels[row], predictions[row], average="macro")
        assert f1 == pytest.approx(expected)
    for name, values in drawn.items():
        # the standard error of a quantile q of n draws is sqrt(q (1 - q) / n) / density(q): four of
        # that of a difference of two, and a step of shares of 400 images
        density = scipy.stats.norm.pdf(1.96) / values.std()
        error = np.sqrt(2 * 0.025 * 0.975 / 4000) / density
        step = 0 if name == "macro_f1" else 1 / 400
        expected = np.percentile(values, [2.5, 97.5])
        np.testing.assert_allclose(found[name], expected, atol=4 * error + step)
        assert 4 * error < 0.07 * np.diff(expected)  # 90 or 99 % would be told from 95 %
    exact = scipy.stats.binom(400, (ranks < 1).mean()).ppf([0.025, 0.975]) / 400
    np.testing.assert_allclose(found["top1"], exact, atol=0.003)
    assert measures.intervals(labels, predictions, ranks, **given) == found


@pytest.mark.parametrize(("a", "b"), [(0, 0), (5, 0), (12, 30), (30, 12), (700, 820)])
def test_mcnemars_exact_test(a, b):
    expected = scipy.stats.binomtest(a, a + b).pvalue if a + b else 1.0
    assert measures.mcnemar(a, b) == pytest.approx(expected, rel=1e-9)


def test_average_precision_and_thresholds():
    rng = np.random.default_rng(2)
    marks = rng.uniform(size=(60, 6)) < 0.3
    marks[:, 4] = False
    scores = np.round(rng.normal(size=(60, 6)) + marks, 1)  # with equal ones
    found = measures.average_precision(scores, marks)
    thresholds = measures.best_thresholds(scores, marks)
    assert math.isnan(found[4])
    assert math.isnan(thresholds[4])
    for k in (0, 1, 2, 3, 5):
        expected = sklearn.metrics.average_precision_score(marks[:, k], scores[:, k])
        assert found[k] == pytest.approx(expected, abs=1e-12)
        f1 = lambda t, k=k: sklearn.metrics.f1_score(marks[:, k], scores[:, k] >= t)
        assert f1(thresholds[k]) == max(map(f1, scores[:, k]))
