"""A cache changes nothing in a batch, wherever the images stay; and when it cannot be had."""

import collections
import types

import cv2
import jax
import numpy as np
import pytest
import runs

from jaxcls import program, sharding
from jaxcls.data import cache, folders, loader, ops, sources
from jaxcls.program import reading

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


def config_for(root, **image):
    config = runs.tiny("plain")
    config.data.source, config.data.root = "folder", str(root)
    config.batch_size, config.eval.batch_size = 8, 8
    config.image.update(size=8, eval_resize=9, mean=(0.5,) * 3, std=(0.5,) * 3, **image)
    return config


def open_all(config):
    data = sources.open(**config.data, image_size=config.image.size)
    return data, program.build(config, num_train=len(data.train), num_classes=2)


def batches(config, data, built, steps=6):
    """Returns the training and the evaluation batches of a run, as they come from the loader."""
    train = loader.train_batches(
        data.train,
        built.train_transform,
        batch_size=8,
        seed=3,
        start_step=1,
        num_steps=steps,
        **reading(config, data),
    )
    options = reading(config, data)
    return list(train), list(
        loader.eval_batches(data.eval, built.eval_transform, batch_size=8, **options)
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("devices", "image"),
    [
        (1, {"crop": "shift", "shift": 1}),
        (8, {"crop": "shift", "shift": 7}),
        (2, {"crop": "center", "shift": 0}),
        (1, {"crop": "random_resized", "shift": 0}),
        (1, {"crop": "shift", "shift": 2, "scaled_decode": "always", "interpolation": "area"}),
    ],
)
def test_the_step_gets_the_same_images(photos, kind, devices, image):
    config = config_for(photos, **image)
    config.mesh.data = devices
    data, built = open_all(config)
    expected = batches(config, data, built)

    def record(state, batch):
        return {key: np.asarray(value) for key, value in batch.items()}

    built = built._replace(train_step=record, eval_step=record)  # in place of the network
    config.data.cache = kind
    data = sources.open(**config.data)
    if kind == "device" and image["crop"] == "random_resized":
        with pytest.raises(ValueError, match=r'"device" needs config.image.crop = "shift" or'):
            cache.use(config, data, built)
        return
    data, cached = cache.use(config, data, built)
    for _ in range(2):  # when they are read, and when they stay
        ours = batches(config, data, cached)
        for step, got, want in zip((cached.train_step, cached.eval_step), ours, expected):
            assert len(got) == len(want) > 1
            for a, b in zip(got, want):
                a = step(None, sharding.put(a, built.batch_sharding))
                assert a.keys() == b.keys()
                for key in a:
                    assert a[key].dtype == b[key].dtype
                    assert np.array_equal(a[key], b[key]), key


def test_images_are_read_and_decoded_once(photos, monkeypatch):
    read, decoded = collections.Counter(), collections.Counter()
    original_read, original_decode = folders._read, ops.decode

    def counting_read(path, name):
        read[path] += 1
        return original_read(path, name)

    def counting_decode(image, **options):
        if isinstance(image, bytes):
            decoded[image] += 1
        return original_decode(image, **options)

    monkeypatch.setattr(folders, "_read", counting_read)
    monkeypatch.setattr(ops, "decode", counting_decode)
    config = config_for(photos, crop="shift", shift=1)
    config.image.scaled_decode = "never"  # else large images stay encoded
    config.loader.threads = 1  # two might read the same image
    for kind in KINDS:
        config.data.cache = kind
        data, built = open_all(config)
        data, built = cache.use(config, data, built)
        read.clear()  # of the estimate
        decoded.clear()
        for _ in range(3):
            batches(config, data, built, steps=9)
        assert len(read) == (0 if kind == "device" else 31)
        assert set(read.values()) <= {1}
        assert len(decoded) == (0 if kind == "device" else 31)
        assert kind == "encoded" or set(decoded.values()) <= {1}


def test_nothing_is_sent_between_devices(photos):
    """Every device has all images and cuts its own rows."""
    mesh = sharding.make_mesh(data=8, fsdp=1)
    whole, rows = sharding.replicated(mesh), sharding.batch_sharding(mesh)
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
    config = config_for(tmp_path, crop="shift", shift=1)
    config.data.on_bad_image = "skip"
    data, built = open_all(config)
    expected = batches(config, data, built)

    config.data.cache = kind
    data, built = open_all(config)
    data, built = cache.use(config, data, built)
    ours = batches(config, data, built)
    for got, want in zip(ours, expected):
        for a, b in zip(got, want):
            assert np.array_equal(a["label"], b["label"])
            if "mask" in b:
                assert np.array_equal(a["mask"], b["mask"])
    config.data.on_bad_image = "error"
    data, built = open_all(config)
    with pytest.raises(ValueError, match=r"(05\.png|24\.jpg): cannot decode"):
        batches(config, *cache.use(config, data, built))


# -- which one -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_worker_processes_have_no_cache(photos, kind):
    config = config_for(photos, crop="shift", shift=1)
    config.loader.workers = 2
    data, built = open_all(config)
    assert cache.use(config, data, built) == (data, built)  # auto
    config.data.cache = kind
    data, built = open_all(config)
    with pytest.raises(ValueError, match=rf"cache = '{kind}'.* config.loader.workers = 2 reads"):
        cache.use(config, data, built)


class Chip:
    """What the choice asks of a device."""

    def __init__(self, platform, memory=None):
        self.platform, self.memory = platform, memory

    def memory_stats(self):
        return self.memory and {"bytes_limit": self.memory}


def on(built, chip):
    """Returns the program as if it were for such a device."""
    return built._replace(mesh=types.SimpleNamespace(local_devices=[chip]))


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
    config = config_for(photos, crop=crop, shift=int(crop == "shift"))
    data, built = open_all(config)
    monkeypatch.setattr(cache, "AUTO_BYTES", limit)
    monkeypatch.setattr(cache, "_with_images", lambda *_: None)
    chosen, _ = cache.use(config, data, on(built, Chip(platform)))
    for ours, source, kind in (
        (chosen.train, data.train, kinds[0]),
        (chosen.eval, data.eval, kinds[1]),
    ):
        if kind == "none":
            assert ours is source
        else:
            assert type(ours) is {"device": cache.Numbered, "decoded": cache.Cached}[kind]
    said = [line.split()[-4].rstrip(",") for line in capsys.readouterr().out.splitlines()]
    assert said == [kind for kind in kinds if kind != "none"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_larger_than_the_memory(photos, monkeypatch, kind):
    config = config_for(photos, crop="shift", shift=1)
    config.data.cache = kind
    data, built = open_all(config)
    monkeypatch.setattr(cache.os, "sysconf", lambda name: 2)  # pages of 2 bytes, 2 of them
    with pytest.raises(ValueError, match=rf"cache = '{kind}' needs about .* GiB, there are .*none"):
        cache.use(config, data, built)
    monkeypatch.undo()
    chip = on(built, Chip("gpu", memory=1000))
    monkeypatch.setattr(cache, "_with_images", lambda *_: None)
    if kind == "device":
        with pytest.raises(ValueError, match="'device' needs"):
            cache.use(config, data, chip)
    else:
        cache.use(config, data, chip)


def test_no_image_can_be_read(photos, tmp_path):
    for split in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(9):
                (tmp_path / split / name / f"{i}.png").write_bytes(b"")
    config = config_for(tmp_path, crop="shift", shift=1)
    config.data.cache, config.data.on_bad_image = "device", "skip"
    data, built = open_all(config)
    with pytest.raises(ValueError, match=r"none of the 18 training images can be read: .*empty"):
        cache.use(config, data, built)
