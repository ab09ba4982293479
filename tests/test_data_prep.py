"""The scripts of data_prep, run as their users run them, on small real archives and images."""

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from configs import base
from jaxcls.data import sources
from jaxcls.data.decode import decode

ROOT = Path(__file__).parents[1]


def run(script, *arguments):
    """Returns (exit code, stdout, stderr)."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "data_prep" / script), *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    return done.returncode, done.stdout, done.stderr


def succeed(script, *arguments):
    code, out, error = run(script, *arguments)
    assert code == 0, error
    return out


def fail(script, *arguments):
    """Returns the one line that a user sees."""
    code, _, error = run(script, *arguments)
    assert code == 2, error
    assert error.count("\n") == 1, error
    return error


def open_data(source, **changes):
    config = base.get_config()
    config.data.source = source
    config.data.update(changes)
    return sources.open(**config.data)


def photo(height, width, seed=0):
    y, x = np.mgrid[:height, :width]
    planes = [128 + 100 * np.sin(x / (9 + c) + y / 11 + seed) for c in range(3)]
    return np.stack(planes, -1).astype(np.uint8)


def jpeg(height=20, width=24, seed=0):
    file = io.BytesIO()
    Image.fromarray(photo(height, width, seed)).save(file, "JPEG", quality=95)
    return file.getvalue()


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def items(source):
    return sorted((source[i] for i in range(len(source))), key=lambda item: item["name"])


def visible(folder):
    return sorted(path.name for path in folder.iterdir())


# -- folder_to_array_record ------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    for i in range(7):
        write(tmp_path / "images/train" / ("dog" if i % 2 else "cat") / f"{i}.jpg", jpeg(seed=i))
    write(tmp_path / "images/val/dog/x.png", b"kept as it is")
    return tmp_path / "images"


def test_folder_to_array_record(folder, tmp_path):
    records = tmp_path / "records"
    out = succeed("folder_to_array_record.py", folder, records, "--shards", 3)
    assert out == "train: 7 images in 3 files\nval: 1 images in 1 files\n"
    assert len(list(records.iterdir())) == 5  # and nothing unfinished
    ours, theirs = (
        open_data("array_record", root=str(records)),
        open_data("folder", root=str(folder)),
    )
    assert ours.class_names == theirs.class_names == ("cat", "dog")
    for split in ("train", "eval"):
        a, b = items(getattr(ours, split)), items(getattr(theirs, split))
        assert [(i["image"], i["label"]) for i in a] == [(i["image"], i["label"]) for i in b]
    assert items(ours.train)[0]["name"] == "cat/0.jpg"

    error = fail("folder_to_array_record.py", folder, records, "--shards", 3)
    assert "train-00000-of-00003.array_record exists already" in error


def test_lists_to_array_record_with_smaller_images(tmp_path):
    write(tmp_path / "wide.jpg", jpeg(100, 150))
    write(tmp_path / "small.jpg", jpeg(30, 40))
    (tmp_path / "train_list.txt").write_text("wide.jpg 1\nsmall.jpg 0\n")
    arguments = ("--source", "list", "--short-side", 50, "--quality", 95)
    succeed("folder_to_array_record.py", tmp_path, tmp_path / "records", *arguments)
    data = open_data("array_record", root=str(tmp_path / "records"))
    assert data.eval is None
    small, wide = items(data.train)
    assert (small["label"], small["image"]) == (0, jpeg(30, 40))
    assert wide["label"] == 1
    pixels = decode(wide["image"]).astype(float)
    means = photo(100, 150).reshape(50, 2, 75, 2, 3).mean((1, 3))
    assert pixels.shape == means.shape
    assert np.abs(pixels - means).mean() < 3  # JPEG twice, and the new one has less colour


def test_records_of_pixels(tmp_path):
    write(tmp_path / "wide.jpg", jpeg(100, 150))
    write(tmp_path / "small.jpg", jpeg(30, 40))
    (tmp_path / "train_list.txt").write_text("wide.jpg 1\nsmall.jpg 0\n")
    for short_side, expected in ((50, (50, 75)), (0, (100, 150))):
        records = tmp_path / f"records{short_side}"
        arguments = ("--source", "list", "--raw", "--short-side", short_side, "--shards", 1)
        succeed("folder_to_array_record.py", tmp_path, records, *arguments)
        small, wide = items(open_data("array_record", root=str(records)).train)
        assert (small["label"], wide["label"]) == (0, 1)
        assert (small["image"].dtype, small["image"].shape) == (np.uint8, (30, 40, 3))
        assert np.array_equal(small["image"], decode(jpeg(30, 40)))
        assert wide["image"].shape == (*expected, 3)
        factor = 100 // expected[0]
        means = photo(100, 150).reshape(expected[0], factor, expected[1], factor, 3).mean((1, 3))
        assert np.abs(wide["image"] - means).mean() < 3  # JPEG once


def test_folder_to_array_record_errors(folder, tmp_path):
    records = tmp_path / "records"
    assert "nowhere: no such folder" in fail("folder_to_array_record.py", "nowhere", records)
    write(folder / "train/cat/0.jpg", jpeg()[:-40])
    arguments = ("folder_to_array_record.py", folder, records, "--short-side", 8)
    assert "error: cat/0.jpg: cannot decode the image" in fail(*arguments)
    assert visible(records) == []  # nothing half-written
    write(folder / "val/dog/x.png", jpeg())
    code, out, error = run(*arguments, "--skip-bad")
    assert code == 0
    assert "skipped: cat/0.jpg: cannot decode" in error
    assert "train: 6 images" in out
    assert "--quality from 1 to 100" in fail(*arguments, "--quality", 0)


# -- flowers102 ------------------------------------------------------------------------------------


@pytest.fixture
def flowers(tmp_path):
    labels = np.array([77, 1, 102, 5, 77, 1], np.uint8)
    scipy.io.savemat(tmp_path / "imagelabels.mat", {"labels": labels[None]})
    ids = {"trnid": [[2, 5]], "valid": [[1]], "tstid": [[6, 3, 4]]}
    scipy.io.savemat(tmp_path / "setid.mat", {k: np.array(v, np.uint16) for k, v in ids.items()})
    for i in range(1, 7):
        write(tmp_path / f"jpg/image_{i:05d}.jpg", jpeg(seed=i))
    return tmp_path


def test_flowers102(flowers):
    succeed("flowers102.py", flowers)
    lists = {p.name: p.read_text().splitlines() for p in flowers.glob("*.txt")}
    train = ["jpg/image_00002.jpg 0", "jpg/image_00005.jpg 76"]
    extra = ["jpg/image_00006.jpg 0", "jpg/image_00003.jpg 101", "jpg/image_00004.jpg 4"]
    assert lists == {
        "train_list.txt": train,
        "val_list.txt": ["jpg/image_00001.jpg 76"],
        "extra_list.txt": extra,
        "train_extra_list.txt": train + extra,
    }
    data = open_data("list", root=str(flowers), num_classes=102)
    assert data.train[1]["image"] == jpeg(seed=5)
    assert data.eval[0]["label"] == 76


def test_flowers102_errors(flowers):
    (flowers / "jpg/image_00004.jpg").unlink()
    assert "image_00004.jpg: no such file; unpack 102flowers.tgz" in fail("flowers102.py", flowers)
    scipy.io.savemat(flowers / "setid.mat", {"trnid": np.array([[7]])})
    assert "trnid numbers images without a label" in fail("flowers102.py", flowers)
    scipy.io.savemat(flowers / "setid.mat", {"other": np.array([[1]])})
    assert "setid.mat has no 'trnid'" in fail("flowers102.py", flowers)
    (flowers / "imagelabels.mat").write_bytes(b"<html>not found</html>")
    assert "imagelabels.mat: not a MATLAB file" in fail("flowers102.py", flowers)
    (flowers / "imagelabels.mat").unlink()
    assert "imagelabels.mat: no such file" in fail("flowers102.py", flowers)
    assert list(flowers.glob("*.txt")) == []


# -- imagenet --------------------------------------------------------------------------------------


def add(tar, name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def tar_of(files):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, data in files.items():
            add(tar, name, data)
    return file.getvalue()


WNIDS = ["n03", "n01", "n02"]  # of the ILSVRC ids 1, 2, 3; id 4 is an inner node


@pytest.fixture
def ilsvrc(tmp_path):
    kind = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    rows = [(i + 1, w, f"word {w}", 0) for i, w in enumerate(WNIDS)] + [(4, "n04", "animal", 3)]
    meta = io.BytesIO()
    scipy.io.savemat(meta, {"synsets": np.array(rows, kind)[:, None]})
    truth = b"1\n3\n2\n1\n"
    devkit = "ILSVRC2012_devkit_t12/data"
    with tarfile.open(tmp_path / "devkit.tar.gz", "w:gz") as tar:
        add(tar, f"{devkit}/meta.mat", meta.getvalue())
        add(tar, f"{devkit}/ILSVRC2012_validation_ground_truth.txt", truth)
    classes = {
        f"{w}.tar": tar_of({f"{w}_{i}.JPEG": jpeg(seed=10 * k + i) for i in range(3)})
        for k, w in enumerate(WNIDS)
    }
    write(tmp_path / "train.tar", tar_of(classes))
    val = {f"ILSVRC2012_val_{i:08d}.JPEG": jpeg(seed=100 + i) for i in (2, 1, 4, 3)}
    write(tmp_path / "val.tar", tar_of(val))
    return tmp_path


def arguments(folder, out="out"):
    tars = ("--train-tar", folder / "train.tar", "--val-tar", folder / "val.tar")
    return ("imagenet.py", folder / out, "--devkit", folder / "devkit.tar.gz", *tars)


def expected_items():
    label = {"n01": 0, "n02": 1, "n03": 2}
    train = [(label[w], jpeg(seed=10 * k + i)) for k, w in enumerate(WNIDS) for i in range(3)]
    val = [(2, 101), (1, 102), (0, 103), (2, 104)]  # ids 1, 3, 2, 1
    return sorted(train), sorted((k, jpeg(seed=seed)) for k, seed in val)


def test_imagenet_to_folders_and_lists(ilsvrc):
    assert succeed(*arguments(ilsvrc)) == "train: 9 images\nval: 4 images\n"
    out = ilsvrc / "out"
    assert visible(out) == ["classes.txt", "train", "train_list.txt", "val", "val_list.txt"]
    assert (out / "val_list.txt").read_text().splitlines()[0] == (
        "val/n01/ILSVRC2012_val_00000003.JPEG 0"
    )
    for source in ("folder", "list"):
        data = open_data(source, root=str(out))
        assert data.class_names == ("n01", "n02", "n03")
        found = [
            sorted((item["label"], item["image"]) for item in items(s))
            for s in (data.train, data.eval)
        ]
        assert tuple(found) == expected_items()
    # Once more: what is there stays as it is.
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.JPEG")}
    succeed(*arguments(ilsvrc))
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*.JPEG")} == before


def test_imagenet_to_array_record(ilsvrc):
    succeed(*arguments(ilsvrc), "--format", "array_record", "--shards", 2)
    data = open_data("array_record", root=str(ilsvrc / "out"))
    assert data.class_names == ("n01", "n02", "n03")
    found = [
        sorted((item["label"], item["image"]) for item in items(s)) for s in (data.train, data.eval)
    ]
    assert tuple(found) == expected_items()
    assert items(data.train)[0]["name"] == "train/n01/n01_0.JPEG"


@pytest.mark.ci
def test_imagenet_errors(ilsvrc):
    assert "nothing to do" in fail(*arguments(ilsvrc)[:4])
    assert "meta.mat" in fail(
        "imagenet.py", ilsvrc, "--devkit", ilsvrc / "val.tar", "--val-tar", "x"
    )
    whole = (ilsvrc / "train.tar").read_bytes()
    write(ilsvrc / "train.tar", whole[: len(whole) // 2])
    assert "error: " in fail(*arguments(ilsvrc, "half"))  # tarfile's own words
    assert not (ilsvrc / "half/train_list.txt").exists()
    fail(*arguments(ilsvrc, "half"), "--format", "array_record")
    assert not list((ilsvrc / "half").glob("*.array_record"))
    write(ilsvrc / "train.tar", tar_of({"n01.tar": tar_of({"n01_1.JPEG": jpeg()})}))
    assert "no images of 2 classes, the first n02" in fail(*arguments(ilsvrc, "few"))
    write(ilsvrc / "train.tar", tar_of({"n09.tar": b""}))
    assert "n09.tar is no class of the devkit" in fail(*arguments(ilsvrc, "other"))
    write(ilsvrc / "train.tar", whole)
    write(ilsvrc / "val.tar", tar_of({"ILSVRC2012_val_00000005.JPEG": jpeg()}))
    assert "val_00000005.JPEG has no line in the devkit" in fail(*arguments(ilsvrc, "five"))
    write(ilsvrc / "val.tar", tar_of({"ILSVRC2012_val_00000001.JPEG": jpeg()}))
    assert "1 images, the devkit's ground truth has 4" in fail(*arguments(ilsvrc, "one"))
    (ilsvrc / "val.tar").unlink()
    assert "val.tar: no such file" in fail(*arguments(ilsvrc, "none"))


@pytest.mark.parametrize("script", ["folder_to_array_record.py", "flowers102.py", "imagenet.py"])
def test_help(script):
    assert "usage: " in succeed(script, "--help")
