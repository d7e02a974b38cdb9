"What jobs need, who runs them, and what is refused: memory, executors, SLURM on one machine."

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
import pytest
import yaml

from radgen.core.paths import RadgenError
from radgen.run import cli, executors, graph, profiles

ROOT = Path(__file__).resolve().parent.parent
LOCAL_SLURM = ROOT / 'tests' / 'slurm' / 'local.sh'
TABLE = dict(default=dict(threads=1, mem_mb=100, runtime=5, gpu=0))


INSTALL = f'the plugin is optional; pip install -c requirements.lock {executors.EXACT}'


def installed(plugin):
    return importlib.util.find_spec(f'snakemake_executor_plugin_{plugin}') is not None


@pytest.fixture
def table(tmp_path, monkeypatch):
    "Writes the table of what jobs need of a project that is otherwise this one."

    def write(**sections):
        folder = tmp_path / 'config' / 'executors'
        folder.mkdir(parents=True)
        for part in ('nbs', 'settings.ini', 'Snakefile'):
            (tmp_path / part).symlink_to(ROOT / part)
        (folder / 'resources.yaml').write_text(yaml.safe_dump(TABLE | sections))
        monkeypatch.chdir(tmp_path)

    return write


@pytest.mark.parametrize('profile', profiles.profiles())
def test_every_rule_has_its_needs(profile):
    needs = executors.rule_needs(profile)
    assert list(needs) == executors.rule_names()
    assert all(set(n) == {'threads', 'mem_mb', 'runtime', 'gpu'} for n in needs.values())
    rules = (ROOT / 'Snakefile').read_text().split('\nrule ')[1:]
    rules = {text.split(':')[0]: text for text in rules}
    for name in needs:
        assert f'threads: cores("{name}")' in rules[name]
        assert f'resources: **needs("{name}")' in rules[name]


def test_the_page_has_the_table():
    "docs/howto/cluster.md repeats the table of needs for the reader."
    page = (ROOT / 'docs' / 'howto' / 'cluster.md').read_text()
    rows = re.findall(r'^\| `(\w+)` \|[^|]*\|(.*)\|$', page, re.M)
    found = {rule: [int(x.replace(',', '')) for x in cells.split('|')] for rule, cells in rows}
    of = lambda need: [need[k] for k in ('threads', 'mem_mb', 'runtime')]
    quick, full = executors.rule_needs('quick'), executors.rule_needs('full')
    assert found == {r: [*of(quick[r]), *of(full[r]), full[r]['gpu']] for r in quick}
    assert not any(need['gpu'] for need in quick.values())


def test_recorded_runs_fit_their_needs():
    for path in (ROOT / 'figures').glob('*/*/provenance.json'):
        needs = executors.rule_needs(path.parent.name)
        for job, facts in json.loads(path.read_text())['notebooks'].items():
            need = needs[executors._rule_of(job)]
            assert facts['peak_memory_mb'] < need['mem_mb'], job
            assert facts['wall_s'] < 60 * need['runtime'], job


def test_a_profile_needs_more_than_the_default(table):
    table(rules=dict(train=dict(mem_mb=200)), profiles=dict(full=dict(train=dict(gpu=1))))
    full, quick = (executors.rule_needs(p)['train'] for p in ('full', 'quick'))
    assert full == quick | dict(gpu=1) and quick == TABLE['default'] | dict(mem_mb=200)


@pytest.mark.parametrize(
    'sections, complaint',
    [
        (dict(rules=dict(trian={})), "unknown rule 'trian', did you mean 'train'?"),
        (dict(profiles=dict(full=dict(trian={}))), "unknown rule 'trian', did you mean 'train'?"),
        (dict(rules=dict(train=dict(mem_mb='2 GB'))), "must be a valid integer, got '2 GB'"),
        (dict(rules=dict(train=dict(memory=2))), "unknown key 'rules.train.memory'"),
        (dict(default=dict(threads=1)), 'default lacks gpu, mem_mb, runtime'),
    ],
)
def test_a_wrong_table_is_refused(table, sections, complaint):
    table(**sections)
    with pytest.raises(RadgenError) as e:
        executors.rule_needs('full')
    assert str(e.value).startswith('config/executors/resources.yaml: ')
    assert complaint in str(e.value) and '\n' not in str(e.value)


def test_more_jobs_than_memory_wait_for_each_other(tmp_path):
    "Two jobs of 600 MB and one of 5,000, with 1,000: one at a time, the large one too."
    (tmp_path / 'Snakefile').write_text("""
rule all:
    input: "a", "b", "c"
rule:
    output: "{x,[abc]}"
    resources: mem_mb=lambda w: 5000 if w.x == "c" else 600
    shell: "echo start >> times; sleep 1; echo end >> times; touch {output}"
""")
    command = [sys.executable, '-m', 'snakemake', '--cores', '3', '--resources', 'mem_mb=1000']
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / 'times').read_text().split() == ['start', 'end'] * 3


def test_a_run_has_the_memory_of_its_machine(monkeypatch):
    monkeypatch.setattr(graph, 'machine_memory_mb', lambda: 1200)
    how, jobs = graph._who_runs_it('local', '.', 3)
    assert (how, jobs) == (['--cores', 3, '--resources', 'mem_mb=1200'], 3)
    lines = []
    graph._warn_of_memory('quick', ['01_cohort', '04_fidelity-multiomic'], lines.append)
    (line,) = lines
    assert '1,200 MB' in line and '04_fidelity-multiomic (2,500 MB); each runs alone' in line


def test_the_limit_of_a_container_counts(tmp_path, monkeypatch):
    (tmp_path / 'limit').write_text(f'{300 * 2**20}\n')
    (tmp_path / 'none').write_text('max\n')
    limits = [str(tmp_path / name) for name in ('limit', 'none', 'absent')]
    monkeypatch.setattr(executors, 'CGROUP_LIMITS', limits)
    assert executors.machine_memory_mb() == 300


def error_of(line, capsys):
    "Exit status, and the one line that a command ends with."
    status = cli.main(line.split())
    (message,) = capsys.readouterr().err.splitlines()
    return status, message


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv('RADGEN_HOME', str(tmp_path))
    return tmp_path


def test_an_unknown_executor_is_named(capsys):
    status, message = error_of('paper --executor slrum', capsys)
    assert status == 2 and "unknown executor 'slrum', did you mean 'slurm'?" in message
    assert 'pip' not in message
    status, message = error_of('paper --executor lfs', capsys)
    assert message.endswith('-c requirements.lock snakemake-executor-plugin-lfs')


@pytest.mark.parametrize('name', ['slurm', 'cluster-generic'])
def test_a_missing_plugin_is_named_with_its_command(name, capsys, monkeypatch):
    monkeypatch.setattr(executors, '_has_plugin', lambda plugin: False)
    status, message = error_of(f'paper --executor {name}', capsys)
    assert status == 2 and message == (
        f"radgen: executor '{name}' is not installed: pip install -c requirements.lock "
        '-r config/executors/requirements.txt'
    )


def test_the_plugins_are_exact_and_an_extra():
    lines = (ROOT / 'config/executors/requirements.txt').read_text().splitlines()
    exact = [x for x in lines if not x.startswith('#')]
    assert all(re.fullmatch(r'[a-z-]+==[0-9.]+', x) for x in exact)
    extra = re.search(r'^cluster_requirements = (.*)', (ROOT / 'settings.ini').read_text(), re.M)
    names = [x.split('==')[0] for x in exact]
    assert set(extra[1].split()) <= set(names)
    assert {f'{executors.PLUGINS}{name}' for name in executors.executors()[1:]} <= set(names)


def test_slurm_without_slurm(home, capsys, monkeypatch):
    monkeypatch.setattr(executors, '_has_plugin', lambda plugin: True)
    monkeypatch.setattr(executors.shutil, 'which', lambda name: None)
    status, message = error_of('paper --profile smoke --executor slurm', capsys)
    assert status == 2 and 'no command `sbatch` here' in message


def test_slurm_whose_controller_is_down(home, capsys, monkeypatch):
    monkeypatch.setattr(executors, '_has_plugin', lambda plugin: True)
    monkeypatch.setattr(executors.shutil, 'which', lambda name: name)
    monkeypatch.setattr(executors, '_answer', lambda *command: '')
    status, message = error_of('paper --profile smoke --executor slurm', capsys)
    assert status == 2 and 'the controller does not answer' in message


def test_jobs_of_an_earlier_command_are_named(home, capsys, monkeypatch):
    run = home / 'runs' / 'phantom' / 'smoke'
    queue = f'12|{run}\n13|/elsewhere\n14|{run}\n'
    monkeypatch.setattr(executors, '_has_plugin', lambda plugin: True)
    monkeypatch.setattr(executors.shutil, 'which', lambda name: name)
    answer = lambda *command: queue if command[0] == 'squeue' else 'AccountingStorageType = x'
    monkeypatch.setattr(executors, '_answer', answer)
    status, message = error_of('paper --profile smoke --executor slurm', capsys)
    assert status == 2 and 'scancel 12 14`' in message


def test_an_executor_is_named_before_the_dashes(home, capsys):
    status, message = error_of('paper --profile smoke -- --executor slurm', capsys)
    assert status == 2 and 'radgen paper --executor NAME' in message


def paper(home, *words):
    "`radgen paper` for the cohort notebook of the smoke profile, in a process of its own."
    env = os.environ | {'RADGEN_HOME': str(home)}
    command = [sys.executable, '-m', 'radgen.run.cli', 'paper', '--profile', 'smoke']
    command += ['--upto', '01_cohort', *words]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return done.stdout


def check_cohort(home, text):
    "The notebook was executed with one thread, and its rows are those of a run without a cluster."
    run = home / 'runs' / 'phantom' / 'smoke'
    assert '01_cohort: done' in text and (run / 'notebooks' / '01_cohort.ipynb').exists()
    rows, expected = (
        pd.read_csv(path)
        for path in (run / 'rows/01_cohort.csv', ROOT / 'tests/expected_smoke.csv')
    )
    expected = expected[expected.source_notebook == '01_cohort']
    found = [f'{x:.4g}' for x in sorted(rows.value.dropna())]
    assert found == [f'{x:.4g}' for x in sorted(expected.value.dropna())]


@pytest.mark.skipif(not installed('cluster_generic'), reason=f'cluster-generic: {INSTALL}')
def test_any_cluster_with_a_command_that_submits(tmp_path):
    submit = 'echo {threads} {resources.mem_mb} {resources.runtime} > needs; sh'
    words = ['--', '--cluster-generic-submit-cmd', submit]
    text = paper(tmp_path, '--executor', 'cluster-generic', *words)
    check_cohort(tmp_path, text)
    needs = executors.rule_needs('smoke')['cohort']
    written = (tmp_path / 'runs/phantom/smoke/needs').read_text().split()
    assert [int(x) for x in written] == [needs[k] for k in ('threads', 'mem_mb', 'runtime')]


def no_slurm():
    "Why SLURM cannot be started here; '' if it can."
    path = f'{os.environ["PATH"]}:/usr/sbin'
    missing = [
        x for x in ('munged', 'slurmctld', 'slurmd', 'sbatch') if not shutil.which(x, path=path)
    ]
    if missing:
        return f'no {", ".join(missing)} here: apt-get install munge slurm-wlm'
    if os.geteuid():
        return 'munged and slurmd have to be started by root'
    return '' if installed('slurm') else f'slurm: {INSTALL}'


@pytest.fixture(scope='module')
def slurm():
    "SLURM on this machine, in a folder of its own."
    folder = Path(tempfile.mkdtemp(prefix='slurm', dir='/tmp'))
    up = subprocess.run([LOCAL_SLURM, 'up', folder], capture_output=True, text=True)
    try:
        assert up.returncode == 0, up.stderr
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv('SLURM_CONF', str(folder / 'slurm.conf'))
            patch.setenv('PATH', f'{folder / "bin"}:{os.environ["PATH"]}')
            yield folder
    finally:
        subprocess.run([LOCAL_SLURM, 'down', folder], check=True)
        shutil.rmtree(folder)


def ask(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.skipif(bool(no_slurm()), reason=no_slurm())
def test_a_part_of_the_study_through_slurm(slurm, tmp_path):
    run = tmp_path / 'runs' / 'phantom' / 'smoke'
    run.mkdir(parents=True)
    job = ask('sbatch', '--parsable', '--hold', '--chdir', run, '--wrap', 'sleep 600')
    with pytest.raises(RadgenError, match=f'`scancel {job}`'):
        executors.executor_arguments('slurm', run)
    ask('scancel', job)
    first_check = ['--', '--slurm-init-seconds-before-status-checks', '3']
    check_cohort(tmp_path, paper(tmp_path, '--executor', 'slurm', *first_check))
    ended = ask('squeue', '--noheader', '--states=COMPLETED', '--format=%Z %m %l').split()
    assert ended == [str(run), '1000M', '1:00:00']
    assert 'nothing to do' in paper(tmp_path, '--executor', 'slurm')
    assert 'nothing to do' in paper(tmp_path)  # the same notebooks are there without a cluster
