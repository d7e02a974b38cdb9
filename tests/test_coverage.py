"Coverage of intervals: the rest of the population, the models of the stage, no repetition lost."

import functools
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from radgen.core.paths import RadgenError
from radgen.core.results import Rows
from radgen.evaluate.cox import cox_oof, survival_table
from radgen.evaluate.folds import feature_steps, fold_table
from radgen.evaluate.outcomes import make_classifier, nested_scores
from radgen.evaluate.survival import concordance, concordance_ipcw, ipcw_weights
from radgen.validate import outcome_coverage as outcomes
from radgen.validate.coverage import attainable, coverage_rows, wilson
from radgen.validate.estimands import (
    classifier_targets,
    concordance_of,
    cox_targets,
    death_pairs,
    normal_population,
)
from radgen.validate.fidelity_coverage import (
    fidelity_coverage,
    fidelity_repetition,
    fidelity_targets,
    stand_in_pairs,
)
from radgen.validate.outcome_coverage import outcome_coverage, outcome_repetition
from radgen.validate.population import Population, only_simulated
from radgen.validate.repetitions import in_pieces, read_lines, repeat

TOY = dict(
    n_patients=90,
    n_folds=3,
    inner_folds=2,
    n_candidates=2,
    penalizers=(0.1,),
    n_boot=60,
    analyses=dict(toy=('logistic', feature_steps())),
)


def toy(n=900, seed=0):
    return normal_population(n, seed=seed)


def population_of(n=40, size=16, seed=0):
    "A population with one or two noise images per patient."
    rng = np.random.default_rng(seed)
    of = np.repeat(np.arange(n), rng.integers(1, 3, n))
    smooth = np.repeat(np.repeat(rng.random((len(of), size // 4, size // 4)), 4, 1), 4, 2)
    ids = pd.Index([f'P{i:03d}' for i in range(n)], name='patient_id')
    survival = pd.DataFrame(
        dict(time_days=rng.integers(1, 900, n), event=(rng.random(n) < 0.5).astype(int)), ids
    )
    return Population(
        (0.7 * smooth + 0.3 * rng.random((len(of), size, size))).astype(np.float32),
        of,
        pd.DataFrame(dict(a=(rng.random(n) < 0.5).astype(float)), ids),
        survival,
        pd.DataFrame(rng.random((n, 5)) * 100, ids),
        f'noise{n}{seed}',
    )


@pytest.mark.parametrize('hits, n', [(0, 10), (190, 200), (200, 200)])
def test_wilson_is_the_closed_form(hits, n):
    z, p = 1.959963984540054, hits / n
    middle, half = (
        (p + z**2 / (2 * n)) / (1 + z**2 / n),
        z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)),
    )
    i = wilson(hits, n)
    assert (i.value, i.low, i.high) == pytest.approx(
        (p, max(0, middle - half), min(1, middle + half)), abs=1e-9
    )


@pytest.mark.parametrize('included', [False, True])
def test_attainable_is_what_a_perfect_interval_reaches(included):
    rng, hits = np.random.default_rng(int(included)), 0
    for _ in range(4000):
        x = rng.permutation(rng.standard_normal(200))
        hits += abs(x[:50].mean() - (x if included else x[50:]).mean()) < 1.959964 / 50**0.5
    i = wilson(hits, 4000)
    assert i.low - 0.01 < attainable(50, 200, included) < i.high + 0.01


@pytest.mark.parametrize('digits', [0, 3])
def test_quick_concordance_equals_the_stage(digits):
    X, _, survival = toy(200, seed=digits)
    s, train = (
        survival.iloc[:120].assign(time_days=lambda d: (d.time_days // 50 + 1) * 50),
        survival.iloc[120:],
    )  # many tied times
    risk = np.round(X.f1.to_numpy()[:120], digits)
    pairs = death_pairs(s.time_days, s.event)
    assert concordance_of(*pairs, risk) == pytest.approx(
        concordance(s.time_days, s.event, risk), abs=1e-12
    )
    weight = ipcw_weights(train.time_days, train.event, s.time_days, 500.0)
    assert concordance_of(*pairs, risk, weight) == pytest.approx(
        concordance_ipcw(train.time_days, train.event, s.time_days, s.event, risk, 500.0), abs=1e-12
    )


def test_targets_are_the_folds_models_on_the_rest():
    X, labels, survival = toy()
    drawn, rest = X.index[:90], X.index[90:]
    table = fold_table(X.loc[drawn], labels.toy[drawn], drawn, n_folds=3, encode=feature_steps())
    scores = nested_scores(table=table, classifier='logistic', n_candidates=3, inner_folds=2)
    target, by_hand = (
        classifier_targets(table, scores, X, feature_steps(), rest, labels.toy[rest]),
        [],
    )
    for k in range(3):
        train = table.patients[table.fold != k]
        mean, sd = X.loc[train].mean(), X.loc[train].std(ddof=0)
        model = make_classifier('logistic', scores.parameters[k]).fit(
            ((X.loc[train] - mean) / sd).to_numpy(), labels.toy[train].astype(int)
        )
        by_hand.append(model.predict_proba(((X.loc[rest] - mean) / sd).to_numpy())[:, 1])
    assert target['auroc_of_folds'] == pytest.approx(
        np.mean([roc_auc_score(labels.toy[rest], s) for s in by_hand]), abs=1e-9
    )
    assert target['auroc'] == pytest.approx(
        roc_auc_score(np.tile(labels.toy[rest], 3), np.concatenate(by_hand)), abs=1e-9
    )


def test_other_models_than_the_stages_are_refused():
    X, labels, survival = toy()
    drawn, rest = X.index[:90], X.index[90:]
    tables = [
        survival_table(
            X.loc[drawn],
            survival.time_days[drawn],
            survival.event[drawn],
            drawn,
            n_folds=3,
            encode=feature_steps(),
            seed=s,
        )
        for s in (0, 1)
    ]
    risks = cox_oof(table=tables[0], penalizers=(0.1,))
    assert (
        0.5
        < cox_targets(tables[0], risks, X, feature_steps(), survival.loc[rest])['concordance']
        < 0.9
    )
    with pytest.raises(RadgenError, match='refitted'):
        cox_targets(tables[1], risks, X, feature_steps(), survival.loc[rest])


def test_no_drawn_patient_judges(monkeypatch):
    X, labels, survival = toy()
    seen = []

    def spy(table, scores, X, prepare, rest, y_rest):
        seen.append((set(table.patients), set(rest)))
        return classifier_targets(table, scores, X, prepare, rest, y_rest)

    monkeypatch.setattr(outcomes, 'classifier_targets', spy)
    for r in range(2):
        outcome_repetition(r, {'toy': X}, labels, survival, **TOY)
    for drawn, rest in seen:
        assert len(drawn) == 90 and not drawn & rest and drawn | rest == set(X.index)
    assert seen[0][0] != seen[1][0]


def test_a_right_interval_covers_and_a_wrong_one_does_not():
    "Intervals of a mean, 95 % and half as wide, and one that is off by its own width."
    rng, sd = np.random.default_rng(0), 1 / 30**0.5
    value = rng.normal(0, sd, 800)

    def rows(half, shift=0.0):
        r = Rows()
        coverage_rows(
            r,
            pd.DataFrame(
                dict(
                    repetition=np.arange(800),
                    label='mean',
                    estimator='plain',
                    extractor=None,
                    classifier=None,
                    value=value + shift,
                    low=value + shift - half,
                    high=value + shift + half,
                    target=0.0,
                    verdict='ok',
                )
            ),
        )
        return r.frame().set_index('metric')

    right, narrow, off = rows(1.96 * sd), rows(0.98 * sd), rows(1.96 * sd, 4 * sd)
    assert (
        right.ci_low['coverage'] < 0.95 < right.ci_high['coverage']
        and right.ci_low['coverage_bias'] < 0 < right.ci_high['coverage_bias']
    )
    assert (
        narrow.ci_high['coverage'] < 0.75
        and narrow.value['coverage_bias'] == right.value['coverage_bias']
    )
    assert off.value['coverage'] < 0.1 and off.ci_low['coverage_bias'] > 3 * sd
    assert right.value['coverage_width'] == pytest.approx(3.92 * sd)


def test_what_gives_no_interval_is_counted_apart():
    X, labels, survival = toy()
    rare = labels.assign(
        toy=(np.arange(len(labels)) < 100).astype(float)
    )  # about 10 of 90 drawn: some repetitions have enough, some not
    found = pd.concat(
        [
            pd.DataFrame(outcome_repetition(r, {'toy': X}, rare, survival, **TOY)).assign(
                repetition=r
            )
            for r in range(8)
        ]
    )
    rows = Rows()
    coverage_rows(rows, found)
    t = (
        rows.frame()
        .query("label == 'AUROC, toy' and estimator == 'mean of folds'")
        .set_index('metric')
    )
    some = (
        found.query("label == 'AUROC, toy' and estimator == 'mean of folds'").verdict == 'ok'
    ).sum()
    assert (
        2 <= some < 8
        and t.n['coverage'] == some
        and t.value['coverage_left_out'] == pytest.approx(1 - some / 8)
    )


CHILD = """
import sys, time
from radgen.validate.repetitions import repeat
def slow(r):
    time.sleep(.05)
    return [dict(label='toy', value=r**.5)]
repeat(slow, 200, sys.argv[1])
"""


def test_kill_9_loses_no_repetition(tmp_path):
    path = tmp_path / 'toy.jsonl'
    child = subprocess.Popen(
        [sys.executable, '-c', CHILD, str(path)], stdout=subprocess.PIPE, text=True
    )
    until = time.monotonic() + 60
    while time.monotonic() < until and len(read_lines(path)) < 5:
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    kept, again = read_lines(path), []
    assert 5 <= len(kept) < 200
    with open(path, 'a') as f:
        f.write('{"repetition": 190, "records": [{"la')  # and a line that was being written

    def quick(r):
        again.append(r)
        return [dict(label='toy', value=r**0.5)]

    table = repeat(quick, 200, path, progress=False)
    assert again == list(range(len(kept), 200))
    pd.testing.assert_frame_equal(
        table,
        repeat(
            lambda r: [dict(label='toy', value=r**0.5)],
            200,
            tmp_path / 'whole.jsonl',
            progress=False,
        ),
    )
    assert path.read_text() == (tmp_path / 'whole.jsonl').read_text()


def test_more_repetitions_continue_and_other_settings_start_anew(tmp_path, monkeypatch):
    population = population_of(120)
    monkeypatch.setattr(outcomes, 'ANALYSES', dict(expression=('logistic', feature_steps())))
    settings = dict(
        n_patients=60, n_folds=2, inner_folds=2, n_candidates=1, penalizers=[0.1], n_boot=40
    )
    run = lambda n, **more: outcome_coverage(
        population, tmp_path, n, ['a'], 8, progress=False, **settings | more
    )
    two = run(2)
    three = run(3)
    pd.testing.assert_frame_equal(three[three.repetition < 2], two)
    assert len(list(tmp_path.glob('outcomes-*.jsonl'))) == 1
    other = run(2, seed=1)
    assert len(list(tmp_path.glob('outcomes-*.jsonl'))) == 2 and not np.allclose(
        other.value, two.value
    )


def test_processes_do_not_change_the_result(tmp_path):
    X, labels, survival = toy()
    one = functools.partial(
        outcome_repetition, features={'toy': X}, labels=labels, survival=survival, **TOY
    )
    alone, shared = (
        repeat(one, 3, tmp_path / f'{n}.jsonl', n_jobs=n, progress=False) for n in (1, 2)
    )
    pd.testing.assert_frame_equal(alone, shared)


def test_fidelity_is_of_whole_patients_and_their_donors(tmp_path):
    population = population_of(40)
    pairs = stand_in_pairs(population, tmp_path, 20, progress=False)
    assert set(pairs.patients) == set(range(20)) and len(pairs.real) == len(pairs.features) == len(
        pairs.generated_features
    )
    for p in range(20):
        rows = pairs.of([p])
        assert (pairs.real[rows] == population.images[population.of == p]).all() and np.ptp(
            pairs.generated[rows], axis=0
        ).max() == 0
        assert np.ptp(pairs.generated_features.to_numpy()[rows], axis=0).max() == 0
    with pytest.raises(RadgenError, match='too small'):
        stand_in_pairs(population, tmp_path, 21, progress=False)
    targets = fidelity_targets(pairs, 2)
    assert targets['mse'] == pytest.approx(((pairs.real - pairs.generated) ** 2).mean(), rel=1e-5)
    everybody = {
        r['label']: r
        for r in fidelity_repetition(
            0, pairs, targets, n_patients=20, n_components=2, n_boot=40, n_splits=3
        )
    }
    for label in ('MSE', 'SSIM', 'KID'):
        assert everybody[label]['value'] == pytest.approx(
            everybody[label]['target'], rel=1e-4
        )  # the whole population is its own estimate


def test_frechet_distance_is_held_against_both_targets(tmp_path):
    pairs = stand_in_pairs(population_of(40), tmp_path, 20, progress=False)
    found = fidelity_coverage(
        pairs, tmp_path, 6, 2, progress=False, n_patients=12, n_boot=40, n_splits=3
    )
    own, whole = (
        found[(found.label == 'radiomics Frechet') & (found.estimator == e)]
        for e in ('expectation at this n', 'whole population')
    )
    assert (
        np.allclose(own.target, own.value.mean())
        and (own.value.to_numpy() == whole.value.to_numpy()).all()
        and whole.target.nunique() == 1
    )


def test_damaged_piece_is_made_again(tmp_path):
    make = lambda a, b: dict(x=np.arange(a, b))
    in_pieces(tmp_path, make, 10, 5, progress=False)
    file = tmp_path / '00005-00010.npz'
    file.write_bytes(file.read_bytes()[:40])
    assert (
        np.concatenate([p['x'] for p in in_pieces(tmp_path, make, 10, 5, progress=False)])
        == np.arange(10)
    ).all()


def test_only_simulated_cohorts():
    only_simulated('phantom'), only_simulated('phantom_link0')
    with pytest.raises(RadgenError, match='published') as e:
        only_simulated('published')
    assert '\n' not in str(e.value)
