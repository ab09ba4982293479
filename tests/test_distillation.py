"""Learning from teachers and peers: what reaches them, what counts, what a step has of them."""

import functools
import json
import re
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from PIL import Image
from test_soft_losses import kl, numpy_dkd, numpy_wsl, softmax

from configs import base
from jaxcls import choices, meta, network, objectives, program, teachers, weights
from jaxcls.data import device, ops

B, K = 8, 10
DIGITS = tuple("0123456789")


def image(size, mean=(0.3,), std=(0.37,)):
    keys = dict(base.get_config().image) | {"size": size, "eval_resize": 0}
    return ops.Image(**keys | {"mean": mean, "std": std})


def net_of(options, size, **changes):
    given = {
        "name": "ResNet18_vd",
        "options": {"stem": "small"} | options,
        "num_classes": 10,
        "class_names": DIGITS,
        "image": image(size),
        "precision": "float32",
    }
    return network.Network(**given | changes)


def export(folder, net, seed=1):
    """Writes a network as it was initialised, with statistics that are not those of the start."""
    key = jax.random.key(seed)
    shape = (1, *net.image.shape)
    variables = jax.jit(net.module.init)({"params": key}, jnp.zeros(shape))
    stats = jax.tree.map(lambda x: x * 1.5 + 0.1, dict(variables["batch_stats"]))
    variables = {"params": variables["params"], "batch_stats": stats}
    weights.export(folder, jax.device_get(variables), {"network": net.described()})
    return str(folder)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A teacher of two stages for 12 x 12 pixels, normalised otherwise."""
    net = net_of({"depths": (1, 1), "width": 16}, 12, image=image(12, (0.5,), (0.25,)))
    return export(tmp_path_factory.mktemp("teachers") / "large", net)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A teacher of one stage for 8 x 8 pixels, as the student has them."""
    net = net_of({"depths": (1,), "width": 8}, 8)
    return export(tmp_path_factory.mktemp("teachers") / "small", net, seed=2)


def config_of(name, *checkpoints, **loss):
    config = runs.tiny("plain")
    config.loss.name, config.teacher.checkpoints = name, checkpoints
    config.lr.warmup, config.mix.mixup = "", 0.0
    config.crop.flip = 0.0
    config.batch_size = 8
    config.update_from_flattened_dict({f"loss.{key}": value for key, value in loss.items()})
    return config


def build(config):
    return program.build(config, num_train=898, num_classes=10, class_names=DIGITS)


def batch_of(labels=None, size=8, n=B):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, K, n) if labels is None else labels
    images = rng.integers(0, 256, (n, size, size, 1), np.uint8)
    return {"image": images, "label": np.asarray(labels, np.int32)}


def test_a_run_that_goes_on_with_other_teachers_says_so(large, small):
    def of(*checkpoints):
        config = config_of("js", *checkpoints)
        _, data = choices.open_data(config)
        built = build(config)
        return meta.new(built.network, config.crop, data, built.teachers)

    def said(ours, theirs):
        lines = []
        meta.check(ours, theirs, "RUN", total=1, accept=False, report=lines.append)
        return lines

    theirs = of(small)
    assert said(of(small), theirs) == []
    assert said(of(large), theirs) == [
        "checkpoint RUN learned from other teachers, or from other weights of them"
    ]
    del theirs["teachers"]  # of a version that does not say
    assert said(of(large), theirs) == []


@functools.partial(jax.jit, static_argnums=0)
def in_training(model, variables, images):
    return model.apply(variables, images, train=True, mutable=["batch_stats"])[0]


# -- What counts -----------------------------------------------------------------------------------


def objective(name, taught, module=None, **keys):
    """Returns the objective of a name for teachers that return what they are told."""
    config = base.get_config()
    config.loss.name = name
    with config.ignore_type():
        config.loss.update(keys)
    shapes = {"logits": jax.ShapeDtypeStruct((2, K), jnp.float32)}
    return objectives.make(**config.loss, outputs=shapes, module=module, teachers=taught)


def told(*shares):
    shapes = ({"logits": jax.ShapeDtypeStruct((2, K), jnp.float32)},) * len(shares)
    return teachers.Teachers(shares, shapes, None, lambda variables, batch: variables)


def scores(seed):
    return (2 * np.random.default_rng(seed).standard_normal((B, K))).astype(np.float32)


def numpy_ce(s, labels):
    return [-np.log(softmax(row)[y]) for row, y in zip(s.astype(np.float64), labels) if y >= 0]


LABELS = np.array([3, -1, 0, 9, -1, 2, 2, 5])


@pytest.mark.parametrize("labels", [LABELS, np.full(B, -1)])
def test_the_labels_part_counts_labelled_images_and_the_teachers_part_all(labels):
    s, t = scores(0), scores(1)
    loss = objective("kl", told(1.0), hard=0.5, soft=2.0, temperature=3.0).loss
    total, metrics = jax.jit(loss)({"logits": s}, {"label": labels}, ({"logits": t},))
    soft = np.mean([9 * kl(softmax(a), softmax(b)) for a, b in zip(t / 3.0, s / 3.0)])
    hard = np.mean(numpy_ce(s, labels) or [0])
    np.testing.assert_allclose(metrics["hard"], hard, rtol=1e-5)
    np.testing.assert_allclose(metrics["soft"], soft, rtol=1e-5)
    np.testing.assert_allclose(total, 0.5 * hard + 2 * soft, rtol=1e-5)
    assert metrics["loss"] == total
    right = s.argmax(-1) == labels
    np.testing.assert_allclose(metrics["top1"], right.sum() / max((labels >= 0).sum(), 1))
    agreement = np.mean(s.argmax(-1) == t.argmax(-1))
    np.testing.assert_allclose(metrics["agreement"], agreement)


def test_the_labels_part_has_the_weights_of_classes():
    s, t = scores(0), scores(1)
    weights = 1.0 + np.arange(K)
    loss = objective("kl", told(1.0), class_weights=tuple(weights)).loss
    _, metrics = jax.jit(loss)({"logits": s}, {"label": LABELS}, ({"logits": t},))
    own = weights[LABELS[LABELS >= 0]] / weights.mean()  # of as many images of each
    np.testing.assert_allclose(metrics["hard"], np.mean(own * numpy_ce(s, LABELS)), rtol=1e-5)


@pytest.mark.parametrize("name", ["dkd", "wsl"])
@pytest.mark.parametrize("mixed", [False, True])
def test_the_teachers_class_stands_in_for_a_missing_label(name, mixed):
    s, t = scores(2), scores(3)
    batch, own = {"label": LABELS}, t.argmax(-1)
    of = {
        "dkd": lambda s, t, y: numpy_dkd(s, t, y, 4.0, 1.0, 8.0),
        "wsl": lambda s, t, y: numpy_wsl(s, t, y, 2.0),
    }[name]

    def want(labels):
        labels = np.where(labels < 0, own, labels)
        return np.array([of(*row) for row in zip(np.float64(s), np.float64(t), labels)])

    expected = want(LABELS)
    if mixed:
        second, lam = np.roll(LABELS, 1), np.linspace(0, 1, B, dtype=np.float32)
        batch |= {"label2": second, "lam": lam}
        expected = lam * expected + (1 - lam) * want(second)
    loss = objective(name, told(1.0)).loss
    _, metrics = loss({"logits": jnp.asarray(s)}, batch, ({"logits": jnp.asarray(t)},))
    np.testing.assert_allclose(metrics["soft"], expected.mean(), rtol=1e-5)
    marks = {"label": np.eye(K, dtype=np.int32)[own]}
    with pytest.raises(ValueError, match="dkd and wsl need one class an image"):
        loss({"logits": jnp.asarray(s)}, marks, ({"logits": jnp.asarray(t)},))


def test_several_teachers_have_their_weights():
    s, t, u = scores(4), scores(5), scores(6)
    aux = ({"logits": t}, {"logits": u})
    both, (one,), (other,) = (0.25, 0.75), aux[:1], aux[1:]
    batch = {"label": LABELS}
    loss, metrics = objective("js", told(*both)).loss({"logits": s}, batch, aux)
    alone = objective("js", told(1.0)).loss
    parts = [alone({"logits": s}, batch, (x,)) for x in (one, other)]
    np.testing.assert_allclose(loss, sum(w * p[0] for w, p in zip(both, parts)), rtol=1e-6)
    agreement = sum(w * p[1]["agreement"] for w, p in zip(both, parts))
    np.testing.assert_allclose(metrics["agreement"], agreement, rtol=1e-6)


def test_spherical_distillation_has_spherical_labels_and_auxiliary_heads_their_share():
    s, t, a = scores(7), scores(8), scores(9)
    y = np.abs(LABELS)
    sphere = lambda x: 2 * (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
    loss = objective("skd", told(1.0), soft=0.9).loss
    _, metrics = loss({"logits": s}, {"label": y}, ({"logits": t},))
    np.testing.assert_allclose(metrics["hard"], np.mean(numpy_ce(sphere(s), y)), rtol=1e-5)
    np.testing.assert_allclose(metrics["top1"], np.mean(s.argmax(-1) == y))

    config = base.get_config()
    config.loss.update(name="soft_ce", aux_weight=0.5)
    shapes = dict.fromkeys(("logits", "aux1"), jax.ShapeDtypeStruct((2, K), jnp.float32))
    loss = objectives.make(**config.loss, outputs=shapes, teachers=told(1.0)).loss
    got = loss({"logits": s, "aux1": a}, {"label": y}, ({"logits": t},))[0]
    ce = lambda q: -np.mean([softmax(p) @ np.log(softmax(x)) for p, x in zip(t, q)])
    np.testing.assert_allclose(got, ce(s) + 0.5 * ce(a), rtol=1e-5)


# -- What a teacher sees ---------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "to"), [(8, 12), (12, 8), (16, 16)])
def test_a_teacher_sees_the_same_images_at_its_size(size, to):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (2, size, size, 3), np.uint8)
    ours = image(size, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    theirs = image(to, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    batch = device.normalise(pixels, mean=ours.mean, std=ours.std)
    got = teachers.shown(batch, ours, theirs)
    planes = [[Image.fromarray(p[..., c].astype(np.float32) / 255) for c in range(3)]
              for p in pixels]  # fmt: skip
    resized = [[np.asarray(x.resize((to, to), Image.Resampling.BILINEAR)) for x in p]
               for p in planes]  # fmt: skip
    want = (np.moveaxis(resized, 1, -1) - np.array(theirs.mean)) / np.array(theirs.std)
    np.testing.assert_allclose(got, want, atol=2e-5)


def test_channels_of_student_and_teacher_may_differ():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    grey, colour = image(8, (0.3,), (0.4,)), image(8, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    batch = device.normalise(pixels, mean=colour.mean, std=colour.std)
    luma = np.stack([np.asarray(Image.fromarray(p).convert("L")) for p in pixels])[..., None]
    want = (luma / 255 - 0.3) / 0.4
    np.testing.assert_allclose(teachers.shown(batch, colour, grey), want, atol=0.51 / 255 / 0.4)
    back = teachers.shown(device.normalise(luma, mean=(0.3,), std=(0.4,)), grey, colour)
    want = (np.repeat(luma, 3, -1) / 255 - np.array(colour.mean)) / np.array(colour.std)
    np.testing.assert_allclose(back, want, atol=1e-5)


def test_images_as_they_are_stay_exactly_so(small):
    built = build(config_of("js", small))
    net, variables = network.load(small)
    images = jnp.asarray(np.random.default_rng(0).standard_normal((4, 8, 8, 1)), jnp.float32)
    assert teachers.shown(images, net.image, net.image) is images
    objective = objectives.make(
        **config_of("js", small).loss,
        outputs={},
        teachers=teachers.make(**config_of("js", small).teacher, student=built.network),
    )
    (seen,) = objective.teachers((variables,), {"image": images})
    want = net.predict(variables, images)["logits"]
    np.testing.assert_allclose(seen["logits"], want, rtol=1e-5, atol=1e-6)


@pytest.mark.ci
def test_mixed_and_erased_images_reach_the_teacher_as_they_reach_the_student(large):
    """The whole step against the loss of the same batch, prepared apart from it."""
    config = config_of("js", large)
    config.mix.mixup, config.erase.name, config.erase.length = 0.3, "cutout", 4
    config.crop.flip = 0.5
    built = build(config)
    state, batch = built.init(), batch_of()
    prepared = built.prepare(np.int32(0), batch)
    net, variables = network.load(large)
    pixels = np.asarray(prepared["image"]) * 0.37 + 0.3
    planes = [np.asarray(Image.fromarray(p[..., 0]).resize((12, 12), Image.Resampling.BILINEAR))
              for p in pixels]  # fmt: skip
    view = (np.stack(planes)[..., None] - 0.5) / 0.25
    p = softmax(np.float64(net.predict(variables, jnp.asarray(view, jnp.float32))["logits"]))
    model = built.network.module
    outputs = in_training(model, state.variables(), prepared["image"])
    q = softmax(np.float64(outputs["logits"]))
    want = np.mean([(kl(a, (a + b) / 2) + kl(b, (a + b) / 2)) / 2 for a, b in zip(p, q)])
    _, metrics = built.train_step(state, batch, *built.teachers)
    np.testing.assert_allclose(metrics["soft"], want, rtol=2e-4)
    assert 0 < metrics["soft"] < np.log(2)


# -- What a step has of teachers -------------------------------------------------------------------


@pytest.mark.ci
def test_teachers_are_arguments_of_the_program_and_no_part_of_the_state(large, small):
    config = config_of("kl", large, small)
    config.teacher.weights = (1, 3)
    config.mesh.data = 2
    built = build(config)
    alone = config_of("supervised")
    alone.mesh.data = 2
    alone = build(alone)
    theirs, ours = built.abstract_state, alone.abstract_state
    assert jax.tree.structure(theirs) == jax.tree.structure(ours)
    batch = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in batch_of().items()}
    lowered = built.train_step.lower(theirs, batch, *built.teachers)
    text = lowered.as_text()
    arguments = re.findall(r"%arg\d+: tensor<([\dx]*)xf32>", text)
    for path in (large, small):
        for x in jax.tree.leaves(network.load(path)[1]):
            assert "x".join(map(str, x.shape)) in arguments
    # no array of the program is written down in it: the largest are a few numbers of means
    constants = re.findall(r"stablehlo.constant dense<.*?> : tensor<([\dx]*)x[a-z]+\d+>", text)
    assert max((np.prod([*map(int, c.split("x"))]) for c in constants), default=0) < 1000
    assert len(text) < 2_000_000
    # every device has them whole
    flat = jax.tree.leaves(lowered.compile().input_shardings[0][2])
    assert len(flat) == sum(len(jax.tree.leaves(network.load(p)[1])) for p in (large, small))
    assert all(s.is_fully_replicated for s in flat)


@pytest.mark.ci
def test_two_devices_compute_what_one_does(large):
    losses = []
    for data, model in ((1, 1), (2, 1), (1, 2)):  # with "model" the classifiers of both are cut
        keys = {"stages": ("pre_logits", "stage1"), "kl_weight": 1.0}
        config = config_of("rkd", large, **keys)
        config.model.bn_group = 4
        config.mesh.data, config.mesh.model = data, model
        built = build(config)
        state, metrics = built.init(), None
        for _ in range(2):
            state, metrics = built.train_step(state, batch_of(), *built.teachers)
        losses.append([float(metrics[key]) for key in ("loss", "hard", "soft")])
    for other in losses[1:]:
        np.testing.assert_allclose(other, losses[0], rtol=1e-4)


def flops(step, *arguments):
    return step.lower(*arguments).compile().cost_analysis()["flops"]


@pytest.mark.ci
@pytest.mark.parametrize("number", [1, 2])
def test_a_step_costs_the_students_and_the_teachers_forward(number, tmp_path):
    net = net_of({"depths": (2, 2), "width": 16}, 16)
    paths = [export(tmp_path / str(i), net) for i in range(number)]
    shapes = batch_of(size=16)
    found = {}
    for name, teachers_ in (("supervised", ()), ("kl", paths)):
        config = config_of(name, *teachers_)
        config.image.size = 16
        built = build(config)
        found[name] = flops(built.train_step, built.abstract_state, shapes, *built.teachers)
    images = jnp.zeros((B, 16, 16, 1))
    forward = flops(jax.jit(net.predict), network.load(paths[0])[1], images)
    assert forward > 0.05 * found["supervised"]  # or the test would not see it
    must = found["supervised"] + number * forward
    assert abs(found["kl"] - must) < 0.1 * must
    assert abs(found["kl"] - must) < 0.3 * forward


# -- What is trained with the network --------------------------------------------------------------


def step_of(built, n=1):
    state = built.init()
    first = jax.device_get((state.params, state.batch_stats))
    for _ in range(n):
        state, metrics = built.train_step(state, batch_of(), *built.teachers)
    return first, jax.device_get(state), metrics


@pytest.mark.ci
def test_features_are_projected_to_the_channels_of_the_teacher(large, small):
    config = config_of("l2", large, small, stages=(("stage1", "stage2"),), hard=0.0)
    with pytest.raises(ValueError, match="the teacher has no feature 'stage2': choose one of"):
        build(config)  # the second one has no stage2
    config.teacher.checkpoints = (large,)
    built = build(config)
    (params, _), state, metrics = step_of(built)
    name = "stage1_as_stage2_1"
    kernel = params["extra"][name]["kernel"]
    assert kernel.shape == (8, 32)
    assert (kernel != state.params["extra"][name]["kernel"]).any()

    net, variables = network.load(large)
    prepared = built.prepare(np.int32(0), batch_of())["image"]
    view = teachers.shown(prepared, image(8), net.image)
    theirs = np.float64(net.predict(variables, jnp.asarray(view, jnp.float32))["stage2"])
    model = built.network.module
    theirs = np.float64(jax.image.resize(jnp.float32(theirs), (B, 8, 8, 32), "linear"))
    outputs = in_training(model, jax.device_get(built.init().variables()), prepared)
    ours = np.float64(outputs["stage1"]) @ kernel + params["extra"][name]["bias"]
    np.testing.assert_allclose(metrics["soft"], ((ours - theirs) ** 2).mean(), rtol=1e-3)


@pytest.mark.ci
def test_two_networks_learn_from_each_other(tmp_path):
    built = build(config_of("dml"))
    assert built.teachers == ()
    (params, stats), state, metrics = step_of(built)
    peer, own = params["extra"]["peer"], {k: v for k, v in params.items() if k != "extra"}
    assert jax.tree.map(jnp.shape, peer) == jax.tree.map(jnp.shape, own)
    kernel = lambda tree: tree["stem"]["conv1"]["conv"]["kernel"]
    assert (kernel(peer) != kernel(own)).any()  # they begin elsewhere
    assert (kernel(state.params["extra"]["peer"]) != kernel(peer)).any()
    moved = state.batch_stats["extra"]["peer"]["stem"]["conv1"]["bn"]["mean"]
    assert (moved != stats["extra"]["peer"]["stem"]["conv1"]["bn"]["mean"]).any()

    weights.export(tmp_path / "net", state.variables(), {"network": built.network.described()})
    assert "extra" not in network.load(tmp_path / "net")[1]["params"]

    # each learns as if the other were a teacher that does not move
    prepared = built.prepare(np.int32(0), batch_of())
    model, batch = built.network.module, {"label": batch_of()["label"]}
    logits = [
        in_training(model, {"params": p, "batch_stats": s}, prepared["image"])["logits"]
        for p, s in ((own, {k: v for k, v in stats.items() if k != "extra"}),
                     (peer, stats["extra"]["peer"]))
    ]  # fmt: skip
    p, q = (softmax(np.float64(x)) for x in logits)
    soft = np.mean([kl(b, a) + kl(a, b) for a, b in zip(p, q)])
    np.testing.assert_allclose(metrics["soft"], soft, rtol=1e-3)
    mutual = objective("dml", None, module=model).loss
    gradient = jax.grad(
        lambda x: mutual({"logits": x, "peer": {"logits": logits[1]}}, batch, None)[0]
    )(logits[0])
    onehot = np.eye(K)[batch["label"]]
    np.testing.assert_allclose(gradient, ((p - onehot) + (p - q)) / B, atol=1e-6)


def test_what_is_trained_beside_a_network_is_not_frozen():
    """Its BatchNorms would go on moving."""
    config = config_of("dml")
    config.optim.frozen = (r"^(?!head/)",)
    with pytest.raises(ValueError, match="extra/peer/head/fc/bias, which is trained beside the"):
        build(config)
    config.optim.frozen = (r"^(?!head/|extra/)",)
    (_, stats), state, _ = step_of(build(config))
    moved = lambda a, b: [(x != y).any() for x, y in zip(*map(jax.tree.leaves, (a, b)))]
    assert not any(moved(stats["stem"], state.batch_stats["stem"]))
    assert all(moved(stats["extra"], state.batch_stats["extra"]))


def test_the_peer_may_be_another_network():
    config = config_of("dml", peer="MobileNetV3_small_x0_35")
    config.image.size = 16
    config.model.bn_group = 4
    built = build(config)
    found = built.abstract_state.params["extra"]["peer"]
    assert found.keys() != built.abstract_state.params.keys() - {"extra"}
    step = jax.eval_shape(built.train_step, built.abstract_state, batch_of(size=16))
    assert step[1]["soft"].shape == ()


# -- Mistakes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "keys", "text"),
    [
        ("js", {}, "config.loss.name = 'js' learns from a teacher: write --config.teacher.check"),
        ("kl", {"temperature": 0.0}, "config.loss.temperature = 0.0: write a number from 0.001"),
        ("kl", {"temperature": 1e-9}, "config.loss.temperature = 1e-09: write a number from 0.001"),
        ("kl", {"hard": -1.0}, "config.loss.hard = -1.0: write a weight of at least 0, or None"),
        ("kl", {"soft": 0.0}, "config.loss.soft = 0.0: write a weight above 0"),
        ("kl", {"peer": "ResNet18"}, "config.loss.peer: not used by 'kl', which takes"),
        ("js", {"temperature": 2.0}, "config.loss.temperature: not used by 'js', which takes"),
        ("js", {"label_smoothing": 0.1}, "config.loss.label_smoothing = 0.1 does nothing"),
        ("js", {"class_weights": ("auto",)}, "config.loss.class_weights = ('auto',) does nothing"),
        ("js", {"focal_gamma": 2.0}, "config.loss.focal_gamma = 2.0 does nothing"),
        ("supervised", {"soft": 2.0}, "config.loss.soft: not used by 'supervised', which takes"),
        ("dkd", {"target": -1.0}, "config.loss.target = -1.0: write a weight of at least 0"),
        ("dist", {"inter": 0.0, "intra": 0.0}, "config.loss: inter and intra are 0: write one"),
        ("skd", {"multiplier": 0.0}, "config.loss.multiplier = 0.0: write a number above 0"),
        ("dml", {"peer": "ResNet19"}, "unknown config.loss.peer 'ResNet19': did you mean"),
        ("dml", {"peer": "InceptionV4"}, "config.loss.peer = 'InceptionV4': images of 8"),
        ("l2", {"kl_weight": -1.0, "stages": ("stage1",)}, "config.loss.kl_weight = -1.0: write"),
        ("rkd", {"temperature": 2.0}, "config.loss.temperature = 2.0 does nothing without config."),
    ],
)
def test_keys_out_of_range(name, keys, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        build(config_of(name, **keys))


@pytest.mark.ci
def test_stages_that_cannot_be_compared(large):
    for stages, text in (
        ((), "config.loss.stages = (): write names of features that student and teacher have"),
        (("stage9",), "the student has no feature 'stage9': choose one of "),
        ((("stage1", "stage9"),), "the teacher has no feature 'stage9': choose one of "),
        ((("a", "b", "c"),), "config.loss.stages = (('a', 'b', 'c'),): write names"),
        (("stage1", 3), "config.loss.stages = ('stage1', 3): write names"),
        (("pre_logits",), "pre_logits of the student is [B, 8], pre_logits of teacher 1 [B, 32]"),
    ):
        with pytest.raises(ValueError, match=re.escape(text)):
            build(config_of("attention", large, stages=stages))


@pytest.mark.ci
def test_teachers_that_cannot_teach(large, small, tmp_path):
    others = net_of({"depths": (1,), "width": 8}, 8, class_names=("0", "one", *DIGITS[2:]))
    others = export(tmp_path / "others", others)
    fewer = net_of({"depths": (1,), "width": 8}, 8, class_names=DIGITS[:9], num_classes=9)
    fewer = export(tmp_path / "fewer", fewer)
    marks = net_of({"depths": (1,), "width": 8}, 8, multi_label=True)
    marks = export(tmp_path / "several", marks)
    diverged, variables = network.load(small)
    variables["params"]["head"]["fc"]["bias"] = np.full(10, np.nan, np.float32)
    weights.export(tmp_path / "nan", variables, {"network": diverged.described()})
    (tmp_path / "file").write_text("no network")
    for name, checkpoints, changes, text in (
        ("supervised", (large,), {}, "config.teacher.checkpoints: config.loss.name = 'supervised'"),
        (
            "dml",
            (large,),
            {},
            "config.loss.name = 'dml' learns from no teacher: write one of attent",
        ),
        ("js", (others,), {}, "other classes than config.data: class 1 is 'one' there, '1' here"),
        ("js", (fewer,), {}, "has 9 classes, the student 10"),
        ("js", (marks,), {}, "several' is for images that may show several classes: choose"),
        ("js", (str(tmp_path / "nan"),), {}, "nan': its weights are not all finite numbers"),
        ("js", (large,), {"precision": "float64"}, 'config.teacher.precision = "float64": JAX'),
        ("js", (str(tmp_path / "nowhere"),), {}, "nowhere: no checkpoint there; give a run's"),
        ("js", (str(tmp_path / "file"),), {}, "config.teacher.checkpoints: "),
        ("js", (3,), {}, "config.teacher.checkpoints = (3,): write checkpoints, such as"),
        (
            "js",
            (large,),
            {"weights": (1.0, 1.0)},
            "config.teacher.weights = (1.0, 1.0): write 1 nu",
        ),
        ("js", (large,), {"weights": (-1.0,)}, "config.teacher.weights = (-1.0,): write 1 numbers"),
        ("js", (large,), {"precision": "float33"}, "unknown config.teacher.precision 'float33'"),
        ("supervised", (), {"precision": "own"}, "config.teacher.precision = 'own' does nothing"),
    ):
        config = config_of(name, *checkpoints)
        config.teacher.update(changes)
        with pytest.raises(ValueError, match=re.escape(text)):
            build(config)


@pytest.mark.parametrize(
    ("precision", "dtype"), [("", "float32"), ("bfloat16", "bfloat16"), ("own", "float16")]
)
def test_the_precision_of_a_teacher(precision, dtype, tmp_path):
    half = net_of({"depths": (1,), "width": 8}, 8, precision="float16")
    config = config_of("attention", export(tmp_path / "half", half), stages=("stage1",))
    config.teacher.precision = precision
    student = net_of({"depths": (1,), "width": 8}, 8)
    taught = teachers.make(**config.teacher, student=student)
    assert taught.outputs[0]["stage1"].dtype == dtype
    assert taught.outputs[0]["logits"].dtype == jnp.float32


# -- Whole runs ------------------------------------------------------------------------------------


@pytest.mark.ci
def test_a_run_learns_from_two_teachers_and_goes_on_bit_by_bit(commands, large, small, tmp_path):
    """With a projection, float16, accumulation and an average; and then without the teachers."""
    for path, name in ((large, "large"), (small, "small")):
        shutil.copytree(path, tmp_path / "teachers" / name)
    names = tuple(str(tmp_path / "teachers" / name) for name in ("large", "small"))
    command = (
        f"--config={runs.TINY}",
        f"--config.teacher.checkpoints={names}",
        "--config.loss.name=l2",
        "--config.loss.stages=stage1",
        "--config.loss.kl_weight=0.5",
        "--config.duration=21 steps",
    )
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = commands.fork(*command, f"--workdir={whole}")
    assert done.returncode == 0, done.err
    with commands.started(*command, f"--workdir={killed}") as process:
        runs.wait_until(lambda: runs.checkpoints(killed), process)
        assert runs.interrupt(process, signal.SIGKILL) == -signal.SIGKILL
    assert runs.checkpoints(killed)[-1] < 21
    done = commands.fork(*command, f"--workdir={killed}")
    assert done.returncode == 0, done.err
    runs.assert_same_run(killed, whole, 21)

    train = [line for line in runs.lines(whole) if line["split"] == "train"]
    assert all({"hard", "soft", "agreement"} <= line.keys() for line in train)
    state, meta = runs.saved(whole, 21)
    extra = {path for path in state if path.startswith("params/extra/")}
    name = "params/extra/stage1_as_stage1_1"
    assert extra == {f"{name}/kernel", f"{name}/bias"}
    assert state[f"{name}/kernel"].shape == (8, 16)
    alone = tmp_path / "alone"
    done = commands.fork(command[0], f"--workdir={alone}", "--config.duration=21 steps")
    assert done.returncode == 0, done.err
    assert {path for path in state if "extra/" not in path} == runs.saved(alone, 21)[0].keys()
    assert meta["network"]["num_classes"] == 10

    shutil.rmtree(tmp_path / "teachers")
    done = commands.fork(f"--workdir={whole}", "--mode=eval")
    assert done.returncode == 0, done.err
    last = runs.lines(whole)[-1]
    assert json.loads(done.out)["top1"] == pytest.approx(last["top1"], rel=1e-6)
    assert "extra" not in network.load(whole)[1]["params"]
    tuned = (
        f"--workdir={tmp_path / 'tuned'}",
        f"--config={runs.TINY}",
        f"--config.init.checkpoint={whole}",
        "--config.duration=2 steps",
    )
    done = commands.fork(*tuned, "--config.lr.warmup=")
    assert done.returncode == 0, done.err
    done = commands.fork(*command, f"--workdir={tmp_path / 'other'}")
    assert done.returncode == 2
    assert done.err.count("\n") == 1
    assert "no checkpoint there; give a run's" in done.err


@pytest.mark.ci
def test_two_networks_that_learn_from_each_other_go_on_bit_by_bit(commands, tmp_path):
    command = f"--config={runs.TINY}", "--config.loss.name=dml", "--config.duration=14 steps"
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert commands.fork(*command, f"--workdir={whole}").returncode == 0
    with commands.started(*command, f"--workdir={killed}") as process:
        runs.wait_until(lambda: runs.checkpoints(killed), process)
        assert runs.interrupt(process, signal.SIGKILL) == -signal.SIGKILL
    done = commands.fork(*command, f"--workdir={killed}")
    assert done.returncode == 0, done.err
    runs.assert_same_run(killed, whole, 14)
    state, _ = runs.saved(whole, 14)
    peer = {path for path in state if path.startswith("batch_stats/extra/peer/")}
    own = [path for path in state if path.startswith("batch_stats/") and "/extra/" not in path]
    assert len(peer) == len(own) > 0
    done = commands.fork(f"--workdir={whole}", "--mode=eval")
    last = runs.lines(whole)[-1]
    assert json.loads(done.out)["loss"] == pytest.approx(last["loss"], rel=1e-6)
