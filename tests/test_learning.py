"The learning curve: who trains, what stays after an interruption, and known answers."

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

from radgen.audit.tstr import audit_tstr
from radgen.conditions.encoder import ConditionEncoder
from radgen.core.paths import RadgenError
from radgen.core.results import Rows
from radgen.evaluate.scores import auroc
from radgen.validate import learning
from radgen.validate.learning import image_rows, learning_curve, learning_point
from radgen.validate.learning_cohort import (
    Point,
    control_images,
    learning_cohort,
    learning_points,
    training_sets,
)

torch.set_num_threads(1)
SMALL = dict(n_train=10, n_test=8, n_unpaired=30, image_size=16, n_genes=60)
TINY = dict(
    n_components=3,
    patch=1,
    dim=8,
    dim_mults=(1, 2),
    steps=3,
    batch_size=4,
    ema_decay=0.9,
    precision='fp32',
    n_samples=2,
    sampler='ddim',
    denoising_steps=2,
    frechet_components=1,
    n_boot=40,
    n_splits=2,
    progress=False,
)


@pytest.fixture(scope='module')
def data():
    return learning_cohort(1.0, 0, **SMALL)


def test_test_patients_never_train_and_trainings_are_nested(data, tmp_path, monkeypatch):
    trained, real_fit = [], learning.fit

    def spy(net, images, given, *args, **more):
        trained.append((images.copy(), list(given.index)))
        return real_fit(net, images, given, *args, **more)

    monkeypatch.setattr(learning, 'fit', spy)
    for n in (4, 10):
        learning_point(Point(0, 1.0, n), data, tmp_path / str(n), **TINY)
    (few, of_few), (many, of_many) = trained
    assert len(set(of_few)) == 4 and len(set(of_many)) == 10 and set(of_few) < set(of_many)
    assert not set(of_many) & set(data.test) and not set(of_many) & set(data.unpaired)
    test = data.images[data.rows(data.test)]
    assert not any((x == t).all() for x in many for t in test)
    assert all(any((x == y).all() for y in many) for x in few)


def test_links_share_everything_but_the_images(data):
    cut = learning_cohort(0.0, 0, **SMALL)
    assert list(cut.test) == list(data.test) and list(cut.train) == list(data.train)
    (
        pd.testing.assert_frame_equal(cut.labels, data.labels),
        pd.testing.assert_frame_equal(cut.series, data.series),
    )
    assert not np.allclose(cut.images, data.images, atol=0.02)


def test_controls_do_not_depend_on_training(data, tmp_path):
    a, b = (
        learning_point(Point(0, 1.0, 6), data, tmp_path / str(s), **TINY | dict(steps=s))
        for s in (1, 4)
    )
    pick = lambda t, role: t[(t.role == role) & (t.metric != 'training_steps')].reset_index(
        drop=True
    )
    pd.testing.assert_frame_equal(pick(a, 'control'), pick(b, 'control'))
    assert not np.allclose(pick(a, 'model').value.dropna(), pick(b, 'model').value.dropna())


def test_known_answers(data):
    at = data.rows(data.test)
    real, who = data.images[at], data.series.patient_id.to_numpy()[at]
    encoder = ConditionEncoder('multiomic', 3).fit(data.given.loc[data.train])
    own = np.stack(
        [real[who == w].mean(0) for w in who]
    )  # an oracle: the mean of the patient's own images
    wrong = np.stack(
        [real[who == np.roll(data.test, 1)[data.test.get_loc(w)]].mean(0) for w in who]
    )
    rows = Rows()
    image_rows(
        rows,
        real,
        who,
        dict(oracle=own, wrong=wrong, **control_images(data, 10, encoder, who)),
        dict(oracle='model', wrong='model', mean_image='control', nearest_copy='control'),
        frechet_components=1,
        n_boot=40,
        n_splits=2,
    )
    t = rows.frame().pivot_table(index='model', columns='metric', values='value')
    assert (
        t.retrieval['oracle'] > 0.85
        and t.retrieval['wrong'] < 0.65
        and t.retrieval['mean_image'] == 0.5
    )
    assert (
        t.mse_ratio['oracle'] < 0.8 < 1 < t.mse_ratio['wrong']
        and 'mean_image' not in t.mse_ratio.dropna()
    )
    ratio = rows.frame().query("metric == 'mse_ratio' and model == 'oracle'").iloc[0]
    assert (
        ratio.value == pytest.approx(t.mse['oracle'] / t.mse['mean_image'], rel=1e-6)
        and np.isnan([ratio.ci_low, ratio.ci_high]).all()  # fewer than ten patients
    )


def test_use_is_learned_from_the_patients_it_says():
    wide = learning_cohort(1.0, 0, n_train=60, n_test=60, n_unpaired=60, image_size=16, n_genes=60)
    marked = np.array(wide.images)
    marked[:, :4, :4] = (
        0.2 + 0.6 * (wide.labels.er[wide.series.patient_id].to_numpy() == 1)[:, None, None]
    )
    wide = dataclasses.replace(wide, images=marked)
    plain, at = np.broadcast_to(marked.mean(0), (60, 16, 16)), wide.rows(wide.test)

    def used(data, n):
        found = audit_tstr(
            training_sets(data, dict(cpdm=plain), n),
            data.images[at],
            data.labels.er,
            data.series.patient_id.to_numpy()[at],
            np.zeros(len(at), int),
            omics=data.given,
            condition='multiomic',
            n_components=4,
        )
        return found.scores, found.verdicts

    t, _ = used(wide, 60)
    assert (
        auroc(t.label, t.real) > 0.95
        and auroc(t.label, t.cpdm) == 0.5
        and auroc(t.label, t.omics_direct) > 0.8
    )
    poisoned = np.array(marked)
    poisoned[wide.rows(wide.train[50:])] = 0  # those do not belong to the first 50
    a, b = (used(data, 50)[0] for data in (wide, dataclasses.replace(wide, images=poisoned)))
    pd.testing.assert_series_equal(a['real'], b['real'])
    assert used(wide, 6)[1]['real'].startswith('not estimable')


def test_finished_points_stay(tmp_path, monkeypatch):
    settings = dict(
        n_test=8, n_unpaired=30, image_size=16, n_genes=60, fields=dict(cohort='phantom'), **TINY
    )
    points, done, real_point = learning_points([4, 6], [1.0, 0.0]), [], learning.learning_point

    def counted(p, *args, **more):
        done.append(p)
        if len(done) == 3:
            raise KeyboardInterrupt
        return real_point(p, *args, **more)

    monkeypatch.setattr(learning, 'learning_point', counted)
    with pytest.raises(KeyboardInterrupt):
        learning_curve(points, tmp_path, **settings)
    curve = learning_curve(points, tmp_path, **settings)
    assert done == [
        *points[:3],
        *points[2:],
    ]  # the third was stopped and is done again, the first two are not
    assert (
        curve.groupby(['subset', 'n_imaged'], sort=False).ngroups == 4
        and (curve.cohort == 'phantom').all()
    )
    monkeypatch.setattr(
        learning, 'learning_point', lambda *a, **k: pytest.fail('nothing was left to do')
    )
    pd.testing.assert_frame_equal(curve, learning_curve(points, tmp_path, **settings))


def test_other_settings_are_other_points(tmp_path):
    settings = dict(n_test=8, n_unpaired=30, image_size=16, n_genes=60, **TINY)
    points = learning_points([4], [1.0])
    a, b = (
        learning_curve(points, tmp_path, **settings),
        learning_curve(points, tmp_path, **settings | dict(steps=2)),
    )
    assert len(list((tmp_path / 'points').glob('*.csv'))) == 2
    assert (
        a.query("metric == 'training_steps'").value.item() == 3
        and b.query("metric == 'training_steps'").value.item() == 2
    )


def test_errors_are_one_line(data, tmp_path):
    for call, said in (
        (lambda: learning_points([2], [1.0]), 'at least 4'),
        (lambda: learning_point(Point(0, 1.0, 11), data, tmp_path, **TINY), 'the phantom has 10'),
        (lambda: learning_cohort(2.0, 0, **SMALL), 'from 0 to 1'),
        (
            lambda: learning_point(Point(0, 1.0, 4), data, tmp_path, **TINY | dict(model='cpmd')),
            'unknown model',
        ),
    ):
        with pytest.raises(RadgenError, match=said) as e:
            call()
        assert '\n' not in str(e.value)
