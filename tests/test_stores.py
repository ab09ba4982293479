"""Images in an object store: the same as from a folder of this machine, through fsspec.

A folder stands in for the store; array_record's own reader asks a server on this machine, as gcsfs
does where it is installed (`test_gcsfs`).
"""

import importlib.util
import shutil
import sys
import threading
import types

import cv2
import fsspec.core
import numpy as np
import object_store
import pytest
import runs
import test_sources
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem

from jaxcls import choices
from jaxcls.data import cache, stores
from jaxcls.data.decode import BadImage
from jaxcls.data.feed import Feed
from jaxcls.data.records import pack_record
from jaxcls.data.tables import open_unlabelled

open_data = test_sources.open_data


class Store(DirFileSystem):
    """A folder as a store; `reads` are the files that were read, `denied` what may not be."""

    cachable = False

    def __init__(self, folder):
        super().__init__(path=str(folder), fs=LocalFileSystem())
        self.reads, self.denied = [], "secret"

    def info(self, path, **options):
        self._check(path)
        return super().info(path, **options)

    def cat_file(self, path, start=None, end=None, **options):
        self._check(path)
        self.reads.append(path)
        return super().cat_file(path, start=start, end=end, **options)

    def _check(self, path):
        if self.denied in path:
            raise OSError(f"Forbidden: {path}\nno permission")  # as gcsfs does


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A store with the bucket `bucket`, in which photos/{train,val}/{cat,dog} are."""
    rng = np.random.default_rng(0)
    for i in range(18):
        split = "train" if i < 12 else "val"
        path = tmp_path / "bucket" / "photos" / split / ("cat", "dog")[i % 2] / f"{i:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), rng.integers(0, 256, (20, 24, 3), np.uint8))
    (path.parent / "notes.txt").write_text("no image")
    (path.parent / ".DS_Store").write_text("litter")
    photos = tmp_path / "bucket" / "photos"
    names = [p.relative_to(photos).as_posix() for p in sorted(photos.rglob("*.jpg"))]
    for split in ("train", "val"):
        lines = [f"{name} {int('dog' in name)}\n" for name in names if name.startswith(split)]
        (photos / f"{split}_list.txt").write_text("".join(lines))
    (photos / "classes.txt").write_text("cat\ndog\n")
    there = Store(tmp_path)
    there.folder = tmp_path
    opened = lambda url: (there, url.partition("://")[2])
    monkeypatch.setattr(fsspec.core, "url_to_fs", opened)
    return there


def items(source):
    return [(s["image"], s["label"]) for s in (source[i] for i in range(len(source)))]


@pytest.mark.parametrize("source", ["folder", "list"])
def test_the_same_as_here(store, source, caplog):
    photos = store.folder / "bucket" / "photos"
    here = open_data(source, root=str(photos))
    said, _ = [record.getMessage() for record in caplog.records], caplog.clear()
    there = open_data(source, root="gs://bucket/photos/")
    now = [record.getMessage().replace("gs://bucket/photos", str(photos))
           for record in caplog.records]  # fmt: skip
    assert now == said
    assert there.class_names == here.class_names == ("cat", "dog")
    assert (there.remote, here.remote) == (True, False)
    for a, b in ((here.train, there.train), (here.eval, there.eval)):
        assert len(a) in (6, 12)
        assert a.paths == b.paths
        assert items(a) == items(b)
        assert a.identity == b.identity  # a run moves from one to the other
    assert there.eval[0]["name"].startswith("gs://bucket/photos/val/cat/12.jpg")


@pytest.mark.parametrize("name", ["a::b.png", "a b%20#c?.png", "::"])
def test_any_name(name):
    fsspec.filesystem("memory").pipe_file(f"/any/x/{name}", b"pixels")
    assert stores.read(f"memory://any/x/{name}") == b"pixels"
    assert stores.below("memory://any") == [f"x/{name}"]
    fsspec.filesystem("memory").rm("/any", recursive=True)


def test_other_layouts(store):
    data = open_data("folder", root="gs://bucket/photos/train", eval_fraction=0.2)
    assert [len(data.train), len(data.eval)] == [10, 2]
    keys = {"root": "gs://bucket/photos", "delimiter": " ", "image_column": "", "allowed": None}
    assert len(open_unlabelled("val", **keys)) == 6
    assert len(open_unlabelled("gs://bucket/photos/train_list.txt", **keys)) == 12
    shutil.rmtree(store.folder / "bucket" / "photos" / "train" / "cat")
    with pytest.raises(ValueError, match=r"gs://bucket/photos/train/cat/00\.jpg \(gs://bucket/photos"
                       r"/train_list\.txt:1\): no such file, and 5 more of the 12"):  # fmt: skip
        open_data("list", root="gs://bucket/photos")


@pytest.mark.parametrize(
    ("source", "root", "message"),
    [
        ("folder", "gs://other", r"gs://other: no such bucket or folder \(config\.data\.root\)"),
        ("list", "gs://bucket/no", "gs://bucket/no: no such bucket or folder"),
        ("list", "gs://bucket", "gs://bucket/train_list.txt: no such list file"),
        ("array_record", "gs://other", "gs://other: no such bucket or folder"),
        ("tfds", "gs://other", "gs://other: no such bucket or folder"),
        ("array_record", "gs://bucket/photos", r"train\*\.array_record: no such files"),
        ("folder", "gs://secret/x", "gs://secret/x: the store does not give it: Forbidden"),
        ("array_record", "gs://secret", "gs://secret: the store does not give it: Forbidden"),
        ("table", "gs://bucket", "gs://bucket: such images are read from folders of this machine"),
    ],
)
def test_what_cannot_be_had(store, source, root, message):
    with pytest.raises(ValueError, match=message) as caught:
        open_data(source, root=root)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("root", "message"),
    [
        ("foo://x/y", "foo://x/y: there is no such storage: give a folder, or gs://BUCKET/FOLDER"),
        ("http://x/y", "http://x/y: there is no such storage"),
        ("gs://x/y", r"gs://x/y: .*gcsfs.* \(gs://: pip install 'jaxcls\[gcs\]'\)"),
    ],
)
def test_storage_that_is_not_known(root, message, monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ValueError, match=message):
        open_data("folder", root=root)


def test_an_image_that_goes_away(store):
    data = open_data("folder", root="gs://bucket/photos")
    (store.folder / "bucket/photos/train/cat/00.jpg").unlink()
    with pytest.raises(BadImage, match=r"gs://bucket/photos/train/cat/00\.jpg: no such file"):
        data.train[0]
    store.denied = "02.jpg"
    with pytest.raises(BadImage, match=r"02\.jpg: cannot read it: .* Forbidden"):
        data.train[1]


def test_each_image_is_asked_for_once(store, monkeypatch, capsys):
    config = runs.tiny("plain")
    config.data.source, config.data.root = "folder", "gs://bucket/photos"
    _, data = choices.open_data(config)
    transform = types.SimpleNamespace(crop=None, augment=None, interpolation=("linear",))
    transform.decoded = lambda image, name: np.zeros((20, 24, 3), np.uint8)
    layout = types.SimpleNamespace(
        mesh=types.SimpleNamespace(local_devices=[runs.jax.devices()[0]])
    )
    feed = Feed(data, data.train, transform, layout)
    monkeypatch.setattr(cache, "AUTO_BYTES", 0)  # as many images have it
    source = cache.use(feed, "training").source
    assert "cache of training images: encoded" in capsys.readouterr().out
    store.reads.clear()
    for _ in range(3):
        assert len(items(source)) == 12
    assert len(store.reads) == 12
    monkeypatch.setattr(cache, "_memory", lambda: 100)
    assert cache.use(feed, "training").source is data.train


# -- The real clients ------------------------------------------------------------------------------


@pytest.fixture
def service(store, monkeypatch):
    server = object_store.server(store.folder)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", address)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
    yield server
    server.shutdown()
    server.server_close()


def test_array_record(store, service):
    folder = store.folder / "bucket" / "records"
    folder.mkdir()
    (folder / "classes.txt").write_text("cat\ndog\n")
    images = [pack_record(test_sources.jpeg(i), i % 2, f"{i}.jpg") for i in range(9)]
    test_sources.write_records(folder, "train", images[:6], 2)
    test_sources.write_records(folder, "val", images[6:], 1)
    here = open_data("array_record", root=str(folder))
    there = open_data("array_record", root="gs://bucket/records")
    assert len(there.train) == 6
    for a, b in ((here.train, there.train), (here.eval, there.eval)):
        assert items(a) == items(b)
        assert a.identity == b.identity
    assert any("train-00001-of-00002" in path for path in service.asked)
    assert (
        there.train.place(0) == "record 0 of gs://bucket/records/train-00000-of-00002.array_record"
    )
    (folder / "train-00001-of-00002.array_record").unlink()
    with pytest.raises(
        ValueError, match=r"gs://bucket/records/train-00001-of-00002\.\* is missing"
    ):
        open_data("array_record", root="gs://bucket/records")


@pytest.mark.skipif(
    importlib.util.find_spec("gcsfs") is None, reason="the extra [gcs] is not there"
)
def test_gcsfs(store, service, monkeypatch):
    import gcsfs.core  # what is above it asks Google, by gRPC, for the kind of the bucket

    fs = gcsfs.core.GCSFileSystem(token="anon", endpoint_url=None, use_listings_cache=False)
    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda url: (fs, url.partition("://")[2]))
    here = open_data("folder", root=str(store.folder / "bucket" / "photos"))
    there = open_data("folder", root="gs://bucket/photos")
    assert items(here.train) == items(there.train)
    assert here.train.identity == there.train.identity
    for root, message in (("gs://other", "no such bucket"), ("gs://secret", "does not give it")):
        with pytest.raises(ValueError, match=message):
            open_data("folder", root=root)
