"""Labels of every kind, from the source to the network and to what people read."""

import dataclasses
import shutil
import types

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import runs
from PIL import Image
from transforms import same

from configs import base
from jaxcls import check, choices, preview, sharding
from jaxcls import config as configs
from jaxcls.data import arrays, cache, identity, labels, loader, ops, sampling, sources
from jaxcls.data.feed import Feed
from jaxcls.data.sampling import MixedOrder, Order, by_class, subset

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


@pytest.mark.parametrize(
    ("dtype", "options"), [(np.int8, {}), (np.float32, {}), (np.float32, {"workers": 1})]
)
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


# -- Images without a label --------------------------------------------------------------------


def paint(root, *names):
    """Writes a grey image under each name, whose grey is its place."""
    for i, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(path)


@pytest.fixture
def pictures(tmp_path):
    """A folder of 10 labelled images of 2 classes, and 7 others."""
    paint(
        tmp_path, *(f"train/{'ab'[i % 2]}/{i}.png" for i in range(10)), "val/a/x.png", "val/b/y.png"
    )
    paint(tmp_path, *(f"more/{'xy'[i % 2]}/deep/{i}.png" for i in range(7)), "more/readme.png")
    (tmp_path / "more/readme.png").rename(tmp_path / "more/readme.txt")
    return tmp_path


def opened(root, source="folder", needs_labels="", **changes):
    config = base.get_config()
    config.data.update(source=source, root=str(root), **changes)
    return sources.open(**config.data, needs_labels=needs_labels)


def steps_of(data, count, *, batch_size=6, start=0, **options):
    """Returns (label, grey) of the rows of batches, [count, B] each."""
    how = {"sampling": data.sampling, "repeats": data.repeats, "start_step": start}
    how |= {"unlabelled_share": data.unlabelled_share, "seed": 3, "num_steps": count}
    transform = ops.Image(**dict(base.get_config().image) | {"size": 8, "eval_resize": 8}).transform
    with loader.train_batches(data.train, transform, batch_size=batch_size, **how, **options) as b:
        batches = list(b)
    return tuple(np.stack([x[key] for x in batches]) for key in ("label", "image"))


def test_batches_of_both_kinds(pictures):
    data = opened(pictures, unlabelled="more", unlabelled_share=0.5)
    assert (len(data.train), data.num_train) == (17, 10)
    label, image = steps_of(data, 12)
    grey = image[..., 0, 0, 0]
    rows = label[0] < 0
    assert (rows == (label < 0)).all()  # the same rows, half of them
    assert rows.sum() == 3
    ours, theirs = grey[:, ~rows].reshape(4, 9), grey[:, rows].ravel()
    assert (label[:, ~rows] == grey[:, ~rows] % 2).all()
    assert all(len({*epoch}) == 9 for epoch in ours.tolist())  # floor(10 / 3) batches
    assert len({tuple(epoch) for epoch in ours.tolist()}) == 4
    # a walk through all of the others, again and again, across the epochs of ours
    for start in range(0, 35, 7):
        assert sorted(theirs[start : start + 7]) == list(range(7))
    assert theirs[:7].tolist() != theirs[7:14].tolist()
    for start in (1, 5):
        np.testing.assert_array_equal(steps_of(data, 12, start=start)[1], image[start:])
    parts = [steps_of(data, 12, rows=rows)[1] for rows in np.split(np.arange(6), 3)]
    np.testing.assert_array_equal(np.concatenate(parts, 1), image)
    workers = dataclasses.replace(loader.PLAIN, workers=1)
    np.testing.assert_array_equal(steps_of(data, 12, options=workers)[1], image)


@pytest.mark.parametrize(("batch", "rows"), [(256, 128), (128, 64), (64, 13), (32, 24)])
def test_both_kinds_are_spread_over_a_batch(batch, rows):
    """Over devices and groups of BatchNorm, which are contiguous, and micro-batches, every k-th."""
    order = MixedOrder(Order(1000, batch - rows, 0), np.arange(1000), np.full(9, -1), batch)
    theirs = (order(0).reshape(-1, batch) < 0)[0]
    assert theirs.sum() == rows
    for k in (2, 4, 8):
        for part in (*np.split(theirs, k), *(theirs[i::k] for i in range(k))):
            assert abs(part.sum() - rows / k) <= 2.5


def test_in_one_order_without_a_share(pictures):
    data = opened(pictures, unlabelled=str(pictures / "more"))
    assert data.num_train == len(data.train) == 17
    label, image = steps_of(data, 2, batch_size=8)
    assert len({(a, b) for a, b in zip((label < 0).ravel(), image[..., 0, 0, 0].ravel())}) == 16
    for kind, count in ((label < 0, 7), (label >= 0, 10)):
        assert count - 1 <= kind.sum() <= count


def test_classes_are_balanced_among_the_labelled(pictures):
    for i in range(4, 10, 2):
        (pictures / f"train/a/{i}.png").unlink()
    data = opened(pictures, unlabelled="more", unlabelled_share=1 / 3, sampling="balanced")
    label, _ = steps_of(data, 21, batch_size=3)
    assert [(label == c).sum() for c in (0, 1, -1)] == [21, 21, 21]
    assert data.class_counts()[0].tolist() == pytest.approx([3.5, 3.5])
    again = opened(pictures, unlabelled="more", unlabelled_share=0.5, repeats=2)
    _, image = steps_of(again, 3, batch_size=8)
    ours = image[..., 0, 0, 0][:, ~(steps_of(again, 1, batch_size=8)[0][0] < 0)]
    assert (ours[:, :2] == ours[:, 2:]).all()


def test_an_unreadable_image_is_followed_by_one_of_its_kind(pictures):
    data = opened(pictures, unlabelled="more", unlabelled_share=0.5)
    label, _ = steps_of(data, 9)
    (pictures / "more/x/deep/6.png").write_bytes(b"")  # the last of all: ours would be next
    (pictures / "train/b/9.png").write_bytes(b"")  # the last of ours
    got, _ = steps_of(data, 9, on_bad_image="skip")
    np.testing.assert_array_equal(got < 0, label < 0)


def test_unlabelled_lists(pictures):
    (pictures / "more/list.txt").write_text("x/deep/0.png 17\n\ny/deep/1.png\nx/deep/2.png 0,1\n")
    data = opened(pictures, unlabelled="more/list.txt", fraction=0.4)
    assert (len(data.train), data.train.has_label.sum()) == (7, 4)
    name = f"{pictures}/more/y/deep/1.png ({pictures}/more/list.txt:3)"
    assert data.train[5]["name"] == name
    assert data.train[5]["label"] == -1
    assert data.train.labels.tolist()[4:] == [-1] * 3
    first = identity.of(data)
    paint(pictures, "more/x/deep/0.png")
    (pictures / "more/list.txt").write_text("x/deep/0.png\ny/deep/1.png\ny/deep/3.png\n")
    other = identity.of(opened(pictures, unlabelled="more/list.txt", fraction=0.4))
    assert identity.differences(first, other) == [
        "other training images, or in another order, by their names"
    ]
    paint(pictures, "more/a b.png")
    for line in ("a b.png\t0,1", "a b.png 0, 1", "a b.png", "a b.png 3 "):
        (pictures / "more/list.txt").write_text(line)
        assert opened(pictures, unlabelled="more/list.txt").train.unlabelled.paths == ("a b.png",)
    (pictures / "more/list.txt").write_text("0.png\n")
    with pytest.raises(ValueError, match=r"relative to the folder of config.data.unlabelled = "):
        opened(pictures, unlabelled="more/list.txt")


def test_unlabelled_tables(pictures):
    """Of a table with labels these are not read, nor is their column looked for."""
    (pictures / "more/some.csv").write_text("image,label\nx/deep/0.png,?\ny/deep/3.png,\n")
    data = opened(pictures, unlabelled="more/some.csv", unlabelled_share=0.5)
    assert data.train.labels.tolist()[10:] == [-1, -1]
    assert data.train[11]["name"].endswith(f"deep/3.png ({pictures}/more/some.csv:3)")
    encoded = [(pictures / f"more/{x}/deep/{i}.png").read_bytes() for x, i in ("x0", "y1", "x6")]
    for part, images in enumerate((encoded[:2], encoded[2:])):
        pq.write_table(pa.table({"pixels": images}), pictures / f"more/{part}.parquet")
    with pytest.raises(ValueError, match=r"more/0.parquet, ...: no column image, .* are pixels"):
        opened(pictures, unlabelled="more/*.parquet")
    pq.write_table(pa.table({"image": encoded[:1], "label": [1]}), pictures / "train.parquet")
    for part, images in enumerate((encoded[:2], encoded[2:])):
        pq.write_table(pa.table({"image": images}), pictures / f"more/{part}.parquet")
    data = opened(pictures, "table", unlabelled="more/*.parquet", class_names=("a", "b"))
    assert data.train.labels.tolist() == [1, -1, -1, -1]
    assert [data.train[i]["image"] for i in (1, 2, 3)] == encoded
    with pytest.raises(ValueError, match=r"more/no.csv: no such file \(config.data.unlabelled"):
        opened(pictures, unlabelled="more/no.csv")


@pytest.mark.parametrize("text", ["image,label\n{0},\n{1},\n", "image\n{0}\n{1}\n", None])
def test_no_marks_at_all(pictures, text):
    """There are as many as a teacher has classes, too."""
    names = "train/a/0.png", "train/b/1.png"
    (pictures / "train_list.txt").write_text("\n".join(names))
    (pictures / "train.csv").write_text((text or "").format(*names))
    config = base.get_config()
    config.data.update(source="table" if text else "list", root=str(pictures), multi_label=True)
    train = sources.open(**config.data, needs_labels="", other_names=lambda: ("x", "y", "z")).train
    assert (train.marks, train.labels.tolist()) == (3, [[-1] * 3] * 2)
    config.data.class_names = ("x", "y")
    train = sources.open(**config.data, needs_labels="").train
    assert (train.marks, train.labels.tolist()) == (2, [[-1] * 2] * 2)


LINES = "more/x/deep/0.png 1\nmore/y/deep/1.png\nmore/x/deep/2.png -1\nmore/y/deep/3.png \n"


def test_lines_without_a_label(pictures):
    (pictures / "train_list.txt").write_text(LINES + "more/x/deep/4.png 0\n")
    data = opened(pictures, "list", unlabelled_share=0.5)
    assert data.train.labels.tolist() == [1, -1, -1, -1, 0]
    assert data.num_train == 2
    half = opened(pictures, "list", fraction=0.5)
    assert sorted(half.train.labels.tolist()) == [-1, -1, 0, 1]
    # none at all
    (pictures / "train_list.txt").write_text("more/x/deep/0.png\nmore/y/deep/1.png\n")
    with pytest.raises(
        ValueError, match=r"train_list.txt: no image has a label, and nothing names"
    ):
        opened(pictures, "list")
    data = opened(pictures, "list", class_names=("cat", "dog"))
    assert data.class_names == ("cat", "dog")
    assert steps_of(data, 1, batch_size=2)[0].tolist() == [[-1, -1]]
    (pictures / "classes.txt").write_text("ant\nbee\n")
    assert opened(pictures, "list").class_names == ("ant", "bee")


def test_evaluation_without_a_label(pictures, caplog):
    """It is told before the training, not at its first evaluation."""
    (pictures / "train_list.txt").write_text("more/x/deep/0.png 1\nmore/x/deep/4.png 0\n")
    (pictures / "val_list.txt").write_text(LINES)
    assert opened(pictures, "list").eval.has_label.tolist() == [True, False, False, False]
    (pictures / "val_list.txt").write_text("more/y/deep/1.png\n")
    assert opened(pictures, "list").eval is None
    assert caplog.messages[-1] == "none of the 1 evaluation images has a label: they are not used"
    with pytest.raises(ValueError, match=r"has a label: name others in config.data.eval = 'val_l"):
        opened(pictures, "list", eval="val_list.txt")


def test_copies_without_a_label_have_no_other_one(pictures):
    lines = [f"train/a/{i}.png {label}" for i, label in ((0, 0), (2, 1), (4, ""))]
    (pictures / "val_list.txt").write_text("val/a/x.png 0\nval/b/y.png 1\n")
    for i in (2, 4):
        shutil.copy(pictures / "train/a/0.png", pictures / f"train/a/{i}.png")
    for twins, alike in ((lines[::2], True), (lines, False)):
        (pictures / "train_list.txt").write_text("\n".join(twins))
        config = runs.tiny("plain")
        config.data.update(source="list", root=str(pictures), class_names=("a", "b"))
        config.update_from_flattened_dict({"batch_size": 2, "loss.name": "soft_ce"})
        found = check.check(config)["train"]["duplicates"]
        assert [(len(group["names"]), group["same_label"]) for group in found] == [
            (len(twins), alike)
        ]


@pytest.mark.parametrize(
    ("lines", "changes", "message"),
    [
        ("", {"unlabelled": "more", "needs_labels": "supervised"}, "'supervised' learns from lab"),
        ("", {"unlabelled": "x"}, r"x: no such folder \(config.data.unlabelled\)"),
        ("", {"unlabelled": "empty"}, r"empty has no images \(config.data.unlabelled\)"),
        ("", {"unlabelled": "more", "unlabelled_share": 1.0}, "share from 0.0 to below 1"),
        ("", {"unlabelled_share": 0.5}, "every training image has a label: name others in config"),
        ("", {"unlabelled": "more", "sampling": "sqrt"}, "and 7 training images have no label"),
        (LINES, {"needs_labels": "supervised"}, r"list.txt:2: no label after the delimiter ' '"),
        ("a.png 0\nb.png -1\n", {"needs_labels": "x"}, "list.txt:2: the label -1 is out of range"),
        (LINES, {"class_names": ("a", "a")}, "config.data.class_names has 'a' twice"),
        (LINES, {"class_names": ("a,b",)}, "class_names = .* names one class: write all"),
        (LINES, {"class_names": ("a", 1)}, "config.data.class_names = .* write texts"),
        (LINES, {"class_names": ("a", "b"), "num_classes": 3}, "class_names names 2 classes, conf"),
    ],
)
def test_mistakes(pictures, lines, changes, message):
    (pictures / "empty").mkdir()
    (pictures / "train_list.txt").write_text(lines)
    with pytest.raises(ValueError, match=message):
        opened(pictures, "list" if lines else "folder", **changes)


def test_shares_that_leave_nothing(pictures):
    config = base.get_config()
    config.batch_size, config.data.unlabelled_share = 4, 0.9
    with pytest.raises(ValueError, match="0.9 of a batch of 4 images leaves 0 with a label"):
        configs.plan(config, 10)
    config.data.unlabelled_share = 0.5
    assert configs.plan(config, 9).steps_per_epoch == 4
    with pytest.raises(ValueError, match="= 4 with 2 rows of images with a label"):
        configs.plan(config, 1)
    data = opened(pictures, unlabelled="more", unlabelled_share=0.5, repeats=2)
    with pytest.raises(ValueError, match="repeats = 2 does not divide the 3 images with a label"):
        sampling.check(data.sampling, data.repeats, 6, data.unlabelled_share)


# -- Lists of marks ----------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "delimiter"), [
    ("{0}\t0,1,1\n{1}\t1,0,0\n{2}\t0,0,0\n", "\\t"),
    ("{0}\t0,1,1\n{1}  1, 0 ,0 \n{2} 0,0,0", " "),
    ("{0};0,1,1\n\n{1};1,0,0\n{2};0,0,0", ";"),
])  # fmt: skip
def test_lists_of_marks(pictures, text, delimiter):
    names = ("more/x/deep/0.png", "more/a 1 b.png", "more/y/deep/1.png")
    paint(pictures, names[1])
    (pictures / "train_list.txt").write_text(text.format(*names))
    data = opened(pictures, "list", "supervised", multi_label=True, delimiter=delimiter)
    assert data.train.labels.tolist() == [[0, 1, 1], [1, 0, 0], [0, 0, 0]]
    assert data.train.labels.dtype == np.int8
    assert (data.class_names, data.train.marks) == (("0", "1", "2"), 3)
    label, _ = steps_of(data, 1, batch_size=3)
    assert sorted(label[0].tolist()) == [[0, 0, 0], [0, 1, 1], [1, 0, 0]]
    assert data.class_counts()[0].tolist() == [1, 1, 1]
    identity.of(data)
    mixed = opened(
        pictures,
        "list",
        multi_label=True,
        delimiter=delimiter,
        unlabelled="more",
        unlabelled_share=0.5,
    )
    label, _ = steps_of(mixed, 1, batch_size=4)
    assert label.shape == (1, 4, 3)
    assert ((label == -1).all(-1)).sum() == 2


@pytest.mark.parametrize(("line", "changes", "message"), [
    ("b.png\t0,1", {}, r"list.txt:2: 2 marks, there are 3 classes"),
    ("b.png\t0,1,2", {}, r"list.txt:2: the label '0,1,2' is no marks: write 0 or 1 for each class"),
    ("b.png\t", {}, r"list.txt:2: no label after the delimiter"),
    ("b.png\t1,1,1", {"num_classes": 4}, r"list.txt:1: 3 marks, there are 4 classes"),
    ("b.png\t1,1,1", {"multi_label": False}, "several classes need config.data.multi_label = True"),
])  # fmt: skip
def test_marks_that_are_none(pictures, line, changes, message):
    (pictures / "train_list.txt").write_text(f"a.png\t0,1,1\n{line}\n")
    keys = {"multi_label": True, "delimiter": "\t"} | changes
    with pytest.raises(ValueError, match=message):
        opened(pictures, "list", "supervised", **keys)


# -- Through the run --------------------------------------------------------------------------


def run_of(root, missing="-1", **changes):
    """Returns the config of a run on a list of marks, of which some are missing."""
    names = ["train/a/0.png", "train/b/1.png", "train/a/2.png", "train/b/3.png", "train/a/4.png"]
    marks = ["0,1", "1,1", "0,0", missing, "1,0"]
    text = "".join(f"{name}\t{mark}\n" for name, mark in zip(names, marks))
    (root / "train_list.txt").write_text(text)
    (root / "val_list.txt").write_text(text)
    config = runs.tiny("plain")
    config.data.update(source="list", root=str(root), multi_label=True, class_names=("x", "y"))
    config.update_from_flattened_dict({"batch_size": 4, "crop.flip": 0.0, "crop.shift": 0})
    config.update_from_flattened_dict({"mix.mixup": 0.0, "loss.name": "soft_ce"} | changes)
    return config


def feed_of(config):
    _, data = choices.open_data(config)
    image = ops.Image(**config.image)
    transform = ops.training(**config.crop, image=image)
    feed = Feed(data, data.train, transform, sharding.make(**config.mesh))
    return cache.use(feed, "training")


@pytest.mark.parametrize("kind", ["encoded", "decoded", "device"])
def test_caches_keep_labels(pictures, kind):
    plan = types.SimpleNamespace(batch_size=4, total_steps=5)
    keys = {"data.unlabelled": str(pictures / "more"), "data.unlabelled_share": 0.5}
    plain, ours = (
        feed_of(run_of(pictures, **keys, **{"data.cache": kind})) for kind in ("none", kind)
    )
    assert (plain.data.num_train, len(plain.source)) == (4, 12)
    for feed in (plain, ours):
        with feed.train_batches(plan, 3, start_step=1) as made:
            batches = [feed.put(batch) for batch in made]
        if feed is plain:
            expected = batches
    for a, b in zip(batches, expected, strict=True):
        assert a["label"].dtype == np.float32
        for key in ("image", "label"):
            np.testing.assert_array_equal(a[key], b[key])


def test_people_read_the_names(pictures):
    keys = {"loss.name": "bce", "checkpoint.best": "map"}
    _, images, named = preview.preview(run_of(pictures, "1,1", **keys), images=4, step=1)
    truth = {0: "y", 1: "x + y", 2: "no class", 3: "x + y", 4: "x"}
    for image, [(weight, name)] in zip(images, named, strict=True):
        assert (weight, name) == (1, truth[int(image[0, 0, 0])])
    result = check.check(run_of(pictures))["train"]
    assert (result["counts"], result["unlabelled"]) == ({"x": 2, "y": 2}, 1)
    assert result["out_of_range"] == []


# -- A class of images that show none of the others ------------------------------------------------


def test_the_background_is_the_last_class(pictures):
    paint(pictures, *(f"train/c/{i}.png" for i in range(3)), "val/c/z.png")
    plain = opened(pictures)
    data = opened(pictures, background="b", unlabelled="more")
    assert data.class_names == ("a", "c", "background")
    table = np.array([0, 2, 1, -1])  # of a, b, c and no label
    whole = np.concatenate([plain.train.labels, [-1] * 7])
    np.testing.assert_array_equal(data.train.labels, table[whole])
    assert [data.train[i]["label"] for i in range(20)] == table[whole].tolist()
    np.testing.assert_array_equal(data.eval.labels, table[plain.eval.labels])
    assert data.class_counts()[0].tolist() == [5, 3, 5]
    assert identity.differences(identity.of(plain), identity.of(opened(pictures, background="b")))
    config = runs.tiny("plain")
    config.data.update(source="folder", root=str(pictures), background="b")
    assert choices.open_data(config)[0].model.background == "background"


def test_what_a_teacher_said_is_renumbered_too():
    said = np.array([2, 0, 1], np.int32)
    item = {"image": None, "label": 2, "name": "x", "teacher_classes": said, "teacher_scores": None}
    source = type("Source", (), {"class_names": ("a", "b", "c"), "__getitem__": lambda *_: item})()
    found = arrays.WithBackground(source, 0)[0]
    assert (found["label"], found["teacher_classes"].tolist()) == (1, [1, 2, 0])
    assert found["teacher_classes"].dtype == np.int32


def test_a_background_that_is_none(pictures):
    with pytest.raises(ValueError, match="config.data.background = 'c' is no class"):
        opened(pictures, background="c")
    paint(pictures, "train/background/0.png")
    with pytest.raises(ValueError, match="there is a class 'background' already"):
        opened(pictures, background="a")
    assert opened(pictures, background="background").class_names == ("a", "b", "background")
    (pictures / "train_list.txt").write_text("more/x/deep/0.png\t0,1\n")
    with pytest.raises(ValueError, match="images with a mark for each class show none of them"):
        opened(pictures, "list", multi_label=True, background="0")


# -- Whole runs --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Digits as files, 300 to train and 100 to evaluate; and a teacher of theirs."""
    root = tmp_path_factory.mktemp("digits")
    train, evaluation = arrays.open_digits()
    for split, source, count in (("train", train, 300), ("val", evaluation, 100)):
        lines = []
        for i in range(count):
            path = root / split / f"{i}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(source[i]["image"][..., 0]).save(path)
            lines.append(f"{split}/{i}.png {source[i]['label']}\n")
        (root / f"{split}_list.txt").write_text("".join(lines))
    lines = (root / "train_list.txt").read_text().splitlines()
    (root / "few.txt").write_text("\n".join(lines[:60]))
    (root / "none.txt").write_text("\n".join(line.split()[0] for line in lines))
    return root


def of_digits(root, *keys, arg="plain"):
    return [f"--config={runs.TINY}:{arg}", "--config.data.source=list",
            f"--config.data.root={root}", "--config.image.eval_resize=8", "--config.crop.flip=0.0",
            *(f"--config.{key}" for key in keys)]  # fmt: skip


SOFT = ("loss.name=kl", "teacher.checkpoints={teacher}")
HALF = ("data.train=few.txt", "data.unlabelled=train", "data.unlabelled_share=0.5", *SOFT)


@pytest.fixture(scope="module")
def teacher(commands, digits, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("teacher")
    options = ("duration=300 steps", "mix.mixup=0.0", "eval.every=", "checkpoint.every=")
    done = commands.fork(*of_digits(digits, "batch_size=64", *options), f"--workdir={workdir}")
    assert done.returncode == 0, done.err
    assert runs.summary(workdir)["last"]["top1"] > 0.5  # by chance 0.1
    return workdir


@pytest.mark.ci
def test_a_run_on_both_kinds_goes_on_as_if_it_had_not_stopped(commands, digits, teacher, tmp_path):
    """Killed, and on several devices: the images of a batch are those of its step."""
    keys = [key.format(teacher=teacher) for key in HALF] + ["batch_size=32", "duration=13 steps"]
    options = of_digits(digits, *keys, "checkpoint.every=4 steps", arg="")
    whole = commands.fork(*options, f"--workdir={tmp_path / 'whole'}")
    assert whole.returncode == 0, whole.err
    assert "images   360 to train (300 without a label), 100 to evaluate" in whole.out
    assert "13 steps of 32 images, 4.333 epochs" in whole.out  # floor(60 / 16) steps in each
    with commands.started(*options, f"--workdir={tmp_path / 'cut'}") as process:
        runs.wait_until(lambda: 8 in runs.checkpoints(tmp_path / "cut"), process)
        process.kill()
    again = commands.fork(*options, f"--workdir={tmp_path / 'cut'}")
    assert again.returncode == 0, again.err
    runs.assert_same_run(tmp_path / "whole", tmp_path / "cut", 13)


@pytest.mark.ci
def test_labels_are_not_needed_where_a_teacher_has_the_names(commands, digits, teacher, tmp_path):
    keys = ["data.train=none.txt", "batch_size=64", "loss.name=symmetric_kl", "lr.peak=0.3"]
    keys += [f"teacher.checkpoints={teacher}", "duration=300 steps", "mix.mixup=0.0"]
    done = commands.fork(*of_digits(digits, *keys), f"--workdir={tmp_path}")
    assert done.returncode == 0, done.err
    assert "300 to train (300 without a label)" in done.out
    assert "classes  10: 0, 1, 2" in done.out
    assert runs.summary(tmp_path)["last"]["top1"] > 0.4
    done = commands.fork(*of_digits(digits, "data.train=none.txt"), f"--workdir={tmp_path}/x")
    assert done.returncode == 2
    assert "none.txt:1: no label after the delimiter" in done.err
