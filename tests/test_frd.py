"""What is called FRD elsewhere, from our parts, equals `frd-score`; what is ours has another name.

The numbers are those of `tests/make_frd_fixture.py`.
"""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from radgen.core.names import FIDELITY_METRICS, metric_text
from radgen.evaluate.distances import frechet_distance, radiomics_frechet, scale_on

ROOT = Path(__file__).resolve().parent.parent
FIXTURE = json.loads((ROOT / 'tests' / 'frd_fixture.json').read_text())
V0_TOP = 7.45670747756958  # the features of version 0 lie between 0 and this


def features(version):
    return [np.array(FIXTURE['features'][version][name]) for name in ('first', 'second')]


def test_version_0_is_our_distance_of_features_between_the_ends_of_both_sets():
    first, second = features('v0')
    both = np.r_[first, second]
    low, span = both.min(0), np.ptp(both, 0)
    varies = span > 0  # the others are equal everywhere, and add nothing
    assert varies.sum() >= 10
    scaled = [V0_TOP * (x - low)[:, varies] / span[varies] for x in (first, second)]
    assert frechet_distance(*scaled) == pytest.approx(FIXTURE['values']['v0'], rel=1e-6)


def test_version_1_is_the_logarithm_of_our_distance_on_the_scale_of_the_first_set():
    first, second = features('v1')
    scaled = scale_on(first, first, second, clip=np.inf)
    assert scaled[0].shape[1] < first.shape[1], 'constant features are left out by both'
    ours = np.log(frechet_distance(*scaled))
    assert ours == pytest.approx(FIXTURE['values']['v1'], rel=1e-5)  # theirs in single precision


def test_our_distance_on_components_is_another_number():
    first, second = features('v1')
    ours = radiomics_frechet(first, second)
    for theirs in (FIXTURE['values']['v1'], np.exp(FIXTURE['values']['v1'])):
        assert ours != pytest.approx(theirs, rel=0.01)


def test_nothing_of_ours_is_called_frd():
    assert 'radiomics_frechet' in FIDELITY_METRICS and 'frd' not in FIDELITY_METRICS
    word = re.compile(r'\bfrd\b', re.IGNORECASE)
    assert not any(word.search(metric_text(m)) for m in FIDELITY_METRICS)
    kinds = ('py', 'csv', 'json', 'html')
    sources = [p for kind in kinds for p in sorted((ROOT / 'radgen').rglob(f'*.{kind}'))]
    assert len(sources) > 100
    assert [p.name for p in sources if word.search(p.read_text(encoding='utf-8'))] == []
    results = sorted((ROOT / 'figures').glob('*/*/results.csv'))
    metrics = {m for p in results for m in pd.read_csv(p, usecols=['metric']).metric.unique()}
    assert 'radiomics_frechet' in metrics and not any(map(word.search, metrics))
