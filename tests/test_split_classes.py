"""Classes that lie on several devices: what is computed of them, and what is exchanged."""

import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from jax.sharding import NamedSharding, PartitionSpec

from configs import base
from jaxcls import checkpoint, models, objectives, program, sharding, teachers, trees

K, B = 4096, 16
MOVED = r"\[([\d,]*)\]\S* (all-gather|all-to-all|collective-permute)(?:-start)?\("


def layout_of(classes=K, **mesh):
    mesh = {"data": 2, "fsdp": 1, "model": 4, "fsdp_min_size": 0, "rules": ()} | mesh
    return sharding.make(**mesh).of_classes(classes)


def moved(compiled):
    """Returns the shapes of what a program moves otherwise than by sums."""
    found = re.findall(MOVED, compiled.as_text())
    return [tuple(map(int, shape.split(","))) for shape, _ in found if shape]


def of_classes(compiled, most=K // 4):
    """Returns those that have as many entries in a dimension as a device has classes."""
    return [shape for shape in moved(compiled) if max(shape) >= most]


def test_what_is_gathered_is_seen():
    layout = layout_of()
    cut = NamedSharding(layout.mesh, PartitionSpec("data", "model"))
    logits = jax.ShapeDtypeStruct((B, K), jnp.float32, sharding=cut)
    assert of_classes(jax.jit(lambda x: jnp.sort(x, axis=-1)).lower(logits).compile())
    assert not of_classes(jax.jit(lambda x: x.max(-1)).lower(logits).compile())


# -- Losses and metrics ----------------------------------------------------------------------------

LOSSES = {
    "supervised": {"label_smoothing": 0.1, "class_weights": ("effective",), "focal_gamma": 2.0,
                   "logit_adjustment": 1.0},
    "bce": {"label_smoothing": 0.1, "target_threshold": 0.2, "pos_weights": ("balanced",)},
    "asymmetric": {},
    **{name: {} for name in ("js", "symmetric_kl", "soft_ce", "kl", "dkd", "wsl", "skd", "dist")},
    "dml": {},
}  # fmt: skip


def made(name, **keys):
    config = base.get_config()
    with config.ignore_type():
        config.loss.update(LOSSES[name] | {"name": name} | keys)
    shapes = {"logits": jax.ShapeDtypeStruct((2, K), jnp.float32)}
    taught = teachers.Teachers((1.0,), (shapes,), None, None)
    return objectives.make(
        **config.loss,
        outputs=shapes,
        class_counts=lambda: (1.0 + np.arange(K), 1e6),
        class_names=[*map(str, range(K))],
        module=models.build("ResNet18", num_classes=K),
        teachers=None if name in ("supervised", "bce", "asymmetric", "dml") else taught,
    )


@pytest.mark.ci
@pytest.mark.parametrize(
    ("name", "mixed"),
    [("supervised", False), *((name, True) for name in LOSSES), ("bce", "marks")],
)
def test_a_loss_of_split_classes_is_the_same_and_gathers_nothing(name, mixed):
    rng, layout, objective = np.random.default_rng(0), layout_of(), made(name)
    logits, other = rng.standard_normal((2, B, K)).astype(np.float32) * 3
    batch = {"label": rng.integers(0, K, B).astype(np.int32)}
    batch["label"][3] = -1
    if mixed == "marks":
        batch["label"] = (rng.random((B, K)) < 0.01).astype(np.int8)
    elif mixed:
        batch["label2"] = rng.integers(0, K, B).astype(np.int32)
        batch["lam"] = rng.random(B).astype(np.float32)

    def loss(f, logits, other, batch):
        outputs = {"logits": logits, objectives.distillation.PEER: {"logits": other}}
        return f(outputs, batch, ({"logits": other},))

    of = lambda f: jax.jit(jax.value_and_grad(functools.partial(loss, f), has_aux=True))
    (want, theirs), gradient = of(objective.loss)(logits, other, batch)
    on = lambda *axes: NamedSharding(layout.mesh, PartitionSpec(*axes))
    scores, rows = on(("data", "fsdp"), "model"), on(sharding.AXES)
    args = jax.device_put((logits, other, batch), (scores, scores, rows))
    f = of(layout.by_class(objective.loss))
    assert (mixed == "marks") == bool(of_classes(f.lower(*args).compile()))  # the marks given
    (got, ours), ours_gradient = f(*args)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    for key, value in theirs.items():
        np.testing.assert_allclose(ours[key], value, rtol=1e-5, atol=1e-7, err_msg=key)
    np.testing.assert_allclose(ours_gradient, gradient, atol=1e-5 * abs(gradient).max())


# -- Steps -----------------------------------------------------------------------------------------

CLASSES = 100_000


def build(classes=CLASSES, **mesh):
    config = runs.tiny("plain")
    config.batch_size = config.eval.batch_size = 32
    config.model.bn_group, config.optim.accumulate_steps = 2, 2
    config.loss.label_smoothing, config.ema.decay, config.lr.warmup = 0.1, 0.9, ""
    config.mix.cutmix = 0.5
    config.mesh.update(mesh)
    return program.build(config, num_train=898, num_classes=classes)


def batches(classes=CLASSES, count=3):
    rng = np.random.default_rng(0)
    for _ in range(count):
        image = rng.integers(0, 256, (32, 8, 8, 1)).astype(np.uint8)
        yield {"image": image, "label": rng.integers(0, classes, 32).astype(np.int32)}


def trained(built):
    """Returns the state after some steps, what they said, and an evaluation."""
    state, said = built.init(), []
    for batch in batches():
        state, metrics = built.train_step(state, sharding.put(batch, built.layout.rows))
        said.append([float(metrics[key]) for key in ("loss", "grad_norm", "top1_mixed")])
    batch = next(batches()) | {"mask": np.arange(32) < 30}
    batch["label"][0] = -1
    sums = built.eval_step(state.variables("ema"), sharding.put(batch, built.layout.rows))
    return state, np.array(said), {name: float(x) for name, x in sums.items()}


@pytest.fixture(scope="module")
def on_8_devices():
    return trained(build(data=2, model=4))


@pytest.mark.ci
def test_100000_classes_on_8_devices_train_as_on_one(on_8_devices):
    state, said, sums = on_8_devices
    theirs, theirs_said, theirs_sums = trained(build(data=1))
    np.testing.assert_allclose(said, theirs_said, rtol=1e-6)
    assert theirs_said[0][0] > np.log(CLASSES) - 1
    assert sums["count"] == theirs_sums["count"] == 29
    for name, value in theirs_sums.items():
        np.testing.assert_allclose(sums[name], value, rtol=1e-6, err_msg=name)
    whole, cut = jax.device_get(theirs), set()
    for path, ours, x in zip(trees.paths(state), jax.tree.leaves(state), jax.tree.leaves(whole)):
        np.testing.assert_allclose(ours, x, rtol=0, atol=1e-6 * abs(x).max(), err_msg=path)
        if not ours.sharding.is_fully_replicated:
            assert ours.sharding.shard_shape(ours.shape)[-1] == CLASSES // 4
            cut.add(path)
    assert cut == {path for path in trees.paths(state) if "head/fc/" in path}
    assert len(cut) == 6  # kernel and bias, of the network, its momentum and its average


@pytest.mark.ci
def test_a_checkpoint_of_one_mesh_is_restored_on_others(on_8_devices, tmp_path):
    state, *_ = on_8_devices
    saved = checkpoint.Checkpoints(tmp_path, keep=1, best="top1")
    saved.save(3, state, {})
    for mesh in ({"data": 1}, {"data": 2, "fsdp": 2, "model": 2, "fsdp_min_size": 8}):
        there, _ = saved.restore(build(**mesh).abstract_state)
        kernel = there.params["head"]["fc"]["kernel"].sharding
        assert kernel.shard_shape((8, CLASSES)) == (8, CLASSES // mesh.get("model", 1))
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(there), jax.device_get(state))
    saved.close()


@pytest.mark.ci
@pytest.mark.parametrize("mesh", [{"data": 2, "model": 4}, {"data": 1, "fsdp": 2, "model": 4}])
def test_a_step_moves_features_and_gradients_and_no_scores(mesh):
    built = build(K, **mesh)
    batch = {k: jax.ShapeDtypeStruct(x.shape, x.dtype) for k, x in next(batches()).items()}
    compiled = built.train_step.lower(built.abstract_state, batch).compile()
    assert not of_classes(compiled)
    assert (8, 8) in moved(compiled)  # of a micro-batch: the features of all images of a `model`


@pytest.mark.ci
def test_a_run_goes_on_and_is_evaluated_on_other_meshes(commands, tmp_path):
    workdir = f"--config={runs.TINY}:plain", f"--workdir={tmp_path}"
    command = *workdir, "--config.model.num_classes=12", "--config.eval.batch_size=104"
    on = lambda data, model: (f"--config.mesh.data={data}", f"--config.mesh.model={model}")
    for duration, *mesh in ((6, 2, 4), (12, 2, 1)):
        length = f"--config.duration={duration} steps"
        done = commands.fork(*command, *on(*mesh), length, devices=8)
        assert done.returncode == 0, done.err
    assert runs.logged(tmp_path) == 12
    results = []
    for devices, *mesh in ((8, 1, 1), (8, 2, 4), (8, 1, 2), (1, 2, 4)):
        done = commands.fork(*command, *on(*mesh), "--mode=eval", devices=devices)
        assert done.returncode == 0, done.err
        elsewhere = (
            "1 process(es): evaluated on those that are here, with nothing cut\n" in done.err
        )
        assert elsewhere == (devices == 1)
        results.append(json.loads(done.out.splitlines()[-1]))
    for result in results[1:]:
        assert result["loss"] == pytest.approx(results[0]["loss"], rel=1e-6)
        assert [result[key] for key in ("top1", "top5", "images")] == [
            results[0][key] for key in ("top1", "top5", "images")
        ]


@pytest.mark.ci
def test_of_a_transformer_parameters_are_gathered_and_no_features():
    config = runs.tiny("plain")
    config.model.name = "DeiT_tiny_patch16_224"
    config.model.options = (("depth", 1), ("patch", 2))
    config.batch_size = config.eval.batch_size = 32
    config.mesh.update(data=1, fsdp=8, fsdp_min_size=256)
    built = program.build(config, num_train=898, num_classes=10)
    batch = {k: jax.ShapeDtypeStruct(x.shape, x.dtype) for k, x in next(batches()).items()}
    compiled = built.train_step.lower(built.abstract_state, batch).compile()
    shapes = {x.shape for x in jax.tree.leaves(built.abstract_state.params)}
    shapes |= {shape[::-1] for shape in shapes}
    there = [shape for shape in moved(compiled) if np.prod(shape) > 32 * 192]
    assert (192, 768) in there
    assert {shape for shape in there if shape[0] == 32} == set()
