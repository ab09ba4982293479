"""Rules over the names of parameters."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcls import trees

TREE = {
    "stem": {"conv1": {"kernel": np.ones(2)}, "bn1": {"scale": np.ones(3), "bias": np.ones(4)}},
    "stage1": {"block1": {"bn1": {"scale": np.ones(5), "bias": np.ones(6)}}},
    "head": {"fc": {"kernel": np.ones(7), "bias": np.ones(8)}},
}


def test_paths_are_in_the_order_of_the_leaves():
    sizes = dict(zip(trees.paths(TREE), [leaf.size for leaf in jax.tree.leaves(TREE)], strict=True))
    assert sizes == {
        "stem/conv1/kernel": 2,
        "stem/bn1/scale": 3,
        "stem/bn1/bias": 4,
        "stage1/block1/bn1/scale": 5,
        "stage1/block1/bn1/bias": 6,
        "head/fc/kernel": 7,
        "head/fc/bias": 8,
    }


def test_a_digest_is_of_names_shapes_and_values():
    kernel = np.arange(6, dtype=jnp.bfloat16)
    others = [{"a": kernel}, {"b": kernel}, {"a": kernel.reshape(2, 3)}, {"a": kernel + 1},
              {"a": kernel.astype(np.float32)}, {"a": kernel, "b": kernel}]  # fmt: skip
    assert len({*map(trees.digest, others)}) == len(others)
    assert trees.digest({"a": jnp.asarray(kernel)}) == trees.digest({"a": kernel})
    assert trees.digest(()) == trees.digest({"extra": {}}) == ""


def test_map_with_path_gives_path_and_all_leaves():
    doubled = jax.tree.map(lambda x: 2 * x, TREE)
    out = trees.map_with_path(lambda path, a, b: (path, b.sum() / a.sum()), TREE, doubled)
    assert out["head"]["fc"]["bias"] == ("head/fc/bias", 2.0)
    assert out["stem"]["bn1"]["scale"] == ("stem/bn1/scale", 2.0)


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ((), set()),
        (("^stem/",), {"stem/conv1/kernel", "stem/bn1/scale", "stem/bn1/bias"}),
        (("^fc/",), set()),
        (("/fc/kernel$", "^stage1/.*scale"), {"head/fc/kernel", "stage1/block1/bn1/scale"}),
        (("^(?!head)(?!stem)",), {"stage1/block1/bn1/scale", "stage1/block1/bn1/bias"}),
    ],
)
def test_mask_searches_each_pattern_in_the_path(patterns, expected):
    mask = trees.mask(TREE, patterns)
    assert jax.tree.structure(mask) == jax.tree.structure(TREE)
    picked = {p for p, on in zip(trees.paths(mask), jax.tree.leaves(mask), strict=True) if on}
    assert picked == expected
    assert picked == {p for p in trees.paths(TREE) if trees.matches(patterns, p)}


def test_multipliers_take_the_first_rule_that_matches():
    out = trees.multipliers(TREE, (("bias$", 2), ("^stem/", 0.1), ("bn1", 0.5)))
    assert out["stem"] == {"conv1": {"kernel": 0.1}, "bn1": {"scale": 0.1, "bias": 2.0}}
    assert out["stage1"]["block1"]["bn1"] == {"scale": 0.5, "bias": 2.0}
    assert out["head"]["fc"] == {"kernel": 1.0, "bias": 2.0}


def test_check_refuses_a_rule_without_effect():
    trees.check(("^stem/", "bias$"), TREE, "optim.frozen")
    with pytest.raises(ValueError, match=r"optim.frozen: '\^stage1/blok1'") as e:
        trees.check(("^stem/", "^stage1/blok1"), TREE, "optim.frozen")
    assert "head, stage1, stem" in str(e.value)
    assert "closest parameter is stage1/block1/bn1/" in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("pattern", ["stem(", 3])
def test_check_refuses_what_is_not_a_regex(pattern):
    with pytest.raises(ValueError, match=r"config.optim.no_decay: .* is not a regular expression"):
        trees.check((pattern,), TREE, "optim.no_decay")


def test_frozen_modules_are_those_with_all_parameters_frozen():
    frozen = trees.frozen_modules(["^stem/", "^stage1/block1/.*/scale$"])
    assert frozen("stem/bn1")
    assert frozen(("stem", "bn1"))
    assert not frozen("stage1/block1/bn1")  # its bias is trained
    assert not frozen("head/bn")
    assert not trees.frozen_modules(())("stem/bn1")


def test_frozen_modules_fit_a_field_of_a_flax_module():
    a, b = trees.frozen_modules(["^stem/"]), trees.frozen_modules(("^stem/",))
    assert a == b
    assert hash(a) == hash(b)
    assert pickle.loads(pickle.dumps(a)) == b


def test_layers_above():
    """Blocks in the order of their numbers, whatever the order of their names is."""
    paths = {
        "aux1/fc/kernel": 0, "extra/w": 0, "head/fc/kernel": 0, "neck/bn/scale": 1,
        "stage1/block1/conv/kernel": 14, "stage2/block1/conv/kernel": 13,
        **{f"stage10/block{i}/bn/scale": 13 - i for i in range(1, 12)},
        "stem/conv1/kernel": 15,
    }  # fmt: skip
    tree = {}
    for path in paths:
        node = tree
        for part in path.split("/")[:-1]:
            node = node.setdefault(part, {})
        node[path.rpartition("/")[2]] = np.zeros(1)
    got = trees.layers_above(tree)
    assert dict(zip(trees.paths(got), jax.tree.leaves(got))) == paths
    del tree["neck"], tree["stem"]
    assert max(jax.tree.leaves(trees.layers_above(tree))) == 13
