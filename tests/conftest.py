"Shared by the tests: where the released data lies."
import os
from pathlib import Path
import pytest

BESIDE = Path(__file__).resolve().parents[1].parent/'shared'/'data'
if 'RADGEN_DATA' not in os.environ and BESIDE.is_dir(): os.environ['RADGEN_DATA'] = str(BESIDE)

@pytest.fixture(scope='session')
def published_folder():
    "The folder of the released files; skips where they are not at hand."
    from radgen.paths import data_dir
    from radgen.published import published_available
    if not published_available(): pytest.skip('the released data is not at hand: run `radgen fetch published` or set RADGEN_DATA')
    return data_dir('published')

@pytest.fixture(scope='session')
def published(published_folder):
    "The released cohort."
    from radgen.published import load_published
    return load_published()
