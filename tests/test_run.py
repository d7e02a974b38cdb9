"The runner and the command line: parameters, atomic outputs, interruptions, and errors of one line."

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
import yaml

from radgen.core.paths import RadgenError
from radgen.run import cli, doctor, execute, graph, parameters

ROOT = Path(__file__).resolve().parent.parent
PARAMETERS = "patient: str = '001'\nsteps: int = 3\nscale: float = 1.\nextra: list[int] = [1]\nwhere: str|None = None"


def toy(folder, *code):
    v4 = nbformat.v4
    cells = [
        v4.new_code_cell(PARAMETERS, metadata={'tags': ['parameters']}),
        *map(v4.new_code_cell, code),
    ]
    nbformat.write(
        v4.new_notebook(
            cells=cells,
            metadata={
                'kernelspec': {'display_name': 'python3', 'language': 'python', 'name': 'python3'}
            },
        ),
        folder / 'toy.ipynb',
    )
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
        (dict(step=3), "unknown parameter of toy.ipynb 'step', did you mean 'steps'?"),
        (dict(steps='3'), "steps = '3' is no int"),
        (dict(steps=True), 'steps = True is no int'),
        (dict(steps=2.5), 'steps = 2.5 is no int'),
        (dict(patient=7), 'patient = 7 is no str'),
        (dict(scale='1'), "scale = '1' is no float"),
        (dict(extra=['1']), "extra = ['1'] is no list[int]"),
        (dict(where=3), 'where = 3 is no str | None'),
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
    assert [l for l in err.splitlines() if l.startswith('radgen:')] == err.splitlines()[
        -1:
    ] and 'Traceback' not in err
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
                'from radgen.paths import RadgenError\nraise RadgenError("no such column")',
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
    nb = toy(
        tmp_path,
        f'import os, time; open({str(tmp_path / "pid")!r}, "w").write(str(os.getpid())); time.sleep(120)',
    )
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
        for i in range(3)
    ]
    assert [finish(p)[0] for p in many] == [0] * 3
    assert [outputs(tmp_path / f'out{i}.ipynb') for i in range(3)] == [f'{i}\n' for i in range(3)]


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
        ('shared: {sead: 0}', 'unknown shared parameter of'),
        ('2_train: {steps: 3}', "did you mean '02_train'?"),
        ('02_train: {steps: three}', "parameter steps = 'three' is no int"),
        ('02_train: {stebs: 3}', "did you mean 'steps'?"),
        ('cohorts: {fantom: {}}', "did you mean 'phantom'?"),
        ('cohorts: {phantom: {02_train: {steps: 1.5}}}', 'steps = 1.5 is no int'),
        ('shared: [1]', 'expected parameters'),
        ('shared: {', 'not readable as YAML'),
        ('run: {folds_per_run: some}', 'folds_per_run is all or one'),
        ('run: {fold: 1}', 'unknown setting of'),
    ],
)
def test_wrong_profiles_are_refused(text, complaint, tmp_path, monkeypatch):
    for part in ('nbs', 'settings.ini'):
        (tmp_path / part).symlink_to(ROOT / part)
    (tmp_path / 'config').mkdir()
    (tmp_path / 'config' / 'mine.yaml').write_text(text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RadgenError) as e:
        parameters.settings('mine', 'phantom')
    assert complaint in str(e.value) and '\n' not in str(e.value) and 'mine.yaml' in str(e.value)


def test_one_run_at_a_time(tmp_path):
    with graph.run_lock(tmp_path):
        with pytest.raises(RadgenError, match='another run is at work here'):
            with graph.run_lock(tmp_path, wait=0):
                pass
    with graph.run_lock(tmp_path, wait=0):
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
