"""Every source of images on real files that the tests write, and each of its error messages."""

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from sklearn.datasets import load_digits

from configs import base
from jaxcls.data import sources
from jaxcls.data.decode import BadImage, decode


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
        ("tfds", {}, "config.data.name is not set"),
        ("digits", {"on_bad_image": "ignore"}, "unknown config.data.on_bad_image 'ignore'"),
    ],
)
def test_choices_that_make_no_sense(source, changes, message):
    with pytest.raises(ValueError, match=message):
        open_data(source, **changes)


def test_a_misspelt_key_is_named():
    with pytest.raises(TypeError, match="rooot"):
        sources.open(**base.get_config().data, rooot="/x")


def test_defaults_are_those_of_the_base_config():
    data = base.get_config().data
    assert {key: data[key] for key in sources.DEFAULTS} == sources.DEFAULTS
    others = {"source", "on_bad_image", "max_bad_images", "cache"}
    others |= {"fraction", "fraction_seed", "sampling", "repeats"}
    assert set(data) == sources.DEFAULTS.keys() | others


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
    with pytest.raises(PermissionError, match="train/cat/deep"):
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
    with pytest.raises(ValueError, match="val/dog: the class 'dog' has no images"):
        open_data("folder", root=str(folder))
    write(folder / "val/dog/1.jpg")
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
    data = open_lines(folder, "my cat 3.jpg\t1\n", delimiter="\t")
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


def test_an_image_missing_from_disk_is_named_with_its_line_when_read(tmp_path):
    data = open_lines(tmp_path, "gone.jpg 0\n")
    with pytest.raises(BadImage, match=r"gone\.jpg \(.*train_list\.txt:1\): no such file"):
        data.train[0]


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
    images = [sources.pack_record(jpeg(i), i % 2, f"{i}.jpg") for i in range(9)]
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


def test_array_record_errors(records):
    root = str(records)
    with pytest.raises(ValueError, match=r"no\*: no such files"):
        open_data("array_record", root=root, train="no*")
    with pytest.raises(ValueError, match=r"no\*: no such files \(config.data.eval\)"):
        open_data("array_record", root=root, eval="no*")
    (records / "other.array_record").write_bytes(b"something else" * 10000)
    with pytest.raises(ValueError, match=r"other\.array_record, \.\.\.: not ArrayRecord files"):
        open_data("array_record", root=root, train="other*")
    write_records(records, "strange", [b"abc", sources.pack_record(b"", 2, "x.jpg")], 1)
    data = open_data("array_record", root=root, train="strange*")
    with pytest.raises(ValueError, match=r"record 0 of .*strange-.*: not a record of data_prep"):
        data.train[0]
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
        record = sources.pack_record(image, label, name)
        assert sources.unpack_record(record) == {"image": image, "label": label, "name": name}


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


def test_nothing_imports_tensorflow():
    code = (
        "import sys; import jaxcls.data.sources, jaxcls.data.loader\n"
        "assert not {'tensorflow', 'tensorflow_datasets', 'sklearn'} & set(sys.modules)"
    )
    root = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)
