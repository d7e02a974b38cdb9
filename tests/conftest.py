"Shared by the tests: where the released data lies, and one smoke run of the whole study."

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BESIDE = ROOT.parent / 'shared' / 'data'
if 'RADGEN_DATA' not in os.environ and BESIDE.is_dir():
    os.environ['RADGEN_DATA'] = str(BESIDE)


def pytest_make_parametrize_id(config, val, argname):
    "Bytes never name a test: compressed ones hold the time, and workers would collect other names."
    return argname if isinstance(val, bytes) else None


@pytest.fixture(scope='session')
def published_folder():
    "The folder of the released files; skips where they are not at hand."
    from radgen.core.paths import data_dir
    from radgen.data.release import published_available

    if not published_available():
        pytest.skip(
            'the released data is not at hand: run `radgen fetch published` or set RADGEN_DATA'
        )
    return data_dir('published')


@pytest.fixture(scope='session')
def published(published_folder):
    "The released cohort."
    from radgen.data.published import load_published

    return load_published()


class Project:
    "A copy of the project, and its command line."

    def __init__(self, folder):
        self.root, self.home = folder / 'project', folder / 'home'
        self.env = {k: v for k, v in os.environ.items() if not k.startswith('RADGEN_')} | {
            'RADGEN_HOME': str(self.home),
            'PYTHONPATH': str(self.root),
        }
        self.run = self.home / 'runs' / 'phantom' / 'smoke'

    def fill(self):
        shutil.rmtree(self.root.parent, ignore_errors=True)
        for part in ('nbs', 'radgen', 'config'):
            shutil.copytree(
                ROOT / part,
                self.root / part,
                ignore=shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints'),
            )
        for part in ('Snakefile', 'settings.ini', 'requirements.lock'):
            shutil.copy(ROOT / part, self.root)

    def start(self, *args, **kw):
        return subprocess.Popen(
            [sys.executable, '-m', 'radgen.run.cli', *map(str, args)],
            cwd=self.root,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **kw,
        )

    def radgen(self, *args):
        process = self.start(*args)
        out, err = process.communicate(timeout=3600)
        return process.returncode, out, err

    def paper(self, *more):
        status, out, err = self.radgen('paper', '--profile', 'smoke', '--jobs', '2', *more)
        assert status == 0, err
        return out

    def would_run(self):
        found = re.search('would run (.*)', self.paper('--dry-run'))
        return found[1].split(', ') if found else []

    def executed(self):
        return {p.stem: p.stat().st_mtime_ns for p in (self.run / 'notebooks').glob('[0-9]*.ipynb')}


@pytest.fixture(scope='session')
def smoke_run(tmp_path_factory):
    "A finished smoke run, its first attempt killed in training; shared by all, not to be changed."
    base = tmp_path_factory.getbasetemp()
    if 'PYTEST_XDIST_WORKER' in os.environ:
        base = base.parent
    project, record = Project(base / 'smoke'), base / 'smoke.json'
    with open(base / 'smoke.lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if record.exists():
            return project.root.parent, json.loads(record.read_text())
        project.fill()
        first = project.start('paper', '--profile', 'smoke', '--jobs', '2')
        checkpoints = lambda: list(project.run.glob('*/cpdm/*/*/*.safetensors'))
        end = time.monotonic() + 600
        while not checkpoints() and first.poll() is None:
            assert time.monotonic() < end, 'no training began'
            time.sleep(0.2)
        assert first.poll() is None, first.communicate()[1]
        first.send_signal(signal.SIGKILL)
        first.wait()
        facts = dict(before=project.executed(), output=project.paper())
        record.write_text(json.dumps(facts))
    return project.root.parent, facts


@pytest.fixture(scope='module')
def project(smoke_run, tmp_path_factory):
    "A copy of the finished run, to do with as one likes."
    folder, facts = smoke_run
    copy = Project(
        shutil.copytree(folder, tmp_path_factory.mktemp('study') / 'smoke', symlinks=True)
    )
    copy.before, copy.output = facts['before'], facts['output']
    return copy
