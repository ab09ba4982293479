"""What to try next: a function of the trials so far, so that a search that was killed goes on as if
it had not been."""

import contextlib
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState
from scipy import special, stats

from jaxcls.sweep.space import Choices, Dimension, Space, all_values, label, point, rounded, size

STARTUP = 5  # trials at least that `bayes` draws at random; one more than there are keys
ATTEMPTS = 20  # to draw a point that is new
CANDIDATES = 4096  # points that are compared where the space has more, or no end of them
NEAR = 0.1  # standard deviation of a fourth of them around the best, as a share of a range
MODELLED = 300  # trials at most, the best ones


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """Returns the space as Optuna has it."""
    return {key: _distribution(dimension) for key, dimension in space.items()}


def _distribution(dimension: Dimension) -> BaseDistribution:
    if isinstance(dimension, Choices):
        return CategoricalDistribution([label(value) for value in dimension.values])
    if dimension.step:
        there = all_values(dimension)
        return IntDistribution(there[0], there[-1], log=dimension.log, step=dimension.step)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log)


def values(space: Space, params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns {"section.key": value} of a trial, as a config has them, from Optuna's parameters."""
    found = {}
    for key, dimension in space.items():
        found[key] = params[key]
        if isinstance(dimension, Choices):
            labels = [label(value) for value in dimension.values]
            found[key] = dimension.values[labels.index(params[key])]
    return found


def merit(trial: FrozenTrial, direction: str) -> tuple[int, int, float]:
    """Returns what is greater of the better trial.

    A complete one is better than one that was given up, of these the one that got farther; one that
    failed is the worst.
    """
    sign = -1 if direction == "minimize" else 1
    if trial.state == TrialState.COMPLETE:
        return 2, 0, sign * trial.value
    if trial.state == TrialState.FAIL:
        return 0, 0, 0.0
    known = [sign * v for v in trial.intermediate_values.values() if not math.isnan(v)]
    return 1, len(trial.intermediate_values), max(known, default=-math.inf)


def propose(
    space: Space,
    strategy: str,
    seed: int,
    trials: Sequence[FrozenTrial],
    direction: str,
) -> dict[str, Any]:
    """Returns the parameters of the next trial; never those of another, in a space that has a size.

    Args:
      space: with a `size` for a grid; one that is larger than the number of trials.
      strategy: "grid": all points, in an order of the seed's; "random": uniform; "bayes": the
        greatest expected improvement (Jones et al. 1998) by a Gaussian process over the ranks of
        the trials so far, which are what is left of a metric whose worst values say nothing.
      seed: with the same trials so far, the proposal is the same.
      trials: all so far, in their order.
      direction: "maximize" or "minimize".
    """
    points, names = size(space), tuple(space)
    taken = {tuple(trial.params[key] for key in names) for trial in trials}
    rng = np.random.default_rng([seed, len(trials)])

    def is_new(params):
        return points is None or tuple(params[key] for key in names) not in taken

    def of_point(index):
        return _params(point(space, int(index)))

    finished = [trial for trial in trials if trial.state.is_finished()]
    if strategy == "bayes" and len(finished) >= max(STARTUP, len(space) + 1):
        if points is not None and points <= CANDIDATES:
            there = [params for params in map(of_point, range(points)) if is_new(params)]
        else:
            best = max(finished, key=lambda trial: merit(trial, direction))
            there = _around(space, rng, values(space, best.params))
            there = [params for params in there if is_new(params)] or [_draw(space, rng)]
        gains = expected_improvement(space, trials, there, direction)
        return there[int(np.argmax(gains))]
    if strategy != "grid":
        for _ in range(ATTEMPTS):
            if is_new(params := _draw(space, rng)):
                return params
    order = np.random.default_rng(seed).permutation(points)
    return next(params for params in map(of_point, order) if is_new(params))


def expected_improvement(
    space: Space, trials: Sequence[FrozenTrial], there: Sequence[Mapping[str, Any]], direction: str
) -> np.ndarray:
    """Returns how much each of the points [N] promises to be better than the best trial so far.

    In standard deviations of the trials' ranks, which are taken as normally distributed. A trial
    that still runs is taken to come out as predicted.

    Args:
      space: of all of them.
      trials: some of them finished.
      there: parameters of the points.
      direction: "maximize" or "minimize".
    """
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
    from threadpoolctl import threadpool_limits

    def places(params):
        return np.array([_coordinates(space, values(space, p)) for p in params])

    finished = [trial for trial in trials if trial.state.is_finished()]
    finished = sorted(finished, key=lambda t: merit(t, direction))[-MODELLED:]
    merits = [merit(trial, direction) for trial in finished]
    order = {m: i for i, m in enumerate(sorted({*merits}))}
    y = special.ndtri((stats.rankdata([order[m] for m in merits]) - 0.5) / len(merits))
    x = places([trial.params for trial in finished])
    kernel = ConstantKernel(1.0, (0.1, 10)) * Matern(
        np.full(x.shape[1], 0.5), (0.1, 3.0), nu=2.5
    ) + WhiteKernel(0.05, (1e-3, 0.5))
    # A length at its bound is no fault. Threads would wait for cores that train.
    with warnings.catch_warnings(action="ignore"), threadpool_limits(1):
        process = GaussianProcessRegressor(kernel, n_restarts_optimizer=1, random_state=0)
        process.fit(x, y)
        if running := [trial.params for trial in trials if not trial.state.is_finished()]:
            more = places(running)
            x, y = np.concatenate([x, more]), np.concatenate([y, process.predict(more)])
            process = GaussianProcessRegressor(process.kernel_, optimizer=None).fit(x, y)
        mean, deviation = process.predict(places(there), return_std=True)
    deviation = np.maximum(deviation, 1e-9)
    z = (mean - y.max()) / deviation
    return deviation * (z * special.ndtr(z) + np.exp(-z * z / 2) / math.sqrt(2 * math.pi))


def _params(point: Mapping[str, Any]) -> dict[str, Any]:
    return {key: label(value) for key, value in point.items()}


def _draw(space: Space, rng: np.random.Generator) -> dict[str, Any]:
    """Returns the parameters of a random point."""
    return _params({key: _at(d, u) for (key, d), u in zip(space.items(), rng.random(len(space)))})


def _around(
    space: Space, rng: np.random.Generator, best: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Returns the parameters of `CANDIDATES` points, a fourth of them near the best."""
    drawn = [_draw(space, rng) for _ in range(3 * CANDIDATES // 4)]
    for _ in range(CANDIDATES // 4):
        near = {}
        for key, dimension in space.items():
            if isinstance(dimension, Choices):
                stays = rng.random() < 0.8
                near[key] = best[key] if stays else _at(dimension, rng.random())
            else:
                share = _share(dimension, best[key]) + NEAR * rng.standard_normal()
                near[key] = _at(dimension, min(max(share, 0.0), 1.0))
        drawn.append(_params(near))
    return drawn


def _at(dimension: Dimension, share: float) -> Any:
    """Returns the value at a share in [0, 1] of a dimension."""
    if isinstance(dimension, Choices) or (dimension.step and not dimension.log):
        there = all_values(dimension)
        return there[min(int(share * len(there)), len(there) - 1)]
    low, high = dimension.low, dimension.high
    if not dimension.log:
        return rounded(dimension, low + share * (high - low))
    value = math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
    return min(max(round(value), low), high) if dimension.step else rounded(dimension, value)


def _share(dimension: Dimension, value: float) -> float:
    """Returns where a value is in a range, in [0, 1]."""
    scale = math.log if dimension.log else float
    low, high = scale(dimension.low), scale(dimension.high)
    return (scale(value) - low) / (high - low)


def _coordinates(space: Space, point: Mapping[str, Any]) -> list[float]:
    """Returns a point as numbers: those that are alike are near, other choices equally far."""
    found: list[float] = []
    for key, dimension in space.items():
        if not isinstance(dimension, Choices):
            found.append(_share(dimension, point[key]))
            continue
        labels = [label(value) for value in dimension.values]
        place, last = labels.index(label(point[key])), len(labels) - 1
        if dimension.ordered or last < 2:
            found.append(place / max(last, 1))
        else:
            found += [float(i == place) for i in range(len(labels))]
    return found


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Lets Optuna not tell what is new in it."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        optuna.logging.set_verbosity(before)
