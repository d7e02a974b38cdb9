"""No metric returns a number for corrupt input: it refuses it in one line."""

import numpy as np
import pytest

from radgen.core.paths import RadgenError
from radgen.evaluate.distances import frechet_distance, kid, radiomics_frechet
from radgen.evaluate.diversity import ms_ssim, precision_recall
from radgen.evaluate.paired import legacy_fid, mse, ssim
from radgen.evaluate.scores import auprc, auroc
from radgen.evaluate.survival import concordance, concordance_ipcw, concordant_pairs

N = 24


def uno(time, event, risk):
    return concordance_ipcw(time, event, time, event, risk)


def scored(rng):
    return [np.arange(N) % 2, rng.normal(size=N)]


def followed(rng):
    return [rng.uniform(1, 900, N), np.arange(N) % 2, rng.normal(size=N)]


def measured(rng):
    return [rng.normal(size=(N, 6)), rng.normal(size=(N, 6))]


def drawn(rng):
    return [rng.random((4, 24, 24)), rng.random((4, 24, 24))]


METRICS = {
    auroc: scored,
    auprc: scored,
    concordance: followed,
    uno: followed,
    concordant_pairs: followed,
    kid: measured,
    radiomics_frechet: measured,
    frechet_distance: measured,
    precision_recall: measured,
    mse: drawn,
    ssim: drawn,
    legacy_fid: drawn,
    ms_ssim: drawn,
}


def spoilt(x, how, rng):
    "One argument, corrupted."
    x = np.array(x, dtype=float)
    if how == 'shorter':
        return x[:-1]
    if how == 'words':
        return np.full(x.shape, 'a word')
    if how == 'another dimension':
        return x[None, None]
    if how == 'empty':
        return x[:0]
    if how == 'all missing':
        return np.full(x.shape, np.nan)
    row = rng.integers(len(x))
    x[row] = np.nan if how == 'one missing' else np.inf
    return x


FAULTS = [
    'shorter',
    'words',
    'another dimension',
    'empty',
    'all missing',
    'one missing',
    'one infinite',
]
MAY_DIFFER = (kid, radiomics_frechet, frechet_distance, precision_recall)  # two sets of any size


@pytest.mark.parametrize('metric', METRICS, ids=lambda m: m.__name__)
@pytest.mark.parametrize('how', FAULTS)
def test_corrupt_input_is_refused(metric, how):
    rng = np.random.default_rng(0)
    for k in range(len(METRICS[metric](rng))):
        given = METRICS[metric](rng)
        assert np.isfinite(np.asarray(metric(*given), dtype=float)).all()  # as it should be
        given[k] = spoilt(given[k], how, rng)
        if how == 'shorter' and metric in MAY_DIFFER:
            continue
        with pytest.raises(RadgenError) as e:
            metric(*given)
        assert '\n' not in str(e.value) and len(str(e.value)) < 300


@pytest.mark.parametrize('value', [2, -1, 0.5, np.nan])
@pytest.mark.parametrize('metric, at', [(auroc, 0), (auprc, 0), (concordance, 1), (uno, 1)])
def test_labels_and_events_are_zero_or_one(metric, at, value):
    given = METRICS[metric](np.random.default_rng(1))
    given[at] = given[at].astype(float)
    given[at][3] = value
    with pytest.raises(RadgenError, match='must be 0 or 1'):
        metric(*given)


@pytest.mark.parametrize('metric', [mse, ssim, ms_ssim, legacy_fid], ids=lambda m: m.__name__)
def test_pixels_of_another_scale_are_refused(metric):
    real, generated = drawn(np.random.default_rng(2))
    for wrong in (255 * generated, generated - 0.5):
        with pytest.raises(RadgenError, match=r'bring them to \[0, 1\]'):
            metric(real, wrong)


@pytest.mark.parametrize('distance', [kid, radiomics_frechet], ids=lambda m: m.__name__)
def test_missing_features_do_not_make_sets_alike(distance):
    rng = np.random.default_rng(3)
    real, generated = rng.normal(size=(40, 10)), rng.normal(2, 1, size=(40, 10))
    far = distance(real, generated)
    for share in (0.03, 0.5, 0.9):
        some = np.where(rng.random(generated.shape) < share, np.nan, generated)
        some[:, 0] = generated[:, 0]
        assert distance(real, some) > far
    assert distance(real, np.where(np.arange(10) == 4, np.nan, generated)) > far
    assert distance(real, np.where(np.arange(10) == 4, np.nan, real)) > distance(real, real) + 1
    with pytest.raises(RadgenError, match='image 4 has no value'):
        distance(real, np.where(np.arange(40)[:, None] == 4, np.nan, generated))


def test_a_negative_time_is_refused():
    time, event, risk = followed(np.random.default_rng(4))
    time[2] = -3
    with pytest.raises(RadgenError, match='negative'):
        concordance(time, event, risk)
