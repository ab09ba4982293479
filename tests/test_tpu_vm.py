"""launch/tpu_vm.sh against a stand-in of gcloud, and what it starts on the hosts, for real.

golden/launch/tpu_vm.txt has, for each case, the command, what is called, what is said and the exit
code; `python tests/test_tpu_vm.py` writes it again. The flags in it were read by gcloud 528 itself.
"""

import contextlib
import difflib
import importlib
import io
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import runs
import standins

LAUNCH = runs.ROOT / "launch"
sys.path.append(str(LAUNCH))  # as python3 launch/tpu_vm.py does
tpu_slice, tpu_vm = map(importlib.import_module, ("tpu_slice", "tpu_vm"))
SLEPT = []  # seconds
tpu_slice.time = tpu_vm.time = type("Time", (), {"sleep": SLEPT.append})
GOLDEN = runs.ROOT / "tests" / "golden" / "launch" / "tpu_vm.txt"
RUN = "--config=configs/resnet50_vd.py --workdir=gs://bucket/run"
NEW = "--type=v5litepod-16 --spot"

AWAY = "ERROR: (gcloud.x) There was a problem refreshing your current auth tokens: [Errno -3]\n"
GONE = "ERROR: (gcloud.x) NOT_FOUND: Resource 'my-tpu' was not found.\n"
MISSING = ("describe", 1, "", GONE)
REFUSED = ("te my-tpu", 1, "", GONE)  # to delete it, or to create it
FULL = ("create", 1, "", 'ERROR: (gcloud.x) {\n "code": 8,\n "message": "There is no more capacity '
        'in the zone \\"us-west4-a\\""\n}\n')  # fmt: skip
UNREACHABLE = "ERROR: (gcloud.compute.tpus.tpu-vm.ssh) [/usr/bin/ssh] exited with return code [255]"
QUOTA = ("create", 1, "", "Create request issued for: [my-tpu]\nERROR: (gcloud.x) Quota limit "
         "'TPUV5sPreemptibleLitepodPerProjectPerZoneForTPUAPI' has been exceeded. Limit: 0 in zone "
         "us-west4-a.\n")  # fmt: skip


def state(name):
    return ("describe", 0, f"{name}\n")


def ends(code):
    return ("sh code", 0, f"{code}\n")


def lost():
    """Worker 0 is no longer seen, and Google counts no workers."""
    return [("follow", 1), ("sh code", 1, "", UNREACHABLE), state("0")]


# name -> (arguments, what gcloud answers, the first that fits; otherwise it succeeds in silence)
CASES = {
    "a run on a slice that is there": (RUN, [state("READY"), ends(0)]),
    "a new slice, queued, and deleted at the end": (
        f"{NEW} --queue {RUN} --config.lr.base=0.1 --fetch=TMP/got --delete",
        [MISSING, *map(state, ("WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE")), ends(0)],
    ),
    "preempted, no room for a while, then it resumes": (
        f"{NEW} {RUN}",
        [state("READY"), ends(143), *map(state, ("READY", "PREEMPTED", "PREEMPTED")), FULL,
         MISSING, FULL, MISSING, state("CREATING"), state("READY"), ends(0)],
    ),
    "a queued slice is preempted while it is not seen": (
        f"{NEW} --queue {RUN}",
        [state("ACTIVE"), ("follow", 1), ("sh code", 1, "", UNREACHABLE), state("4"),
         ("worker=0 --command=true", 1), state("SUSPENDING"), state("SUSPENDED"),
         state("ACTIVE"), ends(0)],
    ),
    "only the connection was lost": (
        RUN, [state("READY"), ("follow", 1), ("sh code", 0), ends(0)],
    ),
    "a process was lost on a slice that stays": (
        f"--type=v4-32 {RUN}", [*[state("READY")] * 7, ends(75), ends(0)],
    ),
    "the network here is away twice": (
        f"{RUN} --delete",
        [state("READY"), *3 * [("scp", 1, "", AWAY), state("0")], *lost(), *lost(), ends(0)],
    ),
    "the network here is away as the run ends": (
        f"{NEW} {RUN}",
        [state("READY"), ends(143), *4 * [("describe", 1, "", AWAY)], state("PREEMPTED"),
         state("READY"), ends(0)],
    ),
    "the network here is away for a moment": (
        f"{NEW} {RUN}",
        [MISSING, state("CREATING"), *2 * [("describe", 1, "", AWAY)], state("READY"), ends(0)],
    ),
    "the network here is away while the slice is created": (
        f"{NEW} {RUN} --delete",
        [MISSING, state("CREATING"), *4 * [("describe", 1, "", AWAY)], ("delete", 1, "", AWAY)],
    ),
    "somebody has deleted it": (
        f"{NEW} {RUN} --delete", [state("READY"), *lost(), MISSING, REFUSED],
    ),
    "somebody deletes it": (
        f"{NEW} {RUN} --delete",
        [state("READY"), *lost(), state("READY"), state("DELETING"), REFUSED],
    ),
    "a worker that does not come up": (
        RUN,
        [state("READY")] + 4 * [("install", 255, "", UNREACHABLE), state("4"),
                                ("worker=2 --command=true", 255)],
    ),
    "a mistake in the config": (f"{RUN} --delete", [state("READY"), ends(2)]),
    "no quota": (f"{NEW} {RUN}", [MISSING, QUOTA]),
    "no quota, nothing to delete": (
        f"{NEW} {RUN} --delete", [MISSING, QUOTA, ("delete", 1, "", GONE)],
    ),
    "what is stopped stays": (f"{NEW} {RUN} --delete", [state("STOPPED")]),
    "no room": (f"--type=v4-8 {RUN}", [MISSING, FULL]),
    "a request that fails": (f"{NEW} --queue {RUN}", [
        MISSING, state("FAILED"), state("valid-until-duration has passed")]),
    "nobody is logged in": (RUN, [(
        "describe", 1, "", "ERROR: (gcloud.x) You do not currently have an active account "
        "selected.\nPlease run:\n\n  $ gcloud auth login\n")]),
    "no such slice": (RUN, [MISSING]),
    "stop": ("--stop", []),
    "a disk of its own": (
        "--config=configs/digits.py --workdir=~/run --fetch=TMP/got", [state("READY"), ends(0)],
    ),
    "fetch": ("--workdir=/mnt/run --fetch=TMP/got", []),
    "no folder for what is fetched": (
        "--workdir=gs://bucket/run --fetch=/dev/null/got --delete", [],
    ),
    "no right to fetch": (
        "--workdir=gs://bucket/run --fetch=TMP/got",
        [("rsync", 1, "", "ERROR: (gcloud.storage.rsync) [me] does not have permission to access "
          "b instance [bucket] (or it may not exist)\n")],
    ),
    "delete": ("--queue --delete", []),
    "it stays and may cost money": ("--delete", 4 * [("delete", 1, "", "ERROR: it is busy\n")]),
}  # fmt: skip


def play(name, folder):
    """Returns what a case shows."""
    arguments, answers = CASES[name]
    programs = standins.StandIns(folder / "bin", "gcloud", "tar")
    programs.answer(*answers)
    arguments = ["my-tpu", "us-west4-a", *arguments.replace("TMP", str(folder)).split()]
    err = io.StringIO()
    SLEPT.clear()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(err):
        patch.setenv("PATH", programs.path)
        patch.setattr(tempfile, "tempdir", str(folder))
        patch.setattr(os, "getuid", lambda: 1)
        code = tpu_vm.main(arguments)
    assert not programs.left(), (name, programs.called())
    lines = [f"== {name}", f"$ launch/tpu_vm.sh {shlex.join(arguments)}", *programs.called()]
    lines += [*err.getvalue().splitlines(), f"exit code {code}", ""]
    return "\n".join(lines).replace(str(folder), "TMP").replace(str(runs.ROOT), "CHECKOUT")


@pytest.mark.parametrize("name", CASES)
def test_what_is_called(name, tmp_path):
    cases = GOLDEN.read_text().split("== ")
    (golden,) = [f"== {case}".rstrip() for case in cases if case.startswith(f"{name}\n")]
    now = play(name, tmp_path).rstrip()
    diff = difflib.unified_diff(golden.splitlines(), now.splitlines(), "golden", "now", lineterm="")
    assert now == golden, "\n".join(diff)


@pytest.mark.parametrize(
    ("name", "slept"),
    [
        ("the network here is away twice", [3, 6, 12, 3, 3]),  # anew after an answer
        ("the network here is away as the run ends", [1, 1, 1]),
        ("the network here is away for a moment", [1, 1, 1]),
        ("nobody is logged in", []),
        ("it stays and may cost money", [1, 1, 1]),
    ],
)
def test_pauses(name, slept, tmp_path):
    play(name, tmp_path)
    assert [seconds / tpu_slice.POLL for seconds in SLEPT] == slept


def test_no_place_for_the_archive(tmp_path, monkeypatch, capsys):
    programs = standins.StandIns(tmp_path / "bin", "gcloud", "tar")
    monkeypatch.setenv("PATH", programs.path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "no"))
    programs.answer(state("READY"))
    assert tpu_vm.main(["tpu", "zone", *RUN.split(), "--delete"]) == 2
    assert "No such file or directory" in capsys.readouterr().err
    assert [call.split()[4] for call in programs.called()] == ["describe", "delete"]


@pytest.mark.parametrize("more", ["", f"{NEW} --queue --fetch=got --delete", "--type=v6e-8"])
def test_a_dry_run_prints_what_is_run(more, tmp_path):
    programs = standins.StandIns(tmp_path / "bin", "gcloud", "tar")
    answers = [MISSING, state("ACTIVE" if "queue" in more else "READY")][not more :]
    command = [LAUNCH / "tpu_vm.sh", "my-tpu", "us-west4-a", *more.split(), *RUN.split()]
    environment = os.environ | {"PATH": programs.path, "TMPDIR": str(tmp_path)}

    def run(*last):
        programs.answer(*answers, ends(0))
        return subprocess.run(
            [*command, *last], env=environment, cwd=tmp_path, capture_output=True, text=True
        )

    dry = run("--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert programs.called() == []
    assert run().returncode == 0
    assert dry.stdout.splitlines() == programs.called()
    assert len(programs.called()) == {"": 7, "--type=v6e-8": 9}.get(more, 11)


PLACES = "write gs://BUCKET/RUN, or a path from / or ~/"
NOT_COPIED = "is not copied to the hosts: copy the file into configs/"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "arguments are required: name, zone"),
        ("tpu zone", "nothing to do: write --config=FILE --workdir=gs://BUCKET/RUN"),
        (f"tpu zone {RUN} --spto", "--spto: there is no such option"),
        (f"tpu zone {RUN} --spot", "--spot needs --type=TYPE"),
        ("tpu zone --config=configs/digits.py", "--workdir=gs://BUCKET/RUN is missing"),
        ("tpu zone --config=no.py --workdir=/w", "--config=no.py: write a file of the checkout"),
        (f"tpu zone --config={runs.TINY} --workdir=/w", "write it relative to the checkout"),
        ("tpu zone --config=configs/digits.py --workdir=w --delete", f"--workdir=w: {PLACES}"),
        ("tpu zone --config=configs/digits.py --workdir=~me/w", f"--workdir=~me/w: {PLACES}"),
        ("tpu zone --workdir=w --fetch=got", f"--workdir=w: {PLACES}"),
        ("tpu zone --config=configs/digits.py --workdir=~/./jaxcls", "removes ~/jaxcls: write"),
        ("tpu zone --config=configs/digits.py --workdir=/home/me/jaxcls/w", "removes ~/jaxcls"),
        (f"tpu zone {NEW} --config=configs/digits.py --workdir=/w", "a preempted disk is lost"),
        ("tpu zone --fetch=got", "--fetch=DIR needs --workdir="),
        (f"tpu zone {RUN} --stop", "--stop stops the run that goes on"),
    ],
)
def test_mistakes(arguments, message, capsys, tmp_path, monkeypatch):
    programs = standins.StandIns(tmp_path / "bin", "gcloud", "tar")
    monkeypatch.setenv("PATH", programs.path)
    programs.answer(("describe", 1, "", "PERMISSION_DENIED"))
    assert tpu_vm.main(arguments.split()) == 2
    assert programs.called() == []  # nothing is deleted
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert message in err


def test_without_gcloud(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    for more in ([], RUN.split()):
        assert tpu_vm.main(["tpu", "zone", "--delete", *more]) == 2
        said = "tpu_vm.sh: there is no gcloud here: it is of the Google Cloud CLI\n"
        assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    ("file", "copied"),
    [
        *(("configs/a.py", True), ("configs/runs/a.py", True)),
        *(("runs/best.py", False), ("./runs/b/best.py", False), ("configs/../runs/a.py", False)),
        *((".venv-gpu/a.py", False), ("configs/__pycache__/a.py", False), (".git/a.py", False)),
    ],
)
def test_a_config_that_is_not_copied(file, copied, tmp_path, monkeypatch):
    for folder in ("configs", Path(file).parent):
        (tmp_path / "checkout" / folder).mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(tmp_path / "checkout")
    Path(file).touch()
    without = [f"--exclude={name}" for name in tpu_slice.LEFT_BEHIND]
    subprocess.run(["tar", *without, "-czf", "../a.tgz", "."], check=True)
    listed = subprocess.run(["tar", "-tf", "../a.tgz"], check=True, capture_output=True, text=True)
    assert copied == (f"./{os.path.normpath(file)}" in listed.stdout.split())
    monkeypatch.setattr(tpu_vm, "CHECKOUT", tmp_path / "checkout")
    with contextlib.nullcontext() if copied else pytest.raises(tpu_vm.Problem, match=NOT_COPIED):
        tpu_vm.parse(["tpu", "zone", f"--config={file}:arg", "--workdir=gs://bucket/run"])


def test_a_config_beside_the_checkout(tmp_path, monkeypatch):
    (tmp_path / "checkout").mkdir()
    (tmp_path / "other.py").touch()
    monkeypatch.setattr(tpu_vm, "CHECKOUT", tmp_path / "checkout")
    with pytest.raises(tpu_vm.Problem, match="write a file of the checkout"):
        tpu_vm.parse(["tpu", "zone", "--config=../other.py", "--workdir=gs://bucket/run"])


# -- On a host -------------------------------------------------------------------------------------

RUNNER = """#!/bin/bash
echo "$@"
trap 'sleep 1; echo saved; exit 143' TERM
[ "$4" = --config=short ] && exit 3
for i in {1..600}; do sleep 0.1; done
"""


def test_a_dry_run_onto_a_full_disk():
    command = [LAUNCH / "tpu_vm.sh", "my-tpu", "us-west4-a", *RUN.split(), "--dry-run"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    said = "tpu_vm.sh: what is printed: No space left on device\n"
    assert (done.returncode, done.stderr) == (2, said)


@pytest.fixture
def host(tmp_path):
    """Calls tpu_worker.sh in a home directory that has an installation."""
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "jaxcls").mkdir()
    (tmp_path / "venv" / "bin" / "python").write_text(RUNNER)
    (tmp_path / "venv" / "bin" / "python").chmod(0o755)

    def call(*words):
        return subprocess.run(
            ["bash", LAUNCH / "tpu_worker.sh", *words],
            env=os.environ | {"HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=60,
        )

    yield call
    if (tmp_path / "jaxcls.pid").exists():
        call("stop")


@pytest.mark.ci
def test_a_run_on_a_host(host, tmp_path):
    assert host("stop").returncode == 0  # there is none
    assert host("start", "--config=short", "--config.lr.warmup=5 epochs").returncode == 0
    assert host("follow", "+1").stdout == (
        "-m jaxcls.main --distributed --config=short --config.lr.warmup=5 epochs\n"
    )
    assert host("stop").returncode == 0  # it has ended
    assert host("code").stdout == "3\n"
    (tmp_path / "jaxcls.code").write_text("")  # there was no room for it
    assert host("code").stdout == "137\n"
    assert "--config=short" in host("last").stdout
    assert host("start", "--config=long").returncode == 0
    assert host("code").stdout == ""  # it goes on
    pid = (tmp_path / "jaxcls.pid").read_text()
    assert host("start", "--config=other").returncode == 0  # it stays as it is
    assert host("install").returncode == 0
    assert (tmp_path / "jaxcls.pid").read_text() == pid
    runs.wait_until(lambda: "long" in (tmp_path / "jaxcls.log").read_text())
    assert host("stop").returncode == 0
    assert (tmp_path / "jaxcls.log").read_text().endswith("saved\n")
    assert host("code").stdout == "143\n"
    assert host("start", "--config=long").returncode == 0
    assert host("stop").returncode == 0  # perhaps before there is a process
    assert host("code").stdout == "143\n"
    assert host("start", "--config=long").returncode == 0
    pid = int((tmp_path / "jaxcls.pid").read_text())
    runs.wait_until(lambda: os.getpgid(pid) == pid)
    os.killpg(pid, 9)  # as a host that starts again
    host("follow", "+1")
    assert host("code").stdout == "137\n"
    assert host("nothing").returncode == 2


def test_the_installation(host, tmp_path):
    programs = standins.StandIns(tmp_path / "bin", "python3")
    (tmp_path / "venv" / "bin" / "python").unlink()
    (tmp_path / "jaxcls" / "old.py").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", programs.path)
        archive = ["tar", "-C", LAUNCH, "-czf", tmp_path / "jaxcls.tgz", "local.py"]
        subprocess.run(archive, check=True)
        done = host("install")
        assert done.returncode == 0, done.stderr
        programs.answer(("uv venv", 1, "", "no space"))
        assert host("install").returncode == 1
    assert [p.name for p in (tmp_path / "jaxcls").iterdir()] == ["local.py"]
    programs.answer()


if __name__ == "__main__":
    shown = []
    for name in CASES:
        with tempfile.TemporaryDirectory() as folder:
            shown.append(play(name, Path(folder)))
    GOLDEN.write_text("\n".join(shown))
    print(f"wrote {GOLDEN} in {time.process_time():.0f} s", file=sys.stderr)
