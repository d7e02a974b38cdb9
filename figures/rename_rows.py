"""Rename the values of committed rows to the terms of version 0.2.0.

Rows written before that version keep their numbers and get today's words, until they are computed anew:

    python figures/rename_rows.py figures/published/quick/results.csv
"""

import sys

import pandas as pd

METRICS = {
    'frd': 'radiomics_frechet',
    'leaked_share': 'sibling_share',
    'copy_gap': 'nndr',
    'condition_effect': 'condition_sensitivity',
    'shuffled_gain': 'permutation_importance',
    'shuffled_mse': 'permuted_mse',
    'utility_auroc': 'tstr_auroc',
    'utility_auroc_p': 'tstr_auroc_p',
    'utility_gain': 'tstr_gain',
    'outside_share': 'fraction_out_of_range',
    'outside_training_range': 'n_out_of_range',
}
VALUES = {
    'metric': METRICS,
    'role': {'floor': 'reference', 'ceiling': 'upper_bound'},
    'subset': {'leaked': 'sibling', 'unleaked': 'no_sibling'},
    'label': {'FRD': 'radiomics Frechet'},
}


def rename(rows: pd.DataFrame) -> pd.DataFrame:
    "Rows with the values of version 0.2.0; what is already renamed stays as it is."
    rows = rows.copy()
    prevalence = (rows['role'] == 'floor') & (rows['metric'] == 'auprc')
    for column, values in VALUES.items():
        rows[column] = rows[column].replace(values)
    rows.loc[prevalence, 'role'] = 'chance'
    return rows


if __name__ == '__main__':
    for path in sys.argv[1:]:
        rename(pd.read_csv(path, dtype=str, keep_default_na=False)).to_csv(path, index=False)
        print(f'{path}: renamed')
