"""Tensor factorization: updates, bound, truth, gaps and constants, cost.

The updates are the textbook's, the bound rises, the truth is found, gaps and constants do no
harm, and memory grows linearly.
"""

import itertools
import json

import numpy as np
import pandas as pd
import pytest
from scipy.stats import multivariate_normal
from sklearn.base import clone

from radgen.conditions.annotation import GENE_SETS, annotate
from radgen.conditions.btf import BayesianTensorFactorization
from radgen.conditions.comparison import (
    agreement_rows,
    cohort_tensor,
    compare_factors,
    comparison_rows,
)
from radgen.conditions.factorizations import METHODS, make_factorization
from radgen.conditions.measures import (
    closest_component,
    held_out_reconstruction,
    hide,
    r2_of,
    recovery,
    stability,
    timed_fit,
)
from radgen.conditions.posterior import (
    Posterior,
    blocks_of,
    gather_terms,
    precision_groups,
    starting_point,
)
from radgen.conditions.tensors import center_and_scale, from_flat, omics_tensor, on_scale
from radgen.core.paths import RadgenError
from radgen.core.results import Rows
from radgen.phantom.cohort import make_phantom
from radgen.phantom.genome import multiomic

BTF = BayesianTensorFactorization


def toy(n=80, n_genes=25, n_omics=3, R=3, noise=0.3, missing=0.1, seed=0):
    "A CP tensor with noise and gaps: the tensor, the factors, the noiseless tensor."
    rng = np.random.default_rng(seed)
    u, v, w = (rng.standard_normal((k, R)) for k in (n, n_genes, n_omics))
    clean = np.einsum('nr,gr,or->ngo', u, v, w)
    X = clean + noise * rng.standard_normal(clean.shape)
    return np.where(rng.random(X.shape) < missing, np.nan, X), (u, v, w), clean


def posterior(X, R=4, start=0, scale='omic'):
    mean, sd, _ = center_and_scale(X, scale, range(X.shape[1]), range(X.shape[2]))
    blocks = blocks_of(X, mean, sd)
    return Posterior(blocks, *starting_point(blocks, X.shape, R, start))


@pytest.mark.parametrize(
    'missing, slab, scale, start',
    [(0, False, 'omic', 0), (0, True, 'gene', 1), (0.1, False, 'omic', 1), (0.3, True, 'gene', 0)],
)
def test_bound_never_falls(missing, slab, scale, start):
    X, *_ = toy(missing=missing)
    if slab:
        X[:20, :, 1] = np.nan
    p = posterior(X, 6, start, scale)
    bounds = np.array([p.sweep() for _ in range(80)])
    assert (np.diff(bounds) > -1e-6).all(), np.diff(bounds).min()
    assert bounds[-1] > bounds[0] + 0.1


def test_bound_is_below_the_evidence():
    """With one component and much data the bound comes close to the evidence and stays below.

    All but the scores are pinned. The evidence is the likelihood at the truth, scores integrated.
    """
    rng = np.random.default_rng(0)
    N, G, τ = 400, 60, 4.0
    v, w = rng.standard_normal(G), np.array([1.0, 0.5])
    X = np.einsum('n,g,o->ngo', rng.standard_normal(N), v, w) + rng.standard_normal(
        (N, G, 2)
    ) / np.sqrt(τ)
    a = np.einsum('g,o->go', v, w).ravel()
    evidence = (
        multivariate_normal(np.zeros(2 * G), np.outer(a, a) + np.eye(2 * G) / τ)
        .logpdf(X.reshape(N, -1))
        .sum()
        / X.size
    )
    blocks = blocks_of(X, np.zeros((G, 2)), np.ones((G, 2)))
    p = Posterior(blocks, *starting_point(blocks, X.shape, 1))
    bound = [p.sweep() for _ in range(60)][-1]
    assert evidence - 0.02 < bound < evidence, (bound, evidence)


@pytest.mark.parametrize('scattered', [False, True])
def test_patterns_share_without_changing_anything(scattered):
    "Shared precisions give the same answer as a mask that says so entry by entry."
    X, *_ = toy(missing=0)
    X[:15, :, 2] = np.nan
    X[15:20, :, 0] = np.nan
    if scattered:
        X[30, 4, 1] = np.nan
    m = BTF(3, n_starts=1, max_iter=25).fit(X)
    mean, sd = m.mean_, m.scale_
    blocks = blocks_of(X, mean, sd)
    full = [
        type(b)(
            np.arange(80),
            b.cols,
            np.zeros((80, len(b.cols)), np.float32),
            np.zeros((80, len(b.cols)), np.float32),
        )
        for b in blocks
    ]
    for f, b in zip(full, blocks):
        f.x[b.rows], f.mask[b.rows] = b.x, 1 if b.mask is None else b.mask
    shared, apart = precision_groups(blocks, 0, 80), precision_groups(full, 0, 80)
    assert (len(shared[1]) == 3) != scattered and len(apart[1]) == 80
    a, b = (
        gather_terms(k, 0, m.V_, m.W_, m.precision_, np.ones(3), s)
        for k, s in ((blocks, shared), (full, apart))
    )
    np.testing.assert_allclose(a[0][shared[0]], b[0], rtol=1e-4)
    np.testing.assert_allclose(a[1], b[1], rtol=1e-3, atol=1e-3)


def test_patients_whose_missing_omics_all_differ():
    "As many precisions as patients, in another order."
    X, *_ = toy(missing=0)
    m = BTF(2, n_starts=1, max_iter=20).fit(X)
    new = X[:4].copy()
    for i, o in (1, 2), (2, 0), (3, 1):
        new[i, :, o] = np.nan
    together = m.transform(new)
    alone = np.concatenate([m.transform(new[i : i + 1]) for i in range(4)])
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)


def test_true_factors_are_found_uniquely():
    "Not the span alone: a CP decomposition is unique, so each component is one true component."
    X, (u, v, w), _ = toy(150, 40)
    m = BTF('auto', max_components=8).fit(X)
    assert m.n_components_ == 3
    for truth, learnt in (
        (u, m.transform(X)),
        (v, m.loadings_.to_numpy()),
        (w / m.scale_.max(0)[:, None], m.omic_weights_.to_numpy()),
    ):
        r = np.abs(truth.T @ learnt) / np.outer(
            np.linalg.norm(truth, axis=0), np.linalg.norm(learnt, axis=0)
        )
        assert (r.max(1) > 0.93).all(), r


def test_relevance_switches_off_what_is_not_there():
    X, *_ = toy(150, 40)
    m = BTF(10).fit(X)
    assert m.n_components_ == 10 and (m.explained_ > 1e-5).sum() == 3
    assert (m.transform(X)[:, 3:] == 0).all() or np.abs(m.transform(X)[:, 3:]).max() < 1e-6
    assert m.relevance_.iloc[:3].min() > 100 * m.relevance_.iloc[3:].max()
    noise = BTF('auto', max_components=6).fit(
        np.random.default_rng(0).standard_normal((150, 40, 3))
    )
    assert noise.n_components_ == 1 and noise.explained_.iloc[0] < 0.02


def test_noise_is_estimated():
    X, *_ = toy(200, 40, noise=np.array([0.2, 0.5, 1.0]))
    m = BTF(3).fit(X)
    np.testing.assert_allclose(
        np.sqrt(m.noise_) * np.array([s[s > 0][0] for s in m.scale_.T]), [0.2, 0.5, 1.0], rtol=0.05
    )


def test_uncertainty_is_calibrated():
    X, (u, *_), _ = toy(400, 12, noise=1.5, missing=0.4)
    train, new = slice(0, 300), slice(300, 400)
    m = BTF(3).fit(X[train])
    fit, sd = m.transform(X[new], return_std=True)
    a = m.transform(X[train])
    turn = np.linalg.lstsq(a, u[train], rcond=None)[0]
    match = np.abs(turn).argmax(1)
    z = (fit * turn[np.arange(3), match] - u[new][:, match]) / (
        sd * np.abs(turn[np.arange(3), match])
    )
    assert 0.8 < z.std() < 1.25, z.std()


def test_new_patients_change_nothing_for_each_other():
    X, *_ = toy()
    X[60:, :, 1] = np.nan
    m = BTF(3, max_iter=40).fit(X[:60])
    together = m.transform(X[60:])
    np.testing.assert_allclose(together[5], m.transform(X[65:66])[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        m.inverse_transform(together)[5], m.reconstruct(X[65:66])[0], rtol=1e-4, atol=1e-4
    )


def test_order_of_patients_and_units_do_not_matter():
    X, *_ = toy()
    m, shuffled = BTF(3).fit(X), BTF(3).fit(X[::-1])
    np.testing.assert_allclose(m.explained_, shuffled.explained_, rtol=0.02)
    scaled = BTF(3).fit(X * np.array([1.0, 100.0, 0.01]) + np.array([0, 5.0, -3]))
    np.testing.assert_allclose(
        m.transform(X),
        scaled.transform(X * np.array([1.0, 100.0, 0.01]) + np.array([0, 5.0, -3])),
        atol=0.01,
    )


def test_deterministic_and_clonable_and_stored():
    X, *_ = toy()
    a, b = (
        BTF(3, n_starts=2, seed=3).fit(X, genes=[f'G{i}' for i in range(25)], omics=list('abc'))
        for _ in range(2)
    )
    assert (a.transform(X) == b.transform(X)).all() and a.elbo_ == b.elbo_ and len(a.bounds_) == 2
    assert clone(a).get_params() == a.get_params()
    arrays, facts = a.state()
    again = BTF.from_state(arrays, json.loads(json.dumps(facts)))
    for f in 'transform', 'reconstruct', 'score':
        np.testing.assert_allclose(getattr(again, f)(X), getattr(a, f)(X), rtol=1e-6)
    (
        pd.testing.assert_frame_equal(again.loadings_, a.loadings_),
        pd.testing.assert_series_equal(again.explained_, a.explained_),
    )


def test_score_is_the_likelihood_when_loadings_are_sure():
    X, *_ = toy(300, 10, missing=0)
    m = BTF(2, max_iter=60).fit(X)
    i = np.tril_indices(2)
    m.V_.moment, m.W_.moment = (f.mean[:, i[0]] * f.mean[:, i[1]] for f in (m.V_, m.W_))
    z, a = (
        ((X - m.mean_) / m.scale_)[:40],
        np.einsum('gr,or->gor', m.V_.mean, m.W_.mean).reshape(-1, 2),
    )
    cov = a @ a.T + np.diag(np.tile(1 / m.precision_, 10))
    exact = multivariate_normal(np.zeros(30), cov).logpdf(z.reshape(40, -1)).sum() / z.size
    assert m.score(X[:40]) == pytest.approx(exact, abs=1e-4)


def test_constants_and_absent_genes():
    X, *_ = toy()
    X[:, 3], X[:, 4, 0], X[:, 5, 1], X[1:, 6, 2] = 7.0, 2.0, np.nan, np.nan
    m = BTF(3, max_iter=40).fit(X)
    assert len(m.findings_) == 4 and (m.loadings_.iloc[3] == 0).all()
    back = m.reconstruct(X)
    assert np.isfinite(back).all() and (back[:, 4, 0] == 2).all() and (back[:, 3] == 7).all()


BAD = [
    (lambda X: X[:, :, 0], r'\(80, 25\)'),
    (lambda X: X[:5], '5 patients for 6'),
    (lambda X: np.where(np.arange(3) == 2, np.nan, X), 'omic c has no observed'),
    (lambda X: np.where(np.arange(3) == 2, 1.0, X), 'omic c: no gene differs'),
    (lambda X: np.where(np.arange(25)[:, None] == 2, np.nan, X), 'gene G2 has no'),
    (
        lambda X: np.where(np.arange(80)[:, None, None] == 9, np.nan, X),
        r'patient 9 \(from 0\) has no',
    ),
    (lambda X: np.where(np.arange(80)[:, None, None] == 9, -np.inf, X), 'patient 9.*is infinite'),
    (lambda X: X.astype(object) + 'x' if False else [['a']], 'no number|shape'),
    (lambda X: X[:, :9], '9 genes and 3 omics; 25 genes'),
]


@pytest.mark.parametrize('spoil, words', BAD)
@pytest.mark.parametrize('method', ['btf', 'pca'])
def test_bad_tensors_are_named_in_one_line(spoil, words, method):
    X, *_ = toy(missing=0)
    with pytest.raises(RadgenError, match=words) as e:
        make_factorization(method, 6).fit(
            spoil(X), genes=[f'G{i}' for i in range(25)], omics=list('abc')
        )
    assert '\n' not in str(e.value)


@pytest.mark.parametrize(
    'settings, words',
    [
        (dict(n_components=0), 'whole number'),
        (dict(n_components=2.5), 'whole number'),
        (dict(scale='x'), "'omic' or 'gene'"),
        (dict(n_starts=0), 'at least 1'),
        (dict(max_iter=0), 'at least 1'),
    ],
)
def test_bad_settings(settings, words):
    with pytest.raises(RadgenError, match=words):
        BTF(**dict(n_components=2) | settings).fit(toy()[0])


def test_progress_shows_what_is_left(capsys):
    BTF(2, n_starts=2, max_iter=12, progress=True).fit(toy()[0])
    line = capsys.readouterr().out
    assert 'tensor factorization' in line and 'sweeps' in line and 'left' in line
    BTF(2, n_starts=2, max_iter=12).fit(toy()[0])
    assert not capsys.readouterr().out


def test_tensor_and_flat_agree_with_gaps():
    c = make_phantom(70, n_imaged=0, n_genes=60)
    c.omics['cnv'] = c.omics['cnv'].iloc[:50, :55]
    X, patients, genes, omics = omics_tensor(c.omics)
    assert (
        X.shape == (70, 55, 3)
        and np.isnan(X[50:, :, 1]).all()
        and list(genes) == list(c.omics['cnv'].columns)
    )
    Y, same, *_ = from_flat(multiomic(c.omics).loc[patients])
    np.testing.assert_array_equal(X, Y)
    empty = multiomic(c.omics).copy()
    empty.iloc[3] = np.nan
    assert np.isnan(from_flat(empty)[0][3]).all() and len(from_flat(empty)[0]) == 70


def test_tensor_refuses():
    t = pd.DataFrame(np.ones((3, 3)), list('pqr'), list('ABC'))
    with pytest.raises(RadgenError, match='patient p occurs more than once'):
        omics_tensor(dict(a=t, b=pd.concat([t, t])))
    with pytest.raises(RadgenError, match='a, b share 1 gene,'):
        omics_tensor(dict(a=t, b=t.set_axis(list('AXY'), axis=1)))
    with pytest.raises(
        RadgenError, match="omic 'methylation': patient p, gene A is 2, outside of .0, 1."
    ):
        on_scale('methylation', t * 2, 'logit')
    with pytest.raises(RadgenError, match='unknown scale'):
        omics_tensor(dict(a=t, b=t), dict(a='ln'))


def test_annotation_finds_the_set_and_controls_the_rest():
    rng = np.random.default_rng(0)
    genes = [g for s in GENE_SETS.values() for g in s] + [f'X{i}' for i in range(200)]
    L = pd.DataFrame(rng.standard_normal((len(genes), 4)) * 0.1, genes, list('abcd'))
    L.loc[GENE_SETS['immune'], 'b'] -= 1
    L['d'] = 0.0
    a = annotate(L)
    top = a[a.component == 'b'].iloc[0]
    assert (top.set, top.direction) == ('immune', -1) and top.p_adjusted < 1e-4
    assert (a[(a.component != 'b')].p_adjusted > 0.01).all() and (
        a[a.component == 'd'].p == 1
    ).all()
    assert len(set(itertools.chain(*GENE_SETS.values()))) == sum(map(len, GENE_SETS.values()))


def test_phantom_programs_are_recovered():
    c = make_phantom(300, n_imaged=0, n_genes=150)
    X, patients, genes, omics = cohort_tensor(c)
    m = BTF(12, n_starts=1).fit(X, genes=genes, omics=omics)
    canonical, each = recovery(m.transform(X), c.truth.programs.loc[patients])
    assert canonical.mean() > 0.95 and each.min() > 0.9, (canonical, each)


@pytest.mark.parametrize('method', METHODS)
def test_every_method_predicts_hidden_entries(method):
    X, _, clean = toy(100, 20, missing=0.05)
    gone = hide(X, 0.1)
    errors, model, cost = held_out_reconstruction(make_factorization(method, 3), X, gone)
    i = r2_of(errors, 50)
    assert (
        0.5 < i.low <= i.value <= i.high < 1
        and cost['seconds'] > 0
        and model.transform(X).shape == (100, 3)
    )
    assert errors.n.sum() == gone.sum()
    noise = X.copy()
    noise[gone] = np.random.default_rng(0).permutation(noise[gone])
    assert (
        r2_of(held_out_reconstruction(make_factorization(method, 3), noise, gone)[0], 20).value
        < 0.2
    )


def test_hidden_entries_are_not_seen():
    "What is hidden has no influence on the fit."
    X, *_ = toy(missing=0)
    gone = hide(X, 0.2)
    spoiled = np.where(gone, 99.0, X)
    for method in 'btf', 'pca':
        a, b = (
            held_out_reconstruction(make_factorization(method, 3), Z, gone)[1] for Z in (X, spoiled)
        )
        np.testing.assert_array_equal(
            a.transform(np.where(gone, np.nan, X)), b.transform(np.where(gone, np.nan, X))
        )


def test_hide_leaves_something_everywhere():
    X, *_ = toy(missing=0)
    X[0, :, 1:] = np.nan
    for what, share in itertools.product(('entries', 'omics'), (0.1, 0.33, 0.9)):
        gone = hide(X, share, what)
        left = ~np.isnan(X) & ~gone
        assert left.any((1, 2)).all() and left.any((0, 2)).all() and not gone[np.isnan(X)].any()
        if what == 'omics':
            assert (gone.any(1).sum(1) <= 1).all() and not gone[0].any()


def test_stability_and_recovery_at_their_ends():
    rng = np.random.default_rng(0)
    U = rng.standard_normal((50, 4))
    assert stability([U, U[:, [2, 0, 3, 1]] * [-1, 2, 1, -3]]) == pytest.approx(1)
    assert np.isnan(stability([U, np.zeros((50, 2))]))
    assert recovery(np.zeros((50, 3)), U)[0].tolist() == [0] * 4
    assert (
        closest_component(np.c_[U[:, 2], -U[:, 0], np.zeros(50)], U[:, [0, 2]])
        == pytest.approx([1, 1])
        and closest_component(U[:, :1] * 0, U).tolist() == [0] * 4
    )
    np.testing.assert_allclose(recovery(U[:, :2] @ rng.standard_normal((2, 2)), U[:, :2])[0], 1)


def test_comparison_rows_are_whole():
    X, (u, *_), _ = toy(60, 15)
    rows = Rows(cohort='toy')
    models = comparison_rows(
        rows,
        X,
        [f'G{i}' for i in range(15)],
        list('abc'),
        ['btf', 'pca'],
        3,
        truth=pd.DataFrame(u, columns=list('xyz')),
        n_boot=40,
        n_permutations=5,
    )
    f = rows.frame()
    assert list(models) == ['btf', 'pca'] and set(f.metric) == {
        'reconstruction_r2',
        'seconds',
        'peak_memory_mb',
        'n_components',
        'stability',
        'program_recovery',
        'program_match',
    }
    r2 = f[f.metric == 'reconstruction_r2']
    assert (
        len(r2) == 2 * 2 * 3
        and set(r2.estimator) == {'scattered entries', 'whole omic'}
        and r2.ci_low[r2.estimator == 'whole omic'].isna().all()  # of six patients
    )
    r2 = r2[r2.estimator == 'scattered entries']
    assert ((r2.ci_low <= r2.value) & (r2.value <= r2.ci_high)).all()
    alone = Rows()
    comparison_rows(
        alone, X[:30], [f'G{i}' for i in range(15)], list('abc'), ['pca'], 3, n_seeds=1, n_boot=40
    )
    assert (
        alone.frame()
        .query("metric == 'stability' or estimator == 'whole omic'")
        .verdict.str.startswith('not estimable')
        .all()
    )


def test_agreement_has_the_right_size_under_the_null():
    rng = np.random.default_rng(0)
    p = [
        compare_factors(
            *(pd.DataFrame(rng.standard_normal((42, 17))) for _ in range(2)),
            n_permutations=39,
            seed=i,
        )['p']
        for i in range(120)
    ]
    assert 0.005 <= np.mean(np.array(p) <= 0.05) <= 0.13
    U = pd.DataFrame(rng.standard_normal((42, 17)) * np.geomspace(5, 0.1, 17))
    same = compare_factors(U, U @ np.linalg.qr(rng.standard_normal((17, 17)))[0], n_permutations=99)
    assert same['p'] == 0.01
    rows = Rows()
    agreement_rows(rows, compare_factors(U, U.iloc[:0]))
    assert (
        rows.frame().verdict[0]
        == 'not estimable: 0 patients have both, 20 needed for 5 against 5 components'
    )


def test_memory_grows_with_the_data():
    "Nothing has the size genes x genes or patients x genes x components."
    peak = [
        timed_fit(BTF(6, n_starts=1, max_iter=2), toy(60, G, missing=0.1)[0].astype(np.float32))[2]
        for G in (400, 800)
    ]
    assert peak[1] < 2.6 * peak[0]
    assert peak[1] < 60 * 800 * 3 * 4 * 8 / 2**20 + 800 * 21 * 8 * 6 / 2**20 + 5
