"""A cache changes nothing in a batch, wherever the images stay; and when it cannot be had."""

import collections
import dataclasses
import os
import types

import cv2
import jax
import numpy as np
import pytest
import runs

from jaxcls import choices, program, sharding
from jaxcls.data import cache, folders, ops
from jaxcls.data.feed import Feed

KINDS = ("encoded", "decoded", "device")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of 20 training and 11 evaluation images in two classes, of different sizes.

    Every third is a JPEG so large that it is decoded smaller.
    """
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for i in range(31):
        large = i % 3 == 0
        name = f"{i:02d}." + ("jpg" if large else "png")
        path = root / ("train" if i < 20 else "val") / "ab"[i % 2] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        size = (9 + i % 7 + 50 * large, 9 + i % 5 + 60 * large, 3)
        cv2.imwrite(str(path), rng.integers(0, 256, size, np.uint8))
    return root


def config_for(root, name="shift", shift=1, **image):
    config = runs.tiny("plain")
    config.data.source, config.data.root = "folder", str(root)
    config.batch_size, config.eval.batch_size = 8, 8
    config.crop.update(name=name, shift=shift)
    config.image.update(size=8, eval_resize=9, mean=(0.5,) * 3, std=(0.5,) * 3, **image)
    return config


def feeds_of(config):
    """Returns the feeds of training and evaluation, without a cache."""
    _, data = choices.open_data(config)
    built = program.build(config, num_train=len(data.train), num_classes=2)
    train = Feed(data, data.train, built.transform, built.layout)
    return train, Feed(data, data.eval, built.network.transform, built.layout)


def use(feeds):
    return [cache.use(feed, what) for feed, what in zip(feeds, ("training", "evaluation"))]


def batches(feeds, steps=6):
    """Returns the training and the evaluation batches of a run, as they come from the loader."""
    plan = types.SimpleNamespace(batch_size=8, total_steps=steps)
    train, evaluation = feeds
    return list(train.train_batches(plan, 3, start_step=1)), list(evaluation.eval_batches(8))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("devices", "image"),
    [
        (1, {"shift": 1}),
        (8, {"shift": 7}),
        (2, {"name": "center", "shift": 0}),
        (1, {"name": "random_resized", "shift": 0}),
        (1, {"shift": 2, "scaled_decode": "always", "interpolation": "area"}),
    ],
)
def test_the_step_gets_the_same_images(photos, kind, devices, image):
    config = config_for(photos, **image)
    config.mesh.data = devices
    expected = batches(feeds_of(config))
    config.data.cache = kind
    feeds = feeds_of(config)
    if kind == "device" and image.get("name") == "random_resized":
        with pytest.raises(ValueError, match=r'"device" needs config.crop.name = "shift" or'):
            use(feeds)
        return
    feeds = use(feeds)
    for _ in range(2):  # when they are read, and when they stay
        for feed, ours, want in zip(feeds, batches(feeds), expected):
            assert len(ours) == len(want) > 1
            for a, b in zip(map(feed.put, ours), want):
                assert a.keys() == b.keys()
                for key in a:
                    assert a[key].dtype == b[key].dtype
                    assert np.array_equal(a[key], b[key]), key


def test_images_are_read_and_decoded_once(photos, monkeypatch):
    read, decoded = collections.Counter(), collections.Counter()
    original_read, original_decode = folders.read_file, ops.decode

    def counting_read(path, name):
        read[path] += 1
        return original_read(path, name)

    def counting_decode(image, **options):
        if isinstance(image, bytes):
            decoded[image] += 1
        return original_decode(image, **options)

    monkeypatch.setattr(folders, "read_file", counting_read)
    monkeypatch.setattr(ops, "decode", counting_decode)
    config = config_for(photos)
    config.image.scaled_decode = "never"  # else large images stay encoded
    config.loader.threads = 1  # two might read the same image
    for kind in KINDS:
        config.data.cache = kind
        feeds = use(feeds_of(config))
        read.clear()  # of the estimate
        decoded.clear()
        for _ in range(3):
            batches(feeds, steps=9)
        assert len(read) == (0 if kind == "device" else 31)
        assert set(read.values()) <= {1}
        assert len(decoded) == (0 if kind == "device" else 31)
        assert kind == "encoded" or set(decoded.values()) <= {1}


def test_nothing_is_sent_between_devices(photos):
    """Every device has all images and cuts its own rows."""
    layout = sharding.make(data=8, fsdp=1, model=1, fsdp_min_size=0, rules=())
    whole, rows = layout.whole, layout.rows
    cut = jax.jit(
        lambda images, places: cache.gather(images, places, size=8),
        in_shardings=(whole, rows),
        out_shardings=rows,
    )
    images = jax.ShapeDtypeStruct((50, 12, 12, 3), np.uint8)
    places = jax.ShapeDtypeStruct((32, 3), np.int32)
    program = cut.lower(images, places).compile().as_text()
    for collective in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert collective not in program


@pytest.mark.parametrize("kind", KINDS)
def test_unreadable_images(photos, tmp_path, kind):
    for split in ("train", "val"):
        for name in "ab":
            (tmp_path / split / name).mkdir(parents=True)
            for path in (photos / split / name).iterdir():
                (tmp_path / split / name / path.name).write_bytes(path.read_bytes())
    bad = [tmp_path / "train/b/05.png", tmp_path / "val/a/24.jpg"]
    for path in bad:
        path.write_bytes(path.read_bytes()[:-40])
    config = config_for(tmp_path)
    config.data.on_bad_image = "skip"
    expected = batches(feeds_of(config))
    config.data.cache = kind
    for got, want in zip(batches(use(feeds_of(config))), expected):
        for a, b in zip(got, want):
            assert np.array_equal(a["label"], b["label"])
            if "mask" in b:
                assert np.array_equal(a["mask"], b["mask"])
    config.data.on_bad_image = "error"
    with pytest.raises(ValueError, match=r"(05\.png|24\.jpg): cannot decode"):
        batches(use(feeds_of(config)))


def test_a_part_of_a_damaged_image_may_be_whole(tmp_path):
    """A crop above the damage is trained on, in the same epochs as without a cache."""
    for split in ("train", "val"):
        for name in "ab":
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(8):
                noise = np.random.default_rng(i).integers(0, 256, (64, 64, 3), np.uint8)
                cv2.imwrite(str(tmp_path / split / name / f"{i}.jpg"), noise)
    for path in (tmp_path / "train" / "a").iterdir():
        whole = path.read_bytes()
        path.write_bytes(whole[: int(0.7 * len(whole))] + b"\xff\xd9")
    config = config_for(tmp_path, name="random_resized", shift=0)
    config.data.on_bad_image, config.data.max_bad_images = "skip", 20
    plain, _ = batches(feeds_of(config), steps=12)
    config.data.cache = "decoded"
    cached, _ = batches(use(feeds_of(config)), steps=12)
    for a, b in zip(plain, cached, strict=True):
        assert np.array_equal(a["image"], b["image"])


def test_what_is_kept_has_an_end(photos, monkeypatch):
    """Where a few images are larger than those that the size of all was estimated from."""
    config = config_for(photos)
    config.data.cache = "decoded"
    train, _ = use(feeds_of(config))
    sizes = [cache._bytes(train.source[i]["image"]) for i in range(len(train.source))]
    small = dataclasses.replace(train.source, most=sum(sizes[:5]), items={}, kept=[0])
    for _ in range(2):
        images = [small[i]["image"] for i in range(len(small))]
    assert sorted(small.items) == [*range(5)]
    assert small.kept == [sum(sizes[:5])]
    for i, image in enumerate(images):
        assert np.array_equal(image, train.source[i]["image"])


def test_the_memory_of_a_container(tmp_path, monkeypatch):
    for i, text in enumerate(("max\n", "123456\n")):
        (tmp_path / str(i)).write_text(text)
    there = [str(tmp_path / name) for name in "012"]
    monkeypatch.setattr(cache, "CONTAINER", (there[0], there[2]))
    assert cache._memory() == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    monkeypatch.setattr(cache, "CONTAINER", there)
    assert cache._memory() == 123456


# -- which one -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_worker_processes_have_no_cache(photos, kind):
    config = config_for(photos)
    config.loader.workers = 2
    train, _ = feeds_of(config)
    assert cache.use(train, "training") is train  # auto
    config.data.cache = kind
    with pytest.raises(ValueError, match=rf"cache = '{kind}'.* config.loader.workers = 2 reads"):
        use(feeds_of(config))


class Chip:
    """What the choice asks of a device."""

    def __init__(self, platform, memory=None):
        self.platform, self.memory = platform, memory

    def memory_stats(self):
        return self.memory and {"bytes_limit": self.memory}


def on(feeds, chip):
    """Returns the feeds as if they were for such a device."""
    layout = types.SimpleNamespace(mesh=types.SimpleNamespace(local_devices=[chip]))
    return [dataclasses.replace(feed, layout=layout) for feed in feeds]


@pytest.mark.parametrize(
    ("platform", "crop", "limit", "kinds"),
    [
        ("cpu", "shift", 10**9, ("decoded", "decoded")),
        ("gpu", "shift", 10**9, ("device", "device")),
        ("tpu", "random_resized", 10**9, ("decoded", "device")),
        ("tpu", "random_resized", 2500, ("none", "device")),  # 11 x 8 x 8 x 3 = 2112 bytes
        ("cpu", "shift", 2500, ("none", "none")),
    ],
)
def test_auto(photos, monkeypatch, capsys, platform, crop, limit, kinds):
    feeds = feeds_of(config_for(photos, name=crop, shift=int(crop == "shift")))
    monkeypatch.setattr(cache, "AUTO_BYTES", limit)
    monkeypatch.setattr(cache, "_cut", lambda *_: None)
    for ours, plain, kind in zip(use(on(feeds, Chip(platform))), feeds, kinds):
        if kind == "none":
            assert ours.source is plain.source
        else:
            assert type(ours.source) is {"device": cache.Numbered, "decoded": cache.Cached}[kind]
    said = [line.split()[-4].rstrip(",") for line in capsys.readouterr().out.splitlines()]
    assert said == [kind for kind in kinds if kind != "none"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_larger_than_the_memory(photos, monkeypatch, kind):
    config = config_for(photos)
    config.data.cache = kind
    feeds = feeds_of(config)
    with monkeypatch.context() as patched:
        patched.setattr(cache.os, "sysconf", lambda name: 2)  # pages of 2 bytes, 2 of them
        message = rf"cache = '{kind}' needs about .* GiB, there are .*none"
        with pytest.raises(ValueError, match=message):
            use(feeds)
    feeds = on(feeds, Chip("gpu", memory=1000))
    monkeypatch.setattr(cache, "_cut", lambda *_: None)
    if kind == "device":
        with pytest.raises(ValueError, match="'device' needs"):
            use(feeds)
    else:
        use(feeds)


def test_no_image_can_be_read(photos, tmp_path):
    for split in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(9):
                (tmp_path / split / name / f"{i}.png").write_bytes(b"")
    config = config_for(tmp_path)
    config.data.cache, config.data.on_bad_image = "device", "skip"
    with pytest.raises(ValueError, match=r"none of the 18 training images can be read: .*empty"):
        use(feeds_of(config))
