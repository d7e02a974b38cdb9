"""The smoke study through SLURM: jobs cancelled and killed, the node drained, the command killed.

    eval "$(tests/slurm/local.sh up FOLDER)"
    python tests/slurm/drill.py HOME          # HOME: where runs/ and figures/ of the drill lie

It prints what it does and when, and at the end how many rows equal those of a run without a cluster
(tests/expected_smoke.csv, six digits). Exit status 0: every notebook is there, and every row.
"""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import psutil

ROOT = Path(__file__).resolve().parent.parent.parent
KEYS = """
    source_notebook condition protocol model role estimator subset extractor classifier label metric
""".split()
START = time.monotonic()


def say(text):
    print(f'{time.monotonic() - START:6.0f} s  {text}', flush=True)


def ask(*command):
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def queue(state):
    "Numbers of the jobs in a state, e.g. RUNNING."
    return ask('squeue', '--noheader', '--format=%i', f'--states={state}').split()


def wait_for(condition, what, seconds=900):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f'{what}: it did not come about'
        time.sleep(0.5)


class Command:
    "`radgen paper`, and the lines it prints."

    def __init__(self, home):
        words = (
            'paper --profile smoke --executor slurm -- --slurm-init-seconds-before-status-checks 3'
        )
        command = [sys.executable, '-m', 'radgen.run.cli', *words.split()]
        env = os.environ | {'RADGEN_HOME': str(home), 'PYTHONUNBUFFERED': '1'}
        options = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.process = subprocess.Popen(command, cwd=ROOT, env=env, **options)
        self.lines = []
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            if not re.search(r'^  |^\d\d:\d\d:\d\d   ', line):
                say('    ' + re.sub(r'^\d\d:\d\d:\d\d  ', '', line.rstrip()))

    def n_done(self):
        return sum(': done in' in x for x in self.lines)

    def is_at_work(self):
        "Is a notebook under way, and has been for some seconds?"
        events = [x for x in self.lines if re.search(': (started|done|failed)', x)]
        time.sleep(3)
        return bool(events) and ': started' in events[-1] and queue('RUNNING') != []


def kernels():
    "Processes that execute a notebook of this drill."
    for p in psutil.process_iter(['cmdline', 'environ']):
        words, env = p.info['cmdline'] or [], p.info['environ'] or {}
        if 'ipykernel_launcher' in words and 'SLURM_JOB_ID' in env:
            yield p


def disturb(command):
    "A job cancelled, another one killed, the node drained and resumed, the command killed."
    wait_for(lambda: command.n_done() >= 2 and command.is_at_work(), 'two notebooks')
    job = queue('RUNNING')[0]
    ask('scancel', job)
    say(f'cancelled job {job} (scancel)')
    wait_for(lambda: command.n_done() >= 4 and any(kernels()), 'four notebooks')
    next(kernels()).send_signal(signal.SIGKILL)
    say('killed the process of a notebook (kill -9)')
    wait_for(lambda: command.n_done() >= 6, 'six notebooks')
    node = ask('sinfo', '--noheader', '--format=%n')
    ask('scontrol', 'update', f'nodename={node}', 'state=drain', 'reason=drill')
    say(f'drained the node: {len(queue("RUNNING"))} jobs run on, {len(queue("PENDING"))} wait')
    wait_for(lambda: not queue('RUNNING'), 'an empty node')
    time.sleep(15)
    say(f'node {ask("sinfo", "--noheader", "--format=%T")}: {len(queue("PENDING"))} jobs wait')
    ask('scontrol', 'update', f'nodename={node}', 'state=resume')
    say('resumed the node')
    wait_for(lambda: command.n_done() >= 10 and command.is_at_work(), 'ten notebooks')
    command.process.kill()
    say('killed the command itself (kill -9)')
    wait_for(lambda: not queue('RUNNING,PENDING,COMPLETING'), 'an empty queue', 120)
    say('its jobs have left the queue')


def compare(home):
    "Rows of the drill that equal the expected ones in every digit, and all expected rows."
    found = pd.read_csv(home / 'figures' / 'phantom' / 'smoke' / 'results.csv')
    found['verdict'] = found.verdict.str.split(':').str[0]
    path = home / 'rows.csv'
    found[[*KEYS, 'value', 'verdict']].to_csv(path, index=False, float_format='%.6g')
    frames = pd.read_csv(path), pd.read_csv(ROOT / 'tests' / 'expected_smoke.csv')
    rows = [f[[*KEYS, 'value', 'verdict']].astype(str).value_counts() for f in frames]
    same = pd.concat(rows, axis=1).fillna(0).min(axis=1).sum()
    return int(same), len(frames[0]), len(frames[1])


def main(home):
    home = Path(home).resolve()
    say('radgen paper --profile smoke --executor slurm')
    disturb(Command(home))
    say('the same command again')
    again = Command(home)
    status = again.process.wait()
    if status:
        return 1
    same, found, expected = compare(home)
    ran = len(list((home / 'runs/phantom/smoke/notebooks').glob('[0-9]*.ipynb')))
    say(f'exit status {status}, {ran} notebooks; {same} of {expected} rows equal those expected')
    return 0 if status == 0 and found == expected else 1


if __name__ == '__main__':
    sys.exit(main(*sys.argv[1:]))
