"""Weights of classes that have unequally many images, from their counts: NumPy, float64.

A count is how often training sees a class in an epoch (`sources.Data.class_counts`): what
config.data.sampling does to it is in there, and nothing is corrected twice.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxcls.config import closest, short


class Classes(NamedTuple):
    """What is known of the classes of the training images."""

    names: tuple[str, ...]
    counts: Callable[[], tuple[np.ndarray, float]]  # `sources.Data.class_counts`; may take long
    size: int  # classes of the network, at least as many


def class_weights(given: Sequence[Any], beta: float, classes: Classes) -> np.ndarray:
    """Returns `config.loss.class_weights` as numbers, float64 [classes.size].

    They are scaled so that their mean over the images is 1, sum_c n_c w_c = sum_c n_c: the learning
    rate keeps its meaning.

        ("inverse",)    w_c = 1 / n_c
        ("effective",)  w_c = (1 - beta) / (1 - beta^n_c), of the effective number of images
                        (Cui et al. 2019, arXiv:1901.05555, equation 4); beta = 0 is no weighting,
                        beta -> 1 the inverse
        ("auto",)       the effective number with beta = 1 - 1 / (mean of n_c): the inverse for
                        classes far below the mean, and all far above it weigh the same
        (1.0, 2.5, ...), (("cat", 2.5), ...)  as given; 1 for classes that are not named

    Args:
      given: the key's value, not ().
      beta: `config.loss.effective_beta`.
      classes: those that the data does not have get the weight 1.

    Raises:
      ValueError: a value that means nothing; a class without images, for all but given numbers.
    """
    key, names, (n, _) = "loss.class_weights", classes.names, classes.counts()
    if method := METHODS.get(given[0] if len(given) == 1 and isinstance(given[0], str) else None):
        check_there(f"config.{key} = {given!r}", n, names)
        weights = method(n, beta)
    else:
        weights = numbers(key, given, names, METHODS)
    return padded(weights / np.average(weights, weights=n), classes.size)


def pos_weights(given: Sequence[Any], classes: Classes) -> np.ndarray:
    """Returns `config.loss.pos_weights`, not (), as numbers, float64 [classes.size].

    ("balanced",) is how many images do not show the class for each that does, (N - n_c) / n_c.

    Raises:
      ValueError: a value that means nothing; a class without images, for "balanced".
    """
    key, names = "loss.pos_weights", classes.names
    if tuple(given) == ("balanced",):
        n, images = classes.counts()
        check_there(f"config.{key} = {given!r}", n, names)
        weights = (images - n) / n
    else:
        weights = numbers(key, given, names, ("balanced",))
    return padded(weights, classes.size)


def log_prior(weights: np.ndarray | None, classes: Classes) -> np.ndarray:
    """Returns the log of each class's share of the images, weighted, float64 [classes.size].

    Raises:
      ValueError: a class has no images, so that there is no logarithm.
    """
    n, _ = classes.counts()
    check_there("config.loss.logit_adjustment", n, classes.names)
    if classes.size > len(n):
        raise ValueError(
            f"config.loss.logit_adjustment: every class needs training images, and the network has "
            f"{classes.size} (config.model.num_classes), the data {len(n)}"
        )
    n = n if weights is None else n * weights[: len(n)]
    return np.log(n / n.sum())


def inverse(n: np.ndarray, beta: float) -> np.ndarray:
    """Returns the weights 1 / n."""
    del beta
    return 1 / n


def effective(n: np.ndarray, beta: float) -> np.ndarray:
    """Returns one over the effective numbers, (1 - beta) / (1 - beta^n)."""
    # expm1: for beta near 1 the difference of two numbers near 1 has no digits
    return (1 - beta) / -np.expm1(n * math.log(beta)) if beta else np.ones(len(n))


def automatic(n: np.ndarray, beta: float) -> np.ndarray:
    """Returns `effective` with the beta that the counts suggest."""
    del beta
    return effective(n, 1 - 1 / max(n.mean(), 1))


METHODS = {"inverse": inverse, "effective": effective, "auto": automatic}


def numbers(
    key: str, given: Sequence[Any], names: Sequence[str], methods: Iterable[str]
) -> np.ndarray:
    """Returns a number for each class from what a user has written, float64 [K].

    Args:
      key: of the config, such as "loss.class_weights".
      given: K numbers, or (class name, number) pairs; classes that have none get 1.
      names: of the K classes.
      methods: what else the user could have meant.

    Raises:
      ValueError: it is neither, there are more or fewer, one is not above 0, a name is unknown.
    """

    def is_number(x):
        return isinstance(x, (int, float)) and not isinstance(x, bool) and 1e-30 < x < 1e30

    def is_pair(x):
        return isinstance(x, tuple) and len(x) == 2 and isinstance(x[0], str) and is_number(x[1])

    if all(map(is_number, given)):
        if len(given) != len(names):
            raise ValueError(
                f"config.{key} has {len(given)} numbers, the data {len(names)} classes: write one "
                "for each, in their order, or pairs of a class name and a number"
            )
        return np.array(given, np.float64)
    if not all(map(is_pair, given)):
        those = ", ".join(f'("{method}",)' for method in methods)
        raise ValueError(
            f"config.{key} = {short(given)}: write {those}, a number above 0 for each class, or "
            'pairs such as (("cat", 2.0),); () for none'
        )
    weights = np.ones(len(names))
    for name, weight in given:
        if name not in names:
            raise ValueError(f"config.{key}: there is no class {name!r}{closest(name, names)}")
        weights[names.index(name)] = weight
    if len(dict(given)) < len(given):
        raise ValueError(f"config.{key} = {short(given)}: a class is there twice")
    return weights


def check_there(what: str, counts: np.ndarray, names: Sequence[str]) -> None:
    """Refuses to balance classes without images.

    Raises:
      ValueError: there is one; the message names it.
    """
    missing = [repr(names[i]) for i in np.flatnonzero(counts == 0).tolist()]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ValueError(
            f"{what}: no training image shows the class {', '.join(missing[:3])}{more}: give it "
            "images, or leave it out of the classes"
        )


def padded(weights: np.ndarray, size: int) -> np.ndarray:
    """Returns weights of the first classes, and 1 for those up to `size`."""
    return np.pad(weights, (0, size - len(weights)), constant_values=1.0)
