"""python -m jaxcls.benchmark input: images/s from files to batches, on so many cores."""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from jaxcls.benchmark import contenders
from jaxcls.config import choose
from jaxcls.data import sources
from jaxcls.data.folders import Files

CONFIG = "base.py"
COMPARE = ("pillow", "tf")


def define(values: flags.FlagValues) -> None:
    """Declares the options of `input`."""
    flags.DEFINE_list("cores", ["1"], "cores to run on; several: 1,2", flag_values=values)
    flags.DEFINE_integer("images", 2000, "images of a repetition", 1, flag_values=values)
    flags.DEFINE_integer("repetitions", 5, "of each, in turn", 1, flag_values=values)
    flags.DEFINE_list(
        "records", [], "folders of ArrayRecord to read with the loader too", flag_values=values
    )
    flags.DEFINE_list(
        "policies", [], "of config.augment to run too; several: a,b,c", flag_values=values
    )
    flags.DEFINE_list("compare", [], "pillow, tf: the same work by them", flag_values=values)
    flags.DEFINE_string(
        "tf_python", sys.executable, "Python that has TensorFlow", flag_values=values
    )
    flags.DEFINE_bool("json", False, "print a JSON object a line", flag_values=values)


# Of `contenders.KINDS`, and tf: what a table calls them.
NAMES = {
    "loader": "loader",
    "bare": "bare loop",
    "whole": "bare loop, whole images",
    "tf": "tf.data",
    "pillow": "Pillow",
}


@dataclasses.dataclass(frozen=True)
class Contender:
    """A way to make batches of images."""

    kind: str  # one of NAMES
    variant: str  # "", or what differs: a folder of records, a policy
    config: ConfigDict
    python: str = sys.executable

    @property
    def name(self) -> str:
        """Returns what the table calls it."""
        return f"{NAMES[self.kind]}, {self.variant}" if self.variant else NAMES[self.kind]

    def start(self, cores: list[int], images: int) -> "Running":
        """Returns it waiting on these cores: in as many threads, or processes if it has none."""
        if self.kind in ("loader", "tf"):
            return Running([self._process(cores, images)])
        return Running([self._process([core], images // len(cores)) for core in cores])

    def _process(self, cores: list[int], images: int) -> subprocess.Popen:
        spec: dict[str, Any] = {"images": images, "threads": len(cores)}
        if self.kind == "tf":
            command = [self.python, str(Path(__file__).with_name("tf_data.py"))]
            files = sources.open(**self.config.data).train
            paths = [os.path.join(files.root, path) for path in files.paths]
            image = self.config.image
            spec |= {"files": paths, "batch": self.config.batch_size, "size": image.size}
            spec |= {"scale": self.config.crop.scale, "ratio": self.config.crop.ratio}
        else:
            command = [self.python, "-m", contenders.__name__]
            spec |= {"kind": self.kind, "config": self.config.to_dict()}
        ours = os.sched_getaffinity(0)
        os.sched_setaffinity(0, cores)  # the child inherits it
        try:
            child = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        except OSError as error:
            raise ValueError(f"cannot start {self.python}: {error.strerror}") from error
        finally:
            os.sched_setaffinity(0, ours)
        with contextlib.suppress(BrokenPipeError):  # it has failed already: seen later
            print(json.dumps(spec), file=child.stdin, flush=True)
        return child


class Running(contextlib.AbstractContextManager):
    """Processes that wait for `seconds` to be called."""

    def __init__(self, processes: list[subprocess.Popen]):
        self.processes = processes

    def __exit__(self, *exception: object) -> None:
        for process in self.processes:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            process.wait()
            process.stdout.close()

    def seconds(self, seed: int) -> float:
        """Returns how long a pass of all of them takes, until the slowest is there.

        Raises:
          ValueError: one has ended; it has written to stderr why.
        """
        try:
            for number, process in enumerate(self.processes):
                print(seed + number, file=process.stdin, flush=True)
            return max(float(process.stdout.readline()) for process in self.processes)
        except (BrokenPipeError, ValueError) as error:
            raise ValueError(f"{' '.join(self.processes[0].args)} has failed, see above") from error


def field(config: ConfigDict, options: flags.FlagValues) -> list[Contender]:
    """Returns all that is to be measured.

    Raises:
      ValueError: a comparison that cannot be made.
    """
    for name in options.compare:
        choose("value of --compare", name, COMPARE)
    source = sources.open(**config.data, image_size=config.image.size).train
    if options.compare and not (isinstance(source, Files) and config.crop.name == "random_resized"):
        raise ValueError(
            '--compare needs config.data.source = "folder" or "list" and config.crop.name = '
            '"random_resized"'
        )
    variants = [("", config)]
    for folder in options.records:
        stored = config.copy_and_resolve_references()
        stored.data.update({**sources.unset(), "source": "array_record", "root": folder})
        variants.append((folder, stored))
    for policy in options.policies:
        changed = config.copy_and_resolve_references()
        changed.augment.policy = policy
        variants.append((policy, changed))

    found = []
    for variant, settings in variants:
        kinds = ["loader", "bare"]
        if isinstance(source, Files) and variant not in options.records:
            kinds += ["whole"] * (not variant) + ["pillow"] * ("pillow" in options.compare)
        found += [Contender(kind, variant, settings) for kind in kinds]
    if "tf" in options.compare:
        found.append(Contender("tf", "", config, options.tf_python))
    return found


def run(config: ConfigDict, options: flags.FlagValues) -> None:
    """Prints images/s of every contender, and what share of the first bare loop's it is."""
    if not hasattr(os, "sched_setaffinity"):
        raise ValueError("input pins processes to cores, which this system cannot")
    available = sorted(os.sched_getaffinity(0))
    for text in options.cores:
        if not text.isdigit() or not 1 <= int(text) <= len(available):
            raise ValueError(f"--cores={text}: write whole numbers from 1 to {len(available)}")
    if config.batch_size > options.images:
        raise ValueError(f"--images={options.images} is less than config.batch_size")
    images = options.images // config.batch_size * config.batch_size
    found = field(config, options)
    for count in map(int, options.cores):
        measure(found, available[:count], images, options)


def measure(
    found: list[Contender], cores: list[int], images: int, options: flags.FlagValues
) -> None:
    """Prints a table of all contenders on these cores."""
    seconds: dict[str, list[float]] = {contender.name: [] for contender in found}
    with contextlib.ExitStack() as stack:
        started = {}
        for contender in found:
            started[contender.name] = stack.enter_context(contender.start(cores, images))
        for running in started.values():
            running.seconds(0)  # warms up
        for i in range(options.repetitions):
            for name in list(started)[:: -1 if i % 2 else 1]:  # in turn, also in being first
                seconds[name].append(started[name].seconds(100 * (i + 1)))

    columns = ["bare", *options.compare]
    if not options.json:
        print(
            f"{len(cores)} core(s), {options.repetitions} x {images} images of each, in turn: "
            "median (least to most); ratios at the same files and policy, but tf.data's own files"
        )
        ratios = "".join(f"{'/ ' + NAMES[kind]:>26}" for kind in columns)
        print(f"{'':<40} {'images/s':>26} {'a core':>9}{ratios}")
    for contender in found:
        rates = images / np.array(seconds[contender.name])
        ratios = {}
        for kind in columns:
            other = Contender(kind, "" if kind == "tf" else contender.variant, contender.config)
            if other.name in seconds:
                ratios[kind] = np.divide(seconds[other.name], seconds[contender.name])
        if options.json:
            row = {"cores": len(cores), "name": contender.name, "images": images}
            row |= {"seconds": seconds[contender.name]}
            row |= {"images_per_sec": float(np.median(rates))}
            row |= {f"ratio_to_{kind}": float(np.median(r)) for kind, r in ratios.items()}
            print(json.dumps(row), flush=True)
            continue
        text = f"{contender.name:<40} {spread(rates, '.0f')} {np.median(rates) / len(cores):>9.0f}"
        for kind in columns:
            text += spread(ratios[kind], ".3f") if kind in ratios else " " * 26
        print(text.rstrip(), flush=True)


def spread(values: np.ndarray, form: str) -> str:
    """Returns median and range in a column."""
    low, median, high = (format(v, form) for v in np.percentile(values, (0, 50, 100)))
    return f"{median:>8} {f'({low} to {high})':>17}"
