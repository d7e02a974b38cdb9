"The imaging commons: facts of the index, the two rules, a download from a local bucket."

import hashlib
import http.client
import http.server
import shutil
import threading
import time
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlparse

import numpy as np
import pandas as pd
import pytest
import requests
import urllib3

from radgen.core.paths import RadgenError, data_dir
from radgen.core.results import Rows
from radgen.data import commons_download
from radgen.data.choice import choose_series, released_series, site_shares
from radgen.data.cohort import Ledger
from radgen.data.commons import (
    breast_collections,
    download_size,
    find_series,
    mr_series,
    query_index,
)
from radgen.data.commons_download import check_space, download_series, list_files
from radgen.data.descriptions import series_kind, series_plane


def one_line(error, *parts):
    "The message is one line and says all the parts."
    text = str(error.value)
    assert '\n' not in text
    for part in parts:
        assert part in text, f'{part!r} not in {text!r}'


# --- the index ------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def series():
    return mr_series()


def test_collection_counts(series):
    assert download_size(series) == dict(
        patients=137, series=1858, files=int(series.n_files.sum()), gigabytes=87.74
    )
    assert (
        series.series_uid.is_unique
        and set(series.collection) == {'tcga_brca'}
        and set(series.licence) == {'CC BY 3.0'}
    )
    assert (
        series.patient_id.str.fullmatch(r'TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}').all()
        and (series.bytes % 2 == 0).all()
    )
    assert (
        series.prefix.str.fullmatch('[0-9a-f-]{36}').all()
        and series.bucket.eq('idc-open-data').all()
    )


def test_query_is_that_of_the_package():
    from idc_index import IDCClient

    columns = 'SeriesInstanceUID AS uid, crdc_series_uuid AS prefix, aws_bucket AS bucket'
    where = "collection_id = 'rider_breast_mri' AND Modality = 'MR'"
    theirs = IDCClient.client().sql_query(f'SELECT {columns} FROM index WHERE {where}')
    mine = mr_series('rider_breast_mri').set_index('series_uid')
    assert (
        set(theirs.uid) == set(mine.index)
        and (mine.loc[theirs.uid, 'prefix'].to_numpy() == theirs.prefix).all()
        and (mine.loc[theirs.uid, 'bucket'].to_numpy() == theirs.bucket).all()
    )


def test_index_agrees_with_the_table_at_hand(series):
    path = data_dir('imaging') / 'tcga_brca_mr_series.csv'
    if not path.exists():
        pytest.skip(f'a second source to compare with: put imaging/{path.name} below RADGEN_DATA')
    table = (
        pd.read_csv(path, dtype={'SeriesDescription': str})
        .set_index('SeriesInstanceUID')
        .loc[series.series_uid]
    )
    assert (
        len(table) == len(series)
        and (table.PatientID.to_numpy() == series.patient_id).all()
        and (table.instanceCount.to_numpy() == series.n_files).all()
    )
    np.testing.assert_allclose(table.series_size_MB, series.bytes / 1e6, rtol=1e-9)
    assert (table.SeriesDescription.fillna('').to_numpy() == series.description.fillna('')).all()


def test_released_series_are_in_the_index(published, series):
    ledger = Ledger()
    chosen, steps = choose_series(series, 'released', released=released_series(), ledger=ledger)
    assert (
        len(chosen) == 58
        and list(chosen.index) == list(published.series.index)
        and (chosen.series_uid == published.series.series_uid).all()
    )
    assert (chosen.kind == published.series.kind).all() and (
        chosen.site == published.series.site
    ).all()  # kinds from descriptions are those of the release
    assert download_size(chosen)['gigabytes'] == 0.67 and chosen.patient_id.nunique() == 28
    assert steps.n_series.tolist() == [1858, 331, 58] and steps.n_patients.tolist() == [137, 28, 28]
    lines = ledger.frame()
    assert (
        sorted(lines.item) == sorted(series.series_uid) and (lines.decision == 'kept').sum() == 58
    )


def test_released_series_agree_with_the_provenance_at_hand(published, series):
    path = data_dir('imaging') / 'projections_provenance.csv'
    if not path.exists():
        pytest.skip(f'a second source to compare with: put imaging/{path.name} below RADGEN_DATA')
    table, mine = pd.read_csv(path, dtype=str), series.set_index('series_uid')
    mine = mine.loc[table.series_uid]
    for theirs, name in dict(
        crdc_series_uuid='prefix',
        aws_bucket='bucket',
        license='licence',
        source_DOI='doi',
        study_uid='study_uid',
        model='scanner',
    ).items():
        assert (table[theirs].to_numpy() == mine[name]).all(), name
    assert (table.instance_count.astype(int).to_numpy() == mine.n_files).all()


def test_release_mixes_kinds_by_site_and_the_rule_does_not(published, series):
    released, rule = (
        choose_series(series, 'released', released=released_series())[0],
        choose_series(series, 'one_phase')[0],
    )
    kinds = released.groupby('site').kind.agg(set)
    assert kinds['AR'] == {'subtraction'} and 'subtraction' not in kinds['E2']
    assert rule.kind.nunique() == 1 and rule.site.nunique() > 3


def test_withdrawn_release_is_a_ledger_line(series):
    known = series.series_uid[series.kind == 'subtraction'].iloc[0]
    patient = series.set_index('series_uid').patient_id[known]
    released, ledger = (
        pd.DataFrame(dict(patient_id=patient, series_uid=[known, '1.2.3']), index=['000', '001']),
        Ledger(),
    )
    chosen, _ = choose_series(series, 'released', released=released, ledger=ledger)
    assert list(chosen.index) == ['000']
    lines = ledger.frame().set_index('item')
    assert lines.decision['1.2.3'] == 'dropped' and 'withdrawn' in lines.reason['1.2.3']


def test_find_series_says_when_one_was_last_seen(series):
    old = query_index(
        """SELECT SeriesInstanceUID AS uid FROM prior WHERE Modality = 'MR'
           AND SeriesInstanceUID NOT IN (SELECT SeriesInstanceUID FROM index) LIMIT 1"""
    ).uid
    assert len(old), 'the index remembers series of earlier versions'
    ledger = Ledger()
    listed = find_series([series.series_uid[0], old[0], '1.2.3'], ledger)
    assert list(listed.series_uid) == [series.series_uid[0]]
    reasons = ledger.frame().set_index('item').reason
    assert 'last seen in v' in reasons[old[0]] and 'in no version' in reasons['1.2.3']


def test_examinations_are_counted_before_the_choice(series):
    later = (
        series[series.study > 1]
        .sort_values(['patient_id', 'study', 'number', 'series_uid'])
        .reset_index(drop=True)
    )
    assert len(later) and later.study.max() > 2
    pd.testing.assert_frame_equal(find_series(later.series_uid), later)


def test_released_of_another_collection_is_not_withdrawn(series):
    mine, ledger = series.series_uid[series.kind == 'subtraction'].iloc[0], Ledger()
    other = mr_series('rider_breast_mri').series_uid[0]
    released = pd.DataFrame(
        dict(
            patient_id=series.set_index('series_uid').patient_id[mine],
            series_uid=[mine, other, '1.2.3'],
        ),
        index=['000', '001', '002'],
    )
    assert list(choose_series(series, 'released', released=released, ledger=ledger)[0].index) == [
        '000'
    ]
    reasons = ledger.frame().query('item in @released.series_uid').set_index('item').reason
    assert (
        'of collection rider_breast_mri' in reasons[other]
        and 'withdrawn' not in reasons[other]
        and 'withdrawn' in reasons['1.2.3']
        and reasons.index.is_unique
    )


def test_one_phase_steps_add_up(series):
    for kind in 'pre-contrast', 'post-contrast':
        ledger = Ledger()
        chosen, steps = choose_series(series, 'one_phase', kind=kind, per_patient=2, ledger=ledger)
        assert (steps.n_series.diff().fillna(0) == -steps.dropped).all() and steps.n_series.iloc[
            -1
        ] == len(chosen) == len(set(chosen.index))
        assert (
            chosen.groupby('patient_id').size().max() <= 2
            and (chosen.groupby('patient_id').study.nunique() == 1).all()
            and chosen.n_files.min() >= 20
        )
        assert sorted(ledger.frame().item) == sorted(series.series_uid)


def test_rules_do_not_depend_on_the_order_of_rows(series):
    a, b = (
        choose_series(s, 'one_phase')[0].series_uid.sort_index()
        for s in (series, series.sample(frac=1, random_state=0))
    )
    pd.testing.assert_series_equal(a, b)


def test_more_planes_admit_more_patients(series):
    n = [
        choose_series(series, 'one_phase', planes=p)[0].patient_id.nunique()
        for p in (('sagittal',), ('sagittal', 'unstated'), ('sagittal', 'unstated', 'axial'))
    ]
    assert n == sorted(n) and n[0] < n[-1] <= 137


@pytest.mark.parametrize(
    'text, kind',
    [
        ('2 MIN GAD SUB LT BREAST', 'subtraction'),
        ('AX_dynVIEWS 2min gad_SUB_MIP_TRA', 'derived'),
        ('CAD~ REG CAD~ Sub 2', 'subtraction'),
        ('fl3d_dynamic_1-pre_5-post', 'phase'),
        ('Ax Vibrant MULTIPHASE', 'phase'),
        ('SAG 3D (POST-CONTRAST) 1/8', 'post-contrast'),
        ('brava  (1 Min.)', 'post-contrast'),
        ('ASSET CALIBRATION', 'other'),
        ('ax ep2d_diff_ORTHOGONALXYZ_ADC', 'other'),
        ('LT SAG FSE T1', 'other'),
        ('T1 Sagittal not fat sat', 'other'),
        ('ax sag cor loc', 'localizer'),
        ('  ', 'unstated'),
    ],
)
def test_kinds(text, kind):
    assert series_kind(text) == kind


def test_planes():
    assert [
        series_plane(t)
        for t in ('ax sag cor loc', 'fl3d_tra_dynamic_pre', 'RIGHTsag fse t1', 'passage', None)
    ] == ['mixed', 'axial', 'sagittal', 'unstated', 'unstated']


def test_breast_collections():
    table = breast_collections()
    assert {
        'duke_breast_cancer_mri',
        'ispy1',
        'ispy2',
        'acrin_contralateral_breast_mr',
        'tcga_brca',
    } <= set(table.index) and 'qin_sarcoma' not in table.index
    assert (
        table.loc['duke_breast_cancer_mri', ['noncommercial', 'licence']].tolist()
        == [True, 'CC BY-NC 4.0']
        and table.noncommercial.sum() == 1
    )
    assert (
        table.citation.str.startswith('https://doi.org/10.').all()
        and table.n_patients['tcga_brca'] == 137
    )


def test_unknown_names(series):
    with pytest.raises(RadgenError) as e:
        mr_series('duke_breast_cancer')
    one_line(e, "did you mean 'duke_breast_cancer_mri'")
    with pytest.raises(RadgenError) as e:
        mr_series('cbis_ddsm')
    one_line(e, 'has no MR series')
    with pytest.raises(RadgenError) as e:
        choose_series(series, 'one_phase', kind='post')
    one_line(e, "no series of kind 'post'")
    with pytest.raises(RadgenError) as e:
        choose_series(series, 'one_phase', planes=('saggital',))
    one_line(e, "unknown plane 'saggital'")
    with pytest.raises(RadgenError) as e:
        choose_series(series, 'one_phase', kind='localizer')
    one_line(e, 'leaves no series')


def test_shares_of_hospitals(series):
    "One type for everybody gives no hospital away; whether a patient is chosen at all still does."
    kinds = 'post-contrast', 'pre-contrast'
    choices = {f'one_phase, {k}': choose_series(series, 'one_phase', kind=k)[0] for k in kinds}
    rows = Rows(source_notebook='01a_series')
    shares = site_shares(rows, series, choices)
    assert (shares['kind of one hospital'] == 0).all()
    hospitals = shares.drop(columns='kind of one hospital')
    assert (hospitals.nunique(axis=1) > 1).all()
    table = rows.frame()
    assert len(table) == shares.size and (table.verdict == 'ok').all()
    assert (table.value.to_numpy().reshape(shares.shape) == shares.to_numpy()).all()
    n_patients = table[table.label.str.startswith('one_phase, post-contrast, site ')].n
    assert n_patients.sum() == series.patient_id.nunique()


def test_hospitals_that_are_not_known(series):
    rows, other = Rows(), mr_series('rider_breast_mri')
    assert site_shares(rows, other, {'all': other.assign(site='unknown')}).empty
    row = rows.frame().iloc[0]
    assert row.metric == 'one_hospital_share' and row.verdict.startswith('not estimable')


# --- a bucket -------------------------------------------------------------------------------------


def write_instance(path, series_uid, instance_uid, n=64):
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID = (
        '1.2.840.10008.5.1.4.1.1.4',
        instance_uid,
        ExplicitVRLittleEndian,
    )
    d = FileDataset(str(path), {}, file_meta=meta, preamble=b'\0' * 128)
    d.SOPClassUID, d.SOPInstanceUID, d.SeriesInstanceUID, d.Modality, d.ImageComments = (
        meta.MediaStorageSOPClassUID,
        instance_uid,
        series_uid,
        'MR',
        'x' * n,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    d.save_as(path)


LISTING = (
    '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
    '<IsTruncated>{more}</IsTruncated>{token}{items}</ListBucketResult>'
)
ITEM = '<Contents><Key>{}</Key><Size>{}</Size><ETag>&quot;{}&quot;</ETag></Contents>'


class Bucket:
    "A stand-in for a public bucket: ListObjectsV2 in pages, and GET; it can break and refuse."

    def __init__(self, root, page=1000):
        self.root, self.page = Path(root), page
        self.requests = []  # prefixes and keys
        self.refuse = {}  # prefix -> status of the answer
        self.spoil = {}  # key -> function of its bytes
        self.busy = {}  # key -> how many times it answers 503
        self.short = set()  # keys within which the connection breaks

    def start(self):
        bucket = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def do_GET(self):
                url = urlparse(self.path)
                query = {k: v[0] for k, v in parse_qs(url.query).items()}
                key = unquote(url.path).lstrip('/')
                bucket.requests.append(query.get('prefix', key))
                status, body = bucket.answer(query, key)
                self.send_response(status)
                self.send_header('Content-Length', str(len(body)))
                self.end_headers()
                self.wfile.write(body[: len(body) // 2] if key in bucket.short else body)

        self.server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f'http://127.0.0.1:{self.server.server_port}'
        return self

    def answer(self, query, key):
        "Status and body."
        if self.busy.get(key, 0):
            self.busy[key] -= 1
            return 503, b''
        if 'prefix' in query:
            return self.list(query['prefix'], int(query.get('continuation-token', 0)))
        path = self.root / key
        if not path.is_file():
            return 404, b''
        data = path.read_bytes()
        return 200, self.spoil[key](data) if key in self.spoil else data

    def list(self, prefix, start):
        "One page of a listing."
        if prefix in self.refuse:
            return self.refuse[prefix], b'<Error/>'
        folder, end = self.root / prefix, start + self.page
        files = sorted(folder.glob('*')) if folder.is_dir() else []
        facts = [(f'{prefix}{f.name}', f.read_bytes()) for f in files[start:end]]
        items = [ITEM.format(key, len(b), hashlib.md5(b).hexdigest()) for key, b in facts]
        more = end < len(files)
        token = f'<NextContinuationToken>{end}</NextContinuationToken>' if more else ''
        page = LISTING.format(more=str(more).lower(), token=token, items=''.join(items))
        return 200, page.encode()


@pytest.fixture
def bucket(tmp_path):
    b = Bucket(tmp_path / 'bucket', page=3).start()
    yield b
    b.server.shutdown()
    b.server.server_close()


@pytest.fixture
def tiny(bucket):
    "Three series of four files, as `mr_series` would list them."
    rows = []
    for i in range(3):
        for k in range(4):
            write_instance(bucket.root / f'prefix{i}' / f'{k}.dcm', f'1.2.{i}', f'1.2.{i}.{k}')
        size = sum(f.stat().st_size for f in (bucket.root / f'prefix{i}').iterdir())
        rows.append(
            dict(
                patient_id=f'TCGA-AO-000{i}',
                series_uid=f'1.2.{i}',
                n_files=4,
                bytes=size,
                licence='CC BY 3.0',
                doi='10.0/x',
                bucket='b',
                prefix=f'prefix{i}',
            )
        )
    return pd.DataFrame(rows, index=pd.Index(['000', '001', '002'], name='series_id'))


def test_download_lists_in_pages_and_records_sources(bucket, tiny, tmp_path):
    assert len(list_files(bucket.url, 'prefix0')) == 4 and bucket.requests == [
        'prefix0/',
        'prefix0/',
    ]
    sources = download_series(tiny, tmp_path / 'dicom', bucket.url + '/', progress=False)
    assert (
        list(sources.index) == list(tiny.index)
        and set(sources.licence) == {'CC BY 3.0'}
        and set(sources.citation) == {'https://doi.org/10.0/x'}
    )
    for r in tiny.itertuples():
        here, there = (
            sorted((tmp_path / 'dicom' / r.patient_id / r.series_uid).iterdir()),
            sorted((bucket.root / r.prefix).iterdir()),
        )
        assert [f.read_bytes() for f in here] == [f.read_bytes() for f in there]
    written = pd.read_csv(tmp_path / 'dicom_sources.csv', dtype={'series_id': str}).set_index(
        'series_id'
    )
    assert list(written.index) == list(tiny.index) and {
        'url',
        'index_version',
        'licence',
        'citation',
    } <= set(written)
    assert not list((tmp_path / 'dicom').rglob('*.part*'))


def test_a_complete_download_needs_no_network(bucket, tiny, tmp_path):
    download_series(tiny, tmp_path / 'dicom', bucket.url, progress=False)
    before = {f: f.stat().st_mtime_ns for f in (tmp_path / 'dicom').rglob('*')}
    assert len(download_series(tiny, tmp_path / 'dicom', 'http://127.0.0.1:9', progress=False)) == 3
    assert {f: f.stat().st_mtime_ns for f in (tmp_path / 'dicom').rglob('*')} == before


def test_the_table_of_sources_grows(bucket, tiny, tmp_path):
    read, where = (
        lambda: pd.read_csv(tmp_path / 'dicom_sources.csv', dtype=str),
        tmp_path / 'dicom_sources.csv',
    )
    download_series(tiny[:2], tmp_path / 'dicom', bucket.url, progress=False)
    download_series(tiny[2:], tmp_path / 'dicom', bucket.url, progress=False)
    assert list(read().series_uid) == ['1.2.0', '1.2.1', '1.2.2'] and list(read().series_id) == [
        '000',
        '001',
        '002',
    ]
    before = where.stat().st_mtime_ns
    download_series(tiny[1:], tmp_path / 'dicom', bucket.url, progress=False)
    assert where.stat().st_mtime_ns == before  # nothing differs: not written
    download_series(
        tiny[:1].assign(licence='CC0'), tmp_path / 'dicom', 'http://127.0.0.1:9', progress=False
    )
    assert list(read().licence) == [
        'CC0',
        'CC BY 3.0',
        'CC BY 3.0',
    ]  # nothing fetched, yet it differs
    where.write_text('mine\n1\n')
    with pytest.raises(RadgenError) as e:
        download_series(tiny, tmp_path / 'dicom', bucket.url, progress=False)
    one_line(e, 'dicom_sources.csv', 'delete it and run again')


def test_a_connection_that_breaks_is_no_full_disk(bucket, tiny, tmp_path):
    bucket.short.add('prefix1/2.dcm')
    with pytest.raises(RadgenError) as e:
        download_series(tiny, tmp_path / 'dicom', bucket.url, workers=1, progress=False)
    one_line(e, 'series 1.2.1', 'cannot be used', 'connect to the network and run again to resume')
    assert (
        'free some space' not in str(e.value)
        and not list((tmp_path / 'dicom').rglob('2.dcm.*'))
        and not list((tmp_path / 'dicom').rglob('.2.dcm*'))
    )
    bucket.short.clear()
    bucket.requests.clear()
    download_series(tiny, tmp_path / 'dicom', bucket.url, progress=False)
    assert (
        'prefix1/0.dcm' not in bucket.requests and 'prefix1/2.dcm' in bucket.requests
    )  # what arrived was kept


@pytest.mark.parametrize(
    'error',
    [
        http.client.IncompleteRead(b''),
        urllib3.exceptions.ProtocolError('x'),
        requests.exceptions.ChunkedEncodingError('x'),
    ],
)
def test_whatever_breaks_the_connection(bucket, tiny, tmp_path, monkeypatch, error):
    def broken():
        yield b'a'
        raise error

    monkeypatch.setattr(
        requests.Response,
        'iter_content',
        lambda self, size=1, **k: (
            broken() if self.url.endswith('.dcm') else iter([self.raw.read()])
        ),
    )
    with pytest.raises(RadgenError) as e:
        download_series(tiny, tmp_path / 'dicom', bucket.url, workers=1, progress=False)
    one_line(e, type(error).__name__, 'run again to resume')


def test_a_scan_passes_over_an_unfinished_series(bucket, tiny, tmp_path):
    from radgen.data.dicom_files import scan_folder

    bucket.spoil['prefix1/2.dcm'] = lambda data: data[:-2]
    with pytest.raises(RadgenError):
        download_series(tiny, tmp_path / 'dicom', bucket.url, workers=1, progress=False)
    assert list((tmp_path / 'dicom' / 'TCGA-AO-0001').rglob('*.dcm')), 'some of it came'
    assert set(scan_folder(tmp_path / 'dicom').uid) == {'1.2.0', '1.2.2'}


def test_resume_fetches_only_what_is_missing(bucket, tiny, tmp_path):
    bucket.spoil['prefix1/2.dcm'] = lambda data: data[:-2]
    with pytest.raises(RadgenError) as e:
        download_series(tiny, tmp_path / 'dicom', bucket.url, workers=1, progress=False)
    one_line(e, '1 of 3 series did not arrive whole', '1.2.1', 'run again')
    assert (tmp_path / 'dicom' / 'TCGA-AO-0002' / '1.2.2').is_dir() and not (
        tmp_path / 'dicom' / 'TCGA-AO-0001' / '1.2.1'
    ).exists()  # the others are complete
    bucket.spoil.clear()
    bucket.requests.clear()
    download_series(tiny, tmp_path / 'dicom', bucket.url, progress=False)
    fetched = [a for a in bucket.requests if a.endswith('.dcm')]
    assert 'prefix1/2.dcm' in fetched and set(fetched) <= {'prefix1/2.dcm', 'prefix1/3.dcm'}


def test_a_file_that_broke_once_is_fetched_again(bucket, tiny, tmp_path):
    bad = [lambda data: data[::-1], lambda data: data]
    bucket.spoil['prefix0/1.dcm'] = lambda data: bad.pop(0)(data)
    download_series(tiny, tmp_path / 'dicom', bucket.url, progress=False)
    assert (
        not bad
        and (tmp_path / 'dicom' / 'TCGA-AO-0000' / '1.2.0' / '1.dcm').read_bytes()
        == (bucket.root / 'prefix0' / '1.dcm').read_bytes()
    )


def test_a_file_that_differs_each_time_is_damaged(bucket, tiny, tmp_path):
    n = iter(range(9))
    bucket.spoil['prefix0/1.dcm'] = lambda data: data[:-1] + bytes([next(n)])
    with pytest.raises(RadgenError) as e:
        download_series(tiny, tmp_path / 'dicom', bucket.url, progress=False)
    one_line(e, 'did not arrive whole', 'came twice with other content')


def test_a_changed_or_lost_file_is_replaced(bucket, tiny, tmp_path):
    download_series(tiny, tmp_path / 'dicom', bucket.url, progress=False)
    here = tmp_path / 'dicom' / 'TCGA-AO-0000' / '1.2.0'
    (here / '0.dcm').write_bytes(b'short')
    (here / '1.dcm').unlink()
    bucket.requests.clear()
    download_series(tiny, tmp_path / 'dicom', bucket.url, progress=False)
    assert sorted(a for a in bucket.requests if a.endswith('.dcm')) == [
        'prefix0/0.dcm',
        'prefix0/1.dcm',
    ]
    assert (here / '0.dcm').read_bytes() == (bucket.root / 'prefix0' / '0.dcm').read_bytes()


@pytest.mark.parametrize('how', ['nothing there', 403, 404])
def test_withdrawn_series_goes_to_the_ledger(bucket, tiny, tmp_path, how):
    if how == 'nothing there':
        shutil.rmtree(bucket.root / 'prefix1')
    else:
        bucket.refuse['prefix1/'] = how
    ledger = Ledger()
    sources = download_series(tiny, tmp_path / 'dicom', bucket.url, ledger=ledger, progress=False)
    assert list(sources.series_uid) == ['1.2.0', '1.2.2']
    line = ledger.frame().iloc[0]
    assert (line['item'], line.decision) == ('1.2.1', 'dropped') and 'withdrawn' in line.reason


def test_a_wrong_address_is_no_withdrawal(bucket, tiny, tmp_path):
    with pytest.raises(RadgenError) as e:
        download_series(
            tiny.assign(prefix='elsewhere'), tmp_path / 'dicom', bucket.url, progress=False
        )
    one_line(e, 'none of 3 series', 'update idc-index')


def test_no_network_is_one_line_and_quick(tiny, tmp_path):
    start = time.monotonic()
    with pytest.raises(RadgenError) as e:
        download_series(tiny, tmp_path / 'dicom', 'http://127.0.0.1:9', progress=False)
    one_line(e, 'cannot be used', 'connect to the network and run again to resume')
    assert time.monotonic() - start < 10


def test_a_busy_server_is_tried_again(bucket, tiny, tmp_path):
    bucket.busy['prefix0/0.dcm'] = 2
    assert (
        len(download_series(tiny, tmp_path / 'dicom', bucket.url, progress=False)) == 3
        and bucket.requests.count('prefix0/0.dcm') == 3
    )


def test_too_small_a_disk_is_refused_before(bucket, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(
        commons_download.shutil, 'disk_usage', lambda path: shutil._ntuple_diskusage(100, 90, 10)
    )
    with pytest.raises(RadgenError) as e:
        download_series(tiny, tmp_path / 'dicom', bucket.url, progress=False)
    one_line(e, 'needs 0.00 GB', 'are free at', 'choose another folder')
    assert not bucket.requests and not (tmp_path / 'dicom').exists()
    check_space(tmp_path, 10, 'exactly enough')


def test_space_needed_is_only_for_what_is_missing(bucket, tiny, tmp_path, monkeypatch):
    download_series(tiny[:2], tmp_path / 'dicom', bucket.url, progress=False)
    monkeypatch.setattr(
        commons_download.shutil,
        'disk_usage',
        lambda path: shutil._ntuple_diskusage(1, 1, int(tiny.bytes.iloc[2])),
    )
    assert len(download_series(tiny, tmp_path / 'dicom', bucket.url, progress=False)) == 3


@pytest.mark.parametrize(
    'spoil, message',
    [
        (
            lambda b: write_instance(b.root / 'prefix1' / '0.dcm', '9.9', '1.2.1.0'),
            'belongs to series 9.9',
        ),
        (
            lambda b: write_instance(b.root / 'prefix1' / '0.dcm', '1.2.1', '1.2.1.1'),
            'are the same instance',
        ),
        (
            lambda b: (b.root / 'prefix1' / '0.dcm').write_bytes(b'no DICOM'),
            'not readable as DICOM',
        ),
    ],
)
def test_wrong_content_is_found(bucket, tiny, tmp_path, spoil, message):
    spoil(bucket)
    tiny.loc['001', 'bytes'] = sum(f.stat().st_size for f in (bucket.root / 'prefix1').iterdir())
    with pytest.raises(RadgenError) as e:
        download_series(tiny, tmp_path / 'dicom', bucket.url, progress=False)
    one_line(e, 'did not arrive whole', message)
    assert not (tmp_path / 'dicom' / 'TCGA-AO-0001' / '1.2.1').exists()


def test_bucket_and_index_disagree(bucket, tiny, tmp_path):
    (bucket.root / 'prefix1' / '3.dcm').unlink()
    with pytest.raises(RadgenError) as e:
        download_series(tiny, tmp_path / 'dicom', bucket.url, progress=False)
    one_line(e, 'the bucket holds 3 files', 'the index says 4')


def test_a_file_name_cannot_leave_the_folder(bucket, tiny, tmp_path, monkeypatch):
    size = int(tiny.bytes.iloc[0])
    monkeypatch.setattr(
        commons_download,
        'list_files',
        lambda *a: [('prefix0/..', size, ''), *[(f'prefix0/{i}.dcm', 0, '') for i in range(3)]],
    )
    with pytest.raises(RadgenError) as e:
        download_series(tiny[:1], tmp_path / 'dicom', bucket.url, progress=False)
    one_line(e, 'no file name of an instance')
