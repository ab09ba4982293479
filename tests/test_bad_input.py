"""Mistakes: one line says what is wrong and what to write; exit code 2; nothing half-written."""

import errno
import os
import re
import shutil
import signal
import subprocess

import cv2
import numpy as np
import pytest
import runs

PLAIN = f"{runs.TINY}:plain"


def refused(done, *texts):
    """Asserts that a command ended with exit code 2 and one line that has all the texts."""
    assert done.returncode == 2, done.err
    assert done.err.startswith("jaxcls: ")
    assert done.err.count("\n") == 1, done.err
    for text in texts:
        assert text in done.err


# -- The config: more of it in test_mistakes.py ----------------------------------------------------


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("checkpoint.keep=0", "config.checkpoint.keep = 0: keep at least 1"),
        ("loader.threads=-1", "config.loader.threads = -1: write a number from 0"),
        (
            "init.checkpoint=/no/such/run",
            "config.init.checkpoint = '/no/such/run': no checkpoint there",
        ),
    ],
)
def test_config_of_the_run_itself(commands, tmp_path, option, text):
    command = f"--config={PLAIN}", f"--workdir={tmp_path}", f"--config.{option}"
    refused(commands.fork(*command), text)
    assert {p.name for p in tmp_path.rglob("*")} <= {".lock", "checkpoints"}


# -- The data --------------------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path):
    """A folder with 2 classes of 20 JPEG files, and a list of them."""
    root, rng, listed = tmp_path / "photos", np.random.default_rng(0), []
    for label, name in enumerate(("cat", "dog")):
        (root / name).mkdir(parents=True)
        for i in range(20):
            cv2.imwrite(str(root / name / f"{i}.jpg"), rng.integers(0, 256, (12, 12, 3), np.uint8))
            listed.append(f"{name}/{i}.jpg {label}\n")
    (root / "train_list.txt").write_text("".join(listed))
    return root


def on(photos, source, *options):
    """Returns the arguments of a run on these images, of 6 steps."""
    return (
        f"--config={PLAIN}",
        f"--workdir={photos.parent / 'run'}",
        f"--config.data.source={source}",
        f"--config.data.root={photos}",
        "--config.batch_size=8",
        "--config.eval.batch_size=8",
        "--config.duration=6 steps",
        *(f"--config.{option}" for option in options),
    )


def test_folders(commands, photos):
    (photos / "empty").mkdir()
    refused(
        commands.fork(*on(photos, "folder")), f"{photos / 'empty'}: the class 'empty' has no images"
    )
    missing = photos / "nowhere"
    refused(commands.fork(*on(missing, "folder")), f"{missing}: no such folder (config.data.root)")
    refused(
        commands.fork(*on(photos, "folder", "data.train=trian")),
        f"{photos / 'trian'}: no such folder (config.data.train)",
    )
    (photos / "empty").rmdir()
    done = commands.fork(*on(photos, "folder", "data.eval_fraction=0.5", "image.eval_size=64"))
    refused(done, "is smaller than the evaluation's crop of 64x64: set config.image.eval_resize")
    assert not (photos.parent / "run").exists()


def test_lists(commands, photos):
    path = photos / "train_list.txt"
    lines = path.read_text().splitlines()
    for bad, text in (
        ("dog/3.jpg", "no label after the delimiter ' ' in 'dog/3.jpg'"),
        ("dog/3.jpg dog", "the label 'dog' is not a whole number"),
        ("dog/3.jpg 1.5", "the label '1.5' is not a whole number"),
        ("dog/3.jpg 2", "the label 2 is out of range: there are 2 classes, 0 to 1"),
        ("dog/3.jpg -1", "the label -1 is out of range"),
    ):
        path.write_text("\n".join([*lines[:23], bad, *lines[24:]]))
        done = commands.fork(*on(photos, "list", "data.num_classes=2"))
        refused(done, f"{path}:24: {text}")
    path.unlink()
    refused(commands.fork(*on(photos, "list")), f"{path}: no such list file (config.data.train")
    assert not (photos.parent / "run").exists()


@pytest.mark.ci
def test_an_unreadable_image_stops_the_run_or_is_skipped_and_counted(commands, photos):
    truncated, missing = photos / "dog" / "3.jpg", photos / "cat" / "5.jpg"
    truncated.write_bytes(truncated.read_bytes()[:100])
    missing.unlink()
    workdir = photos.parent / "run"
    done = commands.fork(*on(photos, "list"))
    assert re.search(f"({truncated}|{missing}) \\({photos}/train_list.txt:(24|6)\\): ", done.err)
    refused(done)
    assert not runs.checkpoints(workdir)

    skip = "data.on_bad_image=skip", "checkpoint.every=2 steps"
    done = commands.fork(*on(photos, "list", *skip, "data.max_bad_images=1"))
    *warnings, error, _ = done.err.split("\n")
    assert error.startswith("jaxcls: 2 images cannot be read, config.data.max_bad_images = 1; ")
    assert (done.returncode, len(warnings)) == (2, 3)  # the missing one at the start, and both
    done = commands.fork(*on(photos, "list", *skip, "data.eval=train_list.txt"))
    assert done.returncode == 0, done.err
    assert {str(truncated) in done.err, str(missing) in done.err} == {True}
    summary = runs.summary(workdir)
    assert summary["bad_images"] == 2  # however many checkpoints counted them
    assert "2 unreadable training image(s), replaced by others" in done.out
    assert summary["last"]["images"] == 38


# -- Checkpoints -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(commands, tmp_path_factory):
    """The working directory of a short run."""
    workdir = tmp_path_factory.mktemp("finished")
    command = f"--config={PLAIN}", f"--workdir={workdir}", "--config.duration=6 steps"
    done = commands.fork(*command)
    assert done.returncode == 0, done.err
    return workdir


def test_a_checkpoint_of_another_model(commands, finished, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    before = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}
    wider = "--config.model.options=(('stem','small'),('depths',(1,)),('width',16))"
    command = f"--config={PLAIN}", wider, "--config.duration=9 steps"
    done = commands.fork(*command, f"--workdir={workdir}")
    refused(
        done, "is of another model or configuration", "choose another --workdir", "float32[8] in"
    )
    with_average = f"--config={PLAIN}", "--config.ema.decay=0.9", "--config.duration=9 steps"
    refused(commands.fork(*with_average, f"--workdir={workdir}"), "ema/params/", "nothing in the")
    after = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}
    assert {k: v for k, v in after.items() if k.name != ".lock"} == {
        k: v for k, v in before.items() if k.name != ".lock"
    }

    start = f"--config.init.checkpoint={finished}"
    done = commands.fork(*command, start, f"--workdir={tmp_path / 'new'}")
    refused(done, "does not fit the model", "params/stem/conv1/conv/kernel: float32[3,3,1,8] in")
    done = commands.fork(*command, "--mode=eval", f"--workdir={workdir}")
    refused(done, f"checkpoint {workdir} does not fit", "float32[3,3,1,16] in the model")


def test_evaluating_what_cannot_be_evaluated(commands, finished, photos, tmp_path):
    command = f"--config={PLAIN}", "--mode=eval"
    done = commands.fork(*command, f"--workdir={tmp_path / 'nothing'}")
    refused(done, f"{tmp_path / 'nothing'}: no checkpoint there", "an export")
    done = commands.fork(*on(photos, "folder"), "--mode=eval")
    refused(done, "this folder source has no evaluation images")
    # a head of other classes would be a fresh one
    other = on(photos, "folder", "data.eval_fraction=0.5")
    done = commands.fork(*other, "--mode=eval", f"--workdir={finished}")
    refused(done, "does not fit", "params/head/fc/bias: 10 classes in the checkpoint, 2 here")
    assert not (tmp_path / "nothing").exists()


# -- Writing ---------------------------------------------------------------------------------------


def test_a_workdir_that_cannot_be_written(commands, tmp_path):
    (tmp_path / "file").write_text("")
    workdir = tmp_path / "file" / "run"
    done = commands.fork(f"--config={PLAIN}", f"--workdir={workdir}")
    refused(done, f"cannot write to the working directory {workdir}: Not a directory")


def mounted(folder, options):
    """Mounts a file system in memory; returns whether that was possible."""
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    return not os.geteuid() and not subprocess.run(mount, capture_output=True).returncode


def test_a_read_only_file_system(commands, tmp_path):
    if not mounted(tmp_path, "ro"):
        pytest.skip("needs a read-only file system: root that may mount")
    try:
        done = commands.fork(f"--config={PLAIN}", f"--workdir={tmp_path / 'run'}")
        refused(done, f"cannot write to the working directory {tmp_path / 'run'}: Read-only")
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def fill(path):
    """Writes a file until the disk is full."""
    with path.open("wb", buffering=0) as file:
        try:
            while file.write(b"x" * 4096):
                pass
        except OSError as e:
            if e.errno != errno.ENOSPC:
                raise


@pytest.mark.ci
def test_a_full_disk_while_saving(commands, tmp_path):
    if not mounted(tmp_path, "size=4m"):
        pytest.skip("needs a small file system: root that may mount")
    command = f"--config={PLAIN}", f"--workdir={tmp_path / 'run'}", "--config.duration=60 steps"
    try:
        with commands.started(*command) as process:
            runs.wait_until(lambda: runs.checkpoints(tmp_path / "run"), process)
            process.send_signal(signal.SIGSTOP)
            fill(tmp_path / "filler")
            process.send_signal(signal.SIGCONT)
            runs.finish(process)
        (*_, newest) = runs.checkpoints(tmp_path / "run")
        assert newest < 60
        failed = f"could not be written to {tmp_path / 'run' / 'checkpoints'}: the disk is full"
        refused(process, failed, f"the one of step {newest} is intact")
        assert not [p for p in (tmp_path / "run" / "checkpoints").iterdir() if "tmp" in p.name]
        (tmp_path / "filler").unlink()
        done = commands.fork(*command)
        assert done.returncode == 0, done.err
        assert f"resuming at step {newest} of 60" in done.out
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
