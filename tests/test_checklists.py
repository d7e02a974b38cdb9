"""Checklists, on whom each transform was fitted, and the code versions of the rows."""

import numpy as np
import pandas as pd
import pytest

from radgen.core.results import Rows
from radgen.data.splits import folds_for
from radgen.load import load_cohort
from radgen.report import page
from radgen.report.checklists import ANSWERED, ITEMS, UNANSWERED, checklist
from radgen.report.example import example_rows
from radgen.report.facts import FACTS
from radgen.report.fitted_on import FITTED_ON_JUDGED, INHERITED, fitted_on, table_fitted_on
from radgen.report.setting_facts import versions_sentence
from radgen.run.training import fitting_rows, fold_parts
from radgen.validate.ablations import ablation_parts

TRAINING = dict(model='cpdm', seed=3, steps=600, validation=0.2, ema_decay=0.995, image_size=32)
TRAINING |= dict(lr=0.002, batch_size=16, overrides=dict(cpdm=dict(steps=700)))
OUTCOMES = dict(n_boot=1000, n_candidates=4, inner_folds=3, pixel_size=24)
NOTEBOOKS = {
    '01_cohort': dict(code='abc', parameters=dict(cohort_options=dict(n_patients=600))),
    '02_train-multiomic-cpdm-patient': dict(code='abc', parameters=TRAINING),
    '05_outcomes-multiomic': dict(code='abc', parameters=OUTCOMES),
}
PROVENANCE = dict(cohort='phantom', profile='quick', code='abc', notebooks=NOTEBOOKS)


@pytest.fixture(scope='module')
def data():
    data = load_cohort('phantom', n_patients=80, n_imaged=24, n_genes=60)
    return data.with_condition('expression').resized(16)


def phantom_rows():
    rows = example_rows('phantom')
    of_05 = rows.metric.isin(['auroc', 'auprc'])
    rows.loc[of_05, 'source_notebook'] = '05_outcomes-' + rows.condition[of_05]
    return rows


def answers(rows, provenance=PROVENANCE):
    table = checklist(rows, provenance)
    return table.set_index(['instrument', 'item'])


# Checklists


def test_four_instruments_in_their_own_numbers():
    sizes = ITEMS.groupby('instrument', sort=False).size().to_dict()
    assert sizes == {'REFORMS': 32, 'CLAIM 2024': 44, 'METRICS': 30, 'TRIPOD+AI': 52}
    numbers = ITEMS[ITEMS.instrument == 'TRIPOD+AI'].item.str.extract(r'(\d+)')[0].astype(int)
    assert numbers.is_monotonic_increasing and set(numbers) == set(range(1, 28))
    assert not ITEMS.duplicated(['instrument', 'item']).any()
    assert set(FACTS) == set(ITEMS.fact) - {'', ANSWERED}


def test_an_item_has_an_answer_with_its_place_or_the_reason_that_it_has_none():
    table = checklist(phantom_rows(), PROVENANCE)
    without = table.source == ''
    assert (table.answer.str.startswith(UNANSWERED) == without).all()
    assert 30 < without.sum() < len(table) - 60
    assert (table[without].answer.str.len() > len(UNANSWERED) + 5).all()
    of_nobody = ITEMS.fact == ''
    assert (table.answer[of_nobody] == UNANSWERED + ITEMS.why[of_nobody]).all()


WHAT = {  # item -> what its answer must hold, from the parameters above or the rows
    ('REFORMS', '2d'): 'make paper COHORT=phantom PROFILE=quick',
    ('REFORMS', '5d'): 'lowest loss on 20 % of training patients, at most 700 steps',
    ('REFORMS', '5e'): 'image_size 32, steps 700, batch_size 16, lr 0.002',
    ('REFORMS', '7b'): 'at most 1000 resamples of patients',
    ('CLAIM 2024', '21'): 'n_patients 600',
    ('CLAIM 2024', '24'): 'seed 3',
    ('CLAIM 2024', '26'): 'best of 4 settings in 3 inner folds',
    ('CLAIM 2024', '37'): 'ER AUROC',
    ('CLAIM 2024', '42'): '3 executed notebooks',
    ('METRICS', '11'): 'trained on at 32, pixels at 24',
    ('METRICS', '13'): 'firstorder',
    ('METRICS', '15'): 'none: no row of a selection',
    ('METRICS', '22'): 'none: no row of a calibration metric',
    ('TRIPOD+AI', '22'): 'ema_decay 0.995',
}


@pytest.mark.parametrize('item', WHAT, ids=' '.join)
def test_what_an_item_asks_for_is_what_answers_it(item):
    assert WHAT[item] in answers(phantom_rows()).answer[item]


OF_PARAMETERS = 'hyperparameters initialization model_choice intended_size interval_method'.split()


def test_without_its_record_an_item_is_open_again():
    bare = answers(phantom_rows(), dict(code='abc'))
    facts = ITEMS.set_index(['instrument', 'item']).fact
    of_parameters = facts[facts.isin([*OF_PARAMETERS, 'full_details', 'rerun'])].index
    assert len(of_parameters) >= 10 and (bare.source[of_parameters] == '').all()
    assert answers(phantom_rows()).source[of_parameters].all()
    fewer = answers(phantom_rows().query("metric not in ['auroc', 'mse', 'kid', 'ssim']"))
    assert 'AUROC' not in fewer.answer['CLAIM 2024', '37']


def test_a_failure_analysis_is_not_claimed():
    line = answers(phantom_rows()).loc[('CLAIM 2024', '39')]
    assert line.answer == UNANSWERED + 'no row says which patients are misclassified'


def test_another_record_is_another_answer():
    other = NOTEBOOKS | {
        '02_train-multiomic-cpdm-patient': dict(parameters=TRAINING | dict(validation=0.0))
    }
    changed = answers(phantom_rows(), PROVENANCE | dict(notebooks=other))
    assert 'fixed at 700 steps' in changed.answer['REFORMS', '5d']


# Fitted on whom


def fitted(data, protocol, factorization=None, share=0.0):
    folds = folds_for(protocol, data.series, 3, 0)
    parts = {f: fold_parts(data.series, folds, f, share, 0) for f in (0, 1, 2, 'final')}
    rows = Rows(cohort='files', role='model', model='cpdm', condition='expression')
    rows.fixed |= dict(protocol=protocol, source_notebook='02_train-expression-cpdm')
    return fitting_rows(rows, data, 'expression', parts, factorization).frame()


def test_folds_over_patients_leave_no_patient_in_both(data):
    table = fitted_on(fitted(data, 'patient', share=0.25))
    assert table.both_high.max() == 0
    line = table[(table['transform'] == 'network') & (table.judged_on == 'held-out patients')].iloc[
        0
    ]
    assert line.fitted_high + 4 == line.judged_high * 2, '24 imaged: 12 train, 4 stop, 8 are judged'
    stop = table[table['transform'] == 'length of training']
    assert (stop.fitted_high >= 4).all()


def test_folds_over_images_count_the_siblings(data):
    frame = fitted(data, 'paper')
    folds = folds_for('paper', data.series, 3, 0)
    patients = data.series.patient_id.to_numpy()
    both = [len(set(patients[folds == f]) & set(patients[folds != f])) for f in range(3)]
    line = fitted_on(frame).query("transform == 'network' and judged_on == 'held-out patients'")
    assert line.both_high.item() == max(both) > 0
    assert line.reading.item() == 'judged patients have a sibling in training'


def test_unpaired_patients_who_factorize_and_are_judged_are_called_transductive(data):
    unpaired = set(data.unpaired('expression'))
    alone = fitted_on(fitted(data, 'patient', set()))
    assert FITTED_ON_JUDGED not in set(alone.reading)
    frame = fitted(data, 'patient', unpaired)
    scored = Rows(cohort='files', condition='expression', protocol='patient', role='model')
    about = dict(metric='auroc', value=0.6, n=56, n_folds=5, subset='test', model='cpdm')
    scored.add(source_notebook='05_outcomes-expression', **about)
    table = fitted_on(pd.concat([frame, scored.frame()], ignore_index=True))
    lines = table[table.reading == FITTED_ON_JUDGED]
    assert lines['transform'].tolist() == ['factorization of the omics']
    assert lines.both_high.item() == len(unpaired)
    assert table[table.notebook == '05_outcomes'].reading.tolist() == [INHERITED]
    read = table_fitted_on(table)
    assert 'unpaired patients' in read['fitted on'][lines.index[0]]
    text = answers(frame).answer['REFORMS', '6a']
    assert 'transductive' in text and 'With folds over patients, none' in text


def test_sizes_of_the_outcome_folds_are_those_of_equal_folds():
    rows = Rows(condition='multiomic', protocol='patient', role='model', model='cpdm')
    rows.add(metric='concordance', value=0.6, n=23, n_folds=5, subset='test')
    line = fitted_on(rows.frame()).iloc[0]
    sizes = [len(x) for x in np.array_split(np.arange(23), 5)]
    assert (line.judged_low, line.judged_high) == (min(sizes), max(sizes))
    assert (line.fitted_low, line.fitted_high) == (23 - max(sizes), 23 - min(sizes))


def test_the_page_holds_the_table_and_the_versions(tmp_path, data):
    rows = pd.concat([phantom_rows(), fitted(data, 'paper').assign(cohort='phantom')])
    rows = rows.reset_index(drop=True)
    made = page.tables(rows, provenance=PROVENANCE)
    facts = dict(cohort='phantom', profile='quick', provenance=PROVENANCE)
    text = page.render_report(rows, made, {}, facts, tmp_path).read_text()
    assert 'Table 9. Fitted on whom' in text and 'have a sibling in training' in text
    assert versions_sentence(rows, PROVENANCE) in text
    page.write_tables(made, tmp_path)
    written = pd.read_csv(tmp_path / 'table9_fitted_on.csv')
    assert written.both_high.max() == made['table9_fitted_on'].both_high.max() > 0


# Versions


@pytest.mark.parametrize(
    'codes,words',
    [
        (('abc', 'abc'), 'All rows are of one code version, abc.'),
        (('abc', 'def'), 'The rows are of 2 code versions'),
        (('abc', None), 'The version of 1 notebooks is not recorded.'),
        ((None, None), 'Of no row the version of the code is recorded.'),
    ],
)
def test_one_line_says_whether_all_rows_are_of_one_version(codes, words):
    rows = pd.DataFrame(dict(source_notebook=['a', 'a', 'b']))
    notebooks = {name: dict(code=code) for name, code in zip('ab', codes) if code}
    assert words in versions_sentence(rows, dict(notebooks=notebooks))


# Ablations


@pytest.mark.parametrize('share', [0.3, 0.5])
@pytest.mark.parametrize('seed', [0, 1, 2])
def test_no_patient_stops_a_training_that_it_scores(data, share, seed):
    parts = ablation_parts(data, 'expression', 2, share, seed)
    who = {name: set(getattr(parts, name).patients) for name in ('train', 'stop', 'score')}
    assert not who['stop'] & who['score']
    assert not who['train'] & (who['stop'] | who['score'])
    held_out = set(data.series.patient_id[folds_for('patient', data.series, 2, seed) == 0])
    assert all(who.values()) and not held_out & set().union(*who.values())
    assert abs(len(who['stop']) - len(who['score'])) <= 1
    assert len(set().union(*who.values())) == 12, 'all training patients have a part'
