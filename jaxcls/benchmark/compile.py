"""python -m jaxcls.benchmark compile: how long a train step takes to trace and to compile."""

import json
import time

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from jaxcls import program
from jaxcls.benchmark.timing import NUM_TRAIN, device_batch, num_classes
from jaxcls.models.count import equations

CONFIG = "resnet50_vd.py"
MODELS = (  # one of each family, and the deepest ResNet
    "ResNet50",
    "ResNet200_vd",
    "Res2Net50_26w_4s",
    "HRNet_W18_C",
    "ResNeSt50",
    "RedNet50",
    "DLA60",
    "CSPDarkNet53",
    "PPHGNet_tiny",
    "ConvNeXt_tiny",
    "VAN_B0",
    "DSNet_tiny",
    "NextViT_small_224",
    "UniFormer_small",
    "DarkNet53",
    "MobileNetV1",
    "MobileNetV2",
    "MobileNetV3_large_x1_0",
    "GoogLeNet",
    "InceptionV4",
    "Xception41",
    "DPN68",
    "DenseNet121",
    "HarDNet68",
    "PeleeNet",
    "ShuffleNetV2",
    "EfficientNetB0",
    "SqueezeNet1_0",
    "AlexNet",
    "VGG16",
)


def define(values: flags.FlagValues) -> None:
    """Declares the options of `compile`."""
    flags.DEFINE_list(
        "model", list(MODELS), "instead of one of each family: a,b,c", flag_values=values
    )
    flags.DEFINE_integer("repetitions", 1, "of which the median counts", 1, flag_values=values)
    flags.DEFINE_bool("json", False, "print a JSON object a line", flag_values=values)


def time_compilation(config: ConfigDict) -> dict[str, float]:
    """Returns the processor seconds, of all threads, of each stage on the way to a train step.

    "trace_s" from Python to a program of so many "operations", "lower_s" to StableHLO, "compile_s"
    to what runs on the device; nothing comes from a cache.
    """
    jax.clear_caches()
    built = program.build(config, num_train=NUM_TRAIN, num_classes=num_classes(config))
    batch = device_batch(config, built)
    times = [time.process_time()]
    traced = built.train_step.trace(built.abstract_state, batch, *built.teachers)
    times.append(time.process_time())
    lowered = traced.lower()
    times.append(time.process_time())
    lowered.compile()
    times.append(time.process_time())
    stages = dict(zip(("trace_s", "lower_s", "compile_s"), np.diff(times).tolist(), strict=True))
    return {"operations": sum(1 for _ in equations(traced.jaxpr.jaxpr)), **stages}


def run(config: ConfigDict, options: flags.FlagValues) -> None:
    """Prints what `time_compilation` returns for the config with each of the models."""
    jax.config.update("jax_enable_compilation_cache", False)
    config.eval.batch_size = 0  # nothing is evaluated; the config's own may not divide here
    if not options.json:
        print(f"{'model':<24} {'operations':>10} {'trace s':>8} {'lower s':>8} {'compile s':>9}")
    for name in options.model:
        config.model.name = name
        measured = [time_compilation(config) for _ in range(options.repetitions)]
        row = {key: float(np.median([m[key] for m in measured])) for key in measured[0]}
        if options.json:
            device = jax.devices()[0].device_kind
            print(json.dumps({"model": name, "device": device, "jax": jax.__version__, **row}))
        else:
            print(
                f"{name:<24} {row['operations']:>10.0f} {row['trace_s']:>8.2f} "
                f"{row['lower_s']:>8.2f} {row['compile_s']:>9.2f}",
                flush=True,
            )
