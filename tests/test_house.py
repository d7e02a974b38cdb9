"House rules: one list of requirements, a package that is what the notebooks export, notebooks that can be read anywhere."

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

from radgen.load import COHORTS
from radgen.run import graph, parameters

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = sorted((ROOT / 'nbs').glob('[0-9]*/[0-9]*.ipynb'))
PAPER = sorted((ROOT / 'nbs' / 'paper').glob('[0-9]*.ipynb'))
NOTEBOOKS = [*LIBRARY, *PAPER, ROOT / 'nbs' / 'index.ipynb']
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
    lines = [
        l
        for l in (ROOT / 'requirements.lock').read_text().splitlines()
        if l and not l.startswith('#')
    ]
    assert not [l for l in lines if not re.fullmatch(r'[A-Za-z0-9._-]+==[A-Za-z0-9.]+', l)]
    locked = {canonicalize_name(n): v for n, v in (l.split('==') for l in lines)}
    assert len(locked) == len(lines)
    for r in map(Requirement, requirements()):
        assert r.specifier.contains(locked[canonicalize_name(r.name)], prereleases=True), r


def test_package_is_what_the_notebooks_export(copy):
    nbdev(copy, 'nbdev_export')
    made, kept = (
        sorted(p.name for p in (copy / 'radgen').glob('*.py')),
        sorted(p.name for p in (ROOT / 'radgen').glob('*.py')),
    )
    assert made == kept
    _, different, errors = filecmp.cmpfiles(copy / 'radgen', ROOT / 'radgen', made, shallow=False)
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
        k: v for k, v in dict(condition='multiomic', protocol='patient').items() if k in default
    }
    if 'folds' in default:
        run_of['folds'] = [*range(default['n_folds']['patient']), 'final']
    smoke = parameters.params_for(nb.stem, 'phantom', 'smoke', **run_of)
    assert smoke.items() <= default.items()
    assert default.keys() - smoke.keys() <= {'model', 'seed'}, (
        'a parameter that config/smoke.yaml does not state'
    )


@pytest.mark.parametrize('profile', parameters.profiles())
@pytest.mark.parametrize('cohort', COHORTS)
def test_profiles_fit_the_notebooks(profile, cohort):
    parameters.settings(profile, cohort)


def test_modules_import_only_from_above():
    order = ['paths', *[nb.stem.split('_', 1)[1] for nb in LIBRARY if nb.stem != '00_paths']]
    for place, module in enumerate(order):
        below = graph._imported((ROOT / 'radgen' / f'{module}.py').read_text()) - set(order[:place])
        assert not below, f'radgen.{module} imports {below}'


@pytest.mark.parametrize('nb', PAPER, ids=name)
def test_paper_notebooks_define_nothing(nb):
    tree = ast.parse(
        '\n'.join(re.sub(r'^\s*[%!].*', '', l) for source in code(nb) for l in source.split('\n'))
    )
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
    sorted(p for p in (ROOT / 'figures').rglob('*') if p.suffix in ('.json', '.csv')),
    ids=lambda p: str(p.relative_to(ROOT / 'figures')),
)
def test_results_name_no_folder(path):
    found = re.findall(r'["\s,](/(?:[\w.-]+/)+[\w.-]+)', path.read_text())
    assert not found, f'{path.name} names {found[0]}'


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
