"The outcome recipes of the released code: what they score on a signal, on noise, on bad input."

import numpy as np
import pandas as pd
import pytest

from radgen.core.paths import RadgenError
from radgen.core.results import Rows
from radgen.evaluate.released_outcomes import (
    RELEASED_SPACE,
    auprc_interpolated,
    compare_arms,
    noise_like,
    pca_of_all,
    released_classifier,
    released_rows,
    released_splits,
    row_standardized,
)
from radgen.evaluate.released_survival import (
    SEARCH_AXES,
    released_cox,
    released_search,
    released_survival,
    search_settings,
)
from radgen.report.as_released import (
    describe_released,
    published_values,
    released_shares,
    table_released,
)
from radgen.report.scorecard import scorecard, table_scorecard

N = 100
FAST = dict(n_draws=1, inner_folds=2)
TUNING = dict(n_splits=2, seed=0) | FAST


@pytest.fixture(scope='module')
def planted():
    "SIMULATED features, labels and survival that depend on the first feature."
    r = np.random.default_rng(0)
    X = r.normal(size=(N, 5)) * [3, 1, 1, 1, 1]
    y = (X[:, 0] + 0.5 * r.normal(size=N) > 0).astype(int)
    death, lost = r.exponential(np.exp(-X[:, 0] / 2)) * 1000, r.uniform(50, 2000, size=N)
    time, event = np.minimum(death, lost), (death <= lost).astype(int)
    return pd.DataFrame(X).add_prefix('f'), y, time, event


def test_a_planted_signal_is_found_and_permuted_labels_are_not(planted):
    X, y, *_ = planted
    how = dict(n_splits=12, **FAST)
    signal = released_splits(pca_of_all(X), y, **how)
    permuted = released_splits(pca_of_all(X), y, permute=True, **how)
    assert signal.frame.auroc.mean() > 0.8
    assert 0.3 < permuted.frame.auroc.mean() < 0.7
    assert len(signal.frame) + sum(signal.left_out.values()) == 12


def test_noise_is_near_one_half_on_average_and_far_from_it_in_single_splits(planted):
    X, y, *_ = planted
    noise = released_splits(noise_like(pca_of_all(X)), y, n_splits=16, **FAST)
    assert abs(noise.frame.auroc.mean() - 0.5) < 0.15
    assert noise.frame.auroc.std() > 0.05


def test_equal_seeds_give_equal_splits(planted):
    X, y, time, event = planted
    Z = noise_like(pca_of_all(X))
    one, same, other = (released_splits(Z, y, n_splits=2, seed=s, **FAST) for s in (1, 1, 2))
    assert one.frame.equals(same.frame) and not one.frame.equals(other.frame)
    search = dict(n_settings=2, n_repeats=1, n_folds=3)
    a, b = (released_search(X, time, event, seed=4, **search).frame for _ in range(2))
    assert a.equals(b)


def test_splits_with_one_class_are_counted():
    r = np.random.default_rng(0)
    y = np.r_[np.ones(4), np.zeros(36)]
    scores = released_splits(r.normal(size=(40, 2)), y, n_splits=8, **FAST)
    assert scores.left_out['one class in the test part'] > 0
    assert len(scores.frame) + sum(scores.left_out.values()) == 8


def test_the_space_is_the_released_one():
    draws = {k: d.rvs(2000, random_state=0) for k, d in RELEASED_SPACE.items()}
    ends = dict(n_estimators=(100, 1000), learning_rate=(0.01, 0.3), max_depth=(3, 9))
    ends |= dict(colsample_bytree=(0.5, 1), subsample=(0.5, 1), gamma=(0, 1))
    ends |= dict(min_child_weight=(1, 5))
    assert set(ends) == set(draws)
    assert all(low <= draws[k].min() and draws[k].max() <= high for k, (low, high) in ends.items())


def test_features_and_areas():
    X = np.array([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]])
    assert np.allclose(row_standardized(X)[1], 0) and np.isclose(row_standardized(X)[0].std(), 1)
    filled = pca_of_all(np.array([[np.nan, 1.0], [2.0, 1.0], [4.0, 1.0]]))
    assert filled.shape == (3, 1) and filled.dtype == np.float32
    assert auprc_interpolated([0, 0, 1, 1], [0.1, 0.2, 0.3, 0.4]) == 1.0


def test_cox_on_a_signal_and_on_permuted_outcomes(planted):
    X, _, time, event = planted
    signal = released_cox(X, time, event, n_splits=8).frame.concordance
    permuted = released_cox(X, time, event, n_splits=8, permute=True).frame.concordance
    assert signal.mean() > 0.65 and 0.3 < permuted.mean() < 0.7


def test_the_best_by_test_concordance_is_above_one_half_on_noise(planted):
    _, _, time, event = planted
    Z = np.random.default_rng(1).normal(size=(N, 3))
    few, many = (
        released_search(Z, time, event, n_settings=n, n_repeats=4, n_folds=5) for n in (1, 8)
    )
    assert many.frame.concordance.mean() > max(0.5, few.frame.concordance.mean())
    assert '8 of 3,630' in many.recipe


def test_fits_that_do_not_converge_are_counted(planted):
    _, _, time, event = planted
    constant = released_cox(np.full((N, 1), np.nan), time, event, n_splits=3)
    assert sum(constant.left_out.values()) + len(constant.frame) == 3
    rows = Rows(condition='expression')
    released_rows(rows, dict(images=constant), {}, label='survival')
    counted = rows.frame().set_index('metric').value
    assert counted['concordance_left_out'] == constant.left_out.get('no convergence', 0)


def test_the_grid_has_the_published_count():
    assert np.prod([len(v) for v in SEARCH_AXES.values()]) == 3630
    settings = search_settings(50, 1)
    assert len({tuple(s.values()) for s in settings}) == 50


@pytest.mark.parametrize(
    'call, message',
    [
        (lambda X, y, t, e: released_splits(X, np.ones(N)), 'two classes'),
        (lambda X, y, t, e: released_splits(X, y * 2), 'must be 0 or 1'),
        (lambda X, y, t, e: released_splits(X[:5], y), '5 rows of features for 100 labels'),
        (lambda X, y, t, e: released_splits(X[:8], [1, 0] * 4), '4 patients in the smaller class'),
        (lambda X, y, t, e: released_cox(X, t * 0, e), '100 of 100 are not above 0'),
        (lambda X, y, t, e: released_cox(X, t, e * 0), 'none of the patients died'),
        (lambda X, y, t, e: released_search(X[:9], t[:9], e[:9] * 0 + 1), '9 patients, fewer than'),
        (lambda X, y, t, e: search_settings(0), 'take 1 to 3630'),
        (lambda X, y, t, e: pca_of_all(np.ones((4, 2))), 'all patients have the same'),
        (lambda X, y, t, e: compare_arms(None, X, X[:3]), '100 images for 3 rows of omics'),
    ],
)
def test_bad_input_is_one_line(planted, call, message):
    with pytest.raises(RadgenError, match=message) as e:
        call(*planted)
    assert '\n' not in str(e.value)


def test_rows_and_their_table(planted, capsys):
    X, y, time, event = planted
    rows = Rows(condition='multiomic')
    of = dict(model='cpdm', extractor='radiomics')
    known = pd.Series(y.astype(float)).where(np.arange(N) > 2)
    values = published_values('subgroup')
    released_classifier(rows, X, X[['f0']], known, values, tuning=TUNING, label='subgroup', **of)
    survival = pd.DataFrame(dict(time_days=np.where(np.arange(N) < 4, 0, time), event=event))
    settings = dict(cox=dict(n_splits=2, seed=0))
    settings |= dict(search=dict(n_settings=1, n_repeats=1, n_folds=3, seed=0))
    made = released_survival(rows, X, X, survival, published_values('survival'), **settings, **of)
    assert '4 of 100 patients have a time of 0' in capsys.readouterr().out
    assert set(made) == {'cox', 'cox search'}
    frame = rows.frame()
    assert set(frame.protocol) == {'released'} and set(frame.n) == {97, 96}
    shares = frame[frame.metric == 'auroc_share_published'].set_index('role').value
    assert set(shares.index) == {'model', 'control', 'upper_bound', 'null'}
    table = table_released(frame)
    assert len(table) == 4 and not (table == '–').to_numpy().any()
    assert 'on noise' in describe_released(frame)
    assert 'cox search: images' in released_shares(frame, 'concordance', 'survival', 'multiomic')
    shown = table_scorecard(scorecard(frame.assign(cohort='phantom'))).iloc[:, -3]
    assert shown.str.contains('images').sum() == 3


def test_a_label_with_few_cases_is_not_estimable(planted):
    X, *_ = planted
    rows, y = Rows(), pd.Series(np.r_[np.ones(3), np.zeros(N - 3)])
    assert released_classifier(rows, X, X, y, {}, tuning=TUNING, label='her2') == {}
    assert rows.frame().verdict.str.startswith('not estimable').all()
    assert describe_released(rows.frame()) == 'No recipe has a score here.'
