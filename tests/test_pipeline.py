"""The whole study at smoke size, in a copy of the project.

It is killed on the way and resumed. Its numbers, what runs again and what does not.
The expected numbers are in expected_smoke.csv. After a change that is meant to change them:
    RADGEN_EXPECTED=write python -m pytest tests/test_pipeline.py -k expected
"""

import json
import os
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

EXPECTED = Path(__file__).parent / 'expected_smoke.csv'
KEYS = """
    source_notebook condition protocol model role estimator subset extractor classifier label metric
""".split()


def test_a_killed_run_goes_on(project):
    assert '01_cohort' in project.before
    assert 'started' not in re.findall('01_cohort: (.*)', project.output)
    assert project.executed()['01_cohort'] == project.before['01_cohort'], (
        'what was finished ran again'
    )
    every, before = len(project.executed()), len(project.before)
    assert f'{every - before} of {every} notebooks to run' in project.output
    assert not [
        p.name
        for p in (project.run / 'notebooks').iterdir()
        if '.part' in p.name or '.failed' in p.name
    ]


def test_everything_is_there(project):
    figures = project.home / 'figures' / 'phantom' / 'smoke'
    kinds = {s: sorted(p.stem for p in figures.glob(f'*{s}')) for s in ('.png', '.svg', '.csv')}
    assert kinds['.png'] == kinds['.svg']
    for n in range(1, 10):
        assert [f for f in kinds['.png'] if f.startswith(f'fig{n}_')] or n == 4, f'no figure {n}'
    for n in range(1, 9):
        assert [t for t in kinds['.csv'] if t.startswith(f'table{n}')], f'no table {n}'
    report = (project.run / 'report.html').read_text()
    assert 'SIMULATED' in report and not re.findall(
        r'src="(?!data:)|href="(?!#|https?://|notebooks/)', report
    ), 'the report is not self-contained'
    links = set(re.findall(r'href="(notebooks/[^"]*)"', report))
    assert len(links) > 5 and not [x for x in links if not (project.run / x).exists()]
    record = json.loads((figures / 'provenance.json').read_text())
    assert (
        record['notebooks'].keys() == project.executed().keys()
        and record['packages']['torch']
        and record['latest_run']['wall_s'] > 0
    )
    assert str(project.home) not in json.dumps(record)
    published = {p.stem: p for p in (figures / 'notebooks').glob('*.ipynb')}
    assert published.keys() == project.executed().keys()
    for path in published.values():
        text = path.read_text()
        assert str(project.root.parent) not in text and len(text.encode()) <= 1_000_000


def test_expected_numbers(project):
    """Every smoke number equals the recorded one.

    On one machine that is exact. In float32 on another processor it is within 2 %. It is 0.05 for
    the kernel distance, which crosses zero, and 0.1 for scores of small classifiers and Cox models,
    and for shares of few patients,
    where one case that changes sides moves more than rounding does. The p-values of four
    permutations come in steps of 0.2 and are only required to be there. Counts are exact, and so is
    the kind of every verdict.
    """
    found = pd.read_csv(project.home / 'figures' / 'phantom' / 'smoke' / 'results.csv')
    found['verdict'] = found.verdict.str.split(':').str[0]
    found = (
        found[[*KEYS, 'value', 'verdict']]
        .sort_values([*KEYS, 'value'], kind='stable')
        .reset_index(drop=True)
    )
    if os.environ.get('RADGEN_EXPECTED') == 'write':
        found.to_csv(EXPECTED, index=False, float_format='%.6g')
    expected = pd.read_csv(EXPECTED)
    rows = lambda frame: frame[[*KEYS, 'verdict']].fillna('').value_counts()
    changed = rows(found).sub(rows(expected), fill_value=0)
    assert not changed.any(), f'more (+) or fewer (-) rows:\n{changed[changed != 0].to_string()}'
    a, b = found.value.to_numpy(float), expected.value.to_numpy(float)
    slack = np.select(
        [
            expected.metric.str.contains('_p$|_p_family$'),
            expected.source_notebook.str.match('0[56]')
            | expected.metric.isin(['copy_rate', 'copy_visible', 'membership_auroc']),
            expected.metric == 'kid',
            expected.metric == 'count',
        ],
        [1, 0.1, 0.05, 0],
        1e-4,
    )
    close = np.isclose(a, b, rtol=np.where(slack == 0, 0, 0.02), atol=slack, equal_nan=True)
    assert close.all(), found.assign(expected=b)[~close].to_string()


def test_nothing_changed_nothing_runs(project):
    before = project.executed()
    os.utime(project.root / 'nbs' / 'paper' / '02_train.ipynb')  # a newer time is not a change
    assert 'nothing to do' in project.paper()
    assert project.executed() == before


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return text


@pytest.mark.parametrize(
    'file, old, new, stems',
    [
        (
            'nbs/paper/04_fidelity.ipynb',
            '# 4. Image fidelity',
            '# 4. Fidelity',
            {'04_fidelity', '08_scorecard'},
        ),
        (
            'nbs/paper/02_train.ipynb',
            '# 2. Training',
            '# 2. Fitting',
            {
                '02_train',
                '03_generate',
                '04_fidelity',
                '05_outcomes',
                '06_survival',
                '06a_as_released',
                '07a_audit',
                '08_scorecard',
            },
        ),
        (
            'radgen/evaluate/survival.py',
            'import',
            '# edited\nimport',
            {'06_survival', '06a_as_released', '08_scorecard'},
        ),
        ('radgen/run/cli.py', 'import', '# edited\nimport', set()),
        (
            'config/smoke.yaml',
            'penalizers: [0.1, 1.0]',
            'penalizers: [0.1, 2.0]',
            {'06_survival', '08_scorecard'},
        ),
        ('config/smoke.yaml', '# Seconds', '# Few seconds', set()),
    ],
    ids=['notebook', 'early notebook', 'module', 'runner', 'parameter', 'comment'],
)
def test_only_what_depends_on_an_edit_runs(project, file, old, new, stems):
    text = edit(project.root / file, old, new)
    try:
        assert {job.split('-')[0] for job in project.would_run()} == stems
    finally:
        (project.root / file).write_text(text)


@pytest.mark.parametrize(
    'module, rerun, kept',
    [
        ('models/released_unet.py', {'02_train', '03_generate', '08_scorecard'}, {'01_cohort'}),
        ('evaluate/scores.py', {'05_outcomes', '06_survival', '08_scorecard'}, set()),
    ],
)
def test_an_edit_deep_in_a_room_is_noticed(project, module, rerun, kept):
    path = project.root / 'radgen' / module
    text = edit(path, 'import', '# edited\nimport')
    try:
        stems = {job.split('-')[0] for job in project.would_run()}
        assert rerun <= stems and not kept & stems
    finally:
        path.write_text(text)
