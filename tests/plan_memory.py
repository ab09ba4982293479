"""How near `python -m jaxcls.plan` comes to the memory that a step really takes, on this CPU.

    python tests/plan_memory.py [NAME ...]

Of each network the compiled step takes three steps in a process of its own, and what its resident
memory rises by at most, with the state and the batch that lie there already, is compared with the
plan's total; pages of code that are first read then are none of it. What the CPU's own kernels take
while they run is in no plan: the ratio is below 1, and least where convolutions have groups, of
which each unfolds its patches (output pixels x kernel) for itself, all at once. Linux only.
"""

import ctypes
import subprocess
import sys
from pathlib import Path

NAMES = ("ResNet18", "SqueezeNet1_0", "DarkNet53", "ResNet50_vd", "MobileNetV3_large_x1_0")
BATCH, SIZE = 32, 160


def status(key):
    """Returns a figure of this process's memory, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def measure(name):
    """Prints a row of the table."""
    import jax

    from configs import imagenet
    from jaxcls import ahead, chips, plan, program
    from jaxcls.benchmark.timing import device_batch

    jax.config.update("jax_platforms", "cpu")
    config = imagenet.get_config(name)
    config.batch_size, config.model.bn_group, config.image.size = BATCH, None, SIZE
    config.eval.batch_size, config.precision.name = 0, "float32"
    target = ahead.Target("cpu:1", jax.devices()[:1], chips.Chip("cpu", 0))
    built = program.build(config, num_train=1000, num_classes=1000, devices=target.devices)
    result, _ = plan.estimate(ahead.examine(built, target, {}), built, target, 1)

    state, batch = built.init(), device_batch(config, built)
    step = built.train_step.lower(built.abstract_state, batch).compile()
    jax.block_until_ready((state, batch))
    lying = sum(x.nbytes for x in jax.tree.leaves((state, batch)))
    peaks = []
    ctypes.CDLL(None).malloc_trim(0)
    before, code = status("VmRSS"), status("RssFile")
    for _ in range(3):
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the highest so far is what there is now
        state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))
        peaks.append(status("VmHWM") - before - (status("RssFile") - code) + lying)
    total = result["memory"]["total"]
    print(
        f"{name:<24} planned {total / 2**20:8.1f} MiB, measured "
        f"{' '.join(f'{peak / 2**20:8.1f}' for peak in peaks)}, "
        f"ratio {total / min(peaks):.3f}",
        flush=True,
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        measure(sys.argv[2])
    else:
        for name in sys.argv[1:] or NAMES:
            subprocess.run([sys.executable, __file__, "--one", name], check=True)
