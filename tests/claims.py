"""What training know-how is worth, measured: each claim of the README's table, on CIFAR-10.

    python tests/claims.py --data=CIFAR --out=DIR [--only=transfer,tail] [--seeds=3]

CIFAR has train/CLASS/* and test/CLASS/*. Networks are small ResNet-D that two processor cores train
in minutes. Every run is a `python -m jaxcls.main` in a folder of DIR, so that the same command goes
on where it was stopped, and nothing is trained twice. Prints a table of top-1 accuracy on test
images: the mean over the seeds, and each of them; DIR/claims.json has the figures.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FIRST = ["airplane", "automobile", "bird", "cat", "deer"]  # with many images, in a long tail
SECOND = ["dog", "frog", "horse", "ship", "truck"]  # with few


def network(width: int) -> str:
    """Returns the options of a ResNet-D with three blocks."""
    return f'--config.model.options=(("stem","small"),("depths",(1,1,1)),("width",{width}))'


class Claims:
    """Runs what it is asked for, once, and remembers what came out."""

    def __init__(self, data: Path, out: Path, seeds: int):
        self.data, self.out, self.seeds = data.resolve(), out.resolve(), range(seeds)
        self.results: dict[str, dict[str, list[float]]] = {}

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

    def evaluate(self, workdir: Path, *arguments: str) -> dict[str, Any]:
        """Returns the metrics of an evaluation of a run."""
        answer = self.command("jaxcls.main", "--mode=eval", f"--workdir={workdir}", *arguments)
        return json.loads(answer.splitlines()[-1])

    def note(self, claim: str, variant: str, value: float) -> None:
        """Keeps a figure; a claim's variants are compared."""
        self.results.setdefault(claim, {}).setdefault(variant, []).append(value)
        (self.out / "claims.json").write_text(json.dumps(self.results, indent=1))

    def table(self) -> str:
        """Returns the figures as Markdown."""
        lines = ["| claim | variant | mean | each seed |", "|---|---|---|---|"]
        for claim, variants in self.results.items():
            for variant, values in variants.items():
                each = ", ".join(f"{v:.2f}" for v in values)
                lines.append(f"| {claim} | {variant} | {statistics.mean(values):.2f} | {each} |")
        return "\n".join(lines)


def last(workdir: Path) -> float:
    """Returns the top-1 accuracy of a run's last evaluation, in percent."""
    return 100 * json.loads((workdir / "summary.json").read_text())["last"]["top1"]


def report(workdir: Path) -> dict[str, Any]:
    """Returns the figures of a run's report."""
    return json.loads((workdir / "report" / "metrics.json").read_text())


# -- The claims ------------------------------------------------------------------------------------


def cifar(c: Claims, *arguments: str) -> tuple[str, ...]:
    """Returns the arguments of a run on all ten classes."""
    return ("--config=configs/cifar10.py", f"--config.data.root={c.data}", *arguments)


def pretrained(c: Claims, seed: int) -> Path:
    """Returns a network that knows the second five classes."""
    root = f"--config.data.root={c.folder('second', SECOND)}"
    return c.run("pretrained", seed, "--config=configs/cifar10.py", root, network(32))


def few(c: Claims, root: Path, start: Path) -> tuple[str, ...]:
    """Returns the arguments of a fine-tuning on a hundredth of the images, 50 of each class."""
    return (
        "--config=configs/finetune.py",
        f"--config.data.root={root}",
        "--config.data.eval=test",
        "--config.data.fraction=0.01",
        f"--config.init.checkpoint={start}",
    )


def teacher(c: Claims) -> Path:
    """Returns a network that was trained on all 50,000 images."""
    return c.run("teacher", 0, *cifar(c, network(32), "--config.duration=8 epochs"))


STUDENT = (
    network(16),
    "--config.duration=1.5e5 examples",
    "--config.eval.every=5e4 examples",
    "--config.checkpoint.every=5e4 examples",
)
TENTH = (*STUDENT, "--config.data.fraction=0.1")


def transfer(c: Claims) -> None:
    """250 images of five classes: from a network of five other classes, or from scratch."""
    root = c.folder("first", FIRST)
    for seed in c.seeds:
        tuning = few(c, root, pretrained(c, seed))
        scratch = c.run("scratch", seed, *tuning, "--config.init.reset=('.',)")
        c.note("250 images", "from scratch", last(scratch))
        c.note("250 images", "fine-tuned", last(c.run("tuned", seed, *tuning)))


def distillation(c: Claims) -> None:
    """A tenth of the labels: alone, with a teacher, and with images without labels besides."""
    taught = ("--config.loss.name=kl", f"--config.teacher.checkpoints={teacher(c)}")
    more = ("--config.data.unlabelled=train", "--config.data.unlabelled_share=0.75")
    for seed in c.seeds:
        for name, variant, arguments in (
            ("plain", "labels alone", ()),
            ("taught", "with a teacher", taught),
            ("more", "and 50,000 images without labels", (*taught, *more)),
        ):
            workdir = c.run(name, seed, *cifar(c, *TENTH, *arguments))
            c.note("5,000 labels", variant, last(workdir))


def multipliers(c: Claims) -> None:
    """A distilled network fine-tuned on 500 images: one rate for all, or less for early stages."""
    mults = (("^stem/", 0.1), ("^stage1/", 0.1), ("^stage2/", 0.2), ("^stage3/", 0.3))
    for seed in c.seeds:
        start = c.out / "runs" / f"more_{seed}"
        tuning = few(c, c.data, start)
        c.note("distilled start, 500 images", "before", last(start))
        c.note("distilled start, 500 images", "one rate", last(c.run("one_rate", seed, *tuning)))
        rates = c.run("stage_rates", seed, *tuning, f"--config.optim.lr_mults={mults}")
        c.note("distilled start, 500 images", "a rate a stage", last(rates))


def tail(c: Claims) -> None:
    """A hundred images of the first class for each of the last, 12,400 in all."""
    for seed in c.seeds:
        for name, variant, arguments in (
            ("tail", "plain", ()),
            ("tail_sampling", "balanced sampling", ("--config.data.sampling=balanced",)),
            ("tail_weights", "class weights", ('--config.loss.class_weights=("effective",)',)),
            ("tail_logits", "logit adjustment", ("--config.loss.logit_adjustment=1.0",)),
        ):
            long_tail = "--config.data.long_tail=100.0"
            workdir = c.run(name, seed, *cifar(c, *STUDENT, long_tail, *arguments))
            recalls = report(workdir)["per_class"]
            rare = 100 * statistics.mean(recalls[name]["recall"] for name in SECOND)
            c.note("long tail, all classes", variant, last(workdir))
            c.note("long tail, the rare half", variant, rare)


def views(c: Claims) -> None:
    """Networks trained on a tenth of the images: one view, several, several networks."""
    runs = [c.run("plain", seed, *cifar(c, *TENTH)) for seed in c.seeds]
    for run in runs:
        c.note("views and networks", "one view", 100 * c.evaluate(run)["top1"])
        flip = c.evaluate(run, "--config.eval.tta=flip")
        c.note("views and networks", "and its mirror image", 100 * flip["top1"])
    others = ",".join(map(str, runs[1:]))
    fused = c.evaluate(runs[0], f"--config.eval.fuse={others}")
    c.note("views and networks", f"{len(runs)} networks", 100 * fused["top1"])


def resolution(c: Claims) -> None:
    """Trained on random parts of the images at 32 pixels, evaluated larger."""
    crop = ("--config.crop.name=random_resized", "--config.crop.shift=0")
    for seed in c.seeds:
        run = c.run("crops", seed, *cifar(c, *TENTH, *crop, "--config.crop.scale=(0.25,1.0)"))
        for size in (32, 36, 40, 48):
            sizes = (f"--config.image.eval_size={size}", f"--config.image.eval_resize={size}")
            result = c.evaluate(run, *sizes)
            c.note("trained at 32 pixels", f"evaluated at {size}", 100 * result["top1"])


SPACE = """
def get_space():
    return {
        "lr.peak": (0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003),
        "optim.l2": (1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5),
    }
"""


def search(c: Claims) -> None:
    """Fine-tuning on 250 images, 7 rates x 7 decays: the grid, and a tenth of its trials."""
    space = c.out / "space.py"
    space.write_text(SPACE)
    arguments = few(c, c.folder("first", FIRST), pretrained(c, 0))
    arguments = ("jaxcls.sweep", f"--space={space}", *arguments, "--pruner=none")
    strategies = [("grid", "grid, 49 trials", 49, 0)]
    strategies += [("bayes", "Bayesian, 5 trials", 5, seed) for seed in c.seeds]
    for strategy, variant, trials, seed in strategies:
        workdir = c.out / "sweeps" / f"{strategy}_{seed}"
        of_search = (f"--strategy={strategy}", f"--trials={trials}", f"--seed={seed}")
        c.command(*arguments, *of_search, f"--workdir={workdir}")
        lines = (workdir / "trials.csv").read_text().splitlines()
        column = lines[0].split(",").index("top1")
        values = [line.split(",")[column] for line in lines[1:]]
        c.note("search", variant, 100 * max(float(value) for value in values if value))


def calibration(c: Claims) -> None:
    """The calibration error of networks, before and after a temperature of the other half."""
    for seed in c.seeds:
        run = c.run("plain", seed, *cifar(c, *TENTH))
        c.evaluate(run)
        found = report(run)["temperature"]
        c.note("calibration error", "as trained", 100 * found["ece_before"])
        c.note("calibration error", "with a temperature", 100 * found["ece_after"])


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
            claim(c)
            print(c.table(), flush=True)


if __name__ == "__main__":
    main()
