"""The trials of a sweep as a user sees them: live, as a table, as CSV."""

import math
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from tqdm import tqdm

from jaxcls.files import csv_of
from jaxcls.objectives import METRICS, OF_SEVERAL
from jaxcls.sweep import space as spaces
from jaxcls.sweep.propose import values
from jaxcls.sweep.study import Study, ranked
from jaxcls.sweep.trials import Trial

STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}
SHOWN = 20  # rows of the table at the end
NUMBERS = {*METRICS, *OF_SEVERAL}  # columns of numbers that are rounded
EVERY = 0.5  # seconds between two looks of the live table


def of_trial(study: Study, trial: FrozenTrial) -> dict[str, Any]:
    """Returns a row of trials.csv."""
    value = trial.value
    if value is None:  # of one that was given up: what it had reached
        known = [v for v in trial.intermediate_values.values() if not math.isnan(v)]
        pick = min if study.direction == "minimize" else max
        value = pick(known, default=None)
    return {
        "trial": f"{trial.number:04d}",
        "state": STATES[trial.state],
        study.metric: value,
        "step": trial.user_attrs.get("step"),
        "evaluations": len(trial.intermediate_values),
        "seconds": trial.user_attrs.get("seconds"),
        **values(study.space, trial.params),
        "problem": trial.user_attrs.get("problem"),
    }


def as_csv(study: Study) -> str:
    """Returns trials.csv: a line for each trial, in their order."""
    rows = [of_trial(study, trial) for trial in study.trials()]
    return csv_of([[*row] for row in rows[:1]] + [[*row.values()] for row in rows])


def lines(rows: Sequence[Mapping[str, Any]], width: int = 0) -> list[str]:
    """Returns a table of the rows, a heading above; lines are cut at `width` columns."""
    if not rows:
        return []
    names = [
        name
        for name in rows[0]
        if name != "problem" or any(row.get(name) not in (None, "") for row in rows)
    ]
    cells = [[_cell(name, row.get(name)) for name in names] for row in rows]
    sizes = [max(map(len, column)) for column in zip(names, *cells)]
    numbers = {
        name
        for name, column in zip(names, zip(*cells))
        if all(cell[:1] in "-0123456789." for cell in column)
    }

    def line(row):
        padded = [
            cell.rjust(size) if name in numbers else cell.ljust(size)
            for name, cell, size in zip(names, row, sizes)
        ]
        text = "  ".join(padded).rstrip()
        return text[: width - 1] + "…" if width and len(text) > width else text

    return [line(names), *map(line, cells)]


def _cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    if name in NUMBERS:
        return f"{value:.4f}"
    return spaces.short_number(value)


class Board:
    """What is shown while a sweep runs: a live table on a terminal, otherwise a line an event."""

    def __init__(self, study: Study, most: int):
        self.study, self.most = study, most
        self.live = sys.stderr.isatty()
        self.began, self.finished_before = time.monotonic(), self._finished()
        self._height = 0  # lines of the table that stand on the terminal
        self._next = 0.0

    def _finished(self) -> int:
        return sum(trial.state.is_finished() for trial in self.study.trials())

    def say(self, text: str) -> None:
        """Prints a line, above the table."""
        self._erase()
        print(text, flush=True)

    def started(self, trial: Trial) -> None:
        """Tells of a trial that was begun, or goes on."""
        if not self.live:
            again = ", taken up again" if trial.claim.known else ""
            self.say(f"trial {trial.claim.number:04d}  {spaces.shown(trial.claim.values)}{again}")

    def ended(self, trial: Trial, state: TrialState) -> None:
        """Tells how a trial has ended."""
        there = self.study.trials()[trial.claim.number]
        row, best = of_trial(self.study, there), self.study.best()
        fields = [f"trial {row['trial']}  {STATES[state]}"]
        if row[self.study.metric] is not None:
            fields.append(f"{self.study.metric} {_cell(self.study.metric, row[self.study.metric])}")
        if row["problem"]:
            fields.append(row["problem"])
        elif best is not None and best.number == trial.claim.number:
            fields.append("the best so far")
        if not self.live:
            self.say("  ".join(fields))

    def show(self, running: Sequence[Trial]) -> None:
        """Draws the table on a terminal, if it is time to."""
        if not self.live or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + EVERY
        columns, height = shutil.get_terminal_size()
        text = self._lines(running, height - 1, columns - 1)
        self._erase()
        print("\n".join(text), file=sys.stderr, flush=True)
        self._height = len(text)

    def _lines(self, running: Sequence[Trial], height: int, width: int) -> list[str]:
        trials, metric = self.study.trials(), self.study.metric
        counts = {state: sum(t.state == state for t in trials) for state in STATES}
        done = sum(t.state.is_finished() for t in trials)
        elapsed = time.monotonic() - self.began
        told = [f"{n} {STATES[state]}" for state, n in counts.items() if n]
        head = f"{done} of {self.most} trials: {', '.join(told)}, {tqdm.format_interval(elapsed)}"
        if self.finished_before < done < self.most:
            left = elapsed / (done - self.finished_before) * (self.most - done)
            head += f", about {tqdm.format_interval(left)} left"
        ours = {trial.claim.number: trial for trial in running}
        rows = []
        for t in ranked(trials, self.study.direction):
            row = of_trial(self.study, t)
            if t.number in ours:
                row["seconds"] = round(time.monotonic() - ours[t.number].began)
                row["step"] = None
            rows.append({k: v for k, v in row.items() if k != "problem"} | {metric: row[metric]})
        table = lines(rows[: max(height - 3, 1)], width)
        more = len(rows) - max(height - 3, 1)
        tail = [f"and {more} more"] if more > 0 else []
        return [head[:width], *table, *tail]

    def _erase(self) -> None:
        if self._height:
            print(f"\x1b[{self._height}A\x1b[J", end="", file=sys.stderr, flush=True)
            self._height = 0

    def close(self) -> None:
        """Takes the live table back."""
        self._erase()


def final(study: Study) -> str:
    """Returns the table of results, the best first."""
    rows = [of_trial(study, trial) for trial in ranked(study.trials(), study.direction)]
    text = lines(rows[:SHOWN], 160)
    if len(rows) > SHOWN:
        text.append(f"and {len(rows) - SHOWN} more in {study.workdir / 'trials.csv'}")
    return "\n".join(text)
