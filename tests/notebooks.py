"""Run library notebooks as `nbdev_test` does, each in a process of its own.

    python tests/notebooks.py            # all of them
    python tests/notebooks.py nbs/02_data/01_cohort.ipynb --jobs 1

Heavy libraries are imported once, and a process is forked from there for each notebook: nothing is
shared between notebooks, and nobody waits eighty times for the same imports. A process that is
killed (out of memory, say) is a failure of its notebook, with the signal named.
"""

import argparse
import importlib
import multiprocessing
import os
import signal
import sys
import time
from multiprocessing.connection import wait
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEAVY = (
    'torch accelerate diffusers ema_pytorch pandas scipy.stats '
    'sklearn.ensemble sklearn.linear_model sklearn.model_selection lifelines xgboost seaborn '
    'matplotlib.pyplot SimpleITK pydicom nbdev.test fastcore.test'
).split()


def notebooks() -> list[Path]:
    "All library notebooks, in reading order."
    return sorted((ROOT / 'nbs').glob('[0-9]*/[0-9]*.ipynb'))


def run(path: Path):
    "Test one notebook in this process; the exit status says whether it passed."
    from nbdev.config import get_config
    from nbdev.test import test_nb

    skip = get_config().tst_flags.split()
    passed, _ = test_nb(path, skip_flags=skip, basepath=ROOT)
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(0 if passed else 1)  # at once: no thread of a library can hold it up


def verdict(status: int) -> str:  # empty if it passed
    "What an exit status of a notebook's process says."
    if status < 0:
        return f'KILLED by {signal.Signals(-status).name}'
    return 'FAILED' if status else ''


def run_all(paths: list[Path], jobs: int):  # yields (notebook, verdict, seconds)
    "Each notebook in a process of its own, in the order in which they end."
    fork, left, running = multiprocessing.get_context('fork'), list(paths), {}
    while left or running:
        while left and len(running) < jobs:
            process = fork.Process(target=run, args=(left[0],))
            process.start()
            running[process.sentinel] = process, left.pop(0), time.monotonic()
        for sentinel in wait(list(running)):
            process, path, began = running.pop(sentinel)
            process.join()
            yield path, verdict(process.exitcode), time.monotonic() - began


def warm_up():
    "Import what most notebooks need."
    for name in HEAVY:
        importlib.import_module(name)


def main(argv=None) -> int:  # exit status
    "The command."
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('notebook', nargs='*', type=Path, help='all library notebooks')
    parser.add_argument('--jobs', type=int, default=2, help='notebooks at a time')
    args = parser.parse_args(argv)
    paths = [p.resolve() for p in args.notebook] or notebooks()
    os.chdir(ROOT / 'nbs')
    warm_up()
    began, failed = time.monotonic(), []
    for n, (path, wrong, seconds) in enumerate(run_all(paths, args.jobs), 1):
        inside = path.is_relative_to(ROOT / 'nbs')
        name = path.relative_to(ROOT / 'nbs') if inside else path.name
        failed += [f'{name} ({wrong})'] if wrong else []
        shown = f'{wrong}  {name}' if wrong else name
        print(f'  {n}/{len(paths)}  {shown}  {seconds:.0f} s', flush=True)
    print(f'  {len(paths)} notebooks in {time.monotonic() - began:.0f} s')
    if failed:
        print(f'radgen: these notebooks failed: {", ".join(failed)}', file=sys.stderr)
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
