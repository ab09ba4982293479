"""What a teacher says, computed once and stored with the images: writing it, training from it."""

import importlib
import re
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import runs
from PIL import Image
from test_distillation import DIGITS, export, image, in_training, net_of
from test_soft_losses import kl, softmax

from jaxcls import choices, network, program, teachers, train
from jaxcls.data import batches, ops, sampling
from jaxcls.data.records import pack_record, unpack_record

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def command():
    """`main` of data_prep/teacher.py."""
    sys.path.insert(0, str(ROOT / "data_prep"))
    yield importlib.import_module("teacher").main
    sys.path.remove(str(ROOT / "data_prep"))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    net = net_of({"depths": (1,), "width": 8}, 12, image=image(12, (0.5,), (0.25,)))
    return export(tmp_path_factory.mktemp("stored") / "teacher", net)


@pytest.fixture(scope="module")
def records(command, teacher, tmp_path_factory):
    out = tmp_path_factory.mktemp("stored") / "records"
    arguments = f"--config={runs.TINY}:plain", f"--teacher={teacher}", f"--out={out}"
    assert command(["teacher", *arguments, "--top=4", "--shards=3"]) == 0
    return out


def stored(records, **changes):
    config = runs.tiny("plain")
    config.data.update(source="array_record", root=str(records))
    config.loss.name, config.teacher.stored = "kl", True
    config.lr.warmup, config.mix.mixup = "", 0.0
    config.update_from_flattened_dict(changes)
    return config


def test_a_record_holds_image_label_name_and_outputs():
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    classes, scores = np.array([7, 2]), np.array([-0.1, -2.5, -8.0], np.float16)
    for image_ in (pixels, b"encoded"):
        item = unpack_record(pack_record(image_, 3, "a/b.jpg", (classes, scores)))
        assert (item["label"], item["name"]) == (3, "a/b.jpg")
        np.testing.assert_array_equal(item["teacher_classes"], classes)
        np.testing.assert_array_equal(item["teacher_scores"], scores)
        assert item["teacher_scores"].dtype == np.float16
        if isinstance(image_, bytes):
            assert item["image"] == image_
        else:
            np.testing.assert_array_equal(item["image"], image_)
    assert unpack_record(pack_record(b"encoded", 3, "x")).keys() == {"image", "label", "name"}
    whole = pack_record(b"", 3, "x", (classes, scores))
    strange = [whole.replace(b'"top": 2', top) for top in (b'"top":-1', b'"top":""', b'"top":{}')]
    for damaged in (b"", whole[:-3], *strange):
        with pytest.raises(ValueError, match="not a record of data_prep"):
            unpack_record(damaged)


def test_what_is_stored_is_what_the_teacher_says(records, teacher):
    net, variables = network.load(teacher)
    _, data = choices.open_data(stored(records))
    items = [data.train[i] for i in range(0, 898, 100)]
    pixels = np.stack([net.transform(item["image"], None) for item in items])
    logits = np.float64(net.predict(variables, jnp.asarray(pixels))["logits"])
    p = softmax(logits)
    for item, row in zip(items, p):
        order = np.argsort(-row)
        np.testing.assert_array_equal(item["teacher_classes"], order[:4])
        want = np.log([*row[order[:4]], row[order[4:]].sum()])
        np.testing.assert_allclose(np.float64(item["teacher_scores"]), want, atol=2e-3)
    digits, _ = choices.open_data(runs.tiny("plain"))
    assert data.class_names == DIGITS
    assert len(data.train) == 898
    assert data.eval[0].keys() == {"image", "label", "name"}
    assert digits.data.source == "digits"


def test_what_is_left_goes_to_the_other_classes_evenly():
    p = softmax(np.random.default_rng(0).standard_normal((3, 6)))
    order = np.argsort(-p)
    best = np.take_along_axis(p, order, 1)
    for k in (1, 4, 6):
        rest = best[:, k:].sum(1, keepdims=True)
        with np.errstate(divide="ignore"):
            scores = np.log(np.concatenate([best[:, :k], rest], 1)).astype(np.float16)
        got = softmax(np.float64(teachers.whole(jnp.asarray(order[:, :k]), jnp.asarray(scores), 6)))
        want = np.repeat(rest / max(6 - k, 1), 6, axis=1)
        np.put_along_axis(want, order[:, :k], best[:, :k], 1)
        np.testing.assert_allclose(got, want, rtol=4e-3)


def test_outputs_stay_with_their_images(records):
    _, data = choices.open_data(stored(records))
    make = lambda order: batches.MakeBatch(
        source=data.train,
        transform=ops.training(name="center", flip=0.0, image=image(8), scale=(0.08, 1.0),
                               ratio=(3 / 4, 4 / 3), log_ratio=False, shift=0),
        batch_size=100,
        rows=np.arange(100),
        num_batches=9,
        order=order,
        seed=0,
        max_bad_images=None,
    )  # fmt: skip
    order = sampling.Order(
        count=898, batch_size=100, seed=0, sampling="shuffle", repeats=1, labels=None
    )
    batch, _ = make(order)[3]
    for row, index in enumerate(order(0)[300:400].tolist()):
        item = data.train[index]
        assert batch["label"][row] == item["label"]
        np.testing.assert_array_equal(batch["teacher_classes"][row], item["teacher_classes"])
        np.testing.assert_array_equal(batch["teacher_scores"][row], item["teacher_scores"])
    last, _ = make(None)[8]  # filled up
    assert last["teacher_scores"].shape == (100, 5)
    assert last["mask"].sum() == 98


def test_training_from_stored_outputs(records):
    """The loss of a step is that of the stored probabilities, without any network that is asked."""
    config = stored(records, **{"loss.temperature": 1.0, "batch_size": 64})
    built = program.build(config, num_train=898, num_classes=10, class_names=DIGITS)
    _, data = choices.open_data(config)
    items = [data.train[i] for i in range(64)]
    keys = ("label", "teacher_classes", "teacher_scores")
    batch = {key: np.stack([item[key] for item in items]) for key in keys}
    batch["label"] = batch["label"].astype(np.int32)
    batch["image"] = np.stack([item["image"][4:12, 4:12] for item in items])
    state = built.init()
    images = built.prepare(np.int32(0), batch)["image"]
    logits = in_training(built.network.module, state.variables(), images)["logits"]
    _, metrics = built.train_step(state, batch, *built.teachers)
    p = np.zeros((64, 10))
    for row, item in zip(p, items):
        scores = np.exp(np.float64(item["teacher_scores"]))
        row[:] = scores[4] / 6
        row[item["teacher_classes"]] = scores[:4]
    p /= p.sum(1, keepdims=True)  # float16
    want = [kl(a, b) for a, b in zip(p, softmax(np.float64(logits)))]
    np.testing.assert_allclose(metrics["soft"], np.mean(want), rtol=1e-3)
    assert np.mean(want) > 1e-3


@pytest.mark.ci
def test_images_without_a_label_are_stored_apart_and_train(command, tmp_path):
    rng = np.random.default_rng(0)
    for folder, number in (("train/a", 12), ("train/b", 12), ("val/a", 3), ("val/b", 3), ("u", 6)):
        (tmp_path / folder).mkdir(parents=True)
        for i in range(number):
            pixels = rng.integers(0, 256, (16, 16, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / folder / f"{i}.png")
    options = {"num_classes": 2, "class_names": ("a", "b")}
    colour = image(12, (0.5,) * 3, (0.25,) * 3)
    net = net_of({"depths": (1,), "width": 8}, 12, image=colour, **options)
    path = export(tmp_path / "net", net)
    arguments = (
        f"--config={runs.TINY}:plain",
        f"--teacher={path}",
        f"--out={tmp_path / 'records'}",
        "--config.data.source=folder",
        f"--config.data.root={tmp_path}",
        "--config.data.unlabelled=u",
        "--config.image.mean=(0.5,0.5,0.5)",
        "--config.image.std=(0.25,0.25,0.25)",
        "--config.loss.name=kl",
        "--top=2",
        "--shards=2",
    )
    assert command(["teacher", *arguments]) == 0
    config = stored(tmp_path / "records", **{"data.unlabelled_share": 0.5, "batch_size": 8})
    config.image.update(mean=(0.5,) * 3, std=(0.25,) * 3)
    config.crop.name, config.crop.shift = "center", 0
    config.duration, config.eval.batch_size = "3 steps", 4
    _, data = choices.open_data(config)
    without = ~data.train.has_label
    assert (len(data.train), without.sum()) == (30, 6)
    assert (data.train.labels[without] == -1).all()
    assert (data.train.labels[~without] >= 0).all()
    assert data.num_train == (~without).sum()
    assert train.run(config, str(tmp_path / "run")) == 0
    assert runs.lines(tmp_path / "run")[-1]["split"] == "eval"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"crop.name": "random_resized", "crop.shift": 0}, "config.crop.name = 'random_resized'"),
        ({"mix.mixup": 0.2}, "shows others, by config.mix: turn that off, or run the teacher"),
        ({"erase.name": "cutout"}, "shows others, by config.erase: turn that off"),
        ({"augment.policy": "randaugment"}, "shows others, by config.augment: turn that off"),
        ({"teacher.checkpoints": ("RUN",)}, "config.teacher.stored = True: outputs are read with"),
        ({"teacher.weights": (1.0,)}, "config.teacher.weights = (1.0,) does nothing without"),
        ({"mesh.model": 2}, "config.mesh.model = 2: the stored outputs"),
        ({"loss.name": "supervised"}, "config.loss.name = 'supervised' learns from no teacher"),
        ({"loss.name": "l2", "loss.stages": ("logits",)}, "the stored outputs of a teacher have"),
    ],
)
def test_stored_outputs_and_what_does_not_go_with_them(records, changes, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        train.setup(stored(records, **changes))


def test_images_without_outputs_are_refused():
    config = runs.tiny("plain")
    config.loss.name, config.teacher.stored, config.mix.mixup = "kl", True, 0.0
    with pytest.raises(ValueError, match="the training images have no outputs of a teacher: write"):
        train.setup(config)


def test_mistakes_of_the_command(command, teacher, records, tmp_path, capfd):
    good = f"--config={runs.TINY}:plain", f"--teacher={teacher}", f"--out={tmp_path / 'out'}"
    others = net_of({"depths": (1,), "width": 8}, 8, class_names=("a", *DIGITS[1:]))
    others = export(tmp_path / "others", others)
    for arguments, text in (
        ((*good, "--top=11"), "--top=11: --teacher="),
        ((*good, "--top=0"), "--top=0: write a number of at least 1"),
        ((*good[:2], f"--out={records}"), "exists already: remove it or write to another folder"),
        ((good[0], good[2], "--teacher=nowhere"), "nowhere: no checkpoint there; give a run's"),
        ((good[0], good[2], f"--teacher={others}"), "class 0 is 'a' there, '0' here"),
        (good[:2], "--out"),
    ):
        assert command(["teacher", *arguments]) == 2
        said = capfd.readouterr().err
        assert text in said
        assert said.count("\n") == 1, said
    assert not (tmp_path / "out").exists()
