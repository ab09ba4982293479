"""What a checkpoint knows of its data, and which other data it refuses."""

import dataclasses
import os
import shutil

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from ml_collections import ConfigDict
from PIL import Image

from configs import base
from jaxcls.data import folders, identity, records, sources

CLASSES = ("ant", "bee", "cat")


@pytest.fixture
def folder(tmp_path):
    """Three classes of four images."""
    for name in CLASSES:
        for i in range(4):
            path = tmp_path / "a" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(path)
    return tmp_path / "a"


def of(root, **changes):
    config = base.get_config()
    config.data.source, config.data.root = "folder", str(root)
    config.data.update(ConfigDict(changes))
    return identity.of(sources.open(**config.data))


def test_the_same_images_elsewhere(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "b" / "elsewhere")
    assert of(folder) == of(tmp_path / "b" / "elsewhere")
    assert identity.differences(of(folder), of(folder)) == []
    halves = [of(root, fraction=0.5) for root in (folder, tmp_path / "b" / "elsewhere")]
    assert halves[0] == halves[1]
    assert identity.differences(of(folder), halves[0]) == ["12 training images before, 6 now"]
    other = of(folder, fraction=0.5, fraction_seed=1)
    assert "other training images" in identity.differences(halves[0], other)[0]


def refusal(before, now, accept=False):
    with pytest.raises(ValueError) as e:
        identity.check(before, now, accept=accept, path="RUN/checkpoints/7")
    assert "RUN/checkpoints/7" in str(e.value)
    return str(e.value)


def test_what_can_be_accepted(folder):
    before = of(folder)
    (folder / "bee" / "3.png").rename(folder / "bee" / "4.png")
    assert "other training images" in refusal(before, of(folder))
    (folder / "bee" / "4.png").unlink()
    text = refusal(before, of(folder))
    assert "12 training images before, 11 now" in text
    assert "--config.checkpoint.changed_data=accept" in text
    identity.check(before, of(folder), accept=True, path="")
    (folder / "bee").rename(folder / "bug")  # in its place
    text = refusal(before, of(folder))
    assert "class 1 was 'bee', now 'bug'" in text
    identity.check(before, of(folder), accept=True, path="")


def test_classes_that_change_places_cannot(folder):
    before = of(folder)
    (folder / "ant").rename(folder / "dog")
    for accept in (False, True):
        text = refusal(before, of(folder), accept)
        assert "class 0 was 'ant', now 'bee'" in text
        assert "'bee' is class 1 there and 0 here" in text
        assert "--config.init.checkpoint" in text
    shutil.rmtree(folder / "dog")
    assert "3 classes before, 2 now" in refusal(before, of(folder), accept=True)


def test_labels(folder):
    path = folder / "train_list.txt"
    lines = [f"{name}/{i}.png {label}" for label, name in enumerate(CLASSES) for i in range(4)]
    path.write_text("\n".join(lines))
    before = of(folder, source="list")
    path.write_text("\n".join([lines[0].replace(" 0", " 1"), *lines[1:]]))
    assert identity.differences(before, of(folder, source="list")) == [
        "other labels of the training images"
    ]


def test_evaluation_images(folder):
    some, more = (of(folder, eval_fraction=fraction) for fraction in (0.25, 0.5))
    assert identity.differences(some, more) == [
        "9 training images before, 6 now",
        "3 evaluation images before, 6 now",
    ]
    data = sources.open(**_digits())
    without = dataclasses.replace(data, eval=None)
    assert identity.differences(identity.of(data), identity.of(without)) == []


def _digits():
    config = base.get_config()
    config.data.source = "digits"
    return config.data


def _paint(folder, grey):
    for i in range(4):
        Image.fromarray(np.full((4, 4, 3), 10 * grey + i, np.uint8)).save(folder / f"{i}.png")


def test_two_classes_that_have_changed_places(folder):
    for number, name in enumerate(CLASSES):
        _paint(folder / name, number)
    before = of(folder)
    (folder / "ant").rename(folder / "tmp")
    (folder / "cat").rename(folder / "ant")
    (folder / "tmp").rename(folder / "cat")
    changed = "other training images: those of class 'ant', class 'cat'"
    assert identity.differences(before, of(folder)) == [changed]
    identity.check(before, of(folder), accept=True, path="")
    half = of(folder, fraction=0.5)
    _paint(folder / "bee", 7)
    assert identity.differences(half, of(folder, fraction=0.5)) == [
        "other training images: those of class 'bee'"
    ]


def test_an_image_that_is_damaged_is_no_other_data(folder):
    before = of(folder)
    (folder / "ant" / "0.png").write_bytes(b"")
    assert identity.differences(before, of(folder)) == []
    assert identity.same_order(before, of(folder))  # the numbers of unreadable images still hold
    assert not identity.same_order(before, of(folder, fraction=0.5))
    assert not identity.same_order({}, before)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes among its files")
def test_a_pipe_among_the_images_is_not_waited_for(folder):
    before = of(folder)
    for name in ("0.png", "3.png"):  # the first and the last are looked at
        (folder / "ant" / name).unlink()
        os.mkfifo(folder / "ant" / name)
    assert identity.differences(before, of(folder)) == []


def test_images_that_cannot_be_read_are_no_other_data(folder, monkeypatch):
    before = of(folder)
    monkeypatch.setattr(folders.Files, "_fingerprint", lambda self, index: None)
    unread = of(folder)
    assert unread["data"]["train"]["some"]["class 'ant'"] == [None, None]
    assert identity.differences(before, unread) == identity.differences(unread, before) == []
    del before["data"]["train"]["some"]  # of a version that did not look
    assert identity.differences(before, unread) == []


def test_labels_in_records(tmp_path):
    def write(*labels):
        path = tmp_path / "train.array_record"
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for i, label in enumerate(labels):
            writer.write(records.pack_record(b"image", label, f"{i}.png"))
        writer.close()
        data = records.open_array_record(root=str(tmp_path), train="", eval="")[0]
        return identity.of(dataclasses.replace(whole, train=data, eval=None))

    whole = sources.open(**_digits())
    (tmp_path / "classes.txt").write_text("ant\nbee\n")
    before = write(0, 0, 1, 1)
    assert identity.differences(before, write(0, 0, 1, 1)) == []
    assert identity.differences(before, write(0, 1, 1, 0)) == [
        "other training images: those of record 1 of train.array_record, "
        "record 3 of train.array_record"
    ]
    (tmp_path / "classes.txt").write_text("ant\nbee\n")
    write(0, 2, -1)
    train = records.open_array_record(root=str(tmp_path), train="", eval="")[0]
    for i, label in ((1, 2), (2, -1)):
        with pytest.raises(ValueError, match=f"{i}.png: the label {label} is out of range, there"):
            train[i]
