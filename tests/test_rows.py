"Committed rows: the script that gives them the terms of version 0.2.0."

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from radgen.core.results import ROLES

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / 'figures' / 'rename_rows.py'
COMMITTED = sorted((ROOT / 'figures').glob('*/*/results.csv'))


@pytest.fixture(scope='module')
def script():
    spec = importlib.util.spec_from_file_location('rename_rows', SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def old_rows():
    "Rows of version 0.1.0: one for each value that has another name today."
    fields = dict(role='model', metric='mse', subset='all', label='', value='0.0311914')
    changes = [
        dict(metric='frd'),
        dict(metric='copy_gap'),
        dict(metric='utility_auroc_p', role='null'),
        dict(metric='outside_training_range'),
        dict(role='floor', metric='kid'),
        dict(role='floor', metric='auprc'),
        dict(role='ceiling', metric='auroc', label='er'),
        dict(subset='leaked'),
        dict(subset='unleaked'),
        dict(metric='coverage', label='FRD'),
        dict(),
    ]
    return pd.DataFrame([fields | change for change in changes])


def test_values_get_their_names(script):
    new = script.rename(old_rows())
    assert list(new.metric[:4]) == ['radiomics_frechet', 'nndr', 'tstr_auroc_p', 'n_out_of_range']
    assert list(new.role[4:7]) == ['reference', 'chance', 'upper_bound']
    assert list(new.subset[7:9]) == ['sibling', 'no_sibling']
    assert new.label[9] == 'radiomics Frechet'
    assert new.iloc[10].equals(old_rows().iloc[10])


def test_verdicts_say_what_is_missing(script):
    rows = old_rows()[-3:].assign(
        verdict='unavailable: not yet built',
        extractor=['vgg16', 'radiomics', 'radiomics'],
        classifier=['xgboost', 'deepsurv', 'cox'],
    )
    expected = ['no CNN extractor', 'no DeepSurv model', 'not yet built']
    assert list(script.rename(rows).verdict) == [f'unavailable: {x}' for x in expected]


def test_numbers_and_order_stay(script):
    old = old_rows()
    before = old.copy()
    new = script.rename(old)
    pd.testing.assert_frame_equal(old, before)  # the input is not changed
    assert list(new.value) == list(old.value) and list(new.columns) == list(old.columns)


def test_renaming_twice_is_renaming_once(script):
    once = script.rename(old_rows())
    pd.testing.assert_frame_equal(script.rename(once), once)


def test_the_script_changes_a_run_in_place(tmp_path):
    run = shutil.copytree(ROOT / 'figures' / 'files' / 'quick', tmp_path / 'files' / 'quick')
    before = pd.read_csv(run / 'results.csv', dtype=str, keep_default_na=False)
    old = before.replace({'metric': {'radiomics_frechet': 'frd'}, 'subset': {'sibling': 'leaked'}})
    old.to_csv(run / 'results.csv', index=False)
    for table in run.glob('table[1-7]*.csv'):
        table.unlink()
    done = subprocess.run([sys.executable, SCRIPT, run], capture_output=True, text=True, check=True)
    assert 'renamed' in done.stdout
    after = pd.read_csv(run / 'results.csv', dtype=str, keep_default_na=False)
    pd.testing.assert_frame_equal(after, before)  # digits as they were
    committed = pd.read_csv(ROOT / 'figures' / 'files' / 'quick' / 'table2_siblings.csv')
    pd.testing.assert_frame_equal(pd.read_csv(run / 'table2_siblings.csv'), committed)


@pytest.mark.parametrize('path', COMMITTED, ids=lambda p: str(p.parent.relative_to(ROOT)))
def test_committed_rows_have_the_names_of_today(path, script):
    rows = pd.read_csv(path, dtype=str, keep_default_na=False)
    pd.testing.assert_frame_equal(script.rename(rows), rows)
    assert set(rows.role) <= {*ROLES, ''}
