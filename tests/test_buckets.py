"""--workdir=gs://BUCKET/RUN with the real clients: gcsfs, etils, orbax and TensorStore.

A server of this machine stands in for the store (`object_store`). What a run leaves in its bucket
is a folder here, and is compared with that of a run in a folder.
"""

import importlib.util
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import types

import cv2
import numpy as np
import object_store
import pytest
import runs

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gcsfs") is None, reason="the extra [gcs] is not there"
)

END = 30  # steps of tiny.py
URL = "gs://bucket/run"


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """The server; its `folder` has the bucket `bucket`."""
    folder = tmp_path_factory.mktemp("store")
    server = object_store.server(folder)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in object_store.environment(address).items():
            patch.setenv(name, value)
        server.folder, server.commands = folder, runs.Commands(folder)
        yield server
        server.commands.close()
    server.shutdown()
    server.server_close()


@pytest.fixture
def bucket(service):
    """A bucket with nothing in it: `run` is the folder that URL is, `service` the server."""
    shutil.rmtree(service.folder / "bucket", ignore_errors=True)
    (service.folder / "bucket").mkdir()
    service.fault = lambda asked: 0
    service.asked.clear()
    return types.SimpleNamespace(
        run=service.folder / "bucket" / "run", service=service, commands=service.commands
    )


@pytest.fixture(scope="module")
def reference(service, tmp_path_factory):
    """The working directory of a run in a folder of this machine."""
    workdir = tmp_path_factory.mktemp("reference")
    done = service.commands.fork(*command(workdir))
    assert done.returncode == 0, done.err
    return workdir


def command(workdir=URL, *others):
    return f"--config={runs.TINY}", f"--workdir={workdir}", *others


def quiet(err):
    """Returns the lines on stderr that are not TensorStore's own about the token of the tests."""
    return [line for line in err.splitlines() if "GOOGLE_AUTH_TOKEN_FOR_TESTING" not in line]


@pytest.mark.ci
def test_the_same_run_as_in_a_folder(bucket, reference):
    done = bucket.commands.fork(*command())
    assert done.returncode == 0, done.err
    assert quiet(done.err) == []
    runs.assert_same_run(bucket.run, reference, END)
    assert runs.checkpoints(bucket.run) == runs.checkpoints(reference)
    here, there = ({p.name for p in run.iterdir()} for run in (reference, bucket.run))
    assert here - there == {".lock"}
    asked = bucket.service.asked
    saves = sum("checksums.json&" in request for request in asked)
    assert saves == 10
    assert len(asked) < 250 * saves  # none for a step


def test_who_may_not_ask_about_the_bucket(bucket):
    """As with the role Storage Object Admin; orbax wants to know when it removes a checkpoint."""
    bucket.service.fault = lambda asked: 403 * asked.startswith("GET /storage/v1/b/bucket?")
    done = bucket.commands.fork(*command(URL, "--config.duration=14 steps"))
    assert done.returncode == 0, done.err
    assert runs.checkpoints(bucket.run) == [8, 12, 14]


def killed_at(bucket, pattern, number=1):
    """Runs the command, killed at the n-th request that matches, which is not carried out."""
    seen = []

    def fault(asked):
        seen.extend([asked] * bool(re.search(pattern, asked)))
        if len(seen) >= number:
            process.kill()
            return 503
        return 0

    with bucket.commands.started(*command()) as process:
        bucket.service.fault = fault
    bucket.service.fault = lambda asked: 0
    assert process.returncode == -signal.SIGKILL, process.out + process.err
    return process.out


@pytest.mark.ci
def test_kill_9_and_sigterm(bucket, reference):
    killed_at(bucket, "POST .*checkpoints/4/state/ocdbt")
    killed_at(bucket, "POST .*checkpoints/6/checksums.json")
    for place in ("commit_success", "evaluation"):
        assert "resuming at step 4" in killed_at(bucket, f"POST .*run/checkpoints/6/{place}")
    assert "resuming at step 6" in killed_at(bucket, "POST .*metrics.jsonl", 3)
    killed_at(bucket, "DELETE .*/checksums.json")  # of an unfinished checkpoint, or of an old one
    killed_at(bucket, "DELETE .*/checkpoints/[68]/meta")
    with bucket.commands.started(*command()) as process:
        runs.wait_until(lambda: runs.logged(bucket.run) >= 20, process)
        assert runs.interrupt(process, signal.SIGTERM) == 143
    (line,) = quiet(process.err)
    assert line.startswith("SIGTERM: saving after this step")
    assert "stopped at step" in process.out
    done = bucket.commands.fork(*command())
    assert done.returncode == 0, done.err
    assert quiet(done.err) == []
    runs.assert_same_run(bucket.run, reference, END)
    assert runs.checkpoints(bucket.run) == runs.checkpoints(reference)


REFUSED = [  # requests, the code that they are answered, what is said
    (".", 403, "gs://bucket/run cannot be read: Forbidden: b/bucket/o"),
    (".", 401, "gs://bucket/run cannot be read: try again, 401"),
    ("POST", 403, "gs://bucket/run/config.json cannot be written: Forbidden: "),
    ("POST.*checkpoints/6/state", 403, "the checkpoint of step 6 could not be written to gs://bucket"
     "/run/checkpoints: Error writing gs://bucket/run/checkpoints/6/state/"),
    ("GET.*/4/state/.*tensorstore", 403, "gs://bucket/run/checkpoints/4 cannot be read: "),
]  # fmt: skip


@pytest.mark.ci
def test_what_the_store_refuses(bucket):
    for pattern, code, said in REFUSED:  # the last one resumes what the one before it has left
        bucket.service.fault = lambda asked: code * bool(re.search(pattern, asked))  # noqa: B023
        done = bucket.commands.fork(*command())
        assert done.returncode == 2
        (line,) = quiet(done.err)
        assert line.startswith(f"jaxcls: {said}")
    bucket.service.fault = lambda asked: 0
    done = bucket.commands.fork(*command("gs://other/run"))
    assert done.returncode == 2
    assert quiet(done.err) == ["jaxcls: gs://other/run/config.json: there is no such bucket"]


@pytest.mark.ci
def test_what_reads_a_run(bucket, reference, tmp_path):
    shutil.copytree(reference, bucket.run, ignore=shutil.ignore_patterns(".lock"))
    fork = bucket.commands.fork
    for workdir in (URL, f"{URL}/checkpoints/24"):
        there = fork(f"--workdir={workdir}", "--mode=eval")
        here = fork(f"--workdir={workdir.replace(URL, str(reference))}", "--mode=eval")
        assert (there.returncode, here.returncode) == (0, 0), there.err + here.err
        assert there.out.replace(URL, "") == here.out.replace(str(reference), "")
    tuned = "--config.optim.accumulate_steps=1", "--config.duration=8 steps"
    tuned += (f"--config.init.checkpoint={URL}", "--config.report.enabled=True")
    done = fork(*command("gs://bucket/tuned", *tuned))
    assert done.returncode == 0, done.err
    assert quiet(done.err) == []
    assert f"from {URL}" in done.out
    report = bucket.run.parent / "tuned" / "report"
    assert {p.name for p in report.iterdir()} == {"index.html", "metrics.json", "predictions.csv"}
    cv2.imwrite(str(tmp_path / "a.png"), np.full((8, 8, 3), 100, np.uint8))
    said = []
    for run in (URL, reference):
        arguments = [sys.executable, "-m", "jaxcls.predict", str(run), str(tmp_path / "a.png")]
        environment = bucket.commands.environment()
        said.append(subprocess.run(arguments, env=environment, capture_output=True, check=True))
    assert said[0].stdout == said[1].stdout != b""


@pytest.mark.ci
def test_a_damaged_object(bucket, reference):
    assert bucket.commands.fork(*command()).returncode == 0
    newest = bucket.run / "checkpoints" / str(END)
    file = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    done = bucket.commands.fork(*command())
    assert done.returncode == 0, done.err
    assert quiet(done.err) == []
    assert f"checkpoint {URL}/checkpoints/{END} is damaged" in done.out
    assert f"set aside as damaged-{END}" in done.out
    assert "resuming at step 28 of 30" in done.out
    assert (newest.parent / f"damaged-{END}").exists()
    runs.assert_same_run(bucket.run, reference, END)


@pytest.mark.ci
@pytest.mark.parametrize("code", [429, 503])
def test_a_store_that_does_not_answer_for_a_while(bucket, reference, code):
    for place in ("6/state", "28/"):  # while that is saved, while it is restored
        began = []

        def fault(asked):
            if not began and f"/checkpoints/{place}" in asked:  # noqa: B023
                began.append(time.monotonic())  # noqa: B023
            return code if began and time.monotonic() - began[0] < 2 else 0  # noqa: B023

        bucket.service.fault = fault
        done = bucket.commands.fork(*command())
        assert (done.returncode, quiet(done.err), len(began)) == (0, [], 1), done.err
        runs.assert_same_run(bucket.run, reference, END)
        shutil.rmtree(bucket.run / "checkpoints" / str(END))
    assert "resuming at step 28 of 30" in done.out


@pytest.mark.ci
def test_two_processes(bucket, reference):
    launch = [str(runs.ROOT / "launch" / "local.sh"), "2", *command()]
    options = {"env": bucket.commands.environment(), "text": True, "stdout": subprocess.PIPE}
    with subprocess.Popen(launch, stderr=subprocess.STDOUT, **options) as process:
        runs.wait_until(lambda: runs.logged(bucket.run) >= 10, process)
        process.terminate()
        out, _ = process.communicate(timeout=runs.PATIENCE)
    assert process.returncode == 143, out
    assert "stopped at step" in out
    done = subprocess.run(launch, stderr=subprocess.STDOUT, **options)
    assert done.returncode == 0, done.stdout
    assert "resuming at step" in done.stdout
    assert runs.checkpoints(bucket.run) == runs.checkpoints(reference)
    assert [x["step"] for x in runs.lines(bucket.run)] == [x["step"] for x in runs.lines(reference)]
    theirs = runs.summary(reference)["last"]["loss"]
    assert runs.summary(bucket.run)["last"]["loss"] == pytest.approx(theirs, rel=1e-3)
