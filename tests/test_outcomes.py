"""Classification: no leak, intervals that cover, exact nulls, and the published controls."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from sklearn.decomposition import PCA
from sklearn.metrics import average_precision_score, roc_auc_score

from radgen.core.intervals import patient_bootstrap
from radgen.core.paths import RadgenError
from radgen.core.results import MIN_CLASS, Rows
from radgen.data.published import load_published
from radgen.data.release import published_available
from radgen.evaluate.calibration import (
    OF_DECISIONS,
    OF_PROBABILITIES,
    brier_skill,
    calibration_intercept,
    calibration_rows,
    calibration_slope,
    decided,
    net_benefit,
)
from radgen.evaluate.clusters import omic_clusters
from radgen.evaluate.explain import shap_summary
from radgen.evaluate.folds import OmicsStep, fold_table
from radgen.evaluate.nulls import label_permutation_null, permutation_null_rows
from radgen.evaluate.outcomes import (
    ScoreTable,
    classification_rows,
    curves,
    nested_scores,
    omics_direct,
)
from radgen.evaluate.scores import auprc, auroc

needs_data = pytest.mark.skipif(
    not published_available(),
    reason='the released data is not at hand: run `radgen fetch published` or set RADGEN_DATA',
)


def features(n=120, d=12, strength=1.2, seed=0, share=0.4):
    rng = np.random.default_rng(seed)
    y = (np.arange(n) < share * n).astype(float)
    X = pd.DataFrame(rng.normal(size=(n, d)), columns=[f'f{j}' for j in range(d)])
    X['f0'] += strength * y
    return X, y, np.array([f'P{i:04d}' for i in rng.permutation(n)])


@pytest.mark.parametrize('digits', [0, 1, 6])
def test_areas_equal_scikit_learn(digits):
    rng = np.random.default_rng(digits)
    for n in (5, 40, 300):
        y = np.r_[0, 1, rng.integers(0, 2, n)]
        s = np.round(rng.normal(size=n + 2) + y, digits)
        assert auroc(y, s) == pytest.approx(roc_auc_score(y, s), abs=1e-12)
        assert auprc(y, s) == pytest.approx(average_precision_score(y, s), abs=1e-12)
    assert np.isnan(auroc(np.zeros(4), np.arange(4))) and np.isnan(auprc(np.ones(4), np.arange(4)))


def test_no_patient_on_both_sides():
    X, y, p = features()
    table = fold_table(pd.concat([X] * 3), np.tile(y, 3), np.tile(p, 3))
    assert sorted(np.concatenate([f.test for f in table.folds])) == list(range(360))
    for f in table.folds:
        assert not set(table.patients[f.train]) & set(table.patients[f.test])
        assert len(np.unique(table.patients[f.test])) * 3 == len(f.test)


def test_held_out_patient_cannot_touch_others():
    "A poisoned patient changes no other score of the fold that holds the patient out."
    X, y, p = features(d=20)
    before = nested_scores(X, y, p, reduce=PCA(5), n_candidates=2)
    poisoned = X.copy()
    poisoned.iloc[7] = 1e6
    after = nested_scores(poisoned, y, p, reduce=PCA(5), n_candidates=2)
    fold = before.frame.fold[p[7]]
    mates = before.frame.index[(before.frame.fold == fold) & (before.frame.index != p[7])]
    assert (after.frame.fold == before.frame.fold).all()
    pd.testing.assert_series_equal(
        before.frame.score[mates], after.frame.score[mates], check_exact=True
    )
    others = before.frame.index[before.frame.fold != fold]
    assert not np.allclose(
        before.frame.score[others], after.frame.score[others]
    )  # while training on the poison does matter


def test_noise_scores_one_half():
    "More noise features than patients, tuned: the mean over cohorts is one half."
    means, covered = [], 0
    for seed in range(8):
        rng = np.random.default_rng(seed)
        X, y = rng.normal(size=(80, 120)), rng.permutation(np.arange(80) % 2)
        s = nested_scores(X, y, np.arange(80), n_candidates=2, seed=seed, reduce=PCA(10)).frame
        i = patient_bootstrap(auroc, s.index, s.label, s.score, n_boot=200)
        means.append(i.value)
        covered += i.low <= 0.5 <= i.high
    assert abs(np.mean(means) - 0.5) < 0.07
    assert covered >= 6


def test_permuted_labels_score_one_half():
    X, y, p = features(strength=2.0)
    rng = np.random.default_rng(0)
    assert nested_scores(X, y, p, n_candidates=1).auroc() > 0.8
    assert (
        abs(
            np.mean(
                [
                    nested_scores(X, rng.permutation(y), p, n_candidates=1, seed=s).auroc()
                    for s in range(10)
                ]
            )
            - 0.5
        )
        < 0.08
    )


def test_null_is_centred_and_its_p_value_is_uniform():
    ps, centres = [], []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        null = label_permutation_null(
            rng.normal(size=(60, 4)),
            np.arange(60) % 2,
            np.arange(60),
            n_permutations=19,
            seed=seed,
            classifier='logistic',
        )
        assert len(null.values) == 19
        ps.append(null.p_value('auroc'))
        centres.append(null.interval('auroc').value)
    assert abs(np.mean(centres) - 0.5) < 0.04
    assert 0.2 < np.mean(ps) < 0.8 and min(ps) >= 1 / 20


def test_null_finds_a_signal_and_is_reproducible():
    X, y, p = features(strength=2.0)
    a, b = (label_permutation_null(X, y, p, n_permutations=9, seed=3) for _ in range(2))
    assert (a.p_value('auroc', sides=1), a.p_value('auroc')) == (1 / 10, 2 / 10)
    pd.testing.assert_frame_equal(a.values, b.values)
    assert a.observed['auroc'] == pytest.approx(
        nested_scores(X, y, p, n_candidates=1, seed=3).auroc()
    )


def test_interval_covers_the_truth():
    from scipy.stats import norm

    def covered(seed, n=70, delta=1.0):
        rng = np.random.default_rng(seed)
        y = np.arange(n) < 25
        i = patient_bootstrap(
            auroc, np.arange(n), y, rng.normal(size=n) + delta * y, n_boot=200, seed=seed
        )
        return i.low <= norm.cdf(delta / np.sqrt(2)) <= i.high

    assert np.mean([covered(s) for s in range(80)]) > 0.87


def test_order_of_rows_and_cores_do_not_matter():
    X, y, p = features()
    order = np.random.default_rng(1).permutation(len(y))
    a = nested_scores(X, y, p, classifier='logistic')
    b = nested_scores(X.iloc[order], y[order], p[order], classifier='logistic', n_jobs=2)
    assert list(a.frame.fold) == list(b.frame.fold)
    np.testing.assert_allclose(a.frame.score, b.frame.score, atol=1e-6)


def test_too_few_is_a_verdict_and_never_an_exception():
    X, y, p = features()
    rows = Rows(cohort='phantom', profile='smoke', label='er')
    for labels in (
        np.zeros(120),
        np.ones(120),
        np.full(120, np.nan),
        (np.arange(120) < MIN_CLASS - 1).astype(float),
    ):
        s = nested_scores(X, labels, p)
        assert (
            isinstance(s, ScoreTable)
            and s.verdict.startswith('not estimable')
            and s.frame.score.isna().all()
        )
        assert np.isnan(s.auroc()) and curves(s).empty
        classification_rows(rows, s)
        permutation_null_rows(rows, label_permutation_null(X, labels, p))
        assert shap_summary(X, labels, p).verdict.startswith('not estimable')
    frame = rows.frame()
    assert frame.value.isna().all() and frame.verdict.str.startswith('not estimable: ').all()
    assert (
        nested_scores(X, (np.arange(120) < MIN_CLASS).astype(float), p, n_candidates=2).verdict
        == 'ok'
    )


def test_rows_say_what_was_measured():
    X, y, p = features()
    y[:4] = np.nan
    s = nested_scores(X, y, p, n_candidates=2)
    rows = Rows(cohort='phantom', profile='smoke', label='er')
    classification_rows(rows, s, n_boot=100)
    frame = rows.frame().set_index(['metric', 'role', 'subset'])
    assert (frame.n == 116).all() and (frame.n_events == 44).all() and (frame.n_folds == 5).all()
    main = frame.loc[('auroc', 'model', 'test')]
    assert main.ci_low < main.value < main.ci_high and main.value == pytest.approx(s.auroc())
    assert frame.loc[('auprc', 'chance', 'test')].value == pytest.approx(44 / 116)
    assert frame.loc[('auroc', 'model', 'train')].value > main.value


def test_bad_input_is_one_line():
    X, y, p = features()
    for call, words in (
        (lambda: nested_scores(X, y[1:], p), 'give one entry per row'),
        (lambda: nested_scores(X, y * 2, p), 'labels must be 0, 1 or empty'),
        (lambda: nested_scores(X.assign(f1='a'), y, p), "feature 'f1' is not numeric"),
        (
            lambda: nested_scores(pd.concat([X, X]), np.r_[y, 1 - y], np.r_[p, p]),
            'two different labels',
        ),
        (lambda: nested_scores(X, y, p, classifier='svm'), "unknown classifier 'svm'"),
        (
            lambda: omics_direct(X.set_axis(p), 'multiomic', [1.0], ['P9999']),
            'P9999 has no such condition',
        ),
    ):
        with pytest.raises(RadgenError, match=words) as e:
            call()
        assert '\n' not in str(e.value)


def test_gaps_constants_and_infinities_are_survived():
    X, y, p = features()
    X.iloc[3, 1], X['f2'], X.iloc[4, 3], X['f4'] = np.nan, 1.0, np.inf, np.nan
    assert nested_scores(X, y, p, n_candidates=1).frame.score.notna().all()


def test_shap_values_add_up():
    X, y, p = features(strength=2.0)
    s = nested_scores(X, y, p, n_candidates=3)
    shap = shap_summary(X, y, p, scores=s)
    logit = np.log(s.frame.score / (1 - s.frame.score))
    assert (logit - shap.values.sum(axis=1)).groupby(s.frame.fold).std().max() < 1e-3
    assert shap.importance.index[0] == 'f0'
    with pytest.raises(RadgenError, match='other folds'):
        shap_summary(X, y, p, seed=1, scores=s)


def test_control_meets_the_same_patients_in_the_same_folds():
    X, y, p = features()
    X = X.abs().set_axis(p)
    model = nested_scores(X, y, p, n_candidates=1, seed=4)
    for s in omics_direct(X, 'expression', y, p, n_candidates=1, seed=4).values():
        pd.testing.assert_series_equal(s.frame.fold, model.frame.fold)
    shuffled = nested_scores(
        X, y, p, encode=OmicsStep('expression'), classifier='logistic', n_candidates=1
    )
    assert np.isfinite(shuffled.frame.score).all()


def test_clusters_of_separate_groups():
    rng = np.random.default_rng(0)
    z = pd.DataFrame(
        rng.normal(size=(60, 4)) + 6 * np.eye(4)[np.arange(60) % 3],
        index=[f'P{i}' for i in range(60)],
    )
    c = omic_clusters(z, n_nearest=2)
    assert (
        c.k == 3 and c.silhouette.idxmax() == 3 and c.nearest.groupby('cluster').size().eq(2).all()
    )
    assert pd.crosstab(np.arange(60) % 3, c.labels).gt(0).to_numpy().sum() == 3
    for k, ids in enumerate(c.nearest_by_cluster()):
        assert np.linalg.norm(z.loc[ids[0]] - c.centres[k]) == pytest.approx(
            np.linalg.norm(z[c.labels == k] - c.centres[k], axis=1).min()
        )
    assert c.plane.shape == (60, 2) and c.plane_centres.shape == (3, 2)
    for d in (1, 2):
        assert omic_clusters(z.iloc[:, :d], [2]).plane.shape == (60, 2)
    with pytest.raises(RadgenError):
        omic_clusters(z.iloc[:2])


@needs_data
def test_published_controls():
    "15 genes, no image, logistic regression: the values measured on the released tables."
    cohort = load_published()
    genes = cohort.conditions['expression']
    known = dict(
        subgroup=0.968,
        er=0.876,
        pr=0.771,
        her2=0.569,
        TP53=0.789,
        PIK3CA=0.629,
        CDH1=0.764,
        GATA3=0.654,
    )
    for label, expected in known.items():
        y = cohort.labels[label].dropna()
        y = y[y.index.isin(genes.index)]
        runs = [
            nested_scores(
                genes.loc[y.index],
                y,
                y.index,
                classifier='logistic',
                n_candidates=1,
                seed=seed,
                encode=OmicsStep('expression'),
            )
            for seed in range(3)
        ]
        assert np.mean([r.auroc() for r in runs]) == pytest.approx(expected, abs=0.02), label
        if label == 'subgroup':
            assert np.mean([r.auprc() for r in runs]) == pytest.approx(0.973, abs=0.02)


@needs_data
def test_imaged_patients_are_not_estimable():
    cohort = load_published()
    genes, imaged = (
        cohort.conditions['expression'],
        cohort.imaged[cohort.imaged.isin(cohort.conditions['expression'].index)],
    )
    for label in ('subgroup', 'er', 'her2'):
        s = nested_scores(genes.loc[imaged], cohort.labels[label].reindex(imaged), imaged)
        assert s.verdict.startswith('not estimable'), label


# --- probabilities ----------------------------------------------------------------------------


def scored(label, score, fold):
    index = pd.Index([f'P{i:03d}' for i in range(len(label))], name='patient_id')
    frame = pd.DataFrame(dict(label=label, score=score, fold=fold, train_score=score), index)
    return ScoreTable(frame, 'xgboost', n_folds=len(set(fold)), seed=0)


def test_held_out_patients_do_not_choose_their_threshold():
    label, fold = np.r_[np.ones(20), np.zeros(20)], np.r_[np.zeros(20), np.ones(20)].astype(int)
    score = np.full(40, 0.5)
    chosen = decided(scored(label, score, fold))
    assert chosen[:20].all() and not chosen[20:].any()  # thresholds 0 and 1: of the other fold


@pytest.mark.parametrize('slope', [0.5, 1, 2])
@pytest.mark.parametrize('shift', [-1, 0, 1])
def test_slope_and_intercept_are_those_that_were_put_in(slope, shift):
    rng = np.random.default_rng(3)
    z = rng.normal(0, 1.5, 60_000)
    y = rng.random(60_000) < expit(z)
    assert calibration_slope(y, expit(z / slope)) == pytest.approx(slope, abs=0.06)
    assert calibration_intercept(y, expit(z + shift)) == pytest.approx(-shift, abs=0.05)


def test_brier_skill_of_the_prevalence_is_zero():
    y = np.arange(40) < 10
    assert brier_skill(y, np.full(40, 0.25)) == pytest.approx(0)
    assert brier_skill(y, y.astype(float)) == 1 and brier_skill(y, 1.0 - y) < -1


def test_probabilities_of_few_patients_have_no_interval():
    rows, rng = Rows(), np.random.default_rng(0)
    calibration_rows(rows, scored(np.arange(8) % 2, rng.random(8), np.arange(8) % 4), label='er')
    assert [r['metric'] for r in rows.rows] == [*OF_PROBABILITIES, *OF_DECISIONS]
    assert all(r['ci_low'] is None for r in rows.rows)


def test_net_benefit_of_all_is_that_of_the_prevalence():
    y = np.arange(50) < 20
    for t in (0.1, 0.4, 0.7):
        assert net_benefit(y, np.ones(50), t) == pytest.approx(0.4 - 0.6 * t / (1 - t))
        assert net_benefit(y, np.zeros(50), t) == 0
