"""Alarms of each detector of copies, by kind and share of planted copies, over repetitions.

    python docs/measured/planted_copies.py           # writes docs/measured/planted_copies.csv

Repetitions are kept in runs/planted_copies.csv, cohort by cohort. A second call goes on where the
first one ended. The table depends on seeds only and is the same on every machine.
"""

import argparse
from pathlib import Path

import pandas as pd

from radgen.core.paths import atomic
from radgen.core.progress import Progress
from radgen.core.seeds import derive_seed
from radgen.phantom.cohort import make_phantom
from radgen.validate.planted_copies import alarm_table, planted_alarms

HERE = Path(__file__).resolve()
KEPT = HERE.parents[2] / 'runs' / 'planted_copies.csv'
COHORTS, SPLITS = 3, 40
SIZE = dict(n_patients=300, n_imaged=300, image_size=32, n_genes=60)
FIRST_SEED = 41_000  # of no other cohort here


def repetitions_of(cohort):
    "All splits of one cohort."
    data = make_phantom(**SIZE, seed=FIRST_SEED + cohort)
    seeds = [derive_seed('planted copies', cohort, k) for k in range(SPLITS)]
    return planted_alarms(data.images, data.series, seeds)


def main():
    "The command."
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--out', type=Path, default=HERE.with_suffix('.csv'))
    parser.add_argument('--kept', type=Path, default=KEPT, help='repetitions so far')
    parser.add_argument('--cohorts', type=int, default=COHORTS)
    args = parser.parse_args()
    kept = pd.read_csv(args.kept) if args.kept.exists() else pd.DataFrame(columns=['cohort'])
    missing = [c for c in range(args.cohorts) if c not in set(kept.cohort)]
    progress = Progress('planted copies', args.cohorts, args.cohorts - len(missing), 'cohorts')
    for cohort in missing:
        part = repetitions_of(cohort).assign(cohort=cohort)
        kept = pd.concat([kept, part], ignore_index=True) if len(kept) else part
        args.kept.parent.mkdir(parents=True, exist_ok=True)
        with atomic(args.kept) as tmp:
            kept.to_csv(tmp, index=False)
        progress(int(kept.cohort.nunique()))
    kept = kept[kept.cohort < args.cohorts].sort_values('cohort', kind='stable')
    table = alarm_table(kept)
    with atomic(args.out) as tmp:
        table.to_csv(tmp, index=False, float_format='%.4g')
    print(table.round(3).to_string(), flush=True)


if __name__ == '__main__':
    main()
