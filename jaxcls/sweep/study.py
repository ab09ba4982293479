"""The trials of a sweep, in a database that several processes share.

What a process works on it holds by a file lock, trials/NNNN.log, which its training process holds
too: the system releases it however both end, and another process takes the trial up. Processes on
several machines need a DIR that they share, and locks on it.
"""

import contextlib
import json
import math
import os
import sqlite3
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import optuna
import sqlalchemy
from optuna.trial import FrozenTrial, TrialState

from jaxcls import config as configs
from jaxcls.files import write_atomically
from jaxcls.output import one_line
from jaxcls.sweep import space as spaces
from jaxcls.sweep.propose import distributions, merit, propose, quiet, values

FILE = "sweep.json"  # what the sweep of a directory is
DATABASE = "study.db"
NAME = "sweep"  # of the study in it
PATIENCE = 20  # seconds for which another program may lock the database
PRUNERS: dict[str, Callable[[], optuna.pruners.BasePruner]] = {
    # worse than half of the others were after as many evaluations, at least 2; of 4 at least
    "median": lambda: optuna.pruners.MedianPruner(
        n_startup_trials=4, n_warmup_steps=2, n_min_trials=4
    ),
    # the best fourth goes on after 1, 4, 16, ... evaluations (Li et al. 2018, arXiv:1810.05934)
    "halving": lambda: optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=4),
    "none": optuna.pruners.NopPruner,
}


class Claim(NamedTuple):
    """A trial that this process works on."""

    number: int
    id: int  # in the database
    values: dict[str, Any]  # {"section.key": value}
    log: int  # descriptor of the file that is locked, open for appending
    known: dict[int, float]  # evaluation -> metric that the database has already


class Study:
    """A sweep's study, opened or begun."""

    def __init__(
        self,
        workdir: Path,
        *,
        config: Mapping[str, Any],
        space: spaces.Space,
        strategy: str,
        pruner: str,
        seed: int,
        storage: str = "",
    ):
        """Opens the study of `workdir`, or begins it.

        Args:
          workdir: of the sweep.
          config: that trials begin with, {"section.key": value}; its checkpoint.best is the metric.
          space, strategy, seed: of `propose`.
          pruner: one of `PRUNERS`.
          storage: URL of the database; "": a file in `workdir`.

        Raises:
          ValueError: there is another sweep in `workdir`, or the database cannot be used.
        """
        self.workdir, self.space, self.strategy, self.seed = workdir, space, strategy, seed
        self.config, self.metric = dict(config), config["checkpoint.best"]
        self.direction = "minimize" if self.metric == "loss" else "maximize"
        self.trials_dir = workdir / "trials"
        self._file = workdir / DATABASE
        self._url = storage or f"sqlite:///{self._file}"
        self.place = str(self._file) if not storage else _shown(storage)
        ours = {
            "config": json.loads(json.dumps(dict(config))),
            "space": spaces.described(space),
            "strategy": strategy,
            "seed": seed,
            "pruner": pruner,
            "storage": "" if not storage else self.place,
        }
        try:
            self.trials_dir.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise ValueError(f"--workdir={workdir}: {e.filename}: {e.strerror}") from e
        with self.locked(), self._told():
            begun = (workdir / FILE).exists()
            identity = self._identity(ours)
            # where others have studies too, one call makes it and says whose it is
            name = f"{workdir.absolute().name}-{identity[:8]}" if storage else NAME
            try:
                if not storage and self._file.exists():
                    self._check_file()
                elif not storage:
                    self._begin_file(identity)
                self._storage = _opened(self._url)
                self._study = self._study_of(name, identity, PRUNERS[pruner]())
            except BaseException:
                if not begun:  # such as a mistyped URL, which may be another then
                    (workdir / FILE).unlink()
                raise
        self._id = self._storage.get_study_id_from_name(name)

    # -- Opening -----------------------------------------------------------------------------------

    def _identity(self, ours: dict[str, Any]) -> str:
        """Returns the name of the sweep of this directory, which no other has."""
        path = self.workdir / FILE
        if not path.exists():
            if self._file.exists():
                raise ValueError(
                    f"{self._file} is not of a sweep that was begun here ({path} is missing): "
                    "choose another --workdir"
                )
            identity = uuid.uuid4().hex
            write_atomically(path, json.dumps(ours | {"id": identity}, indent=1) + "\n")
            return identity
        try:
            theirs = json.loads(path.read_bytes())
            identity = theirs.pop("id")
            # keys that there were not yet
            theirs["config"] = json.loads(json.dumps(configs.defaults()[0])) | theirs["config"]
            differences = configs.differences(
                {k: theirs[k] for k in ours}, {k: ours[k] for k in ours}
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(f"{path} is damaged: choose another --workdir") from None
        if differences:
            lines = [
                f"{key} is {configs.short(there)} there, {configs.short(here)} here"
                for key, (here, there) in differences.items()
            ]
            more = f"; and {len(lines) - 5} more" if len(lines) > 5 else ""
            raise ValueError(
                f"{self.workdir} has another sweep: {'; '.join(lines[:5])}{more}; choose another "
                "--workdir"
            )
        return identity

    def _begin_file(self, identity: str) -> None:
        """Makes the database with its study, which are there whole or not at all.

        Optuna makes tables one after the other: of a database that was begun when the process was
        killed nobody could tell whose it is.
        """
        if any(self.trials_dir.glob("*.log")):
            return  # the database is gone, as `_study_of` says
        temporary = self._file.with_name(f".{DATABASE}.tmp")
        journal = temporary.with_name(f"{temporary.name}-journal")  # SQLite's
        for left in (temporary, journal):
            left.unlink(missing_ok=True)
        try:
            storage = _opened(f"sqlite:///{temporary}")
            try:
                self._created(storage, NAME, identity)
            finally:
                storage.remove_session()
                storage.engine.dispose()
            temporary.replace(self._file)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def _check_file(self) -> None:
        """Refuses a file that is another program's, in which Optuna would make its tables."""
        with contextlib.closing(sqlite3.connect(self._file, timeout=PATIENCE)) as connection:
            try:
                rows = connection.execute("SELECT name FROM sqlite_master").fetchall()
            except sqlite3.OperationalError:
                raise  # locked
            except sqlite3.DatabaseError:
                raise ValueError(
                    f"{self._file} is not a database: choose another --workdir"
                ) from None
        tables = {name for (name,) in rows}
        if tables and not {"studies", "trials"} <= tables:
            raise ValueError(
                f"{self._file} is a database of another program: choose another --workdir"
            )

    def _study_of(self, name: str, identity: str, pruner: optuna.pruners.BasePruner) -> Any:
        with quiet():
            names = [study.study_name for study in self._storage.get_all_studies()]
            begun = name in names
            if not begun and any(self.trials_dir.glob("*.log")):
                raise ValueError(
                    f"{self.place} has no study of {self.workdir}, which has trials: put the "
                    "database back, or choose another --workdir"
                )
            if not begun and names and name == NAME:
                raise ValueError(
                    f"{self.place} has the studies of another program ({', '.join(names[:3])}): "
                    "choose another --workdir"
                )
            if not begun:
                self._created(self._storage, name, identity)
            study = optuna.load_study(
                storage=self._storage,
                study_name=name,
                sampler=optuna.samplers.RandomSampler(0),  # is not asked: `propose` is
                pruner=pruner,
            )
            if name == NAME and study.user_attrs.get("id") != identity:
                raise ValueError(
                    f"{self.place} has a study {name!r} that is not of {self.workdir}: choose "
                    "another --workdir"
                )
        return study

    def _created(self, storage: optuna.storages.RDBStorage, name: str, identity: str) -> None:
        with quiet():
            study = optuna.create_study(
                storage=storage, study_name=name, direction=self.direction, load_if_exists=True
            )
        study.set_user_attr("id", identity)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Makes what a database says a line for the user."""
        try:
            yield
        except ImportError as e:
            cause = e.__cause__ or e
            raise ValueError(f"--storage={self.place}: {cause}: install it with pip") from e
        except (
            sqlalchemy.exc.SQLAlchemyError,
            sqlite3.Error,
            optuna.exceptions.StorageInternalError,
        ) as e:
            while e.__cause__ is not None:  # Optuna's and SQLAlchemy's have the driver's inside
                e = e.__cause__
            what = " ".join(str(e).split()).split("(Background")[0].strip() or type(e).__name__
            hint, flag = "", "workdir" if self.place == str(self._file) else "storage"
            if "locked" in what:
                hint = ": another program holds it: close that, and give the same command again"
            elif "readonly" in what or "unable to open" in what:
                hint = f": change its permissions, or choose another --{flag}"
            elif "not a database" in what:
                hint = f": choose another --{flag}"
            raise ValueError(f"the database {self.place} cannot be used: {what}{hint}") from e

    # -- Trials ------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Holds what only one process of the sweep may do at a time: a matter of milliseconds."""
        file = _take(self.trials_dir / ".lock", wait=True)
        try:
            yield
        finally:
            os.close(file)

    def trials(self) -> list[FrozenTrial]:
        """Returns all trials in their order."""
        with self._told():  # of the database only those that were not finished before
            return self._study.get_trials(deepcopy=False)

    def claim(self, most: int) -> Claim | None:
        """Returns a trial that nobody works on, or a new one while there are less than `most`.

        Raises:
          ValueError: the database cannot be used any more.
        """
        with self.locked(), self._told():
            trials = self.trials()
            for trial in trials:
                if not trial.state.is_finished():
                    log = _take(self.log_file(trial.number))
                    if log is not None:
                        return self._claimed(trial, log)
            if len(trials) >= most:
                return None
            params = propose(self.space, self.strategy, self.seed, trials, self.direction)
            new = optuna.trial.create_trial(
                state=TrialState.RUNNING, params=params, distributions=distributions(self.space)
            )
            log = _take(self.log_file(len(trials)))
            if log is None:
                raise ValueError(f"{self.log_file(len(trials))} is locked by another program")
            self._storage.create_new_trial(self._id, template_trial=new)
            return self._claimed(self.trials()[-1], log)

    def _claimed(self, trial: FrozenTrial, log: int) -> Claim:
        return Claim(
            trial.number,
            self._storage.get_trial_id_from_study_id_trial_number(self._id, trial.number),
            values(self.space, trial.params),
            log,
            dict(trial.intermediate_values),
        )

    def log_file(self, number: int) -> Path:
        """Returns the file that has what a trial printed; who works on it holds its lock."""
        return self.trials_dir / f"{number:04d}.log"

    def run_dir(self, number: int) -> Path:
        """Returns the working directory of a trial."""
        return self.trials_dir / f"{number:04d}"

    def report(self, claim: Claim, evaluation: int, value: float | None) -> None:
        """Takes the metric of an evaluation of a trial, counted from 1."""
        if evaluation not in claim.known:
            value = math.nan if value is None else float(value)
            claim.known[evaluation] = value
            with self._told():
                self._storage.set_trial_intermediate_value(claim.id, evaluation, value)

    def hopeless(self, claim: Claim) -> bool:
        """Returns whether the pruner gives a trial up, by its evaluations so far."""
        with self._told(), quiet():
            trial = self._storage.get_trial(claim.id)
            return bool(self._study.pruner.prune(self._study, trial))

    def tell(
        self, claim: Claim, state: TrialState, value: float | None = None, **about: Any
    ) -> None:
        """Ends a trial: complete with its value, pruned or failed; `about` is kept with it."""
        with self._told():
            for name, what in about.items():
                self._storage.set_trial_user_attr(claim.id, name, what)
            self._storage.set_trial_state_values(
                claim.id, state, None if value is None else [value]
            )

    def best(self) -> FrozenTrial | None:
        """Returns the best trial that is complete, of equals the first; None without any."""
        complete = [t for t in self.trials() if t.state == TrialState.COMPLETE]
        return max(complete, key=lambda t: merit(t, self.direction), default=None)

    def importances(self) -> dict[str, float]:
        """Returns each key's share in what makes the complete trials differ, the greatest first.

        By functional analysis of variance in a random forest (Hutter et al. 2014); {} where there
        is too little to tell.
        """
        complete = [t for t in self.trials() if t.state == TrialState.COMPLETE]
        if len(complete) < 4 or len({t.value for t in complete}) < 2:
            return {}
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        with quiet(), self._told(), contextlib.suppress(RuntimeError, ValueError):
            return optuna.importance.get_param_importances(self._study, evaluator=evaluator)
        return {}


def ranked(trials: list[FrozenTrial], direction: str) -> list[FrozenTrial]:
    """Returns the trials, the best first, of equals the first; those that still run are before."""
    return sorted(
        sorted(trials, key=lambda t: merit(t, direction), reverse=True),
        key=lambda t: t.state.is_finished(),
    )


def _opened(url: str) -> optuna.storages.RDBStorage:
    options = {"connect_args": {"timeout": PATIENCE}} if url.startswith("sqlite") else {}
    with quiet():
        try:
            return optuna.storages.RDBStorage(url, engine_kwargs=options)
        except RuntimeError as e:  # its tables are of another version of Optuna
            raise ValueError(f"the database {_shown(url)} cannot be used: {one_line(e)}") from e


def _take(path: Path, wait: bool = False) -> int | None:
    """Returns a descriptor of a file that holds its lock, or None if another has it."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        if filelock.lock_descriptor(file, blocking=wait):
            return file
    except OSError as e:
        os.close(file)
        raise ValueError(
            f"{path} cannot be locked ({e.strerror}): a sweep needs a --workdir with file locks"
        ) from e
    os.close(file)
    return None


def _shown(url: str) -> str:
    """Returns a URL of a database without its password."""
    try:
        found = sqlalchemy.engine.make_url(url)
        if found.drivername.startswith("sqlite") and found.database in (None, "", ":memory:"):
            raise ValueError("no file")
        return found.render_as_string(hide_password=True)
    except (sqlalchemy.exc.ArgumentError, ValueError) as e:
        raise ValueError(
            f"--storage={url}: write the URL of a database, such as sqlite:////FOLDER/study.db or "
            "postgresql://USER:PASSWORD@HOST/NAME"
        ) from e
