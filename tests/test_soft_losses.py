"""Losses against a teacher: the papers' formulas in float64 NumPy, and PaddleClas's own answers."""

import itertools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcls import losses
from jaxcls import soft_losses as soft

ORACLE = Path(__file__).parents[1] / ".." / "shared" / "oracle" / "losses.json"
B, K = 6, 5


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def kl(p, q):
    return sum(a * (np.log(a) - np.log(b)) for a, b in zip(p, q))


def rows(f):
    """Returns the mean over images of f(student's logits, teacher's logits, label)."""
    return lambda s, t, y: np.mean([f(*row) for row in zip(s, t, y)])


def numpy_js(s, t, y):
    p, q = softmax(t), softmax(s)
    return kl(p, (p + q) / 2) / 2 + kl(q, (p + q) / 2) / 2


def numpy_dkd(s, t, y, temperature=3.0, target=1.5, non_target=4.0):
    p, q = softmax(t / temperature), softmax(s / temperature)
    tckd = kl([p[y], 1 - p[y]], [q[y], 1 - q[y]])
    others = [k for k in range(len(s)) if k != y]
    nckd = kl(p[others] / p[others].sum(), q[others] / q[others].sum())
    return temperature**2 * (target * tckd + non_target * nckd)


def numpy_wsl(s, t, y, temperature=2.0):
    student, teacher = -np.log(softmax(s)[y]), -np.log(softmax(t)[y])
    p, q = softmax(t / temperature), softmax(s / temperature)
    focus = 1 - np.exp(-student / teacher)
    return temperature**2 * focus * -(p * np.log(q)).sum()


def numpy_skd(s, t, y, temperature=2.0):
    p, q = (softmax(2.5 * (x - x.mean()) / x.std() / temperature) for x in (t, s))
    return -(p * np.log(q)).sum()


def numpy_dist(s, t, y, temperature=2.0, group=3):
    p, q = softmax(t / temperature), softmax(s / temperature)
    r = lambda a, b: np.corrcoef(a, b)[0, 1]
    inter = 1 - np.mean([r(a, b) for a, b in zip(q, p)])
    intra = 1 - np.mean([
        r(q[g : g + group, k], p[g : g + group, k])
        for g in range(0, B, group) for k in range(K)
    ])  # fmt: skip
    return temperature**2 * (0.5 * inter + 2.0 * intra)


def huber(x):
    return np.where(np.abs(x) < 1, x**2 / 2, np.abs(x) - 0.5)


def numpy_rkd_distance(s, t, y, group=3):
    found = []
    for g in range(0, B, group):
        relative = []
        for x in (s[g : g + group], t[g : g + group]):
            d = np.array([[np.linalg.norm(a - b) for b in x] for a in x])
            relative.append(d / d.mean())
        found.append(huber(relative[0] - relative[1]).mean())
    return np.mean(found)


def numpy_rkd_angle(s, t, y):
    def cosine(x, i, j, k):
        a, b = x[j] - x[i], x[k] - x[i]
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b) if i not in (j, k) else 0.0

    triples = [*itertools.product(range(len(s)), repeat=3)]
    return np.mean([huber(cosine(s, *n) - cosine(t, *n)) for n in triples])


def numpy_attention(s, t):
    def attended(x):  # [H, W, C]
        a = (x**2).sum(-1).ravel()
        return a / np.sqrt((a**2).sum())

    return np.mean([((attended(a) - attended(b)) ** 2).sum() / 2 for a, b in zip(s, t)])


LOSSES = {  # ours, in NumPy
    "soft_ce": (
        lambda s, t, y: soft.soft_cross_entropy(s, t).mean(),
        rows(lambda s, t, y: -(softmax(t) * np.log(softmax(s))).sum()),
    ),
    "kl": (
        lambda s, t, y: soft.kl(s, t, 4.0).mean(),
        rows(lambda s, t, y: 16 * kl(softmax(t / 4), softmax(s / 4))),
    ),
    "symmetric_kl": (
        lambda s, t, y: soft.symmetric_kl(s, t).mean(),
        rows(lambda s, t, y: (kl(softmax(t), softmax(s)) + kl(softmax(s), softmax(t))) / 2),
    ),
    "js": (lambda s, t, y: soft.jensen_shannon(s, t).mean(), rows(numpy_js)),
    "dkd": (
        lambda s, t, y: soft.decoupled_kl(
            s, t, y, temperature=3.0, target=1.5, non_target=4.0
        ).mean(),
        rows(numpy_dkd),
    ),
    "wsl": (
        lambda s, t, y: soft.weighted_soft_labels(s, t, y, temperature=2.0).mean(),
        rows(numpy_wsl),
    ),
    "skd": (
        lambda s, t, y: soft.soft_cross_entropy(
            soft.spherical(s, 2.5), soft.spherical(t, 2.5), 2.0
        ).mean(),
        rows(numpy_skd),
    ),
    "dist": (
        lambda s, t, y: soft.correlation(s, t, temperature=2.0, inter=0.5, intra=2.0, group=3),
        numpy_dist,
    ),
    "l2": (
        lambda s, t, y: soft.mean_square(s, t).mean(),
        lambda s, t, y: ((s - t) ** 2).mean(),
    ),
    "rkd_distance": (
        lambda s, t, y: soft.relational_distance(s, t, group=3),
        numpy_rkd_distance,
    ),
    "rkd_angle": (lambda s, t, y: soft.relational_angle(s, t), numpy_rkd_angle),
    "attention": (
        lambda s, t, y: soft.attention(s.reshape(B, 1, K, 1), t.reshape(B, 1, K, 1)).mean(),
        lambda s, t, y: numpy_attention(s.reshape(B, 1, K, 1), t.reshape(B, 1, K, 1)),
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient_are_those_of_float64(name):
    ours, formula = LOSSES[name]
    rng = np.random.default_rng(0)
    s, t = (2 * rng.standard_normal((B, K)) for _ in range(2))
    y = rng.integers(0, K, B)
    value, gradient = jax.jit(jax.value_and_grad(lambda x: ours(x, t.astype(np.float32), y)))(
        jnp.asarray(s, jnp.float32)
    )
    np.testing.assert_allclose(value, formula(s, t, y), rtol=1e-5)
    if name == "wsl":  # its weight has no gradient
        weight = [1 - np.exp(np.log(softmax(a)[k]) / -np.log(softmax(b)[k]))
                  for a, b, k in zip(s, t, y)]  # fmt: skip
        formula = lambda x, t, y: np.mean([
            4 * w * -(softmax(b / 2) * np.log(softmax(a / 2))).sum()
            for w, a, b in zip(weight, x, t)
        ])  # fmt: skip
    want = np.zeros_like(s)
    for i in np.ndindex(*s.shape):
        step = np.zeros_like(s)
        step[i] = 1e-5
        want[i] = (formula(s + step, t, y) - formula(s - step, t, y)) / 2e-5
    np.testing.assert_allclose(gradient, want, atol=2e-5 * np.abs(want).max() + 1e-9)


@pytest.mark.ci
def test_they_stay_finite_where_one_is_certain():
    """Logits that differ by 200: a probability of 0 in float32, also of half precision."""
    certain = jnp.asarray(200 * np.eye(K)[[0, 1, 2, 3, 4, 0]], jnp.bfloat16)
    other, y = certain[::-1], np.array([0, 1, 2, 0, 1, 2])
    for name, (ours, _) in LOSSES.items():
        for a, b in ((certain, other), (other, certain), (certain, certain)):
            value, gradient = jax.value_and_grad(ours)(a, b, y)
            assert value.dtype == jnp.float32, name
            assert np.isfinite(value), name
            assert np.isfinite(np.asarray(gradient, np.float32)).all(), name
    same = jnp.asarray(np.random.default_rng(1).standard_normal((B, K)), jnp.float32)
    for name in LOSSES.keys() - {"soft_ce", "skd", "wsl"}:  # these have the teacher's entropy
        assert abs(LOSSES[name][0](same, same, y)) < 1e-4, name  # 1e-8 beside tiny norms, in dist
    assert 0.69 < soft.jensen_shannon(certain, other)[1] <= np.log(np.float32(2))


def test_channels_of_attention_may_differ():
    rng = np.random.default_rng(2)
    s, t = (rng.standard_normal((3, 4, 4, c)) for c in (2, 7))
    got = soft.attention(s.astype(np.float32), t.astype(np.float32)).mean()
    np.testing.assert_allclose(got, numpy_attention(s, t), rtol=1e-5)


# What PaddleClas calls them -> ours
OF_PADDLECLAS = {
    "soft_ce": LOSSES["soft_ce"][0],
    "dml (": LOSSES["symmetric_kl"][0],
    "dml sum": lambda s, t, y: s.shape[-1] * soft.symmetric_kl(s, t).mean(),
    "kl temperature 4": LOSSES["kl"][0],
    "dkd": lambda s, t, y: soft.decoupled_kl(
        s, t, y, temperature=4.0, target=1.0, non_target=8.0
    ).mean(),
    "dist": lambda s, t, y: soft.correlation(s, t, temperature=1.0, inter=2.0, intra=2.0),
    "skd": lambda s, t, y: (
        0.9 * 4 * soft.soft_cross_entropy(soft.spherical(s, 2.0), soft.spherical(t, 2.0), 2.0)
        + 0.1 * losses.cross_entropy(soft.spherical(s, 2.0), y)
    ).mean(),
    "wsl": LOSSES["wsl"][0],
    "l2": LOSSES["l2"][0],
    "rkd angle": lambda s, t, y: soft.relational_angle(s.reshape(16, -1), t.reshape(16, -1)),
    "rkd distance": lambda s, t, y: soft.relational_distance(s.mean((2, 3)), t.mean((2, 3))),
}
# of seed 0 and K = 10: the value, the root mean square of the gradient and its first entry
RECORDED = {
    "soft_ce": (4.917090892791748, 0.017115082, -0.0025782245),
    "dml (": (3.6959621906280518, 0.017148703, -0.0037713395),
    "kl temperature 4": (6.728702068328857, 0.022892776, -0.002778437),
    "dkd": (53.368431091308594, 0.1894778, -0.034658208),
    "dist": (4.516368865966797, 0.014510106, 0.0016305366),
    "skd": (10.539749145507812, 0.0096740249, -0.0025562951),
    "wsl": (9.319805145263672, 0.015454938, -0.0031357827),
    "rkd angle": (0.004479657858610153, 2.2777594e-05, 1.7911027e-05),
    "rkd distance": (0.052244752645492554, 0.00035488565, 8.9036708e-05),
}


def paddleclas(name, seed, classes):
    """Returns value and gradient of ours for what PaddleClas was given."""
    rng = lambda i: np.random.default_rng(1000 * seed + i)
    s, t = ((3 * rng(i).standard_normal((16, classes))).astype(np.float32) for i in (0, 1))
    if name.startswith("rkd"):
        s, t = (rng(i).standard_normal((16, 8, 4, 4)).astype(np.float32) for i in (4, 5))
    y = rng(2).integers(0, classes, 16)
    value, gradient = jax.value_and_grad(lambda x: OF_PADDLECLAS[name](x, t, y))(jnp.asarray(s))
    gradient = np.asarray(gradient, np.float64)
    return float(value), [np.sqrt((gradient**2).mean()), *gradient.ravel()[:3]]


@pytest.mark.parametrize("name", RECORDED)
def test_paddleclas_recorded(name):
    want, *of_gradient = RECORDED[name]
    value, gradient = paddleclas(name, 0, 10)
    assert value == pytest.approx(want, rel=1e-5)
    np.testing.assert_allclose(gradient[:2], of_gradient, atol=1e-5 * of_gradient[0])


@pytest.mark.ci
@pytest.mark.parametrize("name", OF_PADDLECLAS)
def test_paddleclas(name):
    if not ORACLE.exists():
        pytest.skip("no reference data")
    of_it = [r for r in json.loads(ORACLE.read_text()) if r["loss"].startswith(name)]
    assert len(of_it) == 4
    for row in of_it:
        value, gradient = paddleclas(name, row["seed"], row["K"])
        assert value == pytest.approx(row["value"], rel=1e-5)
        np.testing.assert_allclose(gradient, row["gradient"], atol=1e-5 * row["gradient"][0])
