"""Rename the values of committed rows to the terms of version 0.2.0.

Rows written before that version keep their numbers and get today's words, until they are computed
anew. The tables and plots that are views of the rows are made again from them:

    python figures/rename_rows.py figures/published/quick
"""

import sys
from pathlib import Path

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


NOT_BUILT = 'unavailable: not yet built'  # and what it said of
UNAVAILABLE = {
    'extractor': dict.fromkeys(('vgg16', 'resnet50', 'inceptionv3'), 'no CNN extractor'),
    'classifier': {'deepsurv': 'no DeepSurv model'},
}


def rename_verdicts(rows: pd.DataFrame) -> pd.DataFrame:
    "Verdicts that say what is missing."
    rows = rows.copy()
    for column, reasons in UNAVAILABLE.items():
        for value, reason in reasons.items():
            missing = (rows['verdict'] == NOT_BUILT) & (rows[column] == value)
            rows.loc[missing, 'verdict'] = f'unavailable: {reason}'
    return rows


def rename(rows: pd.DataFrame) -> pd.DataFrame:
    "Rows with the values of version 0.2.0; what is already renamed stays as it is."
    rows = rows.copy()
    prevalence = (rows['role'] == 'floor') & (rows['metric'] == 'auprc')
    for column, values in VALUES.items():
        rows[column] = rows[column].replace(values)
    rows.loc[prevalence, 'role'] = 'chance'
    return rename_verdicts(rows) if 'verdict' in rows else rows


def views(rows: pd.DataFrame) -> dict:
    "Name of the file -> figure, for every plot that needs nothing but rows."
    from radgen.audit.figures import fig_condition_carried, fig_confounding, fig_tstr
    from radgen.evaluate.image_plots import fig_fidelity
    from radgen.evaluate.outcome_plots import fig_outcomes
    from radgen.report.plots import fig_scorecard
    from radgen.report.scorecard import scorecard

    drawn = dict(fidelity=fig_fidelity(rows), outcomes=fig_outcomes(rows))
    drawn['fig9_scorecard'] = fig_scorecard(scorecard(rows))
    audits = dict(condition=fig_condition_carried, tstr=fig_tstr, confounding=fig_confounding)
    for notebook, part in rows.groupby('source_notebook'):
        stem, _, condition = notebook.partition('-')
        if stem == '04_fidelity':
            drawn[f'fidelity_{condition}'] = fig_fidelity(part)
        if stem == '07a_audit':
            patients = part[part.protocol == 'patient']
            drawn |= {f'audit_{k}_{condition}': draw(patients) for k, draw in audits.items()}
    return drawn


def redraw(folder: Path):
    "Make the tables and plots of a committed run again from its rows."
    from radgen.core.names import is_phantom
    from radgen.core.paths import read_json
    from radgen.core.results import read_rows
    from radgen.core.style import save_figure
    from radgen.core.verdicts import use_verdicts
    from radgen.core.withheld import withhold
    from radgen.report.page import tables, write_tables

    rows, facts = withhold(read_rows(folder / 'results.csv')), read_json(folder / 'provenance.json')
    use_verdicts(facts.get('verdicts'))
    made = tables(rows, provenance=facts)
    made = {name: table for name, table in made.items() if len(table)}
    made.pop('table8_checklists', None)  # its answers need the ledger, which only a run has
    write_tables(made, folder)
    for name, figure in views(rows).items():
        save_figure(figure, name, folder, simulated=is_phantom(folder.parent.name))
    for old in (folder / 'table2_leaked.csv', *folder.glob('audit_utility_*')):
        old.unlink(missing_ok=True)


if __name__ == '__main__':
    for folder in map(Path, sys.argv[1:]):
        path = folder / 'results.csv'
        rename(pd.read_csv(path, dtype=str, keep_default_na=False)).to_csv(path, index=False)
        redraw(folder)
        print(f'{folder}: rows renamed, tables and plots made again')
