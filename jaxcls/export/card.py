"""What stands beside an export: network.json, for programs, and README.md, for people."""

import importlib.metadata
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jaxcls
from jaxcls import exported
from jaxcls.export.formats import FORMATS
from jaxcls.export.origin import Origin
from jaxcls.export.program import Program

PLACES = ("root", "train", "eval", "name")  # of `config.data`
KINDS = {1: "grey", 3: "colour (RGB)", 4: "four channels (RGB and another)"}
FEW = 50  # classes that a table shows at once
PACKAGES = ("jax", "jaxlib", "onnx", "onnxruntime", "tensorflow", "timm", "torch")


def about(program: Program, origin: str) -> dict[str, Any]:
    """Returns what network.json says."""
    net = program.network
    versions = {"jaxcls": jaxcls.__version__}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        **net.described(),
        "input": {"name": "images", "kind": program.input, "shape": list(program.shape)},
        "outputs": ["logits", "probabilities"],
        "origin": origin,
        "versions": versions,
    }


def render(
    program: Program,
    told: Mapping[str, Any],
    found: Mapping[str, Any],
    origin: Origin = Origin(),  # noqa: B008
) -> str:
    """Returns README.md: what it is for, of what it was made, and how each file is loaded.

    Args:
      program: that was exported.
      told: of `about`.
      found: format -> of `agreement.compare`.
      origin: what is known of its run.
    """
    net, count = program.network, program.network.num_classes
    classes = ", ".join(map(text, net.class_names[:20])) + (", ..." if count > 20 else "")
    parts = [
        f"# {net.name}\n",
        f"An image classifier with {count} classes"
        + (f": {classes}." if net.class_names else ".")
        + f" Exported by jaxcls {told['versions']['jaxcls']}.\n",
        *_input(program),
        *_limits(program, origin),
        *_training(program, origin),
        *_metrics(origin),
        "## How to run it\n",
        *_with_jaxcls(found),
    ]
    for name, its in found.items():
        parts.append(
            f"`{FORMATS[name].file}`, which agrees with the checkpoint to {its['largest']:.1g} "
            f"({its['top1_equal']} of {its['images']} images have the same first class):\n"
        )
        parts.append(f"```python\n{FORMATS[name].run}```\n")
        parts.extend([FORMATS[name].note] if FORMATS[name].note else [])
    parts.append("## Versions\n")
    parts.append(", ".join(f"{name} {version}" for name, version in told["versions"].items()))
    parts.append(f"wrote this; the weights are of jaxcls {text(net.version)}.\n")
    return "\n".join(parts)


def text(value: Any) -> str:
    """Returns a value as Markdown shows it, whatever is in it, in one line."""
    return re.sub(r"([\\`*_\[\]|<>&#~$])", r"\\\1", " ".join(str(value).split()))


def _input(program: Program) -> Iterator[str]:
    net, image = program.network, program.network.image
    shape = ", ".join(map(str, program.shape))
    resize = f"its short side resized to {image.eval_resize} pixels, then "
    resize = resize if image.eval_resize else ""
    yield "## What it takes\n"
    kind = KINDS[image.channels]
    yield f"An image in {kind}, {resize}the central {image.shown} x {image.shown} pixels of it"
    yield f"({image.interpolation} interpolation). `jaxcls.load(FOLDER).preprocess(data)` makes it"
    yield "of a file's bytes."
    if program.input == "uint8":
        yield f"`images` are uint8 [B, {shape}]; normalising is inside.\n"
    else:
        yield f"`images` are float32 [B, {shape}]: pixels / 255, less {image.mean}, through"
        yield f"{image.std}.\n"
    yield f"It gives `logits` and `probabilities`, float32 [B, {net.num_classes}], in the order of"
    yield "`class_names` in network.json.\n"


def _with_jaxcls(found: Mapping[str, Any]) -> Iterator[str]:
    if {FORMATS[name].file for name in found} & {*exported.FILES}:
        yield "With jaxcls, of image files: `python -m jaxcls.predict FOLDER IMAGES...`; over HTTP:"
        yield "`python -m jaxcls.serve FOLDER`. Without it, of `images` as above:\n"


def _limits(program: Program, origin: Origin) -> Iterator[str]:
    net, metrics = program.network, origin.metrics
    yield "## What it is for, and what not\n"
    several = "which of its classes" if net.multi_label else "which one of its classes"
    yield f"It says {several} an image shows, of images like those that it was trained on."
    if metrics.get("images"):
        yield f"It was measured on {metrics['images']:,} images: of images that were made"
        yield "otherwise, in other places, with other devices or of other sizes, nothing is known."
    else:
        yield "How well it does so is not known here: measure it on images of yours."
    yield ""
    if net.multi_label:
        own = "of its own (`thresholds` in network.json)" if net.thresholds else "of 0.5"
        yield f"- An image shows each class from a probability {own} on, perhaps none."
    elif net.background or net.thresholds:
        rules = [f"below a probability of {net.thresholds[0]:.3g}"] if net.thresholds else []
        rules += [f"where the first class is {text(net.background)}"] if net.background else []
        yield f"- An image shows none of the classes {' or '.join(rules)}. The program gives"
        yield "  probabilities: this is for who calls it to decide."
    else:
        yield "- Of an image that shows none of its classes it names one as well: no threshold was"
        yield "  found for such images."
    if net.temperature == 1:
        yield "- Its probabilities are as training left them, not calibrated."
    else:
        yield f"- Its probabilities are calibrated: softmax(logits / {net.temperature:.4g})."
    if "ece" in metrics:
        yield f"- Expected calibration error: {metrics['ece']:.3f}."
    per_class = metrics.get("per_class") or {}
    if worst := [name for name in metrics.get("worst_classes") or () if name in per_class][:3]:
        said = (f"{text(name)} (F1 {per_class[name]['f1']:.2f})" for name in worst)
        yield f"- It is weakest at {', '.join(said)}."
    yield ""


def _training(program: Program, origin: Origin) -> Iterator[str]:
    yield "## What it was trained on, and how\n"
    config = origin.config
    if not config and not origin.data:
        yield "The weights do not say: they were converted, or their run is not here.\n"
        return
    if config:
        source = config.get("data.source")
        places = {
            key: origin.recipe.get(f"data.{key}") for key in ("root", "train", "eval", "name")
        }
        said = (f"{key} {text(value)}" for key, value in places.items() if value)
        yield f"Data: {text(source)}" + "".join(f", {it}" for it in said) + "."
    for split, what in (("train", "training"), ("eval", "evaluation")):
        if split in origin.data:
            yield f"{origin.data[split]:,} images for {what}."
    yield ""
    if not config:
        return
    start = config.get("init.checkpoint")
    known = {
        "network": program.network.name,
        "weights at the start": start or "random",
        "length": config.get("duration"),
        "images of a step": config.get("batch_size"),
        "loss": config.get("loss.name"),
        "optimizer": config.get("optim.name"),
        "learning rate": f"{config.get('lr.peak')}, {config.get('lr.schedule')}",
        "precision in training": config.get("precision.name"),
        "augmentation": ", ".join(
            f"{key} {config[key]}"
            for key in ("crop.name", "augment.policy", "mix.mixup", "mix.cutmix", "erase.name")
            if config.get(key)
        ),
    }
    yield "| | |"
    yield "| --- | --- |"
    yield from (f"| {key} | {text(value)} |" for key, value in known.items())
    yield "\nAll keys of its config that are not as usual:\n"
    yield "| key | value |"
    yield "| --- | --- |"
    yield from (f"| `{key}` | {text(repr(value))} |" for key, value in origin.recipe.items())
    yield ""


def _metrics(origin: Origin) -> Iterator[str]:
    metrics = origin.metrics
    names = ("top1", "top5", "map", "macro_f1", "micro_f1", "loss")
    found = {name: metrics[name] for name in names if isinstance(metrics.get(name), (int, float))}
    if not found:
        return
    yield "## How good it is\n"
    step = f", checkpoint {metrics['step']}" if isinstance(metrics.get("step"), int) else ""
    yield f"Of the evaluation images{step}, before it was exported; 95 % intervals in brackets:\n"
    yield f"| {' | '.join(found)} |"
    yield f"|{' ---: |' * len(found)}"
    ranges = metrics.get("intervals") or {}

    def shown(name: str) -> str:
        low, high = ranges.get(name, (None, None))
        return f"{found[name]:.4f}" + ("" if low is None else f" ({low:.4f} to {high:.4f})")

    yield f"| {' | '.join(map(shown, found))} |\n"
    if per_class := metrics.get("per_class"):
        columns = list(next(iter(per_class.values())))
        folded = len(per_class) > FEW
        if folded:
            yield f"<details><summary>{len(per_class)} classes</summary>\n"
        yield f"| class | {' | '.join(columns)} |"
        yield f"| --- |{' ---: |' * len(columns)}"
        for name, its in per_class.items():
            values = (f"{x:.3f}" if isinstance(x, float) else f"{x:,}" for x in its.values())
            yield f"| {text(name)} | {' | '.join(values)} |"
        yield "\n</details>\n" if folded else ""
