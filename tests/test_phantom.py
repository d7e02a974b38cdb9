"The phantom beyond ten thousand patients: barcodes, and scores of all pairs in bounded memory."

import tracemalloc

import numpy as np
import pandas as pd
import pytest

from radgen.core.paths import RadgenError
from radgen.data.cohort import patient_barcode
from radgen.phantom import clinic
from radgen.phantom.cohort import MAX_PATIENTS, _barcode, simulated_barcodes


def test_barcodes_below_ten_thousand_are_numbers():
    "They are hashed into seeds: these must never change."
    expected = [f'TCGA-PH-{i:04d}' for i in range(1, 10_000)]
    assert list(simulated_barcodes(9_999)) == expected


def test_barcodes_of_any_number_are_different_in_order_and_valid():
    ids = simulated_barcodes(120_000)
    assert ids.is_unique and ids.is_monotonic_increasing and ids.name == 'patient_id'
    assert list(ids[[9_998, 9_999, 10_035]]) == ['TCGA-PH-9999', 'TCGA-PH-A000', 'TCGA-PH-A010']
    assert set(map(patient_barcode, ids)) == set(ids)
    assert _barcode(MAX_PATIENTS) == 'TCGA-PH-ZZZZ' and _barcode(10_000 + 36**3) == 'TCGA-PH-B000'


@pytest.mark.parametrize('n', [0, -1, MAX_PATIENTS + 1])
def test_numbers_of_patients_are_limited(n):
    with pytest.raises(RadgenError, match=f'n_patients={n}: .* from 1 to 1223055'):
        simulated_barcodes(n)


@pytest.fixture
def people():
    "Probabilities, labels, risks and survival of 211 patients, with ties."
    rng = np.random.default_rng(0)
    n = 211
    p, risk = rng.random(n).round(2), rng.normal(size=n).round(1)
    time, event = rng.integers(30, 900, n).astype(float), rng.integers(0, 2, n)
    survival = pd.DataFrame(dict(time_days=time, event=event))
    return p, rng.random(n) < p, risk, survival, rng.uniform(30, 3000, n)


def scores(people):
    p, y, risk, survival, end = people
    return [
        clinic.expected_auroc(p),
        clinic.realized_auroc(y, p),
        clinic.expected_concordance(risk, end),
        clinic.realized_concordance(survival, risk),
    ]


def test_scores_are_those_of_all_pairs_at_once(people):
    "The published phantom has one block: its scores keep every bit."
    p, y, risk, survival, end = people
    weight = np.outer(p, 1 - p)
    np.fill_diagonal(weight, 0)
    order = lambda a, b: (a[:, None] > b) + 0.5 * (a[:, None] == b)
    i, j = np.triu_indices(len(p), 1)
    h = np.exp(risk)
    total, first_end = h[i] + h[j], np.minimum(end[i], end[j])
    scaled = (first_end / clinic.weibull_scale()) ** clinic.WEIBULL_SHAPE
    counted = -np.expm1(-scaled * total)
    t, e = survival.time_days.to_numpy(), survival.event.to_numpy()
    assert scores(people) == [
        (weight * order(p, p)).sum() / weight.sum(),
        order(p[y], p[~y]).mean(),
        (counted * np.maximum(h[i], h[j]) / total).sum() / counted.sum(),
        order(risk, risk)[(t[:, None] < t) & (e[:, None] == 1)].mean(),
    ]


@pytest.mark.parametrize('block', [1, 20, 50, 210, 211])
def test_scores_do_not_depend_on_the_blocks(people, monkeypatch, block):
    whole = scores(people)
    monkeypatch.setattr(clinic, 'BLOCK', block)
    np.testing.assert_allclose(scores(people), whole, rtol=1e-13)


def test_scores_of_many_patients_need_little_memory():
    "5,000 patients have 25 million pairs: 200 MB for each table of all of them."
    rng, n = np.random.default_rng(0), 5_000
    p = rng.random(n)
    tracemalloc.start()
    try:
        clinic.expected_auroc(p)
        clinic.realized_auroc(rng.random(n) < p, p)
        clinic.expected_concordance(p, rng.uniform(30, 3000, n))
        peak = tracemalloc.get_traced_memory()[1] / 2**20
    finally:
        tracemalloc.stop()
    assert peak < 500, peak


def test_scores_of_nobody_and_of_one():
    table = pd.DataFrame(dict(time_days=[5.0], event=[1]))
    for n in (0, 1):
        assert np.isnan(clinic.expected_auroc([0.5] * n))
        assert np.isnan(clinic.realized_auroc([1] * n, [0.5] * n))
        assert np.isnan(clinic.expected_concordance([0.5] * n, [100.0] * n))
        assert np.isnan(clinic.realized_concordance(table[:n], [0.5] * n))
