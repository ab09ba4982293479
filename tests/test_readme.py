"""What the README shows runs: every command and every snippet, on small data under its names.

A command is run as it stands there, in a folder that has what it names; `EXTRA` shortens it. What
cannot run here (a cluster, a cloud, the network) runs up to the program that is not here, in whose
place a script writes down what it is called with. A command that no rule covers is an error.
"""

import os
import pickle
import re
import shlex
import signal
import subprocess
import sys
import tomllib
import urllib.request

import cv2
import numpy as np
import oracle
import pinned
import pytest
import runs
import test_network
from PIL import Image

from jaxcls import weights

README = (runs.ROOT / "README.md").read_text()
OUTSIDE = re.sub(r"```.*?```", "", README, flags=re.DOTALL).replace("\n", " ")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
SHELL = [text for kind, text in BLOCKS if kind == "bash"]
PYTHON = [text for kind, text in BLOCKS if kind == "python"]
INLINE = re.findall(r"`((?:python|pytest|pip|launch/)[^`]* [^`]*)`", OUTSIDE)

# Places that a reader has to fill in -> what stands there here.
PLACES = {"/tmp/": "./", "gs://bucket/": "./", "/shared/": "./", "FILE": "configs/digits.py"}

# What makes a command short, by the beginning of its arguments.
SHORT = ["--config.duration=2 steps", "--config.lr.warmup=", "--config.checkpoint.every="]
FAKE = ["--config.data.source=fake"]
FAKE += [f"--config.data.{key}=64" for key in ("num_train", "num_eval")]
FAKE += ["--config.data.num_classes=4", "--config.batch_size=64", "--config.image.size=32"]
FAKE += ["--config.model.options=(('depths', (1, 1)), ('width', 8), ('stem', 'small'))"]
EXTRA = {
    "-m jaxcls.main --config=configs/resnet50_vd.py": [*SHORT, *FAKE],
    "-m jaxcls.main --config=configs/probe.py": [],
    "-m jaxcls.main --workdir=runs/mine --mode=eval": [],
    "-m jaxcls.main": SHORT,
    "-m jaxcls.models": [],
    "-m jaxcls.convert": [],
    "-m jaxcls.check --config=configs/cifar10.py": [
        "--config.data.root=photos", "--config.data.eval=", "--config.data.eval_fraction=0.2",
        "--config.batch_size=8",
    ],
    "-m jaxcls.check": [],
    "-m jaxcls.preview": [],
    "-m jaxcls.config": [],
    "-m jaxcls.select": ["--top=5"],
    "-m jaxcls.predict": [],
    "-m jaxcls.export": [],
    "-m jaxcls.serve": ["--batch-size=1"],
    "-m jaxcls.sweep": [*SHORT, "--trials=2"],
    "-m jaxcls.soup": [],
    "-m jaxcls.benchmark loop": ["--steps=2", "--repetitions=1"],
    "-m jaxcls.benchmark train": [
        "--batch=4", "--repetitions=1", "--config.model.bn_group=2",
        "--config.image.size=32",
    ],
    "-m jaxcls.benchmark input": [
        "--images=16", "--repetitions=1", "--cores=1", "--compare=", "--config.batch_size=8",
    ],
    "-m jaxcls.benchmark serve": ["--seconds=0.2", "--repetitions=1", "--clients=2"],
    "-m jaxcls.benchmark compile": ["--model=SqueezeNet1_1"],
    "-m jaxcls.benchmark traffic": [
        "--topology=", "--devices=cpu:1", "--compare=", "--model=SqueezeNet1_1", "--images=1",
    ],
    "data_prep/imagenet.py": [],
    "tests/fuzz_readers.py": ["--mutations=100"],
    "tests/fuzz_serve.py": ["--mutations=100"],
}  # fmt: skip
# They need PyTorch or libtpu, or look at times; tests of their own run a share of some.
NOT_HERE = (
    "tests/quantised.py",
    "tests/serve_load.py",
    "tests/timm_parity.py",
    "tests/timm_augment.py",
    "tests/matrix.py",
    "tests/claims.py",
    "tests/soak.py",
    "tests/plan_configs.py",
    "tests/plan_memory.py",
    "jaxcls.plan",
)


def commands_in(text):
    """Returns the commands of a block, each as it would be typed on one line."""
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    for line in lines:
        words = shlex.split(line, comments=True)
        while "&&" in words:
            yield words[: words.index("&&")]
            words = words[words.index("&&") + 1 :]
        if words:
            yield words


def extra(words):
    """Returns what shortens a Python command; None: there is no rule for it."""
    line = " ".join(words)
    return next((more for begin, more in EXTRA.items() if line.startswith(begin)), None)


def rule_of(words):
    """Returns what is done with a command: "run", "stubs", "look", or ""."""
    program = words[0]
    if program == "python":
        return (
            "look" if {*words[1:3]} & {*NOT_HERE} else "run" if extra(words[1:]) is not None else ""
        )
    if program in ("pip", "pytest"):
        return "look"
    if program in ("sbatch", "tfds") or program == "launch/tpu_vm.sh":
        return "stubs"
    return "run" if program == "launch/local.sh" else ""


def test_there_is_a_rule_for_every_command():
    known = [*SHELL, *INLINE]
    assert len(SHELL) > 5
    assert len(INLINE) > 5
    missing = [words for text in known for words in commands_in(text) if not rule_of(words)]
    assert not missing


def test_what_it_names_is_there():
    project = tomllib.loads((runs.ROOT / "pyproject.toml").read_text())["project"]
    named = re.findall(r"\.\[([\w,]+)\]", README)
    assert {name for names in named for name in names.split(",")} <= {
        *project["optional-dependencies"]
    }
    missing = [
        path
        for path in re.findall(
            r"[`(\s]((?:jaxcls|configs|tests|launch|data_prep)/[\w/.]+\.\w+)", README
        )
        if not (runs.ROOT / path).is_file()
    ]
    tests = "".join(p.read_text() for p in (runs.ROOT / "tests").glob("test_*.py"))
    missing += [n for n in re.findall(r"`(test_\w+)`", README) if f"def {n}(" not in tests]
    assert not missing


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the files that the README names, all small; and programs that are not here."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("configs", "data_prep", "launch", "tests", "jaxcls"):
        (folder / name).symlink_to(runs.ROOT / name)
    rng = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        (folder / "photos" / name).mkdir(parents=True)
        for i in range(10):
            image = rng.integers(0, 256, (72, 96, 3), np.uint8)
            cv2.imwrite(str(folder / "photos" / name / f"{i}.jpg"), image)
    (folder / "bin").mkdir()
    for name in ("gcloud", "srun", "tfds", "tar"):
        stub = folder / "bin" / name
        answers = "case $* in *describe*) echo READY ;; *code*) echo 0 ;; esac"  # gcloud's
        stub.write_text(f'#!/bin/sh\nprintf "%s\\n" {name} "$@" >> called\n{answers}\n')
        stub.chmod(0o755)
    sbatch = folder / "bin" / "sbatch"  # runs the script, without the options
    sbatch.write_text(
        '#!/bin/sh\nwhile case "$1" in -*) ;; *) false;; esac; do shift; done\nexec bash "$@"\n'
    )
    sbatch.chmod(0o755)
    for name in ("python", "python3"):  # no link: it would lose its virtual environment
        (folder / "bin" / name).write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        (folder / "bin" / name).chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def here(folder):
    """The command in that folder."""
    here = runs.Commands(folder)
    yield here
    here.close()


def run(words, here):
    """Runs a command in the folder."""
    folder = here.folder
    words = [word for word in words if word != "--compare=timm"]  # needs PyTorch
    for place, ours in () if "tpu_vm.sh" in words[0] else PLACES.items():  # it takes a bucket
        words = [word.replace(place, ours) for word in words]
    if words[1:3] == ["-m", "jaxcls.main"]:
        done = here.fork(*words[3:], *extra(words[1:]))
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.err}"
        return
    if words[1:3] == ["-m", "jaxcls.serve"]:
        serve([*words, *extra(words[1:])], here)
        return
    more = extra(words[1:]) if words[0] == "python" else SHORT if "local.sh" in words[0] else []
    done = subprocess.run(
        [*words, *more],
        cwd=folder,
        env=here.environment(PATH=f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stderr}"


def serve(words, here):
    """Runs a server until it answers."""
    words = [re.sub(r"--port=\d+", "--port=0", word) for word in words]
    said = here.folder / "served"
    with said.open("w") as err:
        process = subprocess.Popen(words, cwd=here.folder, env=here.environment(), stderr=err)
    runs.wait_until(lambda: "http://" in said.read_text(), process)
    address = re.search(r"http://\S+", said.read_text())[0]
    with urllib.request.urlopen(f"{address}/health", timeout=60) as answer:
        assert answer.status == 200
    assert runs.interrupt(process, signal.SIGTERM) == 0


def prepare(text, folder, here):
    """Makes the runs and the weights that commands begin with."""
    of_photos = re.findall(
        r"(?:--weights|eval.fuse)=(\S+)|--workdir=(\S+) --mode=eval|jaxcls.predict (\S+)", text
    )
    of_digits = re.findall(r"(?:teacher.checkpoints=|benchmark serve )/tmp/(\S+)", text)
    for config, root, name in (
        *(("finetune", ["--config.data.root=photos"], a or b or c) for a, b, c in of_photos),
        *(("digits", [], name) for name in of_digits),
    ):
        done = here.fork(f"--config=configs/{config}.py", f"--workdir={name}", *root, *SHORT)
        assert done.returncode == 0, done.err
    if "init.checkpoint=runs/" in text:  # a run of another network than the recipe's
        name = re.search(r"init.checkpoint=(\S+)", text)[1]
        done = here.fork(f"--config={runs.TINY}:plain", f"--workdir={name}", *SHORT)
        assert done.returncode == 0, done.err
    for name, network in re.findall(r"--from ((\w+?)_pretrained\.pdparams)", text):
        weights = oracle.tensors(network, pinned.trace(network)[1])
        (folder / name).write_bytes(pickle.dumps(weights, protocol=4))


@pytest.mark.ci
@pytest.mark.parametrize("text", SHELL, ids=lambda text: shlex.join(next(commands_in(text)))[:60])
def test_a_block_of_commands_runs(text, folder, here):
    prepare(text, folder, here)
    for words in commands_in(text):
        if rule_of(words) != "look":
            (folder / "called").unlink(missing_ok=True)
            run(words, here)
        if rule_of(words) == "stubs" and "--config=configs/resnet50_vd.py" in words:
            called = (folder / "called").read_text()
            on_host = "bash tpu_worker.sh start" if "gcloud" in called else "--distributed"
            assert on_host in called.replace("\n", " ")
            assert "--config=configs/resnet50_vd.py" in called


@pytest.mark.ci
@pytest.mark.parametrize(
    "words", [w for text in INLINE for w in commands_in(text) if rule_of(w) == "run"], ids=" ".join
)
def test_an_inline_command_runs(words, folder, here):
    prepare(" ".join(words), folder, here)
    run(words, here)


# What a snippet that is a part of a config begins with.
CONFIG = "from configs import base\nfrom jaxcls.config import stage_mults\nc = base.get_config()\n"


SNIPPETS = [
    pytest.param(
        text,
        id=text.splitlines()[0],
        marks=[pytest.mark.ci] if "import" in text else [],  # a whole program
    )
    for text in PYTHON
]


@pytest.mark.parametrize("text", SNIPPETS)
def test_a_snippet_runs(text, commands, tmp_path):
    program = CONFIG + text if re.match(r"c\.", text) else text
    net, zeros = test_network.small()
    weights.export(tmp_path / "runs/mine", zeros, {"network": net.described()})
    Image.new("RGB", (30, 20)).save(tmp_path / "cat.jpg")
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=commands.environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
