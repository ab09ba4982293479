"""python -m jaxcls.sweep --config=FILE[:ARG] --space=FILE --trials=N --workdir=DIR
    [--strategy=bayes|random|grid] [--jobs=N] [--pruner=median|halving|none] [--seed=N]
    [--storage=URL] [--config.KEY=VALUE]

Searches over keys of a config. A trial is a run of jaxcls.main in DIR/trials/NNNN; trials are
compared by the best config.checkpoint.best of their evaluations. The same command goes on with a
sweep that was stopped, or with more --trials; given in several terminals, or on several machines
that share DIR, all work on the same sweep, and take up what one of them leaves. It writes
DIR/best.py, a config that trains as it stands, DIR/trials.csv, pictures and DIR/study.db (Optuna).
Trials write no report, and those that are given up or fail leave no checkpoints.

  --space     a Python file with get_space(): configs/spaces/transfer.py is one
  --strategy  bayes: a Gaussian process, expected improvement; random; grid: all points, shuffled
  --trials    how many in all; of a grid, all points without it
  --jobs      how many at once: each has a GPU of its own, or its share of the processor's cores
  --pruner    which trials end early: median: worse than half of the others after as many
              evaluations; halving: successive halving, the best fourth goes on; none
  --seed      of the search; one process with --jobs=1 then always tries the same
  --storage   URL of a database instead of DIR/study.db, such as postgresql://USER@HOST/NAME

Exit codes: 0 complete; 2 a mistake; 1 no trial has a result; 143, 130, 129 stopped by SIGTERM,
Ctrl-C, SIGHUP: the trials that ran are saved.
"""

import importlib.util
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from jaxcls import command, names, signals
from jaxcls import config as configs
from jaxcls.files import write_atomically
from jaxcls.sweep import recipe
from jaxcls.sweep import space as spaces

if TYPE_CHECKING:
    from jaxcls.sweep.study import Study

# A report takes as long as some trials do, and is looked at once: that of the best.
OF_TRIALS = {"report.enabled": False}
LOOK = 0.1  # seconds between two looks at the trials
CLAIM = 1.0  # seconds until a process without a trial asks for one again
STRATEGIES = ("bayes", "random", "grid")
PRUNERS = ("median", "halving", "none")


def main(argv: Sequence[str] = sys.argv) -> int:
    """Runs the command and returns its exit code."""
    values, _ = parsed(argv)
    needed(values)
    config = values.config
    space = spaces.read(values.space)
    most = _trials(values, space)
    check(argv, space)
    from jaxcls.sweep import study as studies

    workdir = Path(values.workdir)
    there = studies.Study(
        workdir,
        config=configs.flatten(config),
        space=space,
        strategy=values.strategy,
        pruner=values.pruner,
        seed=values.seed,
        storage=values.storage or "",
    )
    return search(there, argv, most, values.jobs)


def parsed(argv: Sequence[str], **more: Any) -> tuple[flags.FlagValues, str]:
    """Returns the values of the flags, with more keys of the config set, and where it is from."""
    values = flags.FlagValues()
    command.define_config(values)
    text = flags.DEFINE_string
    text("space", None, "Python file with get_space()", flag_values=values)
    text("workdir", None, "directory of the sweep", flag_values=values)
    text("storage", None, "URL of a database", flag_values=values)
    flags.DEFINE_enum("strategy", "bayes", STRATEGIES, "what to try next", flag_values=values)
    flags.DEFINE_enum("pruner", "median", PRUNERS, "what ends early", flag_values=values)
    flags.DEFINE_integer("trials", None, "how many in all", flag_values=values)
    flags.DEFINE_integer("jobs", 1, "how many at once", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("seed", 0, "of the search", lower_bound=0, flag_values=values)
    further = [f"--config.{key}={spaces.text(value)}" for key, value in more.items()]
    required = ("space", "workdir")
    return values, command.parse([*argv, *further], values, required, help=__doc__)


def needed(values: flags.FlagValues) -> None:
    """Refuses what no sweep can do.

    Raises:
      ValueError: Optuna is missing, the working directory is a run or no local folder.
    """
    if importlib.util.find_spec("optuna") is None:
        raise ValueError("python -m jaxcls.sweep needs Optuna: pip install 'jaxcls[sweep]'")
    if "://" in values.workdir:
        raise ValueError(
            f"--workdir={values.workdir}: a sweep needs a folder with file locks, on this machine "
            "or shared by several"
        )
    workdir = Path(values.workdir)
    if workdir.exists() and not workdir.is_dir():
        raise ValueError(f"--workdir={workdir} is a file: give a folder")
    if (workdir / "config.json").exists() or (workdir / "checkpoints").exists():
        raise ValueError(f"--workdir={workdir} is a run: choose another for the sweep")


def _trials(values: flags.FlagValues, space: spaces.Space) -> int:
    points = spaces.size(space)
    if values.strategy == "grid" and points is None:
        key = next(key for key, d in space.items() if spaces.all_values(d) is None)
        raise ValueError(
            f"--strategy=grid: config.{key} is a range without an end of values: write choices, "
            "or --strategy=bayes"
        )
    if points is not None and points > spaces.MOST_POINTS and values.strategy == "grid":
        raise ValueError(f"--strategy=grid: the space has {points:,} points: write fewer choices")
    most = values.trials if values.trials is not None or values.strategy != "grid" else points
    if most is None:
        raise ValueError("--trials is missing: write how many to run in all, --trials=20")
    if most < 1:
        raise ValueError(f"--trials={most}: write a number above 0")
    if points is not None and most > points:
        raise ValueError(f"--trials={most}: the space has {points} points, and none is tried twice")
    return most


def check(argv: Sequence[str], space: spaces.Space) -> None:
    """Refuses a space with values that a run would refuse whatever the other keys are.

    Raises:
      ValueError: there is one; or a key is given on the command line too.
    """
    for argument in argv[1:]:
        key = argument.lstrip("-").partition("=")[0].removeprefix("config.")
        if argument.startswith("--config.") and key in space:
            raise ValueError(f"config.{key} is in the space: leave --config.{key} out")
    for key, dimension in space.items():
        for value in spaces.trial_values(dimension):
            values, _ = parsed(argv, **{key: value})
            names.check(values.config)
            default = configs.defaults()[0][key]
            if isinstance(default, str) and default.endswith(configs.UNITS):
                # an epoch so long that no duration rounds to no step
                configs.steps_of(value, key=key, batch_size=1, steps_per_epoch=10**6)


def search(study: "Study", argv: Sequence[str], most: int, jobs: int) -> int:
    """Runs trials until there are `most`, and writes what came out; returns the exit code."""
    from jaxcls.sweep.table import Board, final
    from jaxcls.sweep.trials import Stop, Trial, slots

    free = slots(jobs, study.workdir)
    running: list[Trial] = []
    board, problem, asked_at = Board(study, most), None, 0.0

    def kill():
        for trial in running:
            if trial.process is not None:
                trial.process.kill()

    def begin():
        claim = study.claim(most)
        if claim is None:
            return False
        config = trial_config(study, argv, {**OF_TRIALS, **claim.values})
        file = study.trials_dir / f"{claim.number:04d}.py"
        title = f"Trial {claim.number} of {study.workdir}."
        write_atomically(file, recipe.written(config, title, claim.values))
        trial = Trial(study, claim, free.pop(0), [f"--config={file}"])
        running.append(trial)
        board.started(trial)
        return True

    with signals.watched(processes=1) as stop:
        signals.before_exit.append(kill)
        try:
            told = False
            while True:
                leaving = bool(stop.received) or problem is not None
                if leaving and not told:
                    told = True
                    for trial in running:
                        trial.leave()
                for trial in running[:]:
                    try:
                        state = trial.poll(leaving=leaving)
                    except Stop as e:
                        problem, state = problem or e, None
                        running.remove(trial)
                        free.append(trial.slot)
                        trial.close()
                        continue
                    if state is not None:
                        running.remove(trial)
                        free.append(trial.slot)
                        trial.close()
                        if state.is_finished():
                            write(study)
                            board.ended(trial, state)
                if leaving and not running:
                    break
                if not leaving and problem is None and free and time.monotonic() >= asked_at:
                    if not begin():
                        asked_at = time.monotonic() + CLAIM
                        trials = study.trials()
                        if not running and all(t.state.is_finished() for t in trials):
                            break
                    continue
                board.show(running)
                time.sleep(LOOK)
        finally:
            board.close()
            for trial in running:
                trial.close()
            signals.before_exit.remove(kill)
            for slot in free:
                slot.close()
    if problem is not None:
        raise problem
    if stop.received:
        done = sum(t.state.is_finished() for t in study.trials())
        print(f"stopped after {done} of {most} trials, and saved; the same command goes on")
        return 128 + stop.received
    write(study)
    with study.locked():
        draw(study)
    print(final(study))
    return tell(study)


def trial_config(study: "Study", argv: Sequence[str], values: dict[str, Any]) -> Any:
    """Returns the config of a trial: the command line's, with its values.

    Raises:
      ValueError: the recipe is not what it was when the sweep began.
    """
    if configs.flatten(parsed(argv)[0].config) != study.config:
        raise ValueError(
            "the config was changed while the sweep runs: put it back, or choose another --workdir"
        )
    return parsed(argv, **values)[0].config


def write(study: "Study") -> None:
    """Writes DIR/trials.csv and DIR/best.py."""
    from jaxcls import record
    from jaxcls.sweep.propose import values
    from jaxcls.sweep.table import as_csv

    with study.locked():
        write_atomically(study.workdir / "trials.csv", as_csv(study))
        best = study.best()
        if best is None:
            return
        run = study.run_dir(best.number)
        path = study.workdir / "best.py"
        found = values(study.space, best.params)
        step = best.user_attrs.get("step")
        again = hint("main", config=path, workdir="RUN")
        title = (
            f"The best of a search: {again}\n\n"
            f"{study.metric} {best.value:.6g} at step {step} of {run}, with\n"
            f"{spaces.shown(found)}.\n"
        )
        # as the run itself has it, with what its config had left open
        config = configs.flatten(record.read(run / "config.json"))
        config |= {key: study.config[key] for key in OF_TRIALS}
        write_atomically(path, recipe.written(config, title, found))


def draw(study: "Study") -> None:
    """Draws the pictures of DIR."""
    from jaxcls.sweep import pictures

    pictures.draw(study)


def tell(study: "Study") -> int:
    """Prints what came out and what to do with it; returns the exit code."""
    best = study.best()
    if best is None:
        print("jaxcls: no trial has a result", file=sys.stderr)
        return 1
    print(f"\nbest       trial {best.number:04d}: {study.metric} {best.value:.4f}")
    folder = study.workdir
    print(f"  again:   {hint('main', config=folder / 'best.py', workdir='RUN')}")
    if sum(trial.state.name == "COMPLETE" for trial in study.trials()) > 1:
        print(f"  soup:    {hint('soup', sweep=folder, workdir=folder / 'soup')}")
    print(f"  files:   {folder}: trials.csv, best.py, pictures")
    return 0


def hint(command: str, **given: Any) -> str:
    """Returns a command of jaxcls with flags, as a shell takes it."""
    words = (f"--{name}={shlex.quote(str(value))}" for name, value in given.items())
    return f"python -m jaxcls.{command} {' '.join(words)}"


if __name__ == "__main__":
    command.exit_with(command.told(main))
