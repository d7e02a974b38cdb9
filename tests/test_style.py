"""House rules of style: lines, functions, cells, figures, words, floors.

The rules are functions of tests/house.py. Each is asserted here for this checkout, with its
reasoned exceptions, and shown to find a planted fault in a small project of its own.
"""

import configparser
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import house
import pytest

ROOT = house.ROOT

# Exceptions, each with its reason. One that is no longer needed fails.
LONG_MODULES = {}  # module: reason
LONG_EXPORTS = {  # ('notebook:name of what the cell defines first', lines at most): reason
    ('nbs/06_models/03_cpdm.ipynb:CPDMConfig', 84): 'one setting per line, each with its docment',
    ('nbs/06_models/03_cpdm.ipynb:CPDM', 91): 'one network, read from loss to sample',
    ('nbs/06_models/08_cvae.ipynb:CVAE', 100): 'one network, read from encoder to sample',
    ('nbs/06_models/09_cgan.ipynb:CGAN', 81): 'two networks of one game, with their loss',
    ('nbs/06_models/15_training_step.ipynb:Trainer', 117): 'one state, with all that reads it',
}
LONG_DEMOS = {}  # notebook: reason
NO_FIGURE = {}  # notebook: reason
SAID = {  # (file or pattern, words in lower case, kinds of passages): reason
    ('*', 'trapezoid', 'string'): 'a value of settings that checkpoints record: WSD schedule',
    ('nbs/06_models/15*', 'trapezoid', 'text'): 'where that value is explained',
    ('*', 'own_features', 'string'): 'a value of settings that checkpoints record: min-max scaling',
    ('*released_unet*', 'enough', 'name'): 'a plain English word, not the former name',
}
TWICE = {}  # public name: reason
OLDER_CODE = {}  # commit of executed notebooks: reason

RULES = {
    house.lint: None,
    house.unformatted: None,
    house.unexported: None,
    house.long_lines: None,
    house.long_modules: LONG_MODULES,
    house.long_functions: None,
    house.nested_comprehensions: None,
    house.comments_adrift: None,
    house.long_export_cells: LONG_EXPORTS,
    house.long_demo_cells: LONG_DEMOS,
    house.visible_harness: None,
    house.without_figure: NO_FIGURE,
    house.without_output: None,
    house.paper_with_output: None,
    house.upward_imports: None,
    house.textbook_tests: None,
    house.twice_named: TWICE,
    house.stale_imports: OLDER_CODE,
    house.forbidden_phrases: SAID,
}
name = lambda rule: rule.__name__


@pytest.mark.parametrize('rule', RULES, ids=name)
def test_rule(rule):
    allowed = RULES[rule]
    faults = rule(ROOT) if allowed is None else rule(ROOT, tuple(allowed))
    shown = '\n'.join(faults[:200])
    assert not faults, f'{rule.__name__}: {rule.__doc__}\n{len(faults)} faults\n{shown}'


@pytest.mark.parametrize('rule', [r for r in RULES if RULES[r]], ids=name)
def test_exceptions_are_needed(rule):
    allowed = list(RULES[rule])
    assert all(isinstance(r, str) and r for r in RULES[rule].values()), 'an exception has a reason'
    for one in allowed:
        others = tuple(a for a in allowed if a != one)
        assert len(rule(ROOT, others)) > len(rule(ROOT, tuple(allowed))), f'{one} needs none'


def test_every_rule_is_asserted():
    assert set(house.RULES) == set(RULES) == {rule for rule, *_ in PLANTS}


def test_floors_name_every_room():
    contracts = configparser.ConfigParser()
    contracts.read_string(house.import_contracts(ROOT))
    floors = re.findall(r'\w+', contracts['importlinter:contract:floors']['layers'])
    assert sorted(floors) == sorted({*house.rooms(ROOT), 'load'})


def test_git_ignores_no_source():
    "A line of .gitignore such as data/ hides radgen/data from git, and from ruff."
    sources = [*house.modules(ROOT), *house.notebooks(ROOT), *(ROOT / 'tests').glob('*.py')]
    names = '\n'.join(house.relative(p, ROOT) for p in sources)
    git = ['git', 'check-ignore', '--no-index', '--stdin', '--verbose']
    done = subprocess.run(git, cwd=ROOT, input=names, capture_output=True, text=True)
    if done.returncode == 128:
        pytest.skip('not a git checkout')
    assert not done.stdout, f'ignored by git:\n{done.stdout}'


def test_changelog_has_this_version():
    settings = configparser.ConfigParser(delimiters=['='], interpolation=None)
    settings.read(ROOT / 'settings.ini')
    latest = re.search(r'^## \[([\d.]+)\] - ', (ROOT / 'CHANGELOG.md').read_text(), re.M)
    assert latest[1] == settings['DEFAULT']['version']


# A small project without faults, and one fault at a time in a copy of it

PIXEL = (
    'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJg'
)
FIGURE = [dict(output_type='display_data', metadata={}, data={'image/png': PIXEL})]
NUMBER = [
    dict(output_type='execute_result', execution_count=1, metadata={}, data={'text/plain': '3'})
]
FLOORS = 'core data phantom conditions models evaluate audit validate report run'.split()


def code(source, outputs=(), tags=()):
    metadata = dict(tags=list(tags)) if tags else {}
    return dict(
        cell_type='code',
        execution_count=None,
        metadata=metadata,
        outputs=list(outputs),
        source=source,
    )


def markdown(source):
    return dict(cell_type='markdown', metadata={}, source=source)


def write(path, cells):
    path.parent.mkdir(parents=True, exist_ok=True)
    kernel = dict(kernelspec=dict(display_name='python3', language='python', name='python3'))
    for i, cell in enumerate(cells):
        cell['id'] = f'{path.stem}-{i}'.replace('_', '-')
    made = dict(cells=cells, metadata=kernel, nbformat=4, nbformat_minor=5)
    path.write_text(json.dumps(made, indent=1, ensure_ascii=False) + '\n')


def library(module, source):
    return [
        code(f'#| default_exp {module}'),
        markdown(f'# {module}\n> What it is for.\n\nA question.'),
        code('1 + 2', FIGURE),
        code(source),
        code('1 + 2', NUMBER),
        code('#| hide\nimport nbdev\n\nnbdev.nbdev_export()'),
    ]


PATHS = """#| export
def half(
    x: float,  # in any unit
) -> float:  # in the same unit
    "Half of it."
    return x / 2"""
CHECKS = '#| export\nfrom radgen.core.paths import half\n\nquarter = half(half(1))'
COHORT = '#| export\nfrom radgen.core.checks import quarter\n\neighth = quarter / 2'
LOAD = '#| export\nfrom radgen.data.cohort import eighth\n\nsixteenth = eighth / 2'
NOTEBOOKS = {
    'nbs/01_core/01_paths.ipynb': library('core.paths', PATHS),
    'nbs/01_core/02_checks.ipynb': library('core.checks', CHECKS),
    'nbs/02_data/01_cohort.ipynb': library('data.cohort', COHORT),
    'nbs/05_load/01_load.ipynb': library('load', LOAD),
    'nbs/paper/01_cohort.ipynb': [
        markdown('# The cohort'),
        code("cohort: str = 'phantom'  # or published", tags=['parameters']),
        code('print(cohort)'),
    ],
    'nbs/index.ipynb': [markdown('# radgen\n> One row per patient.')],
}


@pytest.fixture(scope='module')
def clean(tmp_path_factory):
    "A project of a few library notebooks and a paper notebook, with the real configuration."
    root = tmp_path_factory.mktemp('clean')
    for part in ('settings.ini', 'ruff.toml', '.importlinter'):
        shutil.copy(ROOT / part, root)
    for path, cells in NOTEBOOKS.items():
        write(root / path, cells)
    export(root)
    for room in FLOORS:
        (root / 'radgen' / room).mkdir(exist_ok=True)
        (root / 'radgen' / room / '__init__.py').touch()
    return root


def export(root):
    tool = Path(sys.executable).parent / 'nbdev_export'
    subprocess.run([tool], cwd=root, check=True, capture_output=True)


@pytest.fixture
def copy(clean, tmp_path):
    return shutil.copytree(clean, tmp_path / 'copy')


def edit(path, was, becomes):
    "A planted fault: the text of a notebook or a module changes."
    as_json = lambda x: json.dumps(x, ensure_ascii=False)[1:-1] if path.suffix == '.ipynb' else x
    text = path.read_text()
    assert as_json(was) in text, f'{was} is not in {path}'
    path.write_text(text.replace(as_json(was), as_json(becomes)))


def in_file(path, was, becomes, then=None):
    def plant(root):
        edit(root / path, was, becomes)
        if then:
            then(root)

    return plant


def in_notebook(was, becomes, then=None, path='nbs/01_core/01_paths.ipynb'):
    return in_file(path, was, becomes, then)


def without(kind):
    "Outputs of a kind are taken out of a notebook."

    def plant(root):
        path = root / 'nbs/01_core/01_paths.ipynb'
        cells = json.loads(path.read_text())['cells']
        for c in cells:
            c['outputs'] = [o for o in c.get('outputs', []) if kind not in o['data']]
            if c['cell_type'] != 'code':
                del c['outputs']
        write(path, cells)

    return plant


def both(*plants):
    return lambda root: [plant(root) for plant in plants]


def error_output(root):
    path = root / 'nbs/02_data/01_cohort.ipynb'
    cells = json.loads(path.read_text())['cells']
    cells[4]['outputs'] = [dict(output_type='error', ename='E', evalue='', traceback=[])]
    write(path, cells)


def output_of_paper(root):
    path = root / 'nbs/paper/01_cohort.ipynb'
    cells = json.loads(path.read_text())['cells']
    cells[2]['outputs'] = NUMBER
    write(path, cells)


def orphan(root):
    path = root / 'radgen/core/lost.py'
    path.write_text('# AUTOGENERATED! DO NOT EDIT! File to edit: ../nbs/09_lost.ipynb.\n')


def judged(source):
    return lambda root: (root / 'radgen/evaluate/risk.py').write_text(source)


BODY = '    return x / 2'
LOOPS = 'eighth = [[[x for x in range(2)] for y in range(2)] for z in range(2)]'
ONE_LINE = '    if x > 1: return x\n    return x / 2'
ARGS = 'x: float,  # in any unit\n) -> float:  # in the same unit'
MOVED = 'x: float,\n) -> (  # in the same unit\n    float\n):'
ADDED = '\n'.join(f'    x = x + {i}' for i in range(70))
TOP = '\n'.join(f'a{i} = {i}' for i in range(31))
DEMO = '\n'.join(f'a{i} = {i}' for i in range(11))
FIELD = '@dataclass\nclass A:\n    x: int = (\n        1  # millimetres\n    )'
PATHS_NB, CHECKS_NB = 'nbs/01_core/01_paths.ipynb', 'nbs/01_core/02_checks.ipynb'
PAPER_NB = 'nbs/paper/01_cohort.ipynb'
PATHS_PY, COHORT_PY = 'radgen/core/paths.py', 'radgen/data/cohort.py'

PLANTS = [  # rule, fault, what the message names
    (house.lint, in_notebook(BODY, f'    # {"x " * 50}\n{BODY}'), f'{PATHS_NB}:cell 4:6:101: E501'),
    (house.lint, in_notebook(BODY, ONE_LINE), 'E701'),
    (house.lint, in_notebook('x: float', 'x: float = None'), 'RUF013'),
    (house.lint, in_notebook(BODY, '    return y / 2'), 'F821'),
    (house.lint, in_notebook(BODY, 'import os, sys', path=PATHS_NB), 'E401'),
    (house.lint, in_file(PATHS_PY, BODY, '    z = 1\n' + BODY), f'{PATHS_PY}:'),
    (house.unformatted, in_notebook('x / 2', 'x/2'), PATHS_NB),
    (house.unformatted, in_notebook('"Half of it."', '"Half of it."\n\n\n'), PATHS_NB),
    (house.unexported, in_notebook('x / 2', 'x / 3'), f'{PATHS_PY}:13: not what {PATHS_NB}'),
    (house.unexported, in_file(COHORT_PY, 'quarter / 2', 'quarter / 3'), f'{COHORT_PY}:'),
    (house.unexported, orphan, 'radgen/core/lost.py: no notebook exports it'),
    (house.unexported, lambda root: (root / PATHS_PY).unlink(), f'{PATHS_PY}: missing'),
    (house.long_lines, in_file(PATHS_PY, BODY, BODY + '  # ' + 'x ' * 50), f'{PATHS_PY}:13: 1'),
    (house.long_modules, in_file(PATHS_PY, BODY, BODY + '\n' * 400), f'{PATHS_PY}: 4'),
    (house.long_functions, in_file(PATHS_PY, BODY, ADDED + '\n' + BODY), f'{PATHS_PY}:9: half'),
    (house.nested_comprehensions, in_file(COHORT_PY, 'eighth = quarter / 2', LOOPS), COHORT_PY),
    (house.comments_adrift, in_notebook(ARGS, MOVED), f'{PATHS_NB}:cell 3:4'),
    (house.comments_adrift, in_notebook(BODY, f'{BODY}\n\n\n{FIELD}'), f'{PATHS_NB}:cell 3:12'),
    (
        house.comments_adrift,
        in_file(PAPER_NB, "'phantom'  # or published", "(\n    'phantom'  # or published\n)"),
        PAPER_NB,
    ),
    (house.long_export_cells, in_notebook(BODY, ADDED + '\n' + BODY), f'{PATHS_NB}:cell 3: half'),
    (house.long_export_cells, in_notebook(BODY, BODY + '\n' + TOP), f'{PATHS_NB}:cell 3: half'),
    (house.long_demo_cells, in_notebook('1 + 2', DEMO), f'{PATHS_NB}:cell 2: 11 lines'),
    (house.visible_harness, in_notebook('1 + 2', "os.environ['A'] = '1'"), f'{PATHS_NB}:cell 2'),
    (house.visible_harness, in_notebook('1 + 2', 'class FakeServer: ...'), f'{PATHS_NB}:cell 2'),
    (house.without_figure, without('image/png'), PATHS_NB),
    (house.without_output, both(without('image/png'), without('text/plain')), PATHS_NB),
    (house.without_output, error_output, 'nbs/02_data/01_cohort.ipynb:cell 4'),
    (house.paper_with_output, output_of_paper, f'{PAPER_NB}:cell 2'),
    (
        house.upward_imports,
        in_file(PATHS_PY, BODY, BODY + '\n\nfrom ..data import cohort\n'),
        'radgen.core.paths -> radgen.data',
    ),
    (
        house.upward_imports,
        in_file(PATHS_PY, BODY, BODY + '\n\nfrom .checks import quarter\n'),
        'radgen.core.paths -> radgen.core.checks',
    ),
    (
        house.upward_imports,
        lambda root: (root / 'radgen/report/page.py').write_text('import radgen.validate\n'),
        'radgen.report.page -> radgen.validate',
    ),
    (
        house.upward_imports,
        lambda root: (root / 'radgen/attic').mkdir() or (root / 'radgen/attic/__init__.py').touch(),
        'attic',
    ),
    (house.textbook_tests, judged('p = logrank_test(a, b).p_value'), 'risk.py:1: p_value'),
    (house.textbook_tests, judged('from scipy import stats\np = stats.norm.sf(2)'), 'norm.sf'),
    (house.textbook_tests, judged('import scipy\np = scipy.stats.ttest_ind(a, b)[1]'), 'ttest_ind'),
]


def executed(*lines, said='Executed: code `abc123`.'):
    "An executed notebook of a run with these imports."

    def plant(root):
        cells = [markdown(f'# A run\n\n*{said}*'), *map(code, lines)]
        write(root / 'figures/phantom/quick/notebooks/01_cohort.ipynb', cells)

    return plant


EXECUTED = 'figures/phantom/quick/notebooks/01_cohort.ipynb'
GONE = 'from radgen.core.paths import half, third'
PLANTS += [
    (
        house.twice_named,
        in_file(COHORT_PY, 'eighth = quarter / 2', 'eighth = quarter / 2\n\n\ndef half(): ...'),
        f'{PATHS_PY}: half: also in {COHORT_PY}',
    ),
    (house.stale_imports, executed('1', GONE), f'{EXECUTED}:cell 2: radgen.core.paths.third'),
    (house.stale_imports, executed('import radgen.core.gone'), f'{EXECUTED}:cell 1'),
    (house.stale_imports, executed(GONE, said='Executed.'), '(no commit)'),
]
SPOKEN = [  # what is planted, what the message quotes
    ('A picture of it.', 'picture'),
    ('A row an image.', 'A row an image'),
    ('It is a table with one row a patient.', 'one row a patient'),
    ('Distances, one a patient.', 'one a patient'),
    ('It draws 40 steps a fold.', 'steps a fold'),
    ('Generated ones are told from real ones.', 'told'),
    ('That comes with a later step.', 'comes with a later'),
    ('It mends the schedule.', 'mends'),
    ('The floor of the scores.', 'floor'),
    ('Images that leaked.', 'leaked'),
]
PLANTS += [
    (house.forbidden_phrases, in_notebook('A question.', said), f'{PATHS_NB}:cell 1:4: "{quoted}"')
    for said, quoted in SPOKEN
]
PLANTS += [
    (house.forbidden_phrases, in_notebook('Half of it.', 'A picture.'), f'{PATHS_NB}:cell 3:5'),
    (house.forbidden_phrases, in_notebook('any unit', 'pictures'), f'{PATHS_NB}:cell 3:3'),
    (house.forbidden_phrases, in_notebook('half(', 'read_picture('), '"read_picture"'),
    (house.forbidden_phrases, in_notebook('x / 2', "x['ceiling']"), '"ceiling": upper bound'),
    (house.forbidden_phrases, in_file(PATHS_PY, 'Half of it', 'A picture'), PATHS_PY),
    (
        house.forbidden_phrases,
        lambda root: (root / 'README.md').write_text('One sample a patient.\n'),
        'README.md:1: "One sample a patient": per',
    ),
]
READ = {  # files that are neither notebooks nor modules
    'CONTRIBUTING.md': '# How\nA picture.\n',
    'radgen/report/captions.yaml': 'fig1:\n  caption: A picture.\n',
    'radgen/data/genes.csv': 'name\npicture\n',
    'docs/builder/words.py': 'A = 1\nPAGES = "a picture"\n',
}


def new_file(path, text):
    def plant(root):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)

    return plant


PLANTS += [
    (house.forbidden_phrases, new_file(path, text), f'{path}:2: "picture"')
    for path, text in READ.items()
]


@pytest.mark.parametrize('rule', RULES, ids=name)
def test_rule_finds_nothing_in_a_clean_project(rule, clean):
    assert rule(clean) == []


@pytest.mark.parametrize(
    ('rule', 'plant', 'named'), PLANTS, ids=lambda x: getattr(x, '__name__', 0)
)
def test_rule_finds_a_planted_fault(rule, plant, named, copy):
    plant(copy)
    assert named in '\n'.join(rule(copy))


@pytest.mark.parametrize(
    'text',
    [
        'pooch reads published_pictures.zip from the release',
        'the squared error of one image',
        'an image per patient, and data leakage between folds',
        'a patient has a row in a table',
        'matplotlib draws a PathPatch',
    ],
)
def test_words_that_are_fine(text, copy):
    edit(copy / PATHS_NB, 'A question.', text)
    assert house.forbidden_phrases(copy) == []


def test_a_comment_above_its_parameter_is_read(copy):
    above = '# a very long explanation\n    # on two lines\n    x: float,\n) -> float:  # in mm'
    edit(copy / PATHS_NB, ARGS, above)
    assert house.comments_adrift(copy) == []


def test_a_long_cell_has_a_limit_of_its_own(copy):
    edit(copy / PATHS_NB, BODY, ADDED + '\n' + BODY)
    (fault,) = house.long_export_cells(copy)
    n = int(re.search(r'(\d+) lines', fault)[1])
    assert house.long_export_cells(copy, [(f'{PATHS_NB}:half', n)]) == []
    assert len(house.long_export_cells(copy, [(f'{PATHS_NB}:half', n - 1)])) == 1


def test_an_exception_of_values_holds_for_values_only(copy):
    edit(copy / PATHS_NB, 'A question.', 'A trapezoid.')
    edit(copy / PATHS_NB, '1 + 2', "schedule = 'trapezoid'")
    allowed = [('*', 'trapezoid', 'string')]
    assert len(house.forbidden_phrases(copy)) == 3
    (fault,) = house.forbidden_phrases(copy, allowed)
    assert f'{PATHS_NB}:cell 1:4' in fault


def test_a_notebook_of_older_code_is_listed_by_its_commit(copy):
    executed(GONE)(copy)
    assert house.stale_imports(copy, ['abc123']) == []
    assert len(house.stale_imports(copy, ['another'])) == 1
    executed(GONE, said='Executed.')(copy)
    assert len(house.stale_imports(copy, ['abc123'])) == 1


def test_every_executed_notebook_names_its_commit():
    notebooks = sorted(ROOT.glob('figures/**/notebooks/*.ipynb'))
    assert notebooks and all(house.executed_at(p, ROOT) for p in notebooks)
