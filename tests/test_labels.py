"""Labels of every kind, from the source to the network and to what people read."""

import dataclasses

import numpy as np
import pytest

from jaxcls.data import arrays, identity, labels, loader, sources
from jaxcls.data.sampling import Order, by_class, subset

K = 5


def marked(count, dtype=np.int8, seed=0):
    """A source of marks: image i has the pixels i; the last has no label, that before no class."""
    rng = np.random.default_rng(seed)
    marks = rng.integers(0, 2, (count, K)).astype(dtype)
    if dtype == np.float32:
        marks = rng.dirichlet(np.ones(K), count).astype(dtype)
    marks[-2:] = 0
    marks[-1] = labels.NONE
    pixels = (np.arange(count)[:, None, None, None] + np.zeros((1, 2, 2, 1), int)).astype(np.uint8)
    return arrays.Arrays("marked", pixels, marks, tuple("abcde"))


def data_of(source):
    return sources.Data(source, None, source.class_names, "error", 0, "shuffle", 1, "none")


def same(image, rng):
    return image


@pytest.mark.parametrize("options", [{}, {"workers": 1}])
@pytest.mark.parametrize("dtype", [np.int8, np.float32])
def test_batches_carry_marks(dtype, options):
    source = marked(10, dtype)
    options = dataclasses.replace(loader.PLAIN, **options)
    how = {"batch_size": 4, "seed": 0, "options": options}
    with loader.train_batches(source, same, **how, start_step=0, num_steps=4) as batches:
        train = list(batches)
    how.pop("seed")
    with loader.eval_batches(source, same, **how) as batches:
        evaluation = list(batches)
    for batch in train + evaluation:
        assert batch["label"].dtype == np.float32
        numbers = batch["image"][:, 0, 0, 0]
        np.testing.assert_array_equal(batch["label"], source.labels[numbers])
    assert np.concatenate([b["mask"] for b in evaluation]).sum() == 10
    with loader.eval_batches(source, same, batch_size=4, rows=np.array([1, 2])) as batches:
        for part, whole in zip(batches, evaluation, strict=True):
            kept = part["mask"]
            np.testing.assert_array_equal(part["label"][kept], whole["label"][1:3][kept])


def test_missing_labels_stay_missing():
    source = arrays.Arrays("x", np.zeros((3, 2, 2, 1), np.uint8), np.array([1, -1, 0]), ("a", "b"))
    with loader.eval_batches(source, same, batch_size=2) as batches:
        assert [b["label"].tolist() for b in batches] == [[1, -1], [0, 0]]
    np.testing.assert_array_equal(
        labels.of_batch([np.array([0, 1, 1]), -1], 3), [[0, 1, 1], [-1, -1, -1]]
    )
    assert labels.labelled(source.labels).tolist() == [True, False, True]
    assert labels.labelled(marked(6).labels).tolist() == [True] * 5 + [False]


def test_images_of_several_classes_count_for_the_rarest():
    marks = np.array([[1, 1, 0], [1, 0, 0], [1, 0, 1], [0, 1, 1], [0, 1, 0], [0, 0, 0], [-1] * 3])
    assert labels.counts(marks, 3).tolist() == [3, 3, 2]
    assert labels.groups(marks).tolist() == [0, 0, 2, 2, 1, 3, -1]
    assert {k: v.tolist() for k, v in by_class(marks).items()} == {
        0: [0, 1], 1: [4], 2: [2, 3], 3: [5],
    }  # fmt: skip
    assert labels.counts(np.array([0, 2, -1, 2]), 4).tolist() == [1, 0, 2, 0]
    visits = np.concatenate([Order(7, 4, 0, "balanced", 1, marks)(e) for e in range(25)])
    assert np.bincount(labels.groups(marks)[visits]).tolist() == [25, 25, 25, 25]
    assert subset(marks, 0.5, 0).shape == (4,)


def test_marks_are_part_of_what_data_are():
    ours, theirs = marked(8), marked(8)
    theirs.labels[3, 2] ^= 1
    a, b, c = (identity.of(data_of(source)) for source in (ours, marked(8), theirs))
    assert identity.differences(a, b) == []
    assert identity.differences(a, c) == ["other labels of the training images"]


@pytest.mark.parametrize(("label", "names"), [
    (2, ["c"]), (-1, []), (np.array([0, 1, 0, 0, 1]), ["b", "e"]), (np.full(K, -1), []),
])  # fmt: skip
def test_names(label, names):
    assert labels.names_of(label, "abcde") == names
