"""Six training steps of PaddleClas, reproduced by the real train step through the real config."""

import json

import jax
import numpy as np
import oracle
import pytest

from configs import base
from jaxcls import convert, models, train, trees
from jaxcls.convert import engine


def config_of(run):
    """Returns the config of a reference run."""
    c = base.get_config()
    steps_per_epoch = run["schedule"]["step_each_epoch"]
    c.data.source = "fake"
    c.data.num_train = steps_per_epoch * run["batch"]
    c.data.num_eval = run["batch"]
    c.data.num_classes = run["class_num"]
    c.batch_size = run["batch"]
    c.duration = f"{run['schedule']['epochs']} epochs"
    c.model.name = run["model"]
    c.image.size = run["size"]
    c.loss.label_smoothing = run["label_smoothing"]
    c.optim.momentum = run["momentum"]
    c.optim.l2 = run["l2_decay"]
    c.lr.peak = run["schedule"]["learning_rate"]
    c.lr.warmup = f"{run['schedule']['warmup_epoch']} epochs"
    c.precision.name = "float32"
    c.mesh.data = 1
    return c


def their_tensors(name, tree):
    """Returns {PaddleClas's name: (our path, our leaf in PaddleClas's layout)}."""
    module = models.build(name)
    rule = convert.RULES[models.family_of(name)].paddle
    theirs = {}
    for path, leaf in zip(trees.paths(tree), jax.tree.leaves(tree)):
        _, *layer, last = path.split("/")
        array = np.asarray(leaf)
        array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array
        theirs[f"{rule(tuple(layer), module)}.{engine.PADDLE_LEAVES[last]}"] = (path, array)
    return theirs


def test_six_steps_of_resnet18_vd():
    file = oracle.REFERENCE / "train_ResNet18_vd.json"
    if not file.exists():
        pytest.skip("no reference data")
    run = json.loads(file.read_text())
    name, size, classes = run["model"], run["size"], run["class_num"]
    state, train_step, _ = train.setup(config_of(run))

    start = their_tensors(name, {"params": state.params, "batch_stats": state.batch_stats})
    layers = {k.rpartition(".")[0] for k in start if k.endswith("._mean")}
    bn = dict.fromkeys(layers, (0, 1))
    arrays = {}
    for key, (path, array) in start.items():
        kind = "scale" if path.endswith("scale") else "linear" if array.ndim == 2 else "other"
        arrays[key] = oracle.tensor(key, array.shape, kind, bn)
    state = state.replace(**convert.from_paddle(name, arrays, num_classes=classes))

    losses, rates = [], []
    for k in range(run["steps"]):
        image = oracle.images(size, run["batch"], seed=1000 + k)
        label = np.random.default_rng(2000 + k).integers(0, classes, run["batch"])
        state, metrics = train_step(state, {"image": image, "label": label.astype(np.int32)})
        losses.append(float(metrics["loss"]))
        rates.append(float(metrics["lr"]))

    np.testing.assert_allclose(rates, run["learning_rates"], atol=1e-6)
    np.testing.assert_allclose(losses[:3], run["losses"][:3], rtol=1e-4)
    np.testing.assert_allclose(losses, run["losses"], rtol=1e-3)

    ours = their_tensors(name, {"params": state.params, "batch_stats": state.batch_stats})
    assert ours.keys() == run["params_after"].keys()
    for key, (mean, rms, *first) in run["params_after"].items():
        array = ours[key][1].astype(np.float64)
        assert array.mean() == pytest.approx(mean, abs=5e-4 * rms), key
        assert np.sqrt((array**2).mean()) == pytest.approx(rms, rel=5e-4), key
        np.testing.assert_allclose(array.ravel()[:3], first, atol=5e-3 * rms, err_msg=key)

    module = models.build(name, num_classes=classes)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    images = oracle.images(size, 4, seed=7)
    logits = jax.jit(lambda v, x: module.apply(v, x)["logits"])(variables, images)
    expected = np.array(run["eval_logits_after"])
    signal = np.abs(expected[0] - expected[1]).max()
    assert np.abs(logits - expected).max() < 0.1 * signal
