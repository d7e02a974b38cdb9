"Faults of inputs, of kept files and of processes: refused in one line, never a wrong number."

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from radgen.core import file_names
from radgen.core.checks import load_yaml
from radgen.core.paths import RadgenError, atomic, read_bytes, read_json, seal_of, write_json
from radgen.core.results import COLUMNS, Rows, read_rows, run_rows, write_rows
from radgen.models.checkpoint import load_model
from radgen.models.cvae import CVAE, CVAEConfig
from radgen.models.store import ImageStore, StoredImages
from radgen.models.tensor_files import load_facts, load_tensors, save_tensors
from radgen.models.trainer import fit
from radgen.run import cli, graph, parameters, processes, profiles, values

ROOT = Path(__file__).resolve().parent.parent
torch.set_num_threads(1)


def refusal(action, *args):
    "The one line of the error that an action ends in."
    with pytest.raises(RadgenError) as error:
        action(*args)
    assert '\n' not in str(error.value) and '\0' not in str(error.value)
    return str(error.value)


def flipped(content, bit):
    "The content with one bit changed."
    return content[: bit // 8] + bytes([content[bit // 8] ^ 1 << bit % 8]) + content[bit // 8 + 1 :]


# Names of files


OUTSIDE = ['../../x', '/abs/x', '..', '.hidden', 'a/b', 'a\\b', 'a\0b', 'a\nb', '', ' a', 'é' * 101]


@pytest.mark.parametrize('text', OUTSIDE)
def test_text_from_outside_names_no_other_file(text):
    assert 'cannot name a file' in refusal(file_names.safe_name, text, 'series')


def test_safe_names_stay_as_they_are():
    for text in ('TCGA-AO-A03M', '1.3.6.1', 'Patient 7', 'é' * 100, 'a.b_c'):
        assert file_names.safe_name(text, 'patient') == text


@pytest.mark.parametrize('uid', ['../../escaped', '/tmp/escaped-radgen', 'x' * 300])
def test_a_series_uid_stays_in_the_folder(tmp_path, uid, monkeypatch):
    from radgen.data import archive

    files = pd.DataFrame(dict(path=[tmp_path / 'a.dcm'], uid=[uid], problem='', size=1, modified=1))
    monkeypatch.setattr(archive, '_files_to_project', lambda *a: files)
    out = tmp_path / 'one' / 'two' / 'out'
    table = archive.project_folder(tmp_path, out, progress=False)
    assert len(table) == 0 and 'cannot name a file' in (out / 'ledger.csv').read_text()
    everything = {p.name for p in tmp_path.rglob('*') if p.is_file()}
    assert everything == {'series.csv', 'ledger.csv'}
    assert not Path('/tmp/escaped-radgen.json').exists()


# Tensors


@pytest.fixture(scope='module')
def tensor_file(tmp_path_factory):
    path = tmp_path_factory.mktemp('tensors') / 'a.safetensors'
    tensors = dict(w=torch.arange(4.0), b=torch.ones(2, dtype=torch.bfloat16), n=torch.tensor(3))
    save_tensors(path, tensors, dict(step=3, names=['a', 'b']))
    return path


def test_each_flipped_bit_of_a_tensor_file_is_noticed(tensor_file, tmp_path, capsys):
    "Every third bit of a small file: its length, its header and its numbers."
    content, path = tensor_file.read_bytes(), tmp_path / 'b.safetensors'
    kept, facts = load_tensors(tensor_file)
    silent = []
    for bit in range(0, len(content) * 8, 3):
        path.write_bytes(flipped(content, bit))
        try:
            tensors, other = load_tensors(path)
        except RadgenError:
            continue
        same = other == facts and list(tensors) == list(kept)
        if not (same and all(torch.equal(tensors[k], kept[k]) for k in kept)):
            silent.append(bit)
    assert silent == []


def test_truncated_tensor_files_are_refused(tensor_file, tmp_path):
    content, path = tensor_file.read_bytes(), tmp_path / 'b.safetensors'
    for n in range(len(content)):
        path.write_bytes(content[:n])
        assert 'delete it and train again' in refusal(load_tensors, path)


def test_facts_alone_are_checked_too(tensor_file, tmp_path):
    path = tmp_path / 'b.safetensors'
    path.write_bytes(tensor_file.read_bytes().replace(b'step', b'stop'))
    assert 'damaged (its facts' in refusal(load_facts, path)


def test_equal_content_gives_equal_bytes(tmp_path):
    "Metadata of more than one entry have another order in each process."
    code = (
        'import sys, torch; from radgen.models.tensor_files import save_tensors; '
        'save_tensors(sys.argv[1], dict(a=torch.ones(2), b=torch.zeros(3)), '
        'dict(step=1, names=["x"], more={"b": 1, "a": 2}, config={}, facts=None))'
    )
    for name in 'ab':
        subprocess.run([sys.executable, '-c', code, tmp_path / name], check=True, cwd=ROOT)
    assert (tmp_path / 'a').read_bytes() == (tmp_path / 'b').read_bytes()


def test_a_file_without_a_digest_is_read_with_one_line(tmp_path, capsys):
    from safetensors.torch import save_file

    save_file(dict(x=torch.ones(2)), tmp_path / 'old.safetensors', dict(step='3'))
    tensors, facts = load_tensors(tmp_path / 'old.safetensors')
    assert facts == dict(step=3) and tensors['x'].sum() == 2
    assert capsys.readouterr().out.count('has no digest') == 1


# A model: equal trainings, damaged files, classes


def train(folder, **more):
    images = np.random.default_rng(0).random((8, 8, 8)).astype(np.float32)
    given = pd.DataFrame({'f': np.arange(8.0)}, index=[f'P{i}' for i in range(8)])
    model = CVAE(CVAEConfig.radgen(1, 8, dim=4))
    how = dict(steps=4, batch_size=4, progress=False, checkpoint_every=2)
    return fit(model, images, given, folder, **how | more), given


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp('trained')
    model, given = train(folder)
    return folder, model, given


def test_equal_trainings_give_equal_files(trained, tmp_path):
    folder, *_ = trained
    train(tmp_path)
    first, second = ((f / 'model.safetensors').read_bytes() for f in (folder, tmp_path))
    assert first == second


def test_a_flipped_bit_of_weights_never_changes_a_result(trained, tmp_path):
    folder, model, _ = trained
    content = (folder / 'model.safetensors').read_bytes()
    for bit in np.random.default_rng(0).integers(len(content) * 8, size=60):
        (tmp_path / 'model.safetensors').write_bytes(flipped(content, int(bit)))
        with pytest.raises(RadgenError, match='model.safetensors'):
            load_model(tmp_path)


def test_a_damaged_training_is_not_taken_for_a_finished_one(trained, tmp_path):
    folder, *_ = trained
    train(tmp_path)
    path = tmp_path / 'model.safetensors'
    path.write_bytes(flipped(path.read_bytes(), len(path.read_bytes()) * 8 - 5))
    assert 'damaged' in refusal(lambda: train(tmp_path))


def test_a_checkpoint_imports_nothing(tmp_path, capsys):
    "The class is a name of a closed table, never a module."
    for name in ('os:system', 'antigravity:fly', ['x'], {'a': 1}, 'this'):
        facts = {'class': name, 'config': {}, 'encoder': None, 'facts': {}, 'identity': {}}
        save_tensors(tmp_path / 'model.safetensors', dict(x=torch.ones(1)), facts)
        assert 'unknown model class' in refusal(load_model, tmp_path)
    assert 'antigravity' not in sys.modules and 'this' not in sys.modules


@pytest.mark.parametrize(
    'annotation',
    ['__import__("os").system("x")', 'open("x")', 'os.PathLike', '[int]', 'int or str'],
)
def test_annotations_are_parsed_not_evaluated(tmp_path, annotation):
    metadata = dict(tags=['parameters'])
    cell = dict(cell_type='code', metadata=metadata, source=f'a: {annotation} = 1')
    (tmp_path / 'a.ipynb').write_text(json.dumps(dict(cells=[cell])))
    assert 'is no parameter' in refusal(parameters.notebook_parameters, tmp_path / 'a.ipynb')
    assert not Path('x').exists()


# A store of images


@pytest.fixture
def store(trained, tmp_path):
    _, model, given = trained
    return ImageStore(tmp_path / 'store').write(model, given, 1, 4, progress=False)


@pytest.mark.parametrize('name', ['zarr.json', 'index.csv', 'c.0.0.0.0', 'c.1.0.0.0'])
def test_a_flipped_bit_of_a_store_never_changes_an_image(store, name):
    whole, patients = store.read(), list(store.patients)
    content = (store.path / name).read_bytes()
    bits = np.random.default_rng(1).integers(len(content) * 8, size=40)
    for bit in bits:
        (store.path / name).write_bytes(flipped(content, int(bit)))
        again = StoredImages(store.path)
        try:
            images, ids = again.read(), list(again.patients)
        except RadgenError as e:
            assert '\n' not in str(e)
            continue
        assert ids == patients and np.array_equal(images, whole), bit
    (store.path / name).write_bytes(content)
    assert np.array_equal(StoredImages(store.path).read(), whole)


def test_a_store_goes_on_with_the_right_index(store, trained):
    _, model, given = trained
    index = store.path / 'index.csv'
    index.write_text(index.read_text().replace('P1', 'P9'))
    assert 'index.csv: damaged' in refusal(lambda: StoredImages(store.path).read())
    store.write(model, given, 1, 4, progress=False)
    assert list(StoredImages(store.path).patients) == list(given.index)


@pytest.mark.parametrize(
    'text', ['', '\0', 'a,b\n1,2', 'patient_id,shard,row\nP0,x,0', 'patient_id,shard,row\nP0,1e9,0']
)
def test_an_index_of_an_older_store_may_be_anything(store, text):
    head = json.loads((store.path / 'zarr.json').read_text())
    del head['attributes']['digests']
    (store.path / 'zarr.json').write_text(json.dumps(head))
    (store.path / 'index.csv').write_text(text)
    assert 'index.csv' in refusal(lambda: StoredImages(store.path).read())


# Rows


def rows_of(folder, name):
    rows = Rows(cohort='phantom', model='cpdm', role='model', source_notebook=name)
    rows.add(metric='mse', value=0.25)
    write_rows(rows.frame(), folder / f'{name}.csv')


def test_only_the_rows_of_the_run_are_read(tmp_path, capsys):
    for name in ('04_fidelity', '05_outcomes', '05_outcomes-removed'):
        rows_of(tmp_path, name)
    (tmp_path / '.04_fidelity.csv.77.part.csv').write_text('half,a\n')
    rows = run_rows(tmp_path, ['04_fidelity', '05_outcomes'])
    assert set(rows.source_notebook) == {'04_fidelity', '05_outcomes'}
    assert '05_outcomes-removed.csv' in capsys.readouterr().out
    assert 'no such file' in refusal(run_rows, tmp_path, ['06_survival'])
    assert len(run_rows(tmp_path)) == 3  # outside of a graph: all that were written whole


def test_rows_that_changed_are_refused(tmp_path):
    rows_of(tmp_path, 'a')
    content = (tmp_path / 'a.csv').read_bytes()
    for bit in range(0, len(content) * 8, 31):
        (tmp_path / 'a.csv').write_bytes(flipped(content, bit))
        assert 'a.csv: damaged' in refusal(read_rows, tmp_path / 'a.csv')


LINE = ','.join(COLUMNS) + '\n'
BROKEN_ROWS = {
    'empty': b'',
    'zeros': bytes(99),
    'utf16': LINE.encode('utf-16'),
    'latin': LINE.encode() + b'\xe9' * 40,
    'ragged': LINE.encode() + b'1,2\n' + b'1,' * 99,
    'quote': LINE.encode() + b'"' * 3,
    'other columns': b'a,b\n1,2\n',
    'text for a number': LINE.encode() + b'p,s,x' + b',' * (len(COLUMNS) - 3),
    'no number and ok': LINE.encode() + b'p,s,,,,m,model,,,,,,mse,,,,,,,,,,,,ok,n',
    'infinite and ok': LINE.encode() + b'p,s,,,,m,model,,,,,,mse,inf,,,,,,,,,,,ok,n',
    'unknown role': LINE.encode() + b'p,s,,,,m,modell,,,,,,mse,1,,,,,,,,,,,ok,n',
}


@pytest.mark.parametrize('how', BROKEN_ROWS)
def test_broken_rows_are_one_line(tmp_path, how):
    (tmp_path / 'a.csv').write_bytes(BROKEN_ROWS[how])
    assert 'a.csv' in refusal(read_rows, tmp_path / 'a.csv')


# Files of any kind


def test_pipes_devices_and_folders_are_no_files(tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    places = [tmp_path / 'pipe', '/dev/zero', tmp_path, tmp_path / 'a\0b', tmp_path / ('x' * 300)]
    readers = [read_bytes, read_json, load_yaml, read_rows, load_tensors, parameters.read_notebook]
    for place in places:
        for read in readers:
            refusal(read, place)


@pytest.mark.parametrize(
    'content', [b'', b'\xff\xfe{', b'[' * 99_999, b'{"a": ', b'{"a": 1}x', b'\xe9', bytes(9)]
)
def test_broken_json_is_one_line(tmp_path, content):
    (tmp_path / 'a.json').write_bytes(content)
    assert 'a.json: not readable as JSON' in refusal(read_json, tmp_path / 'a.json')


@pytest.mark.parametrize(
    'content',
    ['a: é'.encode('latin-1'), 'a: 1'.encode('utf-16'), b'a: ' + b'{a: ' * 9999, b'a: \0'],
)
def test_broken_yaml_is_one_line(tmp_path, content):
    (tmp_path / 'a.yaml').write_bytes(content)
    assert 'a.yaml, line 1' in refusal(load_yaml, tmp_path / 'a.yaml')


def test_a_sealed_file_is_whole_or_refused(tmp_path):
    path = tmp_path / 'a.json'
    write_json(path, [1], seal=True)
    assert read_json(path) == [1] and seal_of(path).exists()
    path.write_text('[2]')
    assert 'damaged' in refusal(read_json, path)
    write_json(path, [1], seal=True)
    with pytest.raises(KeyboardInterrupt), atomic(path, seal=True) as tmp:
        tmp.write_text('[2')
        raise KeyboardInterrupt
    assert read_json(path) == [1]


# Profiles


@pytest.mark.parametrize(
    'section, name, value, complaint',
    [
        ('05_outcomes', 'extractors', ['radiomix'], "unknown extractor 'radiomix', did you mean"),
        ('05_outcomes', 'labels', ['her'], "unknown label 'her', did you mean 'her2'?"),
        ('05_outcomes', 'labels', [], 'labels: must have at least one entry'),
        ('05_outcomes', 'outer_folds', 1, 'outer_folds: must be a number from 2 on'),
        ('05_outcomes', 'n_boot', 0, 'n_boot: must be a number from 1 on'),
        ('06_survival', 'penalizers', [0.0], 'penalizers: must be a number from 1e-12 on'),
        ('03_generate', 'sampler', 'dddim', "unknown sampler 'dddim', did you mean 'ddim'?"),
        ('03_generate', 'models', ['cpdm', 'cpdm'], "'cpdm' is given twice; keep one"),
        ('03_generate', 'models', ['cgan'], "'cpdm' is none of models (cgan)"),
        ('02_train', 'lr', float('nan'), 'lr: must be a number from 1e-09 to 1'),
        ('02_train', 'lr', float('inf'), 'lr: must be a number from 1e-09 to 1'),
        ('02_train', 'steps', -3, 'steps: must be a number from 1 on'),
        ('02_train', 'validation', 1.0, 'validation: must be a number from 0 to 0.9'),
        ('02_train', 'image_size', 15, 'image_size: 15 is no multiple of 2'),
        ('02_train', 'objective', 'pred_y', "unknown objective 'pred_y'"),
        ('02_train', 'overrides', {'cvee': {}}, "unknown override 'cvee', did you mean 'cvae'?"),
        ('02_train', 'overrides', {'cvae': {'lr': -1.0}}, 'cvae.lr: must be a number'),
        ('02_train', 'overrides', {'cvae': 3}, 'cvae: must be a mapping'),
        ('shared', 'n_folds', {'paper': 2}, "has no number for protocol 'patient'"),
        ('shared', 'n_folds', {'papr': 2, 'patient': 2}, "unknown n_fold 'papr'"),
        ('shared', 'protocols', ['image'], "unknown protocol 'image'"),
        ('shared', 'conditions', ['omics'], "unknown condition 'omics'"),
        ('07c_learning_curve', 'links', [1.5], 'links: must be a number from 0 to 1'),
        ('run', 'models', {'multiomik': ['cpdm']}, 'run.models.multiomik'),
    ],
)
def test_values_of_a_profile_are_checked_first(
    tmp_path, monkeypatch, section, name, value, complaint
):
    "Before anything runs, whatever the notebook that would have met it."
    for part in ('nbs', 'settings.ini'):
        (tmp_path / part).symlink_to(ROOT / part)
    (tmp_path / 'config').mkdir()
    text = json.dumps({section: {name: value}}).replace('NaN', '.nan').replace('Infinity', '.inf')
    (tmp_path / 'config' / 'mine.yaml').write_text(text)
    monkeypatch.chdir(tmp_path)
    message = refusal(profiles.settings, 'mine', 'phantom')
    assert complaint in message and 'mine.yaml' in message


def test_every_number_and_name_of_the_committed_profiles_is_in_range():
    for nb in parameters.paper_notebooks().values():
        for name, (_, default) in parameters.notebook_parameters(nb).items():
            assert values.value_fault(name, default) == '', (nb, name)


def test_a_parameter_of_one_notebook_is_checked_as_in_a_profile(tmp_path):
    nb = parameters.paper_notebooks()['05_outcomes']
    assert 'radiomix' in refusal(parameters.check_parameters, nb, dict(extractors=['radiomix']))


@pytest.mark.parametrize('name', ['{x}', '1e3', '007', '../quick', 'a b', '-x', ''])
def test_a_profile_has_a_plain_name(name):
    assert 'rename its file' in refusal(profiles.settings, name, 'phantom')


# Processes


def test_a_zombie_is_not_alive():
    import socket

    import psutil

    child = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE)
    born = psutil.Process(child.pid).create_time()
    token = f'{socket.gethostname()}|{child.pid}|{born}'
    assert processes.is_alive(token)
    child.stdin.close()
    end = time.monotonic() + 60
    while psutil.Process(child.pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end
        time.sleep(0.05)
    assert not processes.is_alive(token)
    child.wait()


def test_no_more_threads_than_the_user_allows(monkeypatch):
    from radgen.run import execute

    monkeypatch.setenv('OMP_NUM_THREADS', '2')
    monkeypatch.delenv('MKL_NUM_THREADS', raising=False)
    env = execute._kernel_environment('8')
    assert (env['OMP_NUM_THREADS'], env['MKL_NUM_THREADS']) == ('2', '8')
    assert execute._kernel_environment('1')['OMP_NUM_THREADS'] == '1'


def test_errors_inside_the_snakefile_reach_the_user(tmp_path, monkeypatch):
    "A manifest that is gone is named, and not the line of the Snakefile."
    monkeypatch.setenv('RADGEN_HOME', str(tmp_path))
    monkeypatch.setenv('RADGEN_MANIFEST', str(tmp_path / 'gone.yaml'))
    assert 'gone.yaml: no such manifest' in refusal(graph.out_of_date, 'files', 'smoke')


def test_a_dry_run_lists_the_target_alone(tmp_path, monkeypatch):
    monkeypatch.setenv('RADGEN_HOME', str(tmp_path))
    lines = []
    target = 'notebooks/01_cohort.ipynb'
    todo = graph.paper('phantom', 'smoke', dry_run=True, more=[target], log=lines.append)
    assert todo == ['01_cohort'] and lines == ['phantom/smoke: would run 01_cohort']


# Commands


def test_one_notebook_by_as_much_of_its_name_as_is_needed():
    named = parameters.named_notebook
    assert [named(n) for n in ('04', 'fidelity', '04_fid', '04_fidelity')] == ['04_fidelity'] * 4
    assert named('07') == '07_controls' and named('07a') == '07a_audit'
    assert "'02' " not in refusal(named, '12') and 'may be' in refusal(named, '0')
    assert cli._notebook_path('05') == str(parameters.paper_notebooks()['05_outcomes'])
    assert cli._notebook_path('gone.ipynb') == 'gone.ipynb'


def test_messages_name_no_keyword_of_python(trained):
    from radgen.conditions.tensors import on_scale

    folder, *_ = trained
    message = refusal(lambda: train(folder, lr=0.5))
    assert f'mv {folder} {folder}.old' in message and 'on_mismatch' not in message
    table = pd.DataFrame({'ERBB2': [-3.0]}, index=['P1'])
    message = refusal(on_scale, 'expression', table, 'log2')
    assert '`scales: {expression: as given}` in the profile' in message and 'scales=' not in message


def test_messages_of_generate_name_options(trained, store):
    _, model, given = trained
    message = refusal(lambda: store.write(model, given, 1, 4, seed=1, progress=False))
    assert '--restart' in message and 'on_mismatch' not in message


# The Makefile


@pytest.fixture
def make(tmp_path):
    "A copy of the Makefile whose environment is a stand-in that writes down how it was called."
    for name in ('Makefile', 'requirements.lock', 'settings.ini', 'setup.py'):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    bin_, calls = tmp_path / 'made' / 'bin', tmp_path / 'calls'
    bin_.mkdir(parents=True)
    for name in ('python', 'radgen'):
        (bin_ / name).write_text(f'#!/bin/sh\nprintf "%s\\n" {name} "$@" >> "{calls}"\n')
        (bin_ / name).chmod(0o755)

    def run(*args):
        calls.write_text('')
        command = ['make', '-C', tmp_path, *args]
        done = subprocess.run(command, capture_output=True, text=True)
        return done.returncode, calls.read_text().splitlines(), done.stdout + done.stderr

    run.root, run.made = tmp_path, bin_.parent
    return run


def digest_of_the_environment(root):
    import hashlib

    names = ('requirements.lock', 'settings.ini', 'setup.py')
    return hashlib.sha256(b''.join((root / n).read_bytes() for n in names)).hexdigest()


def test_an_environment_is_judged_by_content(make):
    make.made.rename(make.root / '.venv')
    stamp = make.root / '.venv' / '.radgen-ready'
    stamp.write_text(digest_of_the_environment(make.root) + '\n')
    for name in ('requirements.lock', 'settings.ini', 'setup.py'):  # as after `git clone`
        os.utime(make.root / name, (2e9, 2e9))
    assert make('setup')[:2] == (0, [])
    (make.root / 'requirements.lock').write_text('numpy==1.0\n')
    status, calls, output = make('setup')
    assert status == 0 and calls.count('pip') == 4 and 'bringing .venv up to date' in output
    assert stamp.read_text().strip() == digest_of_the_environment(make.root)
    assert make('setup')[:2] == (0, [])


def test_a_linked_environment_is_never_touched(make):
    (make.root / '.venv').symlink_to(make.made)
    before = sorted(p.name for p in make.made.rglob('*'))
    assert make('setup')[:2] == (0, [])
    status, calls, output = make('environment')
    assert status and calls == [] and '.venv is a link' in output
    assert sorted(p.name for p in make.made.rglob('*')) == before


@pytest.mark.parametrize('name', ["my file's.yaml", 'rna{x}.yaml', 'a; touch b', '"q" `id`'])
def test_values_of_make_are_one_word(make, name):
    (make.root / '.venv').symlink_to(make.made)
    status, calls, _ = make('paper', 'COHORT=files', f'MANIFEST={name}')
    assert status == 0 and calls[-2:] == ['--manifest', name]
    assert not (make.root / 'b').exists()
