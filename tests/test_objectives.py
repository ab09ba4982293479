"""The seams of the train step: teachers, and what is trained beside a network."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import runs

from configs import base
from jaxcls import checkpoint, evaluate, network, objectives, precision, steps, train, weights
from jaxcls.data import ops
from jaxcls.models.layers import BatchNorm
from jaxcls.models.spec import Ctx


def built(objective, **changes):
    """Returns the train step of a softmax regression with an objective, and its first state."""
    model, tx = Regression(), optax.with_extra_args_support(optax.sgd(0.5))
    step = steps.make_train_step(
        model,
        tx,
        objective,
        prepare=lambda keys, batch, step: batch,
        learning_rate=lambda step: 0.5,
        **changes,
    )
    scale = precision.make(**runs.tiny("plain").precision, platform="cpu").initial_loss_scale()
    return step, steps.init_state(model, tx, scale, (1, 1, 7), seed=0, extra=objective.extra)


class Regression(nn.Module):
    @nn.compact
    def __call__(self, x, train=True):
        w = self.param("w", nn.initializers.normal(), (7, 3))
        return {"logits": x.reshape(len(x), -1) @ w, "features": x.reshape(len(x), -1)}


def batch_of(n=8):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, 1, 1, 7), np.float32)
    return {"image": x, "label": rng.integers(0, 3, n).astype(np.int32)}


def plain():
    return objectives.make(**base.get_config().loss, outputs={})


@pytest.mark.parametrize("k", [1, 2])
def test_a_teacher_is_an_argument_of_the_step(k):
    def loss(outputs, batch, aux):
        value = ((outputs["logits"] - aux) ** 2).mean()
        return value, {}

    teachers = lambda v, batch: jnp.tanh(batch["image"].reshape(len(batch["image"]), -1) @ v["w"])
    step, state = built(objectives.Objective(loss, teachers), accumulate_steps=k)
    rng, batch = np.random.default_rng(1), batch_of()
    teacher = {"w": rng.standard_normal((7, 3), np.float32)}
    step = jax.jit(step)
    after, _ = step(state, batch, teacher)
    x, w = batch["image"].reshape(8, 7).astype(np.float64), np.float64(state.params["w"])
    gradient = 2 * x.T @ (x @ w - np.tanh(x @ teacher["w"])) / 24
    np.testing.assert_allclose(after.params["w"], w - 0.5 * gradient, atol=1e-6)
    # no constant of the program: other weights, the same program
    step(state, batch, jax.tree.map(lambda x: -x, teacher))
    assert step._cache_size() == 1


class Projection(nn.Module):
    """Features to four numbers, normalised over the batch."""

    @nn.compact
    def __call__(self, outputs, batch, train):
        x = nn.Dense(4, name="fc")(outputs["features"])
        x = BatchNorm(Ctx(train=train), name="bn")(x[:, None, None])
        return {"projected": x.reshape(len(x), -1)}


def test_what_is_trained_beside_a_network_is_no_part_of_it(tmp_path):
    def loss(outputs, batch, aux):
        hard, metrics = plain().loss(outputs, batch)
        return hard + (outputs["projected"] ** 4).mean(), metrics

    step, state = built(objectives.Objective(loss, extra=Projection()))
    before = jax.device_get(state.params)
    assert before.keys() == {"w", "extra"}
    batch = batch_of()
    state, _ = jax.jit(step)(state, batch)
    assert (before["extra"]["fc"]["kernel"] != state.params["extra"]["fc"]["kernel"]).any()
    # statistics of the projected features, in float64
    x = np.float64(batch["image"].reshape(8, 7)) @ before["extra"]["fc"]["kernel"]
    np.testing.assert_allclose(
        state.batch_stats["extra"]["bn"]["mean"], 0.1 * x.mean(0), rtol=1e-5, atol=1e-7
    )
    # the network learns as it does alone
    alone, first = built(plain())
    np.testing.assert_array_equal(first.params["w"], before["w"])
    np.testing.assert_allclose(jax.jit(alone)(first, batch)[0].params["w"], state.params["w"])

    weights.export(tmp_path / "export", state.variables(), {"network": {}})
    opened = checkpoint.Checkpoints(tmp_path / "checkpoints", keep=1, best="top1")
    opened.save(1, state, {"network": {}})
    opened.close()
    for path in (tmp_path / "export", tmp_path):
        variables, _ = weights.load(path)
        assert variables["params"].keys() == {"w"}
        assert variables["batch_stats"] == {}
    told = {"name": "", "options": {}, "num_classes": 3, "class_names": ()}
    tuned = weights.initialize(state.variables(), network=told, checkpoint=tmp_path / "export")
    np.testing.assert_array_equal(tuned["params"]["w"], state.params["w"])


def test_evaluation_needs_no_objective(tmp_path, monkeypatch, capsys):
    """No teacher is loaded, and keys that only training takes are nobody's business."""
    config = runs.tiny("plain")
    config.data.update({"source": "fake", "num_train": 16, "num_eval": 16, "num_classes": 3})
    config.batch_size, config.mix.mixup = 16, 0.0
    start, _, _ = train.setup(config)
    net = network.make(
        **config.model,
        classes=3,
        class_names=("0", "1", "2"),
        image=ops.Image(**config.image),
        precision="float32",
    )[0]
    weights.export(tmp_path / "export", start.variables(), {"network": net.described()})
    monkeypatch.setattr(objectives, "make", None)
    config.loss.update({"name": "distilled", "aux_weight": 0.7})
    monkeypatch.setitem(objectives.OBJECTIVES, "distilled", None)
    capsys.readouterr()
    assert evaluate.run(config, str(tmp_path / "export")) == 0
    assert {"loss", "top1", "top5", "images"} <= json.loads(capsys.readouterr().out).keys()


@pytest.mark.ci
def test_a_run_learns_from_a_teacher(tmp_path, monkeypatch):
    """A row of the table is all that distillation needs."""
    big = runs.tiny("plain")
    big.data.update({"source": "fake", "num_train": 256, "num_eval": 64, "num_classes": 10})
    big.batch_size = big.eval.batch_size = 64
    big.lr.warmup, big.mix.mixup = "", 0.0
    assert train.run(big, str(tmp_path / "teacher")) == 0

    def distilled(*, label_smoothing, aux_weight):
        net, variables = network.load(tmp_path / "teacher")

        def loss(outputs, batch, aux):
            log_q = jax.nn.log_softmax(outputs["logits"])
            soft = -(jax.nn.softmax(aux) * log_q).sum(-1).mean()
            return soft, {"loss": soft}

        teachers = lambda variables, batch: net.predict(variables, batch["image"])["logits"]
        return objectives.Objective(loss, teachers, variables)

    monkeypatch.setitem(objectives.OBJECTIVES, "distilled", distilled)
    big.loss.name = "distilled"
    big.duration = "40 steps"
    assert train.run(big, str(tmp_path / "student")) == 0
    losses = [line["loss"] for line in runs.lines(tmp_path / "student") if line["split"] == "train"]
    assert losses[-1] < losses[0]
