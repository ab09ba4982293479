"""Batches depend on seed and step alone, whoever makes them; and every way they can fail."""

import dataclasses
import itertools
import logging
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import types
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from transforms import count_threads, kill_myself, slow

from configs import base
from jaxcls import evaluate
from jaxcls.data import arrays, loader, ops, sources

ROOT = Path(__file__).parents[1]
SIZE = 8


def numbered(count):
    """A source whose image i has the label i and pixels that tell it, too."""
    pixels = np.arange(count)[:, None, None, None] + np.zeros((1, 2, 2, 1), int)
    names = tuple(map(str, range(count)))
    return arrays.Arrays("numbered", pixels.astype(np.uint8), np.arange(count), names)


def same(image, rng):
    return image


def noise(image, rng):
    """Nothing but the augmentation's random numbers."""
    return rng.integers(0, 256, (2, 2, 3), np.uint8)


def train(source, transform=same, *, num_steps, options=(), **changes):
    """Returns the training batches of 4 images, with these keys of `config.loader`."""
    how = {"batch_size": 4, "seed": 0, "start_step": 0, "num_steps": num_steps} | changes
    options = dataclasses.replace(loader.PLAIN, **dict(options))
    return loader.train_batches(source, transform, **how, options=options)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of 14 real JPEG files in two classes, of different sizes."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(14):
        path = root / "train" / "ab"[i % 2] / f"{i:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (20 + i, 30 - i, 3), np.uint8)
        Image.fromarray(pixels).save(path)
    return root


def open_photos(root):
    config = base.get_config()
    config.data.update(source="folder", root=str(root))
    return sources.open(**config.data).train


def crop(train):
    config = base.get_config()
    image = ops.Image(**dict(config.image) | {"size": SIZE, "eval_resize": 10})
    return ops.training(**config.crop, image=image) if train else image.transform


def assert_equal(ours, theirs):
    ours, theirs = list(ours), list(theirs)
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs):
        assert a.keys() == b.keys()
        for key in a:
            assert a[key].dtype == b[key].dtype
            assert np.array_equal(a[key], b[key]), key


# -- order and augmentation ------------------------------------------------------------------------


def test_an_epoch_has_no_image_twice_and_each_its_own_order():
    batches = list(train(numbered(14), num_steps=12))
    assert len(batches) == 12
    for batch in batches:
        assert batch.keys() == {"image", "label"}
        assert (batch["image"].dtype, batch["label"].dtype) == (np.uint8, np.int32)
        assert np.array_equal(
            batch["image"], batch["label"][:, None, None, None] + np.zeros((2, 2, 1))
        )
    epochs = np.stack([b["label"] for b in batches]).reshape(4, 12)  # 3 batches of 4 in each
    assert all(len(set(epoch)) == 12 for epoch in epochs.tolist())
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 4
    assert set(epochs.ravel().tolist()) == set(range(14))  # the two left out differ
    other = np.stack([b["label"] for b in train(numbered(14), num_steps=3, seed=1)])
    assert not np.array_equal(other.ravel(), epochs[0])


def test_augmentation_is_philox_of_seed_and_example_number():
    batches = train(numbered(9), noise, num_steps=5, start_step=1, seed=11)
    for step, batch in enumerate(batches, start=1):
        for row in range(4):
            rng = np.random.Generator(np.random.Philox(key=[11, 4 * step + row]))
            assert np.array_equal(batch["image"][row], noise(None, rng))


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_global_batch(photos, processes):
    source, transform = open_photos(photos), crop(train=True)
    whole = list(train(source, transform, num_steps=6))
    parts = []
    for rows in np.split(np.arange(4), processes):
        parts.append(list(train(source, transform, num_steps=6, rows=rows)))
        assert parts[-1][0]["image"].shape == (4 // processes, SIZE, SIZE, 3)
    joined = [{k: np.concatenate([p[k] for p in step]) for k in step[0]} for step in zip(*parts)]
    assert_equal(joined, whole)
    backwards = [{k: v[::-1] for k, v in b.items()} for b in whole]
    assert_equal(train(source, transform, num_steps=6, rows=np.array([3, 2, 1, 0])), backwards)


@pytest.mark.parametrize(
    "options", [{"threads": 1, "prefetch": 1}, {"threads": 5}, {"workers": 2, "threads": 2}]
)
def test_threads_and_workers_make_the_same_batches(photos, options):
    source, transform = open_photos(photos), crop(train=True)
    expected = list(train(source, transform, num_steps=8, options={"threads": 1}))
    with train(source, transform, num_steps=8, options=options) as batches:
        assert_equal(batches, expected)
    with train(source, transform, num_steps=8, start_step=5, options=options) as batches:
        assert_equal(batches, expected[5:])


@pytest.mark.parametrize("options", [{"threads": 2}, {"workers": 1}])
def test_images_are_what_runs_in_parallel(options):
    """Not parts of each in OpenCV."""
    cv2.setNumThreads(2)
    with train(numbered(8), count_threads, num_steps=2, options=options) as batches:
        assert (next(batches)["image"] == 1).all()


def test_a_resumed_run_goes_on_where_it_was():
    expected = list(train(numbered(14), noise, num_steps=11))
    for step in (0, 1, 3, 10, 11):
        assert_equal(train(numbered(14), noise, num_steps=11, start_step=step), expected[step:])


# -- evaluation ------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3, 4, 9])
@pytest.mark.parametrize("processes", [1, 2])
def test_evaluation_sees_every_image_once(count, processes):
    seen, lengths = [], []
    for rows in np.split(np.arange(4), processes):
        batches = list(loader.eval_batches(numbered(count), same, batch_size=4, rows=rows))
        lengths.append(len(batches))
        for batch in batches:
            assert batch.keys() == {"image", "label", "mask"}
            assert batch["mask"].dtype == bool
            assert len(batch["mask"]) == len(batch["label"]) == len(batch["image"]) == len(rows)
            assert np.array_equal(batch["image"][:, 0, 0, 0], batch["label"])
            seen += batch["label"][batch["mask"]].tolist()
    assert sorted(seen) == list(range(count))
    assert set(lengths) == {-(-count // 4)}


def test_evaluation_with_workers_is_in_order(photos):
    source, transform = open_photos(photos), crop(train=False)
    expected = list(loader.eval_batches(source, transform, batch_size=4))
    labels = [b["label"][b["mask"]] for b in expected]
    assert np.array_equal(np.concatenate(labels), [0] * 7 + [1] * 7)
    options = dataclasses.replace(loader.PLAIN, workers=3, threads=1)
    with loader.eval_batches(source, transform, batch_size=4, options=options) as batches:
        assert_equal(batches, expected)


# -- bad input -------------------------------------------------------------------------------------


@pytest.fixture
def damaged(photos, tmp_path):
    """The folder again, its images 2 and 5 damaged."""
    shutil.copytree(photos, tmp_path / "damaged")
    for name in ("a/04.jpg", "a/10.jpg"):
        path = tmp_path / "damaged/train" / name
        path.write_bytes(path.read_bytes()[:-50])
    return tmp_path / "damaged"


@pytest.mark.parametrize("options", [{}, {"workers": 1}])
def test_a_bad_image_stops_the_run_by_its_name(damaged, options):
    source = open_photos(damaged)
    with pytest.raises(ValueError, match=r"a/(04|10)\.jpg: cannot decode") as caught:
        list(train(source, crop(train=True), num_steps=3, options=options))
    assert "\n" not in str(caught.value)
    assert not hasattr(caught.value, "__notes__")
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("options", [{"threads": 3}, {"workers": 2}])
def test_skipping_takes_the_next_image(damaged, options, caplog):
    source, transform = open_photos(damaged), crop(train=True)
    skip = {"on_bad_image": "skip", "max_bad_images": 2}
    with caplog.at_level(logging.WARNING):
        batches = train(source, transform, num_steps=9, **skip, options=options)
        ours = list(batches)
    assert sorted(batches.bad_images) == [2, 5]
    assert "a/04.jpg" in batches.bad_images[2]
    assert sorted(r.message for r in caplog.records) == [
        f"skipped: {batches.bad_images[i]}" for i in (2, 5)
    ]

    class Repaired:
        class_names = source.class_names

        def __len__(self):
            return len(source)

        def __getitem__(self, index):
            return source[index + 1 if index in (2, 5) else index]

    assert_equal(ours, train(Repaired(), transform, num_steps=9))


def test_a_bad_image_does_not_count_in_evaluation(damaged):
    source = open_photos(damaged)
    batches = loader.eval_batches(
        source, crop(train=False), batch_size=4, on_bad_image="skip", max_bad_images=2
    )
    masks = np.concatenate([b["mask"] for b in batches])
    assert np.flatnonzero(~masks).tolist() == [2, 5, 14, 15]  # damaged, damaged, filled up
    assert len(batches.bad_images) == 2


def test_bad_images_of_all_processes_count_in_evaluation(damaged, monkeypatch):
    """2 here, and as many in another process: all refuse alike."""
    source = open_photos(damaged)
    options = {"on_bad_image": "skip", "max_bad_images": 3}
    feed = types.SimpleNamespace(
        source=source,
        put=lambda batch: batch,
        eval_batches=lambda n: loader.eval_batches(
            source, crop(train=False), batch_size=n, **options
        ),
    )
    step = lambda variables, batch: {"loss": 0.0, "count": batch["mask"].sum()}
    [result] = evaluate.evaluate(step, feed, {}, batch_size=4)
    assert result["images"] == 12
    monkeypatch.setattr(evaluate.files, "union", lambda numbers: sorted({*numbers, 8, 9}))
    with pytest.raises(ValueError, match=r"^4 images cannot be read, .*max_bad_images = 3"):
        evaluate.evaluate(step, feed, {}, batch_size=4)


def test_too_many_bad_images(damaged):
    source = open_photos(damaged)
    skip = {"on_bad_image": "skip", "max_bad_images": 1}
    with pytest.raises(ValueError, match=r"^2 images .*max_bad_images = 1; .*\.jpg: cannot decode"):
        list(train(source, crop(train=True), num_steps=9, **skip))
    for i in range(14):
        (damaged / "train" / "ab"[i % 2] / f"{i:02d}.jpg").unlink()
    with pytest.raises(ValueError, match=r"max_bad_images = 1; .*: no such file"):
        list(train(source, crop(train=True), num_steps=1, **skip))
    skip["max_bad_images"] = 100
    with pytest.raises(ValueError, match=r"none of the 14 images can be read: .*no such file"):
        list(train(source, crop(train=True), num_steps=1, **skip))


def test_fewer_images_than_a_batch():
    with pytest.raises(ValueError, match=r"3 training images .* config.batch_size = 4"):
        train(numbered(3), num_steps=1)
    with pytest.raises(ValueError, match="no evaluation images"):
        loader.eval_batches(numbered(0), same, batch_size=4)


@pytest.mark.parametrize("key", ["threads", "workers", "prefetch"])
@pytest.mark.parametrize("value", [-1, 10**6])
def test_counts_that_cannot_be_meant(key, value):
    with pytest.raises(ValueError, match=f"config.loader.{key} = {value}: write a number from"):
        train(numbered(4), num_steps=1, options={key: value})


def test_no_batch_in_advance():
    with pytest.raises(ValueError, match=r"config.loader.prefetch = 0: .* from 1 to"):
        train(numbered(4), num_steps=1, options={"prefetch": 0})


def test_an_image_smaller_than_the_crop_is_named(photos):
    image = dict(base.get_config().image) | {"size": 25, "eval_resize": 0}
    transform = ops.Image(**image).transform
    with pytest.raises(ValueError, match=r"00\.jpg: an image of 30x20 pixels is smaller"):
        list(loader.eval_batches(open_photos(photos), transform, batch_size=4))


# -- threads and processes end ---------------------------------------------------------------------


def test_close_stops_threads():
    before = threading.active_count()
    batches = train(
        numbered(8), partial(slow, seconds=0.01), num_steps=10**6, options={"threads": 4}
    )
    next(batches)
    assert threading.active_count() > before
    batches.close()
    assert list(batches) == []
    deadline = time.monotonic() + 20
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_workers_outlive_signals_but_not_close():
    batches = train(
        numbered(8), partial(slow, seconds=0.001), num_steps=10**6, options={"workers": 2}
    )
    first = list(itertools.islice(batches, 2))
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    for worker in workers:
        os.kill(worker.pid, signal.SIGINT)
        os.kill(worker.pid, signal.SIGTERM)
    more = list(itertools.islice(batches, 40))  # more than lie ready
    assert all(worker.is_alive() for worker in workers)
    assert type(more[0]["image"]) is np.ndarray
    assert_equal(first + more, train(numbered(8), num_steps=42))
    batches.close()
    assert not any(worker.is_alive() for worker in workers)
    assert list(batches) == []


@pytest.mark.ci
def test_workers_take_over_from_killed_ones(caplog):
    transform = partial(slow, seconds=0.001)
    batches = train(numbered(8), transform, num_steps=60, options={"workers": 2})
    ours = list(itertools.islice(batches, 3))
    workers = multiprocessing.active_children()
    os.kill(workers[0].pid, signal.SIGKILL)
    with caplog.at_level(logging.WARNING):
        ours += batches
    assert_equal(ours, train(numbered(8), num_steps=60))
    (warning,) = (r.message for r in caplog.records)
    assert re.search(r"data has died \(exit code -9\).*; starting all again at step \d+$", warning)
    assert not any(worker.is_alive() for worker in workers)
    assert multiprocessing.active_children() == []


@pytest.mark.ci
def test_workers_that_die_again_and_again_stop_the_run(caplog):
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(ValueError, match=r"has died \(exit code -9\).* 4 times at step 5: lower"),
    ):
        list(train(numbered(8), kill_myself, num_steps=60, start_step=5, options={"workers": 1}))
    assert len(caplog.records) == 3
    assert multiprocessing.active_children() == []


ORPHANS = """
if __name__ == "__main__":
    import multiprocessing, time
    from functools import partial
    import numpy as np
    from jaxcls.data import arrays, loader
    from transforms import slow

    source = arrays.Arrays("some", np.zeros((8, 2, 2, 1), np.uint8), np.zeros(8, int), ("a",))
    batches = loader.train_batches(
        source,
        partial(slow, seconds=0.001),
        batch_size=4,
        seed=0,
        start_step=0,
        num_steps=10**6,
        options=loader.Options(threads=0, workers=2, prefetch=4),
    )
    next(batches), next(batches)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    time.sleep(60)
"""


def running(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"  # a zombie waits for whoever adopted it


def test_workers_need_no_jax():
    """Nor grain: they start in a second and take a tenth of the memory."""
    code = "import sys, jaxcls.data.batches; print({'jax', 'grain', 'orbax'} & set(sys.modules))"
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    assert subprocess.check_output([sys.executable, "-c", code], env=env, text=True) == "set()\n"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_kill_9_leaves_no_worker_and_no_shared_memory(tmp_path):
    script = tmp_path / "orphans.py"
    script.write_text(ORPHANS)
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": path}
    ) as parent:
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(workers) == 2
        assert all(running(pid) for pid in workers)
        for pid in (parent.pid, *workers):  # so that nothing is left of a group killed as a whole
            assert "/dev/shm" not in Path(f"/proc/{pid}/maps").read_text()
        parent.kill()
        parent.wait()
        assert parent.stdout.read() == b""  # would wait for workers that hold the pipe
    deadline = time.monotonic() + 30
    while any(running(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(running(pid) for pid in workers)
