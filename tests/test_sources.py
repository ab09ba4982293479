"""Every source of images on real files that the tests write, and each of its error messages."""

import errno
import io
import json
import os
import pickle
import re
import runpy
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from sklearn.datasets import load_digits

from configs import base
from jaxcls import command, recipes
from jaxcls.data import folders, loader, ops, sources
from jaxcls.data.decode import BadImage, decode
from jaxcls.data.records import pack_record, unpack_record

ROOT = Path(__file__).parents[1]


def open_data(source, image_size=224, **changes):
    config = base.get_config()
    config.data.source = source
    config.data.update(changes)
    return sources.open(**config.data, image_size=image_size)


def jpeg(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 24, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def write(path, data=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(jpeg(str(path).__hash__() % 1000) if data is None else data)
    return path


@pytest.fixture
def folder(tmp_path):
    """Two classes with 3 and 2 training images, one evaluation image each."""
    for name in ("train/cat/a.jpg", "train/cat/b.JPEG", "train/cat/deep/er/c.png"):
        write(tmp_path / name)
    for name in ("train/ant/1.webp", "train/ant/2.bmp", "val/cat/x.jpg", "val/ant/y.jpg"):
        write(tmp_path / name)
    return tmp_path


def names(source):
    return [source[i]["name"] for i in range(len(source))]


def labels(source):
    return [source[i]["label"] for i in range(len(source))]


# -- choosing --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "changes", "message"),
    [
        ("", {}, "config.data.source is not set: write one of array_record, digits"),
        ("folders", {}, "unknown config.data.source 'folders': did you mean folder"),
        ("digits", {"root": "/x"}, "config.data.root: not used by 'digits'"),
        ("folder", {"delimiter": "\t"}, "config.data.delimiter: not used by 'folder', which takes"),
        ("list", {"eval_fraction": 0.1}, "config.data.eval_fraction: not used by 'list'"),
        ("tfds", {"num_classes": 10}, "config.data.num_classes: not used by 'tfds'"),
        ("fake", {"num_train": 5, "num_eval": 5}, "config.data.num_classes = 0: the fake source"),
        ("fake", {"name": "mnist"}, "config.data.name: not used by 'fake'"),
        ("folder", {}, "config.data.root is not set"),
        ("list", {}, "config.data.root is not set"),
        ("array_record", {}, "config.data.root is not set"),
        ("tfds", {"name": ""}, "config.data.name is not set"),
        ("digits", {"max_bad_images": -1}, "config.data.max_bad_images = -1: write a "),
        ("digits", {"fraction": 0.5, "fraction_seed": -1}, "config.data.fraction_seed = -1: write"),
        (
            "digits",
            {"fraction": 0.5, "fraction_seed": 2**64},
            "fraction_seed = 18446744",
        ),
        ("fake", {"num_train": 5, "num_eval": 5, "num_classes": 1}, "one class only, '0'"),
        ("fake", {"num_train": 5, "num_eval": 5, "num_classes": 10**8}, "write at most 10000000"),
        (
            "fake",
            {"num_train": 10**12, "num_eval": 5, "num_classes": 2},
            "num_train = 1000000",
        ),
        ("digits", {"on_bad_image": "ignore"}, "unknown config.data.on_bad_image 'ignore'"),
    ],
)
def test_choices_that_make_no_sense(source, changes, message):
    with pytest.raises(ValueError, match=message):
        open_data(source, **changes)


def test_a_misspelt_key_is_named():
    with pytest.raises(KeyError, match="data.rooot"):
        sources.open(**{**base.get_config().data, "source": "digits", "rooot": "/x"})


RECIPES = (
    *("imagenet.py:MobileNetV2", "resnet50.py", "resnet50_vd.py", "augment.py:cutmix"),
    *("base.py", "digits.py", "finetune.py"),
)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_takes_any_source(recipe, folder, records):
    """With no more than source and root; ImageNet's without a key of its own."""
    (folder / "train_list.txt").write_text("train/cat/a.jpg 0\ntrain/ant/1.webp 1\n")
    for source, root in (("folder", folder), ("list", folder), ("array_record", records)):
        values = flags.FlagValues()
        command.define_config(values)
        options = f"--config.data.source={source}", f"--config.data.root={root}"
        command.parse(["", f"--config={ROOT}/configs/{recipe}", *options], values)
        assert len(sources.open(**values.config.data).train) in (5, 2, 9)
    if recipe not in RECIPES[-3:]:
        config = recipes.read(f"{ROOT}/configs/{recipe}")
        assert (config.data.source, config.data.name) == ("tfds", "imagenet2012")


# -- digits and fake -------------------------------------------------------------------------------


def test_digits():
    data = open_data("digits", on_bad_image="skip", max_bad_images=7)
    assert (len(data.train), len(data.eval)) == (898, 899)
    assert data.class_names == tuple("0123456789")
    assert (data.on_bad_image, data.max_bad_images) == ("skip", 7)
    digits = load_digits()
    assert labels(data.train) + labels(data.eval) == digits.target.tolist()
    # Cubic convolution (a = -0.75) to twice the size, edges repeated: each pixel of an axis is made
    # of four, at distances 1.25, 0.25, 0.75, 1.75 or the other way round.
    a = -0.75
    near = [((a + 2) * d - (a + 3)) * d * d + 1 for d in (0.25, 0.75)]
    far = [((a * d - 5 * a) * d + 8 * a) * d - 4 * a for d in (1.25, 1.75)]
    taps = [far[0], near[0], near[1], far[1]]
    axis = np.zeros((16, 8))
    for i in range(16):
        for k in range(4):
            source = i // 2 + (k - 1 if i % 2 else 1 - k)
            axis[i, np.clip(source, 0, 7)] += taps[k]
    pixels = np.round(digits.images * 255 / 16)
    expected = np.clip(axis @ pixels @ axis.T, 0, 255)
    images = [s[i]["image"] for s in (data.train, data.eval) for i in range(len(s))]
    assert images[0].shape == (16, 16, 1)
    assert images[0].dtype == np.uint8
    assert np.abs(np.stack(images)[..., 0] - expected).max() < 1  # rounded


def test_fake():
    changes = {"num_train": 10, "num_eval": 3, "num_classes": 4}
    data = open_data("fake", image_size=48, **changes)
    assert labels(data.train) == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    assert labels(data.eval) == [0, 1, 2]
    assert data.train[7]["image"].shape == (48, 48, 3)
    again = open_data("fake", image_size=48, **changes)
    assert np.array_equal(data.train[3]["image"], again.train[3]["image"])
    assert not np.array_equal(data.train[3]["image"], data.train[4]["image"])


# -- folder ----------------------------------------------------------------------------------------


def test_a_folder_inside_a_class_that_cannot_be_read(folder, monkeypatch):
    """Images in it would be missed without a word."""
    original = os.scandir

    def scandir(path):
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", str(path))
        return original(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(ValueError, match="train/cat/deep: cannot list it: Permission denied"):
        open_data("folder", root=str(folder))


def test_folder(folder):
    write(folder / "train/cat/.hidden.jpg")
    write(folder / "train/cat/notes.txt", b"no image")
    write(folder / "train/.cache/z.jpg")
    data = open_data("folder", root=str(folder))
    assert data.class_names == ("ant", "cat")
    assert labels(data.train) == [0, 0, 1, 1, 1]
    assert [Path(n).relative_to(folder / "train").as_posix() for n in names(data.train)] == [
        "ant/1.webp",
        "ant/2.bmp",
        "cat/a.jpg",
        "cat/b.JPEG",
        "cat/deep/er/c.png",
    ]
    assert labels(data.eval) == [0, 1]
    assert data.train[2]["image"] == (folder / "train/cat/a.jpg").read_bytes()
    assert decode(data.train[2]["image"]).shape == (20, 24, 3)


def test_folder_with_other_names(folder):
    (folder / "train").rename(folder / "learn")
    (folder / "val").rename(folder / "exam")
    data = open_data("folder", root=str(folder), train="learn", eval="exam")
    assert (len(data.train), len(data.eval)) == (5, 2)
    with pytest.raises(ValueError, match="has a folder 'exam' but no 'train'"):
        open_data("folder", root=str(folder), eval="exam")


def test_folders_of_splits_are_no_classes_and_none_is_left_out_silently(folder, caplog):
    (folder / "val").rename(folder / "Testing")
    assert open_data("folder", root=str(folder)).eval is None
    assert caplog.messages == [
        f"{folder / 'Testing'} is not used: config.data.eval=Testing evaluates on it"
    ]
    assert len(open_data("folder", root=str(folder), eval="Testing").eval) == 2
    (folder / "train").rename(folder / "Training")
    for fraction in (0.0, 0.5):
        with pytest.raises(ValueError, match="has a folder 'Testing' but no 'train'"):
            open_data("folder", root=str(folder), eval_fraction=fraction)
    assert len(open_data("folder", root=str(folder), train="Training").train) == 5


def test_folder_without_evaluation(folder):
    shutil.rmtree(folder / "val")
    assert open_data("folder", root=str(folder)).eval is None
    data = open_data("folder", root=str(folder / "train"))
    assert (len(data.train), data.eval) == (5, None)


def test_eval_fraction_holds_out_a_share_of_each_class(tmp_path):
    for name, count in (("one", 1), ("two", 2), ("ten", 10), ("forty", 40)):
        for i in range(count):
            write(tmp_path / name / f"{i}.jpg", b"x")
    data = open_data("folder", root=str(tmp_path), eval_fraction=0.2)
    assert data.class_names == ("forty", "one", "ten", "two")
    assert np.bincount(labels(data.eval), minlength=4).tolist() == [8, 0, 2, 1]
    assert np.bincount(labels(data.train), minlength=4).tolist() == [32, 1, 8, 1]
    assert len({*names(data.train), *names(data.eval)}) == 53

    moved = tmp_path.parent / (tmp_path.name + "-moved")
    shutil.copytree(tmp_path, moved)
    write(moved / "forty/another.jpg", b"x")
    again = open_data("folder", root=str(moved), eval_fraction=0.2)
    before = {Path(n).relative_to(tmp_path) for n in names(data.eval)}
    after = {Path(n).relative_to(moved) for n in names(again.eval)}
    assert len(before ^ after) <= 2  # names decide, not places or order: one comes, one goes


@pytest.mark.parametrize("fraction", [-0.1, 1.0])
def test_eval_fraction_out_of_range(folder, fraction):
    with pytest.raises(ValueError, match=r"eval_fraction = .* share in \[0, 1\)"):
        open_data("folder", root=str(folder), eval_fraction=fraction)


def test_nothing_to_hold_out(tmp_path):
    for name in ("one", "two"):
        write(tmp_path / name / "0.jpg", b"x")
    with pytest.raises(ValueError, match="eval_fraction = 0.2 holds out nothing: no class"):
        open_data("folder", root=str(tmp_path), eval_fraction=0.2)


def test_folder_errors(folder):
    with pytest.raises(ValueError, match=r"nowhere: no such folder \(config.data.root\)"):
        open_data("folder", root=str(folder / "nowhere"))
    with pytest.raises(ValueError, match=r"train2: no such folder \(config.data.train\)"):
        open_data("folder", root=str(folder), train="train2")
    with pytest.raises(ValueError, match=r"val2: no such folder \(config.data.eval\)"):
        open_data("folder", root=str(folder), eval="val2")
    with pytest.raises(ValueError, match=r"there is an evaluation folder already: .*val"):
        open_data("folder", root=str(folder), eval_fraction=0.5)
    with pytest.raises(ValueError, match="cat has no sub-folders: make one for each class"):
        open_data("folder", root=str(folder), train="val/cat")
    (folder / "val/dog").mkdir()
    with pytest.raises(ValueError, match=r"val/dog: .*train has no class 'dog'"):
        open_data("folder", root=str(folder))
    shutil.rmtree(folder / "train/ant")
    (folder / "train/ant/inner").mkdir(parents=True)
    with pytest.raises(ValueError, match="train/ant: the class 'ant' has no images"):
        open_data("folder", root=str(folder))
    shutil.rmtree(folder / "train")
    with pytest.raises(ValueError, match="has a folder 'val' but no 'train'"):
        open_data("folder", root=str(folder))
    (folder / "train").mkdir()
    with pytest.raises(ValueError, match="train has no sub-folders"):
        open_data("folder", root=str(folder))


def test_a_file_that_vanished_is_a_bad_image(folder):
    data = open_data("folder", root=str(folder))
    (folder / "train/ant/1.webp").unlink()
    with pytest.raises(BadImage, match=r"train/ant/1\.webp: no such file"):
        data.train[0]
    (folder / "train/ant/1.webp").mkdir()
    with pytest.raises(BadImage, match=r"train/ant/1\.webp: cannot read it: Is a directory"):
        data.train[0]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes among its files")
def test_what_is_no_file_is_a_bad_image(folder):
    image = folder / "train/ant/1.webp"
    data = open_data("folder", root=str(folder))
    image.unlink()
    os.mkfifo(image)  # whoever opens it waits for somebody who writes
    with pytest.raises(BadImage, match=r"train/ant/1\.webp: not a file"):
        data.train[0]
    image.unlink()
    image.symlink_to("/dev/zero")  # has no end
    with pytest.raises(BadImage, match=r"train/ant/1\.webp: not a file"):
        data.train[0]
    image.unlink()
    image.write_bytes(jpeg(0))
    os.truncate(image, 1 << 33)  # takes no place on the disk
    with pytest.raises(BadImage, match=r"webp: 8,589,934,592 bytes are no image"):
        data.train[0]


def test_files_that_are_left_out_are_said(folder, caplog):
    for name in ("a.heic", "b.HEIC", "notes.txt", "README", "c.avif", "d.JP2"):
        write(folder / "train/cat" / name, b"x")
    write(folder / "train/loose.jpg")
    data = open_data("folder", root=str(folder))
    assert len(data.train) == 7  # with .avif and .jp2, which Pillow reads
    left, loose = caplog.messages
    assert left.endswith(
        "train: left out 4 files that are no images by their ending: 2 .heic, 1 without one, 1 .txt"
    )
    assert loose.endswith("train: left out 1 images that are not in the folder of a class")
    for name in ("a.jpg", "b.JPEG", "deep/er/c.png", "c.avif", "d.JP2"):
        (folder / "train/cat" / name).unlink()
    with pytest.raises(ValueError, match="class 'cat' has no images, of 4 files none is one by"):
        open_data("folder", root=str(folder))


def test_what_systems_leave_behind_is_ignored(folder, caplog):
    expected = names(open_data("folder", root=str(folder)).train)
    for place in ("", "train", "train/cat", "val"):
        for litter in ("__MACOSX", "@eaDir", ".ipynb_checkpoints", "lost+found", "$RECYCLE.BIN"):
            write(folder / place / litter / "z.jpg")
        for litter in (".DS_Store", "Thumbs.db", "desktop.ini", "._a.jpg"):
            write(folder / place / litter, b"x")
    data = open_data("folder", root=str(folder))
    assert names(data.train) == expected
    assert data.class_names == ("ant", "cat")
    assert not caplog.messages


def test_links(folder):
    """A class may be a link; links that lead back are not followed."""
    expected = names(open_data("folder", root=str(folder)).train)
    elsewhere = folder.parent / f"{folder.name}-elsewhere"
    shutil.move(folder / "train/ant", elsewhere)
    (folder / "train/ant").symlink_to(elsewhere)
    for path, target in (
        ("train/cat/self", "self"),
        ("train/cat/loop", "."),
        ("train/cat/deep/up", "../.."),
        ("train/cat/deep/top", str(folder)),
        ("train/cat/broken", "nowhere"),
    ):
        (folder / path).symlink_to(target)
    assert names(open_data("folder", root=str(folder)).train) == expected


def test_roots_that_are_none(folder, monkeypatch):
    file = write(folder / "file.jpg")
    (folder / "link").symlink_to("link")
    for root, message in (
        (str(file), r"file.jpg: not a folder \(config.data.root\)"),
        (str(file / "x"), "file.jpg/x: Not a directory"),
        (str(folder / "link"), "link: Too many levels of symbolic links"),
        ("x" * 300, "File name too long"),
        ("a\0b", "no such folder"),
    ):
        for source in ("folder", "list", "array_record"):
            with pytest.raises(ValueError, match=message):
                open_data(source, root=root)
    monkeypatch.setenv("HOME", str(folder))
    assert len(open_data("folder", root="~").train) == 5


def test_one_class(folder):
    shutil.rmtree(folder / "train/ant")
    shutil.rmtree(folder / "val/ant")
    with pytest.raises(ValueError, match=r"one class only, 'cat', .* a sub-folder of its own"):
        open_data("folder", root=str(folder))


def test_a_class_without_evaluation_images(folder, caplog):
    shutil.rmtree(folder / "val/ant")
    data = open_data("folder", root=str(folder))
    assert caplog.messages == ["1 of 2 classes have no evaluation images: ant"]
    assert labels(data.eval) == [1]


def test_labels_that_begin_with_one(folder, caplog):
    lines = "train/ant/1.webp 1\ntrain/cat/a.jpg 2\n"
    (folder / "train_list.txt").write_text(lines)
    (folder / "val_list.txt").write_text(lines)
    assert len(open_data("list", root=str(folder)).class_names) == 3
    (line,) = caplog.messages
    assert "train_list.txt: the labels begin with 1, and classes are counted from 0" in line


def test_names_that_are_no_text(folder):
    """File names are bytes; what is printed and stored is text."""
    name = os.fsdecode(b"caf\xe9")
    for split in ("train", "val"):
        write(folder / split / name / f"{name}.jpg")
    data = open_data("folder", root=str(folder), eval_fraction=0.0)
    assert data.class_names == ("ant", "caf\\xe9", "cat")
    assert names(data.train)[2].endswith("train/caf\\xe9/caf\\xe9.jpg")
    assert data.train[2]["image"][:2] == b"\xff\xd8"
    shutil.rmtree(folder / "val")
    for i in range(3):
        write(folder / "train" / name / f"{i}{name}.jpg")
    write(folder / "train/a\nb\x1b[1m\u2028/1\r.jpg")
    data = open_data("folder", root=str(folder))
    assert data.class_names[0] == r"a\nb\x1b[1m\u2028"
    assert names(data.train)[0].endswith(r"train/a\nb\x1b[1m\u2028/1\r.jpg")
    assert data.train[0]["image"][:2] == b"\xff\xd8"
    assert open_data("folder", root=str(folder), eval_fraction=0.5).eval is not None


def test_an_error_that_is_not_the_image_s(folder, monkeypatch):
    data = open_data("folder", root=str(folder))
    for number, kind in ((errno.EIO, BadImage), (errno.EMFILE, ValueError)):

        def fail(path, flags, number=number):
            raise OSError(number, os.strerror(number), str(path))

        monkeypatch.setattr(folders, "_at_once", fail)
        monkeypatch.setattr(folders, "DELAYS", (0.001,))
        with pytest.raises(kind, match="1.webp: cannot read it: ") as error:
            data.train[0]
        assert isinstance(error.value, BadImage) == (kind is BadImage)


@pytest.mark.parametrize("name", ["EIO", "ESTALE", "ETIMEDOUT", "EMFILE"])
def test_an_error_that_passes(folder, monkeypatch, name):
    data = open_data("folder", root=str(folder))
    image, opened, left = data.train[0], folders._at_once, [name] * len(folders.DELAYS)

    def fail(path, flags):
        if left:
            raise OSError(getattr(errno, left.pop()), "", str(path))
        return opened(path, flags)

    monkeypatch.setattr(folders, "_at_once", fail)
    monkeypatch.setattr(folders.time, "sleep", lambda seconds: None)
    assert data.train[0] == image
    assert not left


# -- list ------------------------------------------------------------------------------------------


def open_lines(folder, text, **changes):
    (folder / "train_list.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    return open_data("list", root=str(folder), **changes)


def test_list(folder):
    text = "train/cat/a.jpg 2\r\n\n  \ntrain/ant/1.webp 0\n"
    data = open_lines(folder, "\ufeff" + text)
    assert labels(data.train) == [2, 0]
    assert data.class_names == ("0", "1", "2")
    assert data.eval is None
    listed = folder / "train_list.txt"
    assert names(data.train)[1] == f"{folder}/train/ant/1.webp ({listed}:4)"
    assert data.train[0]["image"] == (folder / "train/cat/a.jpg").read_bytes()

    (folder / "val_list.txt").write_text("val/cat/x.jpg 1")
    data = open_data("list", root=str(folder), num_classes=5)
    assert labels(data.eval) == [1]
    assert len(data.class_names) == 5
    (folder / "classes.txt").write_text("ant\ncat\nfire fly\n")
    assert open_data("list", root=str(folder)).class_names == ("ant", "cat", "fire fly")
    with pytest.raises(ValueError, match=r"classes\.txt names 3 classes, .*num_classes = 5"):
        open_data("list", root=str(folder), num_classes=5)


def test_list_paths_may_contain_the_delimiter(folder):
    write(folder / "my cat 3.jpg", b"meow")
    data = open_lines(folder, "my cat 3.jpg 1\nmy cat 3.jpg   0\n")
    assert [data.train[i]["image"] for i in (0, 1)] == [b"meow", b"meow"]
    for delimiter in ("\t", r"\t"):
        data = open_lines(folder, "my cat 3.jpg\t1\n", delimiter=delimiter)
        assert data.train[0]["image"] == b"meow"
    data = open_lines(folder, "my cat 3.jpg, 1\n", delimiter=",")
    assert labels(data.train) == [1]


@pytest.mark.parametrize(
    ("text", "changes", "message"),
    [
        (
            "a.jpg 0\nb.jpg\n",
            {},
            r"train_list\.txt:2: no label after the delimiter ' ' in 'b\.jpg'",
        ),
        ("a.jpg 0\n", {"delimiter": "\t"}, r"train_list\.txt:1: no label after .* '\\t'"),
        ("\n 7\n", {}, r"train_list\.txt:2: no label"),
        ("a.jpg cat\n", {}, r"train_list\.txt:1: the label 'cat' is not a whole number"),
        ("a.jpg 1.0\n", {}, r"train_list\.txt:1: the label '1\.0' is not a whole number"),
        ("a.jpg 1_0\n", {}, r"train_list\.txt:1: the label '1_0' is not a whole number"),
        ("a.jpg -1\n", {}, r"train_list\.txt:1: the label -1 is out of range: labels begin with 0"),
        ("a.jpg 0\na.jpg 3\n", {"num_classes": 3}, r"txt:2: the label 3 .* 3 classes, 0 to 2"),
        ("a.jpg 99999999999\n", {}, r"train_list\.txt:1: the label 99999999999 is out of range"),
        ("\n\n", {}, "the list is empty"),
        (b"\xff\xfe\x00", {}, "not a text file in UTF-8"),
        ("a.jpg 0", {"delimiter": ""}, "config.data.delimiter is empty"),
        ("a.jpg 0", {"train": "no.txt"}, r"no\.txt: no such list file \(config.data.train"),
        ("a.jpg 0", {"eval": "no.txt"}, r"no\.txt: no such list file \(config.data.eval"),
    ],
)
def test_list_errors(tmp_path, text, changes, message):
    with pytest.raises(ValueError, match=message):
        open_lines(tmp_path, text, **changes)


def test_an_evaluation_label_beyond_the_training_labels(tmp_path):
    (tmp_path / "val_list.txt").write_text("a.jpg 0\na.jpg 2\n")
    with pytest.raises(ValueError, match=r"val_list\.txt:2: the label 2 is out of range"):
        open_lines(tmp_path, "a.jpg 0\nb.jpg 1\n")


def test_a_listed_image_that_goes_away_is_named_with_its_line(tmp_path):
    write(tmp_path / "a.jpg")
    data = open_lines(tmp_path, "a.jpg 0\na.jpg 1\n")
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(BadImage, match=r"a\.jpg \(.*train_list\.txt:2\): no such file"):
        data.train[1]


def test_all_listed_images_are_looked_for(folder, caplog):
    """Also names that a folder does not list as it is asked for, and through links."""
    (folder / "train/cat/link.jpg").symlink_to("a.jpg")
    (folder / "train/cat/broken.jpg").symlink_to("nowhere.jpg")
    good = [
        "train/cat/a.jpg 0",
        "./train/../train/cat/b.JPEG 1",
        f"{folder}/train/ant/1.webp 0",
        "train\\cat\\deep\\er\\c.png 1",
        "train/cat/link.jpg 1",
    ]
    data = open_lines(folder, "\n".join(good))
    assert [data.train[i]["image"][:1] != b"" for i in range(5)] == [True] * 5
    bad = ["train/cat/a.jpgx 0", "train/cat/broken.jpg 1", "train/cat 1", "nowhere/a.jpg 0"]
    text = "\n".join([*good, *bad])
    message = (
        r"a\.jpgx \(.*list\.txt:6\): no such file, and 3 more of the 9 listed images are missing"
    )
    with pytest.raises(ValueError, match=message + ': write config.data.on_bad_image = "skip"'):
        open_lines(folder, text)
    with pytest.raises(ValueError, match=message + "; config.data.max_bad_images = 3"):
        open_lines(folder, text, on_bad_image="skip", max_bad_images=3)
    assert not caplog.messages
    data = open_lines(folder, text, on_bad_image="skip", max_bad_images=4)
    (said,) = caplog.messages
    assert re.search(message + "; unreadable images, to be skipped", said)
    for i in range(5, 9):
        with pytest.raises(BadImage):
            data.train[i]
    with pytest.raises(ValueError, match=r"a\.jpgx .* and 3 more .* paths are relative to"):
        open_lines(folder, "\n".join(bad), on_bad_image="skip")


def test_an_evaluation_needs_no_training_images(folder):
    (folder / "val_list.txt").write_text("train/cat/a.jpg 0\n")
    with pytest.raises(ValueError, match=r"gone\.jpg .*no such file"):
        open_lines(folder, "gone.jpg 0\ngone.jpg 1\n")
    config = base.get_config()
    config.data.update(source="list", root=str(folder))
    assert len(sources.open(**config.data, training=False).eval) == 1
    (folder / "val_list.txt").write_text("gone.jpg 0\n")
    with pytest.raises(ValueError, match=r"gone\.jpg .*val_list.txt:1"):
        sources.open(**config.data, training=False)


def test_labels_far_beyond_the_images(folder):
    line = "train/cat/a.jpg"
    message = (
        r"list\.txt:2: the label 100000000 makes 100000001 classes of 3 images: .*num_classes = "
    )
    with pytest.raises(ValueError, match=message):
        open_lines(folder, f"{line} 0\n{line} 100000000\n{line} 1\n")
    assert len(open_lines(folder, f"{line} 0\n{line} 19\n").class_names) == 20
    with pytest.raises(ValueError, match="the label 20 makes 21 classes of 2 images"):
        open_lines(folder, f"{line} 0\n{line} 20\n")
    assert len(open_lines(folder, f"{line} 20\n", num_classes=1000).class_names) == 1000
    for number in (-1, 10**8):
        with pytest.raises(ValueError, match=f"config.data.num_classes = {number}: write a number"):
            open_lines(folder, f"{line} 0\n", num_classes=number)
    with pytest.raises(ValueError, match="one class only, '0', .* write the labels 0, 1, "):
        open_lines(folder, f"{line} 0\n")


def test_lists_of_any_bytes(folder):
    name = os.fsdecode(b"caf\xe9.jpg")
    write(folder / name, jpeg(1))
    data = open_lines(folder, b"caf\xe9.jpg 0\r\ncaf\xe9.jpg 1\r")
    assert data.train[1]["image"] == jpeg(1)
    assert names(data.train)[0].startswith(f"{folder}/caf\\xe9.jpg (")
    for text in (b"caf\xe9.jpg\n", b"a.jpg \xe9\n"):
        with pytest.raises(ValueError, match=r"list\.txt:1: .*\\xe9") as error:
            open_lines(folder, text)
        str(error.value).encode()  # can be printed
    with pytest.raises(ValueError, match="is not a whole number"):
        open_lines(folder, "a.jpg " + "9" * 10_000)
    with pytest.raises(ValueError, match="not a text file in UTF-8: there are zero bytes"):
        open_lines(folder, "a.jpg 0\na.jpg 1\n".encode("utf-16"))


# -- array_record ----------------------------------------------------------------------------------


def write_records(folder, split, records, shards):
    for shard in range(shards):
        path = folder / f"{split}-{shard:05d}-of-{shards:05d}.array_record"
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for record in records[shard::shards]:
            writer.write(record)
        writer.close()


@pytest.fixture
def records(tmp_path):
    (tmp_path / "classes.txt").write_text("ant\ncat\n")
    images = [pack_record(jpeg(i), i % 2, f"{i}.jpg") for i in range(9)]
    write_records(tmp_path, "train", images, 2)
    write_records(tmp_path, "val", images[:3], 1)
    return tmp_path


def test_array_record(records):
    data = open_data("array_record", root=str(records))
    assert (len(data.train), len(data.eval)) == (9, 3)
    assert data.class_names == ("ant", "cat")
    order = [0, 2, 4, 6, 8, 1, 3, 5, 7]  # the first shard, then the second
    assert names(data.train) == [f"{i}.jpg" for i in order]
    assert labels(data.train) == [i % 2 for i in order]
    assert [data.train[k]["image"] for k in range(9)] == [jpeg(i) for i in order]
    data = open_data("array_record", root=str(records), train="val*", eval="tr*-00001-*")
    assert (len(data.train), len(data.eval)) == (3, 4)


def test_array_record_from_threads_and_after_pickling(records):
    source = open_data("array_record", root=str(records)).train
    expected = names(source)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda i: source[i % 9]["name"], range(450))) == expected * 50
    assert names(pickle.loads(pickle.dumps(source))) == expected


def strange(header, pixels=b""):
    text = header.encode()
    return len(text).to_bytes(4, "little") + text + pixels


STRANGE = [
    b"",
    b"abc",
    strange("[]"),
    strange("1"),
    strange('{"label": 1}'),
    strange('{"label": 1e999, "name": ""}'),
    strange('{"label": NaN, "name": ""}'),
    strange('{"label": 1, "name": "", "shape": [2, 2]}', bytes(4)),
    strange('{"label": 1, "name": "", "shape": [2, 2, 2]}', bytes(8)),
    strange('{"label": 1, "name": "", "shape": [1, 2, 3]}', bytes(5)),
    strange('{"label": 1, "name": "", "shape": [0, 2, 3]}'),
    strange('{"label": 1, "name": "", "shape": "abc"}', bytes(3)),
    strange("[" * 100_000),
]


def test_array_record_errors(records):
    root = str(records)
    with pytest.raises(ValueError, match=r"no\*: no such files"):
        open_data("array_record", root=root, train="no*")
    with pytest.raises(ValueError, match=r"no\*: no such files \(config.data.eval\)"):
        open_data("array_record", root=root, eval="no*")
    (records / "other.array_record").write_bytes(b"something else" * 10000)
    with pytest.raises(ValueError, match=r"other\.array_record: not an ArrayRecord file, or"):
        open_data("array_record", root=root, train="other*")
    write_records(records, "strange", STRANGE, 1)
    data = open_data("array_record", root=root, train="strange*")
    for i in range(len(STRANGE)):
        with pytest.raises(BadImage, match=rf"record {i} of .*strange-.*: not a record of data_pr"):
            data.train[i]
    (records / "train-00001-of-00002.array_record").unlink()
    with pytest.raises(
        ValueError, match=r"train-00001-of-00002\.\* is missing \(1 of 2 files are\)"
    ):
        open_data("array_record", root=root)
    (records / "classes.txt").write_text("ant\n\n")
    with pytest.raises(ValueError, match=r"classes\.txt: write one class name in each line"):
        open_data("array_record", root=root)
    (records / "classes.txt").unlink()
    with pytest.raises(ValueError, match=r"classes\.txt: no such file"):
        open_data("array_record", root=root)


def test_records_keep_every_byte_and_name():
    for image, label, name in ((b"", 0, ""), (bytes(range(256)), 2**31, 'ä/\n".jpg')):
        record = pack_record(image, label, name)
        assert unpack_record(record) == {"image": image, "label": label, "name": name}


def damaged(path):
    """Yields the bytes of an ArrayRecord file, damaged in many ways."""
    good = path.read_bytes()
    used = [i for i, byte in enumerate(good) if byte]
    for i in used[:: max(len(used) // 150, 1)]:  # headers, chunks, footer
        for mask in (1, 0x80):
            yield good[:i] + bytes([good[i] ^ mask]) + good[i + 1 :]
    for end in (0, 1, 100, 1000, 65536, 65600, len(good) - 1):
        yield good[:end]


def outcome(source, expected):
    """Returns how many items are as expected; all others have to be a `BadImage`."""
    right = 0
    for i in range(len(source)):
        try:
            assert source[i] == expected[i]
            right += 1
        except BadImage as error:
            message = str(error)
        else:
            continue
        assert re.match(r"record \d+ of .*train-00001-of-00002.array_record: ", message)
    return right


def test_damaged_records(records, caplog):
    """A line that names the file, or images that are unreadable like others."""
    root, path = str(records), records / "train-00001-of-00002.array_record"
    whole = open_data("array_record", root=root).train
    expected, kinds = [whole[i] for i in range(9)], {"whole": 0, "records": 0, "file": 0}
    for data in damaged(path):
        path.write_bytes(data)
        caplog.clear()
        skipping = open_data("array_record", root=root, on_bad_image="skip").train
        right = outcome(skipping, expected)
        if len(skipping) == 9:
            assert outcome(open_data("array_record", root=root).train, expected) == right
            kinds["whole" if right == 9 else "records"] += 1
            assert not caplog.messages
            continue
        kinds["file"] += 1
        assert (len(skipping), right) == (6, 5)  # one that stands for the four
        message = "train-00001-of-00002.array_record: not an ArrayRecord file, or cut short"
        assert re.search(message + ".*; its images are missing", *caplog.messages)
        with pytest.raises(ValueError, match=message):
            open_data("array_record", root=root)
        with pytest.raises(ValueError, match=message + ".*; config.data.max_bad_images = 0"):
            open_data("array_record", root=root, on_bad_image="skip", max_bad_images=0)
    assert min(kinds.values()) > 5, kinds


def test_labels_of_damaged_records(records, caplog):
    path = records / "train-00001-of-00002.array_record"
    data = bytearray(path.read_bytes())
    data[data.index(b'"name": "3.jpg"')] ^= 1
    path.write_bytes(data)
    root = str(records)
    message = "record 1 of .*train-00001-of-00002.array_record: .*hash mismatch"
    with pytest.raises(BadImage, match=message):
        open_data("array_record", root=root).train.labels  # noqa: B018
    with pytest.raises(ValueError, match=f"1 records .* {message}.*max_bad_images = 0"):
        open_data("array_record", root=root, on_bad_image="skip", max_bad_images=0, fraction=0.5)
    source = open_data("array_record", root=root, on_bad_image="skip").train
    assert source.labels.tolist() == [0, 0, 0, 0, 0, 1, -1, 1, 1]
    assert re.search(f"labels of 1 records cannot be read, the first: {message}", *caplog.messages)
    part = open_data("array_record", root=root, on_bad_image="skip", fraction=0.5).train
    assert sorted(part.labels.tolist()) == [0, 0, 1, 1]


def test_a_record_file_that_shrinks_while_it_is_read(records):
    source = open_data("array_record", root=str(records)).train
    assert source[5]["label"] == 1
    os.truncate(records / "train-00001-of-00002.array_record", 100)
    for i in range(5, 9):
        with pytest.raises(BadImage, match=rf"record {i - 5} of .*train-00001-of"):
            source[i]
    assert [source[i]["label"] for i in range(5)] == [0] * 5


def test_without_array_record(records, pets, monkeypatch):
    """As on Windows: a line, where records are opened."""
    for name in ("", ".python", ".python.array_record_module", ".python.array_record_data_source"):
        monkeypatch.setitem(sys.modules, f"array_record{name}", None)
    message = "ArrayRecord files need the package array-record, which is not there .* Windows"
    with pytest.raises(ValueError, match=message):
        open_data("array_record", root=str(records))
    with pytest.raises(ValueError, match=message):
        open_data("tfds", name="tiny_pets", root=str(pets))
    script = runpy.run_path(str(ROOT / "data_prep/folder_to_array_record.py"))
    write(records / "images/a/1.jpg")
    write(records / "images/b/1.jpg")
    with pytest.raises(ValueError, match=message):
        script["main"]([str(records / "images"), str(records / "out")])


@pytest.mark.ci
def test_damaged_records_in_worker_processes(records, caplog):
    path = records / "train-00001-of-00002.array_record"
    data = bytearray(path.read_bytes())
    data[data.index(b'"name": "3.jpg"')] ^= 1
    path.write_bytes(data)
    transform = ops.Image(**base.get_config().image).transform

    def batches(workers, **options):
        source = open_data("array_record", root=str(records)).train
        how = {"batch_size": 3, "seed": 0, "start_step": 0, "num_steps": 3}
        how["options"] = loader.Options(threads=0, workers=workers, prefetch=4)
        with loader.train_batches(source, transform, **how, **options) as made:
            return list(made), dict(made.bad_images)

    expected, bad = batches(0, on_bad_image="skip")
    assert re.match(f"record 1 of {path}: ", bad[6])
    got, same = batches(1, on_bad_image="skip")
    assert same == bad
    for mine, theirs in zip(got, expected, strict=True):
        assert all(np.array_equal(mine[key], theirs[key]) for key in theirs)
    with pytest.raises(ValueError, match=f"record 1 of {path}: "):
        batches(1)


# -- tfds ------------------------------------------------------------------------------------------

BUILDER = """
import io, sys
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

class TinyPets(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names=["cat", "dog", "owl"]),
            "file_name": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, manager):
        return {"train": self._generate_examples(12), "test": self._generate_examples(5)}

    def _generate_examples(self, count):
        for i in range(count):
            pixels = np.random.default_rng(i).integers(0, 256, (20, 24, 3), np.uint8)
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "JPEG")
            file.seek(0)
            yield i, {"image": file, "label": i % 3, "file_name": f"{i}.jpg"}

TinyPets(data_dir=sys.argv[1], file_format="array_record").download_and_prepare()
assert "tensorflow" not in sys.modules
"""


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    """A set that TFDS itself prepared, without TensorFlow, in another process."""
    folder = tmp_path_factory.mktemp("tfds")
    (folder / "builder.py").write_text(BUILDER)
    command = [sys.executable, str(folder / "builder.py"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_tfds(pets):
    data = open_data("tfds", name="tiny_pets", root=str(pets))
    assert (len(data.train), len(data.eval)) == (12, 5)  # the evaluation split: test
    assert data.class_names == ("cat", "dog", "owl")
    assert data.train[0]["name"].startswith("tiny_pets/train[0] ")
    assert sorted(labels(data.train)) == sorted(i % 3 for i in range(12))
    found = {item["image"]: item["label"] for item in (data.train[i] for i in range(12))}
    assert found == {jpeg(i): i % 3 for i in range(12)}  # the bytes as they were
    assert "tensorflow" not in sys.modules
    parts = open_data("tfds", name="tiny_pets", root=str(pets), train="train[:4]", eval="train[4:]")
    assert names(parts.train)[3] == "tiny_pets/train[:4][3] " + names(data.train)[3].split(" ")[1]
    assert (len(parts.train), len(parts.eval)) == (4, 8)


def test_tfds_from_threads_and_after_pickling(pets):
    source = open_data("tfds", name="tiny_pets", root=str(pets)).train
    expected = [source[i] for i in range(12)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda i: source[i % 12], range(120))) == expected * 10
    again = pickle.loads(pickle.dumps(source))
    assert [again[i] for i in range(12)] == expected


def test_damaged_tfds_records(pets, tmp_path):
    shutil.copytree(pets / "tiny_pets", tmp_path / "tiny_pets")
    (path,) = tmp_path.rglob("*train.array_record-00000-of-00001")
    data = bytearray(path.read_bytes())
    used = np.flatnonzero(np.frombuffer(data, np.uint8)[:65536])
    data[used[len(used) * 7 // 12 + 50]] ^= 1  # compressed records, equally long
    path.write_bytes(data)
    source = open_data("tfds", name="tiny_pets", root=str(tmp_path), on_bad_image="skip").train
    with pytest.raises(BadImage, match=r"record 7 of .*train.array_record-00000-of-00001: .*hash"):
        source[7]
    assert (source.labels == -1).tolist() == [i == 7 for i in range(12)]
    part = open_data("tfds", name="tiny_pets", root=str(tmp_path), train="train[5:]").train
    with pytest.raises(BadImage, match=r"record 7 of .*train"):
        part[2]
    os.truncate(path, 100)
    with pytest.raises(BadImage, match=r"record 0 of .*train"):
        open_data("tfds", name="tiny_pets", root=str(tmp_path)).train[0]
    path.unlink()
    with pytest.raises(ValueError, match=r"train.*-of-00001 is missing \(1 of 1 files are\)"):
        open_data("tfds", name="tiny_pets", root=str(tmp_path))


def test_tfds_errors(pets, tmp_path):
    with pytest.raises(
        ValueError,
        match=r"no prepared TFDS set 'imagenet2012'; prepare it with `tfds build "
        r"imagenet2012 --file_format=array_record --data_dir=.*` \(needs TensorFlow: .*\[tf\]",
    ):
        open_data("tfds", name="imagenet2012", root=str(pets))
    with pytest.raises(ValueError, match="no split 'dev', choose from train, test"):
        open_data("tfds", name="tiny_pets", root=str(pets), eval="dev")
    # What a set prepared as tfrecord says of itself.
    shutil.copytree(pets / "tiny_pets", tmp_path / "tiny_pets")
    info_file = tmp_path / "tiny_pets/1.0.0/dataset_info.json"
    info = json.loads(info_file.read_text())
    assert info["fileFormat"] == "array_record"
    info_file.write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    with pytest.raises(
        ValueError, match="prepared as tfrecord, without random access; prepare it with `tfds build"
    ):
        open_data("tfds", name="tiny_pets", root=str(tmp_path))
    # A set without labels.
    shutil.rmtree(tmp_path / "tiny_pets")
    shutil.copytree(pets / "tiny_pets", tmp_path / "tiny_pets")
    features_file = tmp_path / "tiny_pets/1.0.0/features.json"
    features = json.loads(features_file.read_text())
    del features["featuresDict"]["features"]["label"]
    features_file.write_text(json.dumps(features))
    with pytest.raises(ValueError, match="has the features image and label, this one has file_nam"):
        open_data("tfds", name="tiny_pets", root=str(tmp_path))


HEAVY = {"tensorflow", "tensorflow_datasets", "sklearn"}


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        (("sources", "loader"), HEAVY),
        # what a worker imports to unpickle its source
        (
            ("arrays", "folders", "lists", "records", "batches", "workers"),
            HEAVY | {"jax", "flax", "grain"},
        ),
    ],
)
def test_heavy_libraries_are_not_imported(modules, absent):
    names = ", ".join(f"jaxcls.data.{name}" for name in modules)
    code = f"import sys, {names}; print(*({absent} & sys.modules.keys()))"
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, check=True, capture_output=True, text=True
    )
    assert done.stdout == "\n"
