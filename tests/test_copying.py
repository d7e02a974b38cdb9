"Copies and membership: known answers, what is refused, and the measured table of planted copies."

import importlib.util
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from radgen.audit.common import AuditResult, toy_audit, toy_images
from radgen.audit.copy_rate import (
    audit_copy_rate,
    audit_set_copies,
    copy_rate_test,
    copy_threshold,
    distance_ratios,
    image_sets,
    visible_share,
)
from radgen.audit.generator import audit_generator, nearest_pairs
from radgen.audit.membership import audit_membership, audit_set_membership
from radgen.core.intervals import exact_interval, patient_share
from radgen.core.names import METRIC_NAMES
from radgen.core.paths import RadgenError
from radgen.core.results import Rows
from radgen.report.sentences import sentences
from radgen.validate.planted_copies import (
    COPY_KINDS,
    DETECTORS,
    SHARES,
    alarm_table,
    altered,
    plant,
    smallest_visible,
)

ROOT = Path(__file__).resolve().parent.parent
MEASURED = ROOT / 'docs/measured/planted_copies.csv'


@pytest.fixture(scope='module')
def toy():
    return toy_audit(n=80)


@pytest.fixture(scope='module')
def sets(toy):
    "Training, held-out and honest generated images of 40, 40 and 60 patients."
    rng = np.random.default_rng(5)
    honest = toy_images(rng.standard_normal((60, 3)), 1, rng)[:, 0]
    return honest, toy.real[:40], toy.real[40:]


def copier(toy):
    "A training image of the fold in the place of each sample."
    rows = [np.flatnonzero(toy.folds != f)[i % 20] for i, f in enumerate(toy.folds)]
    return toy.real[rows]


# intervals


def test_a_share_of_none_has_the_upper_end_of_clopper_and_pearson():
    i = patient_share(np.zeros(120), np.repeat(np.arange(40), 3))
    assert (i.value, i.low) == (0, 0)
    assert i.high == pytest.approx(stats.binomtest(0, 40).proportion_ci().high)
    whole = exact_interval(7, 40)
    assert (whole.low, whole.high) == pytest.approx(tuple(stats.binomtest(7, 40).proportion_ci()))
    assert exact_interval(40, 40).high == 1 and math.isnan(exact_interval(0, 0).value)


def test_the_interval_of_a_share_covers_with_images_of_a_patient_alike():
    rng, hits = np.random.default_rng(0), 0
    for _ in range(300):
        own = rng.beta(0.1, 0.9, 40)
        images = rng.random((40, 4)) < own[:, None]
        i = patient_share(images.ravel(), np.repeat(np.arange(40), 4))
        hits += i.low <= 0.1 <= i.high
    assert stats.binomtest(hits, 300).proportion_ci().high > 0.95


# the rate


def test_distance_ratios_by_hand():
    training = np.array([[[0.0, 0.0]], [[0.3, 0.4]], [[0.6, 0.8]]])
    point = np.array([[[0.06, 0.08]]])  # at 0.1, 0.4 and 0.9 of the three, over the root of 2
    assert distance_ratios(point, training, list('abc')) == pytest.approx([0.1 / 0.4])
    assert distance_ratios(point, training, list('aab')) == pytest.approx([0.1 / 0.9])
    assert distance_ratios(point, training, list('abc'), ['a']) == pytest.approx([0.4 / 0.9])
    with pytest.raises(RadgenError, match='of 2 patients; a distance ratio needs 3'):
        distance_ratios(point, training[:2], list('ab'), ['a'])


def test_a_copied_image_that_two_patients_share_is_a_copy():
    training = np.array([[[0.2, 0.2]], [[0.2, 0.2]], [[0.9, 0.1]]])
    assert distance_ratios(training[:1], training, list('abc')).tolist() == [0]


def test_threshold_is_a_quantile_over_patients():
    ratios = np.arange(1, 200)
    assert copy_threshold(ratios, ratios) == 2  # the second of 199
    assert copy_threshold(ratios, ratios, level=0.05) == 10
    assert copy_threshold([5, 4, 3, 2], list('aabb')) == 2
    with pytest.raises(RadgenError, match='no threshold'):
        copy_threshold([], [])


def test_all_copies_none_and_the_mean_image(toy):
    smooth = np.stack([toy.real[toy.folds != f].mean(0) for f in toy.folds])
    audits = {
        name: audit_copy_rate(toy.real, images, toy.patients, toy.folds)
        for name, images in dict(copier=copier(toy), oracle=toy.oracle, smooth=smooth).items()
    }
    rate = {name: audit.rate().value for name, audit in audits.items()}
    assert (rate['copier'], rate['smooth']) == (1, 0)
    assert abs(rate['oracle'] - audits['oracle'].rate('real').value) < 0.05
    assert audits['copier'].null.p_above == 0.001
    assert min(audits[x].null.p_above for x in ('oracle', 'smooth')) > 0.05
    assert audits['oracle'].visible == 5 / 80


def test_a_planted_share_is_the_rate(toy):
    for n in (4, 8, 40):
        images = np.where(np.arange(80)[:, None, None] < n, copier(toy), 0.5)
        audit = audit_copy_rate(toy.real, images, toy.patients, toy.folds)
        assert audit.rate().value == pytest.approx(n / 80)
        assert (audit.null.p_above <= 0.05) == (n / 80 >= audit.visible)


def frame_of(real, sample, paired):
    names = [f'P{i}' for i in range(len(real))]
    of_samples = names if paired else [f'G{i}' for i in range(len(sample))]
    source = ['real'] * len(real) + ['sample'] * len(sample)
    score = np.r_[real, sample]
    return pd.DataFrame(dict(source=source, patient=names + of_samples, score=score, apart=score))


@pytest.mark.parametrize('paired', [True, False])
def test_the_test_keeps_its_size(paired):
    rng = np.random.default_rng(2)
    draw = lambda: frame_of(rng.random(30), rng.random(30), paired)
    alarms = sum(copy_rate_test(draw(), 0.01, 99, r).p_above <= 0.05 for r in range(100))
    assert stats.binomtest(alarms, 100).proportion_ci().low <= 0.05


def test_more_samples_than_real_images_of_a_patient_raise_no_alarm_by_themselves():
    rng, alarms = np.random.default_rng(3), 0
    for r in range(100):
        frame = frame_of(rng.random(30), rng.random(120), False)
        frame.loc[frame.source == 'sample', 'patient'] = [f'P{i // 4}' for i in range(120)]
        alarms += copy_rate_test(frame, 0.01, 99, r).p_above <= 0.05
    assert stats.binomtest(alarms, 100).proportion_ci().low <= 0.05


@pytest.mark.parametrize('paired', [True, False])
def test_the_smallest_visible_share_is_where_the_alarm_begins(paired):
    rng = np.random.default_rng(4)
    real, far = 1 + rng.random(40), 3 + rng.random(40)
    least = round(visible_share(frame_of(real, far, paired)) * 40)
    p = lambda n: copy_rate_test(frame_of(real, np.r_[np.zeros(n), far[n:]], paired)).p_above
    assert 4 <= least <= 5 and p(least) <= 0.05 < p(least - 1)
    assert math.isnan(visible_share(frame_of(real[:2], far[:2], paired)))


def test_with_folds_over_images_real_images_are_judged_patients_apart():
    rng = np.random.default_rng(6)
    one = toy_images(rng.standard_normal((40, 3)), 1, rng)[:, 0]
    real = np.clip(one.repeat(2, 0) + 0.01 * rng.standard_normal((80, 16, 16)), 0, 1)
    patients, folds = np.arange(40).repeat(2), np.tile([0, 1], 40)
    honest = toy_images(rng.standard_normal((80, 3)), 1, rng)[:, 0]
    audit = audit_copy_rate(real, honest, patients, folds)
    assert audit.threshold > 0.5
    assert audit.rate('real').value == 1  # the sibling trains
    own = audit_copy_rate(real, real[np.arange(80) ^ 1], patients, folds)
    assert own.rate().value == 1 and own.null.p_above > 0.05  # as the real images themselves


# membership


def test_membership_of_training_itself_and_of_images_of_neither_side(toy, sets):
    folds = {f: toy.real[toy.folds != f] for f in range(4)}
    audit = audit_membership(toy.real, toy.patients, toy.folds, folds)
    i = audit.interval(200)
    assert (audit.auroc, i.high, audit.null.p_above) == (1, 1, 0.001) and 0.9 < i.low < 1
    honest, training, held_out = sets
    neither = audit_set_membership(image_sets(honest, training, held_out))
    i = neither.interval()
    assert i.low < 0.5 < i.high and neither.null.p_above > 0.05
    assert np.mean(neither.null.values) == pytest.approx(0.5, abs=0.02)


def test_membership_is_a_half_where_all_are_equally_far(toy):
    equal = {f: np.full((1, 16, 16), 0.5) for f in range(4)}
    flat = np.stack([np.full((16, 16), 0.25)] * 80)
    assert audit_membership(flat, toy.patients, toy.folds, equal).auroc == 0.5


def test_the_membership_of_patients_keeps_its_size(toy):
    rng, alarms = np.random.default_rng(8), 0
    generated = {f: toy_images(rng.standard_normal((20, 3)), 1, rng)[:, 0] for f in range(2)}
    for r in range(100):
        folds = rng.permutation(np.arange(80) % 2)
        audit = audit_membership(
            toy.real, toy.patients, folds, generated, n_permutations=99, seed=r
        )
        alarms += audit.null.p_above <= 0.05
    assert stats.binomtest(alarms, 100).proportion_ci().low <= 0.05 and alarms


def test_membership_refuses_patients_on_both_sides(toy, sets):
    honest, training, held_out = sets
    with pytest.raises(RadgenError, match=r'patients in several folds \(P00\)'):
        names = np.r_[['P00'] * 2, toy.patients[2:]]
        audit_membership(toy.real, names, toy.folds, dict.fromkeys(range(4), honest))
    with pytest.raises(RadgenError, match='one generator per fold'):
        audit_membership(toy.real, toy.patients, toy.folds, {0: honest})
    with pytest.raises(RadgenError, match='no generated image'):
        empty = dict.fromkeys(range(4), honest[:0])
        audit_membership(toy.real, toy.patients, toy.folds, empty)
    with pytest.raises(RadgenError, match='needs held-out images'):
        audit_set_membership(image_sets(honest, training))


def test_few_patients_have_no_membership(toy):
    four = np.r_[0:4, 40:44]
    audit = audit_set_membership(image_sets(toy.real[:9], toy.real[four[:4]], toy.real[four[4:]]))
    made = Rows(model='m', role='model')
    audit.rows(made)
    (row,) = made.rows
    assert row['verdict'] == 'not estimable: 4 patients on the smaller side, 5 needed'


# anyone's images


def test_one_door(sets):
    honest, training, held_out = sets
    some = np.concatenate([honest[:48], training[:12]])
    audit = audit_generator(some, training, held_out)
    assert isinstance(audit, AuditResult) and audit.copies.null.p_above <= 0.05
    assert audit.copies.rate().value >= 0.2 and audit.copies.rate('copy').value == 1
    assert audit.notes[0].startswith('12 of 60 generated images equal a training image')
    first = audit.pairs.head(6)
    assert (first.nndr == 0).all() and (first.generated - 48).tolist() == first.training.tolist()
    assert audit.plot().axes
    honest_audit = audit_generator(honest, training, held_out)
    assert honest_audit.copies.null.p_above > audit.copies.null.p_above
    assert honest_audit.copies.rate().value < audit.copies.rate().value


def test_generated_that_are_the_training_images_are_noted(sets):
    _, training, held_out = sets
    audit = audit_generator(training, training, held_out)
    assert (audit.copies.rate().value, audit.membership.auroc) == (1, 1)
    assert '40 of 40 generated images equal a training image in every pixel.' in audit.notes


def test_without_held_out_images_and_with_patients_on_both_sides(sets):
    honest, training, held_out = sets
    alone = audit_generator(honest, training)
    made = Rows(model='m', role='model')
    alone.rows(made)
    verdict = {r['metric']: r['verdict'] for r in made.rows}
    assert verdict['membership_auroc'].startswith('not estimable') and alone.membership is None
    assert any('training images of other patients take their place' in x for x in alone.notes)
    names = np.arange(40)
    both = audit_generator(honest, training, held_out, patients=names, held_out_patients=names)
    assert both.membership is None and any('40 held-out patients are in' in x for x in both.notes)
    assert both.copies.rate().value < both.copies.rate('copy').value == 1


@pytest.mark.parametrize(
    'change,message',
    [
        (dict(generated=lambda x: x[:0]), 'generated: shape .0, 16, 16.'),
        (dict(generated=lambda x: x[:, :8]), 'generated 8 x 16, training 16 x 16'),
        (dict(generated=lambda x: 255 * x), 'generated: values from .* bring all images'),
        (dict(generated=lambda x: x[0]), 'images .n, height, width. are needed'),
        (dict(generated=lambda x: [x[0], x[1, :4]]), 'generated: images of several sizes'),
        (dict(training=lambda x: np.where(x == x[3], np.nan, x)), 'training: values are missing'),
        (dict(held_out=lambda x: x[:0]), 'held-out: shape'),
        (dict(patients=lambda x: x[1:]), 'training: 39 patients for 40 images'),
        (dict(patients=lambda x: [None, *x[1:]]), r'training: image 0 \(counted from 0\) has no'),
        (dict(patients=lambda x: ['one'] * 40), 'of 1 patients; a distance ratio needs 2'),
    ],
)
def test_what_cannot_be_compared_is_refused(sets, change, message):
    given = dict(zip(('generated', 'training', 'held_out'), sets), patients=list(range(40)))
    ((name, spoil),) = change.items()
    with pytest.raises(RadgenError, match=message) as e:
        audit_generator(**given | {name: spoil(given[name])})
    assert '\n' not in str(e.value)


def test_a_held_out_image_of_training_is_refused(sets):
    honest, training, held_out = sets
    leak = np.concatenate([held_out, training[5:6]])
    with pytest.raises(RadgenError, match='held-out: image 40 .* is a training image, too'):
        image_sets(honest, training, leak)


def test_generated_images_of_a_patient_count_once(sets):
    honest, training, held_out = sets
    generated = np.concatenate([training[:1].repeat(30, 0), honest[:30]])
    names = ['x'] * 30 + [f'y{i}' for i in range(30)]
    made = image_sets(generated, training, held_out, generated_patients=names)
    audit = audit_set_copies(made)
    assert audit.rate().value == pytest.approx((1 + audit.flags('sample')[30:].sum()) / 31)


def test_nearest_pairs_are_sorted_by_the_ratio(sets):
    honest, training, _ = sets
    made = image_sets(honest, training)
    pairs = nearest_pairs(made, 60)
    assert pairs.nndr.is_monotonic_increasing and len(pairs) == 60
    assert np.sort(pairs.nndr) == pytest.approx(
        np.sort(distance_ratios(honest, made.training, made.patients))
    )


# rows and sentences


def rows_of(toy, samples, **options):
    made = Rows(model='cpdm', role='model', condition='multiomic', protocol='patient')
    audit_copy_rate(toy.real, samples, toy.patients, toy.folds, **options).rows(made)
    drawn = {f: toy.real[toy.folds != f] for f in range(4)}
    audit = audit_membership(toy.real, toy.patients, toy.folds, drawn, **options)
    audit.rows(made, n_boot=100)
    made.add(metric='copy_ratio', value=1, ci_low=0.9, ci_high=1.1)
    return made.frame()


def test_rows_have_names_and_sentences_state_no_cause(toy):
    frame = rows_of(toy, copier(toy))
    assert set(frame.metric) <= set(METRIC_NAMES)
    assert frame.set_index('metric').value['copy_rate_p'] == 0.001
    text = ' '.join(sentences(frame, ('copying', 'membership')))
    assert 'More samples count as copies than images of new patients do (1.000 [0.9' in text
    assert 'for real images, smallest visible share 0.06)' in text
    assert 'Training patients are nearer to generated images' in text
    assert not any(word in text for word in ('because', 'sibling', 'memor', 'source'))
    honest = ' '.join(sentences(rows_of(toy, toy.oracle), ('copying',)))
    assert 'Nothing shows that more samples count as copies' in honest
    short = ' '.join(sentences(rows_of(toy, toy.oracle, n_permutations=4)))
    assert short.count('is not tested, since the permutations are too few') == 2


def test_a_run_without_these_rows_says_nothing_of_them():
    made = Rows(model='cpdm', role='model', condition='c', protocol='patient')
    made.add(metric='copy_ratio', value=1, ci_low=0.9, ci_high=1.1)
    text = ' '.join(sentences(made.frame()))
    assert 'No copying is shown' in text and 'count as copies' not in text
    assert 'membership' not in text


def test_too_few_patients_are_a_row(toy):
    made = Rows(model='cpdm', role='model', condition='c', protocol='patient')
    few = slice(0, 4)
    parts = toy.real[few], toy.oracle[few], toy.patients[few], np.arange(4) % 2
    audit_copy_rate(*parts).rows(made)
    assert [r['verdict'] for r in made.rows] == ['not estimable: 4 patients, 5 needed']


# planted copies


def test_kinds_of_copies(toy):
    rng, images = np.random.default_rng(0), toy.real[:30]
    assert np.array_equal(altered(images, 'exact', rng), images)
    inner = np.abs(altered(images * 0 + 0.5, 'offset', rng) - 0.5)
    assert np.allclose(inner, 0.1)
    noisy = altered(images * 0 + 0.5, 'noise', rng)
    assert noisy.std() == pytest.approx(0.05, rel=0.05)
    moved = altered(images, 'shift', rng)
    one_of = [
        any(
            np.array_equal(np.roll(x, by, axis)[3:-3, 3:-3], y[3:-3, 3:-3])
            for by in (-2, -1, 1, 2)
            for axis in (0, 1)
        )
        for x, y in zip(images, moved)
    ]
    assert all(one_of)
    for kind in COPY_KINDS:
        made = altered(images, kind, rng)
        assert made.dtype == np.float32 and 0 <= made.min() and made.max() <= 1


def test_planted_copies_are_of_different_images_and_too_many_are_refused(toy):
    rng, known = np.random.default_rng(0), [x.tobytes() for x in toy.real[40:]]
    planted = plant(toy.real[:40], toy.real[40:], 0.25, 'exact', rng)
    copied = [x.tobytes() for x in planted if x.tobytes() in known]
    assert len(planted) == 40 and len(copied) == len(set(copied)) == 10
    with pytest.raises(RadgenError, match='10 copies of 5 training images'):
        plant(toy.real[:40], toy.real[40:45], 0.25, 'exact', rng)


def test_the_committed_table_holds_every_detector_at_its_size():
    table = pd.read_csv(MEASURED)
    assert set(table.detector) == set(DETECTORS) and table.repetitions.min() >= 40
    assert set(table.share) == set(SHARES) and set(table.kind) == {'none', *COPY_KINDS}
    made = table.repetitions * table.rate
    assert made.to_numpy() == pytest.approx(table.alarms.to_numpy(), abs=0.01)
    nothing = table[table.share == 0]
    assert (nothing.low <= 0.05).all(), nothing
    assert smallest_visible(table).loc['copy_rate', 'exact'] <= 0.05


def test_the_script_goes_on_where_it_ended(tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location('planted', MEASURED.with_suffix('.py'))
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(script, 'SIZE', dict(n_patients=30, n_imaged=30, image_size=16, n_genes=60))
    monkeypatch.setattr(script, 'SPLITS', 2)
    args = ['--cohorts', '1', '--kept', str(tmp_path / 'kept.csv'), '--out']
    monkeypatch.setattr('sys.argv', ['planted', *args, str(tmp_path / 'a.csv')])
    script.main()
    whole = pd.read_csv(tmp_path / 'kept.csv')
    assert 'planted copies' in capsys.readouterr().out
    whole[whole.split == 0].to_csv(tmp_path / 'kept.csv', index=False)  # ended after the first
    monkeypatch.setattr('sys.argv', ['planted', *args, str(tmp_path / 'b.csv')])
    script.main()
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / 'kept.csv'), whole)
    assert (tmp_path / 'a.csv').read_bytes() == (tmp_path / 'b.csv').read_bytes()
    assert alarm_table(whole).repetitions.unique().tolist() == [2]
