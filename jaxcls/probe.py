"""A linear probe: the best linear classifier on the features of a network that stays as it is.

The features of all images are computed once, as evaluation sees them, and kept in DIR/features.
For each weight decay the classifier is the optimum of L2-regularised logistic regression, which
L-BFGS finds from that of the decay before: it is convex, so that there is no learning rate to
search. The decay is chosen on a held-out part of the training images; then the classifier is
trained on all of them, and evaluated once.
"""

import functools
import json
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from etils import epath
from ml_collections import ConfigDict

from jaxcls import (
    checksums,
    choices,
    features,
    files,
    losses,
    metrics,
    names,
    network,
    precision,
    record,
    sharding,
    steps,
    trees,
    weights,
)
from jaxcls import config as configs
from jaxcls.config import consume, expect
from jaxcls.console import Console, hints
from jaxcls.data import access, arrays, ops, sampling
from jaxcls.data.feed import Feed
from jaxcls.data.sources import Data
from jaxcls.directory import lock
from jaxcls.keys import first_keys
from jaxcls.network import Network, Variables
from jaxcls.report import write
from jaxcls.report.scores import Scores

SHARD = 1024  # images whose features are a file
ITERATIONS = 1000  # of L-BFGS at most, for a decay
# What the features, and so the probe, depend on; other keys are of trainings.
USED = ("data.", "loader.", "image.", "mesh.", "precision.", "probe.", "seed", "eval.batch_size")
USED += ("init.checkpoint", "init.ema", "report.")
UNUSED = ("data.sampling", "data.repeats", "data.cache", "data.unlabelled", "data.unlabelled_share")


class Grid(NamedTuple):
    """What is tried, `config.probe`."""

    decays: tuple[float, ...]
    held_out: float


def make(*, decays: Sequence[float], held_out: float) -> Grid:
    """Returns the grid of `config.probe`.

    Raises:
      ValueError: a value out of range.
    """
    good = all(type(d) in (int, float) and 0 < d < 1e6 for d in decays)
    expect(good, "probe.decays", decays, "numbers above 0 and below 1e6: (1e-4, 1e-3, 1e-2)")
    expect(0 < held_out < 1, "probe.held_out", held_out, "a share above 0 and below 1")
    return Grid(tuple(sorted(map(float, decays), reverse=True)), held_out)


class Features(NamedTuple):
    """Those of images with a label."""

    x: np.ndarray  # float32 [N, D]
    label: np.ndarray  # int [N]
    number: np.ndarray  # int [N], of the image in its source

    def rows(self, chosen: np.ndarray) -> "Features":
        """Returns some of them."""
        return Features(*(values[chosen] for values in self))


KEYS = Features._fields


class Head(NamedTuple):
    """A linear classifier."""

    kernel: np.ndarray  # float32 [D, K]
    bias: np.ndarray  # float32 [K]

    def logits(self, of: Features) -> np.ndarray:
        """Returns what it says, float32 [N, K]."""
        return of.x @ self.kernel + self.bias

    def measured(self, of: Features) -> dict[str, float]:
        """Returns {"loss", "top1", "top5", "images"} as `evaluate.evaluate` does."""
        logits = jnp.asarray(self.logits(of))
        rank = losses.rank(logits, jnp.asarray(of.label))
        return {
            "loss": float(losses.cross_entropy(logits, jnp.asarray(of.label)).mean()),
            "top1": float((rank < 1).mean()),
            "top5": float((rank < min(5, logits.shape[-1])).mean()),
            "images": len(of.label),
        }


def run(config: ConfigDict, workdir: str) -> int:
    """Probes the network of `config.init.checkpoint`; returns the exit code.

    Writes into `workdir` the weights with the best classifier, config.json, metrics.jsonl and
    summary.json, as a training does. The same command goes on with the features that are there.

    Raises:
      ValueError: a user's mistake.
    """
    began, console = time.time(), Console()
    record.check_workdir(workdir)
    grid = consume(config, "probe", make)
    _check(config, workdir)
    names.check(config)
    console.status("looking at the images ...")
    given = config
    config, data = choices.open_data(config)
    _check_labels(data)
    layout = consume(config, "mesh", sharding.make)
    batch_size = config.eval.batch_size or -(-64 // layout.mesh.size) * layout.mesh.size
    console.status("loading the network ...")
    net, variables = _load(config, data, layout, console.say)
    compute = features.of_classifier(net)
    with lock(workdir) as keep:
        folder = epath.Path(workdir)
        about = {"class_names": list(data.class_names), **metrics.environment()}
        record.write(given, folder, step=0, about=about)
        keep()
        cached = functools.partial(
            _features, compute, net, variables, data, layout, batch_size, folder, console
        )
        train = cached("train", data.train)
        evaluation = None if data.eval is None else cached("eval", data.eval)
        console.erase()
        console.say(
            f"{net.name} of {config.init.checkpoint}: {train.x.shape[1]:,} features of "
            f"{len(train.label):,} training images of {net.num_classes} classes"
        )
        head, lines, best = search(
            train, grid, classes=net.num_classes, seed=config.seed, report=console.say
        )
        last = None
        if evaluation is not None:
            last = {"step": len(lines), **metrics.plain(head.measured(evaluation))}
            lines.append({"split": "eval", **last})
        head_of = {"head/fc/kernel": head.kernel, "head/fc/bias": head.bias}
        take = lambda path, x: head_of.get(path, np.asarray(x)).astype(x.dtype)
        variables = {**variables, "params": trees.map_with_path(take, variables["params"])}
        told = {"network": net.described(), "crop": dict(config.crop)}
        told |= {"class_names": list(data.class_names), "probe": {"decay": best}}
        _replace(folder / "checkpoints", variables, told)
        seconds = round(time.time() - began, 1)
        lines = [{"step": i, "epoch": 0.0, **line} for i, line in enumerate(lines, 1)]
        text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
        files.write_atomically(folder / "metrics.jsonl", text)
        summary = {
            "model": net.name,
            "complete": True,
            "steps": len(grid.decays),
            "epochs": 0.0,
            "skipped": 0,
            "best": last,
            "last": last,
            "decay": best,
            "features": train.x.shape[1],
            "seconds": seconds,
            "class_names": list(data.class_names),
            **metrics.environment(),
        }
        text = json.dumps(summary, indent=1, allow_nan=False) + "\n"
        files.write_atomically(folder / "summary.json", text)
        if last:
            report = write.Report(config, folder, net, data, console)
            _add(report.scores(last=True), head, evaluation, len(data.eval))
            report.write(last["step"], last, jax.device_put(variables, layout.whole))
    console.say(f"\n{net.name}: a probe with decay {best:g}, {seconds} s")
    if last:
        top5 = f"  top-5 {100 * last['top5']:6.2f} %" if net.num_classes > 5 else ""
        console.say(f"  eval  top-1 {100 * last['top1']:6.2f} %{top5}  loss {last['loss']:.4f}")
    console.say(f"  files:     {workdir}")
    for line in hints(given.data.to_dict(), workdir, evaluated=last is not None):
        console.say(f"  {line}")
    return 0


def _add(scores: Scores | None, head: Head, of: Features, count: int) -> None:
    """Adds what a classifier says of the images of a source, of which there are `count`."""
    if scores is None:
        return
    logits = np.zeros((count, len(head.bias)), np.float32)
    label, mask = np.full(count, -1, np.int32), np.zeros(count, bool)
    logits[of.number], label[of.number], mask[of.number] = head.logits(of), of.label, True
    scores.add({"logits": logits, "label": label, "mask": mask})


def _check(config: ConfigDict, workdir: str) -> None:
    """Refuses what is no probe."""
    if jax.process_count() > 1:
        raise ValueError("a probe is computed by one process: start it without --coordinator")
    if files.remote(workdir):
        raise ValueError(f"--workdir={workdir}: a probe writes to a folder of this machine")
    if not config.init.checkpoint:
        raise ValueError(
            "config.init.checkpoint is not set: name the run, checkpoint or export to probe"
        )
    if Path(config.init.checkpoint).resolve() == Path(workdir).resolve():
        raise ValueError(f"--workdir={workdir} is the run to probe: choose another --workdir")
    defaults = configs.defaults()[0]
    changed = [
        f"config.{key}"
        for key, value in configs.flatten(config).items()
        if value is not None and value != defaults[key]
        if key in UNUSED or not key.startswith(USED)
    ]
    if changed:
        raise ValueError(
            f"{', '.join(sorted(changed))}: not used by a probe (config.probe.decays), which "
            "trains nothing but a classifier on features: begin with configs/probe.py"
        )


def _check_labels(data: Data) -> None:
    if data.train.marks:
        raise ValueError(
            "config.data.multi_label: a probe needs a class for each image; fine-tune, with "
            "configs/finetune.py"
        )


def _load(
    config: ConfigDict, data: Data, layout: sharding.Layout, report: Callable[[str], None]
) -> tuple[Network, Variables]:
    """Returns the network of the checkpoint with the classes of the data, and its variables.

    Images are as there, but for what the config changes.
    """
    path, defaults = config.init.checkpoint, configs.defaults()[0]
    stored, meta = weights.load(path, report=lambda line: None)
    own = network.of_meta(meta, stored, path).described()["image"]
    image = dict(config.image)
    for key, value in own.items():  # what is open is that of the checkpoint already
        if f"image.{key}" not in configs.OPEN and image[key] == defaults[f"image.{key}"]:
            image[key] = value
    numbers = consume(config, "precision", precision.make, platform=layout.platform)
    net, _, _ = consume(
        config,
        "model",
        network.make,
        classes=len(data.class_names),
        class_names=data.class_names,
        image=consume({"image": image}, "image", ops.Image),
        precision=numbers.name,
    )
    # heads that are not taken, auxiliary ones too, are fresh
    fresh = functools.partial(steps.init_variables, net.module, net.image.shape, None)
    variables = weights.initialize(
        jax.jit(fresh, out_shardings=layout.whole)(first_keys(config.seed)[0]),
        network=net.described(),
        checkpoint=path,
        ema=config.init.ema,
        report=report,
    )
    return net, variables


# -- Features --------------------------------------------------------------------------------------


def _features(
    compute: Callable[[Variables, jax.Array], jax.Array],
    net: Network,
    variables: Variables,
    data: Data,
    layout: sharding.Layout,
    batch_size: int,
    workdir: Path,
    console: Console,
    split: str,
    source: Any,
) -> Features:
    """Returns the features of a split, of which files have those that were computed before."""
    folder = workdir / "features"
    folder.mkdir(exist_ok=True)
    known = identity(net, variables, source)
    for old in folder.glob(f"{split}-*"):
        if not old.name.startswith(f"{split}-{known}-") or old.suffix != ".npz":
            old.unlink()
    whole = jax.device_put(variables, layout.whole)
    compute = jax.jit(compute, in_shardings=(layout.whole, layout.rows))
    parts, skipped = [], 0
    for first in range(0, len(source), SHARD):
        path = folder / f"{split}-{known}-{first // SHARD:05}.npz"
        some = arrays.Subset(source, np.arange(first, min(first + SHARD, len(source))))
        part = _read(path)
        if part is None:
            feed = Feed(data, some, net.transform, layout)
            told = lambda done, first=first: console.status(
                f"features of {split} images: {first + done:,} of {len(source):,}"
            )
            rows = [*features.each(
                lambda images: {"x": compute(whole, images)},
                feed, batch_size=batch_size, progress=told,
            )]  # fmt: skip
            x, label, number = (np.concatenate([row[key] for row in rows]) for key in KEYS)
            part = Features(x, label, first + number)
            _write(path, part)
        parts.append(part)
        skipped += len(some) - len(part.label)
    found = Features(*map(np.concatenate, zip(*parts)))
    if skipped:
        console.say(f"{skipped} unreadable {split} image(s) left out")
    return found.rows(np.flatnonzero(found.label >= 0))


def identity(net: Network, variables: Variables, source: Any) -> str:
    """Returns a digest of all that features depend on: weights, preprocessing, images."""
    told = net.described()
    told = {key: told[key] for key in ("name", "options", "image", "precision", "version")}
    kept = {
        path: x
        for path, x in zip(trees.paths(variables), jax.tree.leaves(variables))
        if not re.match(f"(params|batch_stats)/{weights.HEADS}", path)
    }
    return access.digest([told, len(source), source.identity, trees.digest(kept)])[:16]


def _read(path: Path) -> Features | None:
    try:
        with np.load(path) as stored:
            return Features(*(stored[key] for key in KEYS))
    except Exception:  # it is not there, or is damaged: computed anew
        return None


def _write(path: Path, part: Features) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        np.savez(file, **part._asdict())
    temporary.replace(path)


# -- Classifiers -----------------------------------------------------------------------------------


def search(
    train: Features,
    grid: Grid,
    *,
    classes: int,
    seed: int,
    report: Callable[[str], None] = lambda line: None,
) -> tuple[Head, list[dict[str, Any]], float]:
    """Returns the best classifier, a line of figures for each decay, and the best decay.

    A share of each class is held out, by the seed. The decay of the highest top-1 there is the best
    (of equals, that of the least loss), and the classifier is trained on all images then.

    Raises:
      ValueError: nothing can be held out.
    """
    kept = sampling.subset(train.label, 1 - grid.held_out, seed)
    held = np.setdiff1d(np.arange(len(train.label)), kept)
    if not len(held):
        raise ValueError(
            f"config.probe.held_out = {grid.held_out} holds out none of {len(train.label)} images "
            "with a label: write a larger share"
        )
    fitting, held_out = train.rows(kept), train.rows(held)
    report(f"{len(held):,} of them are held out, to choose the decay by")
    report(
        f"{'decay':>9}  {'held-out top-1':>14}  {'loss':>7}  {'training top-1':>14}  {'loss':>7}"
    )
    lines = []
    fit = Fit(fitting, classes)
    for decay in grid.decays:
        head = fit(decay)
        ours, theirs = head.measured(held_out), head.measured(fitting)
        line = {"split": "held_out", "decay": decay, **ours}
        line |= {f"train_{key}": theirs[key] for key in ("loss", "top1")}
        lines.append(metrics.plain(line))
        report(
            f"{decay:9.2g}  {100 * ours['top1']:12.2f} %  {ours['loss']:7.4f}  "
            f"{100 * theirs['top1']:12.2f} %  {theirs['loss']:7.4f}"
        )
    best = max(lines, key=lambda line: (line["top1"], -line["loss"]))["decay"]
    ends = {grid.decays[-1]: "smaller", grid.decays[0]: "larger"}
    if len(lines) > 1 and best in ends:
        report(f"decay {best:g} is an end of the grid: {ends[best]} ones may be better")
    return Fit(train, classes)(best), lines, best


class Fit:
    """Logistic regression on features, again and again: each begins where the last one ended.

    Its loss is the mean cross-entropy plus decay / 2 times the sum of the squared weights, without
    the biases, of features that are centred and divided by one number, the root mean square of what
    is left: so the decays mean the same for all networks. For N images that is what scikit-learn's
    LogisticRegression minimises with C = 1 / (decay N) on these features.
    """

    def __init__(self, of: Features, classes: int):
        """Takes features with labels below `classes`."""
        self.mean = of.x.mean(0, dtype=np.float64)
        centred = of.x - self.mean.astype(np.float32)
        self.scale = max(float(np.sqrt(np.square(centred).mean(dtype=np.float64))), 1e-12)
        x, label = jnp.asarray(centred / self.scale, jnp.float32), jnp.asarray(of.label)
        shape = (x.shape[1], classes)

        def loss(flat, decay):
            kernel, bias = flat[: -shape[1]].reshape(shape), flat[-shape[1] :]
            with jax.default_matmul_precision("highest"):
                logits = x @ kernel + bias
            nll = losses.cross_entropy(logits, label).mean()
            return nll + decay / 2 * jnp.vdot(kernel, kernel)

        self.value_and_grad = jax.jit(jax.value_and_grad(loss))
        self.shape, self.flat = shape, np.zeros(shape[0] * shape[1] + shape[1])

    def __call__(self, decay: float) -> Head:
        """Returns the optimum for this decay."""

        def objective(flat):
            value, grad = self.value_and_grad(flat.astype(np.float32), np.float32(decay))
            return float(value), np.asarray(grad, np.float64)

        self.flat = scipy.optimize.minimize(
            objective,
            self.flat,
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": ITERATIONS, "maxcor": 20, "gtol": 1e-6, "ftol": 1e-9},
        ).x
        kernel = self.flat[: -self.shape[1]].reshape(self.shape) / self.scale
        bias = self.flat[-self.shape[1] :] - self.mean @ kernel
        return Head(kernel.astype(np.float32), bias.astype(np.float32))


def _replace(folder: Path, variables: Variables, told: Mapping[str, Any]) -> None:
    """Writes weights as the newest checkpoint; those before it are gone then."""
    before = checksums.steps(files.absolute(folder))
    weights.export(folder / str(max(before, default=0) + 1), jax.device_get(variables), told)
    for step in before:
        shutil.rmtree(folder / str(step))
