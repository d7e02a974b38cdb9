"Intervals: they cover, order and copies do not matter, and few patients have none."

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from radgen.core.intervals import (
    MIN_INTERVAL,
    auroc_interval,
    coverage_note,
    interval_note,
    logit_bootstrap,
    mean_interval,
    patient_bootstrap,
    patient_jackknife,
)
from radgen.core.names import number_text
from radgen.core.results import Rows, add_interval_row, read_rows
from radgen.core.verdicts import Rule, standing
from radgen.core.withheld import no_interval_note, withheld, withhold
from radgen.evaluate.cox import RiskTable, oof_concordance
from radgen.evaluate.outcomes import area_interval
from radgen.evaluate.scores import auprc, auroc
from radgen.validate.coverage import wilson
from radgen.validate.interval_methods import scored_labels, skewed_errors, studies

ROOT = Path(__file__).resolve().parent.parent


def coverage(interval, truth, repetitions=300):
    "Wilson's interval of the coverage of intervals of independent samples."
    made = [interval(np.random.default_rng([7, r])) for r in range(repetitions)]
    return wilson(sum(i.low <= truth <= i.high for i in made), repetitions)


def test_the_mean_of_skewed_errors_is_covered_where_percentiles_are_not():
    "One to five images each. The bound fails for the percentile bootstrap of ten patients."
    truth = math.exp(0.625 * 0.36)
    ours = coverage(lambda rng: mean_interval(*skewed_errors(28, rng), n_boot=300), truth)
    assert ours.high > 0.93

    def percentile(rng):
        values, who = skewed_errors(10, rng)
        return patient_bootstrap(np.mean, who, values, n_boot=100)

    ten = coverage(lambda rng: mean_interval(*skewed_errors(10, rng), n_boot=300), truth)
    worse = coverage(percentile, truth)
    assert worse.high < 0.93 and ten.value > worse.value + 0.03


def test_an_area_is_covered():
    truth = stats.norm.cdf(1.2 / 2**0.5)
    assert coverage(lambda rng: auroc_interval(*scored_labels(40, rng)), truth).high > 0.93


def test_a_share_of_ordered_pairs_is_covered():
    "The concordance of one fold without censoring: a U-statistic, as Kendall's tau."
    rho, n = 0.6, 40
    truth = 0.5 + math.asin(rho) / math.pi

    def interval(rng):
        x = rng.normal(size=n)
        time = np.exp(-(rho * x + math.sqrt(1 - rho**2) * rng.normal(size=n)))
        table = dict(time_days=time, event=1, risk=x, fold=0, ipcw=1.0)
        frame = pd.DataFrame(table, index=[f'P{i}' for i in range(n)])
        return oof_concordance(RiskTable(frame, 1, 0), n_boot=100)

    assert coverage(interval, truth, 200).high > 0.93


@pytest.mark.parametrize('n', [12, 30])
def test_order_and_copies_do_not_matter(n):
    rng = np.random.default_rng(n)
    values, who = skewed_errors(n, rng)
    who, order = np.array([f'P{i:03d}' for i in who]), rng.permutation(len(values))
    ends = lambda i: pytest.approx((i.value, i.low, i.high), rel=1e-9)
    got = lambda i: (i.value, i.low, i.high)
    one = mean_interval(values, who, n_boot=200)
    assert got(mean_interval(values[order], who[order], n_boot=200)) == ends(one)
    assert got(mean_interval(values.repeat(3), who.repeat(3), n_boot=200)) == ends(one)
    assert mean_interval(10 * values, who, n_boot=200).low == pytest.approx(10 * one.low)
    left_out = patient_jackknife(np.mean, who, values)
    assert got(patient_jackknife(np.mean, who[order], values[order])) == ends(left_out)
    y, score = scored_labels(n, rng, prevalence=0.5)
    area, order = auroc_interval(y, score), rng.permutation(n)
    assert area.value == pytest.approx(auroc(y, score))
    assert got(auroc_interval(y[order], score[order])) == ends(area)
    assert got(auroc_interval(y, np.exp(score))) == ends(area)
    other = auroc_interval(1 - y, -score)
    assert (other.low, other.high) == pytest.approx((area.low, area.high), rel=1e-9)


def test_a_tie_counts_half():
    rng = np.random.default_rng(3)
    y, score = rng.integers(2, size=40), rng.integers(3, size=40).astype(float)
    i = auroc_interval(y, score)
    above = [[(a > b) + (a == b) / 2 for b in score[y == 0]] for a in score[y == 1]]
    k = np.array(above, dtype=float)
    assert i.value == pytest.approx(k.mean()) == pytest.approx(auroc(y, score))
    error = math.sqrt(sum(k.mean(a).var(ddof=1) / k.shape[1 - a] for a in (0, 1)))
    logit = lambda p: math.log(p / (1 - p))
    half = 1.959964 * error / (i.value * (1 - i.value))
    assert logit(i.high) - logit(i.low) == pytest.approx(2 * half, rel=1e-5)


def test_constant_errors_have_a_point():
    who = np.repeat(np.arange(15), 2)
    i = mean_interval(np.full(30, 0.2), who)
    assert i.value == pytest.approx(0.2) and i.low == i.high == i.value
    zero = mean_interval(np.zeros(30), who)
    assert (zero.value, zero.low, zero.high) == (0, 0, 0)
    assert math.isnan(mean_interval(np.ones(30), who, np.zeros(30)).value)
    rare = mean_interval((np.arange(30) == 3).astype(float), who)
    assert rare.value > 0 and math.isnan(rare.low), 'most resamples have no spread'


def test_one_class_and_perfect_separation():
    assert math.isnan(auroc_interval(np.ones(20), np.arange(20.0)).value)
    y = np.arange(40) < 12
    for of in (auroc_interval(y, y), area_interval('auprc', y, y.astype(float), np.arange(40))):
        assert of.value == of.high == 1 and 0.5 < of.low < 1
    apart = auroc_interval(y, ~y)
    assert apart.value == apart.low == 0 and 0 < apart.high < 0.5
    i = logit_bootstrap(auprc, np.arange(40), y.astype(int), np.zeros(40), n_cases=12)
    assert 0 < i.low < i.value < i.high < 1


@pytest.mark.parametrize('n', [MIN_INTERVAL - 1, MIN_INTERVAL])
def test_few_patients_have_a_value_and_no_interval(n):
    x, who = np.random.default_rng(0).normal(size=3 * n), np.arange(3 * n) % n
    y = (np.arange(n) < 5).astype(int)
    made = [
        mean_interval(x, who),
        patient_jackknife(np.mean, who, x),
        patient_bootstrap(np.mean, who, x, n_boot=50),
        auroc_interval(y, x[:n]),
        logit_bootstrap(auprc, np.arange(n), y, x[:n], n_cases=4, n_boot=200),
    ]
    assert all(math.isfinite(i.value) for i in made)
    assert {math.isfinite(i.low) for i in made} == {n == MIN_INTERVAL}
    rows = Rows(role='model', metric='mse')
    row = pd.Series(add_interval_row(rows, made[0], n_imaged=n))
    assert row.verdict == 'ok'
    note = '' if n == MIN_INTERVAL else f'interval withheld: {n} patients, 10 needed'
    assert interval_note(row) == interval_note(rows.frame().iloc[0]) == note


def test_committed_coverage_decides_what_is_printed():
    rows = read_rows(ROOT / 'figures/phantom/quick/results.csv')
    rows = rows[rows.metric == 'coverage'].set_index(['label', 'estimator'])
    for row in rows.itertuples():
        short = row.ci_high < 0.93
        assert coverage_note(row) == (f'interval withheld: coverage {row.value:.2f}' * short)
    assert coverage_note(None) == ''


def test_the_table_of_methods_is_of_these_studies():
    table = pd.read_csv(ROOT / 'docs/measured/interval_methods.csv')
    assert list(dict.fromkeys(table.statistic)) == list(studies())
    for name, study in studies().items():
        mine = table[table.statistic == name]
        assert set(mine.n) == set(study.sizes)
        assert set(mine.method[mine.chosen]) == {study.chosen}


def test_no_table_prints_an_interval_that_was_seen_to_cover_too_little():
    "Where the measured coverage withholds an interval, no door prints its ends."
    low = pd.DataFrame([dict(metric='kid', value=0.88, ci_high=0.918, n=200)])
    rows = Rows(cohort='x', role='model', model='cpdm')
    for metric in ('kid', 'kid_difference', 'mse'):
        rows.add(metric=metric, value=0.5, ci_low=0.4, ci_high=0.6, n_imaged=64)
    rows.add(metric='kid', value=0.1, ci_low=0.05, ci_high=0.15, role='reference')
    read = withhold(rows.frame(), low)
    assert list(read.ci_low.isna()) == [True, True, False, False]
    assert rows.frame().ci_low.notna().all(), 'the rows themselves keep their ends'
    notes = [no_interval_note(r, measured=low) for r in read.itertuples()]
    assert notes == ['interval withheld: coverage 0.88'] * 2 + ['', '']


def test_a_metric_is_withheld_by_its_worst_quantity_and_not_by_few_repetitions():
    line = dict(metric='auprc', value=0.92, ci_high=0.95, n=200)
    table = pd.DataFrame([line, line | dict(value=0.865, ci_high=0.9055)])
    assert withheld('auprc', table) == 'interval withheld: coverage 0.86'
    assert withheld('auprc', table[:1]) == '' == withheld('auprc', table.assign(n=99))


def test_withheld_ends_decide_nothing():
    assert standing(math.nan, math.nan, Rule(0.05, 0.2)) == 'imprecise'
    row = dict(metric='kid', value=0.5, ci_low=math.nan, ci_high=math.nan, verdict='ok')
    assert number_text(SimpleNamespace(**row)) == f'0.5000 ({withheld("kid")})'
