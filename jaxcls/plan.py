"""python -m jaxcls.plan --config=FILE[:ARG] --topology=v5e:2x4 [--price=DOLLARS] [--json]

Says before any machine is rented whether a run fits, what it moves and roughly what it takes: its
real step is compiled for devices that need not be here. Needs `pip install -e '.[tpu]'` for TPUs,
and minutes the first time; what was found is kept by the program's hash.

  --topology=v5e:2x4    a slice of TPUs (v2 to v6e, tpu7x)
  --devices=cpu:8       so many virtual devices of this CPU, or gpu:1, of those that are here
  --price=1.2           dollars for a chip and hour: what the run costs
  --largest_batch       also the largest batch that fits: compiles several times
  --quick               of TPUs, in half the time or less: no bytes and times, as the compiler takes
                        its least effort. What fits so fits; as much as a fifth of the memory
                        may be for that, so ask again without where it does not fit
  --input_rate=610      images/s that one core prepares (python -m jaxcls.benchmark input), or
                        "measure" it here: whether the hosts feed the devices
  --vcpus=224           of all hosts, where they are not those of the topology
  --num_train, --num_classes   of the data, where it is not here; otherwise ImageNet's
  --json                one JSON object
  --config.KEY=VALUE    any key of the config

Memory is of one device. "parameters" has BatchNorm's statistics too, "activations" are what the
forward pass leaves for the backward pass, "temporaries" all the rest: gradients, batch, program.
The times are a roofline, from the makers' figures (jaxcls/chips.py): no step is faster, and one
that waits for nothing comes near. Evaluations, checkpoints and start-up are not in them.
"""

import sys

from jaxcls import output, signals

if __name__ == "__main__":  # before the imports that take a while
    output.prepare()
    signals.watch("stopped")

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from jaxcls import ahead, chips, choices, precision, program
from jaxcls.command import define_config, exit_with, parse, start_jax, told
from jaxcls.config import choose, left_open
from jaxcls.data import sources
from jaxcls.data.access import TEACHER

IMAGENET = 1_281_167, 1000  # training images and classes, where nothing says another number
UNIT = 8  # images of a device: batches that are tried for the largest are multiples, if they can


class Data(NamedTuple):
    """Of the images as much as a program depends on."""

    facts: dict[str, Any]  # of `program.build`
    extra: dict[str, tuple[tuple[int, ...], Any]]  # of a batch: name -> shape of a row, dtype
    training: Any = None  # the images, if they are here
    assumed: str = ""  # a line about what is not known


def look(
    config: ConfigDict, options: flags.FlagValues, devices: Sequence[Any]
) -> tuple[ConfigDict, Data]:
    """Returns the config with nothing left open, and its data, assumed where they are not here.

    Raises:
      ValueError: something is wrong with the config, whatever its images are.
    """
    images, classes = options.num_train, options.num_classes
    why = "as --num_train and --num_classes say"
    _check_data(config, devices)
    if not (images and classes):
        try:
            config, data = choices.open_data(config, devices=devices)
            facts, assumed = data.facts(), ""
            facts["num_train"] = images or facts["num_train"]
            if classes and classes != facts["num_classes"]:
                there = facts["num_classes"]
                facts |= _of_classes(config, facts["num_train"], classes)
                assumed = f"assumed: {classes:,} classes, where the images here have {there:,}"
            item = data.train[0] if config.teacher.stored else {}
            extra = {k: (np.shape(item[k]), np.asarray(item[k]).dtype) for k in TEACHER & {*item}}
            return config, Data(facts, extra, data.train, assumed)
        except ValueError as error:
            why = str(error)
    images = images or config.data.num_train or IMAGENET[0]
    classes = classes or config.model.num_classes or config.data.num_classes or IMAGENET[1]
    assumed = f"assumed: {images:,} training images of {classes:,} classes ({why})"
    if left_open(config):
        config, line = choices.settled(
            config,
            images=images,
            pixels=375,
            weights=config.init.checkpoint,
            devices=list(devices),
        )
        assumed += f"; {line}"
    facts = {"num_train": images, "multi_label": config.data.multi_label}
    return config, Data(facts | _of_classes(config, images, classes), {}, None, assumed)


def _of_classes(config: ConfigDict, images: int, classes: int) -> dict[str, Any]:
    """Returns the facts about classes that are not here: those that the loss names, and others."""
    weights = (*config.loss.class_weights, *config.loss.pos_weights)
    named = dict.fromkeys(w[0] for w in weights if isinstance(w, (tuple, list)) and w)
    return {
        "num_classes": classes,
        "class_names": (*named, *map(str, range(classes - len(named)))) if named else (),
        "class_counts": lambda: (np.full(classes, images / classes), float(images)),
    }


def _check_data(config: ConfigDict, devices: Sequence[Any]) -> None:
    """Refuses a config that reads no images, wherever they are: other images are opened with it."""
    if config.probe.decays:
        raise ValueError(
            "config.probe.decays: a linear probe goes through the images once and takes no "
            "training steps: there is nothing to plan"
        )
    if config.data.source:
        choose("config.data.source", config.data.source, sources.OPEN)
    config = config.copy_and_resolve_references()
    fake = {"source": "fake", "num_train": 8, "num_eval": 8, "num_classes": 2, "background": ""}
    whole = {"unlabelled": "", "unlabelled_share": 0.0, "fraction": 1.0, "fraction_seed": 0}
    with config.ignore_type():
        config.data.update(sources.unset() | fake | whole | {"long_tail": 1.0})
        config.update_from_flattened_dict({"teacher.stored": False, "init.checkpoint": ""})
    choices.open_data(config, devices=devices)


def estimate(
    found: dict[str, Any],
    built: program.Program,
    target: ahead.Target,
    passes: float,
    input_rate: float = 0.0,
) -> tuple[dict[str, Any], dict[str, float]]:
    """Returns what --json prints, and the milliseconds that each resource takes of a step.

    Args:
      found: of `ahead.examine`.
      built: that was examined.
      target: that it was compiled for.
      passes: of half precision in the time of a multiplication.
      input_rate: images/s of all hosts; 0: not known.
    """
    batch, devices, chip = built.plan.batch_size, built.layout.mesh.size, target.chip
    memory = ahead.state_bytes(built.abstract_state)
    total, limit = found["total"], chip.memory if chip and chip.memory else None
    fits = "flops" in found and (limit is None or total <= limit)
    state = sum(memory.values())
    memory |= dict.fromkeys(("activations", "temporaries"))
    if "activations" in found:
        rest = total - state
        activations = min(found["activations"], rest)
        memory |= {"activations": activations, "temporaries": rest - activations}
    memory |= {"total": total, "limit": limit and int(limit)}
    result = {"fits": fits, "memory": memory}
    of_image = lambda amount: None if amount is None else amount * devices / batch
    result |= {f"{key}_per_image": of_image(found.get(key)) for key in ("flops", "bytes")}
    result |= {"collectives": found.get("collectives")}
    result |= dict.fromkeys(("bound", "step_ms", "images_per_sec", "hours"))
    if not (chip and chip.flops) or "bytes" not in found:
        return result, {}
    work = {key: found[key] for key in ("flops", "bytes", "sent")}
    seconds = chips.bounds(
        **work, passes=passes, images=batch, chip=chip, sides=target.sides, input_rate=input_rate
    )
    bound = max(seconds, key=seconds.get)
    result |= {
        "bound": bound,
        "step_ms": 1e3 * seconds[bound],
        "images_per_sec": batch / seconds[bound],
        "hours": built.plan.total_steps * seconds[bound] / 3600,
    }
    return result, {name: 1e3 * value for name, value in seconds.items()}


def advice(
    result: dict[str, Any], config: ConfigDict, built: program.Program, vcpus: str
) -> list[str]:
    """Returns what to change, if it does not fit, or if something else than computing bounds it."""
    memory, lines = result["memory"], []
    batch, devices = built.plan.batch_size, built.layout.mesh.size
    micro, group = built.optimizer.accumulate_steps, config.model.bn_group or 1
    unit = _unit(built, config)
    if not result["fits"] and memory["limit"] and memory["total"]:
        state = sum(memory[kind] for kind in ("parameters", "optimizer", "averages"))
        highest = precision.matmul(built.network.precision) == "highest"
        # gradients, and what is computed with, in half precision
        fixed = state + memory["parameters"] * (1 if highest else 1.5)
        if memory["total"] > fixed < memory["limit"]:
            share = (memory["limit"] - fixed) / (memory["total"] - fixed)  # of what the batch needs
            if fitting := int(batch * share) // unit * unit:
                lines.append(f"a smaller batch, about --config.batch_size={fitting}")
            steps = (micro * k for k in range(2, batch + 1))
            divides = lambda k: batch % (devices * k) == 0 and batch // k % group == 0
            if k := next((k for k in steps if divides(k) and micro / k <= share), None):
                lines.append(f"the same batch in parts, --config.optim.accumulate_steps={k}")
        # on CPUs the compiler computes once what is twice the same
        if not dict(config.model.options).get("remat") and built.layout.platform != "cpu":
            options = (*config.model.options, ("remat", True))
            lines.append(
                "stages that may be computed twice in place of being kept, "
                f'--config.model.options="{options}"'
            )
        if devices > 1 and state > 0.2 * memory["limit"]:
            lines += _cut(config, built, devices, state)
        if highest:
            lines.append("half precision, --config.precision.name=bfloat16")
    reduces = (result["collectives"] or {}).get("all-reduce", {"count": 0})["count"]
    rows = batch // devices // micro
    alone = config.model.bn_group is None and rows >= UNIT
    if alone and reduces > 10 and built.abstract_state.batch_stats:
        lines.append(
            f"BatchNorm without communication ({reduces} all-reduces a step now), "
            f"--config.model.bn_group={rows if rows % 64 else 64}"
        )
    if result["bound"] == "network":
        lines.append("fewer devices, or a larger batch: what is sent does not grow with it")
    if result["bound"] == "input":
        lines.append(
            f"images that are read faster than {vcpus} do: records with a short side of 256 "
            "(data_prep/folder_to_array_record.py), or config.data.cache"
        )
    return lines


def _unit(built: program.Program, config: ConfigDict) -> int:
    """Returns what a batch is a multiple of: see `Plan.rows`."""
    group = config.model.bn_group or 1
    return built.optimizer.accumulate_steps * math.lcm(built.layout.mesh.size, group)


def _cut(config: ConfigDict, built: program.Program, devices: int, state: int) -> list[str]:
    """Returns how to cut what most of the state is of: a large classifier by class."""
    classes, mesh = built.network.num_classes, config.mesh
    sizes = [(x.size, x.shape[-1:]) for x in jax.tree.leaves(built.abstract_state.params)]
    of_classes = sum(size for size, last in sizes if last == (classes,))
    model, lines = math.gcd(classes, devices // mesh.fsdp), []
    data = lambda cut: "" if mesh.data == -1 else f" --config.mesh.data={devices // cut}"
    if 2 * of_classes > sum(size for size, _ in sizes):
        if mesh.model == 1 < model:
            rest = data(model * mesh.fsdp)
            lines.append(
                f"the classifier and the scores cut by class, --config.mesh.model={model}{rest}"
            )
        options, features = dict(config.model.options), of_classes // classes // 4
        if features and not options.get("bottleneck"):
            options = (*config.model.options, ("bottleneck", features))
            lines.append(
                "a classifier that sees a quarter as many features, "
                f'--config.model.options="{options}"'
            )
    if mesh.fsdp == mesh.model == 1 and not any("mesh" in line for line in lines):
        saved = state * (1 - 1 / devices) / 2**30
        lines.append(
            f"parameters and optimizer cut, about {saved:.2g} GiB less, "
            f"--config.mesh.fsdp={devices}{data(devices)}"
        )
    return lines


def measured_rate(training: Any, transform: Callable, seconds: float = 2.0) -> float:
    """Returns the training images/s that one core of this machine prepares.

    Raises:
      ValueError: the images are not here.
    """
    if training is None:
        raise ValueError(
            "--input_rate=measure: the images of config.data are not here; write a number"
        )
    import cv2

    cv2.setNumThreads(0)  # as in `loader.Batches`
    rng, done = np.random.default_rng(0), 0
    transform(training[0]["image"], rng)  # what is loaded once
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        transform(training[int(rng.integers(len(training)))]["image"], rng)
        done += 1
    return done / (time.perf_counter() - began)


def as_text(
    result: dict[str, Any], milliseconds: dict[str, float], title: str, lines: Sequence[str]
) -> str:
    """Returns the figures for reading."""
    memory = result["memory"]
    scale, unit = (2**30, "GiB") if (memory["total"] or 0) >= 2**30 else (2**20, "MiB")
    amount = lambda n: f"{n / scale:10.2f}" if n is not None else f"{'?':>10}"
    out = [title, f"memory of a device, {unit}"]
    out += [f"  {kind:<12}{amount(memory[kind])}" for kind in memory if kind != "limit"]
    limit = f"of {memory['limit'] / scale:.2f}: " if memory["limit"] else ""
    out[-1] += f" {limit}{'fits' if result['fits'] else 'does not fit'}"
    if result["flops_per_image"] is not None:
        read = result["bytes_per_image"]
        moves = "" if read is None else f", {read / 1e6:.1f} MB from and to memory"
        out.append(f"an image: {result['flops_per_image'] / 1e9:.3g} GFLOP{moves}")
        moved = [
            f"{kind} {of['count']} ({of['bytes'] / 1e6:.3g} MB)"
            for kind, of in result["collectives"].items()
        ]
        out.append(f"collectives of a step: {', '.join(moved) or 'none'}")
    if result["bound"]:
        parts = ", ".join(f"{name} {ms:.2f}" for name, ms in milliseconds.items())
        out.append(f"bound by {result['bound']}; ms of a step at least: {parts}")
        out.append(
            f"{result['step_ms']:.2f} ms a step, {result['images_per_sec']:,.0f} images/s, "
            f"{result['hours']:,.2f} hours for the run"
            + (f", {result['dollars']:,.2f} dollars" if "dollars" in result else "")
        )
    if "largest_batch" in result:
        out.append(f"largest batch that fits: {result['largest_batch']}")
    return "\n".join([*out, *lines])


@told
def main(argv: Sequence[str] = sys.argv) -> int:
    """Runs the command and returns its exit code."""
    values = flags.FlagValues()
    define_config(values)
    flags.DEFINE_string("topology", None, "a slice of TPUs: v5e:2x4", flag_values=values)
    flags.DEFINE_string("devices", None, "cpu:8, or gpu:1 of this machine", flag_values=values)
    flags.DEFINE_float("price", None, "dollars for a chip and hour", 0.0, flag_values=values)
    flags.DEFINE_bool("largest_batch", False, "find it: slow", flag_values=values)
    flags.DEFINE_bool("quick", False, "only whether it fits", flag_values=values)
    flags.DEFINE_string("input_rate", "", "images/s of a core, or measure", flag_values=values)
    flags.DEFINE_integer("vcpus", None, "of all hosts", 1, flag_values=values)
    flags.DEFINE_integer("num_train", None, "training images", 1, flag_values=values)
    flags.DEFINE_integer("num_classes", None, "classes", 1, flag_values=values)
    flags.DEFINE_bool("json", False, "print a JSON object", flag_values=values)
    parse(argv, values, help=__doc__)
    if bool(values.topology) == bool(values.devices):
        raise ValueError("give --topology=v5e:2x4, or --devices=cpu:8")
    given = values.input_rate
    if given not in ("", "measure") and not (_number(given) or 0) > 0:
        raise ValueError(f"--input_rate={given}: write images/s of one core, or measure")
    if values.quick and (values.price is not None or given):
        raise ValueError("--quick tells no times: leave --price and --input_rate out, or --quick")
    target = ahead.topology(values.topology) if values.topology else ahead.here(values.devices)
    start_jax()
    config, data = look(values.config, values, target.devices)
    if data.assumed:
        print(f"jaxcls: {data.assumed}", file=sys.stderr)

    def build(batch: int | None = None) -> program.Program:
        changed = config.copy_and_resolve_references()
        if batch:
            changed.batch_size, changed.eval.batch_size = batch, 0
        return program.build(changed, **data.facts, devices=target.devices)

    built = build()
    size, rented = built.layout.mesh.size, len(target.devices)
    vcpus = values.vcpus or (target.chip.vcpus if target.chip else 0) * rented
    if given and not vcpus:
        vcpus = os.cpu_count() or 1
    rate = measured_rate(data.training, built.transform) if given == "measure" else _number(given)
    highest = precision.matmul(built.network.precision) == "highest"
    passes = target.chip.passes if highest and target.chip else 1
    found = ahead.examine(built, target, data.extra, values.quick)
    if values.quick:  # it moves more than the program that would run
        found = {key: value for key, value in found.items() if key != "bytes"}
    result, milliseconds = estimate(found, built, target, passes, (rate or 0) * vcpus)
    if values.price is not None:
        chips_rented = rented / (target.chip.per_chip if target.chip else 1)
        hours = result["hours"]
        result["dollars"] = None if hours is None else hours * chips_rented * values.price
    if values.largest_batch:
        if not result["memory"]["limit"]:
            raise ValueError("--largest_batch: the memory of these devices is not known")

        def total(batch: int) -> float | None:
            try:
                other = build(batch)
            except ValueError:  # more than there are images
                return None
            other = ahead.examine(other, target, data.extra, values.quick)
            refused = "flops" not in other and other["total"]  # in figures that are rounded
            return max(other["total"], limit + 1) if refused else other["total"]

        unit, most, limit = _unit(built, config), data.facts["num_train"], result["memory"]["limit"]
        batch = built.plan.batch_size
        result["largest_batch"] = ahead.largest_batch(
            total,
            limit=limit,
            unit=unit if config.model.bn_group or unit * UNIT > batch else unit * UNIT,
            most=most,
            batch=batch,
            fixed=sum(ahead.state_bytes(built.abstract_state).values()),
        )
        if result["fits"]:  # also where it is no multiple of that many
            result["largest_batch"] = max(result["largest_batch"], batch)
    ahead.show("")
    if values.json:
        print(json.dumps(result))
        return 0
    kind = target.devices[0].device_kind
    axes = [f"{axis} {n}" for axis, n in built.layout.mesh.shape.items() if n > 1]
    title = (
        f"{built.network.name}, batch {built.plan.batch_size}, {built.network.precision}, on "
        f"{size} x {kind}{': ' * bool(axes)}{' x '.join(axes)}"
    )
    lines = []
    if target.chip is None:
        lines.append(f"nothing is known of {kind!r} (jaxcls/chips.py): no times, and no limit")
    elif rate and len(milliseconds) > 1:
        slowest = max(ms for name, ms in milliseconds.items() if name != "input")
        needs = 1e3 * built.plan.batch_size / slowest / rate  # for devices that never wait
        lines.append(f"input: {rate:,.0f} images/s of a core; {needs:,.1f} of {vcpus:g} needed")
    if rented > size:
        lines.append(f"config.mesh uses {size} of the {rented} devices")
    if values.quick and not result["fits"]:
        lines.append("as much as a fifth is of --quick's own programs: ask again without it")
    lines += [f"to change: {line}" for line in advice(result, config, built, f"{vcpus:g} vCPUs")]
    print(as_text(result, milliseconds, title, lines))
    return 0


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


if __name__ == "__main__":
    exit_with(main)
