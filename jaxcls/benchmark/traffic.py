"""python -m jaxcls.benchmark traffic: what a train step moves, beside other JAX code."""

import json
import math
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict

from jaxcls import ahead, program
from jaxcls.benchmark import peers
from jaxcls.benchmark.timing import NUM_TRAIN, num_classes
from jaxcls.config import choose

CONFIG = "base.py"
MODELS = (
    "ResNet50",
    "ResNet50_vd",
    "MobileNetV3_large_x1_0",
    "EfficientNetB0",
    "ConvNeXt_tiny",
    "ViT_small_patch16_224",
)


def define(values: flags.FlagValues) -> None:
    """Declares the options of `traffic`."""
    flags.DEFINE_string("topology", None, "a slice of TPUs: v5e:2x4", flag_values=values)
    flags.DEFINE_string("devices", None, "cpu:8, or gpu:1 of this machine", flag_values=values)
    flags.DEFINE_list("model", list(MODELS), "several: a,b,c", flag_values=values)
    flags.DEFINE_list("compare", [], "flax, keras, or both: flax,keras", flag_values=values)
    flags.DEFINE_integer("images", 128, "of a device", 1, flag_values=values)
    flags.DEFINE_bool("kinds", False, "bytes by kind of operation too", flag_values=values)
    flags.DEFINE_bool("json", False, "print a JSON object a line", flag_values=values)


def figures(found: dict[str, Any], images: int) -> dict[str, Any]:
    """Returns, of an image, {"bytes", "xla_bytes", "flops", "kinds"}, and of a device others.

    Args:
      found: of `ahead.of_compiler`.
      images: of a device.
    """
    if "bytes" not in found:
        return {"error": "out of memory"}
    row = {key: found[key] / images for key in ("bytes", "xla_bytes", "flops")}
    row["temporaries"] = found["temporaries"]
    row["collectives"] = sum(of["count"] for of in found["collectives"].values())
    return row | {"kinds": {kind: size / images for kind, size in found["kinds"].items()}}


def run(config: ConfigDict, options: flags.FlagValues) -> None:
    """Prints what the compiler says of the step of each model, and of the peers that have it."""
    for peer in options.compare:
        choose("--compare", peer, peers.PEERS)
    if "keras" in options.compare:
        peers.import_keras()
    if bool(options.topology) == bool(options.devices):
        raise ValueError("give --topology=v5e:2x4, or --devices=cpu:8")
    target = ahead.topology(options.topology) if options.topology else ahead.here(options.devices)
    jobs = []
    for name in options.model:
        c = config.copy_and_resolve_references()
        c.model.name, c.eval.batch_size = name, 0
        c.batch_size = options.images * len(target.devices)
        facts = {"num_train": NUM_TRAIN, "num_classes": num_classes(c)}
        jobs.append((name, program.build(c, **facts, devices=target.devices)))
    if not options.json:
        print(f"a step of {options.images} images a device, {target.name}, jax {jax.__version__}")
        print(HEADER, flush=True)
    for name, ours in jobs:
        rows = {"jaxcls": figures(ahead.examine(ours, target, {}), options.images)}
        for peer in options.compare:
            make, known = peers.PEERS[peer]
            if name in known:
                lowered = peers.lower(make(name, ours.network.image.shape), ours)
                found = ahead.of_compiler(lowered, target, ours.layout.mesh.size)
                rows[peer] = figures(found, options.images)
        ahead.show("")
        for by, row in rows.items():
            if "bytes" in row and "bytes" in rows["jaxcls"]:
                row["ratio"] = rows["jaxcls"]["bytes"] / row["bytes"]
            found = {"model": name, "by": by, "images": options.images, **row}
            if options.json:
                print(json.dumps({"target": target.name, "jax": jax.__version__, **found}))
            else:
                print(as_text(found, options.kinds), flush=True)


HEADER = (
    f"{'model':<24} {'by':<8} {'MB/image':>8} {'ratio':>6} {'(XLA)':>7} {'GFLOP/image':>11} "
    f"{'temporaries GB':>14} {'collectives':>11}"
)


def as_text(row: dict[str, Any], kinds: bool) -> str:
    """Returns a row of `run`'s table, with `kinds` the bytes of each kind in lines below it."""
    text = f"{row['model']:<24} {row['by']:<8} "
    if "error" in row:
        return text + row["error"]
    ratio = row.get("ratio", math.nan)
    text += (
        f"{row['bytes'] / 1e6:>8.1f} {ratio:>6.3f} {row['xla_bytes'] / 1e6:>7.1f} "
        f"{row['flops'] / 1e9:>11.2f} {row['temporaries'] / 1e9:>14.2f} {row['collectives']:>11}"
    )
    if kinds:
        by_size = sorted(row["kinds"].items(), key=lambda of: -of[1])
        text += "".join(f"\n    {kind:<29} {size / 1e6:>8.1f}" for kind, size in by_size)
    return text
