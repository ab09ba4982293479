"""What training know-how is worth, measured: each claim of the README's table, on CIFAR-10.

    python tests/claims.py --data=CIFAR --out=DIR [--only=transfer,tail] [--seeds=3]

CIFAR has train/CLASS/* and test/CLASS/*. Networks are small ResNet-D that a processor core trains
in minutes. Every run is a `python -m jaxcls.main` in a folder of DIR, so that the same command goes
on where it was stopped, nothing is trained twice, and several claims may run at once. Prints a
table of top-1 accuracy on test images, or of the calibration error, in percent: the mean over the
seeds, and each of them; DIR/CLAIM.json has the figures of a claim.
"""

import argparse
import csv
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, create_trial

from jaxcls.sweep import space
from jaxcls.sweep.propose import distributions, propose

ROOT = Path(__file__).parents[1]
FIRST = ["airplane", "automobile", "bird", "cat", "deer"]  # with many images, in a long tail
SECOND = ["dog", "frog", "horse", "ship", "truck"]  # with few


class Claims:
    """Runs what it is asked for, once, and remembers what came out."""

    def __init__(self, data: Path, out: Path, seeds: int):
        self.data, self.out, self.seeds = data.resolve(), out.resolve(), range(seeds)
        (self.out / "data").mkdir(parents=True, exist_ok=True)

    def folder(self, name: str, classes: list[str]) -> Path:
        """Returns a folder with the images of some classes."""
        root = self.out / "data" / name
        for split in ("train", "test"):
            (root / split).mkdir(parents=True, exist_ok=True)
            for c in classes:
                link = root / split / c
                if not link.exists():
                    link.symlink_to(self.data / split / c)
        return root

    def command(self, *arguments: str) -> str:
        """Runs `python -m jaxcls.ARGUMENTS`; returns what it prints."""
        print("   ", *arguments, file=sys.stderr, flush=True)
        done = subprocess.run(
            [sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True
        )
        if done.returncode:
            sys.exit(f"{' '.join(arguments)}\n{done.stderr}")
        return done.stdout

    def run(self, name: str, seed: int, *arguments: str) -> Path:
        """Trains, unless that was done; returns the working directory."""
        workdir = self.out / "runs" / f"{name}_{seed}"
        summary = workdir / "summary.json"
        if not summary.exists() or not json.loads(summary.read_text())["complete"]:
            self.command(
                "jaxcls.main",
                *arguments,
                f"--config.seed={seed}",
                "--config.log.tensorboard=False",
                f"--workdir={workdir}",
            )
        return workdir

    def evaluate(self, workdir: Path, *arguments: str) -> float:
        """Returns the top-1 accuracy of a run in an evaluation of its own, in percent."""
        answer = self.command(
            "jaxcls.main",
            "--mode=eval",
            f"--workdir={workdir}",
            "--config.report.enabled=False",
            *arguments,
        )
        return 100 * json.loads(answer.splitlines()[-1])["top1"]

    def table(self) -> str:
        """Returns the figures so far as Markdown."""
        lines = ["| claim | variant | mean | each seed |", "|---|---|---|---|"]
        for claim in CLAIMS:
            file = self.out / f"{claim.__name__}.json"
            title = (claim.__doc__ or "").splitlines()[0]
            for variant, values in (json.loads(file.read_text()) if file.exists() else {}).items():
                each = ", ".join(f"{v:.2f}" for v in values)
                lines.append(f"| {title} | {variant} | {statistics.mean(values):.2f} | {each} |")
        return "\n".join(lines)


def last(workdir: Path) -> float:
    """Returns the top-1 accuracy of a run's last evaluation, in percent."""
    return 100 * json.loads((workdir / "summary.json").read_text())["last"]["top1"]


def report(workdir: Path) -> dict[str, Any]:
    """Returns the figures of a run's report."""
    return json.loads((workdir / "report" / "metrics.json").read_text())


# -- The claims; the first line of a docstring names one in the table ------------------------------

Figures = dict[str, list[float]]


def cifar(c: Claims, *arguments: str) -> tuple[str, ...]:
    """Returns the arguments of a run on all ten classes."""
    return ("--config=configs/cifar10.py", f"--config.data.root={c.data}", *arguments)


def pretrained(c: Claims, seed: int) -> Path:
    """Returns a network that knows the second five classes."""
    root = f"--config.data.root={c.folder('second', SECOND)}"
    return c.run("pretrained", seed, "--config=configs/cifar10.py", root)


def few(root: Path, start: Path) -> tuple[str, ...]:
    """Returns the arguments of a fine-tuning on a hundredth of the images, 50 of each class."""
    return (
        "--config=configs/finetune.py",
        f"--config.data.root={root}",
        "--config.data.eval=test",
        "--config.data.fraction=0.01",
        f"--config.init.checkpoint={start}",
    )


def teacher(c: Claims) -> Path:
    """Returns a network of twice the width that was trained on all 50,000 images."""
    wide = '--config.model.options=(("stem","small"),("depths",(1,1,1)),("width",32))'
    return c.run("teacher", 0, *cifar(c, wide))


STUDENT = tuple(
    f"--config.{key}=1e5 examples" for key in ("duration", "eval.every", "checkpoint.every")
)
TENTH = (*STUDENT, "--config.data.fraction=0.1")


def plain(c: Claims, seed: int) -> Path:
    """Returns a network that was trained on 5,000 images."""
    return c.run("plain", seed, *cifar(c, *TENTH))


def taught(c: Claims) -> tuple[str, ...]:
    """Returns the arguments of a run with a teacher."""
    return ("--config.loss.name=kl", f"--config.teacher.checkpoints={teacher(c)}")


UNLABELLED = ("--config.data.unlabelled=train", "--config.data.unlabelled_share=0.75")


def more(c: Claims, seed: int) -> Path:
    """Returns one that had a teacher, and the other images without their labels."""
    return c.run("more", seed, *cifar(c, *TENTH, *taught(c), *UNLABELLED))


def transfer(c: Claims) -> Figures:
    """Fine-tuning, 250 images of 5 classes"""
    found: Figures = {"from scratch": [], "from a network of 5 other classes": []}
    for seed in c.seeds:
        tuning = few(c.folder("first", FIRST), pretrained(c, seed))
        scratch = c.run("scratch", seed, *tuning, "--config.init.reset=('.',)")
        found["from scratch"].append(last(scratch))
        tuned = c.run("tuned", seed, *tuning)
        found["from a network of 5 other classes"].append(last(tuned))
    return found


def distillation(c: Claims) -> Figures:
    """Distillation, 5,000 labels and 1,000"""
    found: Figures = {}
    scarce = (*STUDENT, "--config.data.fraction=0.02")
    for labels, suffix, arguments in (("5,000", "", TENTH), ("1,000", "_1000", scarce)):
        for name, variant, how in (
            ("plain", "labels alone", ()),
            ("taught", "a teacher", taught(c)),
            ("more", "and 50,000 images without labels", (*taught(c), *UNLABELLED)),
        ):
            runs = [c.run(name + suffix, s, *cifar(c, *arguments, *how)) for s in c.seeds]
            found[f"{labels}: {variant}"] = [last(run) for run in runs]
    return found


def multipliers(c: Claims) -> Figures:
    """A distilled network fine-tuned on 500 images"""
    found: Figures = {"before": [], "one rate": [], "a rate a stage": []}
    mults = (("^stem/", 0.1), ("^stage1/", 0.1), ("^stage2/", 0.2), ("^stage3/", 0.3))
    for seed in c.seeds:
        start = more(c, seed)
        found["before"].append(last(start))
        tuning = few(c.data, start)
        found["one rate"].append(last(c.run("one_rate", seed, *tuning)))
        rates = c.run("stage_rates", seed, *tuning, f"--config.optim.lr_mults={mults}")
        found["a rate a stage"].append(last(rates))
    return found


def tail(c: Claims) -> Figures:
    """Long tail, 5,000 to 50 images a class"""
    found: Figures = {}
    for name, variant, arguments in (
        ("tail", "plain", ()),
        ("tail_sampling", "balanced sampling", ("--config.data.sampling=balanced",)),
        ("tail_weights", "class weights", ('--config.loss.class_weights=("effective",)',)),
        ("tail_logits", "logit adjustment", ("--config.loss.logit_adjustment=1.0",)),
    ):
        for seed in c.seeds:
            long_tail = "--config.data.long_tail=100.0"
            short = [argument.replace("1e5", "6e4") for argument in STUDENT]
            run = c.run(name, seed, *cifar(c, *short, long_tail, *arguments))
            of = report(run)["per_class"]
            rare = 100 * statistics.mean(of[name]["recall"] for name in SECOND)
            found.setdefault(f"{variant}, all classes", []).append(last(run))
            found.setdefault(f"{variant}, the rare half", []).append(rare)
    return found


def views(c: Claims) -> Figures:
    """Views and networks, 5,000 images"""
    names = ("one view", "and its mirror image", "networks fused", "fused, and mirror images")
    found: Figures = {name: [] for name in names}
    runs = [plain(c, seed) for seed in c.seeds]
    for run in runs:
        found[names[0]].append(last(run))
        found[names[1]].append(c.evaluate(run, "--config.eval.tta=flip"))
    if len(runs) > 1:
        fuse = f"--config.eval.fuse={','.join(map(str, runs[1:]))}"
        found[names[2]].append(c.evaluate(runs[0], fuse))
        found[names[3]].append(c.evaluate(runs[0], fuse, "--config.eval.tta=flip"))
    return found


def resolution(c: Claims) -> Figures:
    """Trained on random parts at 32 pixels"""
    found: Figures = {}
    crop = ("--config.crop.name=random_resized", "--config.crop.shift=0")
    for seed in c.seeds:
        run = c.run("crops", seed, *cifar(c, *TENTH, *crop, "--config.crop.scale=(0.25,1.0)"))
        for size in (32, 36, 40, 48):
            sizes = (f"--config.image.eval_size={size}", f"--config.image.eval_resize={size}")
            found.setdefault(f"evaluated at {size}", []).append(c.evaluate(run, *sizes))
    return found


def search(c: Claims) -> Figures:
    """Search, 196 settings of a fine-tuning

    The grid is trained. A trial of the same settings, on as many cores, gives the same figure bit
    for bit, so what a search of 20 trials would find is looked up in it, for 10 of its seeds.
    """
    there = space.read(str(ROOT / "configs" / "spaces" / "transfer.py"))
    workdir = c.out / "sweep"
    c.command(
        "jaxcls.sweep",
        "--space=configs/spaces/transfer.py",
        *few(c.folder("first", FIRST), pretrained(c, 0)),
        "--config.duration=60 steps",
        "--config.eval.every=60 steps",
        "--config.report.enabled=False",
        "--strategy=grid",
        f"--trials={space.size(there)}",
        "--pruner=none",
        f"--workdir={workdir}",
    )
    with open(workdir / "trials.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    grid = {tuple(row[key] for key in there): float(row["top1"]) for row in rows}
    found: Figures = {"grid, 196 trials": [100 * max(grid.values())]}
    for strategy in ("bayes", "random"):
        best = []
        for seed in range(10):
            trials: list[FrozenTrial] = []
            for _ in range(20):
                params = propose(there, strategy, seed, trials, "maximize")
                value = grid[tuple(str(v) for v in params.values())]
                dists = distributions(there)
                trials.append(create_trial(value=value, params=params, distributions=dists))
            best.append(100 * max(trial.value for trial in trials if trial.value is not None))
        found[f"{strategy}, 20 trials"] = best
    return found


def calibration(c: Claims) -> Figures:
    """Calibration error, 5,000 images"""
    found: Figures = {"as trained": [], "with a temperature": []}
    for seed in c.seeds:
        temperature = report(plain(c, seed))["temperature"]
        found["as trained"].append(100 * temperature["ece_before"])
        found["with a temperature"].append(100 * temperature["ece_after"])
    return found


CLAIMS = (transfer, distillation, multipliers, tail, views, resolution, search, calibration)


def main() -> None:
    """Runs the claims that are asked for and prints the table."""
    names = [claim.__name__ for claim in CLAIMS]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="CIFAR-10 as a folder of images")
    parser.add_argument("--out", type=Path, required=True, help="for runs and figures")
    parser.add_argument("--only", default=",".join(names), help="claims, with commas")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    c = Claims(arguments.data, arguments.out, arguments.seeds)
    for claim in CLAIMS:
        if claim.__name__ in arguments.only.split(","):
            figures = json.dumps(claim(c), indent=1)
            (c.out / f"{claim.__name__}.json").write_text(figures + "\n")
    print(c.table())


if __name__ == "__main__":
    main()
