"""Alarms of each detector of copies, by kind and share of planted copies, over repetitions.

    python docs/measured/planted_copies.py           # writes docs/measured/planted_copies.csv

Repetitions are kept in runs/planted_copies.csv, one by one, and a second call goes on where the
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
COHORTS, SPLITS = 1, 40
SIZE = dict(n_patients=300, n_imaged=300, image_size=32, n_genes=60)
FIRST_SEED = 41_000  # of no other cohort here
KEY = ['cohort', 'split']


def missing_splits(cohort, kept):
    "Those of a cohort that are not kept."
    done = set(kept.loc[kept.cohort == cohort, 'split'])
    return [k for k in range(SPLITS) if k not in done]


def repetitions_of(cohort, splits):
    "The alarms of each split of a cohort."
    data = make_phantom(**SIZE, seed=FIRST_SEED + cohort)
    for k in splits:
        seed = derive_seed('planted copies', cohort, k)
        rows = planted_alarms(data.images, data.series, [seed]).drop(columns='seed')
        yield rows.assign(cohort=cohort, split=k)


def measure(kept, path, cohorts):
    "All repetitions, each written as soon as it is made."
    todo = {c: missing_splits(c, kept) for c in range(cohorts)}
    done, total = cohorts * SPLITS - sum(map(len, todo.values())), cohorts * SPLITS
    progress = Progress('planted copies', total, done, 'repetitions')
    path.parent.mkdir(parents=True, exist_ok=True)
    for cohort, splits in todo.items():
        for part in repetitions_of(cohort, splits) if splits else ():
            kept, done = pd.concat([kept, part] if len(kept) else [part]), done + 1
            with atomic(path) as tmp:
                kept.to_csv(tmp, index=False)
            progress(done)
    return kept[kept.cohort < cohorts].sort_values(KEY, kind='stable')


def main():
    "The command."
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--out', type=Path, default=HERE.with_suffix('.csv'))
    parser.add_argument('--kept', type=Path, default=KEPT, help='repetitions so far')
    parser.add_argument('--cohorts', type=int, default=COHORTS, help='of 40 repetitions each')
    args = parser.parse_args()
    kept = pd.read_csv(args.kept) if args.kept.exists() else pd.DataFrame(columns=KEY)
    table = alarm_table(measure(kept, args.kept, args.cohorts))
    with atomic(args.out) as tmp:
        table.to_csv(tmp, index=False, float_format='%.4g')
    print(table.round(3).to_string(), flush=True)


if __name__ == '__main__':
    main()
