"""python -m jaxcls.config --config=FILE[:ARG] [--diff] [--plot=lr.png [--images=N]] \\
    [--config.KEY=VALUE]

Prints the config as a run writes it; with --diff what it changes from configs/base.py, `key: base
-> value`; with --plot draws the learning rate over the run, that of each part of the network where
these have factors, and prints nothing. The lengths of a run depend on the number of training images
in an epoch: --images=N says it, otherwise `config.data` is opened. Exit codes: 0; 2: a mistake in
command, config or data.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from jaxcls import config as configs
from jaxcls.command import define_config, exit_with, parse, told

POINTS = 4000  # steps of a curve that are drawn, at most about so many


@told
def main(argv: Sequence[str] = sys.argv) -> int:
    """Runs the command and returns its exit code."""
    values = flags.FlagValues()
    define_config(values)
    flags.DEFINE_bool("diff", False, "print what the config changes from base", flag_values=values)
    flags.DEFINE_string("plot", None, "picture of the learning rate to write", flag_values=values)
    flags.DEFINE_integer("images", None, "training images in an epoch", flag_values=values)
    name = parse(argv, values, help=__doc__)
    config = values.config
    if values.images is not None and (values.images < 1 or not values.plot):
        raise ValueError(f"--images={values.images}: write a number of images above 0, with --plot")
    if values.diff:
        print("\n".join(diff(config)) or "as configs/base.py")
    elif not values.plot:
        print(json.dumps(json.loads(config.to_json_best_effort()), indent=1))
        if left := configs.left_open(config):
            print(f"null: chosen when images are read: {', '.join(left)}", file=sys.stderr)
    if values.plot:
        write(values.plot, config, values.images, name)
    return 0


def diff(config: ConfigDict) -> list[str]:
    """Returns a line for each key that is not as in base."""
    base = configs.run_file(configs.BASE)["get_config"]()
    changes = configs.differences(config, base)
    return [f"{key}: {old!r} -> {new!r}" for key, (old, new) in changes.items()]


def write(path: str, config: ConfigDict, images: int | None, title: str) -> None:
    """Writes the picture of a config's learning rate.

    Args:
      path: of the picture.
      config: of a run.
      images: training images in an epoch; None: `config.data` is opened.
      title: of the picture.

    Raises:
      ValueError: something is wrong with the path, the config or the data.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if config.probe.decays:
        raise ValueError(f"--plot={path}: a probe (config.probe.decays) has no learning rate")
    out, figure = Path(path).expanduser(), Figure(figsize=(10, 5.5), layout="constrained")
    if not out.parent.is_dir():
        raise ValueError(f"--plot={path}: there is no folder {out.parent}")
    kinds = FigureCanvasAgg(figure).get_supported_filetypes()
    if out.suffix.lower()[1:] not in kinds:
        raise ValueError(f"--plot={path}: write the name of a picture, such as lr.png")
    draw(figure, *_settled(config, images), title)
    figure.savefig(out, dpi=120)


def _settled(config: ConfigDict, images: int | None) -> tuple[ConfigDict, dict[str, Any]]:
    """Returns the config with nothing left open, and facts of the data, as `draw` takes them."""
    import jax

    from jaxcls import choices

    if images is None:
        if not config.data.source:
            raise ValueError("config.data.source is not set: say --images=N, the training images")
        config, data = choices.open_data(config)
        return config, data.facts()
    if configs.left_open(config):
        given = {"weights": config.init.checkpoint, "devices": jax.devices()}
        pixels = config.image.size or 224
        config, _ = choices.settled(config, images=images, pixels=pixels, **given)
    classes = config.model.num_classes or config.data.num_classes or 1000
    return config, {"num_train": images, "num_classes": classes}


def draw(figure: Any, config: ConfigDict, facts: dict[str, Any], title: str) -> None:
    """Draws the learning rate of a config over its run.

    Args:
      figure: of matplotlib.
      config: with nothing left open.
      facts: of the data, `sources.Data.facts`, of which some do.
      title: of the picture.
    """
    from jaxcls import schedules

    plan = configs.plan(config, facts["num_train"])
    lengths = {"total_steps": plan.total_steps, "eval_every": plan.eval_every}
    lengths |= {"metric": config.checkpoint.best}
    lengths |= {"batch_size": plan.batch_size, "steps_per_epoch": plan.steps_per_epoch}
    rate = configs.consume(config, "lr", schedules.schedule, **lengths)
    keys = ("peak", "batch", "warmup", "warmup_if_scaled")
    run = schedules.lengths(**{key: config.lr[key] for key in keys}, **lengths)
    marks = [run.in_steps(m, key="lr.milestones") for m in config.lr.milestones]
    corners = [s for s in (run.warmup, *marks) if 0 < s < run.total]
    steps = np.linspace(0, run.total - 1, min(run.total, POINTS)).astype(int)
    steps = np.unique([*steps, *corners, *(s - 1 for s in corners)])
    rates = np.asarray(rate(steps.astype(np.int32)))

    axes = figure.add_subplot()
    parts = _parts(config, facts, rate)
    for number, (part, (low, high)) in enumerate(parts.items()):
        label = f"{part} x {high:.3g}" if low == high else f"{part} x {low:.3g} to {high:.3g}"
        color = f"C{number % 10}"
        axes.plot(steps, rates * high, color=color, label=label if part else None)
        if low < high:
            axes.fill_between(steps, rates * low, rates * high, color=color, alpha=0.25, lw=0)
            axes.plot(steps, rates * low, color=color, lw=0.7)
    factors = [x for pair in parts.values() for x in pair if x > 0]
    if max(factors) > 20 * min(factors) and rates.max() > 0:
        axes.set_yscale("log")
        axes.set_ylim(rates[rates > 0].max() * min(factors) / 30, None)
    else:
        axes.set_ylim(0, 1.1 * rates.max() * max(factors) or 1)
    place = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
    place |= {"xytext": (4, -4), "va": "top", "color": "0.4", "fontsize": "small"}
    if run.warmup:
        axes.axvspan(0, run.warmup, color="0.92", zorder=0)
        axes.annotate("warmup", (0, 1), **place)
    for mark, duration in zip(marks, config.lr.milestones):
        axes.axvline(mark, color="0.6", lw=0.8, ls="--", zorder=0)
        axes.annotate(duration, (mark, 1), rotation=90, **place)
    if isinstance(rate, schedules.Plateau):
        after = f"after {rate.patience + 1} evaluations in a row without a better {rate.metric}"
        axes.annotate(f"times {rate.gamma:g} {after}", (run.warmup, 0.5), **place)
    if any(parts):
        figure.legend(loc="outside right upper", fontsize="small", frameon=False)
    axes.set_xlim(0, run.total)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("step")
    axes.set_ylabel("learning rate")
    axes.grid(alpha=0.3)
    to_steps = lambda epoch: epoch * plan.steps_per_epoch
    epochs = axes.secondary_xaxis("top", functions=(plan.epoch, to_steps))
    epochs.set_xlabel("epoch")
    about = f"{config.lr.schedule}, peak {run.peak:.4g}, batch {plan.batch_size:,}"
    axes.set_title(f"{title}\n{about}, {plan.steps_per_epoch:,} steps an epoch", fontsize="medium")


def _parts(config: ConfigDict, facts: dict[str, Any], rate: Any) -> dict[str, tuple[float, float]]:
    """Returns the least and the largest factor of each part of the network that is trained.

    Without factors of parts that is {"": (1.0, 1.0)}. Only the network is built, and no teacher
    that it learns from.
    """
    if not config.optim.lr_mults and config.optim.layer_decay == 1:
        return {"": (1.0, 1.0)}
    import jax

    from jaxcls import network, optim, trees
    from jaxcls.data import ops

    net, _, _ = configs.consume(
        config,
        "model",
        network.make,
        classes=facts["num_classes"],
        class_names=facts.get("class_names", ()),
        image=configs.consume(config, "image", ops.Image),
        precision="float32",
        multi_label=facts.get("multi_label", False),
    )
    params = net.shapes["params"]
    optimizer = configs.consume(config, "optim", optim.make, params=params, learning_rate=rate)
    frozen = jax.tree.leaves(trees.mask(params, optimizer.frozen))
    factors = jax.tree.leaves(optimizer.factors)
    found: dict[str, list[float]] = {}
    for path, held, factor in zip(trees.paths(params), frozen, factors):
        if not held:
            found.setdefault(path.partition("/")[0], []).append(factor)
    order = sorted(found, key=lambda part: (part == "head", part == "neck", part != "stem", part))
    return {part: (min(found[part]), max(found[part])) for part in order}


if __name__ == "__main__":
    exit_with(main)
