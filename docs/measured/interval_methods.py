"""Coverage and width of the methods that could make each kind of interval.

    python docs/measured/interval_methods.py              # writes interval_methods.csv
    python docs/measured/interval_methods.py KID          # only these rows are made again

The table depends on seeds only and is the same on every machine.
"""

import sys
from pathlib import Path

import pandas as pd

from radgen.validate.interval_methods import compare_methods, studies

TABLE = Path(__file__).with_suffix('.csv')
NAMES = sys.argv[1:] or list(studies())


def main():
    "Measure, and keep the rows of other statistics."
    kept = pd.read_csv(TABLE) if TABLE.exists() and sys.argv[1:] else pd.DataFrame()
    for name in NAMES:
        made = compare_methods(name)
        others = kept[kept.statistic != name] if len(kept) else kept
        kept = pd.concat([others, made], ignore_index=True)
        order = kept.statistic.map(list(studies()).index)
        kept = kept.loc[order.sort_values(kind='stable').index]
        kept.to_csv(TABLE, index=False, float_format='%.4g')
        print(made.round(3).to_string(), flush=True)


if __name__ == '__main__':
    main()
