"The audit against brute force, closed forms, known answers, and its own error rates."

import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import mannwhitneyu, pearsonr

from radgen.audit.common import AuditResult, one_per_image, toy_audit
from radgen.audit.confounding import audit_confounding, balanced_accuracy, usable_classes
from radgen.audit.copying import (
    audit_copying,
    closest_pairs,
    copy_test,
    nearest_training,
    patient_pairs,
    pixel_distances,
)
from radgen.audit.denoising import audit_denoising, denoising_scores
from radgen.audit.extrapolation import audit_extrapolation
from radgen.audit.figures import fig_condition_carried, fig_confounding, fig_copies, fig_tstr
from radgen.audit.probe import audit_probe, mean_r
from radgen.audit.retrieval import (
    audit_retrieval,
    candidate_pool,
    image_scores,
    normalized_rank,
    rank_conditions,
    retrieval_difference,
    top1_accuracy,
)
from radgen.audit.sensitivity import audit_errors, audit_importance, audit_sensitivity
from radgen.audit.tstr import audit_tstr, auroc_within
from radgen.core.paths import RadgenError
from radgen.core.results import MIN_AUDITED, Null, Rows, null_rows
from radgen.core.verdicts import BELOW_NULL, judge_null
from radgen.evaluate.diversity import (
    diversity_rows,
    ms_ssim,
    n_scales,
    precision_recall,
    precision_recall_rows,
)
from radgen.evaluate.features import fold_pca, pixel_features
from radgen.evaluate.outcomes import DEFAULTS
from radgen.report.sentences import sentences


def some(n=24, k=2, size=8, seed=0, series=1):
    "Random real images, samples, patients and folds over patients."
    rng = np.random.default_rng(seed)
    patients = np.repeat([f'P{i:02d}' for i in range(n)], series)
    folds = np.repeat(np.arange(n) % 3, series)
    real, samples = (
        rng.random((n * series, size, size), dtype='float32'),
        rng.random((n, k, size, size), dtype='float32').repeat(series, axis=0),
    )
    return real, samples, patients, folds


# copies


def test_nearest_training_is_brute_force_and_never_the_own_fold():
    real, samples, patients, folds = some(series=2)
    found = nearest_training(samples[:, 0], folds, real, patients, folds)
    for i in range(len(real)):
        d = np.array(
            [
                math.sqrt(((samples[i, 0].astype(float) - r) ** 2).mean())
                if folds[j] != folds[i]
                else np.inf
                for j, r in enumerate(real)
            ]
        )
        assert found.nearest[i] == d.argmin() and found.distance[i] == pytest.approx(
            d.min(), rel=1e-6
        )
        assert found.nndr[i] == pytest.approx(
            d.min() / d[patients != patients[d.argmin()]].min(), rel=1e-6
        )
    assert (folds[found.nearest] != folds).all()


def test_a_fold_of_everything_is_refused():
    real, samples, patients, folds = some()
    with pytest.raises(RadgenError, match='nothing is left'):
        audit_copying(real, samples, patients, np.zeros(len(real)))
    with pytest.raises(RadgenError, match='one of each'):
        audit_copying(real, samples[:-1], patients, folds)


def test_equal_rows_of_one_patient_count_once():
    real, samples, patients, folds = some(n=12, k=2, series=3)
    audit = audit_copying(real, samples, patients, folds)
    assert audit.count('sample') == 12 * 2 and audit.count('real') == 36
    matched = patient_pairs(audit.frame, matched=True)
    d = (
        audit.frame[audit.frame.source == 'real']
        .groupby('patient')
        .distance.apply(lambda x: x.iloc[:2].mean())
    )
    assert matched.real.to_numpy() == pytest.approx(d.to_numpy())


def test_copy_test_is_mann_whitney():
    audit = audit_copying(*some(40))
    d = patient_pairs(audit.frame, matched=True)
    u = mannwhitneyu(d['sample'], d.real).statistic
    assert -audit.null.observed == pytest.approx((u - 40 * 40 / 2) / math.sqrt(40 * 40 * 81 / 12))


def test_copy_test_keeps_its_size_and_finds_a_copier():
    def p(seed, pull):
        rng = np.random.default_rng(seed)
        frame = pd.concat(
            [
                pd.DataFrame(
                    dict(
                        source=s,
                        patient=np.arange(25),
                        row=0,
                        sample=0,
                        nearest=0,
                        distance=rng.gamma(3, size=25) - pull * (s == 'sample'),
                        nndr=1.0,
                    )
                )
                for s in ('real', 'sample')
            ]
        )
        return copy_test(frame, 99, seed).p_above

    null = np.array([p(s, 0) for s in range(300)])
    assert abs((null <= 0.1).mean() - 0.1) < 0.05
    assert np.mean([p(s, 2) <= 0.05 for s in range(40)]) > 0.8


def test_a_copier_is_distinguished_from_the_mean_image():
    real, samples, patients, folds = some(30, 1, 8)
    copy = real[[np.flatnonzero(folds != f)[i % 20] for i, f in enumerate(folds)]]
    mean = np.stack([real[folds != f].mean(0) for f in folds])
    made = Rows(model='cpdm', role='model', condition='c')
    for protocol, images in dict(copier=copy, smooth=mean, honest=samples).items():
        audit_copying(real, images, patients, folds).rows(made, protocol=protocol, n_boot=200)
    t = (
        made.frame()
        .query("model == 'cpdm'")
        .pivot_table(index='protocol', columns='metric', values='value')
    )
    assert (
        t.copy_ratio['copier'] == t.nndr['copier'] == 0
        and t.copy_z['copier'] < -5
        and t.copy_p['copier'] == 0.001
    )
    assert t.copy_ratio['smooth'] < 0.9 and t.nndr['smooth'] > 0.9
    assert t.copy_ratio['honest'] == pytest.approx(1, abs=0.05) and t.copy_p['honest'] > 0.01
    said = {
        p: sentences(made.frame().query('protocol == @p'))[0]
        for p in ('copier', 'smooth', 'honest')
    }
    assert (
        'the model copies' in said['copier']
        and 'no training patient stands out' in said['smooth']
        and 'No copying is shown' in said['honest']
    )


def test_closest_pairs_are_the_closest():
    real, samples, patients, folds = some()
    audit = audit_copying(real, samples, patients, folds)
    pairs = closest_pairs(audit, [f's{i}' for i in range(len(real))], 4)
    all_distances = np.sort(
        np.concatenate(
            [
                pixel_distances(samples[folds == f].reshape(-1, 8, 8), real[folds != f]).min(1)
                for f in range(3)
            ]
        )
    )
    assert pairs.distance.to_numpy() == pytest.approx(all_distances[:4])
    for p in pairs.itertuples():
        assert p.distance == pytest.approx(
            float(pixel_distances(samples[p.row, p.sample][None], real[p.nearest][None])[0, 0])
        )


# retrieval


def test_retrieval_is_brute_force():
    rng = np.random.default_rng(0)
    s, true = np.round(rng.random((30, 7)), 1), rng.integers(7, size=30)
    s[rng.random(s.shape) < 0.2] = np.nan
    s[np.arange(30), true] = np.round(rng.random(30), 1)
    for i, (share, top) in enumerate(zip(normalized_rank(s, true), top1_accuracy(s, true))):
        others = [x for j, x in enumerate(s[i]) if j != true[i] and not np.isnan(x)]
        assert share == pytest.approx(
            np.mean([(x < s[i, true[i]]) + 0.5 * (x == s[i, true[i]]) for x in others])
        )
        assert top == pytest.approx(
            0 if max(others) > s[i, true[i]] else 1 / (1 + others.count(s[i, true[i]]))
        )


def test_alone_in_a_fold_is_no_retrieval():
    s = np.array([[0.5, np.nan], [np.nan, 0.1]])
    assert np.isnan(normalized_rank(s, [0, 1])).all() and np.isnan(top1_accuracy(s, [0, 1])).all()
    made = Rows(model='m', role='model')
    pool = candidate_pool(['a', 'b'], [0, 1])
    rank_conditions(s, pool, ['a', 'b'], n_permutations=3).rows(made)
    assert set(made.frame().verdict) == {'not estimable: no fold holds two patients out'}


def test_candidates_are_patients_of_the_fold_once():
    real, samples, patients, folds = some(9, series=2)
    scores, pool = image_scores(real, samples, patients, folds)
    assert scores.shape == (18, 9) and (np.isfinite(scores).sum(1) == 3).all()
    assert (pool.patients[pool.true] == patients).all() and (pool.folds[pool.true] == folds).all()
    i, c = 0, np.flatnonzero(np.isfinite(scores[0]))[1]
    assert scores[i, c] == pytest.approx(
        -((real[i] - samples[patients == pool.patients[c]][0].mean(0)) ** 2).mean(), rel=1e-5
    )


def test_oracle_chance_and_one_image():
    real, samples, patients, folds = some(30)
    share = lambda images: audit_retrieval(real, images, patients, folds, n_permutations=99)
    assert share(real).null.observed == 1 and share(real).null.p == 0.02
    flat = share(np.broadcast_to(real[0], real.shape))
    assert flat.null.observed == 0.5 and flat.null.p == 1 and (flat.null.values == 0.5).all()


def test_retrieval_null_keeps_its_size():
    _, _, patients, folds = some(18, series=2)
    pool, p = candidate_pool(patients, folds), []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        s = (
            rng.random((36, 1))
            + rng.normal(size=18)
            + 0.5 * rng.normal(size=(18, 18)).repeat(2, axis=0)
        )  # candidates that are favoured by all, siblings alike
        s[folds[:, None] != pool.folds] = np.nan
        p.append(rank_conditions(s, pool, patients, n_permutations=19, seed=seed).null.p)
    assert abs((np.array(p) <= 0.1).mean() - 0.1) < 0.06


def test_retrieval_difference_is_paired():
    real, samples, patients, folds = some(20)
    a = audit_retrieval(real, samples, patients, folds, n_permutations=3)
    zero = retrieval_difference(a, a)
    assert (zero.value, zero.low, zero.high) == (0, 0, 0)
    half = (x[:10] for x in (real, samples, patients, folds))
    b = audit_retrieval(*half, n_permutations=3)
    with pytest.raises(RadgenError, match='different patients'):
        retrieval_difference(a, b)


@pytest.fixture(scope='module')
def small_cpdm():
    from radgen.models.cpdm import CPDM, CPDMConfig

    return CPDM(CPDMConfig.radgen(3, 8, dim=8, dim_mults=(1, 2), kinds=('a', 'b')), seed=0)


def test_audit_denoising_ranks_by_the_folds_own_network(small_cpdm):
    rng, ids = np.random.default_rng(0), np.array(list('abcdef'))
    images, z = rng.random((6, 8, 8), dtype='float32'), rng.standard_normal((6, 3))
    given, folds = pd.DataFrame(z, ids), np.arange(6) % 2
    models = {0: small_cpdm, 1: small_cpdm}
    audit = audit_denoising(models, images, given, ids, folds, draws=2, n_permutations=5)
    by_hand = denoising_scores(small_cpdm, images[::2], z[::2], draws=2)
    assert audit.scorer == 'denoising' and (audit.others == 2).all()
    assert audit.rank[::2] == pytest.approx(normalized_rank(by_hand, [0, 1, 2]))


def test_denoising_scores_of_the_real_network(small_cpdm):
    rng = np.random.default_rng(0)
    images, z = (
        rng.random((2, 8, 8), dtype='float32'),
        rng.standard_normal((3, 3)).astype('float32'),
    )
    small_cpdm.train()
    s = denoising_scores(small_cpdm, images, z, draws=3, seed=1)
    assert small_cpdm.training and s.shape == (2, 3) and (s < 0).all()
    assert denoising_scores(small_cpdm, images, z[[2, 0, 1]], draws=3, seed=1) == pytest.approx(
        s[:, [2, 0, 1]], rel=1e-4
    )
    assert denoising_scores(
        small_cpdm, images, torch.from_numpy(z), draws=3, seed=1, batch_size=2
    ) == pytest.approx(s, rel=1e-4)
    assert np.abs(denoising_scores(small_cpdm, images, z, draws=3, seed=2) - s).min() > 0


def test_denoising_score_is_the_training_loss(small_cpdm):
    "The same times and noises through the library's own loss."
    from radgen.core.seeds import derive_seed

    rng = np.random.default_rng(3)
    image, z, T = (
        rng.random((1, 8, 8), dtype='float32'),
        rng.standard_normal((1, 3)).astype('float32'),
        len(small_cpdm.alphas_cumprod),
    )
    noise = torch.randn(
        4, 1, 8, 8, generator=torch.Generator().manual_seed(derive_seed(0, 'denoising', 0))
    )
    t = torch.tensor(((np.arange(4) + 0.5) * T / 4).astype(int))
    small_cpdm.eval()
    packed = small_cpdm.pack(
        torch.from_numpy(z).repeat(4, 1), torch.ones(4), None, torch.zeros(4, 3)
    )
    with torch.no_grad():
        loss = small_cpdm.diffusion.p_losses(
            small_cpdm.to_network(torch.from_numpy(image)[None]).repeat(4, 1, 1, 1),
            t,
            classes=packed,
            noise=noise,
        )
    assert denoising_scores(small_cpdm, image, z, draws=4)[0, 0] == pytest.approx(
        -float(loss), rel=1e-4
    )


# the condition exchanged


def test_condition_sensitivity_in_closed_form():
    rng = np.random.default_rng(0)
    n = 8
    condition, noise = (
        np.arange(2 * n).reshape(n, 2)[:, :1, None, None] * np.ones((1, 1, 4, 4)),
        rng.normal(size=(1, 3, 1, 1)) * np.ones((1, 1, 4, 4)),
    )
    effects = audit_sensitivity(condition + noise, condition + 5 + noise, list('abcdefgh'))
    apart = np.mean(
        [abs(noise[0, i, 0, 0] - noise[0, j, 0, 0]) for i in range(3) for j in range(i)]
    )
    made = Rows(model='m', role='model')
    effects.rows(made, n_boot=50)
    assert made.frame().value[0] == pytest.approx(5 / apart)


def test_permutation_importance_is_brute_force():
    real, samples, patients, _ = some(10, series=2)
    audit = audit_importance(real, samples, samples[::-1], patients)
    errors = audit.error
    by_hand = (
        pd.Series(
            [
                ((r - s.mean(0)) ** 2).mean()
                for r, s in zip(real.astype(float), samples.astype(float))
            ]
        )
        .groupby(patients)
        .mean()
    )
    assert errors.true.to_numpy() == pytest.approx(by_hand.to_numpy(), rel=1e-5)
    made = Rows(model='m', role='model')
    audit.rows(made, n_boot=50)
    assert made.frame().query("metric == 'permutation_importance'").value.iloc[0] == pytest.approx(
        errors.shuffled.mean() - errors.true.mean()
    )


def test_mean_r_is_pearson():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(20, 3)), rng.normal(size=(20, 3))
    assert mean_r(a, b) == pytest.approx(np.mean([pearsonr(a[:, j], b[:, j])[0] for j in range(3)]))
    assert mean_r(a, np.ones((20, 3))) == 0 and math.isnan(mean_r(np.ones((20, 3)), b))
    assert mean_r(pd.DataFrame(a), pd.DataFrame(b)) == pytest.approx(mean_r(a, b))


def test_probe_needs_each_fold_and_enough_images():
    real, _, patients, folds = some(12)
    z, rng = np.random.default_rng(1).normal(size=(12, 2)), np.random.default_rng(2)
    with pytest.raises(RadgenError, match='no generated images for fold'):
        audit_probe({0: (real, z)}, real, z, patients, folds)
    found = audit_probe(
        {f: (rng.random((4, 8, 8)), rng.normal(size=(4, 2))) for f in range(3)},
        real,
        z,
        patients,
        folds,
        n_permutations=3,
    )
    made = Rows(model='m', role='model')
    found.rows(made)
    assert all(v.startswith('not estimable') for v in made.frame().verdict)


def test_probe_reads_what_is_there():
    rng = np.random.default_rng(0)
    draw = lambda z: np.clip(
        0.5 + 0.1 * z[:, :1, None] + 0.05 * rng.normal(size=(len(z), 8, 8)), 0, 1
    )
    z, folds = rng.normal(size=(30, 2)), np.arange(30) % 3
    new = [rng.normal(size=(40, 2)) for _ in range(3)]
    found = audit_probe(
        {f: (draw(new[f]), new[f]) for f in range(3)},
        draw(z),
        z,
        np.arange(30),
        folds,
        n_permutations=39,
    )
    r = [pearsonr(found.truth[j], found.predicted[j])[0] for j in range(2)]
    assert (
        r[0] > 0.9
        and abs(r[1]) < 0.5
        and found.null.observed == pytest.approx(np.mean(r))
        and found.null.p == 0.05
    )


# train on synthetic, test on real


def test_no_patient_is_trained_on_and_tested():
    rng = np.random.default_rng(0)
    real, patients, folds = rng.random((20, 6, 6)), np.arange(20), np.arange(20) % 2
    y = pd.Series((np.arange(40) % 2).astype(float))
    sibling = {k: {'cpdm': (real[folds != k], patients[folds != k])} for k in (0, 1)}
    sibling[1]['cpdm'] = (real[:11], patients[:11])
    with pytest.raises(RadgenError, match='cpdm: patient 1 is trained on and tested in fold 1'):
        audit_tstr(sibling, real, y, patients, folds)
    with pytest.raises(RadgenError, match='no training data for fold 1'):
        audit_tstr(
            {0: {'cpdm': (real[folds == 1], patients[folds == 1])}}, real, y, patients, folds
        )
    with pytest.raises(RadgenError, match='20 real images, 19 patients'):
        audit_tstr({}, real, y, patients[1:], folds)


def test_images_of_another_fold_are_of_no_help():
    "Each fold draws the tested images of the *other* fold: its own classifier gains nothing."
    rng = np.random.default_rng(0)
    real, patients, folds = rng.random((80, 8, 8)), np.arange(80), np.arange(80) % 2
    y, unpaired = pd.Series((rng.permutation(160) % 2).astype(float)), np.arange(80, 160)

    def training(k):
        images = rng.random((80, 8, 8))
        for label in (0, 1):
            images[y[unpaired] == label] = rng.choice(
                real[(folds != k) & (y[:80] == label)], int((y[unpaired] == label).sum())
            )
        return {'cpdm': (images, unpaired)}

    found = audit_tstr(
        {k: training(k) for k in (0, 1)},
        real,
        y,
        patients,
        folds,
        null=('cpdm',),
        n_permutations=19,
    )
    assert 0.05 < found.nulls['cpdm'].p and abs(found.nulls['cpdm'].observed - 0.5) < 0.2


def test_tstr_is_that_of_scikit_learn():
    "With one fold it is the AUROC of scikit-learn's logistic regression on components."
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(3)
    y = pd.Series((rng.random(120) < 0.5).astype(float))
    x = rng.random((120, 5, 5)) + 0.15 * y.to_numpy()[:, None, None]
    found = audit_tstr(
        {0: {'cpdm': (x[60:], np.arange(60, 120))}}, x[:60], y, np.arange(60), np.zeros(60, int)
    )
    steps = fold_pca().fit(pixel_features(x[60:]))
    plain = LogisticRegression(C=DEFAULTS['logistic']['C'], max_iter=5000).fit(
        steps.transform(pixel_features(x[60:])), y[60:]
    )
    assert auroc_within(found.scores.label, found.scores.cpdm, found.scores.fold) == pytest.approx(
        roc_auc_score(y[:60], plain.decision_function(steps.transform(pixel_features(x[:60])))),
        abs=0.02,
    )


def test_tstr_roles_and_rare_labels():
    rng = np.random.default_rng(0)
    y = pd.Series((np.arange(80) % 40 < 20).astype(float))
    x = rng.random((80, 6, 6)) + 0.5 * y.to_numpy()[:, None, None]
    real, unpaired, ids = x[:40], np.arange(40, 80), np.arange(40)
    folds = np.arange(40) % 2
    omics = pd.DataFrame(
        np.c_[y + 0.1 * rng.normal(size=80), rng.normal(size=80)], columns=['a', 'b']
    )
    training = {
        k: {
            'cpdm': (x[40:], unpaired),
            'cpdm, equal n': (x[40:62], unpaired[:22]),
            'real': (real[folds != k], ids[folds != k]),
            'nearest_copy': (real[folds != k].repeat(2, 0), unpaired),
            'mean_image': (np.broadcast_to(real.mean(0), real.shape), unpaired),
        }
        for k in (0, 1)
    }
    found = audit_tstr(
        training, real, y, ids, folds, label='l', omics=omics, null=('cpdm',), n_permutations=19
    )
    made = Rows()
    found.rows(made, n_boot=100)
    rare = pd.Series(np.where(np.arange(80) < 9, 1.0, 0.0))
    audit_tstr(training, real, rare, ids, folds, label='rare').rows(made)
    f = made.frame()
    values = f.query("metric == 'tstr_auroc' and label == 'l' and role != 'null'")
    assert list(zip(values.model, values.role, values.estimator)) == [
        ('cpdm', 'model', 'synthetic on real'),
        ('cpdm', 'model', 'synthetic on real, equal n'),
        ('real', 'upper_bound', 'real on real'),
        ('nearest_copy', 'control', 'synthetic on real'),
        ('mean_image', 'control', 'synthetic on real'),
        ('omics_direct', 'upper_bound', 'omics, no image'),
    ]
    value = values.set_index('model').value
    assert (
        value.loc['mean_image'] == 0.5
        and value.loc['omics_direct'] > 0.95
        and set(values.n) == {40}
        and set(values.n_events) == {20}
    )
    assert (
        f.query("role == 'null'").metric.tolist() == ['tstr_auroc', 'tstr_auroc_p']
        and f.query("metric == 'tstr_auroc_p'").value.iloc[0] == 0.1
    )
    assert set(f.query("label == 'rare'").verdict) == {
        'not estimable: 9 patients in the smaller class of 40, 10 needed'
    }
    gain = f.query("metric == 'tstr_gain' and label == 'l'")
    assert len(gain) == 1 and gain.value.iloc[0] == pytest.approx(
        value['cpdm'].iloc[0] - value['nearest_copy']
    )
    assert found.training.query("source == 'cpdm, equal n'").patients.tolist() == [22, 22]


def test_unknown_labels_take_no_part_and_small_classes_train_nothing():
    rng = np.random.default_rng(0)
    y = pd.Series(
        np.r_[np.repeat([0.0, 1.0], 12), [np.nan] * 6, np.repeat([0.0, 1.0], [30, 4]), [np.nan] * 6]
    )
    found = audit_tstr(
        {0: {'cpdm': (rng.random((40, 4, 4)), np.arange(30, 70))}},
        rng.random((30, 4, 4)),
        y,
        np.arange(30),
        np.zeros(30, int),
    )
    assert list(found.scores.index) == list(range(24)) and list(found.scores) == ['label', 'fold']
    assert found.verdicts == {
        'cpdm': 'not estimable: 4 patients in the smaller class to learn from, 5 needed'
    } and found.training.patients.tolist() == [34]


def test_each_image_gets_the_next_sample():
    samples = np.arange(12).reshape(2, 2, 3, 1).repeat(2, axis=0)[:, :, :, :]
    assert (one_per_image(samples, list('aabb')) == samples[np.arange(4), [0, 1, 0, 1]]).all()


# confounding


def test_classes_are_merged_or_left_out_aloud():
    merged, said = usable_classes(list('aaaaabbbbbccdddd'), range(16))
    assert list(merged[-6:]) == ['other'] * 6 and said == '3 classes: a, b, other; merged: c, d'
    merged, said = usable_classes(
        ['a'] * 10 + ['b'] * 10, [0] * 10 + list(range(1, 11))
    )  # ten series, one patient
    assert set(merged[:10]) == {None} and said.endswith('left out: a')


def test_siblings_do_not_leak_and_the_null_keeps_them_together():
    rng = np.random.default_rng(0)
    x, who, site = (
        rng.random((30, 20)).repeat(3, axis=0),
        np.arange(30).repeat(3),
        np.repeat(list('ab') * 15, 3),
    )
    found = audit_confounding(x, site, who, by_patient=True, reduce=False, n_permutations=19)
    assert len(found.frame) == 30 and abs(found.null.observed - 0.5) < 0.3 and found.null.p > 0.05
    assert balanced_accuracy(found.frame.truth, found.frame.truth) == 1
    one = audit_confounding(x, ['a'] * 90, who, n_permutations=3)
    made = Rows(role='reference', model='real')
    one.rows(made, extractor='image')
    assert made.frame().verdict.tolist() == [
        'not estimable: 1 classes with 5 patients or more, 2 needed'
    ]


def test_balanced_accuracy_is_mean_recall():
    from sklearn.metrics import balanced_accuracy_score

    rng = np.random.default_rng(0)
    a, b = rng.integers(3, size=50), rng.integers(3, size=50)
    assert balanced_accuracy(a, b) == pytest.approx(balanced_accuracy_score(a, b))


# extrapolation, diversity


@pytest.mark.parametrize('n,d', [(12, 2), (30, 3)])
def test_the_share_beyond_is_what_it_says(n, d):
    found = [
        audit_extrapolation(
            pd.DataFrame(
                np.random.default_rng(s).normal(size=(n + 40, d)), columns=list('abc')[:d]
            ),
            range(n),
            range(n, n + 40),
        )
        for s in range(40)
    ]
    expected = found[0].expected
    assert expected == pytest.approx(
        1 / (n + 1) if n < 19 else 1 - math.ceil(0.95 * (n + 1)) / (n + 1)
    )
    assert np.mean([f.unpaired.beyond.mean() for f in found]) == pytest.approx(expected, abs=0.035)


def test_far_patients_are_beyond():
    x = pd.DataFrame(
        np.random.default_rng(0).normal(size=(60, 3))
        + np.r_[np.zeros(30), np.full(30, 6.0)][:, None],
        columns=list('abc'),
    )
    made = Rows(model='m', role='model')
    audit_extrapolation(x, range(30), range(30, 60)).rows(made, n_boot=50)
    f = made.frame()
    assert (
        f.query("metric == 'extrapolation' and role == 'model'").value.iloc[0] == 1
        and f.query("metric == 'extrapolation_p'").value.iloc[0] < 1e-6
    )


def test_ms_ssim_is_the_published_one_where_all_scales_fit():
    from radgen.evaluate.inception import torchmetrics_parts

    torchmetrics_parts()
    from torchmetrics.functional.image import (
        multiscale_structural_similarity_index_measure as measure,
    )

    rng = np.random.default_rng(0)
    a = rng.random((2, 256, 256), dtype='float32')
    b = np.clip(a + 0.2 * rng.normal(size=a.shape), 0, 1).astype('float32')
    t = [torch.from_numpy(x)[:, None] for x in (a, b)]
    assert n_scales(256) == 5 and ms_ssim(a, b) == pytest.approx(
        measure(t[1], t[0], data_range=1.0, reduction='none').numpy(), rel=1e-4
    )
    with pytest.raises(RadgenError, match='needs 11'):
        ms_ssim(a[:1, :10, :10], a[:1, :10, :10])
    for size in (12, 16, 28, 32, 64, 128):
        assert ms_ssim(a[:1, :size, :size], a[:1, :size, :size]) == pytest.approx([1], abs=1e-4)


def test_precision_recall_is_brute_force():
    rng = np.random.default_rng(0)
    a, b, k = rng.normal(size=(15, 3)), rng.normal(size=(12, 3)) + 0.5, 3
    d = lambda x, y: math.sqrt(((x - y) ** 2).sum())
    radius = lambda s, i: sorted(d(s[i], s[j]) for j in range(len(s)) if j != i)[k - 1]
    inside = lambda x, s: any(d(x, s[i]) <= radius(s, i) for i in range(len(s)))
    assert precision_recall(a, b, k) == pytest.approx(
        (np.mean([inside(x, a) for x in b]), np.mean([inside(x, b) for x in a]))
    )


# rows, rules, figures


def test_too_few_patients_are_said_to_be_too_few():
    real, samples, patients, folds = some(4, size=12)
    folds, made = np.arange(4) % 2, Rows(model='cpdm', role='model')
    audit_copying(real, samples, patients, folds).rows(made)
    audit_retrieval(real, samples, patients, folds, n_permutations=3).rows(made)
    audit_sensitivity(samples, samples, patients).rows(made)
    audit_importance(real, samples, samples, patients).rows(made)
    audit_errors(real, samples, patients, dict(mean_image=samples[:, 0])).rows(made)
    diversity_rows(made, real, samples, patients, folds)
    precision_recall_rows(made, real.reshape(4, -1), samples[:, 0].reshape(4, -1), patients)
    x = pd.DataFrame(np.random.default_rng(0).normal(size=(20, 2)), columns=['a', 'b'])
    audit_extrapolation(x, range(4), range(4, 20)).rows(made)
    assert MIN_AUDITED == 5 and all(
        '4 patients, 5 needed' in v or '4 patients, 8 needed' in v or '4 imaged patients' in v
        for v in made.frame().verdict
    )
    said = sentences(made.frame())
    assert len(said) >= 4 and all('not estimable' in s for s in said)
    for f in (fig_condition_carried, fig_tstr, fig_confounding):
        assert f(made.frame()).axes
    assert fig_copies({}, made.frame()).axes


def test_rules():
    null = lambda n=39, low=0.4, high=0.6: pd.Series(
        dict(estimator=f'{n} permutations', ci_low=low, ci_high=high)
    )
    judge = lambda value, low, n=39: judge_null(value, low, 1.0, null(n), 0.5, 'yes', 'no')
    assert (
        judge(0.7, 0.6) == 'yes'
        and judge(0.55, 0.51) == 'no'
        and judge(0.65, 0.45).startswith('undecided')
        and judge(0.9, 0.8, 38).startswith('38 permutations')
        and judge_null(0.3, 0.2, 0.4, null(), 0.5, 'yes', 'no') == BELOW_NULL
        and judge_null(0.3, 0.2, 0.6, null(), 0.5, 'yes', 'no') == 'no'
    )


def test_null_rows_say_how_many():
    made = Rows(model='m')
    null_rows(made, Null(0.7, np.array([0.4, np.nan, 0.6])), 'retrieval')
    f = made.frame().set_index('metric')
    assert (
        f.estimator.unique().tolist() == ['2 permutations']
        and f.value['retrieval'] == 0.5
        and f.value['retrieval_p'] == pytest.approx(2 / 3)
    )


def test_every_audit_has_one_shape():
    toy = toy_audit()
    audits = [
        audit_copying(toy.real, toy.oracle, toy.patients, toy.folds, n_permutations=3),
        audit_retrieval(toy.real, toy.oracle, toy.patients, toy.folds, n_permutations=3),
        audit_sensitivity(toy.oracle, toy.ignoring, toy.patients),
        audit_importance(toy.real, toy.oracle, toy.ignoring, toy.patients),
        audit_errors(toy.real, toy.oracle, toy.patients, dict(c=toy.real)),
        audit_probe(
            {f: (toy.real, toy.z) for f in range(4)}, toy.real, toy.z, toy.patients, toy.folds
        ),
        audit_confounding(toy.z, toy.z[:, 0] > 0, toy.patients, n_permutations=3),
        audit_extrapolation(
            pd.DataFrame(toy.z, toy.patients), toy.patients[:20], toy.patients[20:]
        ),
    ]
    for audit in audits:
        rows = Rows(model='m', role='model')
        audit.rows(rows, n_boot=30, seed=0, condition='c')
        assert isinstance(audit, AuditResult) and len(rows.rows)
        assert all(r['condition'] == 'c' for r in rows.rows)


def test_a_sentence_word_by_word():
    rows = Rows(
        model='cpdm',
        role='model',
        condition='multiomic',
        protocol='patient',
        extractor='image',
        metric='retrieval',
    )
    (
        rows.add(value=0.71, ci_low=0.62, ci_high=0.80),
        rows.add(value=0.5, ci_low=0.41, ci_high=0.59, role='null', estimator='199 permutations'),
        rows.add(metric='retrieval_candidates', value=47),
    )
    assert sentences(rows.frame()) == [
        'With the image scorer, retrieval shows that the condition is carried '
        '(mean normalized rank 0.71 [0.62, 0.80] among 48 candidates, permuted 0.41 to 0.59).'
    ]
    lower = rows.frame().assign(condition='expression', value=lambda d: d.value - 0.01)
    both = sentences(pd.concat([rows.frame(), lower]))
    assert len(both) == 1 and '(multiomic: mean' in both[0] and '; expression: mean' in both[0]
    assert sentences(rows.frame().iloc[:0]) == []
