"""Tables, scorecard, sentences and page: views of rows, rules, and HTML that fits its window."""

import html
import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from radgen.core.names import NOT_RUN, TRAINED_MODELS
from radgen.core.paths import RadgenError
from radgen.core.results import COLUMNS, Rows, write_rows
from radgen.core.rows import quotable
from radgen.report import page, scorecard
from radgen.report.checklists import ANSWERED, ITEMS, UNANSWERED, checklist
from radgen.report.conclusions import carried_sentence, conclusion
from radgen.report.control_tables import CONTROL_SECTIONS, table_controls
from radgen.report.describe import (
    describe_cohort,
    describe_fidelity,
    describe_generation,
    describe_outcomes,
    describe_survival,
    describe_training,
    sibling_sentence,
)
from radgen.report.display import text_table
from radgen.report.facts import FACTS, RunFacts
from radgen.report.figures import FIGURES, figures_for, find_figures
from radgen.report.plots import fig_scorecard
from radgen.report.published import preprint_sentence
from radgen.report.readme import scorecard_markdown, short_table
from radgen.report.tables import table_fidelity, table_siblings

CHROMIUM = next(
    (
        p
        for p in map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome', 'chrome'))
        if p
    ),
    None,
)
TEMPLATE = files('radgen.report').joinpath('template.html').read_text(encoding='utf-8')
VOID = set('area base br col embed hr img input link meta source track wbr'.split())


def make_rows(cohort='published', image_size=128, **text):
    """What a run writes, in miniature; values are chosen, not measured."""
    rows = Rows(cohort=cohort, profile='smoke', source_notebook='test')
    put = lambda value, half, **fields: rows.add(
        value=value, ci_low=value - half, ci_high=value + half, **fields
    )
    for condition in ('multiomic', 'expression'):
        for protocol in ('paper', 'patient'):
            row = dict(
                condition=condition,
                protocol=protocol,
                image_size=image_size,
                n=58,
                n_imaged=28,
                n_folds=15,
                subset='all',
                estimator='single',
            )
            for metric, values in dict(
                legacy_fid=(1.6, 2.0, 2.4, 0.7),
                mse=(0.017, 0.019, 0.021, 0.01),
                ssim=(0.61, 0.5, 0.55, 0.7),
                kid=(0.05, 0.1, 0.04, 0.0),
            ).items():
                for (role, model), v in zip(
                    (
                        ('model', 'cpdm'),
                        ('control', 'mean_image'),
                        ('control', 'nearest_copy'),
                        ('reference', 'real'),
                    ),
                    values,
                ):
                    put(v, abs(v) * 0.04, metric=metric, role=role, model=model, **row)
            rows.unavailable(
                'its weights are not cached',
                metric='inception_fid',
                role='model',
                model='cpdm',
                **row,
            )
        row = dict(
            condition=condition,
            protocol='patient',
            subset='test',
            n=119,
            n_events=60,
            label='subgroup',
        )
        for metric in ('auroc', 'auprc'):
            for extractor, v in (('pixels', 0.9), ('radiomics', 0.8)):
                put(
                    v,
                    0.05,
                    metric=metric,
                    role='model',
                    model='cpdm',
                    extractor=extractor,
                    classifier='xgboost',
                    **row,
                )
                put(
                    0.5,
                    0.1,
                    metric=metric,
                    role='null',
                    model='cpdm',
                    extractor=extractor,
                    classifier='xgboost',
                    **row,
                )
            put(
                0.96,
                0.02,
                metric=metric,
                role='upper_bound',
                model='omics_direct',
                extractor='omics',
                classifier='logistic',
                **row,
            )
        row = dict(
            condition=condition,
            protocol='patient',
            subset='test',
            n=28,
            n_events=0,
            label='survival',
            classifier='cox',
            model='cpdm',
            extractor='radiomics',
        )
        rows.not_estimable('0 events, 10 needed', metric='concordance', role='model', **row)
    rows.add(
        metric='patients_generated',
        value=1063,
        role='model',
        model='cpdm',
        condition='expression',
        protocol='patient',
        subset='all',
    )
    for subset, n in (('all', 1091), ('imaged', 28)):
        rows.add(metric='count', label='patients', subset=subset, value=n)
    return rows.frame().assign(**text)


@pytest.fixture(scope='module')
def rows():
    return make_rows()


@pytest.fixture(scope='module')
def html_page(rows, tmp_path_factory):
    """A page with all tables, one figure and long unbreakable words."""
    from radgen.core.style import save_figure
    from radgen.evaluate.image_plots import fig_fidelity

    folder = tmp_path_factory.mktemp('report')
    made_by = dict(simulated=True, source='04_fidelity-multiomic cell 7')
    save_figure(fig_fidelity(rows), 'fidelity', folder, **made_by)
    facts = dict(
        cohort='phantom',
        profile='smoke',
        simulated=True,
        provenance=dict(code='c' * 200, packages=dict(numpy='x' * 300)),
    )
    made = page.tables(make_rows('phantom'), simulated=True)
    return page.render_report(
        make_rows('phantom'), made, find_figures(folder), facts, folder / 'report.html'
    )


# The rule

NAN = math.nan
# Tables


def as_text(table, name):
    "A table as it is read."
    kind = page.kind_of(name)
    table = kind.prepare(table)
    return text_table(table, kind.columns(table))


def test_tables_are_views_of_rows(rows):
    made = page.tables(rows)
    assert list(made) == list(page.TABLES)
    two = made['table2_fidelity'].set_index(['model', 'condition', 'protocol'])
    ours = two.loc[('cpdm', 'multiomic', 'patient')]
    assert (ours.mse, ours.mse_low, ours.mse_high) == (0.017, 0.01632, 0.01768)
    assert ours.inception_fid_verdict == 'unavailable: its weights are not cached'
    assert np.isnan(ours.inception_fid) and 'its weights are not cached' in ours.note
    for model in TRAINED_MODELS[1:]:
        line = two.loc[(model, 'expression', 'paper')]
        assert line.note == NOT_RUN and line.kid_verdict == 'unavailable'
    three = made['table3_classification']
    assert set(three[three.extractor == 'vgg16'].verdict) == {NOT_RUN}
    assert made['table4_survival'].verdict.tolist() == ['not estimable: 0 events, 10 needed'] * 2
    assert made['table1_cohort'].set_index('what').loc['patients'].tolist() == [1091, 28]
    five = made['table5_single_genomics'].query("metric == 'patients_generated'")
    assert five.expression.tolist() == [1063] and five.multiomic.isna().all()
    others = rows.role.isin(['control', 'reference', 'null', 'upper_bound'])
    assert others.sum() == (made['table6_controls'].role != 'model').sum()


def test_numbers_become_text_when_they_are_shown(rows):
    made = page.tables(rows)
    two = as_text(made['table2_fidelity'], 'table2_fidelity')
    two = two.set_index(['model', 'condition', 'protocol'])
    ours = two.loc[('CPDM', 'multiomic', 'patient')]
    assert ours['MSE at 128 px'] == '0.0170 [0.0163, 0.0177]'
    assert ours['Inception FID'] == 'unavailable'
    three = as_text(made['table3_classification'], 'table3_classification')
    three = three.query("extractor == 'radiomics' and condition == 'expression'").iloc[0]
    columns = ['AUROC', 'AUROC, omics without an image', 'AUROC, permuted labels', 'positives']
    expected = ['0.80 [0.75, 0.85]', '0.96 [0.94, 0.98]', '0.50 (0.40 to 0.60)', '60']
    assert three[columns].tolist() == expected
    one = as_text(made['table1_cohort'], 'table1_cohort')
    assert one.set_index('what').loc['patients'].tolist() == ['1,091', '28']
    five = as_text(made['table5_single_genomics'], 'table5_single_genomics')
    five = five.query("quantity == 'patients given a generated MRI'")
    assert five[['multiomic', 'expression']].values.tolist() == [['–', '1,063']]


def test_written_tables_hold_numbers(rows, tmp_path):
    paths = page.write_tables(page.tables(rows), tmp_path)
    two = pd.read_csv(tmp_path / 'table2_fidelity.csv')
    for column in ('mse', 'mse_low', 'mse_high', 'kid', 'n', 'n_imaged', 'image_size'):
        assert pd.api.types.is_numeric_dtype(two[column]), column
    seven = pd.read_csv(tmp_path / 'table7_scorecard.csv')
    assert list(seven) == scorecard.SCORE_COLUMNS and seven.published.dtype == float
    for path in paths:
        cells = pd.read_csv(path, dtype=str, keep_default_na=False).to_numpy().ravel()
        assert not [x for x in cells if re.match(r'-?[\d.,]+ [\[(]', x)], path


def test_tables_do_not_depend_on_the_order_of_columns_and_survive_csv(tmp_path):
    from radgen.core.results import read_rows

    rows = two_sizes()
    write_rows(rows, tmp_path / 'rows.csv')
    again = page.tables(read_rows(tmp_path / 'rows.csv'))
    for name, table in page.tables(rows[COLUMNS[::-1]]).items():
        pd.testing.assert_frame_equal(table, again[name], check_dtype=False, rtol=1e-5)
    for path in page.write_tables(again, tmp_path / 'tables'):
        assert len(pd.read_csv(path)) == len(again[path.stem])
        assert len(again[path.stem]) or path.stem == 'table9_fitted_on'  # no training here


def test_nothing_run_gives_empty_tables_and_a_page(tmp_path):
    empty = Rows().frame()
    made = page.tables(empty)
    assert all(len(t) == 0 for n, t in made.items() if n != 'table7_scorecard')
    seven = as_text(made['table7_scorecard'], 'table7_scorecard')
    ends = [seven[f'conclusion, {k} protocol'] for k in ('paper', 'patient')]
    assert set(pd.concat(ends)) == {NOT_RUN}
    text = page.render_report(
        empty, made, {}, dict(cohort='published', profile='smoke'), tmp_path
    ).read_text()
    assert 'Nothing published was recomputed in this run.' in text and 'SIMULATED' not in text


def test_legacy_fid_is_quoted_at_128_pixels_only(rows):
    small = table_fidelity(make_rows(image_size=64))
    assert 'legacy_fid' not in small and set(small.paired_size) == {64}
    assert not [c for c in as_text(small, 'table2_fidelity') if 'legacy FID' in c or '128' in c]
    assert set(
        scorecard.scorecard(make_rows(image_size=64)).query("metric == 'legacy_fid'").conclusion
    ) == {'unavailable'}
    small = scorecard.scorecard(make_rows(image_size=64)).query("metric in ('mse', 'ssim')")
    assert set(small.conclusion) == {'not comparable'} and set(small.why) == {
        'computed at 64 pixels'
    }
    ratio = make_rows(image_size=64).replace({'metric': {'legacy_fid': 'legacy_fid_ratio'}})
    shown = scorecard.table_scorecard(scorecard.scorecard(ratio)).query("quantity == 'legacy FID'")
    assert set(shown['patient protocol']) == {'ratio 1.60 [1.54, 1.66]'} and set(
        shown['trivial control or chance']
    ) == {'ratio 2.00 (mean image)'}
    size = 'computed at 64 pixels as a ratio to the mean image'
    expected = f'not comparable: {size}; here above its controls'
    assert set(shown['conclusion, patient protocol']) == {expected}
    fid = scorecard.scorecard(rows).query("metric == 'legacy_fid'").set_index('protocol')
    assert set(fid.conclusion['paper']) == {'better than published'}
    assert set(fid.conclusion['patient']) == {'not comparable'}  # published with folds over images
    assert fid.conclusion['preprint'] == 'unavailable'


def test_controls_over_many_fold_assignments_stay_in_table_6(rows):
    many = rows[(rows.role == 'control') & (rows.metric == 'mse')].assign(
        estimator='mean of 40 fold assignments', value=0.001
    )
    both = pd.concat([rows, many], ignore_index=True)
    assert (
        scorecard.scorecard(both).control.dropna() == scorecard.scorecard(rows).control.dropna()
    ).all()
    pd.testing.assert_frame_equal(table_fidelity(both), table_fidelity(rows))
    table = table_controls(both)
    text = as_text(table, 'table6_controls')
    text = text[text.section == 'Trivial controls over many fold assignments']
    assert text.detail.eq('mean of 40 fold assignments, 128 px').sum() == len(many)


def test_scorecard(rows):
    score = scorecard.scorecard(rows)
    line = lambda **q: score[np.logical_and.reduce([score[k] == v for k, v in q.items()])].iloc[0]
    assert score.preprint.dropna().unique().tolist() == [
        1.33,
        0.85,
        0.89,
        0.92,
        726,
    ] and score.published.dropna().unique().tolist() == [2.02, 0.02, 0.59, 0.82, 0.84, 0.88, 726]
    fid = score.query("metric == 'legacy_fid'").set_index('protocol')
    assert fid.preprint[['paper', 'patient']].isna().all() and fid.preprint['preprint'] == 1.33
    assert score.index[score.published.isna()].size == 1  # the preprint's four images
    subtype = line(metric='auroc', condition='expression', protocol='patient')
    assert (subtype.extractor, subtype.value, subtype.conclusion) == (
        'radiomics',
        0.8,
        'undecided',
    )  # not the better of two extractors, and the omics, its upper bound, decide nothing
    assert (subtype.control, subtype.control_name) == (0.5, 'chance')
    bound = ['upper_bound', 'upper_bound_low', 'upper_bound_high', 'upper_bound_name']
    assert subtype[bound].tolist() == [0.96, 0.94, 0.98, 'omics, logistic']
    assert (
        line(metric='mse', condition='multiomic', protocol='paper').control == 0.019
    )  # the better of the two controls
    assert (
        line(metric='concordance', condition='multiomic', protocol='patient').conclusion
        == 'not estimable'
    )
    assert (
        line(metric='patients_generated', condition='expression', protocol='patient').conclusion
        == 'not reproduced'
    )
    assert (
        line(metric='patients_generated', condition='multiomic', protocol='patient').conclusion
        == 'unavailable'
    )
    table = scorecard.table_scorecard(score).set_index(['quantity', 'condition'])
    assert (
        table.loc[('survival, concordance index', 'multiomic'), 'conclusion, patient protocol']
        == 'not estimable: 0 events, 10 needed'
    )
    assert table.loc[
        ('survival, concordance index', 'multiomic'),
        ['paper protocol, reproduced', 'conclusion, paper protocol'],
    ].tolist() == ['–', '–']  # outcomes are judged over patients only
    assert table.loc[
        ('ER+/HER2+ subtype, AUROC', 'expression'),
        ['trivial control or chance', 'upper bound', 'null (95 %)', 'preprint', 'published'],
    ].tolist() == [
        '0.50 (chance)',
        '0.96 [0.94, 0.98] (omics, logistic)',
        '0.50 (0.40 to 0.60)',
        '0.85',
        '0.82',
    ]
    assert len(table) == len(scorecard.PUBLISHED) * 2 + 1 and table.index.is_unique
    assert table.preprint['legacy FID'].tolist() == ['–', '–']


FOUR = {  # model, estimator: legacy FID on the four images of the preprint
    ('mean_image', 'single'): 2.47,
    ('sibling_copy', 'single'): 0.75,
    ('sibling_copy', 'best'): 0.18,
    ('other_copy', 'best'): 1.30,
}


def on_four_images(cohort='published', ours=None, **values):
    "Rows of the preprint's split; `ours` is the model's, None where it was not trained."
    four = Rows(cohort=cohort, protocol='preprint', metric='legacy_fid', n=4, n_imaged=4)
    four.fixed |= dict(image_size=128, subset='all', source_notebook='07_controls')
    for (model, estimator), value in FOUR.items():
        value = values.get(f'{model}_{estimator}', value)
        four.add(role='control', model=model, estimator=estimator, value=value)
    model = dict(role='model', model='cpdm', condition='multiomic')
    for estimator in ('single', 'best'):
        if ours is None:
            four.unavailable('not trained in this run', **model, estimator=estimator)
        else:
            four.add(**model, estimator=estimator, value=ours)
    return four.frame()


@pytest.mark.parametrize(
    ('ours', 'single', 'conclusion', 'reached'),
    [
        (None, 0.75, 'unavailable', 'less than'),
        (None, 1.40, 'unavailable', 'more than'),
        (0.90, 0.75, 'imprecise', 'less than'),
        (0.50, 0.75, 'imprecise', 'less than'),
        (1.50, 1.60, 'imprecise', 'more than'),
    ],
)
def test_the_preprint_is_judged_on_its_own_images(rows, ours, single, conclusion, reached):
    four = on_four_images(ours=ours, sibling_copy_single=single)
    score = scorecard.scorecard(pd.concat([rows, four], ignore_index=True))
    line = score[score.protocol == 'preprint'].iloc[0]
    # a sibling drawn at random stands beside single samples, never the best of the siblings
    assert (line.control, line.control_name) == (single, 'a sibling')
    assert (line.conclusion, line.preprint) == (conclusion, 1.33)
    expected = f"a sibling's image has {single:.2f}, {reached} the preprint's 1.33"
    assert line.why == expected
    assert np.isnan([line.ci_low, line.ci_high]).all() and line.n == 4
    folds = score[score.protocol != 'preprint'].reset_index(drop=True)
    alone = scorecard.scorecard(rows).query("protocol != 'preprint'").reset_index(drop=True)
    pd.testing.assert_frame_equal(folds, alone, check_dtype=False)


def test_rows_of_the_preprint_stay_out_of_the_tables_of_folds(rows):
    both = pd.concat([rows, on_four_images()], ignore_index=True)
    pd.testing.assert_frame_equal(table_fidelity(both), table_fidelity(rows))
    table = table_controls(both)
    section = table[table.section == "The preprint's four test images"]
    assert len(section) == 6 and set(section.protocol) == {'preprint'}
    rest = table[table.section != "The preprint's four test images"].reset_index(drop=True)
    pd.testing.assert_frame_equal(rest, table_controls(rows), check_dtype=False)
    assert scorecard.headline(scorecard.scorecard(both)) == scorecard.headline(
        scorecard.scorecard(rows)
    )


def test_what_the_preprint_is_worth_follows_from_the_rows(rows):
    assert preprint_sentence(rows) == ''
    text = preprint_sentence(on_four_images())
    assert '1.33 is no evidence of anything beyond siblings' in text and 'of 0.75.' in text
    assert text in conclusion(pd.concat([rows, on_four_images()]), '08_scorecard')
    best_only = preprint_sentence(on_four_images(sibling_copy_single=1.34))
    assert 'nothing is decided' in best_only and 'no evidence' not in best_only
    none = on_four_images(sibling_copy_single=1.5, sibling_copy_best=1.34)
    assert "Siblings do not reach the preprint's 1.33" in preprint_sentence(none)
    for cohort in ('phantom', 'tcga', 'files'):
        assert 'is not compared' in preprint_sentence(on_four_images(cohort))


@pytest.mark.parametrize('n,text', [(3, '3 folds'), (NAN, 'an unstated number of folds')])
def test_another_number_of_folds_over_images_is_not_comparable(rows, n, text):
    score = scorecard.scorecard(rows.assign(n_folds=n)).query("metric == 'mse'")
    why = score.set_index('protocol').why
    assert set(why['paper']) == {f'{text}, published with 15'}
    assert set(why['patient']) == {'folds over patients, published with folds over images'}


def test_chance_of_a_precision_recall_curve_is_the_prevalence(rows):
    prevalence = Rows(cohort='published', condition='multiomic', role='chance', metric='auprc')
    prevalence.add(label='subgroup', subset='test', extractor='radiomics', value=0.3)
    score = scorecard.scorecard(pd.concat([rows, prevalence.frame()]))
    line = score.query("metric == 'auprc' and protocol == 'patient'").set_index('condition')
    assert line.control['multiomic'] == 0.3 and np.isnan(line.control['expression'])
    assert line.conclusion.to_dict() == dict(multiomic='undecided', expression='undecided')
    assert line.decided_by['expression'] == 'no prevalence'
    text = short_table(score)
    assert '| 0.30 (chance) | 0.96 (omics, logistic) |' in text and 'nan' not in text


def test_simulated_patients_confirm_nothing():
    score = scorecard.scorecard(make_rows('phantom_link0'))
    assert not set(score.conclusion) & {
        'reproduced',
        'not reproduced',
        'matched by a control',
        'worse than a control',
        'above its controls',
        'above chance',
    }
    assert score.query("protocol != 'preprint'").published.notna().all()
    assert 'simulated' in scorecard.headline(score)
    assert 'not comparable: simulated patients; here above chance' in set(
        scorecard.table_scorecard(score)['conclusion, patient protocol']
    )


def two_sizes(**text):
    "A run at 32 pixels, scored at 128 as well: six models, sibling images, training, an audit."
    large, out = make_rows(**text), []
    fid = large[large.metric.isin(['legacy_fid', 'mse', 'ssim', 'kid'])]
    out += [
        large[~large.metric.isin(['kid'])],
        large[large.metric == 'kid'].assign(image_size=32),
        fid[fid.metric.isin(['mse', 'ssim'])].assign(image_size=32, value=9.0),
        fid[fid.metric == 'legacy_fid'].assign(metric='legacy_fid_ratio', image_size=32),
    ]
    out += [
        fid[(fid.role == 'reference') & (fid.metric != 'kid')].assign(model='resized', value=0.002)
    ]
    for m in TRAINED_MODELS[1:]:
        out.append(fid[(fid.model == 'cpdm') & (fid.metric != 'kid')].assign(model=m))
    for subset, n, factor in (('sibling', 36, 0.5), ('no_sibling', 22, 2.0)):
        x = fid[
            (fid.protocol == 'paper') & (fid.metric != 'kid') & fid.role.isin(['model', 'control'])
        ].assign(subset=subset, n=n)
        for c in ('value', 'ci_low', 'ci_high'):
            x[c] = x[c] * np.where(
                x.role == 'control', 1, np.where(x.metric == 'ssim', 1 / factor, factor)
            )
        out.append(x)
    rows = Rows(
        cohort=large.cohort.iloc[0], role='model', condition='multiomic', protocol='patient'
    )
    rows.add(
        metric='training_steps',
        model='cpdm_paper',
        subset='train',
        value=150,
        source_notebook='02_train-x',
    )
    rows.add(
        metric='training_share',
        model='cpdm_paper',
        subset='train',
        value=0.0083,
        estimator='width 32 of 128, 32 of 128 pixels',
        source_notebook='02_train-x',
    )
    rows.add(
        metric='retrieval',
        model='cpdm',
        value=0.52,
        ci_low=0.42,
        ci_high=0.62,
        source_notebook='07a_audit-multiomic',
    )
    rows.add(
        metric='retrieval',
        model='cpdm',
        role='null',
        value=0.5,
        ci_low=0.41,
        ci_high=0.59,
        source_notebook='07a_audit-multiomic',
    )
    rows.add(
        metric='mse',
        model='cpdm',
        estimator='single',
        subset='all',
        value=77.0,
        image_size=128,
        source_notebook='07a_audit-multiomic',
    )  # of the audit: never in another table
    rows.add(
        metric='auroc',
        model='cpdm',
        extractor='radiomics',
        classifier='xgboost',
        label='subgroup',
        subset='test',
        value=0.99,
        source_notebook='07c_learning_curve',
        n_imaged=28,
    )
    rows.add(
        metric='coverage',
        model='cpdm',
        label='MSE',
        value=0.94,
        ci_low=0.9,
        ci_high=0.97,
        n=200,
        source_notebook='07b_coverage',
    )
    return pd.concat([*out, rows.frame()], ignore_index=True)


def test_fidelity_is_quoted_at_the_released_size():
    rows = two_sizes()
    two = table_fidelity(rows).set_index(['model', 'condition', 'protocol'])
    line = two.loc[('cpdm', 'multiomic', 'patient')]
    assert (line.mse, line.legacy_fid, line.legacy_fid_ratio) == (0.017, 1.6, 1.6)
    assert (line.image_size, line.paired_size) == (32, 128)
    text = as_text(table_fidelity(rows), 'table2_fidelity').iloc[0]
    assert text['MSE at 128 px'] == '0.0170 [0.0163, 0.0177]' and text.pixels == '32'
    assert set(two.index.get_level_values(0)) >= set(TRAINED_MODELS)
    assert not two.note.str.contains('not part').any()
    assert two.loc[('cpdm_paper', 'multiomic', 'patient'), 'note'] == (
        'trained 150 steps per fold, 0.83 % of the released length; '
        'width 32 of 128, 32 of 128 pixels'
    )
    score, alone = scorecard.scorecard(rows), scorecard.scorecard(make_rows())
    other_folds = (score.protocol == 'patient') & score.metric.isin(['legacy_fid', 'mse', 'ssim'])
    assert set(score[other_folds].conclusion) <= {'not comparable', 'unavailable'}
    assert not (score[~other_folds].conclusion == 'not comparable').any()
    assert set(score.metric) == set(alone.metric)
    bounds = [c for c in score if c.startswith('upper_bound')]
    pd.testing.assert_frame_equal(
        score.drop(columns=bounds),
        alone.drop(columns=bounds),
    )  # 32-pixel rows and the audit change nothing
    assert set(score.query("metric == 'mse'").upper_bound_name) == {'real image, reduced'}
    assert len(fig_scorecard(score).axes) == 6 * 2


def test_sizes_are_told_apart_within_a_notebook():
    "Controls that another notebook measured at 128 pixels do not hide a run's own at 32."
    rows = make_rows(image_size=32).assign(source_notebook='04_fidelity')
    other = (
        make_rows()
        .query("role == 'control'")
        .assign(source_notebook='07_controls', estimator='mean of 3 fold assignments')
    )
    kept = quotable(pd.concat([rows, other], ignore_index=True))
    assert (
        (kept.image_size == 32) & (kept.metric == 'mse') & (kept.role == 'control')
    ).sum() == 8 and len(kept) == len(rows) + len(other) - (rows.metric == 'legacy_fid').sum()


def test_images_with_a_sibling_stand_apart():
    table = table_siblings(two_sizes())
    assert table.model.tolist()[:3] == ['cpdm', 'mean_image', 'nearest_copy']
    assert set(table.condition) == {'multiomic', 'expression'} and set(table.image_size) == {128}
    first = table.iloc[0]
    assert first[['mse_all', 'mse_sibling', 'mse_no_sibling']].tolist() == [0.017, 0.0085, 0.034]
    assert first[['n_all', 'n_sibling', 'n_no_sibling']].tolist() == [58, 36, 22]
    text = as_text(table, 'table2_siblings').iloc[0]
    assert text['MSE, sibling in training'] == '0.0085 [0.0082, 0.0088]'
    assert text['MSE, no sibling'] == '0.0340 [0.0326, 0.0354]'


def sibling_rows(sibling, no_sibling, image=0.019, half=0.002):
    rows = Rows(
        cohort='published',
        condition='multiomic',
        protocol='paper',
        image_size=128,
        metric='mse',
        estimator='single',
    )
    for subset, n, v in (('sibling', 36, sibling), ('no_sibling', 22, no_sibling)):
        rows.add(
            role='model',
            model='cpdm',
            subset=subset,
            n=n,
            value=v,
            ci_low=v - half,
            ci_high=v + half,
        )
        rows.add(
            role='control',
            model='mean_image',
            subset=subset,
            n=n,
            value=image,
            ci_low=image - half,
            ci_high=image + half,
        )
    return rows.frame()


@pytest.mark.parametrize(
    'sibling,no_sibling,has,lacks',
    [
        (0.008, 0.037, 'MSE is reached only on those', 'without a sibling, too'),
        (0.008, 0.012, 'MSE is reached without a sibling, too', 'only on those'),
        (0.030, 0.040, 'MSE is not reached with a sibling either', 'only on those'),
        (0.008, 0.037, 'does better than the mean image in MSE', 'since the intervals'),
        (0.012, 0.013, 'No difference with and without a sibling is shown', 'score better'),
    ],
)
def test_sibling_sentence_follows_the_intervals(sibling, no_sibling, has, lacks):
    rows = sibling_rows(sibling, no_sibling)
    text = sibling_sentence(rows)
    start = 'With image-level folds, 36 of 58 held-out images have a sibling in training.'
    assert text.startswith(start) and has in text and lacks not in text
    assert 'published' not in sibling_sentence(rows.assign(cohort='phantom'))


def test_a_sibling_that_only_chose_the_length_is_counted_apart():
    rows = sibling_rows(0.008, 0.037)
    every = rows[rows.subset == 'sibling'].assign(subset='all', n=62)
    text = sibling_sentence(pd.concat([rows, every], ignore_index=True))
    assert '36 of 62 held-out images have a sibling in training' in text
    assert 'and 4 have one that only chose the length of training' in text


def test_conditions_share_a_sentence():
    one = sibling_rows(0.008, 0.037)
    both = sibling_sentence(pd.concat([one, one.assign(condition='expression')]))
    assert both == sibling_sentence(one)
    other = one.assign(condition='expression', ci_high=one.ci_high + 0.001)
    text = sibling_sentence(pd.concat([one, other]))
    assert text.count('have a sibling in training') == 1 and 'multiomic: MSE' in text


@pytest.mark.parametrize(
    'retrieval,auroc,begins',
    [
        (0.62, 0.8, 'Whether images hold anything'),
        (0.5, 0.8, 'The outcome AUROC of generated images is above chance, and retrieval is not'),
        (0.5, 0.55, 'Neither outcomes nor retrieval'),
        (0.8, 0.8, 'Images hold something'),
        (0.8, 0.55, 'Images hold something'),
        (0.5, None, 'Retrieval is not shown to be above chance, and no outcome'),
    ],
)
def test_carried_sentence_follows_retrieval_and_scores(retrieval, auroc, begins):
    rows = Rows(cohort='phantom_link0', condition='expression', protocol='patient', model='cpdm')
    rows.add(
        metric='retrieval',
        role='model',
        value=retrieval,
        ci_low=retrieval - 0.15,
        ci_high=retrieval + 0.15,
        source_notebook='07a_audit-expression',
    )
    rows.add(
        metric='retrieval',
        role='null',
        value=0.5,
        ci_low=0.41,
        ci_high=0.59,
        source_notebook='07a_audit-expression',
    )
    if auroc:
        for role, v in (('model', auroc), ('null', 0.5)):
            rows.add(
                metric='auroc',
                role=role,
                label='subgroup',
                subset='test',
                extractor='radiomics',
                classifier='xgboost',
                value=v,
                ci_low=v - 0.1,
                ci_high=v + 0.1,
            )
    rows = rows.frame()
    assert carried_sentence(rows).startswith(begins)
    made_by = np.where((rows.role == 'null') & (rows.metric == 'retrieval'), '4 permutations', None)
    assert 'permuted' not in carried_sentence(rows.assign(estimator=made_by))
    assert carried_sentence(rows.query("metric == 'auroc'")) == ''


def test_table_6_comes_in_sections():
    rows = two_sizes()
    table = table_controls(rows)
    blocks = table.section.ne(table.section.shift()).sum()
    assert blocks == table.section.nunique()  # each section is one block
    assert set(table.section) <= set(CONTROL_SECTIONS)
    assert set(table[table.value == 77].section) == {'Audit'}
    by = table.groupby('section').size()
    assert (by['Audit'], by['Coverage of the intervals'], by['How many patients']) == (3, 1, 1)
    text = as_text(table, 'table6_controls').set_index('section')
    assert text.detail['How many patients'] == 'radiomics, xgboost, 28 imaged patients'
    sources = table[table.section == 'With and without a sibling in training'].model
    assert set(sources) == {'cpdm', 'mean_image', 'nearest_copy'}
    others = rows[rows.role.isin(['control', 'reference', 'null', 'upper_bound'])]
    listed = (table.role != 'model').sum()
    assert others.image_size.ne(32).sum() <= listed <= len(others)


def test_scorecard_as_markdown(rows, tmp_path):
    write_rows(rows, tmp_path / 'results.csv')
    text = scorecard_markdown(tmp_path)
    lines = text.split('\n')
    assert (
        text == scorecard_markdown(tmp_path / 'results.csv')
        and len(lines) == 3 + 2 * len(scorecard.PUBLISHED)
        and len({line.count('|') for line in lines}) == 1
    )
    assert '| 0.82 (0.85) | – | 0.80 [0.75, 0.85] | 0.50 (chance) |' in text
    beside = '| 0.96 [0.94, 0.98] (omics, logistic) | 0.50 (0.40 to 0.60) |'
    assert f'{beside} undecided |' in text


def test_models_are_those_of_the_study():
    from radgen.models import registry

    assert list(TRAINED_MODELS) == list(registry.MODELS)


def test_figures_are_told_apart_by_model(tmp_path):
    for name in (
        'fig2_architecture',
        'fig2_architecture_cpdm_paper',
        'fig3_loss_multiomic_cpdm_paper',
        'fig3_loss_multiomic_cpdm_paper_paper',
        'fig3_loss_expression_cvae_patient_fold0',
    ):
        (tmp_path / f'{name}.svg').write_text('<svg/>')
    figures = find_figures(tmp_path)
    titles = lambda prefix: {
        f['title'].split('. ', 1)[1]: f['more'] for f in figures_for(figures, prefix, False)
    }
    assert titles('fig2_') == {
        'Architecture of the CPDM': False,
        'Architecture of the CPDM (CPDM, paper preset)': True,
    }
    variants = {
        'multi-omic condition, paper protocol': False,
        'CPDM, paper preset, multi-omic condition, paper protocol': True,
        'conditional VAE, expression condition, patient protocol': True,
    }
    loss = 'Training and held-out loss'
    assert titles('fig3_') == {f'{loss} ({variant})': more for variant, more in variants.items()}
    text = page.render_report(
        Rows().frame(), {}, figures, dict(cohort='published', profile='smoke'), tmp_path / 'r.html'
    ).read_text()
    assert (
        text.count('the other models (1)') == 1
        and text.count('the other models (2)') == 1
        and text.count('<img') == 5
    )


# Checklists


def test_checklist_answers_come_from_facts(rows):
    table = checklist(rows, dict(code='abc', packages=dict(numpy='1')))
    assert table.groupby('instrument', sort=False).size().to_dict() == {
        'REFORMS': 32,
        'CLAIM 2024': 44,
        'METRICS': 30,
        'TRIPOD+AI': 52,
    }
    item = lambda instrument, number: table[
        (table.instrument == instrument) & (table.item == number)
    ].iloc[0]
    assert (
        item('REFORMS', '8a').answer
        == item('CLAIM 2024', '33').answer
        == 'none: every row is of cohort published'
    )
    assert (
        item('CLAIM 2024', '44').answer.startswith(UNANSWERED)
        and item('REFORMS', '2b').answer == 'version abc'
    )
    assert (table.answer.str.startswith(UNANSWERED) == table.source.eq('')).all()
    fewer = (
        checklist(rows[rows.metric != 'auroc'], dict(code='abc'))
        .set_index(['instrument', 'item'])
        .answer
    )
    # an analysis left out leaves its item unanswered
    assert fewer['CLAIM 2024', '38'].startswith(UNANSWERED)
    assert not item('CLAIM 2024', '38').answer.startswith(UNANSWERED)
    assert fewer['CLAIM 2024', '23'].startswith(UNANSWERED)


def test_no_checklist_answer_is_typed():
    "Without rows, provenance and ledger every fact is silent; every fact that is named exists."
    empty = RunFacts(Rows().frame())
    named = set(ITEMS.fact) - {'', ANSWERED}
    assert all(FACTS[fact](empty) is None for fact in named)
    ledger = pd.DataFrame(
        dict(source='a', item=['1', '2'], decision=['dropped', 'changed'], reason=['twice', 'cut'])
    )
    latest = dict(notebooks=['a'], wall_s=60.0)
    made_by = dict(packages=dict(pyradiomics='3'), data={'a': '0'}, cores=2, latest_run=latest)
    trained = dict(model='cpdm', seed=0, validation=0.2, steps=5, ema_decay=0.9, image_size=8)
    made_by |= dict(cohort='published', profile='smoke')
    made_by |= dict(notebooks={'02_train-a': dict(code='x', parameters=trained)})
    full = RunFacts(two_sizes(), dict(code='x', **made_by), ledger)
    silent = {f for f in named if FACTS[f](full) is None}
    assert silent <= set(
        'predicted_site folds disjoint internal classical dimensions outcomes missing '
        'characteristics tests out_of_range centres class_balance explained sensitivity '
        'fitted_inside intended_size extraction selection interval_method performance'.split()
    )


# What a table or figure shows


DESCRIBED = {
    describe_cohort: 'metric == "count"',
    describe_training: 'metric.str.startswith("training")',
    describe_generation: 'metric.isin(["patients_generated", "n_out_of_range"])',
    describe_fidelity: 'metric.isin(["mse", "kid"])',
    describe_outcomes: 'metric == "auroc"',
    describe_survival: 'metric == "concordance"',
}


@pytest.mark.parametrize('describe', DESCRIBED, ids=lambda f: f.__name__)
def test_descriptions_rest_on_their_rows(describe):
    from radgen.report.example import example_rows

    rows = example_rows()
    its_own = rows.query(DESCRIBED[describe])
    assert describe(rows) == describe(its_own) != ''
    assert describe(rows.drop(its_own.index)) == describe(rows[:0]) == ''
    for i in its_own.index:  # any row may be missing
        describe(its_own.drop(i))
    for text in describe(rows).split('. '):
        assert text[0].isupper() or text[0].isdigit()
        assert not any(word in text for word in ('nan ', 'None', '_'))


def test_what_is_not_estimable_is_described_so():
    rows = make_rows()
    text = describe_survival(rows)
    assert 'not estimable' in text and '0 events, 10 needed' in text
    missing = rows.assign(verdict='not estimable: 3 patients, 5 needed', value=np.nan)
    assert 'not estimable: 3 patients, 5 needed' in describe_fidelity(missing)


def test_a_conclusion_is_of_its_notebook():
    rows = make_rows(source_notebook='04_fidelity')
    assert conclusion(rows, '04_fidelity') and not conclusion(rows, '05_outcomes')
    assert scorecard.headline(scorecard.scorecard(rows)) in conclusion(rows, '08_scorecard')


# The page


def test_every_word_of_the_page_is_used():
    assert set(page.CAPTIONS['tables']) == set(page.TABLES)
    assert all(f'id == {k!r}' in TEMPLATE for k in page.SECTIONS)
    prefixes = set(re.findall(r"figure\('(\w+)'\)", TEMPLATE))
    assert all(any(k.startswith(p) for p in prefixes) for k in FIGURES) and prefixes <= set(FIGURES)


def test_files_of_the_page_are_packaged():
    "An installed package has the files that stand beside the module."
    root = Path(page.__file__).resolve().parent.parent.parent
    text = (root / 'setup.py').read_text()
    patterns = re.findall(r"'([^']+)'", re.search(r"package_data=\{'': (\[.*?\])\}", text)[1])
    beside = [p for p in Path(page.__file__).parent.iterdir() if p.is_file() and p.suffix != '.py']
    assert {'template.html', 'style.css', 'table.html'} <= {p.name for p in beside}
    assert all(any(p.match(pattern) for pattern in patterns) for p in beside)


class Checker(HTMLParser):
    """Collects unbalanced tags, ids, links, images and table headers."""

    def __init__(self):
        super().__init__()
        self.open, self.wrong, self.ids, self.links, self.images, self.loads, self.lang = (
            [],
            [],
            [],
            [],
            [],
            [],
            None,
        )

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == 'html':
            self.lang = attrs.get('lang')
        if tag not in VOID:
            self.open.append(tag)
        if 'id' in attrs:
            self.ids.append(attrs['id'])
        if tag == 'a':
            self.links.append(attrs['href'])
        if tag == 'img':
            self.images.append(attrs)
        if tag in ('script', 'link', 'iframe', 'object', 'embed'):
            self.loads.append(tag)
        self.loads += [
            v
            for k, v in attrs.items()
            if k in ('src', 'srcset', 'data', 'poster') and not v.startswith('data:')
        ]
        if tag == 'th' and attrs.get('scope') not in ('col', 'row'):
            self.wrong.append('th without scope')

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


NOTEBOOK_LINKS = {'notebooks/04_fidelity-multiomic.ipynb'}


def test_page_is_well_formed_and_self_contained(html_page):
    text = html_page.read_text()
    check = Checker()
    check.feed(text)
    check.close()
    assert not check.wrong and not check.open and check.lang == 'en'
    assert len(check.ids) == len(set(check.ids)) and {
        link[1:] for link in check.links if link not in NOTEBOOK_LINKS
    } <= set(check.ids)
    assert set(check.links) >= NOTEBOOK_LINKS
    assert (
        not check.loads
        and '@import' not in text
        and 'url(' not in text
        and not [x for x in check.links if x[0] != '#' and x not in NOTEBOOK_LINKS]
    )
    assert check.images and all(i.get('alt') for i in check.images)
    assert {*page.TABLES, *page.SECTIONS} <= set(check.ids)


def test_page_says_simulated_everywhere(html_page):
    text = html_page.read_text()
    assert '<title>SIMULATED' in text and 'class="banner"' in text
    captions = re.findall(r'<figcaption.*?</figcaption>', text, re.S)
    assert captions and all('SIMULATED' in c for c in captions)


def test_page_shows_what_is_missing(html_page):
    text = html_page.read_text()
    for words in (
        NOT_RUN,
        'not estimable: 0 events, 10 needed',
        'Figure 4. Held-out patients: real beside generated: not made in this run.',
    ):
        assert words in text


def test_everything_is_escaped(tmp_path):
    evil = '<img src=x onerror=alert(1)>'
    rows = make_rows(extractor=evil)
    facts = dict(
        cohort=evil,
        profile='"><script>',
        simulated=False,
        command='</pre><script>',
        provenance={'a<b': 1, 'nested': {'<i>': '<u>'}},
    )
    text = page.render_report(
        rows,
        page.tables(rows) | {'<b>': pd.DataFrame({'<h1>': ['<h2>']})},
        {},
        facts,
        tmp_path / 'r.html',
    ).read_text()
    assert evil not in text and '<script' not in text and html.escape(evil) in text
    for tag in ('<i>', '<u>', '<h2>&', "<b>'", 'a<b'):
        assert tag not in text
    with pytest.raises(RadgenError, match="facts lack 'profile'"):
        page.render_report(rows, {}, {}, dict(cohort='published'), tmp_path)


MEASURE = """
addEventListener('DOMContentLoaded', () => {
  const frame = document.querySelector('iframe');
  frame.onload = () => {
    const page = frame.contentDocument.documentElement;
    const boxes = [...page.querySelectorAll('.scroll')];
    const images = [...page.querySelectorAll('img')];
    document.title = JSON.stringify({
      width: frame.clientWidth, page: page.scrollWidth, seen: page.clientWidth,
      boxes: boxes.length, inner: boxes.filter(b => b.scrollWidth > b.clientWidth).length,
      images: images.every(i => i.complete && i.naturalWidth > 0)});
  };
  frame.srcdoc = PAGE;
});
"""
QUIET = (
    '--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking '
    '--disable-component-update --disable-sync --window-size=1400,900 '
    '--virtual-time-budget=10000 --dump-dom'
).split()


def in_frame(text, width):
    "A page that shows another one in a frame of this width, and measures it from outside."
    script = MEASURE.replace('PAGE', json.dumps(text).replace('</', '<\\/'))
    frame = f'<iframe style="border:0;width:{width}px;height:844px"></iframe>'
    head = '<!DOCTYPE html><title>waiting</title><body style="margin:0">'
    return f'{head}<script>{script}</script>{frame}'


@pytest.mark.skipif(CHROMIUM is None, reason='no Chromium or Chrome on this machine')
@pytest.mark.parametrize('width', [390, 1280])
def test_page_does_not_scroll_sideways(html_page, tmp_path, width):
    """Measured by the frame's parent, since the page itself admits no script."""
    outer = tmp_path / 'outer.html'
    outer.write_text(in_frame(html_page.read_text(), width))
    args = [CHROMIUM, *QUIET, f'--user-data-dir={tmp_path / "profile"}', outer.as_uri()]
    done = subprocess.run(args, capture_output=True, text=True, timeout=120)
    found = json.loads(html.unescape(re.search(r'<title>(.*?)</title>', done.stdout)[1]))
    assert found['width'] == width and found['page'] <= found['seen'], found
    n_tables = html_page.read_text().count('<table')  # an empty one is left out
    assert found['images'] and found['boxes'] >= n_tables > 5
    if width == 390:
        assert found['inner'] > 0  # wide tables scroll within their own box


def test_page_tells_what_was_found(tmp_path, monkeypatch):
    """Sentences, audit, headings of the sections of Table 6, and the checklists."""
    monkeypatch.setattr(
        page, 'audit_sentences', lambda rows: ['Retrieval: <b>nothing</b> shows it.']
    )
    rows = two_sizes()
    made = page.tables(rows, provenance=dict(code='abc'))
    text = page.render_report(
        rows, made, {}, dict(cohort='published', profile='smoke'), tmp_path
    ).read_text()
    assert html.escape(sibling_sentence(rows)) in text.replace('&#39;', '&#x27;') and html.escape(
        carried_sentence(rows)
    ) in text.replace('&#39;', '&#x27;')
    assert '<li>Retrieval: &lt;b&gt;nothing&lt;/b&gt; shows it.</li>' in text
    for name in made['table6_controls'].section.unique():
        assert f'<span>{html.escape(name)}</span>' in text
    for name in ITEMS.instrument.unique():
        assert f'<span>{name}</span>' in text
    check = Checker()
    check.feed(text)
    check.close()
    assert not check.wrong and not check.open and len(check.ids) == len(set(check.ids))
