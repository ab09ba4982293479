"""Where tensors lie: by rules over their names, or else by their shapes."""

import subprocess
import sys

import jax
import pytest
import runs

from jaxcls import program, sharding, trees

PARAMS = {
    "stem": {"conv": {"kernel": (3, 3, 2, 8), "bias": (8,)}},
    "head": {"fc": {"kernel": (8, 12), "bias": (12,)}},
}
PARAMS = jax.tree.map(
    lambda shape: jax.ShapeDtypeStruct(shape, "float32"), PARAMS, is_leaf=lambda x: type(x) is tuple
)


def make(*rules, data=2, fsdp=4, devices=None):
    return sharding.make(data=data, fsdp=fsdp, fsdp_min_size=10, rules=rules, devices=devices)


def specs(*rules, tree=PARAMS):
    """Returns how each tensor is cut, by its name."""
    shardings = make(*rules).of(tree)
    return {path: tuple(s.spec) for path, s in zip(trees.paths(tree), jax.tree.leaves(shardings))}


def test_the_first_rule_of_as_many_axes_counts_or_else_the_shape():
    by_shape = {
        "stem/conv/kernel": (None, None, None, "fsdp"),
        "stem/conv/bias": (),  # 8 elements
        "head/fc/kernel": (None, "fsdp"),
        "head/fc/bias": ("fsdp",),
    }
    assert specs() == by_shape
    rules = (("fc", ("data",)), ("fc/kernel$", ("fsdp", None)), ("kernel$", (None, "data")))
    by_name = {"head/fc/kernel": ("fsdp", None), "head/fc/bias": ("data",)}
    assert specs(*rules) == by_shape | by_name
    assert specs(*rules[::-1])["head/fc/kernel"] == (None, "data")


def test_of_a_state_parameters_are_named_without_what_is_above_them():
    """A momentum and an average are cut as their parameters are, statistics by their shapes."""
    stats = {"head": {"fc": {"mean": jax.ShapeDtypeStruct((12,), "float32")}}}
    state = {
        "params": PARAMS,
        "batch_stats": stats,
        "opt_state": [{"trace": PARAMS, "count": jax.ShapeDtypeStruct((), "int32")}],
        "averages": {"ema": {"params": PARAMS, "batch_stats": stats}},
    }
    rules = (("^head/.*kernel$", ("fsdp", None)), ("^stem/conv/bias$", ("data",)), ("fc", (None,)))
    got = specs(*rules, tree=state)
    assert len(got) == 3 * 4 + 3
    for path, spec in got.items():
        if path.endswith(("mean", "count")):
            assert spec == (("fsdp",) if path.endswith("mean") else ())
        else:
            assert spec == specs(*rules)["/".join(path.split("/")[-3:])]
    assert got["averages/ema/params/head/fc/kernel"] == ("fsdp", None)
    assert got["opt_state/0/trace/stem/conv/bias"] == ("data",)
    assert got["params/head/fc/bias"] == (None,)


def test_each_device_has_its_part():
    kernel = make(("fc/kernel$", ("data", "fsdp"))).of(PARAMS)["head"]["fc"]["kernel"]
    parts = kernel.devices_indices_map((8, 12)).values()
    assert kernel.shard_shape((8, 12)) == (4, 3)
    assert len({str(part) for part in parts}) == 8


def check_and_cut(layout):
    layout.check(PARAMS)
    layout.of(PARAMS)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (("fd/kernel$", (None, "fsdp")), r": 'fd/kernel\$' matches no parameter"),
        (("head/", (None, None, "fsdp")), r"has 3 axes, but head/fc/(kernel|bias) is \["),
        (("stem/conv/kernel$", (None, None, None, "data", None)), r"has 5 axes.*\[3, 3, 2, 8\]"),
        (("stem/conv/kernel$", ("data", None, None, None)), r"does not divide stem/conv/kernel, "),
        (("head/[", ("fsdp",)), r": 'head/\[' is not a regular expression"),
        (("head/", "fsdp"), "write pairs of a pattern and an axis for each dimension"),
        (("head/", ("model",)), "write pairs of a pattern"),
        (("head/", ("data", "data")), "write pairs of a pattern"),
        ("head/", "write pairs of a pattern"),
    ],
)
def test_rules_that_make_no_sense(rule, message):
    with pytest.raises(ValueError, match=rf"config\.mesh\.rules.*{message}"):
        check_and_cut(make(rule))


def test_devices_that_are_given():
    devices = jax.devices()[::-1]
    layout = make(data=-1, fsdp=2, devices=devices[:6])
    assert layout.mesh.shape == {"data": 3, "fsdp": 2}
    assert set(layout.mesh.devices.flat) == set(devices[:6])
    with pytest.raises(ValueError, match="needs 8 devices, 6 are there"):
        make(data=4, fsdp=2, devices=devices[:6])


def test_a_run_is_cut_by_its_rules():
    config = runs.tiny()  # with a moving average
    config.mesh.update(data=4, fsdp=2, rules=(("^head/.*kernel$", ("fsdp", None)),))
    config.eval.batch_size = 8
    state = program.build(config, num_train=898, num_classes=10).abstract_state
    state = {path: x.sharding for path, x in zip(trees.paths(state), jax.tree.leaves(state))}
    cut = {path for path, sharding in state.items() if not sharding.is_fully_replicated}
    heads = {path for path in state if path.endswith("head/fc/kernel")}
    assert cut == heads
    assert len(heads) == 3  # itself, its momentum and its average
    config.mesh.rules = (("^haed/", (None,)),)
    with pytest.raises(ValueError, match=r"'\^haed/' matches no parameter; .*head"):
        program.build(config, num_train=898, num_classes=10)


@pytest.mark.ci
@pytest.mark.parametrize("count", [8, 256])
def test_a_step_compiles_for_devices_that_are_not_here(commands, count):
    code = f"""
import re, jax
jax.config.update("jax_num_cpu_devices", {count + 1})
import jax.numpy as jnp, numpy as np, runs
from jaxcls import program
config = runs.tiny("plain")
config.mesh.data, config.batch_size, config.eval.batch_size = -1, {2 * count}, 0
config.model.bn_group, config.lr.warmup = 2, ""
built = program.build(config, num_train=898, num_classes=10, devices=jax.devices()[1:])
batch = {{}}
batch["image"] = jax.ShapeDtypeStruct(({2 * count}, 8, 8, 1), jnp.uint8)
batch["label"] = jax.ShapeDtypeStruct(({2 * count},), jnp.int32)
compiled = built.train_step.lower(built.abstract_state, batch).compile()
assert len(compiled.input_shardings[0][1]["label"].device_set) == {count}
text = compiled.as_text()
assert not re.search(r" (all-gather|all-to-all|collective-permute)[\\w-]*\\(", text)
assert len(re.findall(r" all-reduce[\\w-]*\\(", text)) <= 2
"""
    environment = commands.environment()
    environment["PYTHONPATH"] += f":{runs.ROOT / 'tests'}"
    environment.pop("XLA_FLAGS")
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
