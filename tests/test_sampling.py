"""Orders of images: what each sampling promises, and that they depend on seed and epoch alone."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
import runs

from configs import base
from jaxcls.data import arrays, loader, records, sources
from jaxcls.data.sampling import Order, subset

LABELS = np.repeat([3, 0, 7, 5], [100, 9, 40, 1])  # label 7 has 40 images; there is no 1, 2, 4, 6
SHUFFLED = np.random.default_rng(0).permutation(LABELS)


def order(sampling="shuffle", *, labels=SHUFFLED, batch_size=7, seed=5, repeats=1):
    return Order(len(labels), batch_size, seed, sampling, repeats, labels)


# -- shuffle ---------------------------------------------------------------------------------------


def test_shuffle_is_as_it_was():
    """NumPy's generator, asked as the first version of jaxcls did."""
    for count, batch, seed, epoch in (
        (14, 4, 0, 0),
        (898, 128, 17, 3),
        (50_000, 128, 2**63 - 1, 1),
    ):
        bits = np.random.Philox(key=[seed, epoch], counter=[0, 0, 0, 1])
        expected = np.argsort(bits.random_raw(count), kind="stable")[: count // batch * batch]
        assert np.array_equal(Order(count, batch, seed)(epoch), expected)


def test_the_first_batches_of_digits():
    """Frozen numbers: a resumed run of an older version goes on with the same images."""
    assert Order(898, 128, 0)(0)[:6].tolist() == [422, 382, 660, 603, 208, 693]


def test_shuffles_are_uniform():
    """Where image 0 comes, over 3,000 epochs: chi-square with 5 degrees of freedom."""
    orders = [Order(6, 6, 7)(epoch) for epoch in range(3000)]
    counts = np.bincount([o.tolist().index(0) for o in orders], minlength=6)
    assert np.sum((counts - 500) ** 2 / 500) < 20.5  # passed once in a thousand


@pytest.mark.parametrize("sampling", ["shuffle", "balanced", "sqrt"])
def test_seeds_and_epochs_differ_and_repeat(sampling):
    orders = {
        (seed, epoch): order(sampling, seed=seed)(epoch).tobytes()
        for seed in (0, 1, 2**64 - 1, 2**64 - 2)
        for epoch in range(3)
    }
    assert len(set(orders.values())) == len(orders)
    fresh = order(sampling, seed=1)
    assert fresh(2).tobytes() == orders[1, 2]  # without the epochs before
    assert fresh(0).tobytes() == orders[1, 0]


# -- resampling ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sampling", "weight"), [("balanced", lambda n: 1), ("sqrt", np.sqrt)])
@pytest.mark.parametrize("batch_size", [7, 50, 4])  # epochs of 147, 150 and 148 positions
def test_each_class_gets_its_share(sampling, weight, batch_size):
    sizes = {label: int(np.sum(label == LABELS)) for label in (0, 3, 5, 7)}
    positions = 150 // batch_size * batch_size
    total = sum(weight(n) for n in sizes.values())
    make = order(sampling, batch_size=batch_size)
    visits = np.zeros(150, int)
    for epoch in range(40):
        images = make(epoch)
        assert images.shape == (positions,)
        visits += np.bincount(images, minlength=150)
        for label, size in sizes.items():
            share = positions * weight(size) / total
            count = np.sum(SHUFFLED[images] == label)
            assert count in (np.floor(share), np.ceil(share))
            mine = visits[label == SHUFFLED]
            assert mine.sum() == pytest.approx((epoch + 1) * share, abs=2)
            assert mine.max() - mine.min() <= 1  # its images equally often


@pytest.mark.parametrize("sampling", ["balanced", "sqrt"])
def test_positions_are_all_taken(sampling):
    """Whatever is rounded: of digits the shares of "sqrt" summed up to less than the epoch."""
    rng = np.random.default_rng(0)
    for _ in range(1000):
        sizes = np.ceil(10 ** rng.uniform(0, 3, rng.integers(1, 40))).astype(int)
        labels = np.repeat(np.arange(len(sizes)), sizes)
        batch_size = int(rng.integers(1, len(labels) + 1))
        made = Order(len(labels), batch_size, 0, sampling, 1, labels)
        visits = len(labels) // batch_size * batch_size
        epochs = np.concatenate([np.arange(20), rng.integers(0, 10**9, 20)])
        counts = made._counts(visits, epochs)
        assert (counts >= 0).all()
        assert (counts.sum(1) == visits).all()
    labels = open_digits().train.labels
    for batch_size in range(1, 130):
        images = Order(898, batch_size, 0, sampling, 1, labels)(0)
        assert images.shape == (898 // batch_size * batch_size,)
    for repeats in (1, 2, 4, 32):
        assert Order(898, 64, 0, sampling, repeats, labels)(3).shape == (896,)


def test_what_was_visited_before_an_epoch():
    """In one go, as after a resume, or one after the other."""
    made, total = order("sqrt"), 0
    for epoch in range(3000):
        if epoch in (0, 1, 1023, 1024, 1025, 2999):
            assert np.array_equal(made._before(147, epoch), total + np.zeros(4))
            assert np.array_equal(order("sqrt")._before(147, epoch), total + np.zeros(4))
        total = total + made._counts(147, np.array([epoch]))[0]


def test_images_without_a_label_are_left_out():
    labels = np.array([0, -1, 1, 1, -1, 0, 1, 1])
    images = np.concatenate([Order(8, 4, 0, "balanced", 1, labels)(e) for e in range(10)])
    assert np.bincount(images, minlength=8).tolist() == [20, 0, 10, 10, 0, 20, 10, 10]
    assert subset(labels, 1.0, 0).tolist() == [0, 2, 3, 5, 6, 7]


def test_equal_classes_are_shuffled():
    """Neither classes nor images come in an order: neighbours are of one class as by chance."""
    labels = np.arange(1000) % 10
    images = order("balanced", labels=labels, batch_size=100)(0)
    assert sorted(images) == list(range(1000))
    same = np.mean(labels[images][1:] == labels[images][:-1])
    assert abs(same - 0.1) < 4 * np.sqrt(0.1 * 0.9 / 999)
    assert abs(np.corrcoef(images, np.arange(1000))[0, 1]) < 4 / np.sqrt(1000)


def test_more_classes_than_positions():
    labels = np.arange(30)
    make = Order(30, 8, 0, "balanced", 4, labels)  # 24 positions, 6 images of 30 classes
    visits = np.zeros(30, int)
    for epoch in range(20):
        visits += np.bincount(make(epoch), minlength=30)
    assert visits.sum() == 20 * 24
    assert set(visits.tolist()) <= {12, 16, 20}  # 16 each


# -- repeats ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", ["shuffle", "balanced"])
@pytest.mark.parametrize("repeats", [2, 3, 12])
def test_repeats_stand_apart_in_a_batch(sampling, repeats):
    images = order(sampling, batch_size=12, repeats=repeats)(1).reshape(-1, 12)
    assert len(images) == 150 // 12
    copies = images.reshape(len(images), repeats, 12 // repeats)
    assert (copies == copies[:, :1]).all()
    once = order(sampling, batch_size=12 // repeats)(1)
    if sampling == "shuffle":  # the first images of the order without repeats
        assert np.array_equal(copies[:, 0].ravel(), once[: copies[:, 0].size])
        assert len(set(copies[:, 0].ravel())) == copies[:, 0].size


def test_repeats_that_do_not_divide_the_batch():
    for repeats in (0, -1, 5):
        with pytest.raises(ValueError, match=rf"repeats = {repeats} does not divide config.batch_"):
            Order(150, 12, 0, repeats=repeats)


# -- subset ----------------------------------------------------------------------------------------


def test_a_fraction_has_its_share_of_every_class():
    for fraction in (0.5, 0.1, 0.001):
        images = subset(SHUFFLED, fraction, 0)
        assert np.array_equal(images, np.unique(images))
        for label, size in ((3, 100), (0, 9), (7, 40), (5, 1)):
            expected = max(round(fraction * size), 1)
            assert np.sum(SHUFFLED[images] == label) == expected
    assert np.array_equal(subset(SHUFFLED, 1.0, 0), np.arange(150))


def test_fractions_are_nested_and_seeds_differ():
    small, large = (set(subset(SHUFFLED, f, 0)) for f in (0.1, 0.3))
    assert small < large
    assert set(subset(SHUFFLED, 0.1, 1)) != small


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.5, float("nan")])
def test_a_fraction_out_of_range(fraction):
    with pytest.raises(ValueError, match=r"config.data.fraction = .*: write a share above 0"):
        subset(SHUFFLED, fraction, 0)


# -- in a run --------------------------------------------------------------------------------------


def open_digits(**changes):
    config = base.get_config()
    config.data.update(source="digits", **changes)
    return sources.open(**config.data)


def test_a_subset_is_a_source():
    whole, part = open_digits().train, open_digits(fraction=0.1).train
    assert len(part) == sum(round(0.1 * n) for n in np.bincount(whole.labels)) < len(whole)
    assert part.class_names == whole.class_names
    names = [part[i]["name"] for i in range(len(part))]
    assert len(set(names)) == len(part)
    for i in (0, len(part) - 1):
        index = int(names[i].partition("[")[2].rstrip("]"))
        assert np.array_equal(part[i]["image"], whole[index]["image"])
        assert part[i]["label"] == part.labels[i] == whole.labels[index]
    assert len(open_digits(fraction=0.1).eval) == 899
    with pytest.raises(ValueError, match="fraction_seed = 3: not used by fraction = 1.0"):
        open_digits(fraction_seed=3)


def same(image, rng):
    return image


@pytest.mark.ci
@pytest.mark.parametrize("sampling", ["balanced", "sqrt"])
def test_batches_on_hosts_and_from_a_step_on(sampling):
    labels = np.random.default_rng(0).choice(3, 50, p=(0.8, 0.15, 0.05))
    pixels = np.arange(50, dtype=np.uint8)[:, None, None, None] + np.zeros((1, 2, 2, 3), np.uint8)
    source = arrays.Arrays("numbered", pixels, labels, ("a", "b", "c"))

    def images(start=0, **options):
        options = {"sampling": sampling, "repeats": 2, "seed": 2**64 - 1, **options}
        batches = loader.train_batches(
            source, same, batch_size=8, start_step=start, num_steps=20, **options
        )
        return np.array([batch["image"][:, 0, 0, 0] for batch in batches])

    whole = images()
    assert np.array_equal(whole[:6].ravel(), Order(50, 8, 2**64 - 1, sampling, 2, labels)(0))
    assert np.array_equal(images(13), whole[13:])
    options = loader.Options(threads=2, workers=1, prefetch=4)
    assert np.array_equal(images(options=options), whole)
    parts = [images(rows=np.arange(8)[i::2]) for i in range(2)]
    assert np.array_equal(np.stack(parts, -1).reshape(20, 8), whole)


@pytest.mark.ci
def test_a_run_counts_the_subset(commands, tmp_path):
    options = "fraction=0.3", "sampling=balanced", "repeats=2"
    command = f"--config={runs.TINY}:plain", "--config.batch_size=64", "--config.duration=2 epochs"
    done = commands.fork(
        *command, *(f"--config.data.{o}" for o in options), f"--workdir={tmp_path}"
    )
    assert done.returncode == 0, done.err
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["steps"] == 2 * (270 // 64)
    for option, message in (
        ("fraction=0.05", "config.batch_size = 64 is more than the 44 training images"),
        ("fraction=2.0", "config.data.fraction = 2.0: write a share above 0, at most 1.0"),
        ("sampling=balance", "unknown config.data.sampling 'balance': did you mean balanced?"),
        ("repeats=3", "config.data.repeats = 3 does not divide config.batch_size = 64"),
        ("cache=disk", "unknown config.data.cache 'disk': choose one of auto, decoded"),
    ):
        workdir = tmp_path / "refused"
        done = commands.fork(*command, f"--config.data.{option}", f"--workdir={workdir}")
        assert (done.returncode, done.err.count("\n")) == (2, 1), done.err
        assert message in done.err
        assert not workdir.exists()


def test_labels_of_records(tmp_path):
    """Records are read for their labels; lists and folders know them."""
    from array_record.python.array_record_module import ArrayRecordWriter

    labels = [i * 7 % 5 for i in range(150)]
    writer = ArrayRecordWriter(str(tmp_path / "train.array_record"), "group_size:1")
    for i, label in enumerate(labels):
        writer.write(records.pack_record(b"not read as an image", label, f"{i}"))
    writer.close()
    (tmp_path / "classes.txt").write_text("a\nb\nc\nd\ne\n")
    config = base.get_config()
    config.data.update(source="array_record", root=str(tmp_path))
    source = sources.open(**config.data).train
    assert source.labels.tolist() == labels
    config.data.fraction = 0.2
    part = sources.open(**config.data).train
    assert np.bincount(part.labels).tolist() == [6] * 5
    assert [part[i]["label"] for i in range(30)] == part.labels.tolist()


def test_every_epoch_is_one_order_for_all_threads():
    """Batches that many threads make at once agree with the order."""
    made = order("sqrt", batch_size=5)
    pixels = np.zeros((150, 1, 1, 3), np.uint8)
    pixels[:, 0, 0, 0] = np.arange(150)
    source = arrays.Arrays("numbered", pixels, SHUFFLED, tuple("abcdefgh"))
    how = {"batch_size": 5, "seed": 5, "start_step": 0, "num_steps": 90, "sampling": "sqrt"}
    options = loader.Options(threads=8, workers=0, prefetch=4)
    batches = loader.train_batches(source, same, **how, options=options)
    images = np.concatenate([batch["image"].ravel()[::3] for batch in batches])
    assert np.array_equal(images, list(itertools.chain(*map(made, range(3)))))


@pytest.mark.parametrize("sampling", ["shuffle", "balanced", "sqrt"])
def test_class_counts_are_the_visits_of_an_epoch(sampling):
    labels = np.repeat([0, 1, 3, -1], [64, 16, 4, 5])
    names = ("a", "b", "none", "c")
    source = arrays.Arrays("x", np.zeros((1, 1, 1, 1), np.uint8), labels, names)
    data = sources.Data(source, None, names, "error", 0, sampling, 1, "none")
    counts, images = data.class_counts()
    assert images == 84
    want = {"shuffle": [64, 16, 0, 4], "balanced": [28, 28, 0, 28], "sqrt": [48, 24, 0, 12]}
    np.testing.assert_allclose(counts, want[sampling])
    known = labels[labels >= 0]
    visits = order(sampling, labels=known, batch_size=84)
    visits = np.concatenate([known[visits(epoch)] for epoch in range(50)])
    np.testing.assert_allclose(np.bincount(visits, minlength=4) / 50, counts, atol=0.5)


@pytest.mark.parametrize("sampling", ["shuffle", "balanced", "sqrt"])
def test_class_counts_of_images_that_show_several(sampling):
    marks = np.random.default_rng(0).random((96, 3)) < (0.9, 0.3, 0.05)
    labels = marks.astype(np.int8)
    labels[:10] = -1
    source = arrays.Arrays("x", np.zeros((1, 1, 1, 1), np.uint8), labels, ("a", "b", "c"))
    data = sources.Data(source, None, source.class_names, "error", 0, sampling, 1, "none")
    counts, images = data.class_counts()
    assert images == 86
    if sampling == "shuffle":
        np.testing.assert_allclose(counts, marks[10:].sum(0))
    visits = order(sampling, labels=labels[10:], batch_size=86)
    seen = np.mean([marks[10:][visits(epoch)].sum(0) for epoch in range(200)], 0)
    np.testing.assert_allclose(seen, counts, atol=0.5)


def test_a_long_tail_is_the_exponential_profile():
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 500))
    chosen = subset(labels, 1.0, 3, long_tail=100.0, classes=10)
    counts = np.bincount(labels[chosen])
    np.testing.assert_array_equal(counts, np.round(500 * 100.0 ** -(np.arange(10) / 9)))
    assert (counts[0], counts[-1]) == (500, 5)
    again = subset(labels, 1.0, 3, long_tail=100.0, classes=10)
    np.testing.assert_array_equal(chosen, again)
    # of two factors, and of two fractions, one has all images of the other
    less = subset(labels, 0.5, 3, long_tail=200.0, classes=10)
    assert set(less.tolist()) < set(chosen.tolist())
    assert set(chosen.tolist()) != set(subset(labels, 1.0, 4, 100.0, 10).tolist())
    with pytest.raises(ValueError, match="config.data.long_tail = 0.5: write how many"):
        subset(labels, 1.0, 0, 0.5, 10)


def test_a_long_tail_of_the_digits():
    config = base.get_config()
    config.data.update({"source": "digits", "long_tail": 20.0, "fraction_seed": 1})
    data = sources.open(**config.data)
    counts, _ = data.class_counts()
    whole, _ = dataclasses.replace(data, train=data.train.source).class_counts()
    np.testing.assert_array_equal(counts, np.round(whole * 20.0 ** -(np.arange(10) / 9)))
    assert len(data.eval) == 899  # is left whole


@pytest.mark.parametrize("sampling", ["balanced", "sqrt"])
def test_a_class_without_images_cannot_be_balanced(sampling, tmp_path):
    config = base.get_config()
    (tmp_path / "train_list.txt").write_text("a.jpg 0\nb.jpg 2\n")
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(b"no image: nothing reads it")
    config.data.update(source="list", root=str(tmp_path), num_classes=3, sampling=sampling)
    with pytest.raises(ValueError, match=f"sampling = '{sampling}'.* shown more often: 1: write"):
        sources.open(**config.data)
    (tmp_path / "train_list.txt").write_text("a.jpg 0,0,1\nb.jpg 1,0,1\n")
    config.data.multi_label = True
    with pytest.raises(ValueError, match=f"sampling = '{sampling}'.* shown more often: 1: write"):
        sources.open(**config.data)
