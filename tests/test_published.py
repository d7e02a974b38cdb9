"The released data: facts of the loader, a complete ledger, fetching, and bad input."

import csv
import http.server
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections import Counter
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from radgen.core.paths import RadgenError, data_dir, sha256
from radgen.data.published import load_published
from radgen.data.release import BASE_URL, REGISTRY, fetch, missing_files, published_available
from radgen.data.release_features import BTF, GENES, KIND_OF
from radgen.data.release_images import MEMBERS


def one_line(error, *parts):
    "The message is one line and says all the parts."
    text = str(error.value)
    assert '\n' not in text
    for part in parts:
        assert part in text, f'{part!r} not in {text!r}'


# --- facts ------------------------------------------------------------------------------


def test_images(published, published_folder):
    assert published.images.shape == (58, 128, 128) and published.images.dtype == np.float32
    assert published.images.min() >= 0 and published.images.max() <= 1
    with zipfile.ZipFile(published_folder / 'SidePNG128.zip') as z:
        for image, name in zip(published.images, MEMBERS):
            np.testing.assert_array_equal(
                np.asarray(Image.open(io.BytesIO(z.read(name))).convert('L')), np.rint(image * 255)
            )


def test_series(published):
    s = published.series
    assert list(s.index) == [f'{i:03d}' for i in range(58)] and s.index.name == 'series_id'
    assert (
        list(s.columns) == ['patient_id', 'kind', 'site', 'series_uid'] and s.series_uid.is_unique
    )
    assert s.patient_id.nunique() == len(published.imaged) == 28
    counts = s.patient_id.value_counts()
    several = {
        'A12E': 7,
        'A03M': 6,
        'A12G': 6,
        'A0JI': 5,
        'A0JM': 5,
        'A24S': 3,
        'A1AN': 2,
        'A1AQ': 2,
        'A1AX': 2,
        'A24X': 2,
    }
    assert counts[counts > 1].rename(lambda p: p[-4:]).to_dict() == several
    assert s.site.value_counts().to_dict() == {'AO': 29, 'E2': 18, 'AR': 11}
    assert s.kind.value_counts().to_dict() == {
        'pre-contrast': 17,
        'subtraction': 16,
        'unstated': 10,
        'phase': 9,
        'post-contrast': 5,
        'localizer': 1,
    }
    assert set(s.kind[s.site == 'AR']) == {'subtraction'} and s.kind['057'] == 'localizer'


def test_kinds_are_those_of_the_imaging_commons(published):
    path = data_dir('imaging') / 'projections_provenance.csv'
    if not path.exists():
        pytest.skip(f'{path.name} is not at hand')
    table = pd.read_csv(path, dtype=str, keep_default_na=False).set_index('image')
    words = {
        'SAG 3D (PRE-CONTRAST)': 'pre-contrast',
        '3-PLANE LOCALIZER': 'localizer',
        'Bind(...) phase split': 'phase',
        'T1 Sagittal post fat sat': 'post-contrast',
        'none': 'unstated',
    }
    kinds = table.category.map(lambda c: 'subtraction' if c.startswith('subtraction') else words[c])
    assert kinds.to_dict() == KIND_OF == published.series.kind.to_dict()
    assert (table.series_uid == published.series.series_uid).all() and (
        table.patient_id == published.series.patient_id
    ).all()


def test_conditions(published):
    z, x = published.conditions['multiomic'], published.conditions['expression']
    assert (
        z.shape == (61, 17)
        and list(z.columns) == BTF
        and x.shape == (1091, 15)
        and list(x.columns) == GENES
    )
    assert (z.idxmax(axis=1) == 'BTF16').all() and z.BTF16.between(55.6, 58.8).all()
    assert (z.idxmin(axis=1) == 'BTF17').all() and z.BTF17.between(-9.8, -5.0).all()
    assert x.to_numpy().min() == 0 and 3194 < x.to_numpy().max() < 3196  # linear, as given
    pd.testing.assert_frame_equal(published.omics['expression'], x)
    assert (
        len(published.unpaired('expression')) == 1063 and len(published.unpaired('multiomic')) == 33
    )


def test_values_are_those_of_the_files(published, published_folder):
    raw = pd.read_csv(published_folder / 'TCGABRCA_15gxp.csv', index_col=0)
    for written in (
        'TCGA.A7.A0DB',
        'TCGA.3C.AAAU',
    ):  # the first of three replicates, and a patient without any
        np.testing.assert_allclose(
            published.conditions['expression'].loc[written.replace('.', '-')], raw[written][GENES]
        )
    btf = pd.read_csv(published_folder / 'BTF_features.csv', header=None, index_col=0)
    one = btf[btf.index.str.startswith('TCGA-AO-A03M')].iloc[0]
    np.testing.assert_allclose(published.conditions['multiomic'].loc['TCGA-AO-A03M'], one)


def test_labels(published):
    y = published.labels
    assert y[['er', 'pr', 'her2', 'subgroup']].count().to_dict() == {
        'er': 708,
        'pr': 708,
        'her2': 466,
        'subgroup': 123,
    }
    assert y[['her2', 'subgroup']].sum().to_dict() == {'her2': 86, 'subgroup': 63}
    genes = y.columns.difference(['er', 'pr', 'her2', 'subgroup', 'Altered'])
    assert len(genes) == 29 and (y[genes].count() == 1069).all()
    assert y[['TP53', 'PIK3CA', 'CDH1', 'GATA3']].sum().to_dict() == {
        'TP53': 370,
        'PIK3CA': 392,
        'CDH1': 169,
        'GATA3': 159,
    }
    imaged = y.loc[published.imaged]
    assert [(imaged[k] == v).sum() for k in ('er', 'her2', 'subgroup') for v in (1, 0)] == [
        23,
        5,
        3,
        13,
        3,
        0,
    ]


def test_survival(published):
    s = published.survival
    assert (
        len(s) == 1083
        and s.event.sum() == 151
        and (s.time_days > 0).all()
        and 'TCGA-E9-A245' not in s.index
    )
    assert s.time_days['TCGA-3C-AAAU'] == pytest.approx(3988.5 / 30 * 30.4375)
    assert s.event.reindex(published.imaged).sum() == 0
    known = published.labels.subgroup.dropna().index.intersection(s.index)
    assert len(known) == 119 and s.event[known].sum() == 16


def test_cohort(published):
    assert published.name == 'published' and not published.simulated and published.truth is None
    assert len(published.patients) == 1101 and published.patients.n_series.sum() == 58
    assert (published.patients.site == published.patients.index.str[5:7]).all()


def test_transductive_features_are_declared(published):
    lines = published.ledger[
        (published.ledger.source == 'BTF_features.csv')
        & published.ledger.item.str.startswith('column')
    ]
    assert lines.reason.str.contains('transductive').sum() == 17
    assert 'transductive' in load_published.__doc__ and 'receptor status' in load_published.__doc__


def test_loading_is_quick(published_folder):
    start = time.perf_counter()
    load_published()
    assert time.perf_counter() - start < 2


# --- the ledger -------------------------------------------------------------------------

HEADERLESS = {'BTF_features.csv', 'TCGABRCA_HER2+ER+_subtypes.csv'}


def items_of(path):
    "Every row and column of one released file, as the ledger names them."
    if path.suffix == '.zip':
        return zipfile.ZipFile(path).namelist()
    rows = list(csv.reader(open(path, newline='')))
    names = (
        [f'column {i + 1}' for i in range(len(rows[0]))] if path.name in HEADERLESS else rows.pop(0)
    )
    ids = [f'{int(r[0]):03d}' if path.name == 'SideViewBTF.csv' else r[0] for r in rows]
    return [names[0] or '(row names)', *names[1:], *ids]


@pytest.mark.parametrize('name', REGISTRY)
def test_ledger_accounts_for_every_row_and_column_once(published, published_folder, name):
    lines = published.ledger[published.ledger.source == name]
    assert Counter(lines.item) == Counter(items_of(published_folder / name))
    assert not lines.item.duplicated().any() and (lines.reason.str.len() > 0).all()


def test_ledger_reasons(published):
    ledger = published.ledger
    assert (
        set(ledger.source) == {*REGISTRY, 'cohort', 'commit e4a5892'}
        and not ledger.duplicated(['source', 'item']).any()
    )
    count = lambda source, word, decision: len(
        ledger.query('source == @source and decision == @decision and reason.str.contains(@word)')
    )
    assert (
        count('TCGABRCA_15gxp.csv', 'replicate', 'dropped')
        == count('allGeneExprs.csv', 'replicate', 'dropped')
        == 11
    )
    assert count('allGeneExprs.csv', 'METABRIC', 'dropped') == 1904
    assert count('CliniUnOpHer2.csv', 'her2 is', 'changed') == 708 - 466
    assert count('TCGABRCA_survival.csv', 'not usable', 'dropped') == 18
    assert ledger[
        (ledger.source == 'TCGA_BRCA_survival.csv') & (ledger.decision == 'dropped')
    ].item.tolist() == ['TCGA.E9.A245']
    assert ledger[(ledger.source == 'cohort')].item.isin(published.patients.index).sum() == 1101
    gaps = ledger[ledger.source == 'cohort'].set_index('item').reason
    assert (
        'no event among imaged' in gaps['survival']
        and 'only class 1 among imaged' in gaps['subgroup']
    )


# --- fetching ---------------------------------------------------------------------------


class Server:
    "A web server of one folder that can be told to misbehave."

    def __init__(self, folder):
        self.asked, self.how, outer = [], {}, self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def do_GET(self):
                name = unquote(self.path.rpartition('/')[2])
                outer.asked.append(self.path)
                how = outer.how.get(name) or outer.how.get('*')
                if how in (404, 500):
                    return self.send_error(how)
                body = (folder / name).read_bytes()
                if how == 'altered':
                    body = body[:-1] + b'?'
                self.send_response(200)
                if how != 'cut, length unknown':
                    self.send_header('Content-Length', str(len(body)))
                self.end_headers()
                if how in ('cut', 'cut, length unknown', 'stall'):
                    body = body[: len(body) // 2]
                self.wfile.write(body)
                self.wfile.flush()
                if how == 'stall':
                    outer.stalled.set(), outer.release.wait(20)

        self.stalled, self.release = threading.Event(), threading.Event()
        self.http = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self.url = f'http://127.0.0.1:{self.http.server_port}/data/'
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def close(self):
        self.release.set()
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def upstream(tmp_path, monkeypatch):
    "A small release of two files, its registry, and a server of it."
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    folder = tmp_path / 'upstream'
    folder.mkdir()
    (folder / 'all_genes.csv').write_bytes(b'ID,Altered,TP53\n' + b'TCGA.3C.AALI,1,1\n' * 5000)
    (folder / 'HER2+ER+_subtypes.csv').write_bytes(b'TCGA.3C.AALI,Subgroup1\n')
    server = Server(folder)
    server.registry = {p.name: sha256(p) for p in sorted(folder.iterdir())}
    yield server
    server.close()


def names(folder):
    return sorted(p.name for p in folder.iterdir()) if folder.exists() else []


def test_base_url_is_pinned():
    assert re.fullmatch(
        r'https://raw\.githubusercontent\.com/Kylelhc/BC_RadiogenomicCPDM/[0-9a-f]{40}/data/',
        BASE_URL,
    )
    assert len(REGISTRY) == 11


def test_fetch_all(upstream, tmp_path):
    folder = fetch(
        upstream.url, tmp_path / 'a' / 'cache', progress=False, registry=upstream.registry
    )
    assert names(folder) == sorted(upstream.registry) and not missing_files(
        folder, upstream.registry
    )
    assert '/data/HER2%2BER%2B_subtypes.csv' in upstream.asked
    assert all(p.stat().st_mode & 0o044 for p in folder.iterdir())  # a shared cache is readable


def test_fetch_the_real_release(published_folder, tmp_path, monkeypatch):
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    server = Server(published_folder)
    try:
        assert not missing_files(fetch(server.url, tmp_path, progress=False))
    finally:
        server.close()
    assert len(server.asked) == len(REGISTRY) and published_available(tmp_path)


def test_only_what_is_missing_is_fetched(upstream, tmp_path):
    folder = fetch(upstream.url, tmp_path / 'cache', progress=False, registry=upstream.registry)
    (folder / 'all_genes.csv').unlink()
    upstream.asked.clear()
    fetch(upstream.url, folder, progress=False, registry=upstream.registry)
    assert upstream.asked == ['/data/all_genes.csv']


def test_complete_cache_is_never_written_to(upstream, tmp_path):
    folder = fetch(upstream.url, tmp_path / 'cache', progress=False, registry=upstream.registry)
    upstream.asked.clear()
    folder.chmod(0o555)
    look = lambda: [
        (p, p.stat().st_mtime_ns, p.stat().st_ctime_ns) for p in [folder, *sorted(folder.iterdir())]
    ]
    before = look()
    try:
        assert fetch(upstream.url, folder, progress=False, registry=upstream.registry) == folder
    finally:
        after = look()
        folder.chmod(0o755)
    assert before == after and not upstream.asked


def test_the_default_cache_is_not_written_to(published_folder):
    look = lambda: [
        (p, p.stat().st_mtime_ns) for p in [published_folder, *sorted(published_folder.iterdir())]
    ]
    before = look()
    load_published(base_url='http://127.0.0.1:9/')  # nothing to fetch: the address is never asked
    assert look() == before


@pytest.mark.parametrize(
    'spoil',
    [lambda b: b[:100], lambda b: b + b'\n', lambda b: b''],
    ids=['truncated', 'altered', 'empty'],
)
def test_spoilt_cache_is_refused_and_left(upstream, tmp_path, spoil):
    folder = fetch(upstream.url, tmp_path / 'cache', progress=False, registry=upstream.registry)
    path = folder / 'all_genes.csv'
    path.write_bytes(spoil(path.read_bytes()))
    content, expected = path.read_bytes(), upstream.registry['all_genes.csv']
    upstream.asked.clear()
    with pytest.raises(RadgenError) as e:
        fetch(upstream.url, folder, progress=False, registry=upstream.registry)
    one_line(e, str(path), expected, sha256(path), 'delete it', 'radgen fetch published')
    assert path.read_bytes() == content and not upstream.asked


@pytest.mark.parametrize(
    'how, says',
    [
        ('cut', 'broke off'),
        ('cut, length unknown', 'other content'),
        ('altered', 'other content'),
        (404, '404'),
        (500, '500'),
    ],
)
def test_bad_download_leaves_nothing_and_can_be_repeated(upstream, tmp_path, how, says):
    upstream.how['all_genes.csv'] = how
    folder = tmp_path / 'cache'
    with pytest.raises(RadgenError) as e:
        fetch(upstream.url, folder, progress=False, registry=upstream.registry)
    one_line(e, 'all_genes.csv', says)
    assert names(folder) == ['HER2+ER+_subtypes.csv']  # the good one stays, nothing half written
    upstream.how.clear()
    fetch(upstream.url, folder, progress=False, registry=upstream.registry)
    assert not missing_files(folder, upstream.registry)


def test_no_network_and_no_cache(tmp_path, monkeypatch):
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    monkeypatch.setenv('RADGEN_DATA', str(tmp_path))
    with pytest.raises(RadgenError) as e:
        load_published(base_url='http://127.0.0.1:9/', progress=False)
    one_line(
        e,
        next(iter(REGISTRY)),
        'cannot be reached',
        str(tmp_path / 'published'),
        'radgen fetch published',
    )
    assert not published_available()


def test_unusable_address(tmp_path):
    with pytest.raises(RadgenError) as e:
        fetch('gopher://somewhere/', tmp_path, progress=False)
    one_line(e, 'no usable address')


def test_cache_that_cannot_be_written(upstream, tmp_path):
    (tmp_path / 'file').write_text('in the way')
    with pytest.raises(RadgenError) as e:
        fetch(upstream.url, tmp_path / 'file', progress=False, registry=upstream.registry)
    one_line(e, 'RADGEN_DATA')


def test_read_only_folder(upstream, tmp_path):
    (tmp_path / 'cache').mkdir(mode=0o555)
    if os.access(tmp_path / 'cache', os.W_OK):
        pytest.skip('this user may write to read-only folders')
    with pytest.raises(RadgenError) as e:
        fetch(upstream.url, tmp_path / 'cache', progress=False, registry=upstream.registry)
    one_line(e, 'cannot be written', 'RADGEN_DATA')


def child(code, **popen):
    "Another Python process that runs these lines."
    env = dict(os.environ, PYTHONPATH=str(Path(__file__).resolve().parents[1]))
    return subprocess.Popen(
        [sys.executable, '-c', code],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **popen,
    )


def test_full_disk(upstream, tmp_path):
    pytest.importorskip('resource')  # a limit on the size of a file stands in for a full disk
    args = upstream.url, str(tmp_path / 'cache'), False, upstream.registry
    code = [
        'import resource',
        'resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))',
        'from radgen.core.paths import RadgenError',
        'from radgen.data.release import fetch',
        f'try: fetch(*{args!r})',
        'except RadgenError as e: print(e)',
    ]
    out, err = child('\n'.join(code)).communicate(timeout=60)
    assert (
        'all_genes.csv: cannot be written' in out
        and 'free some space' in out
        and out.count('\n') == 1
    ), err
    assert names(tmp_path / 'cache') == ['HER2+ER+_subtypes.csv']


def test_interrupted_download(upstream, tmp_path):
    upstream.how['all_genes.csv'] = 'stall'
    args = upstream.url, str(tmp_path / 'cache'), False, upstream.registry
    process = child(f'from radgen.data.release import fetch\nfetch(*{args!r})')
    try:
        assert upstream.stalled.wait(30)
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode != 0 and names(tmp_path / 'cache') == ['HER2+ER+_subtypes.csv']
    upstream.how.clear()
    fetch(upstream.url, tmp_path / 'cache', progress=False, registry=upstream.registry)


# --- bad input --------------------------------------------------------------------------


class Release:
    "A copy of the release to be spoilt; `load` admits its present content by its own checksums."

    def __init__(self, source, folder):
        self.folder = folder
        folder.mkdir()
        for name in REGISTRY:
            shutil.copyfile(source / name, folder / name)

    def __getitem__(self, name):
        return self.folder / name

    def load(self):
        return load_published(
            self.folder, {p.name: sha256(p) for p in self.folder.iterdir()}, progress=False
        )

    def edit(self, name, old, new, count=1):
        text = self[name].read_text(encoding='utf-8')
        assert old in text
        self[name].write_text(text.replace(old, new, count), encoding='utf-8')

    def lines(self, name, change):
        self[name].write_text('\n'.join(change(self[name].read_text().splitlines())) + '\n')

    def cell(self, name, row, column, value, header=0):
        "Set one cell, addressed by what is written in the file."
        rows = list(csv.reader(open(self[name], newline='')))
        c = rows[0].index(column) if header == 0 else column
        next(r for r in rows if r[0] == row)[c] = value
        with open(self[name], 'w', newline='') as f:
            csv.writer(f).writerows(rows)

    def images(self, change=lambda name, data: data, extra=()):
        "Write the archive again, members changed, further ones added."
        with zipfile.ZipFile(self['SidePNG128.zip']) as z:
            members = [(n, z.read(n)) for n in z.namelist()]
        with zipfile.ZipFile(self['SidePNG128.zip'], 'w', zipfile.ZIP_DEFLATED) as z:
            for name, data in members:
                if (new := change(name, data)) is not None:
                    z.writestr(name, new)
            for info, data in extra:
                z.writestr(info, data)


@pytest.fixture
def release(published_folder, tmp_path):
    return Release(published_folder, tmp_path / 'published')


def test_a_changed_file_needs_its_own_registry(release):
    release.edit('CliniUnOpHer2.csv', 'Equivocal', 'Indeterminate')
    with pytest.raises(RadgenError) as e:
        load_published(release.folder, progress=False)
    one_line(e, 'CliniUnOpHer2.csv', 'altered or truncated')
    assert release.load().labels.her2.count() == 466


def png(array, mode='RGB', **kwargs):
    buffer = io.BytesIO()
    Image.fromarray(array).convert(mode).save(buffer, 'PNG', **kwargs)
    return buffer.getvalue()


def rgb16():
    "A 16-bit RGB image with three equal channels, which Pillow would silently cut to 8 bits."
    import struct
    import zlib

    line = b'\0' + np.repeat(np.arange(128, dtype='>u2') * 256, 3).tobytes()
    chunk = lambda kind, data: (
        struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
    )
    return (
        b'\x89PNG\r\n\x1a\n'
        + chunk(b'IHDR', struct.pack('>IIBBBBB', 128, 128, 16, 2, 0, 0, 0))
        + chunk(b'IDAT', zlib.compress(line * 128))
        + chunk(b'IEND', b'')
    )


GREY = np.tile(np.arange(128, dtype='uint8'), (128, 1))
COLOUR = np.dstack([GREY, GREY, GREY.T])
only = lambda data: lambda name, old: data if name.endswith('/007.png') else old


@pytest.mark.parametrize(
    'data, says',
    [
        (png(np.zeros((64, 64), 'uint8')), '64 x 64'),
        (png(np.zeros((128, 127), 'uint8')), '127 x 128'),
        (png(GREY, 'L'), 'mode L'),
        (png(GREY, 'RGBA'), 'mode RGBA'),
        (png(GREY, 'P'), 'mode P'),
        (rgb16(), '16 bits'),
        (png(COLOUR), 'channels differ'),
        (b'GIF89a nothing', 'not a readable PNG'),
        (b'', 'not a readable PNG'),
        (png(GREY)[:150], 'not a readable PNG'),
    ],
    ids='small narrow grey alpha palette 16-bit colour gif empty cut'.split(),
)
def test_bad_image(release, data, says):
    release.images(only(data))
    with pytest.raises(RadgenError) as e:
        release.load()
    one_line(e, 'SidePNG128.zip', 'SidePNG128/007.png', says)


def link():
    info = zipfile.ZipInfo('SidePNG128/link.png')
    info.external_attr, info.create_system = 0o120777 << 16, 3
    return info


@pytest.mark.parametrize(
    'name, says',
    [
        ('/etc/passwd', 'absolute'),
        ('SidePNG128/../../x.png', '`..`'),
        ('..\\x.png', '`..`'),
        ('C:\\x.png', 'absolute'),
        (link(), 'symbolic link'),
        ('SidePNG128/058.png', 'not part of the release'),
        ('x.txt', 'not part of the release'),
    ],
    ids='absolute dots backslash-dots drive link number name'.split(),
)
def test_bad_zip_member(release, name, says):
    before = names(release.folder.parent)
    release.images(extra=[(name, b'x')])
    with pytest.raises(RadgenError) as e:
        release.load()
    one_line(e, 'SidePNG128.zip', repr(getattr(name, 'filename', name)), says)
    assert names(release.folder.parent) == before and names(release.folder) == sorted(REGISTRY)


@pytest.mark.filterwarnings('ignore:Duplicate name')
def test_zip_member_twice(release):
    release.images(extra=[(MEMBERS[3], b'x')])
    with pytest.raises(RadgenError) as e:
        release.load()
    one_line(e, MEMBERS[3], 'twice')


def test_zip_member_missing(release):
    release.images(only(None))
    with pytest.raises(RadgenError) as e:
        release.load()
    one_line(e, 'SidePNG128/007.png', 'missing')


def test_zip_bomb(release):
    release.images(only(bytes(50_000_000)))
    with pytest.raises(RadgenError) as e:
        release.load()
    one_line(e, 'SidePNG128/007.png', 'would unpack to 50000000 bytes')


def test_zip_encrypted(release):
    data = bytearray(release['SidePNG128.zip'].read_bytes())
    data[data.index(b'PK\x01\x02') + 8] |= 1  # flag of the first member in the central directory
    release['SidePNG128.zip'].write_bytes(data)
    with pytest.raises(RadgenError) as e:
        release.load()
    one_line(e, 'SidePNG128.zip', 'encrypted')


@pytest.mark.parametrize(
    'spoil',
    [
        lambda b: b[: len(b) // 2],
        lambda b: b'no archive',
        lambda b: b[:3000] + bytes(2000) + b[5000:],
    ],
    ids='cut other damaged'.split(),
)
def test_zip_unreadable(release, spoil):
    release['SidePNG128.zip'].write_bytes(spoil(release['SidePNG128.zip'].read_bytes()))
    with pytest.raises(RadgenError) as e:
        release.load()
    one_line(e, 'SidePNG128.zip', 'delete it')


TABLES = [name for name in REGISTRY if name.endswith('.csv')]


@pytest.mark.parametrize('name', REGISTRY)
def test_missing_file(release, name, monkeypatch):
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    release[name].unlink()
    with pytest.raises(RadgenError) as e:
        load_published(release.folder, base_url='http://127.0.0.1:9/', progress=False)
    one_line(e, name, 'cannot be reached')
    with pytest.raises(RadgenError) as e:
        release.load()
    one_line(e, name, 'no such file', 'radgen fetch published')


@pytest.mark.parametrize('name', TABLES)
@pytest.mark.parametrize(
    'spoil, says',
    [
        (lambda b: b'', 'no rows'),
        (lambda b: b'\xff\xfe\x80' + b, 'not a CSV text file'),
        (lambda b: b.rstrip()[: b.rstrip().rindex(b',')], 'values instead of'),
    ],
    ids='empty binary cut'.split(),
)
def test_unreadable_table(release, name, spoil, says):
    release[name].write_bytes(spoil(release[name].read_bytes()))
    with pytest.raises(RadgenError) as e:
        release.load()
    one_line(e, name, says)


ROWWISE = [n for n in TABLES if n != 'TCGABRCA_15gxp.csv']  # patients in rows


@pytest.mark.parametrize('name', ROWWISE)
def test_row_twice(release, name):
    release.lines(name, lambda rows: [*rows, rows[5]])
    with pytest.raises(RadgenError) as e:
        release.load()
    one_line(e, name, 'given twice')


@pytest.mark.parametrize(
    'name', [n for n in ROWWISE if n not in ('BTF_features.csv', 'SideViewBTF.csv')]
)
def test_patient_twice_in_two_spellings(release, name):
    release.lines(name, lambda rows: [*rows, rows[5].replace('.', '-', 2)])
    with pytest.raises(RadgenError) as e:
        release.load()
    one_line(e, name, 'patient TCGA-', 'given twice')


@pytest.mark.parametrize('new', ['TCGA.3C.AALI', 'TCGA-3C-AALI'])
def test_patient_twice_among_columns(release, new):
    release.edit('TCGABRCA_15gxp.csv', '"TCGA.3C.AALJ"', f'"{new}"')
    with pytest.raises(RadgenError) as e:
        release.load()
    one_line(e, 'TCGABRCA_15gxp.csv', 'given twice')


@pytest.mark.parametrize(
    'name',
    [
        'CliniUnOpHer2.csv',
        'onpClinical.csv',
        'all_genes.csv',
        'TCGABRCA_survival.csv',
        'TCGA_BRCA_survival.csv',
        'allGeneExprs.csv',
        'TCGABRCA_15gxp.csv',
        'TCGABRCA_HER2+ER+_subtypes.csv',
    ],
)
@pytest.mark.parametrize('new', ['TCGA.3C', 'GTEX.3C.AALI', ''])
def test_malformed_barcode(release, name, new):
    release.edit(name, 'TCGA.3C.AALI', new)
    with pytest.raises(RadgenError) as e:
        release.load()
    one_line(e, name, repr(new), 'barcode')


@pytest.mark.parametrize('name', ['BTF_features.csv', 'SideViewBTF.csv'])
@pytest.mark.parametrize(
    'new, says',
    [
        ('TCGA-AO_1.3', 'barcode'),
        ('TCGA-AO-A03M', 'not PATIENT_SERIESUID'),
        ('TCGA-AO-A03M_x', 'not PATIENT_SERIESUID'),
    ],
)
def test_malformed_series(release, name, new, says):
    text = release[name].read_text()
    release.edit(name, re.search(r'TCGA-AO-A03M_[\d.]+', text)[0], new)
    with pytest.raises(RadgenError) as e:
        release.load()
    one_line(e, name, says)


@pytest.mark.parametrize(
    'value, says',
    [
        ('high', 'not a finite number'),
        ('inf', 'not a finite number'),
        ('NaN', 'not a finite number'),
        ('', 'not a finite number'),
        ('1e999', 'not a finite number'),
        ('-0.5', 'below 0'),
    ],
)
@pytest.mark.parametrize(
    'name, row, column',
    [('TCGABRCA_15gxp.csv', 'CD6', 'TCGA.3C.AALI'), ('allGeneExprs.csv', 'TCGA.3C.AALI', 'CD6')],
)
def test_bad_expression(release, name, row, column, value, says):
    release.cell(name, row, column, value)
    with pytest.raises(RadgenError) as e:
        release.load()
    one_line(e, name, 'TCGA.3C.AALI', 'CD6', repr(value), says)


CELLS = [
    ('CliniUnOpHer2.csv', 'TCGA.3C.AALI', 'her2', 'positive'),
    ('CliniUnOpHer2.csv', 'TCGA.3C.AALI', 'her2', '3+'),
    ('CliniUnOpHer2.csv', 'TCGA.3C.AALI', 'er', '2'),
    ('CliniUnOpHer2.csv', 'TCGA.3C.AALI', 'pr', 'yes'),
    ('onpClinical.csv', 'TCGA.3C.AALI', 'her2', 'Positive'),
    ('all_genes.csv', 'TCGA.3C.AALI', 'TP53', '0.5'),
    ('all_genes.csv', 'TCGA.3C.AALI', 'Altered', '-1'),
    ('TCGABRCA_HER2+ER+_subtypes.csv', 'TCGA.3C.AALI', 1, 'Subgroup3'),
    ('TCGABRCA_HER2+ER+_subtypes.csv', 'TCGA.3C.AALI', 1, ''),
    ('TCGABRCA_survival.csv', 'TCGA.3C.AALI', 'OS_STATUS', 'dead'),
    ('TCGABRCA_survival.csv', 'TCGA.3C.AALI', 'OS_MONTHS', 'long'),
    ('TCGABRCA_survival.csv', 'TCGA.3C.AALI', 'OS_MONTHS', 'inf'),
    ('TCGA_BRCA_survival.csv', 'TCGA.3C.AALI', 'time', '1 year'),
    ('TCGA_BRCA_survival.csv', 'TCGA.3C.AALI', 'status', '2'),
]


@pytest.mark.parametrize(
    'name, row, column, value', CELLS, ids=[f'{n}-{c}-{v}' for n, _, c, v in CELLS]
)
def test_bad_cell(release, name, row, column, value):
    release.cell(name, row, column, value, header=0 if isinstance(column, str) else None)
    with pytest.raises(RadgenError) as e:
        release.load()
    one_line(e, name, repr(row), repr(value), column if isinstance(column, str) else 'column 2')


def first_btf(release):
    return next(csv.reader(open(release['BTF_features.csv'], newline='')))


@pytest.mark.parametrize(
    'value, says',
    [
        ('x', 'not a finite number'),
        ('inf', 'not a finite number'),
        ('0.5', 'BTF3 of patient TCGA-AO-A03M differs'),
    ],
)
def test_bad_btf(release, value, says):
    row = first_btf(release)
    release.cell('BTF_features.csv', row[0], 3, value, header=None)
    with pytest.raises(RadgenError) as e:
        release.load()
    one_line(e, 'BTF_features.csv', says)


@pytest.mark.parametrize(
    'name, old, new, says',
    [
        ('CliniUnOpHer2.csv', 'her2', 'HER-2', "'HER-2' is not expected"),
        ('TCGABRCA_survival.csv', 'OS_MONTHS', 'OS_DAYS', "column 'OS_DAYS'"),
        ('all_genes.csv', 'Altered', 'altered', "'Altered' is missing"),
        ('all_genes.csv', 'TP53', 'RB1', "column 'RB1' is given twice"),
        ('TCGABRCA_15gxp.csv', '"CD6"', '"ESR1"', "gene 'CD6' is missing"),
        ('allGeneExprs.csv', 'CD6', 'ESR1', "column 'CD6' is missing"),
        ('SideViewBTF.csv', '\n57,', '\n58,', "'58' is no image number"),
        ('SideViewBTF.csv', '\n7,', '\nseven,', "'seven' is no image number"),
    ],
)
def test_bad_header_or_name(release, name, old, new, says):
    release.edit(name, old, new)
    with pytest.raises(RadgenError) as e:
        release.load()
    one_line(e, name, says)


def test_image_without_series(release):
    release.lines('SideViewBTF.csv', lambda rows: rows[:-1])
    with pytest.raises(RadgenError) as e:
        release.load()
    one_line(e, 'SideViewBTF.csv', 'image 057 has no row')


def test_one_series_for_two_images(release):
    uid = re.findall(r'TCGA-AO-A03M_[\d.]+', release['SideViewBTF.csv'].read_text())
    release.edit('SideViewBTF.csv', uid[0], uid[1])
    with pytest.raises(RadgenError) as e:
        release.load()
    one_line(e, 'SideViewBTF.csv', 'given twice')


def test_contradicting_receptors(release):
    release.cell('onpClinical.csv', 'TCGA.3C.AALI', 'her2', '0')
    with pytest.raises(RadgenError) as e:
        release.load()
    one_line(e, 'onpClinical.csv', 'her2 of TCGA-3C-AALI')


def test_contradicting_expression(release):
    release.cell('allGeneExprs.csv', 'TCGA.3C.AALI', 'CD6', '7')
    with pytest.raises(RadgenError) as e:
        release.load()
    one_line(e, 'allGeneExprs.csv', 'CD6 of TCGA-3C-AALI is 7')


# --- what is merely absent is no error --------------------------------------------------


def without(text):
    return lambda rows: [r for r in rows if text not in r]


def line(cohort, source, item):
    found = cohort.ledger[(cohort.ledger.source == source) & (cohort.ledger.item == item)]
    assert len(found) == 1
    return tuple(found.iloc[0][['decision', 'reason']])


def test_imaged_patient_without_features(release):
    release.lines('BTF_features.csv', without('TCGA-AO-A03M'))
    c = release.load()
    assert len(c.images) == 58 and len(c.paired('multiomic')) == 27
    assert 'multiomic condition' in line(c, 'cohort', 'TCGA-AO-A03M')[1]


def test_patient_absent_from_tables(release):
    for name in 'CliniUnOpHer2.csv', 'all_genes.csv', 'TCGABRCA_survival.csv':
        release.lines(name, without('TCGA.AO.A03M'))
    c = release.load()
    assert (
        c.labels.loc['TCGA-AO-A03M', ['er', 'TP53']].isna().all()
        and 'TCGA-AO-A03M' not in c.survival.index
    )
    assert line(c, 'TCGA_BRCA_survival.csv', 'TCGA.AO.A03M')[0] == 'dropped'
    assert all(
        word in line(c, 'cohort', 'TCGA-AO-A03M')[1]
        for word in ('er', 'mutation status', 'survival')
    )


def test_patient_absent_from_expression(release):
    table = pd.read_csv(release['TCGABRCA_15gxp.csv'], index_col=0).drop(columns='TCGA.AO.A03M')
    table.to_csv(release['TCGABRCA_15gxp.csv'])
    c = release.load()
    assert len(c.conditions['expression']) == 1090 and len(c.paired('expression')) == 27
    assert line(c, 'allGeneExprs.csv', 'TCGA.AO.A03M') == (
        'dropped',
        'patient is not in TCGABRCA_15gxp.csv',
    )


def test_empty_label(release):
    release.cell('CliniUnOpHer2.csv', 'TCGA.3C.AALI', 'er', '')
    c = release.load()
    assert np.isnan(c.labels.er['TCGA-3C-AALI']) and c.labels.er.count() == 707
    assert line(c, 'CliniUnOpHer2.csv', 'TCGA.3C.AALI') == ('changed', "er is '', no label")


@pytest.mark.parametrize('column, value', [('time', '4000'), ('status', '1')])
def test_survival_files_disagree(release, column, value):
    release.cell('TCGA_BRCA_survival.csv', 'TCGA.3C.AALI', column, value)
    c = release.load()
    decision, reason = line(c, 'TCGA_BRCA_survival.csv', 'TCGA.3C.AALI')
    assert decision == 'dropped' and 'disagrees' in reason
    assert (
        c.survival.time_days['TCGA-3C-AALI'] == pytest.approx(3947.1 / 30 * 30.4375)
        and c.survival.event['TCGA-3C-AALI'] == 0
    )


def test_one_class_only(release):
    release.edit('all_genes.csv', ',1', ',0', count=-1)
    c = release.load()
    assert c.labels.TP53.sum() == 0 and 'only class 0' in line(c, 'cohort', 'TP53')[1]


def test_no_event_at_all(release):
    release.lines('TCGABRCA_survival.csv', lambda rows: [r.replace(',1,', ',0,') for r in rows])
    c = release.load()
    assert c.survival.event.sum() == 0 and 'no event' in line(c, 'cohort', 'survival')[1]
