"Radiomics equal PyRadiomics' own extractor to the bit, and the cache that keeps them."

import contextlib
import importlib.metadata
import logging
import signal
import sqlite3
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import gaussian_filter

from radgen.core.cache import cache_dir
from radgen.core.paths import RadgenError
from radgen.evaluate import features
from radgen.evaluate.features import BIN_WIDTH, FAMILIES, central_box, radiomics_features
from radgen.load import load_cohort


def textures(n, size, seed=0):
    "Smooth noise in [0, 1]."
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((n, size, size))
    z = np.stack([gaussian_filter(x, 0.5 + k % 4, mode='wrap') for k, x in enumerate(noise)])
    return np.clip(0.5 + 0.2 * z / z.std((1, 2), keepdims=True), 0, 1)


def executed(images, bin_width=BIN_WIDTH):
    "The same features by `RadiomicsFeatureExtractor.execute`, image by image."
    import radiomics
    import SimpleITK as sitk
    from radiomics.featureextractor import RadiomicsFeatureExtractor

    radiomics.setVerbosity(logging.CRITICAL)
    extractor = RadiomicsFeatureExtractor(binWidth=bin_width, force2D=True, force2Ddimension=0)
    extractor.disableAllFeatures()
    for family in FAMILIES:
        extractor.enableFeatureClassByName(family)
    mask = np.zeros((1, *images.shape[1:]), dtype=np.uint8)
    mask[(0, *central_box(*images.shape[1:]))] = 1
    grey = np.rint(images * 255).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        rows = [
            extractor.execute(sitk.GetImageFromArray(g[None]), sitk.GetImageFromArray(mask))
            for g in grey
        ]
    of = lambda row: {k[9:]: float(v) for k, v in row.items() if k.startswith('original_')}
    table = pd.DataFrame([of(row) for row in rows]).replace([np.inf, -np.inf], np.nan)
    table.loc[table.ngtdm_Coarseness >= 1e6, 'ngtdm_Coarseness'] = np.nan
    return table


def hard_images(size):
    "Noise, constants, two levels, one bright pixel, stripes, gaps between grey levels."
    rng, ramp = np.random.default_rng(1), np.arange(size)
    one = np.zeros((size, size))
    one[size // 2, size // 2] = 1
    constants = [np.full((size, size), v) for v in (0, 0.4, 100 / 255, 1)]
    halves = np.where(ramp < size // 2, 0.2, 0.8) * np.ones((size, 1))
    stripes = (ramp % 2) * np.ones((size, 1))
    noise = [rng.random((size, size)), rng.choice([0, 0.5, 1], (size, size))]
    return np.stack([*noise, *constants, one, halves, stripes, stripes.T])


@pytest.mark.parametrize('size', [32, 64, 128])
def test_radiomics_equal_the_extractor_to_the_bit(size):
    real = load_cohort('phantom', n_patients=60, n_imaged=12, n_genes=60).resized(size).images
    images = np.concatenate([real[:10], textures(6, size), hard_images(size)])
    mine = radiomics_features(images)
    assert mine.shape == (len(images), 93)
    pd.testing.assert_frame_equal(mine, executed(images), check_exact=True)


@pytest.mark.parametrize('shape', [(8, 8), (9, 9), (24, 40), (31, 17)])
def test_radiomics_of_other_shapes_equal_the_extractor(shape):
    images = np.random.default_rng(0).random((3, *shape))
    pd.testing.assert_frame_equal(radiomics_features(images), executed(images), check_exact=True)


@pytest.mark.parametrize('bin_width', [1, 7.5, 10, 64])
def test_other_bins_equal_the_extractor(bin_width):
    images = np.concatenate([textures(4, 32), hard_images(32)])
    mine = radiomics_features(images, bin_width=bin_width)
    pd.testing.assert_frame_equal(mine, executed(images, bin_width), check_exact=True)


def test_an_image_alone_is_measured_as_among_others():
    images = np.concatenate([textures(40, 24), hard_images(24)])
    alone = pd.concat([radiomics_features(images[k : k + 1]) for k in range(len(images))])
    together = radiomics_features(images)
    pd.testing.assert_frame_equal(alone.reset_index(drop=True), together, check_exact=True)


def test_a_box_of_one_pixel_is_refused():
    with pytest.raises(RadgenError, match='2 pixels per side'):
        radiomics_features(np.zeros((1, 1, 8)))


# the cache: the same features, whatever happens to its file


def kept(folder, images, **options):
    "Features with a cache, and the number of images that were measured for it."
    n, whole = [0], features._measure_in_batches
    with pytest.MonkeyPatch.context() as patch:
        counted = lambda pixels, *rest: (n.append(len(pixels)), whole(pixels, *rest))[1]
        patch.setattr(features, '_measure_in_batches', counted)
        return radiomics_features(images, cache=folder, **options), sum(n)


def assert_same(a, b):
    pd.testing.assert_frame_equal(a, b, check_exact=True)


IMAGES = np.concatenate([textures(24, 16), hard_images(16)])


@pytest.fixture(scope='module')
def expected():
    return radiomics_features(IMAGES)


def the_file(folder):
    (path,) = folder.rglob('*.sqlite')
    return path


def test_features_are_the_same_with_and_without_a_cache(tmp_path, expected):
    n = len(np.unique(IMAGES, axis=0))
    part, measured = kept(tmp_path, IMAGES[:10])
    assert measured == 10
    assert_same(part, expected[:10])
    assert (full := kept(tmp_path, IMAGES))[1] == n - 10
    assert_same(full[0], expected)
    order = np.random.default_rng(0).permutation(len(IMAGES))
    assert (again := kept(tmp_path, IMAGES[order], n_jobs=2))[1] == 0
    assert_same(again[0], expected.iloc[order].reset_index(drop=True))
    assert again[0].ngtdm_Coarseness.isna().any(), 'missing values are kept as they are'


def test_other_pixels_settings_and_versions_are_measured(tmp_path, monkeypatch):
    images = IMAGES[:4]
    assert kept(tmp_path, images)[1] == 4
    assert kept(tmp_path, images, bin_width=25.0)[1] == 0
    assert kept(tmp_path, images, bin_width=10)[1] == 4
    assert kept(tmp_path, images.transpose(0, 2, 1))[1] == 4
    assert kept(tmp_path, np.where(images == images.max(), 0, images))[1] == 1
    version = importlib.metadata.version
    for package in 'pyradiomics', 'numpy':
        newer = lambda name, p=package: version(name) + '.1' * (name == p)
        with monkeypatch.context() as patch:
            patch.setattr(importlib.metadata, 'version', newer)
            assert kept(tmp_path, images)[1] == 4
    monkeypatch.setattr(features, 'code_digest', lambda module: f'other code of {module}')
    assert kept(tmp_path, images)[1] == 4


def cut(path, raw):
    path.write_bytes(raw[: len(raw) // 2])


def empty(path, raw):
    path.write_bytes(b'')


def no_database(path, raw):
    path.write_text('not a database')


def scratched(path, raw):
    path.write_bytes(raw[:8192] + bytes(8192) + raw[16384:])


@pytest.mark.parametrize('damage', [cut, empty, no_database, scratched])
def test_a_damaged_file_is_measured_again(tmp_path, capsys, expected, damage):
    kept(tmp_path, IMAGES)
    path = the_file(tmp_path)
    damage(path, path.read_bytes())
    table, measured = kept(tmp_path, IMAGES)
    assert measured
    assert_same(table, expected)
    lines = capsys.readouterr().out.splitlines()
    assert damage is empty or ('damaged' in lines[0] and path.name in lines[0]), lines
    assert_same(kept(tmp_path, IMAGES)[0], expected)
    assert kept(tmp_path, IMAGES)[1] == 0, 'and kept again'


def test_one_changed_byte_of_a_value_is_noticed(tmp_path, capsys, expected):
    kept(tmp_path, IMAGES)
    path, value = the_file(tmp_path), np.float64(expected.glcm_Contrast[3]).tobytes()
    raw = path.read_bytes()
    assert value in raw
    path.write_bytes(raw.replace(value, np.float64(expected.glcm_Contrast[3] + 1).tobytes()))
    table, measured = kept(tmp_path, IMAGES)
    assert measured == 1
    assert_same(table, expected)
    assert 'damaged rows: 1;' in capsys.readouterr().out
    assert kept(tmp_path, IMAGES)[1] == 0


def test_a_folder_that_cannot_be_used_costs_one_line(tmp_path, capsys):
    (tmp_path / 'features').write_text('a file where a folder should be')
    assert_same(kept(tmp_path, IMAGES[:3])[0], radiomics_features(IMAGES[:3]))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 and 'cannot be used' in lines[0], lines


def in_a_process(script, *args):
    command = [sys.executable, '-c', script, *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


WRITER = """
import sys
import numpy as np, pandas as pd
from radgen.core.cache import FeatureCache, cached_features

seed, folder = int(sys.argv[1]), sys.argv[2]
measure = lambda p: pd.DataFrame({'mean': p.mean((1, 2)), 'largest': p.max((1, 2)) * 1.0})
images = np.random.default_rng(0).integers(0, 256, (300, 8, 8), dtype=np.uint8)
for some in np.random.default_rng(seed).permutation(300).reshape(-1, 10).repeat(2, 0):
    table = cached_features(images[some], measure, FeatureCache(folder, 'stand_in'))
    pd.testing.assert_frame_equal(table, measure(images[some]), check_exact=True)
"""


def test_processes_write_at_once(tmp_path):
    writers = [in_a_process(WRITER, seed, tmp_path) for seed in (1, 2)]
    for writer in writers:
        out, _ = writer.communicate(timeout=120)
        assert writer.returncode == 0 and not out, out
    with contextlib.closing(sqlite3.connect(the_file(tmp_path))) as db:
        assert db.execute('SELECT count(*) FROM kept').fetchone() == (301,)
        assert db.execute('PRAGMA integrity_check').fetchone() == ('ok',)


KILLED = """
import os, signal, sqlite3, sys

def rows():
    for k in range(20_000):
        yield f'{k:032x}', bytes(800), bytes(8)
    os.kill(os.getpid(), signal.SIGKILL)

db = sqlite3.connect(sys.argv[1])
db.execute('PRAGMA cache_size = 10')  # pages, so that the file is written before the end
db.executemany('INSERT OR REPLACE INTO kept VALUES (?, ?, ?)', rows())
"""


def test_killed_while_it_writes(tmp_path, capsys, expected):
    "What was there is there, and nothing of the write that was cut off."
    kept(tmp_path, IMAGES)
    path = the_file(tmp_path)
    size = path.stat().st_size
    killed = in_a_process(KILLED, path)
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL and path.stat().st_size > 10 * size
    table, measured = kept(tmp_path, IMAGES)
    assert measured == 0 and not capsys.readouterr().out
    assert_same(table, expected)
    assert path.stat().st_size == size


def test_where_the_cache_lies(tmp_path, monkeypatch):
    monkeypatch.setenv('RADGEN_HOME', str(tmp_path))
    monkeypatch.delenv('RADGEN_CACHE', raising=False)
    assert cache_dir() == tmp_path / 'runs' / 'cache'
    monkeypatch.setenv('RADGEN_CACHE', 'off')
    assert cache_dir() is None
    monkeypatch.setenv('RADGEN_CACHE', str(tmp_path / 'elsewhere'))
    assert cache_dir() == tmp_path / 'elsewhere'
