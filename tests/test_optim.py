"""Optimizers against float64 NumPy formulas (PaddlePaddle's)."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import base
from jaxcls import models, optim, trees
from jaxcls.config import block_mults, keywords, stage_mults


def tree(seed, dtype=np.float64):
    rng = np.random.default_rng(seed)

    def layer(*shape):
        return rng.standard_normal(shape).astype(dtype)

    return {
        "stem": {
            "conv1": {"kernel": layer(3, 3, 2, 4)},
            "bn1": {"scale": layer(4), "bias": layer(4)},
        },
        "stage1": {"block1": {"conv1": {"kernel": layer(3, 3, 4, 4)}}},
        "head": {"fc": {"kernel": layer(4, 5), "bias": layer(5)}},
    }


def falling(step):
    return 0.1 / (1 + step)


def make(params, learning_rate=falling, **changes):
    section = dict(base.get_config().optim) | changes
    return optim.make(**section, params=params, learning_rate=learning_rate).tx


def train(changes, steps=6, dtype=np.float64):
    """Returns the parameters after each step; the gradients are `tree(100 + step)`."""
    params = jax.tree.map(jnp.asarray, tree(0, dtype))
    tx = make(params, **changes)
    state = tx.init(params)

    @jax.jit
    def step(params, state, grads, i):
        updates, state = tx.update(grads, state, params, step=i)
        return optax.apply_updates(params, updates), state

    history = []
    for i in range(steps):
        params, state = step(params, state, tree(100 + i, dtype), jnp.int32(i))
        history.append(jax.tree.map(np.asarray, params))
    return history


class Reference:
    """PaddlePaddle's update of one array in float64: p = update(p, g, lr), called once a step.

    Written after the formulas in the docstrings of paddle.optimizer, as loops over arrays.
    """

    def __init__(
        self,
        name,
        *,
        mu=0.9,
        nesterov=False,
        betas=(0.9, 0.999),
        rho=0.9,
        eps=1e-8,
        trust=1e-3,
        l1=0.0,
        k=0,
        alpha=0.5,
    ):
        self.name, self.mu, self.nesterov, self.betas = name, mu, nesterov, betas
        self.rho, self.eps, self.trust, self.l1 = rho, eps, trust, l1
        self.k, self.alpha, self.slow, self.calls = k, alpha, None, 0
        self.a = self.b = 0.0
        self.t = 0

    def adam(self, g):
        b1, b2 = self.betas
        self.t += 1
        self.a = b1 * self.a + (1 - b1) * g
        self.b = b2 * self.b + (1 - b2) * g * g
        return (self.a / (1 - b1**self.t)) / (np.sqrt(self.b / (1 - b2**self.t)) + self.eps)

    def __call__(self, p, g, lr, l2=0.0, decay=0.0):
        if not self.k:
            return self.step(p, g, lr, l2, decay)
        # algorithm 1 of Lookahead's paper
        self.slow = p if self.slow is None else self.slow
        self.calls += 1
        fast = self.step(p, g, lr, l2, decay)
        if self.calls % self.k == 0:
            fast = self.slow = self.slow + self.alpha * (fast - self.slow)
        return fast

    def step(self, p, g, lr, l2, decay):
        g = g + self.l1 * np.sign(p)
        if self.name == "lars":
            # algorithm 1 of its paper, with l2 as beta and trust as eta
            norm = lambda x: np.sqrt((x * x).sum())
            local = self.trust * norm(p) / (norm(g) + l2 * norm(p)) if p.ndim > 1 else 1
            self.a = self.mu * self.a + lr * local * (g + l2 * p)
            return p - self.a
        g = g + l2 * p
        if self.name == "lion":
            b1, b2 = self.betas
            update = np.sign(b1 * self.a + (1 - b1) * g)
            self.a = b2 * self.a + (1 - b2) * g
            return p - lr * (update + decay * p)
        if self.name == "sgd":
            return p - lr * (g + decay * p)
        if self.name == "momentum":
            self.a = self.mu * self.a + g
            v = g + self.mu * self.a if self.nesterov else self.a
            return p - lr * (v + decay * p)
        if self.name in ("adam", "adamw"):
            return p * (1 - lr * decay) - lr * self.adam(g)
        if self.name == "lamb":
            r = self.adam(g) + decay * p
            return p - lr * np.sqrt((p * p).sum()) / np.sqrt((r * r).sum()) * r
        if self.name == "rmsprop":
            self.a = self.rho * self.a + (1 - self.rho) * g * g
            self.b = self.mu * self.b + lr * g / np.sqrt(self.a + self.eps)
            return p - self.b
        if self.name == "adadelta":
            self.a = self.rho * self.a + (1 - self.rho) * g * g
            u = g * np.sqrt((self.b + self.eps) / (self.a + self.eps))
            self.b = self.rho * self.b + (1 - self.rho) * u * u
            return p - lr * (u + decay * p)
        raise AssertionError(self.name)


def reference(name, steps=6, l2=0.0, decay=0.0, factor=None, **keys):
    """Returns the parameters after each step; `factor(path)` scales the learning rate."""
    flat = jax.tree_util.tree_flatten_with_path(tree(0))[0]
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in flat]
    params, structure = jax.tree.flatten(tree(0))
    rules = [Reference(name, **keys) for _ in params]
    history = []
    for i in range(steps):
        grads = jax.tree.leaves(tree(100 + i))
        params = [
            rule(p, g, falling(i) * (factor(n) if factor else 1), l2, decay)
            for rule, p, g, n in zip(rules, params, grads, names)
        ]
        history.append(jax.tree.unflatten(structure, params))
    return history


def compare(got, want, **tolerance):
    for a, b in zip(got, want, strict=True):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


OPTIMIZERS = [
    ({"name": "sgd"}, {}),
    ({"name": "sgd", "l2": 0.02, "weight_decay": 0.03}, {"l2": 0.02, "decay": 0.03}),
    ({"name": "momentum"}, {}),
    ({"name": "momentum", "l2": 0.02}, {"l2": 0.02}),
    ({"name": "momentum", "weight_decay": 0.02}, {"decay": 0.02}),
    (
        {"name": "momentum", "nesterov": True, "momentum": 0.8, "l2": 0.02},
        {"nesterov": True, "mu": 0.8, "l2": 0.02},
    ),
    ({"name": "adam"}, {}),
    ({"name": "adam", "l2": 0.05, "betas": (0.8, 0.95)}, {"l2": 0.05, "betas": (0.8, 0.95)}),
    ({"name": "adamw", "weight_decay": 0.05}, {"decay": 0.05}),
    ({"name": "rmsprop", "l2": 1e-2}, {"l2": 1e-2, "eps": 1e-3}),
    (
        {"name": "rmsprop", "momentum": 0.0, "rho": 0.95, "epsilon": 1e-6},
        {"mu": 0.0, "rho": 0.95, "eps": 1e-6},
    ),
    ({"name": "adadelta", "rho": 0.95, "l2": 0.02}, {"rho": 0.95, "eps": 1e-6, "l2": 0.02}),
    ({"name": "lamb", "weight_decay": 0.1}, {"decay": 0.1}),
    ({"name": "lars", "l2": 0.02}, {"l2": 0.02}),
    (
        {"name": "lars", "momentum": 0.0, "trust_coefficient": 0.1},
        {"mu": 0.0, "trust": 0.1},
    ),
    ({"name": "lion", "weight_decay": 0.05}, {"betas": (0.9, 0.99), "decay": 0.05}),
    ({"name": "lion", "lion_betas": (0.95, 0.98)}, {"betas": (0.95, 0.98)}),
    ({"name": "momentum", "l1": 0.02, "l2": 0.03}, {"l1": 0.02, "l2": 0.03}),
    ({"name": "adamw", "l1": 0.02}, {"l1": 0.02}),
    ({"name": "momentum", "lookahead": 2}, {"k": 2}),
    ({"name": "adam", "lookahead": 5, "lookahead_alpha": 0.8}, {"k": 5, "alpha": 0.8}),
    ({"name": "rmsprop", "lookahead": 3}, {"eps": 1e-3, "k": 3}),
    ({"name": "lars", "l2": 0.02, "lookahead": 2}, {"l2": 0.02, "k": 2}),
]


@pytest.mark.parametrize(("changes", "keys"), OPTIMIZERS)
def test_updates_are_the_formulas(changes, keys):
    want = reference(changes["name"], **keys)
    with jax.enable_x64(True):
        compare(train(changes), want, rtol=1e-9, atol=1e-11)
    # Float32 knows adam's 1 - 0.999 to 1e-5 only: updates of 0.1 are that far off, others less.
    compare(train(changes, dtype=np.float32), want, rtol=0, atol=5e-6)


TORCH = json.loads((Path(__file__).parent / "golden" / "torch_optim.json").read_text())


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("sgd", {"name": "sgd", "l2": 0.02}),
        ("momentum", {"l2": 0.02}),
        ("nesterov", {"nesterov": True, "momentum": 0.8, "l2": 0.02}),
        ("adam", {"name": "adam", "betas": (0.8, 0.95), "l2": 0.05}),
        ("adamw", {"name": "adamw", "weight_decay": 0.05}),
        ("adadelta", {"name": "adadelta", "rho": 0.95, "l2": 0.02}),
    ],
)
def test_updates_are_those_of_torch(name, changes):
    """What torch 2.13 gave in float64; its RMSprop is another than Paddle's."""
    for dtype, tolerance in ((np.float64, 1e-9), (np.float32, 5e-6)):
        with jax.enable_x64(dtype == np.float64):
            params = {"w": jnp.asarray(TORCH["start"], dtype)}
            tx = make(params, **changes)
            state = tx.init(params)
            for i, (g, want) in enumerate(zip(TORCH["gradients"], TORCH["parameters"][name])):
                updates, state = tx.update({"w": jnp.asarray(g, dtype)}, state, params, step=i)
                params = optax.apply_updates(params, updates)
                np.testing.assert_allclose(params["w"], want, rtol=0, atol=tolerance)


def test_lookahead_begins_where_the_parameters_are():
    """Which fine-tuning sets after the state was made."""
    params = tree(0, np.float32)
    tx = make(params, name="sgd", lookahead=1, lookahead_alpha=0.25)
    state = tx.init(jax.tree.map(lambda p: p + 100, params))
    updates, _ = tx.update(params, state, params, step=0)
    jax.tree.map(lambda u, p: np.testing.assert_allclose(u, -0.025 * p, rtol=1e-5), updates, params)


def test_lars_moves_what_is_zero():
    params, grads = {"w": jnp.zeros((2, 3))}, {"w": jnp.ones((2, 3))}
    tx = make(params, name="lars", l2=0.1)
    updates, state = tx.update(grads, tx.init(params), params, step=0)
    np.testing.assert_allclose(updates["w"], -0.1)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, grads), state, params, step=0)
    np.testing.assert_allclose(updates["w"], -0.09, rtol=1e-6)  # the momentum alone


def test_lr_mults_scale_whole_updates():
    def factor(name):
        return {"stem": 0.1, "stage1": 0.5}.get(name.split("/")[0], 1)

    with jax.enable_x64(True):
        for name in ("momentum", "rmsprop", "adamw"):
            got = train({"name": name, "lr_mults": stage_mults(0.1, 0.5)})
            keys = {"eps": 1e-3} if name == "rmsprop" else {}
            compare(got, reference(name, factor=factor, **keys), rtol=1e-9, atol=1e-11)


def test_the_first_rule_of_lr_mults_counts():
    rules = (("^stem/bn1/", 0.0), ("^stem/", 2.0))
    with jax.enable_x64(True):
        got = train({"name": "sgd", "lr_mults": rules})

        def factor(name):
            return 0 if "bn1" in name else 2 if name.startswith("stem") else 1

        compare(got, reference("sgd", factor=factor), rtol=1e-12)


def test_factors_above_1():
    """A new head with ten times the rate of the others, whatever the optimizer."""
    with jax.enable_x64(True):
        for name in ("momentum", "adamw", "lion"):
            got = train({"name": name, "lr_mults": (("^head/", 10.0),)})
            keys = {"betas": (0.9, 0.99)} if name == "lion" else {}
            factor = lambda n: 10 if n.startswith("head") else 1
            compare(got, reference(name, factor=factor, **keys), rtol=1e-9, atol=1e-11)


def test_layer_decay_times_lr_mults():
    def factor(name):
        top = name.split("/")[0]
        return {"stem": 0.7**2 * 0.5, "stage1": 0.7, "head": 3}[top]

    rules = (("^stem/", 0.5), ("^head/", 3.0))
    with jax.enable_x64(True):
        for name in ("momentum", "rmsprop"):
            got = train({"name": name, "layer_decay": 0.7, "lr_mults": rules})
            keys = {"eps": 1e-3} if name == "rmsprop" else {}
            compare(got, reference(name, factor=factor, **keys), rtol=1e-9, atol=1e-11)
    # not scaled is the same program as without rules
    assert list(make(tree(0), layer_decay=1.0).init(tree(0))) == ["momentum", "learning_rate"]


@pytest.mark.parametrize("kind", ["l1", "l2", "weight_decay", "lars"])
def test_no_decay(kind):
    changes = {"name": "momentum", kind: 0.1}
    keys = {kind: 0.1} if kind != "weight_decay" else {"decay": 0.1}
    name = "momentum"
    if kind == "lars":
        changes, keys, name = {"name": "lars", "l2": 0.1}, {"l2": 0.1}, "lars"
    with jax.enable_x64(True):
        got = train(changes | {"no_decay": ("/bias$", "bn1/scale")})[-1]
    decayed, plain = reference(name, **keys)[-1], reference(name)[-1]
    for part, layer, leaf, want in (
        ("stem", "conv1", "kernel", decayed),
        ("stem", "bn1", "scale", plain),
        ("stem", "bn1", "bias", plain),
        ("head", "fc", "kernel", decayed),
        ("head", "fc", "bias", plain),
    ):
        np.testing.assert_allclose(got[part][layer][leaf], want[part][layer][leaf], rtol=1e-9)
    assert np.abs(decayed["head"]["fc"]["bias"] - plain["head"]["fc"]["bias"]).max() > 1e-4


@pytest.mark.parametrize("slow", [0, 4])
@pytest.mark.parametrize("name", list(optim.OPTIMIZERS))
def test_frozen_parameters_stay_and_have_no_state(name, slow):
    decay = "l2" if "l2" in keywords(optim.OPTIMIZERS[name]) else "weight_decay"
    changes = {"name": name, "frozen": ("^stem/",), decay: 0.1, "lr_mults": (("^stage1", 0.5),)}
    changes |= {"l1": 0.05, "lookahead": slow}
    frozen, free = train(changes), train(changes | {"frozen": ()})
    start = tree(0, np.float32)
    for after, after_free in zip(frozen, free):
        jax.tree.map(np.testing.assert_array_equal, after["stem"], start["stem"])
        for part in ("stage1", "head"):  # the others go the same way
            compare([after[part]], [after_free[part]], rtol=1e-6)
    assert np.abs(free[0]["stem"]["bn1"]["scale"] - start["stem"]["bn1"]["scale"]).max() > 1e-4

    def size(state):
        return sum(x.size for x in jax.tree.leaves(state) if x.ndim)

    full = size(make(start, **changes | {"frozen": ()}).init(start))
    copies = full / size(start)
    assert copies == {"sgd": 0, "momentum": 1, "lars": 1, "lion": 1}.get(name, 2) + bool(slow)
    trained = size({k: v for k, v in start.items() if k != "stem"})
    assert size(make(start, **changes).init(start)) == copies * trained


def test_a_gradient_that_is_not_a_number_does_not_reach_the_frozen():
    params = tree(0, np.float32)
    tx = make(params, frozen=("^stem/",), clip_norm=1.0)
    grads = tree(1, np.float32)
    grads["stem"] = jax.tree.map(lambda x: np.full_like(x, np.nan), grads["stem"])
    updates, _ = tx.update(grads, tx.init(params), params, step=0)
    assert all((u == 0).all() for u in jax.tree.leaves(updates["stem"]))
    assert all(np.isfinite(u).all() for u in jax.tree.leaves(updates))


@pytest.mark.parametrize("frozen", [(), ("^stem/",)])
def test_clipping_by_the_norm_of_all_that_is_trained(frozen):
    params = tree(0)
    grads = tree(1)
    with jax.enable_x64(True):
        trained = [grads[k] for k in grads if not (frozen and k == "stem")]
        norm = np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(trained)))
        for limit in (0.5 * norm, 2 * norm):
            changes = {"name": "sgd", "clip_norm": float(limit), "l2": 0.1, "frozen": frozen}
            tx = make(params, lambda step: 1.0, **changes)
            updates, _ = tx.update(grads, tx.init(params), params, step=0)
            scale = min(1.0, limit / norm)  # the gradient is clipped before L2 is added
            want = -(scale * grads["head"]["fc"]["kernel"] + 0.1 * params["head"]["fc"]["kernel"])
            np.testing.assert_allclose(updates["head"]["fc"]["kernel"], want, rtol=1e-12)


@pytest.mark.parametrize("name", list(optim.OPTIMIZERS))
def test_the_rate_is_that_of_the_given_step(name):
    """A skipped step keeps the old state; the next update has the rate of its own step."""
    params = tree(0, np.float32)
    tx = make(params, name=name)
    state = tx.init(params)
    first = tx.update(tree(1, np.float32), state, params, step=3)[0]
    later = tx.update(tree(1, np.float32), state, params, step=7)[0]
    compare([first], [jax.tree.map(lambda u: u * falling(3) / falling(7), later)], rtol=1e-6)


@pytest.mark.parametrize("name", list(optim.OPTIMIZERS))
@pytest.mark.parametrize("frozen", [(), ("^stem/",)])
def test_half_precision_parameters_have_float32_state(name, frozen):
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float16), tree(0))
    tx = make(jax.eval_shape(lambda: params), name=name, frozen=frozen, l1=0.1, lookahead=2)
    state = tx.init(params)
    updates, after = tx.update(params, state, params, step=0)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    for x in (*jax.tree.leaves(state), *jax.tree.leaves(after), *jax.tree.leaves(updates)):
        assert x.dtype in (jnp.float32, jnp.int32)
    assert all(
        x.dtype == jnp.float16 for x in jax.tree.leaves(optax.apply_updates(params, updates))
    )


def test_parts_of_the_state_have_names():
    params = tree(0, np.float32)
    state = make(params, l2=0.1, clip_norm=1.0, frozen=("bias$",)).init(params)
    assert list(state) == ["clip_norm", "l2", "momentum", "learning_rate", "frozen"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "momentun"}, "unknown config.optim.name 'momentun': did you mean momentum"),
        ({"name": "adam", "momentum": 0.8}, r"config\.optim\.momentum: not used by 'adam'"),
        ({"name": "sgd", "nesterov": True}, r"config\.optim\.nesterov: not used by 'sgd'"),
        ({"betas": (0.8, 0.9)}, r"config\.optim\.betas: not used by 'momentum'"),
        ({"name": "adam", "weight_decay": 0.1}, r"weight_decay: not used by 'adam'"),
        ({"name": "adamw", "l2": 0.1}, r"l2: not used by 'adamw', which takes .*weight_decay"),
        ({"name": "rmsprop", "weight_decay": 0.1}, r"weight_decay: not used by 'rmsprop'"),
        ({"momentum": 1.0}, r"config\.optim\.momentum = 1\.0"),
        ({"name": "adam", "betas": (0.9,)}, r"config\.optim\.betas = \(0\.9,\)"),
        ({"name": "adam", "betas": (0.9, 1.0)}, r"config\.optim\.betas = \(0\.9, 1\.0\)"),
        ({"name": "rmsprop", "rho": -0.1}, r"config\.optim\.rho = -0\.1"),
        ({"name": "adam", "epsilon": 0.0}, r"config\.optim\.epsilon = 0\.0"),
        ({"l2": -1e-4}, r"config\.optim\.l2 = -0\.0001"),
        ({"weight_decay": -1e-4}, r"config\.optim\.weight_decay = -0\.0001"),
        ({"name": "lars", "trust_coefficient": 0.0}, r"config\.optim\.trust_coefficient = 0\.0"),
        ({"name": "lars", "l2": 1.0}, r"config\.optim\.l2 = 1\.0"),
        ({"name": "lars", "weight_decay": 0.1}, r"weight_decay: not used by 'lars'"),
        (
            {"name": "lion", "l2": 0.1},
            r"l2: not used by 'lion', which takes lion_betas, weight_dec",
        ),
        ({"name": "lion", "lion_betas": (0.9,)}, r"config\.optim\.lion_betas = \(0\.9,\)"),
        ({"l1": -0.1}, r"config\.optim\.l1 = -0\.1"),
        ({"lookahead": -1}, r"config\.optim\.lookahead = -1"),
        ({"lookahead": 5, "lookahead_alpha": 0.0}, r"config\.optim\.lookahead_alpha = 0\.0"),
        ({"lookahead_alpha": 0.8}, r"0\.8 does nothing without config\.optim\.lookahead"),
        ({"layer_decay": 0.0}, r"config\.optim\.layer_decay = 0\.0: write a factor above 0"),
        ({"layer_decay": 1.5}, r"config\.optim\.layer_decay = 1\.5"),
        (
            {"layer_decay": 0.7, "frozen": ("^stem/", "^stage1/")},
            r"config\.optim\.layer_decay = 0\.7 does nothing: config\.optim\.frozen leaves",
        ),
        ({"clip_norm": -1.0}, r"config\.optim\.clip_norm = -1\.0"),
        ({"accumulate_steps": 0}, r"config\.optim\.accumulate_steps = 0"),
        ({"lr_mults": ("^stem/", 0.1)}, r"config\.optim\.lr_mults = .*: write pairs"),
        ({"lr_mults": (("^stem/", -0.1),)}, r"config\.optim\.lr_mults = .*: write pairs"),
        ({"lr_mults": (("^stme/", 0.1),)}, r"config\.optim\.lr_mults: '\^stme/' matches no"),
        ({"no_decay": ("gamma",)}, r"config\.optim\.no_decay: 'gamma' matches no parameter"),
        ({"frozen": ("^stage7/",)}, r"config\.optim\.frozen: .* begin with .*stem"),
    ],
)
def test_bad_optimizers(changes, message):
    with pytest.raises(ValueError, match=message):
        make(tree(0, np.float32), **changes)


def test_a_skipped_step_leaves_no_trace_in_lookahead():
    """The state before it is kept, so that the next update is the k-th of those that were made."""
    params = tree(0, np.float32)
    tx = make(params, name="sgd", lookahead=2)
    after, state = params, tx.init(params)
    for step in (0, 3):  # steps 1 and 2 were skipped
        updates, state = tx.update(tree(step, np.float32), state, after, step=step)
        after = optax.apply_updates(after, updates)
    want = jax.tree.map(
        lambda p, a, b: p - 0.5 * (falling(0) * a + falling(3) * b),
        *(tree(s, np.float32) for s in (0, 0, 3)),
    )
    compare([after], [want], rtol=1e-5)
    compare([state["lookahead"].slow], [want], rtol=1e-5)


FAMILIES = {  # a name of each family: the number of blocks in its stages
    "AlexNet": (1, 3), "CSPDarkNet53": (3, 4, 10, 10, 6), "DLA34": (1, 2, 2, 1),
    "DarkNet53": (1, 2, 8, 8, 4), "DenseNet121": (6, 13, 25, 17), "DPN68": (3, 4, 12, 3),
    "EfficientNetB0_small": (1, 2, 2, 6, 5), "GoogLeNet": (2, 5, 2), "HRNet_W18_C": (4, 1, 4, 3),
    "HarDNet85": (1, 2, 2, 1), "InceptionV3": (3, 5, 3), "InceptionV4": (4, 8, 4),
    "MobileNetV1_x0_25": (1, 2, 2, 6, 2), "MobileNetV2_x0_25": (1, 2, 3, 7, 4),
    "MobileNetV3_large_x0_35": (1, 2, 3, 6, 3), "PPHGNetV2_B4": (1, 1, 3, 1),
    "PeleeNet": (4, 5, 9, 7), "RedNet26": (1, 2, 4, 1), "Res2Net50_26w_4s": (3, 4, 6, 3),
    "ResNeSt50": (3, 4, 6, 3), "ResNet50_vd": (3, 4, 6, 3), "ShuffleNetV2_x0_25": (4, 8, 4),
    "DeiT_tiny_patch16_224": (3, 3, 3, 3), "SwinTransformer_tiny_patch4_window7_224": (2, 2, 6, 2),
    "SwinTransformerV2_tiny_patch4_window8_256": (2, 2, 6, 2), "alt_gvt_small": (2, 2, 10, 4),
    "TNT_small": (3, 3, 3, 3), "LeViT_128S": (2, 4, 5), "PVT_V2_B0": (2, 2, 2, 2),
    "CSWinTransformer_tiny_224": (1, 2, 21, 1), "CvT_13_224": (1, 2, 10),
    "MOCOV3_vit_small": (3, 3, 3, 3), "MobileViT_XXS": (1, 3, 2, 2, 2),
    "SqueezeNet1_1": (2, 2, 4), "VGG11": (1, 1, 2, 2, 2), "Xception41": (1, 1, 9, 2),
    "EfficientNetV2_S": (2, 4, 4, 15, 15), "MixNet_S": (1, 2, 4, 6, 3),
    "ReXNet_1_0": (1, 2, 2, 6, 5), "GhostNet_x0_5": (1, 2, 2, 6, 5),
    "MobileNeXt_x0_35": (2, 3, 7, 8), "MobileNetV4_conv_small": (2, 2, 6, 6),
    "PPLCNet_x0_25": (1, 2, 2, 6, 2), "PPLCNetV2_small": (2, 2, 4, 2), "ESNet_x0_25": (3, 7, 3),
    "MicroNet_M0": (1, 1, 2, 3), "RepVGG_A0": (2, 4, 14, 1), "RegNetX_200MF": (1, 1, 4, 7),
    "FasterNet_T0": (1, 2, 8, 2), "StarNet_S1": (2, 2, 8, 3),
}  # fmt: skip


@pytest.mark.ci
@pytest.mark.parametrize("name", FAMILIES)
def test_every_network_takes_factors_by_stages_groups_and_layers(name):
    spec, module = models.MODELS[name], models.build(name)
    image = jax.ShapeDtypeStruct((1, spec.size, spec.size, 3), jnp.float32)
    params = jax.eval_shape(module.init, jax.random.key(0), image)["params"]
    blocks = FAMILIES[name]
    order = [f"stage{i}/block{j}/" for i, n in enumerate(blocks, 1) for j in range(1, n + 1)]
    order = [*(["stem/"] if "stem" in params else []), *order]
    order += ["neck/"] if "neck" in params else []

    def factors(**changes):
        section = dict(base.get_config().optim) | changes
        made = optim.make(**section, params=params, learning_rate=falling).factors
        of = {}
        for path, factor in zip(trees.paths(params), jax.tree.leaves(made)):
            layer = next((layer for layer in order if path.startswith(layer)), "head")
            of.setdefault(layer, set()).add(round(factor, 9))
        assert of.keys() == {"head", *order}
        assert all(len(values) == 1 for values in of.values())
        return [of[layer].pop() for layer in [*order, "head"]]

    n = len(order)
    np.testing.assert_allclose(factors(layer_decay=0.9), 0.9 ** np.arange(n, -1, -1), atol=1e-8)
    lists = {2: (0.1, 0.2, 0.3), 3: (0.1, 0.1, 0.2, 0.3), 4: (0.1, 0.1, 0.2, 0.2, 0.3)}
    lists[5] = (0.1, 0.1, 0.1, 0.2, 0.2, 0.3)
    stages = [*lists[len(blocks)]]
    stages = stages if "stem" in params else [None, *stages[1:]]
    want = [factor for factor, n in zip(stages, (1, *blocks)) for _ in range(n) if factor]
    want += [1.0] * ("neck" in params) + [1.0]
    assert factors(lr_mults=stage_mults(*stages)) == want
    groups = (0.25, 0.25, 0.5, 0.5, 0.75)[: -(-sum(blocks) // 3)]
    want = [groups[min(i // 3, len(groups) - 1)] for i in range(sum(blocks))]
    want = [groups[0]] * ("stem" in params) + want + [groups[-1]] * ("neck" in params) + [1.0]
    assert factors(lr_mults=block_mults(*groups, blocks=blocks)) == want
