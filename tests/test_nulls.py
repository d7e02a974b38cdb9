"""Tests named beforehand, families of tests, and the size of the rules on noise."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from radgen.core.paths import RadgenError
from radgen.core.results import Rows, null_interval
from radgen.evaluate.folds import fold_table
from radgen.evaluate.max_t import find_tests, max_t, named_test, named_test_rows, sequential_p
from radgen.evaluate.nulls import (
    RefittedScores,
    label_permutation_null,
    permute_by_keys,
    shared_keys,
)
from radgen.evaluate.outcomes import nested_scores
from radgen.evaluate.refolded import Refolded, refold, refolded_rows, refolded_sentence


def noise_table(seed, n=60, d=4, folds=5):
    X, y = np.random.default_rng(seed).normal(size=(n, d)), np.arange(n) % 2
    return fold_table(X, y, [f'P{i:03d}' for i in range(n)], n_folds=folds, seed=seed)


@pytest.mark.parametrize('n', [39, 199])
def test_the_range_of_a_null_has_the_size_it_promises(n):
    rng, outside = np.random.default_rng(n), 0
    for _ in range(2000):
        observed, *permuted = rng.normal(size=n + 1)
        ends = null_interval(permuted)
        outside += not ends.low <= observed <= ends.high
    assert abs(outside / 2000 - 0.05) < 0.015


def test_pooled_areas_of_noise_are_biased_and_areas_within_folds_are_not():
    how = dict(classifier='logistic', n_candidates=1)
    scores = [nested_scores(table=noise_table(seed, 40, folds=10), **how) for seed in range(40)]
    within = np.mean([s.auroc() for s in scores])
    pooled = np.mean([s.auroc_pooled() for s in scores])
    assert abs(within - 0.5) < 0.05 and pooled < within


def test_a_family_of_one_is_its_own_test():
    values = np.random.default_rng(0).normal(size=99)
    p = max_t({'a': 3.0}, pd.DataFrame({'a': values}))['a']
    everything = np.append(values, 3.0)
    z = np.abs(everything - everything.mean())
    assert p == (1 + (z[:-1] >= z[-1]).sum()) / 100


def test_a_family_counts_every_test():
    rng = np.random.default_rng(0)
    values = pd.DataFrame(rng.normal(size=(199, 10)))
    observed = dict(enumerate([2.2] + [0.0] * 9))
    alone = max_t({0: 2.2}, values[[0]])[0]
    assert alone < 0.06 < max_t(observed, values)[0]


def test_a_family_refuses_what_it_cannot_count():
    with pytest.raises(RadgenError, match='not a number'):
        max_t({'a': np.nan}, pd.DataFrame({'a': [1.0]}))
    with pytest.raises(RadgenError, match='at least one permutation'):
        max_t({'a': 1.0}, pd.DataFrame({'a': []}))


def test_sequential_p_is_valid_and_lazy():
    drawn = []

    def draws():
        for i in range(999):
            drawn.append(i)
            yield 1.0

    assert sequential_p(0.5, draws(), h=4) == (1.0, 4) and len(drawn) == 4
    z = np.random.default_rng(3).random((3000, 100))
    p = np.array([sequential_p(row[0], row[1:], h=5)[0] for row in z])
    for level in (0.05, 0.2):
        assert (p <= level).mean() < level + 0.015


def test_permutations_are_shared_by_patient_and_keep_folds():
    names = np.array([f'P{i}' for i in range(30)])
    keys, few = shared_keys(names, 0, 5), shared_keys(names[10:20], 0, 5)
    assert np.array_equal(keys[10:20], few) and not np.array_equal(keys, shared_keys(names, 1, 5))
    fold = np.arange(30) % 4
    order = permute_by_keys(fold, keys)
    assert sorted(order) == list(range(30)) and (fold[order] == fold).all()


def test_named_test_repeats_the_tuning():
    table = noise_table(1)
    refit = RefittedScores(table, 'logistic', n_candidates=3, inner_folds=2)
    score = nested_scores(table=table, classifier='logistic', n_candidates=3, inner_folds=2)
    assert refit(table.y)[0] == pytest.approx(score.auroc())
    assert refit(table.y)[1] == pytest.approx(score.auprc())
    assert named_test(refit, 19) == named_test(refit, 19)


def test_named_test_holds_its_level_on_noise():
    p = [named_test(RefittedScores(noise_table(s), 'logistic'), 39, h=3)[0] for s in range(24)]
    assert 0.25 < np.mean(p) < 0.75 and np.mean(np.array(p) <= 0.05) <= 0.17


def test_a_score_below_chance_counts():
    y = np.arange(60) % 2
    table = fold_table(np.where(y, -3.0, 3.0)[:, None], y, np.arange(60))
    backwards = RefittedScores(table, 'logistic')
    assert backwards(y)[0] == 1  # the classifier learns either sign
    null = label_permutation_null(table=table, n_permutations=39, classifier='logistic')
    assert null.p_value('auroc') == 2 / 40


def test_tests_are_named_as_they_are_made(capsys):
    assert find_tests(['er pixels'], ['er'], ['radiomics', 'pixels']) == [('er', 'pixels')]
    assert find_tests([], ['er'], ['pixels']) == [] and not capsys.readouterr().out
    assert find_tests(['her2 pixels', 'er pixels'], ['er'], ['pixels']) == [('er', 'pixels')]
    assert 'no p value for her2 pixels, which this run does not make' in capsys.readouterr().out
    with pytest.raises(RadgenError, match='is no test; write LABEL EXTRACTOR'):
        find_tests(['her2'], ['er'], ['pixels'])


def test_a_refit_that_failed_counts_as_extreme():
    permuted = pd.DataFrame({'a': [0.1, -0.2, np.nan, 0.3], 'b': [0.0, 0.1, 0.2, -0.1]})
    assert (max_t({'a': 9.0, 'b': 0.0}, permuted) >= 2 / 5).all()


def test_a_named_test_of_a_rare_label_says_why_it_has_no_p():
    y = np.arange(60) < 2
    refit = RefittedScores(fold_table(np.random.default_rng(0).normal(size=(60, 3)), y, range(60)))
    rows = Rows(condition='expression')
    named_test_rows(rows, refit, 19, label='er')
    assert rows.frame().verdict[0].startswith('not estimable')


# --- other folds ------------------------------------------------------------------------------


def noise_tests(n, k, seed=0):
    "Noise features with k settings of one logistic model, and labels of n patients."
    rng = np.random.default_rng(seed)
    return rng.standard_normal((k, n, 8)), np.arange(n) % 3 == 0


def test_a_low_score_of_noise_is_one_of_its_folds():
    "The lowest of many own assignments is no property of the features."
    (X,), y = noise_tests(90, 1)
    how = dict(n_folds=3, classifier='logistic')
    own = refold(X, y, np.arange(90), 30, seed=5, **how)
    lowest = own.values.min()
    others = refold(X, y, np.arange(90), 20, seed=71, **how)
    assert lowest < others.total().value and others.total().high > 0.5
    assert 'one of its folds' in refolded_sentence('er', lowest, others, below=True)


def test_a_fault_in_the_data_is_below_chance_in_every_fold():
    "A patient whose twin has the other label is learned the wrong way round."
    rng = np.random.default_rng(1)
    X = np.repeat(rng.standard_normal((60, 6)), 2, axis=0)
    y, patients = np.tile([0, 1], 60), np.arange(120)
    tree = refold(X, y, patients, 6, n_folds=5, classifier='xgboost')
    assert tree.total().high < 0.5
    assert 'whatever the folds' in refolded_sentence('er', 0.2, tree, below=True)


def test_the_total_interval_holds_the_folds():
    (X,), y = noise_tests(80, 1, seed=3)
    r = refold(X, y, np.arange(80), 12, n_folds=4, classifier='logistic')
    assert len(set(np.round(r.values, 6))) > 1, 'the same folds were drawn again'
    within = np.mean(((r.high - r.low) / 2 / stats.t.ppf(0.975, 79)) ** 2)
    total = r.total()
    half = (total.high - total.low) / 2
    assert half > stats.norm.ppf(0.975) * np.sqrt(within + r.fold_sd**2 / 12) * 0.99
    assert r.values.mean() == pytest.approx(total.value)


def test_one_assignment_has_no_total_interval():
    (X,), y = noise_tests(80, 1)
    r = refold(X, y, np.arange(80), 1, n_folds=4, classifier='logistic')
    assert math.isnan(r.total().low) and math.isnan(r.fold_sd)
    rows = Rows()
    refolded_rows(rows, r, label='er')
    assert [row['metric'] for row in rows.rows] == ['auroc_refolded']


def test_a_wider_range_of_folds_never_gives_a_stronger_word():
    "Undecided, one of its folds, below chance: width takes words away."
    for spread in (0.001, 0.01, 0.05, 0.2):
        values = 0.5 + spread * np.linspace(-1, 1, 21)
        r = Refolded(values, values - spread, values + spread, 200, 80, 5, 0)
        text = refolded_sentence('er', 0.42, r, below=True)
        assert ('one of its folds' in text) == (spread < 0.08)
        assert ('do not settle' in text) == (spread > 0.08)
        below = Refolded(
            values - 0.15, values - 0.15 - spread, values - 0.15 + spread, 200, 80, 5, 0
        )
        text = refolded_sentence('er', 0.35, below, below=True)
        assert ('whatever the folds' in text) == (below.total().high < 0.5)
