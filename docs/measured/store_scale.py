"""Patients per second and memory of an image store by its size, for one or two checkouts.

    git worktree add ../before v0.2.0
    python docs/measured/store_scale.py . ../before      # writes docs/measured/store_scale.csv

Every measurement is a process of its own, and the versions alternate. The network is tiny, so that
what the store itself costs is seen; `noise` has no network and stores the noise of each patient.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

HERE = Path(__file__).resolve()
REPEATS = {1_000: 3, 10_000: 3, 100_000: 1}


def tiny_network(name):
    "A CVAE of 59 thousand weights, or its noise alone; 16 pixels, 16 features."
    import torch

    from radgen.models.cvae import CVAE, CVAEConfig

    torch.manual_seed(0)
    model = CVAE(CVAEConfig.radgen(16, 16, dim=8))
    if name == 'noise':
        noise = lambda g: torch.rand(16, 16, generator=g)
        model.draw = lambda conditions, generators, kinds: torch.stack([*map(noise, generators)])
    return model


def measure(network, n):
    "Write one store, and say what it took."
    import torch

    from radgen.models.store import ImageStore

    torch.set_num_threads(1)
    model, ids = tiny_network(network), [f'PH-{i:06d}' for i in range(n)]
    names = [f'f{i}' for i in range(16)]
    values = np.random.default_rng(0).standard_normal((n, 16), np.float32)
    table = pd.DataFrame(values, pd.Index(ids, name='patient_id'), names)
    peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    with tempfile.TemporaryDirectory() as folder:
        ImageStore(Path(folder) / 'first').write(model, table[:512], progress=False)
        before, wall, cpu = peak(), time.monotonic(), time.process_time()
        store = ImageStore(Path(folder) / 'store').write(model, table, progress=False)
        cpu, wall = time.process_time() - cpu, time.monotonic() - wall
        size = sum(p.stat().st_size for p in store.path.iterdir())
    row = dict(seconds=wall, cpu_seconds=cpu, per_cpu_second=n / cpu, peak_mb=peak())
    return row | dict(grown_mb=peak() - before, stored_mb=size / 2**20)


def run(root, network, n):
    "One measurement in a process of its own."
    env = os.environ | dict(PYTHONPATH=str(root), OMP_NUM_THREADS='1')
    command = [sys.executable, str(HERE), '--measure', network, str(n)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True, cwd=root)
    return json.loads(done.stdout.strip().split('\n')[-1])


def main():
    "The command."
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('roots', nargs='*', type=Path, help='checkouts: this one, then the older')
    parser.add_argument('--out', type=Path, default=HERE.with_suffix('.csv'))
    parser.add_argument('--measure', nargs=2, metavar=('NETWORK', 'N'), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        network, n = args.measure
        return print(json.dumps(measure(network, int(n))))
    rows = []
    for n, repeats in REPEATS.items():
        for network in ['tiny', 'noise'] * repeats:
            for code, root in zip(('this', 'before'), args.roots):
                facts = dict(code=code, network=network, patients=n)
                rows.append(facts | run(root.resolve(), network, n))
                print(rows[-1], flush=True)
                pd.DataFrame(rows).round(3).to_csv(args.out, index=False)


if __name__ == '__main__':
    main()
