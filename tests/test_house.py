"House rules: one list of requirements, a package of what notebooks export, notebooks that travel."

import ast
import configparser
import filecmp
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from radgen.core.names import COHORTS
from radgen.core.results import read_rows
from radgen.run import parameters, profiles, publish

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = sorted((ROOT / 'nbs').glob('[0-9]*/[0-9]*.ipynb'))
PAPER = sorted((ROOT / 'nbs' / 'paper').glob('[0-9]*.ipynb'))
NOTEBOOKS = [*LIBRARY, *PAPER, ROOT / 'nbs' / 'index.ipynb']
PUBLISHED = sorted((ROOT / 'figures').glob('*/*/notebooks/*.ipynb'))
name = lambda p: p.stem


def settings():
    parser = configparser.ConfigParser(delimiters=['='], interpolation=None)
    parser.read(ROOT / 'settings.ini')
    return parser['DEFAULT']


def requirements():
    return settings()['requirements'].split() + settings()['dev_requirements'].split()


def cells(nb):
    return json.loads(nb.read_text())['cells']


def code(nb):
    return [''.join(c['source']) for c in cells(nb) if c['cell_type'] == 'code']


@pytest.fixture(scope='module')
def copy(tmp_path_factory):
    "The project's notebooks and settings elsewhere, to be exported and cleaned there."
    folder = tmp_path_factory.mktemp('project')
    shutil.copy(ROOT / 'settings.ini', folder)
    shutil.copytree(
        ROOT / 'nbs', folder / 'nbs', ignore=shutil.ignore_patterns('.ipynb_checkpoints', '_*')
    )
    return folder


def nbdev(folder, tool, *args):
    done = subprocess.run(
        [Path(sys.executable).parent / tool, *args],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, 'PYTHONPATH': ''},
    )
    assert done.returncode == 0, done.stderr


def test_environment_lists_the_requirements():
    parts = yaml.safe_load((ROOT / 'environment.yml').read_text())['dependencies']
    assert next(p['pip'] for p in parts if isinstance(p, dict)) == requirements()
    assert f'python={settings()["min_python"]}' in parts


def test_lock_is_exact_and_names_no_place():
    lines = (ROOT / 'requirements.lock').read_text().splitlines()
    lines = [x for x in lines if x and not x.startswith('#')]
    assert not [x for x in lines if not re.fullmatch(r'[A-Za-z0-9._-]+==[A-Za-z0-9.]+', x)]
    locked = {canonicalize_name(n): v for n, v in (x.split('==') for x in lines)}
    assert len(locked) == len(lines)
    for r in map(Requirement, requirements()):
        assert r.specifier.contains(locked[canonicalize_name(r.name)], prereleases=True), r


def modules(root):
    "All modules of a package and its sub-packages."
    package = root / 'radgen'
    return {p.relative_to(package) for p in package.rglob('*.py')}


def test_package_is_what_the_notebooks_export(copy):
    nbdev(copy, 'nbdev_export')
    made, kept = modules(copy), modules(ROOT)
    empty = [p for p in kept - made if p.name == '__init__.py']  # nbdev makes none for a room
    assert made | set(empty) == kept
    assert not [p for p in empty if (ROOT / 'radgen' / p).read_text()]
    shared = sorted(map(str, made & kept))
    _, different, errors = filecmp.cmpfiles(copy / 'radgen', ROOT / 'radgen', shared, shallow=False)
    assert (different, errors) == ([], [])


@pytest.mark.parametrize('nb', PAPER, ids=name)
def test_parameters_survive_cleaning(copy, nb):
    other = copy / 'nbs' / 'paper' / nb.name
    nbdev(copy, 'nbdev_clean', '--fname', str(other))
    assert parameters.notebook_parameters(other) == parameters.notebook_parameters(nb)


@pytest.mark.parametrize('nb', PAPER, ids=name)
def test_defaults_are_the_smoke_values(nb):
    default = {k: v for k, (_, v) in parameters.notebook_parameters(nb).items()}
    run_of = {
        k: v
        for k, v in dict(
            condition='multiomic', protocol='patient', preprint=False, notebooks=[]
        ).items()
        if k in default
    }
    if 'folds' in default:
        run_of['folds'] = [*range(default['n_folds']['patient']), 'final']
    smoke = profiles.params_for(nb.stem, 'phantom', 'smoke', **run_of)
    assert smoke.items() <= default.items()
    assert default.keys() - smoke.keys() <= {'model', 'seed'}, (
        'a parameter that config/smoke.yaml does not state'
    )


@pytest.mark.parametrize('profile', profiles.profiles())
@pytest.mark.parametrize('cohort', COHORTS)
def test_profiles_fit_the_notebooks(profile, cohort):
    profiles.settings(profile, cohort)


def test_a_parameter_has_one_type():
    types = {}
    for nb in PAPER:
        for parameter, (kind, _) in parameters.notebook_parameters(nb).items():
            types.setdefault(parameter, {}).setdefault(str(kind), []).append(nb.stem)
    assert not {k: v for k, v in types.items() if len(v) > 1}


@pytest.mark.parametrize('nb', PAPER, ids=name)
def test_paper_notebooks_define_nothing(nb):
    lines = '\n'.join(code(nb)).split('\n')
    tree = ast.parse('\n'.join(re.sub(r'^\s*[%!].*', '', line) for line in lines))
    assert not [
        n.name
        for n in ast.walk(tree)
        if isinstance(n, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef))
    ]


@pytest.mark.parametrize('nb', NOTEBOOKS, ids=name)
def test_notebooks_travel(nb):
    text = nb.read_text()
    assert len(text.encode()) < 1_000_000
    text = re.sub(r'"image/[a-z+]+":\s*("[^"]*"|\[[^\]]*\])', '', text)
    assert not re.findall(
        r'(?<![\w.:/<-])/(?:home|Users|root|tmp|mnt|private|work|opt)/[\w.-]+', text
    )
    assert str(Path.home()) + '/' not in text or Path.home() == Path('/')


@pytest.mark.parametrize(
    'path',
    sorted(p for p in (ROOT / 'figures').rglob('*') if p.suffix in ('.json', '.csv', '.ipynb')),
    ids=lambda p: str(p.relative_to(ROOT / 'figures')),
)
def test_results_name_no_folder(path):
    text = re.sub(r'"image/[a-z+]+": "[^"]*"', '', path.read_text())
    folders = re.findall(r'["\s,](/(?:[\w.-]+/)+[\w.-]+)', text)
    assert not folders, f'{path.name} names {folders[0]}'


@pytest.mark.parametrize('nb', PUBLISHED, ids=lambda p: str(p.relative_to(ROOT / 'figures')))
def test_published_notebooks_are_small(nb):
    assert nb.stat().st_size <= publish.FILE_LIMIT


@pytest.mark.parametrize('nb', PUBLISHED, ids=lambda p: str(p.relative_to(ROOT / 'figures')))
def test_publishing_a_published_notebook_changes_nothing(nb):
    before = nb.read_text()
    images = publish.may_show_images(
        nb.parents[2].name, publish.executed_with(nb, json.loads(before))
    )
    again = publish.with_executed_line(publish.as_published(json.loads(before), images), 'none')
    assert publish.within_limit(publish.moved_links(again, nb.parent)) == before
    streams = [o['text'] for c in cells(nb) for o in c.get('outputs', []) if 'text' in o]
    assert not [x for x in streams if '\r' in x or '\x1b' in x]
    assert 'This is the source' not in before


def test_all_of_figures_is_small():
    sizes = [p.stat().st_size for p in (ROOT / 'figures').rglob('*') if p.is_file()]
    assert sum(sizes) <= publish.FIGURES_LIMIT


def test_the_deciding_coverage_is_the_committed_one():
    "`RADGEN_EXPECTED=write` writes the table anew from the committed rows."
    from radgen.validate.coverage import deciding_coverage

    committed = read_rows(ROOT / 'figures' / 'phantom' / 'quick' / 'results.csv')
    text = deciding_coverage(committed).to_csv(index=False, float_format='%.6g')
    kept = ROOT / 'radgen' / 'core' / 'coverage.csv'
    if os.environ.get('RADGEN_EXPECTED') == 'write':
        kept.write_text(text)
    assert kept.read_text() == text and text.count('\n') > 8


def test_readme_is_the_index_notebook():
    from nbconvert import MarkdownExporter

    assert (
        MarkdownExporter(exclude_input=True)
        .from_filename(str(ROOT / 'nbs' / 'index.ipynb'))[0]
        .strip()
        == (ROOT / 'README.md').read_text().strip()
    )


def test_one_version():
    import radgen

    assert (
        settings()['version']
        == yaml.safe_load((ROOT / 'CITATION.cff').read_text())['version']
        == radgen.__version__
    )


def test_module_docstrings_are_whole():
    "nbdev takes the first line of a notebook's quote: a second line would be cut off."
    modules = sorted((ROOT / 'radgen').rglob('*.py'))
    said = {p.relative_to(ROOT): ast.get_docstring(ast.parse(p.read_text())) for p in modules}
    cut = {str(p): text for p, text in said.items() if text and text.strip()[-1] not in '.?!'}
    assert not cut and len(said) > 100
