"""Where tensors lie: by rules over their names, or else by their shapes."""

import itertools
import subprocess
import sys
import types

import flax.linen as nn
import jax
import numpy as np
import pytest
import runs
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxcls import choices, compiled, program, sharding, trees
from jaxcls.data.feed import Feed
from jaxcls.models.conv import Conv
from jaxcls.models.spec import Ctx

PARAMS = {
    "stem": {"conv": {"kernel": (3, 3, 2, 8), "bias": (8,)}},
    "head": {"fc": {"kernel": (8, 12), "bias": (12,)}},
}
PARAMS = jax.tree.map(
    lambda shape: jax.ShapeDtypeStruct(shape, "float32"), PARAMS, is_leaf=lambda x: type(x) is tuple
)


def make(*rules, data=2, fsdp=4, model=1, devices=None):
    given = {"data": data, "fsdp": fsdp, "model": model, "devices": devices}
    return sharding.make(**given, fsdp_min_size=10, rules=rules)


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


def test_the_columns_of_classifiers_are_cut_by_class():
    tree = PARAMS | {"aux1": {"head": PARAMS["head"]}}
    layout = make(("aux1/head/fc/bias", (None,)), data=1, fsdp=2, model=4).of_classes(12)
    found = zip(trees.paths(tree), jax.tree.leaves(layout.of(tree)))
    assert {path: tuple(s.spec) for path, s in found if "head/" in path} == {
        "head/fc/kernel": (None, "model"),
        "head/fc/bias": ("model",),
        "aux1/head/fc/kernel": (None, "model"),
        "aux1/head/fc/bias": (None,),  # rules go first
    }
    for other in (make(data=1, fsdp=2, model=4), make(data=4, fsdp=2).of_classes(12)):
        spec = other.of(tree)["head"]["fc"]["kernel"].spec
        assert tuple(spec) == (None, "fsdp")  # of other classes, and without the axis


@pytest.mark.parametrize(
    ("groups", "data", "fsdp"), [(1, 2, 4), (4, 8, 1), (4, 1, 8), (4, 2, 4), (16, 2, 4)]
)
def test_convolutions_exchange_kernels_and_nothing_else(groups, data, fsdp):
    """Of two kernels the gradient, each part once; cut ones are gathered, never the features."""
    layout = make(data=data, fsdp=fsdp)
    net = nn.Sequential([Conv(Ctx(), 16, 3, groups=groups), Conv(Ctx(), 16, 3, 2, groups=groups)])
    x = jax.random.normal(jax.random.key(0), (16, 8, 8, 16))
    params = net.init(jax.random.key(1), x)["params"]
    gradient = jax.grad(lambda params, x: (net.apply({"params": params}, x) ** 2).sum())
    cut = layout.of(params)
    f = jax.jit(layout.by_image(gradient, 16), in_shardings=(cut, layout.rows), out_shardings=cut)
    moved = compiled.read(f.lower(params, x).compile().as_text(), 8).collectives
    size = sum(x.nbytes for x in jax.tree.leaves(params))
    sizes = {kind: found["bytes"] for kind, found in moved.items()}
    gathered = sizes.pop("all-gather", 0)
    assert gathered == 0 if fsdp == 1 else size / fsdp <= gathered <= 2 * size / fsdp
    expected = {"reduce-scatter": size} if fsdp > 1 else {}
    assert sizes == expected | ({"all-reduce": size / fsdp} if data > 1 else {})
    for ours, whole in zip(*map(jax.tree.leaves, (f(params, x), gradient(params, x)))):
        np.testing.assert_allclose(ours, whole, atol=1e-5 * np.abs(whole).max())


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
        (("head/", ("batch",)), "write pairs of a pattern"),
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
    assert layout.mesh.shape == {"data": 3, "fsdp": 2, "model": 1}
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


def alone(commands, code):
    """Runs code in a process that has as many devices as it asks for."""
    environment = commands.environment()
    environment["PYTHONPATH"] += f":{runs.ROOT / 'tests'}"
    environment.pop("XLA_FLAGS")
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


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
    alone(commands, code)


@pytest.mark.ci
def test_the_state_of_a_device_falls_with_their_number(commands):
    """Parameters, both moments, averages: what the compiled step takes and gives back."""
    alone(
        commands,
        """
import jax
jax.config.update("jax_num_cpu_devices", 256)
import jax.numpy as jnp, runs
from jaxcls import program
for count in (8, 256):
    config = runs.tiny("plain")
    config.mesh.update(data=1, fsdp=count, fsdp_min_size=1024)
    config.batch_size, config.eval.batch_size, config.lr.warmup = 2 * count, 0, ""
    config.model.bn_group, config.ema.decay = 2, 0.9
    config.model.options = (("stem", "small"), ("depths", (1,)), ("width", 256))
    config.optim.name, config.optim.l2 = "adamw", 0.0
    devices = jax.devices()[:count]
    built = program.build(config, num_train=898, num_classes=1024, devices=devices)
    batch = {"image": jax.ShapeDtypeStruct((2 * count, 8, 8, 1), jnp.uint8)}
    batch["label"] = jax.ShapeDtypeStruct((2 * count,), jnp.int32)
    compiled = built.train_step.lower(built.abstract_state, batch).compile()
    state = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(built.abstract_state))
    assert state > 4 * 4 * 1_400_000
    one = compiled.memory_analysis().alias_size_in_bytes
    small = 4 * 20 * 256 * 4  # BatchNorms of 256 channels stay whole
    assert state / count <= one < state / count + 4 * small, (count, state, one)
""",
    )


@pytest.mark.ci
def test_10_million_classes_fit_on_16_devices(commands):
    """20.5 GB of parameters: neither a step nor their initialisation has them in one place."""
    alone(
        commands,
        """
import jax
jax.config.update("jax_num_cpu_devices", 16)
import jax.numpy as jnp, runs
from jaxcls import program
config = runs.tiny("plain")
config.mesh.update(data=1, model=16)
config.batch_size, config.eval.batch_size, config.lr.warmup = 32, 0, ""
config.model.bn_group, config.loss.label_smoothing = 2, 0.1
config.model.options = (("stem", "small"), ("depths", (1,)), ("width", 512))
built = program.build(config, num_train=898, num_classes=10_000_000)
batch = {"image": jax.ShapeDtypeStruct((32, 8, 8, 1), jnp.uint8)}
batch["label"] = jax.ShapeDtypeStruct((32,), jnp.int32)
whole = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(built.abstract_state))
assert whole > 40e9
for f, args in ((built.train_step, (built.abstract_state, batch)), (built.init, ())):
    compiled = f.lower(*args).compile()
    m = compiled.memory_analysis()
    peak = m.argument_size_in_bytes + m.temp_size_in_bytes
    peak += m.output_size_in_bytes - m.alias_size_in_bytes
    assert 2.6e9 < peak < 8e9, (m, peak)
""",
    )


# -- Which rows a host feeds -----------------------------------------------------------------------


class Host:
    """The sharding of a batch over 8 devices, as one of several hosts sees it."""

    def __init__(self, number, count):
        devices = jax.devices()[:8]
        self.whole = NamedSharding(Mesh(np.array(devices), ("data",)), PartitionSpec("data"))
        self.devices = set(devices[number * 8 // count : (number + 1) * 8 // count])

    def addressable_devices_indices_map(self, shape):
        return {d: i for d, i in self.whole.devices_indices_map(shape).items() if d in self.devices}


@pytest.mark.parametrize("count", [3, 8])
def test_hosts_share_every_batch_without_overlap_or_loss(count):
    config, data = choices.open_data(runs.tiny("plain"))
    built = program.build(config, **data.facts())
    hosts = [types.SimpleNamespace(rows=Host(i, count)) for i in range(count)]

    def batches(layout):
        trains = Feed(data, data.train, built.transform, layout)
        evaluates = Feed(data, data.eval, built.network.transform, layout)
        with trains.train_batches(built.plan, 0, start_step=5) as train:
            taken = [*itertools.islice(train, 3)]
        with evaluates.eval_batches(128) as every:
            return [*taken, *every]

    whole, counted = batches(types.SimpleNamespace(rows=Host(0, 1))), 0
    for expected, *parts in zip(whole, *map(batches, hosts), strict=True):
        counts = expected.get("mask", np.full(128, True))  # what fills up the last one does not
        for name, values in expected.items():
            joined = np.concatenate([p[name] for p in parts])
            np.testing.assert_array_equal(joined[counts], values[counts])
        counted += sum(p["mask"].sum() for p in parts) if "mask" in expected else 0
    assert counted == len(data.eval)
