"The runner and the command line: parameters, atomic outputs, interruptions, one-line errors."

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
import yaml

from radgen.core.paths import RadgenError, require_committed_code
from radgen.run import cli, doctor, execute, graph, parameters, processes, profiles, publish

ROOT = Path(__file__).resolve().parent.parent
PARAMETERS = """patient: str = '001'
steps: int = 3
scale: float = 1.0
extra: list[int] = [1]
where: str | None = None
"""
KERNEL = {'display_name': 'python3', 'language': 'python', 'name': 'python3'}


def toy(folder, *code):
    "A small notebook with a parameters cell."
    v4 = nbformat.v4
    first = v4.new_code_cell(PARAMETERS, metadata={'tags': ['parameters']})
    cells = [first, *map(v4.new_code_cell, code)]
    nb = v4.new_notebook(cells=cells, metadata={'kernelspec': KERNEL})
    nbformat.write(nb, folder / 'toy.ipynb')
    return folder / 'toy.ipynb'


def outputs(nb):
    return ''.join(
        ''.join(o.get('text', ''))
        for c in nbformat.read(nb, 4).cells
        if c.cell_type == 'code'
        for o in c.outputs
    )


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def command(*args, **kw):
    return subprocess.Popen(
        [sys.executable, '-m', 'radgen.run.cli', *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        **kw,
    )


def finish(process, timeout=120):
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, 'it did not come about'
        time.sleep(0.1)


@pytest.mark.parametrize(
    'params, complaint',
    [
        (dict(step=3), "toy.ipynb: unknown key 'step', did you mean 'steps'?"),
        (dict(steps='3'), "steps: must be a valid integer, got '3'"),
        (dict(steps=True), 'steps: must be a valid integer, got True'),
        (dict(steps=2.5), 'steps: must be a valid integer, got 2.5'),
        (dict(patient=7), 'patient: must be a valid string, got 7'),
        (dict(scale='1'), "scale: must be a valid number, got '1'"),
        (dict(extra=['1']), "extra.0: must be a valid integer, got '1'"),
        (dict(where=3), 'where: must be a valid string, got 3'),
        (
            dict(steps='3', scale='1', x=0),
            "scale: must be a valid number, got '1'; unknown key 'x'",
        ),
    ],
)
def test_wrong_parameters_are_refused(tmp_path, params, complaint):
    nb = toy(tmp_path, 'print("ran")')
    with pytest.raises(RadgenError, match='.') as e:
        execute.execute(nb, tmp_path / 'out.ipynb', params)
    assert complaint in str(e.value) and '\n' not in str(e.value)
    assert names(tmp_path) == ['toy.ipynb']


def test_identifiers_stay_text(tmp_path):
    nb = toy(tmp_path, 'print(patient, type(patient).__name__, scale*2)')
    (tmp_path / 'params.yaml').write_text(yaml.safe_dump(dict(patient='007', scale=3)))
    status, _, err = finish(
        command('notebook', nb, tmp_path / 'out.ipynb', '-f', tmp_path / 'params.yaml')
    )
    assert status == 0, err
    assert outputs(tmp_path / 'out.ipynb') == '007 str 6\n'
    facts = json.loads((tmp_path / 'out.json').read_text())
    assert (
        facts['parameters'] == dict(patient='007', scale=3)
        and facts['wall_s'] > 0
        and facts['peak_memory_mb'] > 1
    )


def test_a_failing_notebook_leaves_one_line(tmp_path):
    nb = toy(tmp_path, 'print("so far")', 'raise ValueError("first\\nsecond")', 'print("never")')
    status, _, err = finish(command('notebook', nb, tmp_path / 'out.ipynb'))
    assert status == 2
    lines = err.splitlines()
    assert [x for x in lines if x.startswith('radgen:')] == lines[-1:] and 'Traceback' not in err
    assert 'ValueError: first' in err and 'second' not in err and 'out.failed.ipynb' in err
    assert names(tmp_path) == ['out.failed.ipynb', 'toy.ipynb'] and outputs(
        tmp_path / 'out.failed.ipynb'
    ).startswith('so far')
    execute.execute(
        toy(tmp_path, '1'), tmp_path / 'out.ipynb', log=sys.stdout
    )  # a success clears it away
    assert names(tmp_path) == ['out.ipynb', 'out.json', 'toy.ipynb']


def test_an_older_output_outlives_a_failure(tmp_path):
    (tmp_path / 'out.ipynb').write_text('kept')
    with pytest.raises(RadgenError, match='no such column'):
        execute.execute(
            toy(
                tmp_path,
                'from radgen.core.paths import RadgenError\nraise RadgenError("no such column")',
            ),
            tmp_path / 'out.ipynb',
            log=sys.stdout,
        )
    assert (tmp_path / 'out.ipynb').read_text() == 'kept'


def test_a_killed_kernel_is_named(tmp_path):
    with pytest.raises(
        RadgenError, match='kernel was killed; the machine may have run out of memory'
    ):
        execute.execute(
            toy(tmp_path, 'import os, signal; os.kill(os.getpid(), signal.SIGKILL)'),
            tmp_path / 'out.ipynb',
            log=sys.stdout,
        )
    assert not (tmp_path / 'out.ipynb').exists()


@pytest.mark.parametrize('how', [signal.SIGINT, signal.SIGTERM], ids=lambda s: s.name)
def test_an_interruption_leaves_nothing(tmp_path, how):
    write_pid = f'open({str(tmp_path / "pid")!r}, "w").write(str(os.getpid()))'
    nb = toy(tmp_path, f'import os, time; {write_pid}; time.sleep(120)')
    process = command('notebook', nb, tmp_path / 'out.ipynb')
    wait_for(lambda: (tmp_path / 'pid').exists() and (tmp_path / 'pid').read_text())
    kernel = int((tmp_path / 'pid').read_text())
    process.send_signal(how)
    status, _, err = finish(process, 30)
    assert (
        status == 130
        and err.splitlines()[-1].startswith('radgen: interrupted')
        and 'Traceback' not in err
    )
    assert names(tmp_path) == ['pid', 'toy.ipynb']
    wait_for(
        lambda: (
            not os.path.exists(f'/proc/{kernel}')
            or Path(f'/proc/{kernel}/stat').read_text().split()[2] == 'Z'
        ),
        10,
    )


def test_the_kernel_is_this_interpreter_without_any_path(tmp_path):
    (tmp_path / 'data' / 'kernels' / 'python3').mkdir(
        parents=True
    )  # a user's own kernel of the same name must not win
    (tmp_path / 'data' / 'kernels' / 'python3' / 'kernel.json').write_text(
        json.dumps(
            dict(argv=['/nowhere/python', '{connection_file}'], display_name='x', language='python')
        )
    )
    nb = toy(tmp_path, 'import os, sys; print(sys.executable, os.environ["OMP_NUM_THREADS"])')
    status, _, err = finish(
        command(
            'notebook',
            nb,
            tmp_path / 'out.ipynb',
            env={
                **os.environ,
                'PATH': '/usr/bin:/bin',
                'JUPYTER_DATA_DIR': str(tmp_path / 'data'),
                'RADGEN_THREADS': '3',
                'OMP_NUM_THREADS': '8',  # of the user: no more than these
            },
        )
    )
    assert status == 0, err
    assert outputs(tmp_path / 'out.ipynb').split() == [sys.executable, '3']


def test_kernels_may_start_together(tmp_path):
    nb = toy(tmp_path, 'print(steps)')
    many = [
        command(
            'notebook', nb, tmp_path / f'out{i}.ipynb', '--parameters', json.dumps(dict(steps=i))
        )
        for i in range(1, 4)
    ]
    assert [finish(p)[0] for p in many] == [0] * 3
    assert [outputs(tmp_path / f'out{i}.ipynb') for i in range(1, 4)] == [
        f'{i}\n' for i in range(1, 4)
    ]


def test_a_folder_that_cannot_be(tmp_path):
    nb = toy(tmp_path, '1')
    with pytest.raises(RadgenError, match='cannot create this folder'):
        execute.execute(nb, nb / 'out.ipynb')


@pytest.mark.skipif(os.geteuid() == 0, reason='root may write anywhere')
def test_a_read_only_folder(tmp_path):
    nb = toy(tmp_path, '1')
    (tmp_path / 'closed').mkdir(mode=0o555)
    with pytest.raises(RadgenError, match='cannot be written'):
        execute.execute(nb, tmp_path / 'closed' / 'out.ipynb')


def test_no_room_on_the_disk(tmp_path):
    nb = toy(
        tmp_path, 'print("x"*200_000)'
    )  # as on a full disk, writing stops in the middle of the file
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
    status, _, err = finish(command('notebook', nb, tmp_path / 'out.ipynb', preexec_fn=limit))
    assert (
        status == 2
        and 'out.ipynb: cannot be written' in err.splitlines()[-1]
        and 'Traceback' not in err
    )
    assert names(tmp_path) == ['toy.ipynb']


@pytest.mark.parametrize(
    'line, complaint',
    [
        ('paper --cohort fantom', "unknown cohort 'fantom', did you mean 'phantom'?"),
        ('paper --profile quik', "unknown profile 'quik', did you mean 'quick'?"),
        ('paper --jobs 0', "'0' is no positive whole number"),
        ('paper --fast', 'unrecognized arguments: --fast'),
        ('fetch tgca', "unknown cohort 'tgca'"),
        ('', 'required: COMMAND'),
        ('papr', "unknown command 'papr', did you mean 'paper'?"),
        ('project in out --reduce sum', "argument --reduce: invalid choice: 'sum'"),
        ('generate --checkpoint nowhere --conditions none.csv --out x', 'nowhere'),
        ('notebook none.ipynb out.ipynb', 'none.ipynb: no such notebook'),
        ('doctor -- --cores 3', 'takes no arguments after --'),
    ],
)
def test_errors_are_one_line(line, complaint, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv('RADGEN_HOME', str(tmp_path))
    assert cli.main(line.split()) == 2
    out, err = capsys.readouterr()
    assert err.count('\n') == 1 and err.startswith('radgen: ') and complaint in err


@pytest.mark.parametrize(
    'text, complaint',
    [
        ('shared: {sead: 0}', "unknown key 'shared.sead', did you mean 'seed'?"),
        ('2_train: {steps: 3}', "unknown key '2_train', did you mean '02_train'?"),
        ('02_train: {steps: three}', "02_train.steps: must be a valid integer, got 'three'"),
        ('02_train: {stebs: 3}', "unknown key '02_train.stebs', did you mean 'steps'?"),
        ('cohorts: {fantom: {}}', "unknown key 'cohorts.fantom', did you mean 'phantom'?"),
        ('cohorts: {phantom: {02_train: {steps: 1.5}}}', 'cohorts.phantom.02_train.steps: must'),
        ('shared: [1]', 'shared: must be a mapping `key: value`, got [1]'),
        ('- 1', 'expected `key: value`, got [1]'),
        ('shared: {', 'line 1: not readable as YAML'),
        ('shared: {}\nday: 2024-99-99', "line 2: not readable as YAML ('2024-99-99' is no"),
        ('shared: ' + '[' * 5000, 'line 1: not readable as YAML (nested too deeply'),
        ('run: {folds_per_run: some}', "run.folds_per_run: must be 'all' or 'one', got 'some'"),
        ('run: {fold: 1}', "unknown key 'run.fold'"),
        ('run: {models: {multiomic: [cpbm]}}', "unknown model 'cpbm', did you mean 'cpdm'?"),
        ('shared: {seed: 0, seed: 1}', "line 1: 'seed' is given twice; keep one"),
    ],
)
def test_wrong_profiles_are_refused(text, complaint, profile):
    message = refusal(profile(text))
    assert complaint in message and '\n' not in message and 'mine.yaml' in message


def test_all_errors_of_a_profile_are_named_at_once(profile):
    text = 'shared: {sead: 0}\n02_train: {steps: three}\ncohorts: {tcga: {04_fidelity: {n_bot: 1}}}'
    message = refusal(profile(text))
    for place in ("'shared.sead'", '02_train.steps', "'cohorts.tcga.04_fidelity.n_bot'"):
        assert place in message


@pytest.fixture
def profile(tmp_path, monkeypatch):
    "Writes config/mine.yaml of a project that is otherwise this one."

    def write(text):
        for part in ('nbs', 'settings.ini'):
            (tmp_path / part).symlink_to(ROOT / part)
        (tmp_path / 'config').mkdir()
        (tmp_path / 'config' / 'mine.yaml').write_text(text)
        monkeypatch.chdir(tmp_path)
        return 'mine'

    return write


def refusal(profile):
    with pytest.raises(RadgenError) as e:
        profiles.settings(profile, 'phantom')
    return str(e.value)


def test_committed_results_are_not_overwritten_by_uncommitted_code(tmp_path, monkeypatch):
    committed, new = (tmp_path / 'figures' / name / 'quick' for name in ('phantom', 'files'))
    for path in (tmp_path / 'settings.ini', tmp_path / 'nbs' / 'a.ipynb', committed / 'rows.csv'):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('one\n')
    new.mkdir(parents=True)
    who = ['-c', 'user.name=a', '-c', 'user.email=a@b.c']
    for command in (['init', '-q'], ['add', '.'], [*who, 'commit', '-qm', 'first']):
        subprocess.run(['git', *command], cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path)
    require_committed_code(committed)
    (tmp_path / 'nbs' / 'a.ipynb').write_text('two\n')
    wrong = 'figures/phantom/quick: these results are committed, and nbs/a.ipynb has changes'
    with pytest.raises(RadgenError, match=wrong):
        require_committed_code(committed)
    require_committed_code(new)
    require_committed_code(tmp_path.parent / 'elsewhere')


def test_one_run_at_a_time(tmp_path):
    with processes.run_lock(tmp_path):
        with pytest.raises(RadgenError, match='another run is at work here'):
            with processes.run_lock(tmp_path, wait=0):
                pass
    with processes.run_lock(tmp_path, wait=0):
        pass


def test_doctor_works_when_something_is_missing(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv('RADGEN_DATA', str(tmp_path))
    monkeypatch.setenv('RADGEN_HOME', str(tmp_path))
    monkeypatch.setitem(sys.modules, 'torch', None)  # `import torch` fails
    missing = doctor.doctor()
    out = capsys.readouterr().out
    assert (
        any(m.startswith('torch: MISSING') for m in missing)
        and 'files to fetch: radgen fetch published' in out
    )


@pytest.mark.parametrize(
    'line',
    [
        *('', '--help', '--version', 'paper --help', 'papr', 'paper --jobs 0'),
        *(
            'paper --profile quik',
            'paper --cohort fantom',
            'paper --fast',
            'paper --executor slrum',
        ),
    ],
)
def test_help_and_errors_import_nothing_heavy(line):
    code = f"""
import contextlib, sys
from radgen.run.cli import main
with contextlib.suppress(SystemExit):
    main({line.split()!r})
print([m for m in ('torch', 'pandas', 'numpy', 'papermill', 'snakemake') if m in sys.modules])
"""
    command = [sys.executable, '-c', code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip().endswith('[]'), done.stdout + done.stderr


def test_a_dry_run_needs_no_torch():
    modules = 'graph executors profiles parameters record'
    modules = ' '.join(['radgen.core.names', *(f'radgen.run.{m}' for m in modules.split())])
    code = f'import sys, {modules.replace(" ", ", ")}; print("torch" in sys.modules)'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == 'False\n', done.stderr
    snakefile = (ROOT / 'Snakefile').read_text()
    imported = set(re.findall(r'^from (radgen[.\w]+)', snakefile, re.M))
    assert imported <= {*modules.split(), 'radgen.core.paths'}


def test_the_commands_and_their_options():
    helps = {}
    for name in cli.COMMANDS:
        _, text, _ = finish(command(name, '--help'))
        helps[name] = set(re.findall(r'--[a-z-]+', text)) - {'--help'}
    assert set(helps) == set(
        'paper validate fetch generate audit project doctor bench notebook'.split()
    )
    assert helps['paper'] == {
        *('--cohort', '--manifest', '--profile', '--jobs', '--upto', '--audit', '--dry-run'),
        '--executor',
    }
    assert helps['generate'] == {
        *('--checkpoint', '--conditions', '--out', '--samples', '--sampler', '--steps'),
        *('--guidance', '--seed', '--kind', '--png', '--restart', '--compile'),
    }
    assert helps['audit'] == {
        *('--generated', '--training', '--held-out', '--patients', '--conditions', '--labels'),
        *('--out', '--max-images', '--white', '--seed'),
    }
    assert helps['notebook'] == {'--file', '--parameters'}


def test_the_version():
    import radgen

    assert finish(command('--version'))[:2] == (0, f'radgen {radgen.__version__}\n')


@pytest.mark.parametrize(
    'module, of, not_of',
    [
        ('models/released_unet.py', {'02_train', '07d_ablations'}, {'06_survival', '08_scorecard'}),
        ('evaluate/scores.py', {'05_outcomes', '06_survival'}, {'02_train', '07_controls'}),
        ('report/page.py', {'08_scorecard'}, {'02_train', '05_outcomes'}),
        ('run/graph.py', set(), set(parameters.paper_notebooks())),
    ],
)
def test_a_notebook_depends_on_modules_deep_in_a_room(module, of, not_of):
    path = ROOT / 'radgen' / module
    notebooks = parameters.paper_notebooks().items()
    dependent = {stem for stem, nb in notebooks if path in graph.notebook_inputs(nb)}
    assert of <= dependent and not not_of & dependent


def test_an_executed_notebook_is_published_without_folders(tmp_path, monkeypatch):
    monkeypatch.setenv('RADGEN_HOME', str(tmp_path))
    nb = toy(tmp_path, 'print(where)')
    run = tmp_path / 'runs' / 'phantom' / 'smoke' / 'notebooks'
    where = dict(where=str(tmp_path / 'rows.csv'))
    execute.execute(nb, run / '01_toy.ipynb', where, log=sys.stdout)
    (path,) = publish.publish('phantom', 'smoke')
    text = path.read_text()
    assert str(tmp_path) not in text and 'rows.csv' in text
    papermill = json.loads(text)['metadata']['papermill']
    assert papermill['parameters'] == {'where': 'rows.csv'} and set(papermill) == {
        *('parameters', 'duration')
    }
    (run / '01_toy.ipynb').unlink()
    assert publish.publish('phantom', 'smoke') == [] and not path.exists()


def test_the_default_run_keeps_to_its_budget():
    "Training steps and images of the default run; more of either belongs to `native` or `full`."
    from radgen.run.profiles import settings

    s = settings('quick', 'phantom')
    train, drawn, run = s['02_train'], s['03_generate'], s['run']
    assert run['seeds'] == [0] and 'cpdm_paper' not in drawn['models']
    assert s['04_fidelity']['left_out'] == {'cpdm_paper': 'needs full'}
    steps = images = 0
    for condition in s['08_scorecard']['conditions']:
        for model in run['models'].get(condition, drawn['models']):
            length = train['overrides'].get(model, {}).get('steps', train['steps'])
            final = model == drawn['model'] if 'model' in drawn else model == 'cpdm'
            steps += length * (sum(train['n_folds'].values()) + final)
            images += (
                drawn['n_samples'] * train['cohort_options']['n_imaged'] * len(drawn['protocols'])
            )
    assert steps <= 12_500 and images <= 6_500
    assert train['image_size'] // train['patch'] <= 16 and train['dim'] <= 32
