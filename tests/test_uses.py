"""What people do with a finished study.

A notebook by hand, other parameters, new patients, what is only asked for, one's own patients.
"""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from radgen.core.paths import seal_of
from radgen.run import cli

ROOT = Path(__file__).resolve().parent.parent


def test_papermill_by_hand(project, tmp_path):
    written = project.run / 'rows' / '05_outcomes-expression.csv'
    before = written.read_bytes()
    (tmp_path / 'params.yaml').write_text(
        yaml.safe_dump(
            dict(condition='expression', labels=['er'], extractors=['radiomics'], seed=1)
        )
    )
    done = subprocess.run(
        [
            Path(sys.executable).parent / 'papermill',
            'nbs/paper/05_outcomes.ipynb',
            str(tmp_path / 'out.ipynb'),
            '-f',
            str(tmp_path / 'params.yaml'),
        ],
        cwd=project.root,
        env=project.env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    old, rows = pd.read_csv(io.BytesIO(before)), pd.read_csv(written)
    written.write_bytes(before)  # for the tests that come
    seal_of(written).unlink(missing_ok=True)
    assert set(rows[rows.role == 'model'].label.dropna()) == {'er'}
    keys = ['role', 'extractor', 'classifier', 'estimator', 'subset', 'label', 'metric']
    both = old.merge(rows, on=keys, suffixes=('_old', '_new'))
    both = both[both.role == 'model'].dropna(subset=['value_old', 'value_new'])
    assert len(both) and (both.value_old != both.value_new).any(), 'another seed, other folds'


def test_papermill_with_a_parameter_on_the_command_line(project, tmp_path):
    written = project.run / 'rows' / '04_fidelity-multiomic.csv'
    before = written.read_bytes()
    papermill = Path(sys.executable).parent / 'papermill'
    nb, out = 'nbs/paper/04_fidelity.ipynb', str(tmp_path / 'out.ipynb')
    command = [papermill, nb, out, '-p', 'n_boot', '50']
    options = dict(cwd=project.root, env=project.env, capture_output=True, text=True)
    done = subprocess.run(command, **options)
    assert done.returncode == 0, done.stderr[-2000:]
    old, rows = pd.read_csv(io.BytesIO(before)), pd.read_csv(written)
    written.write_bytes(before)
    seal_of(written).unlink(missing_ok=True)  # of the rows that were written by hand
    same = ['model', 'role', 'metric', 'estimator', 'protocol']
    assert rows[same].equals(old[same]), 'the same rows are asked for'
    assert not rows.ci_low.equals(old.ci_low), 'of other resamples, so with other intervals'


PAPER = sorted((ROOT / 'nbs' / 'paper').glob('[0-9]*.ipynb'))
WORDS = 'stored(', 'require_upstream('
READ_UPSTREAM = [p.stem for p in PAPER if any(w in p.read_text() for w in WORDS)]


@pytest.mark.parametrize('stem', READ_UPSTREAM)
def test_a_notebook_names_the_command_that_makes_what_it_needs(stem, tmp_path):
    papermill = Path(sys.executable).parent / 'papermill'
    command = [papermill, f'nbs/paper/{stem}.ipynb', str(tmp_path / 'out.ipynb')]
    env = {**os.environ, 'RADGEN_HOME': str(tmp_path), 'PYTHONPATH': str(ROOT)}
    options = dict(cwd=ROOT, env=env, capture_output=True, text=True)
    done = subprocess.run(command, **options)
    assert done.returncode
    assert re.search(r'radgen paper --cohort phantom --profile smoke --upto 0\w+', done.stderr)


@pytest.mark.parametrize('stem', ['01_cohort', '01a_series', '08_scorecard'])
def test_notebooks_run_as_they_stand(project, stem):
    done = subprocess.run(
        [
            Path(sys.executable).parent / 'nbdev_test',
            '--n_workers',
            '0',
            '--path',
            f'nbs/paper/{stem}.ipynb',
        ],
        cwd=project.root,
        env=project.env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_generate_for_new_patients(project, tmp_path, capsys):
    from radgen.models.checkpoint import load_model

    folder = project.run / 'expression' / 'cpdm' / 'patient' / 'final'
    features = load_model(folder).encoder.features
    table = pd.DataFrame(
        1.0, index=pd.Index(['007', 'new-1', 'new-2'], name='patient'), columns=features
    )
    table.iloc[1] = 50.0

    def generate(name, frame, *more):
        frame.to_csv(tmp_path / 'mine.csv')
        capsys.readouterr()
        status = cli.main(
            [
                'generate',
                '--checkpoint',
                str(folder),
                '--conditions',
                str(tmp_path / 'mine.csv'),
                '--out',
                str(tmp_path / name),
                '--steps',
                '3',
                '--samples',
                '2',
                *more,
            ]
        )
        return status, *capsys.readouterr()

    status, out, err = generate('all', table, '--png')
    assert status == 0, err
    assert '3 patients, 2 images each' in out
    assert sorted(p.name for p in (tmp_path / 'all' / 'png').iterdir()) == [
        f'{p}_{k}.png' for p in table.index for k in (0, 1)
    ]
    from radgen.models.store import ImageStore

    assert generate('one', table.iloc[[2]])[0] == 0
    np.testing.assert_allclose(
        ImageStore(tmp_path / 'one').read(), ImageStore(tmp_path / 'all').read(['new-2']), atol=1e-4
    )
    assert generate('order', table[features[::-1]])[0] == 0
    np.testing.assert_array_equal(
        ImageStore(tmp_path / 'order').read(), ImageStore(tmp_path / 'all').read()
    )
    wrong = table.astype(object)
    wrong.iloc[1, 3] = 'high'
    for frame, complaint in [
        (wrong, f"column {features[3]!r}, patient new-1: 'high' is no finite number"),
        (table.iloc[:, 1:], f'1 missing feature ({features[0]})'),
        (table.assign(X=1.0), 'unknown feature (X)'),
        (pd.concat([table, table[:1]]), 'patient 007 is given twice'),
    ]:
        status, _, err = generate('bad', frame)
        assert status == 2 and complaint in err and 'mine.csv' in err and err.count('\n') == 1
    assert not (tmp_path / 'bad').exists()


def test_what_is_only_asked_for(project):
    "Coverage, learning curve and ablations: only if asked for, and only where a truth is known."
    assert (
        not {
            '01b_factorization',
            '07b_coverage',
            '07c_learning_curve',
            '07d_ablations',
            '07e_repeated',
        }
        & project.executed().keys()
    )
    project.paper('--upto', '07d_ablations')
    project.paper('--audit')
    rows = pd.read_csv(project.home / 'figures' / 'phantom' / 'smoke' / 'results.csv')
    for stem, metric in {
        '01b_factorization': 'program_recovery',
        '07b_coverage': 'coverage',
        '07c_learning_curve': 'retrieval',
        '07d_ablations': 'ablation_mse',
        '07e_repeated': 'interval_factor',
    }.items():
        assert ((rows.source_notebook == stem) & (rows.metric == metric)).any(), stem
    assert project.would_run() == []
    for stem in ('07b_coverage', '07c_learning_curve', '07e_repeated'):
        status, _, err = project.radgen(
            'notebook',
            f'nbs/paper/{stem}.ipynb',
            project.home / 'refused.ipynb',
            '--parameters',
            '{"cohort": "published"}',
        )
        assert status == 2 and 'published' in err and err.count('\n') == 1, err


def test_patients_of_ones_own(project, tmp_path):
    "A manifest makes a study: it depends on its files and keeps its folder."
    from radgen.data.writing import write_files
    from radgen.phantom.cohort import make_phantom

    manifest = write_files(
        make_phantom(n_patients=200, n_imaged=16, n_genes=60, image_size=16), tmp_path / 'mine'
    )
    study = lambda m, *more: project.radgen(
        'paper',
        '--cohort',
        'files',
        '--manifest',
        m,
        '--profile',
        'smoke',
        '--upto',
        '01_cohort',
        *more,
    )
    status, out, err = study(manifest)
    assert status == 0, err
    rows = pd.read_csv(project.home / 'runs' / 'files' / 'smoke' / 'rows' / '01_cohort.csv')
    assert set(
        rows.query("metric == 'count' and label == 'patients' and subset == 'imaged'").value
    ) == {16} and set(rows.cohort) == {'files'}
    assert (
        str(tmp_path)
        not in (project.home / 'figures' / 'files' / 'smoke' / 'provenance.json').read_text()
    ), 'results to be shared name a folder of this machine'
    assert 'nothing to do' in study(manifest)[1]
    labels = tmp_path / 'mine' / 'labels.csv'
    labels.write_text(labels.read_text() + '\n')
    assert 'would run 01_cohort' in study(manifest, '--dry-run')[1]
    other = manifest.with_name('other.yaml')
    other.write_text(manifest.read_text().replace('name: phantom', 'name: theirs'))
    for m, complaint in (
        (other, "holds the study 'phantom'"),
        (tmp_path / 'none.yaml', 'no such manifest'),
    ):
        status, _, err = study(m)
        assert status == 2 and complaint in err and err.count('\n') == 1, err
    status, _, err = project.radgen('paper', '--cohort', 'files', '--profile', 'smoke')
    assert status == 2 and 'MANIFEST=my.yaml' in err and err.count('\n') == 1, err


def test_a_model_of_other_folds_is_refused(project):
    "Images are generated only for what the model's own fold held out."
    out = project.home / 'refused.ipynb'
    status, _, err = project.radgen(
        'notebook',
        'nbs/paper/03_generate.ipynb',
        out,
        '--parameters',
        json.dumps(dict(condition='expression', models=['cpdm'], seed=5)),
    )
    assert (
        status == 2 and 'were trained on' in err and 'n_folds and seed' in err and not out.exists()
    )
