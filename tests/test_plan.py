"""What a run takes on devices that need not be here."""

import importlib.util
import json
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxcls import ahead, chips, compiled, plan, program
from jaxcls.models import count

V5E = chips.of("TPU v5 lite")
KEYS = [  # what other tools rely on
    "fits",
    "memory",
    "flops_per_image",
    "bytes_per_image",
    "collectives",
    "bound",
    "step_ms",
    "images_per_sec",
    "hours",
]
MEMORY = ["parameters", "optimizer", "averages", "activations", "temporaries", "total", "limit"]


# -- Chips ---------------------------------------------------------------------------------------


def test_devices_by_their_kind():
    assert V5E.slices == "v5e"
    assert chips.of("TPU v5").slices == "v5p"
    assert chips.of("NVIDIA A100-SXM4-80GB").memory == 2 * chips.of("NVIDIA A100-PCIE-40GB").memory
    assert chips.of("cpu") is None


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("v5e:3x3", r"v5e:2x4"),
        ("v5e", r"v5e:1x1"),
        ("v5e:16x32", r"v5e:16x16"),
        ("v5litepod-8", r"v5e:2x4\?"),
        ("v5e-16", r"v5e:4x4\?"),
        ("v5p-8", r"v5p:2x2x1\?"),
        ("v4:2x2", r"v4:2x2x1"),
        ("v9e:2x4", r"v6e:2x4"),
        ("v5p:4x4x6", r"v5p:4x4x8"),
        ("H100", r"write one such as v"),
    ],
)
def test_slices_that_do_not_exist(name, near):
    with pytest.raises(ValueError, match=f"--topology={name}: there is no such slice.*{near}"):
        chips.shape(name)


def test_names_of_slices():
    assert chips.shape("v5e:2x4") == ("v5e", (2, 4))
    assert chips.shape(" V5p:16x16x24") == ("v5p", (16, 16, 24))
    assert chips.accelerator_type("v5e", 8) == "v5litepod-8"  # by chips
    assert chips.accelerator_type("v5p", 4) == "v5p-8"  # by cores
    assert all(chips.shape(name) for name in chips.NAMES)


@pytest.mark.parametrize(
    ("kind", "sides", "links"),
    [
        ("TPU v5 lite", (2, 4), 2),  # of a corner
        ("TPU v5 lite", (8, 16), 3),
        ("TPU v5 lite", (16, 16), 4),
        ("TPU v5", (2, 2, 1), 2),
        ("TPU v5", (4, 4, 8), 6),
        ("TPU v5 lite", (1, 1), 0),
    ],
)
def test_links_of_a_slice(kind, sides, links):
    chip = chips.of(kind)
    assert chips.network(chip, sides) == chip.interconnect / 2 / chip.ports * links


def test_bounds_by_hand():
    work = {"flops": 197e9, "bytes": 819e6, "sent": 100e6, "images": 1000}
    got = chips.bounds(**work, passes=6, chip=V5E, sides=(2, 4), input_rate=20_000)
    # 100 MB over two links of 50 GB/s
    assert got == pytest.approx({"compute": 6e-3, "memory": 1e-3, "network": 1e-3, "input": 0.05})
    unknown = chips.bounds(**work, passes=1, chip=chips.Chip("new", 1e12))
    assert unknown == pytest.approx({"compute": 0.197})


# -- The text of a program -----------------------------------------------------------------------

TEXT = """HloModule jit_step, is_scheduled=true

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add = f32[] add(%a, %b)
}

%part (p: f32[64,100]) -> f32[100] {
  %p = f32[64,100]{1,0} parameter(0)
  %row = f32[1,100]{1,0} slice(%p), slice={[3:4], [0:100]}
  ROOT %flat = f32[100]{0} bitcast(%row)
}

%body (t: (s32[], f32[100])) -> (s32[], f32[100]) {
  %t = (s32[], f32[100]{0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %x = f32[100]{0} get-tuple-element(%t), index=1
  %ar = f32[100]{0} all-reduce(%x), channel_id=1, replica_groups=[2,4]<=[8], to_apply=%sum
  %y = f32[100]{0} negate(%ar), metadata={op_name="jit(step)/jvp(Net)/neg"}
  ROOT %out = (s32[], f32[100]{0}) tuple(%i, %y)
}

%condition (t: (s32[], f32[100])) -> pred[] {
  %t = (s32[], f32[100]{0}) parameter(0)
  ROOT %true = pred[] constant(true)
}

ENTRY %main (p0: f32[100], p1: bf16[64,100]) -> (f32[100], f32[100]) {
  %p0 = f32[100]{0} parameter(0)
  %p1 = f32[64,100]{1,0} parameter(1)
  %kept = f32[1000]{0:T(256)} broadcast(%p0), metadata={op_name="jit(step)/jvp(Net)/conv"}
  %near = (f32[1000]{0:T(256)S(1)}, f32[1000]{0:T(256)}, u32[]{:S(2)}) copy-start(%kept)
  %here = f32[1000]{0:T(256)S(1)} copy-done(%near)
  %fast = f32[1000]{0:T(256)S(1)} negate(%here), metadata={op_name="jit(step)/jvp(Net)/neg"}
  %some = f32[100]{0} fusion(%p1), kind=kLoop, calls=%part, metadata={op_name="jit(step)/x"}
  %zero = s32[] constant(0)
  %init = (s32[], f32[100]{0}) tuple(%zero, %some)
  %loop = (s32[], f32[100]{0}) while(%init), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"3"}}
  %back = f32[100]{0} get-tuple-element(%loop), index=1
  %q = f32[25]{0} slice(%back), slice={[0:25]}
  %five = f32[5]{0} constant({0, 1, 2, 3, 4})
  %g = (f32[25]{0}, f32[100]{0}) all-gather-start(%q), channel_id=2, \
replica_groups={{0,2,4,6},{1,3,5,7}}, dimensions={0}
  %all = f32[100]{0} all-gather-done(%g)
  %alone = f32[100]{0} all-reduce(%all), replica_groups={{0},{1}}, to_apply=%sum
  %both = (f32[100]{0}, f32[5]{0}) all-reduce(%alone, %five), to_apply=%sum, \
replica_groups=mesh['data'=4,'fsdp'=2] {'fsdp'}
  %grad = f32[1000]{0} subtract(%kept, %fast), metadata={op_name="jit(step)/transpose(jvp(Net))/s"}
  %left = f32[100]{0} get-tuple-element(%both), index=0
  ROOT %result = (f32[100]{0}, f32[100]{0}) tuple(%left, %back)
}
"""


def test_collectives_of_a_text():
    reading = compiled.read(TEXT, 8)
    assert reading.collectives == {
        "all-reduce": {"count": 4, "bytes": 3 * 400 + 420},  # a group of one sends nothing
        "all-gather": {"count": 1, "bytes": 100},
    }
    # in a ring of four each sends 3/4 twice; an all-gather's part thrice; in one of two 1/2 twice
    assert reading.sent == pytest.approx(3 * 400 * 1.5 + 100 * 3 + 420)


PARTS = """HloModule jit_step, is_scheduled=true

%begin (a: f32[10]) -> f32[80] {
  %a = f32[10]{0} parameter(0)
  ROOT %g1 = f32[80]{0} all-gather(%a), channel_id=7, replica_groups=mesh['x'=8] {'x'}
}

%end (b: f32[10]) -> f32[80] {
  %b = f32[10]{0} parameter(0)
  ROOT %g2 = f32[80]{0} all-gather(%b), channel_id=7, replica_groups=mesh['x'=8] {'x'}
}

%second (d: f32[20]) -> f32[160] {
  %d = f32[20]{0} parameter(0)
  ROOT %g3 = f32[160]{0} all-gather(%d), channel_id=7, replica_groups=mesh['x'=8] {'x'}, \
frontend_attributes={chain_id="1"}
}

%all-reduce-scatter.1 (c: f32[80]) -> f32[10] {
  %c = f32[80]{0} parameter(0)
  %sum = f32[80]{0} all-reduce(%c), channel_id=8, replica_groups={{0,1,2,3,4,5,6,7}}
  ROOT %mine = f32[10]{0} dynamic-slice(%sum, %c), dynamic_slice_sizes={10}
}

%all-reduce-scatter.2 (e: f32[160]) -> f32[20] {
  %e = f32[160]{0} parameter(0)
  %more = f32[160]{0} all-reduce(%e), channel_id=8, replica_groups={{0,1,2,3,4,5,6,7}}
  ROOT %part = f32[20]{0} dynamic-slice(%more, %e), dynamic_slice_sizes={20}
}

ENTRY %main (p: f32[10], q: f32[20]) -> f32[10] {
  %p = f32[10]{0} parameter(0)
  %q = f32[20]{0} parameter(1)
  %wide = f32[160]{0} fusion(%q), kind=kCustom, calls=%second
  %narrow = f32[20]{0} fusion(%wide), kind=kCustom, calls=%all-reduce-scatter.2
  %async-collective-start = f32[80]{0} fusion(%p), kind=kCustom, calls=%begin
  %async-collective-done = f32[80]{0} fusion(%p), kind=kCustom, calls=%end
  ROOT %fusion = f32[10]{0} fusion(%async-collective-done), kind=kCustom, \
calls=%all-reduce-scatter.1
}
"""


def test_collectives_in_parts_as_on_tpus():
    reading = compiled.read(PARTS, 8)
    assert reading.collectives == {
        "all-gather": {"count": 2, "bytes": 40 + 80},  # of one channel, but two chains
        "reduce-scatter": {"count": 2, "bytes": 320 + 640},
    }
    assert reading.sent == 120 * 7 + 960 * 7 / 8


def test_bytes_of_a_text_are_those_of_the_device_memory():
    program = compiled.Program(TEXT, 8)
    moved = {line.name: program.traffic("main", line) for line in program.computations["main"]}
    assert moved["kept"] == 400 + 4000
    assert moved["near"] == 4000  # read; what is written is the scratchpad
    assert moved["fast"] == 0
    assert moved["some"] == 400 + 400  # a row of 64
    assert moved["loop"] == moved["back"] == moved["here"] == 0
    assert moved["grad"] == 4000 + 4000
    in_loop = 3 * (2 * 400 + 2 * 400)
    reading = compiled.read(TEXT, 8)
    assert reading.bytes == sum(moved.values()) + in_loop
    assert reading.kinds["copy, update"] == 4000 + 800 + 200  # near, some, q
    assert reading.kinds["elementwise, backward"] == moved["grad"]
    assert sum(reading.kinds.values()) == reading.bytes


def test_memory_of_a_text():
    """At the subtraction: what the forward pass has kept, and the difference."""
    reading = compiled.read(TEXT, 8)
    assert (reading.activations, reading.temporaries) == (4000, 4000)


@pytest.mark.parametrize(
    ("kind", "sends"),
    [
        ("all-reduce", 1400),
        ("all-gather", 5600),
        ("reduce-scatter", 700),
        ("all-to-all", 700),
        ("collective-permute", 800),
    ],
)
def test_what_a_device_sends(kind, sends):
    assert compiled.sent(kind, 800, 8) == sends


def test_collectives_of_a_compiled_program():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    cut, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    step = jax.jit(lambda w, x: jnp.tanh(x @ w).sum(0), in_shardings=(whole, cut))
    shapes = jax.ShapeDtypeStruct((16, 24), "float32"), jax.ShapeDtypeStruct((80, 16), "float32")
    reading = compiled.read(step.lower(*shapes).compile().as_text(), 8)
    assert reading.collectives == {"all-reduce": {"count": 1, "bytes": 24 * 4}}


def test_the_peak_is_the_one_of_the_compiler():
    def loss(ws, x):
        for w in ws:
            x = jnp.tanh(x @ w)
        return x.sum()

    ws = [jax.ShapeDtypeStruct((64, 64), "float32")] * 6
    x = jax.ShapeDtypeStruct((4096, 64), "float32")
    done = jax.jit(jax.grad(loss)).lower(ws, x).compile()
    reading, theirs = compiled.read(done.as_text(), 1), done.memory_analysis().temp_size_in_bytes
    assert reading.activations + reading.temporaries == pytest.approx(theirs, rel=0.05)
    kept = 6 * 4096 * 64 * 4  # the outputs of tanh, from which its gradient is computed
    assert reading.activations == pytest.approx(kept, rel=0.2)


LOOP = """HloModule jit_step, is_scheduled=true

%turn (t: (s32[], s32[], f32[8,4], f32[4,6])) -> (s32[], s32[], f32[8,4], f32[4,6]) {
  %t = (s32[]{:T(128)}, s32[]{:T(128)}, f32[8,4]{1,0}, f32[4,6]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%t), index=0
  %end = s32[]{:T(128)} get-tuple-element(%t), index=1
  %x = f32[8,4]{1,0} get-tuple-element(%t), index=2
  %w = f32[4,6]{1,0} get-tuple-element(%t), index=3
  %two = s32[]{:T(128)} constant(2)
  %next = s32[]{:T(128)} add(%i, %two), control-predecessors={%x}
  %y = f32[8,6]{1,0} fusion(%x, %w), kind=kOutput, calls=%product
  ROOT %out = (s32[], s32[], f32[8,4]{1,0}, f32[4,6]{1,0}) tuple(%next, %end, %x, %w)
}

%product (a: f32[8,4], b: f32[4,6]) -> f32[8,6] {
  %a = f32[8,4]{1,0} parameter(0)
  %b = f32[4,6]{1,0} parameter(1)
  ROOT %c = f32[8,6]{1,0} convolution(%a, %b), dim_labels=bf_io->bf
}

%test (u: (s32[], s32[], f32[8,4], f32[4,6])) -> pred[] {
  %u = (s32[]{:T(128)}, s32[]{:T(128)}, f32[8,4]{1,0}, f32[4,6]{1,0}) parameter(0)
  %at = s32[]{:T(128)} get-tuple-element(%u), index=0
  %last = s32[]{:T(128)} get-tuple-element(%u), index=1
  ROOT %less = pred[]{:T(512)} compare(%at, %last), direction=LT
}

ENTRY %main (p0: f32[8,4], p1: f32[4,6]) -> f32[8,4] {
  %p0 = f32[8,4]{1,0} parameter(0)
  %p1 = f32[4,6]{1,0} parameter(1)
  %from = s32[]{:T(128)} constant(1)
  %to = s32[]{:T(128)} constant(8)
  %init = (s32[], s32[], f32[8,4]{1,0}, f32[4,6]{1,0}) tuple(%from, %to, %p0, %p1)
  %loop = (s32[], s32[], f32[8,4]{1,0}, f32[4,6]{1,0}) while(%init), condition=%test, body=%turn
  ROOT %back = f32[8,4]{1,0} get-tuple-element(%loop), index=2
}
"""


def test_a_loop_counts_as_often_as_it_runs():
    """TPUs' programs do not say it: from 1 to below 8 by twos."""
    assert compiled.read(LOOP, 8).flops == 4 * 2 * 8 * 6 * 4
    said = 'body=%turn, backend_config={"known_trip_count":{"n":"5"}}'
    assert compiled.read(LOOP.replace("body=%turn", said), 8).flops == 5 * 2 * 8 * 6 * 4
    for here, there in (
        ("direction=LT", "direction=NE"),
        ("tuple(%next, %end,", "tuple(%next, %next,"),  # the end moves
        ("constant(8)", "parameter(2)"),
        ("constant(2)", "constant(0)"),
    ):
        assert here in LOOP
        other = LOOP.replace(here, there)
        assert compiled.read(other, 8).flops == 2 * 8 * 6 * 4  # nothing is known


@pytest.mark.parametrize("inner", [lambda i, n: n, lambda i, n: i, lambda i, n: 3])
def test_loops_in_loops(inner):
    """Of the compiler's own programs, also where it does not tell how often."""
    turn = lambda i, x, n: jax.lax.fori_loop(0, inner(i, n), lambda _, x: jnp.tanh(x @ x), x)
    f = jax.jit(lambda x, n: jax.lax.fori_loop(0, 5, lambda i, x: turn(i, x, n), x))
    n = jax.ShapeDtypeStruct((), "int32")
    flops = {}
    for size in (4, 64):  # small loops of CPUs are in functions of their own
        x = jax.ShapeDtypeStruct((size, size), "float32")
        text = f.lower(x, n).compile().as_text()
        flops[size] = compiled.read(text, 1).flops / (2 * size**3)
    known = inner(1, None) == 3
    assert flops == dict.fromkeys((4, 64), 15 if known else 5)


def test_many_products_at_once():
    """TPUs write them as a convolution along the batch, of a kernel that long."""
    batch = 300_000
    text = f"""HloModule jit_step, is_scheduled=true

ENTRY %main (p0: f32[{batch},8,4], p1: f32[{batch},6,4]) -> f32[{batch},8,6] {{
  %p0 = f32[{batch},8,4]{{2,1,0}} parameter(0)
  %p1 = f32[{batch},6,4]{{2,1,0}} parameter(1)
  ROOT %c = f32[{batch},8,6]{{2,1,0}} convolution(%p0, %p1), window={{size={batch} \
stride={batch - 1} lhs_dilate={batch}}}, dim_labels=0bf_0oi->0bf
}}
"""
    assert compiled.read(text, 1).flops == 2 * batch * 8 * 6 * 4


@pytest.mark.parametrize(
    ("strides", "padding", "dilations", "groups"),
    [
        ((1, 1), "SAME", (1, 1), 1),
        ((2, 2), "SAME", (1, 1), 1),
        ((2, 1), [(3, 1), (0, 2)], (1, 2), 1),
        ((1, 1), "VALID", (2, 2), 1),
        ((2, 2), "SAME", (1, 1), 4),
    ],
)
def test_the_products_of_convolutions(strides, padding, dilations, groups):
    """Of ones their results add up to how many there were, but for those with padding."""
    x, w = np.ones((2, 9, 12, 8), np.float32), np.ones((3, 3, 8 // groups, 16), np.float32)
    f = lambda x, w: jax.lax.conv_general_dilated(
        x, w, strides, padding, rhs_dilation=dilations, dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )  # fmt: skip
    y = f(x, w)
    pull = lambda x, w, ct: jax.vjp(f, x, w)[1](ct)
    text = jax.jit(f).lower(x, w).compile().as_text()
    assert compiled.read(text, 1).flops == 2 * float(y.sum())
    text = jax.jit(pull).lower(x, w, y).compile().as_text()
    assert compiled.read(text, 1).flops == 2 * 2 * float(y.sum())


# -- Batches and messages ------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [8, 64, 4000])
@pytest.mark.parametrize("power", [1.0, 1.02, 0.9])
@pytest.mark.parametrize("limit", [1000, 9000, 40_000, 10**9])
def test_the_largest_batch_by_bisection(batch, power, limit):
    asked = []

    def total(batch):
        asked.append(batch)
        return 500 + 3 * batch**power

    most = 5003
    how = {"limit": limit, "unit": 8, "most": most, "batch": batch, "fixed": 500}
    got = ahead.largest_batch(total, **how)
    fitting = [b for b in range(8, most, 8) if 500 + 3 * b**power <= limit]
    assert len(asked) == len({*asked}) <= ahead.TRIES
    assert got in fitting
    assert got >= 0.95 * fitting[-1] - 8
    if power == 1:
        assert got == fitting[-1]


def test_no_batch_fits():
    how = {"limit": 1000, "unit": 8, "most": 5000, "batch": 64, "fixed": 500}
    assert ahead.largest_batch(lambda batch: 2000 + batch, **how) == 0
    assert ahead.largest_batch(lambda batch: None, **how) == 0


@pytest.mark.parametrize(
    ("message", "size"),
    [
        (
            "the total memory required for HLO temporaries (40.00G) exceeds available HBM",
            40 * 2**30,
        ),
        ("Ran out of memory in memory space hbm. Used 512.5M of 15.75G hbm.", 512.5 * 2**20),
        ("RESOURCE_EXHAUSTED: no room", None),
    ],
)
def test_what_the_compiler_needs(message, size):
    assert ahead.needed(message) == size


# -- The command ---------------------------------------------------------------------------------


@pytest.fixture
def command(capsys, monkeypatch, tmp_path):
    """Returns command(*arguments) -> (exit code, stdout, stderr)."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert len(jax.devices()) == 8  # JAX has begun: the command does not change how many there are

    def run(*arguments, config="tiny.py:plain"):
        config = f"--config={runs.TINY.with_name(config)}"
        code = plan.main(["plan", config, "--config.eval.batch_size=0", *arguments])
        return code, *capsys.readouterr()

    return run


def test_json(command, tmp_path, monkeypatch):
    code, out, _ = command("--devices=cpu:8", "--json")
    result = json.loads(out)
    assert (code, [*result], [*result["memory"]]) == (0, KEYS, MEMORY)
    memory, state = (
        result["memory"],
        program.build(
            runs.tiny("plain"), num_train=898, num_classes=10, devices=jax.devices()[:1]
        ).abstract_state,
    )
    assert memory["parameters"] == 4 * count.parameters(state.variables())
    assert memory["averages"] == 0
    kinds = [memory[kind] for kind in MEMORY[:5]]
    assert (sum(kinds), min(kinds)) == (memory["total"], 0)
    assert result["fits"] is True
    assert result["bound"] in ("compute", "memory", "network")
    assert result["images_per_sec"] == pytest.approx(128e3 / result["step_ms"])
    assert result["hours"] == pytest.approx(30 * result["step_ms"] / 3.6e6)
    # gradients once, and a few numbers of each layer
    parameters = 4 * count.parameters(state.params)
    assert parameters <= result["collectives"]["all-reduce"]["bytes"] < 1.2 * parameters
    # the second time it is not compiled
    assert len([*(tmp_path / "jaxcls" / "plan").iterdir()]) == 1
    monkeypatch.setattr(ahead, "_compiled", None)
    again = json.loads(command("--devices=cpu:8", "--json")[1])
    assert again["memory"] == result["memory"]


def test_text_with_what_can_be_asked_besides(command):
    options = ("--price=2", "--input_rate=1", "--vcpus=4", "--config.model.bn_group=8")
    code, out, err = command("--devices=cpu:8", *options)
    assert (code, err) == (0, "")
    assert out.startswith("ResNet18_vd, batch 128, float32, on 8 x cpu: data 8\n")
    assert "bound by input" in out
    assert "\n32000.00 ms a step, 4 images/s, 0.27 hours for the run, 4.27 dollars\n" in out
    needed = re.search(r"input: 1 images/s of a core; ([\d,.]+) of 4 needed", out)[1]
    slowest = max(map(float, re.findall(r"(?:compute|memory|network) ([\d.]+)", out)))
    assert float(needed.replace(",", "")) == pytest.approx(128e3 / slowest, rel=0.5 / slowest)
    assert "to change: images that are read faster than 4 vCPUs do" in out
    assert "BatchNorm" not in out


@pytest.mark.ci
def test_accumulation_counts_all_micro_batches(command):
    figures = {}
    for k in (1, 2):
        arguments = (f"--config.optim.accumulate_steps={k}", "--config.model.bn_group=8")
        figures[k] = json.loads(command("--devices=cpu:2", "--json", *arguments)[1])
    for key in ("flops_per_image", "bytes_per_image"):
        assert figures[2][key] == pytest.approx(figures[1][key], rel=0.15)
    assert figures[2]["memory"]["activations"] < 0.7 * figures[1]["memory"]["activations"]


@pytest.fixture
def figures(monkeypatch):
    """The command is told of an invented program on an invented chip; returns the program."""
    found = {"flops": 2e9, "bytes": 1e9, "sent": 4e9, "activations": 600_000, "total": 10**6}
    found["collectives"] = {"all-reduce": {"count": 40, "bytes": 2_000_000}}
    chip = chips.Chip("cpu", 1e12, 2e6, 1e9, 2e9, passes=1)
    monkeypatch.setattr(ahead, "this_cpu", lambda devices: chip)
    monkeypatch.setattr(ahead, "_compiled", lambda *_: found)
    return found


def test_figures_by_hand(command, figures):
    result = json.loads(command("--devices=cpu:2", "--json", "--price=3")[1])
    assert (result["flops_per_image"], result["bytes_per_image"]) == (2e9 / 64, 1e9 / 64)
    assert (result["bound"], result["step_ms"]) == ("network", 4000)  # 1 GB/s one way
    assert result["images_per_sec"] == 32
    assert (result["hours"], result["dollars"]) == pytest.approx(
        (30 * 4 / 3600, 2 * 3 * 120 / 3600)
    )
    memory = result["memory"]
    assert (memory["activations"], memory["total"], memory["limit"]) == (600_000, 10**6, 2 * 10**6)
    assert sum(memory[kind] for kind in MEMORY[:5]) == 10**6
    text = command("--devices=cpu:2")[1]
    assert "ms of a step at least: compute 2.00, memory 1000.00, network 4000.00\n" in text
    assert "collectives of a step: all-reduce 40 (2 MB)\n" in text
    assert "to change: BatchNorm without communication (40 all-reduces" in text
    assert "to change: fewer devices" in text
    quick = json.loads(command("--devices=cpu:2", "--json", "--quick")[1])
    not_known = ("bytes_per_image", "bound", "step_ms", "images_per_sec", "hours")
    assert quick == {k: None if k in not_known else result[k] for k in KEYS}


@pytest.mark.parametrize(
    ("sides", "needed", "fits", "total"),
    [
        ((), 3 * 10**6, False, 3 * 10**6),
        ((1, 2), 3 * 10**6, True, 2 * 10**6),
        ((1, 2), 10**6, True, 10**6),
    ],
)
def test_what_libtpu_takes_fits(command, figures, monkeypatch, sides, needed, fits, total):
    """It refuses what does not fit, and knows which buffers share memory."""
    figures["total"] = needed
    here = ahead.here
    monkeypatch.setattr(ahead, "here", lambda name: here(name)._replace(sides=sides))
    result = json.loads(command("--devices=cpu:2", "--json")[1])
    assert (result["fits"], result["memory"]["total"]) == (fits, total)


def test_more_than_there_is(command, figures):
    """The compiler refuses: it says how much it would need, and nothing else is known."""
    figures.clear()
    figures["total"] = 8 * 10**6
    result = json.loads(command("--devices=cpu:2", "--json")[1])
    assert [*result] == KEYS
    assert result["fits"] is False
    assert result["memory"]["total"] == 8 * 10**6
    assert [result[key] for key in KEYS[2:]] == [None] * 7
    text = command("--devices=cpu:2")[1]
    assert "7.63 of 1.91: does not fit\n" in text
    # a quarter of 128 images, but for what the state needs
    assert "to change: a smaller batch, about --config.batch_size=30\n" in text
    assert "to change: the same batch in parts, --config.optim.accumulate_steps=8\n" in text
    assert "remat" not in text  # on CPUs it saves nothing
    assert "to change: half precision" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "the classifier and the scores cut by class, --config.mesh.model=2"),
        (("--config.mesh.model=2",), None),
        (
            ("--config.model.num_classes=100001",),
            "parameters and optimizer cut, about 0.0034 GiB less, --config.mesh.fsdp=2",
        ),
        (
            ("--config.mesh.data=2",),
            "the classifier and the scores cut by class, --config.mesh.model=2 "
            "--config.mesh.data=1",
        ),
        (("--config.mesh.fsdp=2",), None),
    ],
)
def test_a_state_that_is_too_large(command, figures, arguments, said):
    figures.clear()
    figures["total"] = 10**9
    classes = () if "num_classes" in str(arguments) else ("--config.model.num_classes=100000",)
    text = command("--devices=cpu:2", *classes, *arguments)[1]
    found = [line for line in text.splitlines() if "--config.mesh." in line]
    assert found == ([f"to change: {said}"] if said else []), text
    assert "a quarter as many features" in text
    assert "a smaller batch" not in text  # it is not the batch


@pytest.mark.ci
def test_what_does_not_fit(command, monkeypatch):
    monkeypatch.setattr(ahead, "this_cpu", lambda n: chips.Chip("cpu", 1e9, 250_000, 1e9, 1e9))
    code, out, _ = command("--devices=cpu:2", "--largest_batch")
    assert code == 0
    assert "does not fit" in out
    for line in ("about --config.batch_size=", "accumulate_steps="):
        assert line in out
    batch = int(out.partition("largest batch that fits: ")[2].split()[0])
    assert 0 < batch < 128
    arguments = ("--devices=cpu:2", "--json", f"--config.batch_size={batch}")
    assert json.loads(command(*arguments)[1])["fits"]


def test_an_unknown_device_has_no_times(command, monkeypatch):
    monkeypatch.setattr(ahead, "this_cpu", lambda n: None)
    result = json.loads(command("--devices=cpu:2", "--json", "--price=1")[1])
    unknown = ("bound", "step_ms", "images_per_sec", "hours", "dollars")
    assert [result[key] for key in unknown] == [None] * 5
    assert (result["memory"]["limit"], result["fits"]) == (None, True)
    assert "nothing is known of 'cpu'" in command("--devices=cpu:2")[1]


def test_data_that_are_not_here_are_assumed(command):
    arguments = ("--config.data.source=folder", "--config.data.root=/nowhere", "--num_classes=10")
    code, out, err = command("--devices=cpu:2", "--json", *arguments)
    assert code == 0
    assert "jaxcls: assumed: 1,281,167 training images of 10 classes (/nowhere: " in err
    assert json.loads(out)["fits"]


def test_classes_that_are_not_here(command):
    """As many as the command says, also where there are images; those that the loss names."""
    arguments = ("--devices=cpu:2", "--json", "--num_classes=1000")
    found = [json.loads(command(*arguments[:n])[1])["memory"]["parameters"] for n in (2, 3)]
    assert found[1] - found[0] == 4 * (8 + 1) * (1000 - 10)  # features of tiny's head, and a bias
    assert "assumed: 1,000 classes, where the images here have 10" in command(*arguments)[2]
    absent = ("--config.data.source=folder", "--config.data.root=/nowhere")
    weights = "--config.loss.class_weights=(('cat', 2.0), ('dog', 3.0))"
    assert command(*arguments, *absent, weights)[0] == 0


@pytest.mark.parametrize(("size", "group", "unit"), [(8, None, 2 * 8), (8, 64, 2 * 64), (2, 3, 12)])
def test_batches_that_can_be(size, group, unit):
    """The least that a program can be built for, of two micro-batches."""
    config = runs.tiny("plain")
    config.optim.accumulate_steps, config.model.bn_group, config.mesh.data = 2, group, -1
    config.eval.batch_size = 0
    devices, fits = jax.devices()[:size], []
    for batch in range(1, 2 * unit + 1):
        config.batch_size = batch
        try:
            built = program.build(config, num_train=898, num_classes=10, devices=devices)
        except ValueError:
            continue
        fits.append(batch)
    assert fits == [unit, 2 * unit]
    assert plan._unit(built, config) == unit


def test_the_largest_batch_is_at_least_the_one_that_fits(command, figures):
    arguments = ("--devices=cpu:8", "--config.model.bn_group=64", "--json", "--largest_batch")
    found = {}
    for batch in (64, 128):
        figures["total"] = 10**4 * batch
        found[batch] = json.loads(command(*arguments, f"--config.batch_size={batch}")[1])
    assert [x["largest_batch"] >= b for b, x in found.items()] == [True, True]


def test_what_is_rented_is_the_slice(command, figures):
    """Also where the mesh leaves devices of it alone."""
    arguments = ("--devices=cpu:8", "--config.mesh.data=2", "--json", "--price=3")
    result = json.loads(command(*arguments)[1])
    assert result["dollars"] == pytest.approx(8 * 3 * result["hours"])


def test_an_answer_that_was_kept_is_checked(command, figures, tmp_path):
    command("--devices=cpu:8")
    [kept] = (tmp_path / "jaxcls" / "plan").iterdir()
    whole = kept.read_text()
    for text in ("null", "[]", '["total"]', "{}", '{"flops": 1}', "", '{"tot'):
        kept.write_text(text)
        code, out, _ = command("--devices=cpu:8")
        assert (code, "fits" in out, kept.read_text()) == (0, True, whole)


def test_refused_with_a_figure_that_is_rounded_to_what_there_is(command, figures, monkeypatch):
    """No batch above the one of libtpu's refusal is taken for one that fits."""

    def refuse(lowered, *_):
        batch = int(re.search(r"tensor<(\d+)x8x8x1xui8>", lowered.as_text())[1]) * 2
        return figures if batch <= 64 else {"total": 2 * 10**6}

    monkeypatch.setattr(ahead, "_compiled", refuse)
    arguments = ("--devices=cpu:2", "--json", "--largest_batch", "--config.batch_size=32")
    assert 32 <= json.loads(command(*arguments)[1])["largest_batch"] <= 64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), r"give --topology=v5e:2x4, or --devices=cpu:8"),
        (("--topology=v5e:2x4", "--devices=cpu:8"), r"give --topology=v5e:2x4, or --devices"),
        (("--topology=v5e:3x3",), r"there is no such slice of TPUs: did you mean v5e:2x4"),
        (("--devices=8",), r"--devices=8: write cpu:8"),
        (("--devices=gpu:1",), r"--devices=gpu:1: JAX finds no gpu here"),
        (("--devices=cpu:8", "--config.mesh.fsdp=3"), r"fsdp = 3 does not divide the 8 devices"),
        (("--devices=cpu:8", "--config.batch_size=12"), r"batch_size = 12 does not divide over 8"),
        (("--devices=cpu:8", "--input_rate=fast"), r"--input_rate=fast: write images/s"),
        (("--devices=cpu:8", "--price=-1"), r"price"),
        (("--devices=cpu:8", "--config.data.sampling=wrong"), r"config.data.sampling 'wrong'"),
        (("--devices=cpu:8", "--config.data.source=hf"), r"did you mean huggingface"),
        (("--devices=cpu:8", "--config.loader.workers=-5"), r"config.loader.workers = -5"),
        (("--devices=cpu:8", "--config.probe.decays=(0.1,)"), r"config.probe.decays: a linear"),
        (("--devices=cpu:8", "--quick", "--price=1"), r"--quick tells no times"),
        (("--devices=cpu:8", "--quick", "--input_rate=9"), r"--quick tells no times"),
    ],
)
def test_mistakes(command, arguments, message):
    code, out, err = command(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("jaxcls: ")
    assert err.count("\n") == 1
    assert re.search(message, err), err


def test_without_libtpu(command, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == "libtpu" else find(n))
    code, _, err = command("--topology=v5e:2x4")
    assert code == 2
    assert "pip install -e '.[tpu]'" in err


@pytest.mark.ci
def test_fsdp_cuts_the_state_and_gathers_parameters(command):
    """What is cut is gathered for the forward and the backward pass, never more."""
    figures = {}
    for fsdp in (1, 4):
        arguments = ("--config.mesh.fsdp_min_size=1", f"--config.mesh.fsdp={fsdp}")
        figures[fsdp] = json.loads(command("--devices=cpu:4", "--json", *arguments)[1])
    whole, cut = figures[1]["memory"], figures[4]["memory"]
    for kind in ("parameters", "optimizer"):
        assert cut[kind] < 0.35 * whole[kind]
    assert figures[4]["collectives"]["all-gather"]["count"] > 0
    assert "all-gather" not in figures[1]["collectives"]


@pytest.fixture
def on_tpus(commands):
    """Returns on_tpus(*arguments) -> how the command ends, in a process of its own."""
    pytest.importorskip("libtpu")

    def run(*arguments):
        config = (f"--config={runs.TINY}:plain", "--config.eval.batch_size=0")
        return subprocess.run(
            [sys.executable, "-m", "jaxcls.plan", *config, *arguments],
            env=commands.environment(),
            capture_output=True,
            text=True,
        )

    return run


@pytest.mark.ci
def test_tpus_that_are_not_here(on_tpus):
    done = on_tpus("--topology=v5e:2x4", "--json", "--price=1.2")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    result = json.loads(done.stdout)
    assert [*result] == [*KEYS, "dollars"]
    assert result["memory"]["limit"] == int(15.75 * 2**30)
    assert result["fits"] is True
    assert 0 < result["memory"]["total"] < 2**30
    assert result["dollars"] == pytest.approx(8 * 1.2 * result["hours"])
    assert 0 < result["collectives"]["all-reduce"]["count"] < 30


@pytest.mark.ci
def test_axes_that_split_the_sides_of_a_slice(commands):
    pytest.importorskip("libtpu")
    code = """
from jaxcls import ahead, sharding
given = {"fsdp_min_size": 0, "rules": (), "devices": ahead.topology("v6e:8x8").devices}
mesh = sharding.make(data=-1, fsdp=4, model=1, **given).mesh
assert mesh.shape["data"] == 16
assert [tuple(x.coords[1:]) for x in mesh.devices[0].flat] == 4 * [(0, 0)], mesh  # neighbours
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=commands.environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
