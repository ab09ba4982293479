"""What to turn, where the figures of a run say so.

Two rules are PaddleClas's ("Tricks for Training", section 8; FAQ 2020 S1, Q5.2 to Q5.8): training
accuracy far above that of the evaluation is overfitting and needs more regularisation; below it is
underfitting and needs less. Strong augmentation makes training accuracy lower by itself, and losses
say nothing, since augmentation moves them. What is said of runs that still gain, of rare classes
and of calibration, and all limits below, are our judgement. Where no rule applies nothing is said.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxcls.config import flatten, keywords
from jaxcls.optim import OPTIMIZERS

FAR = 0.05  # of accuracy that training is above the evaluation's interval: overfitting
BELOW = 0.02  # below it: underfitting
RISING = 0.01  # of accuracy that the last quarter of a run has brought: it was too short
UNEVEN = 5  # times as many images of one class as of another
RARE = 0.1  # of recall that the rarer half of the classes is below the other
OFF = 0.03  # of calibration error that a temperature takes away


class Advice(NamedTuple):
    """A thing to try."""

    title: str
    figures: str  # that speak for it
    turn: tuple[str, ...]  # keys, their values now, and what to try


def advise(
    figures: Mapping[str, Any], lines: Sequence[Mapping[str, Any]], config: Mapping[str, Any] | None
) -> list[Advice]:
    """Returns what the figures of a run of images of one class each speak for.

    Args:
      figures: of metrics.json.
      lines: of metrics.jsonl; none: of weights whose training is not known.
      config: of the run; None: it is not known.
    """
    if "temperature" not in figures:
        return []
    rules = () if config is None else (_fit, _short, _uneven) if lines else (_uneven,)
    found = [rule(figures, lines, flatten(config)) for rule in rules]
    return [advice for advice in (*found, _calibration(figures)) if advice]


def _fit(figures: Mapping, lines: Sequence[Mapping], keys: Mapping) -> Advice | None:
    """Compares training with evaluation, by accuracy."""
    training = [line for line in lines if line["split"] == "train"]
    # the last epoch: lines may be of parts of it
    last = [line for line in training if line["epoch"] > training[-1]["epoch"] - 1]
    known = [line["top1"] for line in last if line.get("top1") is not None]
    if not known:  # of mixed labels: its accuracy is another thing
        return None
    there, evaluated = sum(known) / len(known), figures["top1"]
    low, high = figures.get("intervals", {}).get("top1", (evaluated, evaluated))
    said = (
        f"training top-1 is {_percent(there)} in the last epoch, evaluation {_percent(evaluated)} "
        f"({_percent(low)} to {_percent(high)})"
    )
    strong, plain = _strong(keys), keys["loss.name"] == "supervised"
    if there - high > FAR:
        decay = _decay(keys)
        turn = [
            *([f"{decay}: now {keys[decay]:g}, try 2 to 10 times that"] if keys.get(decay) else
              [f"{decay}: now 0, try 1e-4"] if decay else []),
            *([] if keys["augment.policy"] else
              ['augment.policy: now none, try "randaugment"']),
            *([] if keys["mix.cutmix"] or keys["mix.mixup"] else
              ["mix.cutmix: now 0, try 1.0; or mix.mixup = 0.2"]),
            *([] if keys["erase.name"] else ['erase.name: now none, try "random_erasing"']),
            *([] if keys["loss.label_smoothing"] or not plain else
              ["loss.label_smoothing: now 0, try 0.1"]),
            *([] if keys["init.checkpoint"] else
              ["init.checkpoint: now none; start from weights that were trained on many images"]),
        ]  # fmt: skip
        return Advice("Overfitting: regularise more", said, tuple(turn))
    if there < low - BELOW and not strong:
        decay = _decay(keys)
        crop = keys["crop.name"] == "random_resized" and keys["crop.scale"][0] < 0.5
        turn = [
            *([f"{decay}: now {keys[decay]:g}, try a third of it"] if keys.get(decay) else []),
            *([f"crop.scale: now {tuple(keys['crop.scale'])}, try "
               f"({min(2.5 * keys['crop.scale'][0], 0.5):g}, 1.0)"] if crop else []),
            *([f"loss.label_smoothing: now {keys['loss.label_smoothing']:g}, try 0"]
              if keys["loss.label_smoothing"] else []),
            "duration: longer, or model.name: a larger network",
        ]  # fmt: skip
        return Advice("Underfitting: regularise less", said, tuple(turn))
    if there < low - BELOW:
        used = ", ".join(f"{key} = {keys[key]!r}" for key in strong)
        turn = tuple(f"{key}: now {keys[key]!r}, try without" for key in strong)
        return Advice(
            "Training below evaluation: expected with strong augmentation",
            f"{said}; the training images are harder by {used}. Underfitting only if evaluation "
            "gets better without them, as in small networks and short runs",
            turn,
        )
    return None


def _strong(keys: Mapping) -> list[str]:
    """Returns the keys of augmentation beyond crop and flip that are on."""
    names = ("augment.policy", "augment.rotation", "augment.grayscale", "erase.name")
    return [key for key in names if keys[key]]


def _decay(keys: Mapping) -> str:
    """Returns the key of the decay that the run's optimizer has; "" if it has none."""
    takes = keywords(OPTIMIZERS[keys["optim.name"]])
    known = [f"optim.{key}" for key in ("l2", "weight_decay") if key in takes]
    return next((key for key in known if keys[key]), known[0] if known else "")


def _short(figures: Mapping, lines: Sequence[Mapping], keys: Mapping) -> Advice | None:
    """Looks whether the evaluation was still rising, although the learning rate was low."""
    evaluations = [line for line in lines if line["split"] == "eval" and line.get("top1")]
    if len(evaluations) < 4:
        return None
    end = evaluations[-1]
    before = [e for e in evaluations if e["epoch"] <= 0.75 * end["epoch"]]
    rise = end["top1"] - max((e["top1"] for e in before), default=1.0)
    _, *widths = figures.get("intervals", {}).get("top1", (0, 0))
    noise = max(widths, default=0) - figures["top1"]
    still = end["top1"] >= max(e["top1"] for e in evaluations)
    if rise < max(RISING, noise) or not still or keys["lr.schedule"] in ("cosine", "polynomial"):
        return None  # where the rate falls to nothing, that is what brings the rise
    return Advice(
        "Still rising: train longer",
        f"evaluation top-1 rose from {_percent(end['top1'] - rise)} to {_percent(end['top1'])} in "
        "the last quarter of the run, and the last is the best",
        (f"duration: now {keys['duration']!r}, try twice that",),
    )


def _uneven(figures: Mapping, lines: Sequence[Mapping], keys: Mapping) -> Advice | None:
    """Compares the recall of rare and frequent classes."""
    table = [row for row in figures["per_class"].values() if row["support"]]
    table.sort(key=lambda row: row["support"])
    if len(table) < 4 or table[-1]["support"] < UNEVEN * table[0]["support"]:
        return None
    half = len(table) // 2
    mean = lambda rows: sum(row["recall"] for row in rows) / len(rows)
    rare, frequent = mean(table[:half]), mean(table[-half:])
    adjusted = keys["loss.logit_adjustment"] or keys["loss.class_weights"]
    if frequent - rare < RARE or keys["data.sampling"] == "balanced" or adjusted:
        return None
    adjust = keys["loss.name"] == "supervised" and keys["data.sampling"] == "shuffle"
    return Advice(
        "Rare classes are left behind",
        f"mean recall is {_percent(rare)} in the rarer half of the classes, {_percent(frequent)} "
        f"in the other; they have {table[0]['support']} to {table[-1]['support']} images here",
        (
            f'data.sampling: now {keys["data.sampling"]!r}, try "sqrt" or "balanced"',
            *(["loss.logit_adjustment: now 0, try 1.0 instead"] if adjust else []),
        ),
    )


def _calibration(figures: Mapping) -> Advice | None:
    """Looks what a temperature does to the calibration error."""
    found = figures["temperature"]
    if found["ece_before"] - found["ece_after"] < OFF or "of" in figures:
        return None  # nothing is stored with a mean of networks
    sure = "less" if found["fitted"] > found["stored"] else "more"
    return Advice(
        f"Probabilities should be {sure} sure",
        f"the calibration error is {_percent(found['ece_before'])}, and "
        f"{_percent(found['ece_after'])} at a temperature of {found['fitted']:.2f} (each half of "
        "the images at what fits the other half)",
        ("eval.calibrate: with --mode=eval, stores that temperature with the network",),
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
