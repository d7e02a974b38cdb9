"The command that runs library notebooks: failures and killed processes are named."

import subprocess
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent


def notebook(folder, name, source):
    v4 = nbformat.v4
    nbformat.write(v4.new_notebook(cells=[v4.new_code_cell(source)]), folder / name)
    return folder / name


def test_a_killed_notebook_is_a_named_failure(tmp_path):
    sources = {
        'a_killed.ipynb': 'import os\nos.kill(os.getpid(), 9)',
        'b_wrong.ipynb': 'assert 1 == 2',
        'c_fine.ipynb': '1 + 2',
    }
    paths = [notebook(tmp_path, name, source) for name, source in sources.items()]
    command = [sys.executable, ROOT / 'tests/notebooks.py', *paths, '--jobs', '2']
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    last = done.stderr.strip().split('\n')[-1]
    assert 'a_killed.ipynb (KILLED by SIGKILL)' in last and 'b_wrong.ipynb (FAILED)' in last
    assert 'c_fine' not in last and '3 notebooks in' in done.stdout
