"""Checkpoints: what was saved comes back bit for bit, or the user is told why not.

`python tests/test_checkpoint.py` writes tests/golden/ckpt again: only after a wanted change of
format, which makes the checkpoints of earlier runs unreadable.
"""

import base64
import contextlib
import errno
import functools
import hashlib
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import flax.struct
import fsspec
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem
from jax.sharding import NamedSharding, PartitionSpec

from jaxcls import checkpoint, checksums, files, trees, weights

ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "golden" / "ckpt"
NOTHING = {"best": None, "last": None}  # no evaluation yet
TX = optax.chain(optax.trace(0.9), optax.scale_by_schedule(lambda count: -0.1), optax.identity())


@flax.struct.dataclass
class State:
    step: Any
    params: Any
    batch_stats: Any
    opt_state: Any
    loss_scale: Any
    ema: Any
    rng: Any


def make_state(step=7, *, classes=4, width=8, ema=True, dtype=jnp.float32):
    """Returns a state whose every value follows from `step` and the number of the tensor."""

    def fill(number, leaf):
        values = np.arange(leaf.size, dtype=np.float64).reshape(leaf.shape)
        return jnp.asarray(np.sin(values + 10 * number + step), leaf.dtype)

    params = {
        "stem": {"conv1": {"kernel": jnp.zeros((3, 3, 2, width), dtype)}},
        "stage1": {"bn1": {"scale": jnp.zeros(width), "bias": jnp.zeros(width)}},
        "head": {"fc": {"kernel": jnp.zeros((width, classes)), "bias": jnp.zeros(classes)}},
    }
    stats = {"stage1": {"bn1": {"mean": jnp.zeros(width), "var": jnp.zeros(width)}}}
    state = State(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=stats,
        opt_state=TX.init(params),
        loss_scale={"scale": jnp.zeros(()), "good": jnp.zeros((), jnp.int32)},
        ema={"params": params, "batch_stats": stats} if ema else None,
        rng=jnp.zeros(2, jnp.uint32),
    )
    leaves, structure = jax.tree.flatten(state)
    state = structure.unflatten([fill(i, leaf) for i, leaf in enumerate(leaves)])
    rng = jax.random.key_data(jax.random.key(step))
    return state.replace(step=jnp.int32(step), rng=rng)


def abstract(state, sharding=lambda leaf: leaf.sharding):
    def spec(x):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding(x))

    return jax.tree.map(spec, state)


def assert_same(a, b):
    """The same structure, dtypes and bits."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for path, x, y in zip(trees.paths(a), jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype, path
        assert x.shape == y.shape, path
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes(), path


@contextlib.contextmanager
def opened(directory, keep=3, best="top1"):
    """Yields (checkpoints, the lines that it reports)."""
    lines = []
    checkpoints = checkpoint.Checkpoints(directory, keep=keep, best=best, report=lines.append)
    try:
        yield checkpoints, lines
    finally:
        checkpoints.close()


def save(directory, *steps, **changes):
    with opened(directory) as (checkpoints, _):
        for step in steps:
            meta = {"step": step, "class_names": ["a", "b", "c", "d"]}
            checkpoints.save(step, make_state(step, **changes), meta)


def restore(directory, target=None):
    """Returns (restored, lines)."""
    with opened(directory) as (checkpoints, lines):
        return checkpoints.restore(abstract(make_state(0) if target is None else target)), lines


def steps_in(directory):
    return sorted(int(p.name) for p in Path(directory).iterdir() if p.name.isdigit())


def array_file(step_directory):
    """The file of orbax's that holds the values of arrays as small as these."""
    (file,) = step_directory.glob("state/d/*")
    return file


# -- Saving and restoring ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes", [{}, {"ema": False}, {"dtype": jnp.bfloat16}, {"dtype": jnp.float16}]
)
def test_a_state_comes_back_bit_for_bit(tmp_path, changes):
    state = make_state(7, **changes)
    meta = {"position": 7, "class_names": ["cat", "dog"], "window": {"loss": 0.1}, "none": None}
    with opened(tmp_path) as (checkpoints, _):
        assert checkpoints.restore(abstract(state)) is None
        assert checkpoints.latest_step() is None
        assert checkpoints.save(7, state, meta)
        assert checkpoints.latest_step() == 7
    restored, lines = restore(tmp_path, state)
    assert_same(restored[0], state)
    assert restored[1] == meta | NOTHING
    assert lines == []


def test_a_state_with_typed_keys_comes_back(tmp_path):
    state = {"rng": jax.random.key(3), "x": jnp.arange(3.0)}
    with opened(tmp_path) as (checkpoints, _):
        checkpoints.save(1, state, {})
        checkpoints.wait()
        (restored, _) = checkpoints.restore(abstract(state))
    assert restored["rng"].dtype == state["rng"].dtype
    np.testing.assert_array_equal(
        jax.random.normal(restored["rng"], (4,)), jax.random.normal(state["rng"], (4,))
    )


def test_what_is_saved_survives_the_donation_of_its_buffers(tmp_path):
    step = jax.jit(lambda s: jax.tree.map(lambda x: x * 2, s), donate_argnums=0)
    state = {"x": jnp.ones((1024, 1024)), "y": jnp.ones((512, 512))}
    with opened(tmp_path) as (checkpoints, _):
        checkpoints.save(1, state, {})
        for _ in range(3):
            state = step(state)
        checkpoints.wait()
        restored, _ = checkpoints.restore(abstract(state))
    assert all((x == 1).all() for x in jax.tree.leaves(restored))
    assert all((x == 8).all() for x in jax.tree.leaves(state))


def test_from_1_to_4_devices_and_back(tmp_path):
    def sharding(devices):
        mesh = jax.make_mesh(
            (devices,),
            ("fsdp",),
            axis_types=(jax.sharding.AxisType.Auto,),
            devices=jax.devices()[:devices],
        )

        def of(leaf):
            split = leaf.ndim > 0 and leaf.shape[-1] % 4 == 0
            spec = PartitionSpec(*[None] * (leaf.ndim - 1), "fsdp") if split else PartitionSpec()
            return NamedSharding(mesh, spec)

        return of

    original = make_state(1)
    state = jax.device_put(original, jax.tree.map(sharding(1), original))
    for step, devices in ((1, 4), (2, 1), (3, 4)):
        with opened(tmp_path) as (checkpoints, _):
            checkpoints.save(step, state, {})
            checkpoints.wait()
            state, _ = checkpoints.restore(abstract(original, sharding(devices)))
        assert state.params["head"]["fc"]["kernel"].sharding.num_devices == devices
        assert len({s.data.shape for s in state.params["head"]["fc"]["kernel"].addressable_shards})
        assert_same(state, original)


def test_keeps_the_newest_and_the_best(tmp_path):
    top1 = {1: None, 2: 0.9, 3: 0.3, 4: 0.1, 5: None, 6: 0.4}
    with opened(tmp_path, keep=2) as (checkpoints, _):
        for step, value in top1.items():
            checkpoints.save(step, make_state(step), {})
            if value is not None:
                checkpoints.evaluated(step, {"loss": 1.0, "top1": value})
        assert checkpoints.best == {"step": 2, "loss": 1.0, "top1": 0.9}
        assert checkpoints.last == {"step": 6, "loss": 1.0, "top1": 0.4}
        assert checkpoints.latest_step() == 6
    assert steps_in(tmp_path) == [2, 5, 6]
    with opened(tmp_path, keep=2) as (checkpoints, _):  # the evaluations were stored
        checkpoints.restore(abstract(make_state(0)))
        assert checkpoints.best == {"step": 2, "loss": 1.0, "top1": 0.9}
        assert checkpoints.last == {"step": 6, "loss": 1.0, "top1": 0.4}
        checkpoints.save(7, make_state(7), {})
        checkpoints.evaluated(7, {"loss": 1.0, "top1": 0.95})
        checkpoints.save(8, make_state(8), {})
        checkpoints.wait()
        assert checkpoints.best["step"] == 7
    assert steps_in(tmp_path) == [7, 8]


def test_the_best_loss_is_the_least(tmp_path):
    with opened(tmp_path, keep=1, best="loss") as (checkpoints, _):
        for step, loss in ((1, 0.5), (2, 0.2), (3, 0.4), (4, 0.3)):
            checkpoints.save(step, make_state(step), {})
            checkpoints.evaluated(step, {"loss": loss})
    assert steps_in(tmp_path) == [2, 4]


def test_resuming_with_another_best_metric(tmp_path):
    with opened(tmp_path, keep=1) as (checkpoints, _):
        for step, top1, loss in ((1, 0.9, 0.5), (2, 0.8, 0.4)):
            checkpoints.save(step, make_state(step), {})
            checkpoints.evaluated(step, {"top1": top1, "loss": loss})
        assert checkpoints.best["step"] == 1
    with opened(tmp_path, keep=1, best="loss") as (checkpoints, _):
        checkpoints.restore(abstract(make_state(0)))
        assert checkpoints.best["step"] == 2
        checkpoints.save(3, make_state(3), {})
        checkpoints.evaluated(3, {"top1": 0.95, "loss": 0.6})
    assert steps_in(tmp_path) == [2, 3]


def test_saving_a_step_again_and_an_older_one(tmp_path):
    with opened(tmp_path) as (checkpoints, _):
        assert checkpoints.save(5, make_state(5), {})
        assert not checkpoints.save(5, make_state(5), {})
        with pytest.raises(AssertionError, match="step 4 is below the checkpoint 5"):
            checkpoints.save(4, make_state(4), {})


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match=r"config.checkpoint.keep = 0"):
        checkpoint.Checkpoints(tmp_path, keep=0, best="top1")
    with opened(tmp_path) as (checkpoints, _):
        with pytest.raises(TypeError, match="JSON"):
            checkpoints.save(1, make_state(1), {"x": object()})
        with pytest.raises(ValueError, match="JSON"):
            checkpoints.save(1, make_state(1), {"x": float("nan")})


# -- Damage --------------------------------------------------------------------------------------


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES = {
    "a flipped bit in an array": lambda d: flip(array_file(d)),
    "a truncated array": lambda d: truncate(array_file(d)),
    "a deleted array": lambda d: array_file(d).unlink(),
    "a truncated manifest": lambda d: truncate(d / "state/manifest.ocdbt"),
    "a flipped bit in the meta data": lambda d: flip(d / "meta/metadata"),
    "a flipped bit in orbax's metadata": lambda d: flip(d / "state/_METADATA"),
    "truncated checksums": lambda d: truncate(d / checksums.CHECKSUMS),
    "checksums of nothing": lambda d: (d / checksums.CHECKSUMS).write_text("{}"),
    "checksums that are a list": lambda d: (d / checksums.CHECKSUMS).write_text("[]"),
    "checksums that are null": lambda d: (d / checksums.CHECKSUMS).write_text("null"),
    "checksums that are deep": lambda d: (d / checksums.CHECKSUMS).write_text("[" * 100_000),
    "checksums that are a folder": lambda d: (
        (d / checksums.CHECKSUMS).unlink(),
        (d / checksums.CHECKSUMS).mkdir(),
    ),
    "checksums that lack a file": lambda d: (d / checksums.CHECKSUMS).write_text(
        json.dumps(dict(list(json.loads((d / checksums.CHECKSUMS).read_text()).items())[:-1]))
    ),
    "a folder in place of a file": lambda d: (
        (d / "meta/metadata").unlink(),
        (d / "meta/metadata").mkdir(),
    ),
    "unverified meta data of another kind": lambda d: (
        (d / checksums.CHECKSUMS).unlink(),
        (d / "meta/metadata").write_text("[]"),
    ),
    "a deleted state": lambda d: shutil.rmtree(d / "state"),
    "unverified and a deleted array": lambda d: (
        (d / checksums.CHECKSUMS).unlink(),
        array_file(d).unlink(),
    ),
    "unverified and a deleted state": lambda d: (
        (d / checksums.CHECKSUMS).unlink(),
        shutil.rmtree(d / "state"),
    ),
    "an empty directory": lambda d: (shutil.rmtree(d), d.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_set_aside(tmp_path, damage):
    with opened(tmp_path) as (checkpoints, _):
        for step in (1, 2):
            checkpoints.save(step, make_state(step), {"step": step})
    DAMAGES[damage](tmp_path / "2")
    with opened(tmp_path) as (checkpoints, lines):
        state, meta = checkpoints.restore(abstract(make_state(0)))
        assert_same(state, make_state(1))
        assert meta["step"] == 1
        (line,) = [line for line in lines if "unverified" not in line]
        assert str(tmp_path / "2") in line
        assert "is damaged (" in line
        assert "set aside as damaged-2" in line
        assert "\n" not in line
        assert steps_in(tmp_path) == [1]
        assert (tmp_path / "damaged-2").is_dir()
        # The run goes on from step 1 and saves step 2 again.
        assert checkpoints.latest_step() == 1
        assert checkpoints.save(2, make_state(2), {"step": 2})
    restored, lines = restore(tmp_path)
    assert_same(restored[0], make_state(2))
    assert lines == []


@pytest.mark.parametrize("damage", [truncate, Path.unlink])
def test_orbax_record_of_a_checkpoint_holds_nothing_that_is_needed(tmp_path, damage):
    save(tmp_path, 1)
    damage(tmp_path / "1" / checksums.STAMPED)  # the one file without a checksum
    restored, lines = restore(tmp_path)
    assert_same(restored[0], make_state(1))
    assert lines == []


def test_all_damaged(tmp_path):
    """Nothing is touched, and nothing starts over: neither at once nor the next time."""
    save(tmp_path, 1, 2)
    flip(array_file(tmp_path / "1"))
    flip(array_file(tmp_path / "2"))
    for _ in range(2):
        with pytest.raises(ValueError, match="every checkpoint of this run is damaged") as e:
            restore(tmp_path)
        assert f"{tmp_path / '2'} (state/d/" in str(e.value)
        assert f"choose another --workdir, or remove {tmp_path}" in str(e.value)
        assert steps_in(tmp_path) == [1, 2]


def test_the_last_intact_one_is_removed(tmp_path):
    save(tmp_path, 1, 2)
    flip(array_file(tmp_path / "2"))
    restore(tmp_path)
    shutil.rmtree(tmp_path / "1")
    with pytest.raises(ValueError, match=f"damaged: {tmp_path / 'damaged-2'}. To start over"):
        restore(tmp_path)


def test_the_same_step_damaged_twice(tmp_path):
    save(tmp_path, 1)
    for _ in range(2):
        save(tmp_path, 2)
        flip(array_file(tmp_path / "2"))
        assert_same(restore(tmp_path)[0][0], make_state(1))
    assert len(list(tmp_path.glob("damaged-2*"))) == 2


def test_without_checksums_a_checkpoint_is_used_and_reported(tmp_path):
    save(tmp_path, 1)
    (tmp_path / "1" / checksums.CHECKSUMS).unlink()
    restored, lines = restore(tmp_path)
    assert_same(restored[0], make_state(1))
    (line,) = lines
    assert "has no checksums.json" in line


def test_checksums_are_of_every_file_and_go_with_their_step(tmp_path):
    save(tmp_path, 1)
    listed = json.loads((tmp_path / "1" / checksums.CHECKSUMS).read_text())
    files = [p for p in (tmp_path / "1").rglob("*") if p.is_file()]
    names = {p.relative_to(tmp_path / "1").as_posix() for p in files}
    unlisted = {checksums.CHECKSUMS, checksums.STAMPED, "commit_success.txt"}
    assert names - listed.keys() <= unlisted
    for name, digest in listed.items():
        assert hashlib.sha256((tmp_path / "1" / name).read_bytes()).hexdigest() == digest
    save(tmp_path, 2, 3, 4)
    assert steps_in(tmp_path) == [2, 3, 4]
    assert {p.name for p in tmp_path.iterdir()} == {"2", "3", "4"}


def test_a_checkpoint_is_durable_before_it_has_its_name(tmp_path, monkeypatch):
    """So a loss of power leaves it whole or not at all."""
    synced, sync = set(), files.sync

    def recorded(path):
        synced.add((os.stat(path).st_ino, (tmp_path / "1").exists()))
        sync(path)

    monkeypatch.setattr(files, "sync", recorded)
    save(tmp_path, 1)
    written = [tmp_path / "1", *(tmp_path / "1").rglob("*")]
    assert checksums.CHECKSUMS in {path.name for path in written}
    late = {p.name for p in written if (p.stat().st_ino, False) not in synced}
    assert late <= {checksums.STAMPED, "commit_success.txt"}  # of which nothing is needed
    assert (tmp_path.stat().st_ino, True) in synced  # the name


class Store(MemoryFileSystem):
    """An object store, which keeps an MD5 of each object."""

    store, pseudo_dirs, reads = {}, [""], []

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path).replace("gs:/", "")

    def find(self, path, **kwargs):
        digests = {n: hashlib.md5(f.getvalue()).digest() for n, f in self.store.items()}
        return {n: {"md5Hash": base64.b64encode(digest).decode()} for n, digest in digests.items()}

    def _open(self, path, mode="rb", **kwargs):
        self.reads += [path.rpartition("/")[2]] * (mode == "rb")
        return super()._open(path, mode, **kwargs)


def test_of_an_object_store_nothing_is_read_for_checksums(tmp_path, monkeypatch):
    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda url: (Store(), Store._strip_protocol(url)))
    monkeypatch.setattr(type(epath.Path("gs://b")._backend), "fs", lambda self, path: Store())
    remote, lines = epath.Path("gs://bucket/run/1"), []
    for name in ("state/d/0", "meta/metadata"):
        (remote / name).write_text(f"what {name} has")
    checksums.add(remote.parent, "1")
    assert checksums.verify(remote, lines.append)
    assert Store.reads == [checksums.CHECKSUMS]
    copy = epath.Path(tmp_path / "1")
    for name in ("state/d/0", "meta/metadata", checksums.CHECKSUMS):  # as gcloud storage cp -r
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((remote / name).read_bytes())
    assert checksums.verify(copy, lines.append)
    for path in (remote, copy):
        (path / "state/d/0").write_text("what else it has")
        with pytest.raises(checksums.DamageError, match="state/d/0 is not what was written"):
            checksums.verify(path, lines.append)


# -- Storage that fails --------------------------------------------------------------------------


@pytest.fixture
def failing(monkeypatch):
    """Returns fail(f, times, error) -> f that raises the error so many times first; no waiting."""
    monkeypatch.setattr(files, "DELAYS", (0.0, 0.0, 0.0))

    def fail(f, times, error):
        left = [times]

        def failing(*args, **kwargs):
            left[0] -= 1
            if left[0] >= 0:
                raise error
            return f(*args, **kwargs)

        return failing

    return fail


PASSING = (errno.ESTALE, errno.EIO, errno.ETIMEDOUT, errno.EMFILE)


@pytest.mark.parametrize("number", [*PASSING, errno.EACCES])
def test_storage_that_fails_is_no_damage(tmp_path, monkeypatch, failing, number):
    save(tmp_path, 1, 2)
    error = OSError(number, os.strerror(number))
    digest = checksums._digest
    monkeypatch.setattr(checksums, "_digest", failing(digest, 2, error))
    if number in PASSING:
        restored, lines = restore(tmp_path)
        assert_same(restored[0], make_state(2))
        assert len(lines) == 2
        assert all(f"{tmp_path / '2'}" in line and "trying again" in line for line in lines)
    for read in (restore, weights.load):
        monkeypatch.setattr(checksums, "_digest", failing(digest, 1000, error))
        with pytest.raises(files.StorageError) as e:
            read(tmp_path)
        assert f"{tmp_path / '2'}/" in str(e.value)
        assert os.strerror(number) in str(e.value)
    assert steps_in(tmp_path) == [1, 2]
    assert not list(tmp_path.glob("damaged*"))


def test_a_folder_that_cannot_be_listed_is_not_empty(tmp_path, monkeypatch, failing):
    save(tmp_path, 1)
    error = OSError(errno.ESTALE, os.strerror(errno.ESTALE))
    stat = os.stat

    def lost(path, **options):  # what exists() takes for no
        if str(path).startswith(str(tmp_path)):
            raise error
        return stat(path, **options)

    monkeypatch.setattr(os, "stat", lost)
    monkeypatch.setattr(os, "listdir", failing(os.listdir, 1000, error))
    with pytest.raises(files.StorageError, match=f"{tmp_path} cannot be read: Stale"):
        checkpoint.Checkpoints(tmp_path, keep=1, best="top1")
    with pytest.raises(files.StorageError, match=f"{tmp_path} cannot be read: Stale"):
        weights.load(tmp_path, report=lambda line: None)


@pytest.mark.parametrize("verified", [True, False])
def test_tensorstore_tells_of_the_system(tmp_path, monkeypatch, failing, verified):
    """Also where there are no checksums, so that other errors would be damage."""
    save(tmp_path, 1)
    if not verified:
        (tmp_path / "1" / checksums.CHECKSUMS).unlink()
    message = "INTERNAL: Error reading x: Failed to open: Input/output error [os_error_code='EIO']"
    with opened(tmp_path) as (checkpoints, _):
        manager = checkpoints._manager
        original = manager.restore
        monkeypatch.setattr(manager, "restore", failing(original, 2, ValueError(message)))
        assert_same(checkpoints.restore(abstract(make_state(0)))[0], make_state(1))
        monkeypatch.setattr(manager, "restore", failing(original, 1000, ValueError(message)))
        with pytest.raises(files.StorageError, match="1 cannot be read: Input/output error"):
            checkpoints.restore(abstract(make_state(0)))
    assert steps_in(tmp_path) == [1]


# -- Evaluations ---------------------------------------------------------------------------------


def test_a_damaged_evaluation_is_made_again_and_the_best_one_is_known(tmp_path):
    with opened(tmp_path, keep=1) as (checkpoints, _):
        for step, value in ((1, 0.9), (2, 0.5), (3, 0.7)):
            checkpoints.save(step, make_state(step), {})
            checkpoints.evaluated(step, {"top1": value})
    for step in (1, 3):
        flip(tmp_path / str(step) / checksums.EVALUATION)
    with opened(tmp_path, keep=1) as (checkpoints, lines):
        checkpoints.restore(abstract(make_state(0)))
        assert checkpoints.best == {"step": 1, "top1": 0.9}
        assert checkpoints.last == {"step": 2, "top1": 0.5}  # 3 has to be evaluated again
        checkpoints.evaluated(3, {"top1": 0.7})
        checkpoints.save(4, make_state(4), {})
    assert lines == []
    assert steps_in(tmp_path) == [1, 4]


def test_a_folder_in_the_place_of_an_evaluation_is_damage(tmp_path):
    with opened(tmp_path) as (checkpoints, _):
        for step in (1, 2):
            checkpoints.save(step, make_state(step), {})
            checkpoints.evaluated(step, {"top1": 0.5})
    (tmp_path / "2" / checksums.EVALUATION).unlink()
    (tmp_path / "2" / checksums.EVALUATION).mkdir()
    with opened(tmp_path) as (checkpoints, lines):
        assert_same(checkpoints.restore(abstract(make_state(0)))[0], make_state(1))
        checkpoints.save(2, make_state(2), {})
        checkpoints.evaluated(2, {"top1": 0.5})
    (line,) = lines
    assert f"{tmp_path / '2'} is damaged" in line


def test_kill_9_while_an_evaluation_is_added(tmp_path, monkeypatch):
    def killed(*args):
        raise KeyboardInterrupt

    with opened(tmp_path) as (checkpoints, _):
        checkpoints.save(1, make_state(1), {})
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", killed)
            with pytest.raises(KeyboardInterrupt):
                checkpoints.evaluated(1, {"top1": 0.5})
    assert (tmp_path / "1" / "evaluation.json.tmp").exists()
    with opened(tmp_path) as (checkpoints, lines):
        assert_same(checkpoints.restore(abstract(make_state(0)))[0], make_state(1))
        assert checkpoints.last is None
        checkpoints.evaluated(1, {"top1": 0.5})
    assert lines == []
    assert not (tmp_path / "1" / "evaluation.json.tmp").exists()


def test_a_best_checkpoint_that_is_damaged_is_not_the_best(tmp_path):
    with opened(tmp_path, keep=2) as (checkpoints, _):
        for step, value in ((1, 0.9), (2, 0.5), (3, 0.4)):
            checkpoints.save(step, make_state(step), {})
            checkpoints.evaluated(step, {"top1": value})
    flip(array_file(tmp_path / "1"))
    with opened(tmp_path, keep=2) as (checkpoints, lines):
        assert_same(checkpoints.restore(abstract(make_state(0)))[0], make_state(3))
        assert checkpoints.best == {"step": 2, "top1": 0.5}
        assert checkpoints.last == {"step": 3, "top1": 0.4}
    (line,) = lines
    assert f"{tmp_path / '1'} is damaged" in line
    assert steps_in(tmp_path) == [2, 3]


def test_the_best_evaluation_is_one_whose_checkpoint_is_there(tmp_path):
    """The one before was removed for a better one, which then was damaged."""
    with opened(tmp_path, keep=2) as (checkpoints, _):
        for step, value in ((1, 0.5), (2, 0.4), (3, 0.3), (4, 0.8), (5, 0.2)):
            checkpoints.save(step, make_state(step), {})
            checkpoints.evaluated(step, {"top1": value})
    assert steps_in(tmp_path) == [4, 5]
    flip(array_file(tmp_path / "5"))
    shutil.rmtree(tmp_path / "4")
    save(tmp_path / "other", 4)
    (tmp_path / "other" / "4").rename(tmp_path / "4")
    with opened(tmp_path) as (checkpoints, _):
        checkpoints.restore(abstract(make_state(0)))
        assert checkpoints.best is None


@pytest.mark.parametrize("name", ["top1", "loss"])
def test_better(name):
    good, bad = {"step": 1, "top1": 0.5, "loss": 1.0}, {"step": 2, "top1": 0.4, "loss": 1.1}
    same = {**good, "step": 3}
    assert checkpoint.better(None, bad, name) is bad
    assert checkpoint.better(bad, good, name) is good
    assert checkpoint.better(good, bad, name) is good
    assert checkpoint.better(good, same, name) is same
    for nothing in (float("nan"), float("inf"), None):
        assert checkpoint.better(None, {name: nothing}, name) is None
        assert checkpoint.better(bad, {name: nothing}, name) is bad


# -- Another model -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "tensors"),
    [
        ({"classes": 5}, ["params/head/fc/kernel: float32[8,4] in the checkpoint, float32[8,5]"]),
        ({"dtype": jnp.bfloat16}, ["params/stem/conv1/kernel: float32[3,3,2,8] in the checkpoint"]),
        ({"ema": False}, ["ema/params/head/fc/bias: float32[4] in the checkpoint, nothing here"]),
        ({"width": 16}, ["opt_state/0/trace/", "; and "]),
    ],
)
def test_a_checkpoint_of_another_model_is_refused_and_left_alone(tmp_path, other, tensors):
    save(tmp_path, 1, 2)
    with pytest.raises(ValueError, match="of another model or configuration") as e:
        restore(tmp_path, make_state(0, **other))
    message = str(e.value)
    assert str(tmp_path / "2") in message
    assert "choose another --workdir" in message
    assert "\n" not in message
    assert all(tensor in message for tensor in tensors)
    assert steps_in(tmp_path) == [1, 2]
    assert_same(restore(tmp_path)[0][0], make_state(2))


def test_what_fails_on_verified_files_is_not_damage(tmp_path, monkeypatch):
    save(tmp_path, 1)
    with opened(tmp_path) as (checkpoints, lines):

        def short_of_memory(*args, **kwargs):
            raise ValueError("RESOURCE_EXHAUSTED: out of memory")

        monkeypatch.setattr(checkpoints._manager, "restore", short_of_memory)
        with pytest.raises(ValueError, match="RESOURCE_EXHAUSTED"):
            checkpoints.restore(abstract(make_state(0)))
    assert lines == []
    assert steps_in(tmp_path) == [1]


# -- Kills and full disks ------------------------------------------------------------------------


KILLED = """
import os, signal, sys
sys.path[:0] = [{root!r}, {tests!r}]
os.environ["JAX_PLATFORMS"] = "cpu"
from test_checkpoint import checkpoint, checksums, make_state

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

checkpoints = checkpoint.Checkpoints({directory!r}, keep=1, best="top1")
checkpoints.save(1, make_state(1), {{"step": 1}})
checkpoints.wait()
{patch}
checkpoints.save(2, make_state(2), {{"step": 2}})
checkpoints.wait()
sys.exit("was not killed")
"""


@pytest.mark.ci
@pytest.mark.parametrize(
    ("patch", "survivor"),
    [
        # while orbax writes the arrays
        ("import orbax.checkpoint as ocp; ocp.JsonCheckpointHandler.finalize = die; "
         "ocp.StandardCheckpointHandler.finalize = die", 1),
        # everything is written but the checksums, then half of them
        ("checksums.add = die", 1),
        ("digest = checksums._digest; checksums._digest = lambda path: "
         "die() if 'manifest' in path.name else digest(path)", 1),
        # the checkpoint is complete, the one before is not deleted yet
        ("checkpoints._manager._checkpoint_deleter.delete_steps = die", 2),
    ],
)  # fmt: skip
def test_kill_9_in_the_middle_of_a_save(tmp_path, patch, survivor):
    code = textwrap.dedent(KILLED).format(
        root=str(ROOT), tests=str(ROOT / "tests"), directory=str(tmp_path), patch=patch
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    half_written = [p for p in tmp_path.iterdir() if not p.name.isdigit()]
    assert bool(half_written) == (survivor == 1)
    with opened(tmp_path, keep=1) as (checkpoints, lines):
        state, meta = checkpoints.restore(abstract(make_state(0)))
        assert_same(state, make_state(survivor))
        assert meta == {"step": survivor} | NOTHING
        assert lines == []
        checkpoints.save(survivor + 1, make_state(survivor + 1), {})
    assert {p.name for p in tmp_path.iterdir()} - {"1"} == {str(survivor + 1)}


@contextlib.contextmanager
def small_files(limit):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def noise(size):
    """Incompressible: orbax compresses."""
    return {"x": jnp.asarray(np.random.default_rng(0).normal(size=size), jnp.float32)}


def assert_failed_save_leaves_the_one_before(checkpoints, small, large, make_room, text):
    checkpoints.save(1, small, {"step": 1})
    checkpoints.wait()
    with make_room():
        checkpoints.save(2, large, {})
        with pytest.raises(files.SaveError, match="checkpoint of step 2 could not") as e:
            checkpoints.wait()
        assert text in str(e.value)
        assert "step 1 is intact" in str(e.value)
        assert "\n" not in str(e.value)
        assert checkpoints.latest_step() == 1
        assert {p.name for p in Path(checkpoints._directory).iterdir()} == {"1"}
        restored, meta = checkpoints.restore(abstract(small))
        assert_same(restored, small)
        assert meta == {"step": 1} | NOTHING


def test_a_save_that_cannot_be_written(tmp_path):
    with opened(tmp_path) as (checkpoints, lines):
        small, large = noise(1000), noise(200_000)
        assert_failed_save_leaves_the_one_before(
            checkpoints, small, large, functools.partial(small_files, 100_000), "too large"
        )
        checkpoints.save(2, small, {})  # the same run, or the next, can go on
    assert lines == []
    assert steps_in(tmp_path) == [1, 2]


def test_a_save_is_tried_again(tmp_path, monkeypatch, failing):
    error = OSError(errno.EIO, os.strerror(errno.EIO))
    add = checksums.add
    with opened(tmp_path) as (checkpoints, lines):
        monkeypatch.setattr(checksums, "add", failing(add, 2, error))
        checkpoints.save(1, make_state(1), {"step": 1})
        checkpoints.wait()
        said = "the checkpoint of step 1 could not be written: Input/output error; trying again in"
        assert [line.rpartition(" in ")[0] + " in" for line in lines] == [said] * 2
        # the step after it took the state: the next checkpoint has to do
        monkeypatch.setattr(checksums, "add", failing(add, 1, error))
        state = make_state(2)
        checkpoints.save(2, state, {})
        while checkpoints._manager.is_saving_in_progress():
            time.sleep(0.01)
        jax.tree.map(lambda x: x.delete(), state)
        checkpoints.save(3, make_state(3), {})
        assert lines[2:] == [
            "the checkpoint of step 2 could not be written: Input/output error; the run goes on to "
            "the next one"
        ]
        monkeypatch.setattr(checksums, "add", failing(add, 1000, error))
        checkpoints.save(4, make_state(4), {})
        with pytest.raises(files.SaveError, match="step 3 is intact") as e:
            checkpoints.wait()
        assert e.value.exit_code == 75
    assert steps_in(tmp_path) == [1, 3]
    assert_same(restore(tmp_path)[0][0], make_state(3))


def test_a_full_disk(tmp_path):
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs a small file system: root that may mount")
    try:
        with opened(tmp_path) as (checkpoints, _):
            small, large = noise(1000), noise(1_000_000)
            room = contextlib.nullcontext
            assert_failed_save_leaves_the_one_before(
                checkpoints, small, large, room, "disk is full"
            )
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


# -- Several processes ---------------------------------------------------------------------------


PROCESS = """
import os, sys
sys.path[:0] = [{root!r}, {tests!r}]
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = ""
import jax
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize("localhost:{port}", 2, int(sys.argv[1]))
from jax.experimental import multihost_utils
from test_checkpoint import *
from jaxcls.directory import lock

mesh = jax.make_mesh((4,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
sharding = NamedSharding(mesh, PartitionSpec("fsdp"))
directory = Path({directory!r})

def put(step):
    value = np.arange(8.0, dtype=np.float32) + step
    x = jax.make_array_from_callback((8,), sharding, lambda i: value[i])
    return {{"params": {{"x": x}}}}

with lock(directory):
    with opened(directory / "checkpoints") as (checkpoints, _):
        for step in (1, 2, 3):
            checkpoints.save(step, put(step), {{"step": step}})
            checkpoints.evaluated(step, {{"top1": step / 10}})
    if jax.process_index() == 0:
        flip(array_file(directory / "checkpoints/3"))
        (directory / "checkpoints/2/state/_METADATA").write_text("[]")
    multihost_utils.sync_global_devices("damaged")
    with opened(directory / "checkpoints") as (checkpoints, lines):
        state, meta = checkpoints.restore(abstract(put(0)))
        assert meta["step"] == 1, meta
        assert checkpoints.best == checkpoints.last == {{"step": 1, "top1": 0.1}}
        for shard in state["params"]["x"].addressable_shards:
            assert (np.asarray(shard.data) == np.arange(8.0)[shard.index] + 1).all()
        assert len(lines) == (2 if jax.process_index() == 0 else 0), lines
        checkpoints.save(2, put(2), {{"step": 2}})
    variables, meta = weights.load(directory)
    assert (variables["params"]["x"] == np.arange(8.0) + 2).all()
"""


@pytest.mark.ci
def test_two_processes_agree_on_what_is_damaged(tmp_path):
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    code = PROCESS.format(
        root=str(ROOT), tests=str(ROOT / "tests"), directory=str(tmp_path), port=port
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(i)], stderr=subprocess.PIPE, text=True)
        for i in range(2)
    ]
    try:
        errors = [process.communicate(timeout=100)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    assert steps_in(tmp_path / "checkpoints") == [1, 2]
    # One process with one device reads what two with two wrote.
    target = {"params": {"x": jnp.zeros(8)}}
    restored, _ = restore(tmp_path / "checkpoints", target)
    np.testing.assert_array_equal(restored[0]["params"]["x"], np.arange(8.0) + 2)


# -- Old checkpoints -----------------------------------------------------------------------------


def test_the_golden_checkpoint_still_restores(tmp_path):
    shutil.copytree(GOLDEN, tmp_path / "ckpt")
    state = make_state(7)
    restored, lines = restore(tmp_path / "ckpt", state)
    assert lines == []
    assert_same(restored[0], golden_state())
    assert restored[1] == {"class_names": ["a", "b", "c", "d"], "window": {"loss": 0.25}}
    variables, _ = weights.load(GOLDEN)
    assert_same(variables, golden_state().ema)


def golden_state():
    """As `make_state`, with values that every processor computes to the same bits."""
    state = make_state(7)
    leaves, structure = jax.tree.flatten(state)
    values = [np.arange(x.size).reshape(x.shape) % 64 + i for i, x in enumerate(leaves)]
    return structure.unflatten([v.astype(x.dtype) for v, x in zip(values, leaves, strict=True)])


if __name__ == "__main__":
    shutil.rmtree(GOLDEN, ignore_errors=True)
    with opened(GOLDEN) as (golden, _):
        meta = {"class_names": ["a", "b", "c", "d"], "window": {"loss": 0.25}}
        golden.save(7, jax.device_put(golden_state()), meta)
        golden.evaluated(7, {"loss": 0.25, "top1": 0.5})
