"The authors' generated images: fetched by blob id, read, refused, and audited by notebook 4a."

import functools
import http.server
import io
import json
import os
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from radgen.core.paths import RadgenError, data_dir
from radgen.data.blobs import BLOBS, git_blob_id
from radgen.data.cohort import Ledger
from radgen.data.generated import (
    FETCH_IMAGES,
    GENERATED_FILES,
    fetch_generated,
    load_generated,
    read_generated,
    read_nrrd,
)

ROOT = Path(__file__).resolve().parent.parent


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def pack(path, entries):
    "An archive of the layout of the released code."
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as z:
        for name, array in entries.items():
            z.writestr(name, array if isinstance(array, bytes) else npy(array))
    return path


def drawn(seed, low=0.0, high=1.0, size=128):
    rng = np.random.default_rng(seed)
    image = np.kron(rng.random((8, 8)), np.ones((size // 8, size // 8)))
    return (low + (high - low) * image)[None].astype('float32')


@pytest.fixture
def upstream(tmp_path):
    "A local server in place of the repository, and the folder that it serves."

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    folder = tmp_path / 'upstream'
    folder.mkdir()
    handler = functools.partial(Quiet, directory=folder)
    os.environ['NO_PROXY'] = os.environ.get('NO_PROXY', '') + ',127.0.0.1'
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}/', folder
        server.shutdown()


def test_fetched_by_blob_id(upstream, tmp_path):
    "All four files; with other content at one of them, that file is not there."
    url, folder = upstream
    for path in GENERATED_FILES.values():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(path.encode())
    blobs = {path: git_blob_id(folder / path) for path in GENERATED_FILES.values()}
    here = fetch_generated(url, tmp_path / 'here', progress=False, blobs=blobs)
    assert sorted(p.name for p in here.iterdir()) == sorted(GENERATED_FILES)
    before = {p: p.stat().st_mtime_ns for p in here.iterdir()}
    fetch_generated(url, here, progress=False, blobs=blobs)
    assert {p: p.stat().st_mtime_ns for p in here.iterdir()} == before
    (folder / 'results/generatedImg_1.zip').write_bytes(b'other content')
    with pytest.raises(RadgenError) as e:
        fetch_generated(url, tmp_path / 'new', progress=False, blobs=blobs)
    text = str(e.value)
    assert 'generatedImg_1.zip' in text and 'git blob' in text and '\n' not in text
    assert [p.name for p in (tmp_path / 'new').iterdir()] == ['innerResLoss2.zip']


@pytest.mark.parametrize(
    'entries, message',
    [
        ({'TCGA.3C.AAAU/000.npy': drawn(0, size=64)}, 'TCGA.3C.AAAU/000.npy: float32 of shape'),
        ({'TCGA.3C.AAAU/000.npy': drawn(0) * np.nan}, 'no finite numbers'),
        ({'TCGA.3C.AAAU/000.npy': drawn(0, 0, 255)}, 'expected about [0, 1]'),
        ({'TCGA.3C.AAAU/000.npy': np.array([{}], dtype=object)}, 'not a readable array'),
        ({'TCGA.3C.AAAU/000.npy': drawn(0), 'TCGA-3C-AAAU/000.npy': drawn(1)}, 'given twice'),
        ({'../TCGA.3C.AAAU/000.npy': drawn(0)}, 'leaves its folder'),
        ({'MB.0362/000.npy': drawn(0)}, 'no archive of generated images'),
    ],
)
def test_bad_archives(tmp_path, entries, message):
    "One line that names the archive, and the entry where there is one."
    path = pack(tmp_path / 'generatedImg_1.zip', entries)
    with pytest.raises(RadgenError) as e:
        read_generated(path, Ledger())
    assert message in str(e.value) and 'generatedImg_1.zip' in str(e.value)
    assert '\n' not in str(e.value)


def test_every_entry_is_accounted_for(tmp_path):
    entries = {
        'out/TCGA.3C.AAAU/000.npy': drawn(0),
        'out/TCGA.3C.AAAU/001.npy': drawn(1),
        'out/TCGA.A7.A0DB.1/000.npy': drawn(2),
        'out/TCGA.A7.A0DB/000.npy': drawn(3, low=-0.1),
        'out/MB.0362/000.npy': drawn(4),
        'out/notes.txt': b'text',
    }
    ledger = Ledger()
    images = read_generated(pack(tmp_path / 'generatedImg_1.zip', entries), ledger)
    frame = ledger.frame().set_index('item')
    assert sorted(frame.index) == sorted(entries)
    assert list(images.patients) == ['TCGA-3C-AAAU', 'TCGA-A7-A0DB']
    np.testing.assert_array_equal(images.images[0], drawn(0)[0])
    np.testing.assert_array_equal(images.images[1], np.clip(drawn(3, low=-0.1)[0], 0, 1))
    assert frame.decision.to_dict() == dict(
        zip(entries, ['kept', 'dropped', 'dropped', 'changed', 'dropped', 'dropped'])
    )
    clipped = int((drawn(3, low=-0.1) < 0).sum())
    assert clipped and f'{clipped} of 16384 values' in frame.reason['out/TCGA.A7.A0DB/000.npy']


def test_blobs_are_those_of_the_files_at_hand(published_folder):
    for file in published_folder.iterdir():
        if f'data/{file.name}' in BLOBS:
            assert git_blob_id(file) == BLOBS[f'data/{file.name}']


def test_the_two_single_images(published):
    "PAPER: nearest to released image 030, r 0.91, root mean squared difference 0.082."
    from radgen.audit.released import audit_released, nearest_released

    folder = data_dir('published_pictures')
    names = ['TCGA.3C.AAAU.nrrd', 'temp.nrrd']
    if not all((folder / name).exists() for name in names):
        pytest.skip(f'the single images are not at hand: run `{FETCH_IMAGES}`')
    for name in names:
        assert git_blob_id(folder / name) == BLOBS[GENERATED_FILES[name]]
    images = np.stack([read_nrrd(folder / name) for name in names])
    table = nearest_released(images, published.images)
    assert table.nearest[0] == 30 and round(table.distance[0], 3) == 0.082
    assert round(table.r[0], 2) == 0.91
    who = published.series.patient_id
    audit = audit_released(images[:1], ['TCGA-3C-AAAU'], published.images, who)
    assert abs(audit.close - 0.088) < 0.003


def execute(home, parameters, data):
    "Notebook 4a at smoke size; its rows."
    out = home / 'executed.ipynb'
    env = os.environ | {'RADGEN_HOME': str(home), 'RADGEN_DATA': str(data), 'RADGEN_CACHE': 'off'}
    env |= {'PYTHONPATH': str(ROOT)}
    command = [sys.executable, '-m', 'radgen.run.cli', 'notebook']
    command += ['nbs/paper/04a_released_images.ipynb', str(out)]
    command += ['--parameters', json.dumps(parameters)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    return pd.read_csv(home / 'runs/phantom/smoke/rows/04a_released_images.csv')


def test_notebook_without_archives(tmp_path):
    rows = execute(tmp_path, {}, tmp_path / 'data')
    mine = rows[rows.model == 'released']
    assert set(mine.verdict) == {f'unavailable: {FETCH_IMAGES}'}
    assert {'copy_ratio', 'kid', 'ms_ssim', 'label_entry', 'auroc', 'concordance'} <= set(
        mine.metric
    )
    power = rows[rows.metric == 'label_entry_power']
    assert len(power) == 2 and (power.verdict == 'ok').all()


def test_notebook_on_an_archive(tmp_path):
    "Copies of projections for patients of the phantom: the notebook names them copies."
    from radgen.load import load_cohort

    cohort = load_cohort('phantom', n_patients=200, n_imaged=16, n_genes=60)
    patients = cohort.patients.index[:80]
    dotted = [p.replace('-', '.') for p in patients] + ['TCGA.ZZ.9999']
    images = cohort.images[np.arange(81) % len(cohort.images)]
    entries = {f'g/{p}/000.npy': x[None] for p, x in zip(dotted, images)}
    data = tmp_path / 'images'
    data.mkdir()
    archives = {'generatedImg_1.zip': git_blob_id(pack(data / 'generatedImg_1.zip', entries))}
    (data / 'innerResLoss2.zip').write_bytes(b'damaged')
    archives['innerResLoss2.zip'] = '0' * 40
    rows = execute(tmp_path, dict(folder=str(data), archives=archives), tmp_path / 'data')
    refused = rows[rows.verdict.str.contains('innerResLoss2.zip: altered')]
    assert len(refused) and (refused.condition == 'multiomic').all()
    mine = rows[(rows.model == 'released') & (rows.condition == 'expression')]
    value = mine[mine.verdict == 'ok'].drop_duplicates('metric').set_index('metric').value
    assert value.copy_share == 1 and value.copy_ratio < 1e-6 and value.nearest_r > 0.999
    assert {'label_entry', 'label_entry_p', 'kid', 'ms_ssim', 'auroc', 'mse'} <= set(mine.metric)
    ledger = pd.read_csv(tmp_path / 'runs/phantom/smoke/released/ledger.csv')
    lacking = ledger[ledger.item == 'TCGA-ZZ-9999']
    assert lacking.reason.tolist() == ['patient without a condition in the cohort']
    assert np.load(tmp_path / 'runs/phantom/smoke/released/generatedImg_1/images.npy').shape == (
        81,
        128,
        128,
    )


def test_too_few_patients(tmp_path):
    from radgen.audit.label_entry import audit_label_entry
    from radgen.core.results import Rows

    genes = pd.DataFrame(2.0 ** np.random.default_rng(0).normal(5, 1, (12, 4)))
    rows = Rows(role='model', model='released')
    y = [1.0, 0.0] * 6
    audit_label_entry(np.zeros((12, 8, 8)), genes, y, label='er').rows(rows)
    verdict = rows.frame().verdict.tolist()
    assert verdict == ['not estimable: 6 patients in the smaller class of 12, 10 needed']


def test_missing_archives_are_reasons(tmp_path):
    assert set(load_generated(tmp_path).values()) == {FETCH_IMAGES}
