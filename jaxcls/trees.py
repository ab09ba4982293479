"""Names of parameters, and rules over them: the only place that matches regexes against names.

The path of a parameter is the names of its tree joined by "/": "stage1/block1/conv1/kernel".
A rule is a regex that is searched for in the path (`re.search`): "^stage1/", "/bias$", "bn".
"""

import dataclasses
import difflib
import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

EXTRA = "extra"  # top-level name of what an objective trains besides the network


def _join(key_path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(key_path, simple=True, separator="/")


def paths(tree: Any) -> list[str]:
    """Returns the path of every leaf, in the order of `jax.tree.leaves`."""
    return [_join(key_path) for key_path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def spec(x: Any) -> str:
    """Returns dtype and shape of an array: "float32[3,3,2,8]"."""
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.eval_shape(jax.random.key_data, x)  # what orbax stores
    return f"{np.dtype(x.dtype).name}[{','.join(map(str, x.shape))}]"


def digest(tree: Any) -> str:
    """Returns a digest of the names, shapes and values of arrays; "" where there are none."""
    found = hashlib.blake2b(digest_size=8)
    for path, x in zip(paths(tree), jax.tree.leaves(tree)):
        found.update(f"{path} {spec(x)}".encode())
        found.update(np.asarray(x).tobytes())
    return found.hexdigest() if jax.tree.leaves(tree) else ""


def differences(saved: Any, ours: Any, *, dtypes: bool = True) -> list[str]:
    """Returns a line for each array that is not the same in both trees, in shape and dtype."""
    show = spec if dtypes else lambda x: f"[{','.join(map(str, x.shape))}]"
    theirs, here = (dict(zip(paths(t), map(show, jax.tree.leaves(t)))) for t in (saved, ours))
    return [
        f"{path}: {theirs.get(path, 'nothing')} in the checkpoint, {here.get(path, 'nothing')} here"
        for path in theirs | here
        if theirs.get(path) != here.get(path)
    ]


def map_with_path(f: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """Returns the tree of `f(path, leaf, *leaves of rest)`."""
    return jax.tree_util.tree_map_with_path(
        lambda key_path, *x: f(_join(key_path), *x), tree, *rest
    )


def matches(patterns: Iterable[str], path: str) -> bool:
    """Returns whether any of the patterns is found in `path`."""
    return any(re.search(pattern, path) for pattern in patterns)


def mask(tree: Any, patterns: Sequence[str]) -> Any:
    """Returns the tree of bools: whether any of the patterns is found in the path of the leaf."""
    return map_with_path(lambda path, _: matches(patterns, path), tree)


def multipliers(tree: Any, rules: Sequence[tuple[str, float]]) -> Any:
    """Returns the tree of floats: the factor of the first rule found in the path, otherwise 1.0."""

    def factor(path, _):
        return next((float(f) for pattern, f in rules if re.search(pattern, path)), 1.0)

    return map_with_path(factor, tree)


def layers_above(tree: Any) -> Any:
    """Returns the tree of ints: how many layers of a network stand above that of a parameter.

    Layers are the stem, each block of each stage in their order, the neck, and on top the heads
    with what else there is. What a network does not have is not counted.
    """

    def layer(path):
        if found := re.match(r"stage(\d+)/(?:block(\d+)/)?", path):
            return 1, int(found[1]), int(found[2] or 0)
        return ({"stem": 0, "neck": 2}.get(path.partition("/")[0], 3),)

    order = sorted({layer(path) for path in paths(tree)})
    return map_with_path(lambda path, _: len(order) - 1 - order.index(layer(path)), tree)


def check_regexes(patterns: Iterable[str], key: str) -> None:
    """Refuses rules that are no regular expressions.

    Raises:
      ValueError: a pattern is not a regex. The message names the config key `key`.
    """
    for pattern in patterns:
        try:
            if not isinstance(pattern, str):
                raise TypeError("it is not a text")
            re.compile(pattern)
        except (re.error, TypeError, OverflowError, RecursionError) as e:
            raise ValueError(
                f"config.{key}: {pattern!r} is not a regular expression: {e}; write patterns of "
                'names of parameters, such as ("^stem/",), or () for none'
            ) from None


def check(patterns: Sequence[str], tree: Any, key: str) -> None:
    """Refuses rules that do nothing.

    Raises:
      ValueError: a pattern is not a regex or matches no leaf of `tree`. The message names the
        config key `key` and the names that there are.
    """
    names = paths(tree)
    check_regexes(patterns, key)
    for pattern in patterns:
        if not any(re.search(pattern, name) for name in names):
            top = ", ".join(dict.fromkeys(name.partition("/")[0] for name in names))
            literal = re.sub(r"\\.|[^\w/]", "", pattern)
            close = difflib.get_close_matches(literal, names, n=1, cutoff=0.0)
            hint = f"; the closest parameter is {close[0]}" if close else ""
            raise ValueError(
                f"config.{key}: {pattern!r} matches no parameter; "
                f"their names begin with {top}{hint}"
            )


@dataclasses.dataclass(frozen=True)
class FrozenModules:
    """Says of a normalisation layer whether all its parameters (scale, bias) match the patterns.

    Hashable and picklable, since it is a field of Flax modules.
    """

    patterns: tuple[str, ...] = ()

    def __call__(self, path: str | Sequence[str]) -> bool:
        """Returns the answer for a layer, given as "stage1/block1/bn1" or as Flax's `self.path`."""
        path = path if isinstance(path, str) else "/".join(path)
        return all(matches(self.patterns, f"{path}/{name}") for name in ("scale", "bias"))


def frozen_modules(patterns: Iterable[str]) -> FrozenModules:
    """Returns the predicate over paths of modules for `Ctx.frozen`, from `config.optim.frozen`."""
    return FrozenModules(tuple(patterns))
