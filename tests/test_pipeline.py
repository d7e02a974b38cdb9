"""The whole study at smoke size, in a copy of the project: killed on the way and resumed, its numbers, what runs again and what does not.

The expected numbers are in expected_smoke.csv. After a change that is meant to change them:
    RADGEN_EXPECTED=write python -m pytest tests/test_pipeline.py -k expected
"""
import json, os, re, shutil, signal, subprocess, sys, time
from pathlib import Path

import numpy as np, pandas as pd, pytest, yaml

from radgen import run

ROOT = Path(__file__).resolve().parent.parent
EXPECTED = Path(__file__).parent/'expected_smoke.csv'
KEYS = 'source_notebook condition protocol model role estimator subset extractor classifier label metric'.split()


class Project:
    "A copy of the project, and its command line."
    def __init__(self, folder):
        self.root, self.home = folder/'project', folder/'home'
        for part in ('nbs', 'radgen', 'config'):
            shutil.copytree(ROOT/part, self.root/part, ignore=shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints'))
        for part in ('Snakefile', 'settings.ini', 'requirements.lock'): shutil.copy(ROOT/part, self.root)
        self.env = {k: v for k, v in os.environ.items() if not k.startswith('RADGEN_')} | {'RADGEN_HOME': str(self.home), 'PYTHONPATH': str(self.root)}
        self.run = self.home/'runs'/'phantom'/'smoke'

    def start(self, *args, **kw):
        return subprocess.Popen([sys.executable, '-m', 'radgen.run', *map(str, args)], cwd=self.root, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kw)

    def radgen(self, *args):
        process = self.start(*args)
        out, err = process.communicate(timeout=1500)
        return process.returncode, out, err

    def paper(self, *more):
        status, out, err = self.radgen('paper', '--profile', 'smoke', '--jobs', '2', *more)
        assert status == 0, err
        return out

    def would_run(self):
        found = re.search('would run (.*)', self.paper('--dry-run'))
        return found[1].split(', ') if found else []

    def executed(self): return {p.stem: p.stat().st_mtime_ns for p in (self.run/'notebooks').glob('[0-9]*.ipynb')}


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    "A finished smoke run, whose first attempt was killed while models were training."
    project = Project(tmp_path_factory.mktemp('smoke'))
    first = project.start('paper', '--profile', 'smoke', '--jobs', '2')
    checkpoints = lambda: list(project.run.glob('*/cpdm/*/*/*.safetensors'))
    end = time.monotonic() + 600
    while not checkpoints() and first.poll() is None:
        assert time.monotonic() < end, 'no training began'
        time.sleep(.2)
    assert first.poll() is None, first.communicate()[1]
    first.send_signal(signal.SIGKILL)
    first.wait()
    project.before = project.executed()
    project.output = project.paper()
    return project


def test_a_killed_run_goes_on(project):
    assert '01_cohort' in project.before
    assert 'started' not in re.findall('01_cohort: (.*)', project.output)
    assert project.executed()['01_cohort'] == project.before['01_cohort'], 'what was finished ran again'
    assert f'{len(project.executed()) - len(project.before)} of {len(project.executed())} notebooks to run' in project.output
    assert not [p.name for p in (project.run/'notebooks').iterdir() if '.part' in p.name or '.failed' in p.name]


def test_everything_is_there(project):
    figures = project.home/'figures'/'phantom'/'smoke'
    kinds = {s: sorted(p.stem for p in figures.glob(f'*{s}')) for s in ('.png', '.svg', '.csv')}
    assert kinds['.png'] == kinds['.svg']
    for n in range(1, 10): assert [f for f in kinds['.png'] if f.startswith(f'fig{n}_')] or n == 4, f'no figure {n}'
    for n in range(1, 9): assert [t for t in kinds['.csv'] if t.startswith(f'table{n}')], f'no table {n}'
    report = (project.run/'report.html').read_text()
    assert 'SIMULATED' in report and not re.findall(r'(?:src|href)="(?!data:|#|https?://)', report), 'the report is not self-contained'
    record = json.loads((figures/'provenance.json').read_text())
    assert record['notebooks'].keys() == project.executed().keys() and record['packages']['torch'] and record['latest_run']['wall_s'] > 0
    assert str(project.home) not in json.dumps(record)


def test_expected_numbers(project):
    """Every smoke number equals the recorded one. On one machine that is exact; in float32 on another processor it is within 2 % (0.05 for the kernel distance, which
    crosses zero; 0.1 for scores of small classifiers and Cox models, where one case that changes sides moves more than rounding does). The p-values of four permutations
    come in steps of 0.2 and are only required to be there. Counts are exact, and so is the kind of every verdict."""
    found = pd.read_csv(project.home/'figures'/'phantom'/'smoke'/'results.csv')
    found['verdict'] = found.verdict.str.split(':').str[0]
    found = found[[*KEYS, 'value', 'verdict']].sort_values([*KEYS, 'value'], kind='stable').reset_index(drop=True)
    if os.environ.get('RADGEN_EXPECTED') == 'write': found.to_csv(EXPECTED, index=False, float_format='%.6g')
    expected = pd.read_csv(EXPECTED)
    rows = lambda frame: frame[[*KEYS, 'verdict']].fillna('').value_counts()
    changed = rows(found).sub(rows(expected), fill_value=0)
    assert not changed.any(), f'more (+) or fewer (-) rows:\n{changed[changed != 0].to_string()}'
    a, b = found.value.to_numpy(float), expected.value.to_numpy(float)
    slack = np.select([expected.metric.str.endswith('_p'), expected.source_notebook.str.match('0[56]'), expected.metric == 'kid', expected.metric == 'count'], [1, .1, .05, 0], 1e-4)
    close = np.isclose(a, b, rtol=np.where(slack == 0, 0, .02), atol=slack, equal_nan=True)
    assert close.all(), found.assign(expected=b)[~close].to_string()


def test_nothing_changed_nothing_runs(project):
    before = project.executed()
    os.utime(project.root/'nbs'/'paper'/'02_train.ipynb') # a newer time is not a change
    assert 'nothing to do' in project.paper()
    assert project.executed() == before


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return text


@pytest.mark.parametrize('file, old, new, stems', [
    ('nbs/paper/04_fidelity.ipynb', '# 4. Image fidelity', '# 4. Fidelity', {'04_fidelity', '08_scorecard'}),
    ('nbs/paper/02_train.ipynb', '# 2. Training', '# 2. Fitting', {'02_train', '03_generate', '04_fidelity', '05_outcomes', '06_survival', '07a_audit', '08_scorecard'}),
    ('radgen/survival.py', 'import', '# edited\nimport', {'06_survival', '08_scorecard'}),
    ('radgen/run.py', 'import', '# edited\nimport', set()),
    ('config/smoke.yaml', 'penalizers: [0.1, 1.0]', 'penalizers: [0.1, 2.0]', {'06_survival', '08_scorecard'}),
    ('config/smoke.yaml', '# Seconds', '# Few seconds', set())], ids=['notebook', 'early notebook', 'module', 'runner', 'parameter', 'comment'])
def test_only_what_depends_on_an_edit_runs(project, file, old, new, stems):
    text = edit(project.root/file, old, new)
    try: assert {job.split('-')[0] for job in project.would_run()} == stems
    finally: (project.root/file).write_text(text)


def test_papermill_by_hand(project, tmp_path):
    written = project.run/'rows'/'05_outcomes-expression.csv'
    before = written.read_bytes()
    (tmp_path/'params.yaml').write_text(yaml.safe_dump(dict(condition='expression', labels=['er'], extractors=['radiomics'], seed=1)))
    done = subprocess.run([Path(sys.executable).parent/'papermill', 'nbs/paper/05_outcomes.ipynb', str(tmp_path/'out.ipynb'), '-f', str(tmp_path/'params.yaml')],
                          cwd=project.root, env=project.env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = pd.read_csv(written)
    written.write_bytes(before) # for the tests that come
    assert set(rows[rows.role == 'model'].label.dropna()) == {'er'}


@pytest.mark.parametrize('stem', ['01_cohort', '01a_series', '04_fidelity', '08_scorecard'])
def test_notebooks_run_as_they_stand(project, stem):
    done = subprocess.run([Path(sys.executable).parent/'nbdev_test', '--n_workers', '0', '--path', f'nbs/paper/{stem}.ipynb'],
                          cwd=project.root, env=project.env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_generate_for_new_patients(project, tmp_path, capsys):
    from radgen.training import load_model
    folder = project.run/'expression'/'cpdm'/'patient'/'final'
    features = load_model(folder).encoder.features
    table = pd.DataFrame(1., index=pd.Index(['007', 'new-1', 'new-2'], name='patient'), columns=features)
    table.iloc[1] = 50.
    def generate(name, frame, *more):
        frame.to_csv(tmp_path/'mine.csv')
        capsys.readouterr()
        status = run.main(['generate', '--checkpoint', str(folder), '--conditions', str(tmp_path/'mine.csv'), '--out', str(tmp_path/name), '--steps', '3', '--samples', '2', *more])
        return status, *capsys.readouterr()
    status, out, err = generate('all', table, '--png')
    assert status == 0, err
    assert '3 patients, 2 pictures each' in out
    assert sorted(p.name for p in (tmp_path/'all'/'png').iterdir()) == [f'{p}_{k}.png' for p in table.index for k in (0, 1)]
    from radgen.sampling import ImageStore
    assert generate('one', table.iloc[[2]])[0] == 0
    np.testing.assert_allclose(ImageStore(tmp_path/'one').read(), ImageStore(tmp_path/'all').read(['new-2']), atol=1e-4)
    wrong = table.astype(object)
    wrong.iloc[1, 3] = 'high'
    for frame, complaint in [(wrong, f"column {features[3]!r}, patient new-1: 'high' is no finite number"), (table.iloc[:, 1:], f'1 missing feature ({features[0]})'),
                             (table[features[::-1]], 'put the columns in the order of training'), (table.assign(X=1.), 'unknown feature (X)'), (pd.concat([table, table[:1]]), 'patient 007 is given twice')]:
        status, _, err = generate('bad', frame)
        assert status == 2 and complaint in err and 'mine.csv' in err and err.count('\n') == 1
    assert not (tmp_path/'bad').exists()


def test_what_is_only_asked_for(project):
    "Coverage, learning curve and ablations: not part of a run unless asked for, shown once they are there, and refused where no truth is known."
    assert not {'01b_factorization', '07b_coverage', '07c_learning_curve', '07d_ablations'} & project.executed().keys()
    project.paper('--upto', '07d_ablations')
    project.paper('--audit')
    rows = pd.read_csv(project.home/'figures'/'phantom'/'smoke'/'results.csv')
    for stem, metric in {'01b_factorization': 'program_recovery', '07b_coverage': 'coverage', '07c_learning_curve': 'retrieval', '07d_ablations': 'ablation_mse'}.items():
        assert ((rows.source_notebook == stem) & (rows.metric == metric)).any(), stem
    assert project.would_run() == []
    for stem in ('07b_coverage', '07c_learning_curve'):
        status, _, err = project.radgen('notebook', f'nbs/paper/{stem}.ipynb', project.home/'refused.ipynb', '--parameters', '{"cohort": "published"}')
        assert status == 2 and 'published' in err and err.count('\n') == 1, err


def test_patients_of_ones_own(project, tmp_path):
    "A manifest makes a study: it depends on its files, keeps its folder, and says in one line what is wrong."
    from radgen.files import write_files
    from radgen.phantom import make_phantom
    manifest = write_files(make_phantom(n_patients=200, n_imaged=16, n_genes=60, image_size=16), tmp_path/'mine')
    study = lambda m, *more: project.radgen('paper', '--cohort', 'files', '--manifest', m, '--profile', 'smoke', '--upto', '01_cohort', *more)
    status, out, err = study(manifest)
    assert status == 0, err
    rows = pd.read_csv(project.home/'runs'/'files'/'smoke'/'rows'/'01_cohort.csv')
    assert set(rows.query("metric == 'count' and label == 'patients' and subset == 'imaged'").value) == {16} and set(rows.cohort) == {'files'}
    assert str(tmp_path) not in (project.home/'figures'/'files'/'smoke'/'provenance.json').read_text(), 'results to be shared name a folder of this machine'
    assert 'nothing to do' in study(manifest)[1]
    labels = tmp_path/'mine'/'labels.csv'
    labels.write_text(labels.read_text() + '\n')
    assert 'would run 01_cohort' in study(manifest, '--dry-run')[1]
    other = manifest.with_name('other.yaml')
    other.write_text(manifest.read_text().replace('name: phantom', 'name: theirs'))
    for m, complaint in (other, "holds the study 'phantom'"), (tmp_path/'none.yaml', 'no such manifest'):
        status, _, err = study(m)
        assert status == 2 and complaint in err and err.count('\n') == 1, err
    status, _, err = project.radgen('paper', '--cohort', 'files', '--profile', 'smoke')
    assert status == 2 and 'MANIFEST=my.yaml' in err and err.count('\n') == 1, err


def test_a_model_of_another_deal_is_refused(project):
    "Pictures are drawn only for what the model's own fold held out; a run that deals the folds otherwise is refused by name."
    out = project.home/'refused.ipynb'
    status, _, err = project.radgen('notebook', 'nbs/paper/03_generate.ipynb', out, '--parameters', json.dumps(dict(condition='expression', models=['cpdm'], seed=5)))
    assert status == 2 and 'were trained on' in err and 'n_folds and seed' in err and not out.exists()
