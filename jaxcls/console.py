"""What a user sees of a run: what it is made of, what it waits for, rows, a live line, hints."""

import collections
import contextlib
import logging
import shlex
import shutil
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from tqdm import tqdm

from jaxcls import config as configs
from jaxcls import trees
from jaxcls.barrier import when_compiled

WIDTH = 100  # columns of a row at most

# What a row shows, as much of it as fits: the key in metrics.jsonl, its name here, its format.
# Other keys come last; `grad_norm` is in metrics.jsonl only.
FIELDS = (
    ("loss", "loss", ".4g"),
    ("top1", "top1", ".4f"),
    ("top1_mixed", "top1_mixed", ".4f"),
    ("top5", "top5", ".4f"),
    ("map", "mAP", ".4f"),
    ("macro_f1", "macro_f1", ".4f"),
    ("micro_f1", "micro_f1", ".4f"),
    ("images", "images", "d"),
    ("lr", "lr", ".3g"),
    ("images_per_sec", "images/s", ".0f"),
    ("data_wait", "data_wait", ".2f"),
    ("skipped", "skipped", "d"),
    ("loss_scale", "loss_scale", "g"),
)
# of these, what the live line shows
LIVE = ("loss", "top1", "top1_mixed", "micro_f1", "images_per_sec")
# Whether a value says anything; that of a key that is not here always does.
MEANS_SOMETHING: dict[str, Callable[[float, int], bool]] = {
    "grad_norm": lambda value, classes: False,
    "top5": lambda value, classes: classes > 5,
    "skipped": lambda value, classes: value > 0,
    "loss_scale": lambda value, classes: value != 1,
    "images_per_sec": lambda value, classes: value == value,  # NaN: nothing was measured
    "data_wait": lambda value, classes: value == value,
}


def fields(metrics: Mapping[str, Any], classes: int) -> list[str]:
    """Returns "name value" of all metrics that mean something, the most important first.

    Args:
      metrics: a line of metrics.jsonl.
      classes: number of classes; with up to 5, top5 is always 1.
    """
    known = [(key, name, form) for key, name, form in FIELDS if key in metrics]
    others = [(key, key, ".4g") for key in metrics if key not in {field[0] for field in FIELDS}]
    return [
        f"{name} {format(metrics[key], form)}"
        for key, name, form in known + others
        if MEANS_SOMETHING.get(key, lambda *_: True)(metrics[key], classes)
    ]


def row(
    step: int,
    total: int,
    epoch: float,
    split: str,
    metrics: Mapping[str, Any],
    classes: int,
    width: int = WIDTH,
) -> str:
    """Returns a line of the log in at most `width` columns."""
    line = f"{split:<5}  step {step:>{len(str(total))}}/{total}  epoch {epoch:.2f}"
    for field in fields(metrics, classes):
        if len(line) + 2 + len(field) <= width:
            line += f"  {field}"
    return line


class Console:
    """Lines on stdout; where stderr is a terminal, also a live line there.

    Only process 0 shows anything. On a terminal the rows of training are in the live line alone.
    """

    def __init__(self):
        self.enabled = jax.process_index() == 0
        self.live = self.enabled and sys.stderr.isatty()
        self.classes = 0  # of the run
        self.total = 0  # steps
        self.notes: list[str] = []
        self.bar: tqdm | None = None
        self.doing_now = ""  # what the cursor stands behind
        self.shown = False  # whether a row of training has been
        self.erase()  # what the command has shown until here
        log = logging.getLogger(_Warnings.OF)
        log.handlers[:], log.propagate = [_Warnings(self)], False

    def say(self, text: str) -> None:
        """Prints a line, above the live line where there is one."""
        if not self.enabled:
            return
        self.erase()
        if self.doing_now:
            print(flush=True)
            self.doing_now = ""
        if self.bar is not None:
            self.bar.write(text)
            sys.stdout.flush()
        else:
            print(text, flush=True)

    def warn(self, text: str) -> None:
        """Prints a line on stderr, above the live line where there is one."""
        self.erase()
        if self.bar is not None:
            self.bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Says what is waited for and how long it took; on a terminal, the seconds as they pass."""
        began, ended = time.perf_counter(), threading.Event()
        took = "failed"

        def tick():
            while not ended.wait(1):
                self.status(f"{what} ... {time.perf_counter() - began:.0f} s")

        ticking = threading.Thread(target=tick, daemon=True)
        if self.live:
            self.status(f"{what} ...")
            ticking.start()
        elif self.enabled:
            print(f"{what} ...", end="", flush=True)
            self.doing_now = what
        try:
            yield
            took = f"{time.perf_counter() - began:.1f} s"
        finally:
            ended.set()
            if self.live:
                ticking.join()
            if self.doing_now == what:  # nothing was said meanwhile
                print(f" {took}", flush=True)
                self.doing_now = ""
            else:
                self.say(f"{what} ... {took}")

    def announced(self, what: str, f: Callable) -> Callable:
        """Returns the jitted `f` that says `what` it is doing when it is called for the first time.

        It computes when all processes have compiled it.
        """
        f, called = when_compiled(f), False

        def announcing(*args):
            nonlocal called
            if called:
                return f(*args)
            called = True
            with self.doing(what):
                return f(*args)

        return announcing

    def later(self, text: str) -> None:
        """Takes a line for `describe`."""
        self.notes.append(text)

    def describe(self, workdir: Any, data: Any, program: Any) -> None:
        """Shows what a run is made of: images, devices, network, lengths."""
        self.classes = len(data.class_names)
        plan, devices = program.plan, program.layout.mesh.devices.flatten()
        kinds = " and ".join(sorted({device.device_kind for device in devices}))
        processes = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
        names = textwrap.shorten(", ".join(data.class_names), 55, placeholder=" ...")
        net, optimizer = program.network, program.optimizer
        network, *rest = parts(
            program.abstract_state.params,
            frozen=optimizer.frozen,
            factors=optimizer.factors,
        )
        evaluated = f"{len(data.eval):,}" if data.eval is not None else "none"
        without = len(data.train) - int(data.train.has_label.sum())
        without = f" ({without:,} without a label)" if without else ""
        lines = [
            f"images   {len(data.train):,} to train{without}, {evaluated} to evaluate",
            f"classes  {self.classes:,}: {names}",
            f"devices  {len(devices)} x {kinds}{processes}, {net.precision}",
            f"network  {net.name} at {net.image.size}x{net.image.size} pixels, {network}",
            *(f"         {line}" for line in rest),
            f"run      {plan.total_steps:,} steps of {plan.batch_size:,} images, "
            f"{plan.epoch(plan.total_steps):.4g} epochs, in {workdir}",
            *self.notes,
        ]
        self.say("\n".join(lines))

    def begin(self, total: int) -> None:
        """Takes the last step of the run."""
        self.total = total

    def step(self, step: int, epoch: float, metrics: Mapping[str, Any]) -> None:
        """Moves the live line to `step`; without one shows the first step as a row.

        Args:
          step: that has been computed.
          epoch: that it is in.
          metrics: means over the window so far.
        """
        if self.live:
            if self.bar is None:
                self.bar = tqdm(
                    total=self.total,
                    initial=step,
                    file=sys.stderr,
                    bar_format="|{bar}| {n_fmt}/{total_fmt}{postfix}",
                    dynamic_ncols=True,
                    miniters=1,
                    leave=False,
                )
            known = {key: metrics[key] for key in LIVE if key in metrics}
            shown = fields(known, self.classes)
            if taken := step - self.bar.initial:  # evaluations and saves have a part in the rest
                left = (self.total - step) * self.bar.format_dict["elapsed"] / taken
                shown.append(f"{tqdm.format_interval(left)} left")
            self.bar.set_postfix_str(", ".join(shown), refresh=False)
            self.bar.update(step - self.bar.n)
        elif not self.shown:
            self.report(step, epoch, "train", metrics)

    def status(self, text: str) -> None:
        """Shows `text` on a terminal until something else is to be seen there."""
        if self.bar is not None:
            self.bar.set_postfix_str(text, refresh=True)
        elif self.live:
            show_passing(text)

    def report(self, step: int, epoch: float, split: str, metrics: Mapping[str, Any]) -> None:
        """Shows a row of the log."""
        if split == "train":
            self.shown = True
            if self.live and sys.stdout.isatty():
                return
        columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else WIDTH
        width = min(columns, WIDTH)
        self.say(row(step, self.total, epoch, split, metrics, self.classes, width))

    def erase(self) -> None:
        """Takes back a `status` that was shown before there was a live line."""
        if self.live and self.bar is None:
            show_passing("")

    def evaluating(self, images: int) -> None:
        """Shows how far an evaluation is."""
        self.status(f"evaluating, {images:,} images done")

    def saved(self, step: int | None) -> None:
        """Tells of a checkpoint that is complete, if `step` is one."""
        if step is not None:
            self.say(f"saved  step {step:>{len(str(self.total))}}/{self.total}")

    def close(self) -> None:
        """Ends the live line."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def show_passing(text: str) -> None:
    """Overwrites the last line of the terminal on stderr."""
    print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def parts(params: Any, *, frozen: Sequence[str], factors: Any) -> list[str]:
    """Returns lines about a network: its parameters, those of stem, stages, ... and how they learn.

    Args:
      params: the parameters, or their shapes.
      frozen: of `config.optim`.
      factors: of the learning rate, a tree.
    """
    held, factors = jax.tree.leaves(trees.mask(params, frozen)), jax.tree.leaves(factors)
    table: dict[str, collections.Counter] = {}  # part -> how it learns -> parameters
    leaves = zip(trees.paths(params), jax.tree.leaves(params), held, factors)
    for path, leaf, still, factor in leaves:
        how = "frozen" if still else "" if factor == 1 else f"learning rate x {factor:.4g}"
        table.setdefault(path.partition("/")[0], collections.Counter())[how] += leaf.size
    total = sum(table.values(), collections.Counter())
    notes = [f"{total['frozen']:,} frozen"] if frozen else []
    if scaled := total.total() - total["frozen"] - total[""]:
        notes.append(f"{scaled:,} with a learning rate of their own")
    lines = [f"{total.total():,} parameters", *notes]
    for part in sorted(table, key=lambda name: (name != "stem", name == "head", name)):
        counts = _ranged(table[part])
        how = ", ".join(
            how if n == counts.total() else f"{n:,} {how}" for how, n in counts.items() if how
        )
        lines.append(f"{part:<8}{counts.total():>12,}  {how}".rstrip())
    return lines


def _ranged(counts: collections.Counter) -> collections.Counter:
    """Returns how a part learns, with more than three rates as a range of them."""
    rates = {float(how.split()[-1]): n for how, n in counts.items() if how.startswith("learning")}
    if len(rates) <= 3:
        return counts
    others = {how: n for how, n in counts.items() if not how.startswith("learning")}
    ranged = f"learning rate x {min(rates):g} to {max(rates):g}"
    return collections.Counter(others | {ranged: sum(rates.values())})


def hints(data: Mapping[str, Any], workdir: Any, *, evaluated: bool) -> list[str]:
    """Returns lines about what to do with a run that is complete; the commands run as they stand.

    Args:
      data, workdir: `config.data` and directory of the run.
      evaluated: whether its data has evaluation images.
    """
    lines = []
    if evaluated:
        lines.append(f"evaluate:  {command(('workdir', workdir), ('mode', 'eval'))}")
    # Both recipes learn from labels.
    images = {f"data.{k}": value for k, value in data.items() if not k.startswith("unlabelled")}
    recipe, changed = "finetune", {"data.source": "folder"}  # what it changes
    if data["multi_label"] or len(data["label_columns"]) > 1:
        recipe, changed = "multilabel", {"data.source": "list", "data.multi_label": True}
    defaults = configs.defaults()[0] | changed
    images = {k: v for k, v in images.items() if v is not None and v != defaults[k]}
    tune = command(
        ("config", configs.recipe(recipe)),
        ("config.init.checkpoint", workdir),
        *((f"config.{key}", value) for key, value in images.items()),
        ("workdir", f"{workdir}-tuned"),
    )
    return [*lines, f"fine-tune: {tune}", "           (other images: --config.data.root=FOLDER)"]


def command(*flags: tuple[str, Any]) -> str:
    """Returns the command line with these flags, quoted for a shell."""
    return "python -m jaxcls.main " + " ".join(
        f"--{name}={shlex.quote(str(value))}" for name, value in flags
    )


class _Warnings(logging.Handler):
    """Shows what is wrong with data: of all of them once, of an image where it is read."""

    OF = "jaxcls.data"

    def __init__(self, console: Console):
        super().__init__(logging.WARNING)
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        if self.console.enabled or record.name != f"{self.OF}.sources":
            self.console.warn(record.getMessage())
