"""What the site says about rooms, cohorts and parts of a run; all else is in the repository."""

ROOMS = {
    'core': 'Paths, result rows, intervals, names, checks and the figure style of all other rooms.',
    'data': 'Cohorts: the released data, TCGA-BRCA from its source, and files of your own.',
    'phantom': 'A simulated cohort: omics, labels, survival and projections of known programs.',
    'conditions': 'From omics to the condition of a model: factorization, scaling, encoder.',
    'load': 'One function that loads any cohort by its name.',
    'models': 'The diffusion model, the released recipe and the baselines, trained and sampled.',
    'evaluate': 'Image fidelity, clinical attributes and survival, with controls and intervals.',
    'audit': 'Copying, use of the condition, train on synthetic and test on real (TSTR), site.',
    'validate': 'Checks of the audit: coverage of intervals, learning curve, link controls.',
    'report': 'Tables, the scorecard, the sentences and the page that report a run.',
    'run': 'Parameters, execution, the graph of the study, and the command line.',
}

COHORTS = {
    'published': (
        'Released data',
        'The data released with the paper: 58 projections of 28 patients.',
    ),
    'phantom': (
        'Simulated cohort',
        'Simulated patients. The omics shape the projections, and the truth is known.',
    ),
    'phantom_link0': (
        'Negative control',
        'Simulated patients without a link from omics to projections: nothing may be found.',
    ),
    'tcga': ('TCGA-BRCA from its source', 'Series of the imaging commons with raw omics.'),
    'files': (
        'Own patients',
        "The example of a study of one's own: omics of chromosome arm 17p, released projections.",
    ),
}

# A section of a run's page: its title, and how the names of its figures and tables begin.
SECTIONS = [
    ('Scorecard', ('fig9_', 'table7_')),
    ('Cohort', ('fig1_', 'fig8_', 'table1_', 'flow')),
    ('Multi-omic features', ('factorization',)),
    ('Model and training', ('fig2_', 'fig3_')),
    ('Generated images', ('fig4_', 'gallery')),
    ('Image fidelity', ('fidelity', 'table2_')),
    ('Clinical attributes', ('fig5_', 'fig6_', 'outcomes', 'table3_')),
    ('Survival', ('fig7_', 'table4_')),
    ('Single genomics', ('table5_',)),
    ('Controls and audit', ('audit', 'table6_')),
    ('Validation', ('link', 'coverage', 'learning')),
    ('Checklists', ('table8_', 'table9_')),
    ('Further results', ('',)),
]

GROUPED = ('section', 'instrument')  # columns that divide a long table into parts

VARIANTS = (
    'multiomic',
    'expression',
    'paper',
    'patient',
    'preprint',
)  # condition or protocol of a figure
MODELS = {'cpdm_paper': 'paper preset', 'cpdm_unconditional': 'unconditional'}
FOLDS = {
    'paper': 'images',
    'patient': 'patients',
    'preprint': 'four images',
}  # protocol -> what the folds are made of

# Wide tables as a reader needs them: heading -> text; a part between bars needs all its values.
VIEWS = {
    'table7_scorecard': {
        'quantity': '{quantity}',
        'condition': '{condition}',
        'folds over': '{folds}',
        'published': '{published}| (preprint {preprint})',
        'ours [95 % interval]': '{value}| [{ci_low}, {ci_high}]',
        'trivial control or chance': '{control}| ({control_name})',
        'permuted labels (95 %)': '{null}| ({null_low} to {null_high})',
        'upper bound': (
            '{upper_bound}| [{upper_bound_low}, {upper_bound_high}]| ({upper_bound_name})'
        ),
        'conclusion': '{conclusion}| ({why})',
    }
}
