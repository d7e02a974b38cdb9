"""Run library notebooks as `nbdev_test` does, each in a process of its own.

    python tests/notebooks.py            # all of them
    python tests/notebooks.py nbs/02_data/01_cohort.ipynb --jobs 1

Heavy libraries are imported once, and a process is forked from there for each notebook: nothing is
shared between notebooks, and nobody waits eighty times for the same imports.
"""

import argparse
import importlib
import multiprocessing
import os
import sys
import time
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


def run(path: Path) -> tuple[Path, bool, float]:  # notebook, passed, seconds
    "Test one notebook in this process."
    from nbdev.config import get_config
    from nbdev.test import test_nb

    skip = get_config().tst_flags.split()
    passed, seconds = test_nb(path, skip_flags=skip, basepath=ROOT)
    return path, passed, seconds


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
    fork = multiprocessing.get_context('fork')
    with fork.Pool(args.jobs, maxtasksperchild=1) as pool:
        for n, (path, passed, seconds) in enumerate(pool.imap_unordered(run, paths, 1), 1):
            name = path.relative_to(ROOT / 'nbs')
            failed += [] if passed else [str(name)]
            verdict = '' if passed else 'FAILED  '
            print(f'  {n}/{len(paths)}  {verdict}{name}  {seconds:.0f} s', flush=True)
    print(f'  {len(paths)} notebooks in {time.monotonic() - began:.0f} s')
    if failed:
        print(f'radgen: these notebooks failed: {", ".join(failed)}', file=sys.stderr)
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
