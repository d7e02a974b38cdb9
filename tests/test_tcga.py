"TCGA-BRCA from its source, on a miniature of the hub and of the commons served from here."

import gzip
import http.server
import re
import shutil
import threading
import time
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest

from radgen.conditions.encoder import ConditionEncoder
from radgen.core.paths import RadgenError, sha256
from radgen.data import commons_download, tcga
from radgen.data.cohort import Ledger
from radgen.data.methylation import methylation_by_gene, probe_genes
from radgen.data.tcga import fetch_tcga, load_tcga, plan_tcga
from radgen.data.tcga_omics import check_patients, most_variable, tcga_conditions
from radgen.data.tcga_outcomes import (
    RECEPTORS,
    read_receptors,
    read_tcga_mutations,
    read_tcga_survival,
)
from radgen.data.xena import XENA, fetch_xena, xena_address


def one_line(error, *parts):
    "The message is one line and says all the parts."
    text = str(error.value)
    assert '\n' not in text
    for part in parts:
        assert part in text, f'{part!r} not in {text!r}'


# --- a miniature of the hub -------------------------------------------------------------

PATIENTS = [f'TCGA-{s}-{i:04d}' for i, s in enumerate(['AO', 'E2', 'AR', 'BH'] * 6)]
SAMPLES = [f'{p}-01' for p in PATIENTS] + [f'{PATIENTS[0]}-11', f'{PATIENTS[1]}-06']
GENES = [*'ESR1 GATA3 TP53 PIK3CA CD27 CYBA LTB CD6'.split(), *(f'GENE{i}' for i in range(40))]


def put(hub, name, text):
    path = hub / XENA.path[name]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == '.gz' else text.encode())
    return path


def matrix(values, rows, columns, corner='sample', form='%.4f'):
    return (
        pd.DataFrame(values, rows, columns)
        .rename_axis(corner)
        .to_csv(sep='\t', na_rep='NA', float_format=form)
    )


def build(hub, samples=SAMPLES):
    rng = np.random.default_rng(1)
    level = rng.normal(size=(len(GENES), len(samples))) * np.linspace(0.5, 2, len(GENES))[:, None]
    put(hub, 'expression', matrix(np.maximum(8 + level, 0), GENES, samples))
    put(hub, 'cnv', matrix(0.3 * level, GENES, samples, 'Gene Symbol'))
    put(
        hub,
        'cnv_calls',
        matrix(np.clip(np.rint(level), -2, 2).astype(int), GENES, samples, 'Gene Symbol'),
    )
    probes = [f'cg{i:08d}' for i in range(3 * len(GENES) + 4)]
    beta = 1 / (1 + np.exp(-rng.normal(size=(len(probes), 18))))
    beta[0, :5], beta[3] = np.nan, np.nan
    put(hub, 'methylation', matrix(beta, probes, samples[:18]))
    owner = [*np.repeat(GENES, 3), 'ESR1,GATA3', '.', 'NOWHERE,NOWHERE']
    put(
        hub,
        'probes',
        '#id\tgene\tchrom\tchromStart\tchromEnd\tstrand\n'
        + ''.join(
            f'{p}\t{g}\tchr1\t{i}\t{i + 1}\t.\n' for i, (p, g) in enumerate(zip(probes, owner))
        ),
    )
    status = np.resize(['Positive', 'Negative', 'Positive', 'Indeterminate', ''], (len(samples), 3))
    table = pd.DataFrame(status, samples, [pair[0] for pair in RECEPTORS.values()]).assign(
        **{pair[1]: 'Negative' for pair in RECEPTORS.values()}, gender='FEMALE'
    )
    table[RECEPTORS['her2'][1]] = 'Equivocal'
    put(hub, 'clinical', table.rename_axis('sampleID').to_csv(sep='\t'))
    out = pd.DataFrame(
        {
            '_PATIENT': [s[:12] for s in samples],
            'OS': np.resize([0, 1], len(samples)),
            'OS.time': np.arange(100, 100 + len(samples)),
            'Redaction': '',
        },
        pd.Index(samples, name='sample'),
    ).astype(object)
    out.iloc[2, 3], out.iloc[3, 2], out.iloc[4, 2], out.iloc[5, 1] = 'Redacted', 0, '', ''
    put(hub, 'survival', out.to_csv(sep='\t'))
    put(hub, 'mutations', matrix(rng.integers(0, 2, (len(GENES), 15)), GENES, samples[:15]))
    return hub


class Hub:
    "Serves files with ETag, Range and If-Range; it can break off."

    def __init__(self, root):
        self.root, self.asked, self.cut, self.gone = Path(root), [], None, set()

    def start(self):
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def do_HEAD(self):
                name = unquote(self.path).lstrip('/')
                self.send_response(404 if name in hub.gone else 200)
                self.send_header(
                    'Content-Length',
                    '243' if name in hub.gone else str((hub.root / name).stat().st_size),
                )
                self.end_headers()

            def do_GET(self):
                name = unquote(self.path).lstrip('/')
                path, wanted = hub.root / name, self.headers.get('Range')
                hub.asked.append((name, wanted))
                if not path.is_file() or name in hub.gone:
                    self.send_response(404)
                    self.send_header('Content-Length', '0')
                    self.end_headers()
                    return
                data, tag = path.read_bytes(), f'"{sha256(path)[:16]}"'
                start = (
                    int(re.match(r'bytes=(\d+)-', wanted)[1])
                    if wanted and self.headers.get('If-Range') == tag
                    else 0
                )
                self.send_response(206 if start else 200)
                self.send_header('ETag', tag)
                self.send_header('Content-Length', str(len(data) - start))
                self.end_headers()
                self.wfile.write(data[start:] if hub.cut is None else data[start : hub.cut])
                if hub.cut is not None:
                    self.close_connection = True

        self.server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f'http://127.0.0.1:{self.server.server_port}'
        return self


@pytest.fixture(scope='module')
def original(tmp_path_factory):
    return build(tmp_path_factory.mktemp('hub'))


@pytest.fixture
def hub(original, tmp_path):
    h = Hub(shutil.copytree(original, tmp_path / 'hub')).start()
    yield h
    h.server.shutdown()
    h.server.server_close()


def load(hub, tmp_path, **options):
    return load_tcga(
        **dict(images=False, n_genes=12, folder=tmp_path / 'tcga', xena_url=hub.url, progress=False)
        | options
    )


# --- fetching ---------------------------------------------------------------------------


def test_addresses_are_those_of_the_hub():
    assert xena_address('expression').endswith('/TCGA.BRCA.sampleMap%2FHiSeqV2.gz')
    assert XENA.path['survival'] == 'survival/BRCA_survival.txt'
    assert XENA.index.is_unique and XENA.path.map(lambda p: Path(p).name).is_unique


def test_a_file_is_fetched_once_and_recorded(hub, tmp_path):
    path = fetch_xena('expression', tmp_path / 'c', hub.url + '/', progress=False)
    assert path.read_bytes() == (hub.root / XENA.path['expression']).read_bytes()
    table = pd.read_csv(tmp_path / 'c' / 'checksums.csv').set_index('file')
    assert table.sha256[path.name] == sha256(path) and table.url[path.name].endswith(
        '/TCGA.BRCA.sampleMap%2FHiSeqV2.gz'
    )
    fetch_xena('expression', tmp_path / 'c', 'http://127.0.0.1:9', progress=False)
    assert len(hub.asked) == 1 and sorted(p.name for p in (tmp_path / 'c').iterdir()) == [
        'HiSeqV2.gz',
        'checksums.csv',
    ]


def test_a_changed_file_is_refused_and_left(hub, tmp_path):
    path = fetch_xena('survival', tmp_path, hub.url, progress=False)
    path.write_text('mine')
    with pytest.raises(RadgenError) as e:
        fetch_xena('survival', tmp_path, hub.url, progress=False)
    one_line(e, str(path), 'changed since it was fetched', 'delete it to fetch it again')
    assert path.read_text() == 'mine'


def test_the_hub_sends_something_else_later(hub, tmp_path):
    path = fetch_xena('survival', tmp_path, hub.url, progress=False)
    path.unlink()
    (hub.root / XENA.path['survival']).write_text('new')
    with pytest.raises(RadgenError) as e:
        fetch_xena('survival', tmp_path, hub.url, progress=False)
    one_line(e, 'sent other content', 'checksums.csv')
    assert not path.exists()


def test_a_file_put_there_by_hand_is_recorded(hub, tmp_path):
    shutil.copy(hub.root / XENA.path['survival'], tmp_path / 'BRCA_survival.txt')
    path = fetch_xena('survival', tmp_path, 'http://127.0.0.1:9', progress=False)
    assert pd.read_csv(tmp_path / 'checksums.csv').url[0] == 'put here by hand'
    path.write_text('changed')
    with pytest.raises(RadgenError):
        fetch_xena('survival', tmp_path, hub.url, progress=False)


def test_a_broken_download_is_resumed(hub, tmp_path):
    whole = (hub.root / XENA.path['expression']).read_bytes()
    hub.cut = len(whole) // 2
    with pytest.raises(RadgenError) as e:
        fetch_xena('expression', tmp_path, hub.url, progress=False)
    one_line(e, 'HiSeqV2.gz', 'broke off', 'run again to resume')
    assert not (tmp_path / 'HiSeqV2.gz').exists() and 0 < (
        tmp_path / 'HiSeqV2.gz.part'
    ).stat().st_size < len(whole)
    had, hub.cut = (tmp_path / 'HiSeqV2.gz.part').stat().st_size, None
    assert fetch_xena('expression', tmp_path, hub.url, progress=False).read_bytes() == whole
    assert (
        hub.asked[-1][1] == f'bytes={had}-'
        and sorted(p.name for p in tmp_path.glob('*part*')) == []
    )


def test_a_resumed_download_starts_over_when_the_file_changed(hub, tmp_path):
    source = hub.root / XENA.path['expression']
    hub.cut = 1000
    with pytest.raises(RadgenError):
        fetch_xena('expression', tmp_path, hub.url, progress=False)
    source.write_bytes(gzip.compress(b'another file' * 500))
    hub.cut = None
    assert (
        fetch_xena('expression', tmp_path, hub.url, progress=False).read_bytes()
        == source.read_bytes()
    )


def test_no_network_and_not_found(hub, tmp_path):
    start = time.monotonic()
    with pytest.raises(RadgenError) as e:
        fetch_xena('clinical', tmp_path, 'http://127.0.0.1:9', progress=False)
    one_line(e, 'BRCA_clinicalMatrix', 'connect to the network', 'by hand')
    hub.gone.add(XENA.path['clinical'])
    with pytest.raises(RadgenError) as e:
        fetch_xena('clinical', tmp_path, hub.url, progress=False)
    one_line(e, 'answered 404')
    assert time.monotonic() - start < 10 and not list(tmp_path.glob('BRCA*'))


def test_the_disk_is_looked_at_before(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(
        commons_download.shutil, 'disk_usage', lambda path: shutil._ntuple_diskusage(100, 90, 10)
    )
    with pytest.raises(RadgenError) as e:
        fetch_xena('methylation', tmp_path, hub.url, progress=False)
    one_line(e, 'downloading HumanMethylation450.gz needs', 'are free at')


ONE_SERIES = pd.DataFrame(
    dict(
        patient_id=['TCGA-AO-0000'],
        series_uid=['1.2'],
        n_files=[3],
        bytes=[2_000_000],
        licence=['CC BY 3.0'],
        bucket=['b'],
    )
)


def test_the_plan_tells_before_what_is_fetched(hub, tmp_path):
    plan = plan_tcga(folder=tmp_path, xena_url=hub.url, series=ONE_SERIES)
    assert (
        plan.index.tolist()
        == [
            '1 MR series',
            'expression',
            'cnv',
            'methylation',
            'probes',
            'clinical',
            'survival',
            'mutations',
        ]
        and not plan.at_hand.any()
    )
    assert (
        plan.gigabytes['1 MR series'] == 0.002
        and plan.gigabytes['survival'] * 1e9 == (hub.root / XENA.path['survival']).stat().st_size
    )
    fetch_xena('survival', tmp_path / 'xena', hub.url, progress=False)
    offline = plan_tcga(
        folder=tmp_path, xena_url='http://127.0.0.1:9', series=ONE_SERIES, omics=('expression',)
    )
    assert (
        offline.at_hand['survival']
        and not np.isnan(offline.gigabytes['survival'])
        and np.isnan(offline.gigabytes['expression'])
        and 'probes' not in offline.index
    )


def test_the_plan_takes_no_error_page_for_a_file(hub, tmp_path):
    hub.gone.add(XENA.path['survival'])
    plan = plan_tcga(folder=tmp_path, xena_url=hub.url, omics=('expression',), series=ONE_SERIES)
    assert np.isnan(plan.gigabytes['survival']) and plan.gigabytes.drop('survival').notna().all()


@pytest.mark.parametrize('had', [True, False])
def test_the_plan_names_the_release_that_the_rule_needs(hub, tmp_path, monkeypatch, had):
    monkeypatch.setenv('RADGEN_DATA', str(tmp_path / 'data'))
    monkeypatch.setattr(tcga, 'REGISTRY', {'SideViewBTF.csv': 'x', 'other.csv': 'y'})
    monkeypatch.setattr(tcga, 'published_available', lambda: had)

    def choose(series, rule):  # stands for the real choice, which fetches the release
        (tmp_path / 'data' / 'published').mkdir(parents=True)
        (tmp_path / 'data' / 'published' / 'SideViewBTF.csv').write_bytes(b'x' * 1000)
        return ONE_SERIES, None

    monkeypatch.setattr(tcga, 'choose_series', choose)
    plan = plan_tcga(xena_url='http://127.0.0.1:9', omics=('expression',))
    assert (
        plan.index.tolist()[:2] == ['the release', '1 MR series']
        and plan.at_hand['the release'] == had
        and plan.gigabytes['the release'] == 1e-6
    )
    shutil.rmtree(tmp_path / 'data')
    assert (
        'the release'
        not in plan_tcga('one_phase', ('expression',), xena_url='http://127.0.0.1:9').index
    )


# --- methylation ------------------------------------------------------------------------


def by_hand(hub):
    raw = pd.read_csv(hub.root / XENA.path['methylation'], sep='\t', index_col=0)
    owners = probe_genes(hub.root / XENA.path['probes'])
    return pd.DataFrame(
        {
            g: raw.loc[[p for p in raw.index if g in owners.get(p, ())]].mean()
            for g in sorted({g for o in owners for g in o})
        }
    ).T


@pytest.mark.parametrize('block', [1, 7, 10000])
def test_methylation_is_the_mean_of_the_probes(hub, tmp_path, block):
    path = methylation_by_gene(
        hub.root / XENA.path['methylation'],
        hub.root / XENA.path['probes'],
        tmp_path,
        block=block,
        progress=False,
    )
    pd.testing.assert_frame_equal(
        pd.read_csv(path, sep='\t', index_col=0), by_hand(hub), atol=1e-5, check_names=False
    )
    fates = pd.read_csv(tmp_path / 'methylation_probes.csv.gz').set_index('probe')
    assert len(fates) == 3 * len(GENES) + 4 and fates.index.is_unique
    assert (
        fates.reason['cg00000003'] == 'no value in any sample'
        and (fates.reason == 'belongs to no gene').sum() == 1
        and (fates.reason == 'not among the wanted probes of the map').sum() == 1
    )


@pytest.mark.parametrize(
    'spoil',
    [lambda p: p.unlink(), lambda p: p.write_bytes(gzip.compress(b'probe,decision,reason\n'))],
)
def test_the_account_of_the_probes_is_part_of_the_result(hub, tmp_path, spoil):
    files = hub.root / XENA.path['methylation'], hub.root / XENA.path['probes']
    first = methylation_by_gene(*files, tmp_path, progress=False).stat().st_mtime_ns
    assert (
        methylation_by_gene(*files, tmp_path, progress=False).stat().st_mtime_ns == first
    )  # all as it was: not made again
    spoil(tmp_path / 'methylation_probes.csv.gz')
    methylation_by_gene(*files, tmp_path, progress=False)
    assert len(pd.read_csv(tmp_path / 'methylation_probes.csv.gz')) == 3 * len(GENES) + 4


def test_methylation_of_chosen_probes(hub, tmp_path):
    files = hub.root / XENA.path['methylation'], hub.root / XENA.path['probes']
    first = methylation_by_gene(*files, tmp_path, probes=['cg00000001'], progress=False)
    table = pd.read_csv(first, sep='\t', index_col=0)
    assert list(table.index) == ['ESR1']
    assert (
        len(pd.read_csv(methylation_by_gene(*files, tmp_path, progress=False), sep='\t')) > 1
    )  # other probes: made again
    with pytest.raises(RadgenError) as e:
        methylation_by_gene(*files, tmp_path, probes=['cg1'], progress=False)
    one_line(e, 'none of the wanted probes')


@pytest.mark.parametrize(
    'text, said',
    [
        (
            'sample\tTCGA-AO-0000-01\ncg00000000\t1.5\n',
            ['cg00000000', '1.5', 'beta values lie in [0, 1]'],
        ),
        ('sample\tTCGA-AO-0000-01\ncg00000000\tabc\n', ['no number', 'fetch it again']),
        ('sample\tTCGA-AO-0000-01\nrs1\t0.5\n', ['no probe in common', 'another array']),
        ('sample\tTCGA-AO-0000-01\n', ['no probes']),
    ],
)
def test_bad_methylation(hub, tmp_path, text, said):
    with pytest.raises(RadgenError) as e:
        methylation_by_gene(
            put(hub.root, 'methylation', text),
            hub.root / XENA.path['probes'],
            tmp_path,
            progress=False,
        )
    one_line(e, *said)


def test_truncated_methylation(hub, tmp_path):
    path = hub.root / XENA.path['methylation']
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(RadgenError) as e:
        methylation_by_gene(path, hub.root / XENA.path['probes'], tmp_path, progress=False)
    one_line(e, 'damaged', 'fetch it again')


# --- labels, survival -------------------------------------------------------------------


def test_receptors(hub):
    ledger = Ledger()
    labels = read_receptors(hub.root / XENA.path['clinical'], ledger)
    raw = pd.read_csv(
        hub.root / XENA.path['clinical'], sep='\t', index_col=0, keep_default_na=False
    )
    for p in PATIENTS:
        for name, (clinical, study) in RECEPTORS.items():
            word = raw.loc[f'{p}-01', clinical]
            expected = {'Positive': 1, 'Negative': 0}.get(
                word, {'Negative': 0}.get(raw.loc[f'{p}-01', study])
            )
            assert (
                (labels.loc[p, name] == expected)
                if expected is not None
                else np.isnan(labels.loc[p, name])
            )
    lines = ledger.frame()
    assert set(lines[lines['item'].isin(SAMPLES)]['item']) == set(SAMPLES) and 'gender' in set(
        lines[lines.decision == 'dropped']['item']
    )
    assert (
        lines.reason.str.contains('contradicts').any()
        and (
            lines.reason == 'sample type 11, normal tissue: only primary tumours (01) are used'
        ).sum()
        == 1
    )


def test_survival_and_mutations(hub):
    ledger = Ledger()
    survival = read_tcga_survival(hub.root / XENA.path['survival'], ledger)
    assert (
        set(PATIENTS) - set(survival.index) == set(PATIENTS[2:6])
        and survival.time_days[PATIENTS[7]] == 107
        and survival.event[PATIENTS[7]] == 1
    )
    why = ledger.frame().set_index('item').reason
    assert [why[f'{PATIENTS[i]} survival'].split(': ')[1] for i in range(2, 6)] == [
        'redacted by TCGA',
        'time is not positive',
        'no time',
        'no status',
    ]
    table = read_tcga_mutations(hub.root / XENA.path['mutations'], ledger, ('TP53', 'NOTAGENE'))
    assert list(table) == ['TP53'] and len(table) == 15
    lines = ledger.frame()[lambda t: t.source == 'BRCA_mc3_gene_level.txt.gz']
    assert sorted(lines['item']) == sorted([*GENES, 'NOTAGENE', *SAMPLES[:15]])


def test_bad_tables(hub):
    path = hub.root / XENA.path['clinical']
    path.write_text(path.read_text().replace('ER_Status_nature2012', 'ER_Status'))
    with pytest.raises(RadgenError) as e:
        read_receptors(path, Ledger())
    one_line(e, "column 'ER_Status_nature2012' is missing")
    with pytest.raises(RadgenError) as e:
        read_tcga_mutations(
            put(hub.root, 'mutations', 'sample\tTCGA-AO-0000-01\nTP53\t2\n'), Ledger()
        )
    one_line(e, 'TP53', 'TCGA-AO-0000-01', 'neither 0 nor 1')


# --- conditions -------------------------------------------------------------------------


def test_most_variable_genes():
    rng = np.random.default_rng(0)
    table = lambda names: pd.DataFrame(
        rng.normal(size=(50, len(names))) * np.arange(1, len(names) + 1), columns=names
    )
    names = [f'G{i:02d}' for i in range(20)]
    omics = dict(a=table(names), b=table([*names, 'ONLYB']))
    assert most_variable(omics, 3) == ['G17', 'G18', 'G19'] and most_variable(omics, None) == names
    assert most_variable(
        {k: v.sample(frac=1, random_state=1) for k, v in omics.items()}, 3
    ) == most_variable(omics, 3)
    with pytest.raises(RadgenError) as e:
        most_variable(dict(a=omics['a'], b=table(['7157'])), 3)
    one_line(e, 'no gene is in every omic', 'a has G00', 'b has 7157')


def test_expression_is_given_linear_and_the_encoder_gets_the_log_back(hub, tmp_path):
    data = load(hub, tmp_path)
    given = data.conditions['expression']
    assert (given >= 0).all(axis=None)
    encoder = ConditionEncoder('expression').fit(given)
    z, x = encoder.transform(given), data.omics['expression'][given.columns].to_numpy(float)
    np.testing.assert_allclose(z, (x - x.mean(0)) / x.std(0), atol=2e-3)
    raw = pd.read_csv(hub.root / XENA.path['expression'], sep='\t', index_col=0)
    np.testing.assert_allclose(
        given.loc[PATIENTS[3], 'CD27'], 2 ** raw.loc['CD27', f'{PATIENTS[3]}-01'] - 1, rtol=1e-4
    )


# --- the cohort -------------------------------------------------------------------------


def test_cohort_of_the_miniature(hub, tmp_path):
    data = load(hub, tmp_path)
    assert (
        data.name == 'tcga'
        and sorted(data.patients.index) == sorted(PATIENTS)
        and not data.simulated
        and data.truth is None
    )
    assert data.conditions['multiomic'].shape == (18, 36) and data.conditions[
        'multiomic'
    ].notna().all(axis=None)
    assert (
        {c.split(':')[0] for c in data.conditions['multiomic']}
        == set(data.omics)
        == {'expression', 'cnv', 'methylation'}
    )
    assert (
        list(data.labels) == ['er', 'pr', 'her2', 'TP53', 'PIK3CA', 'GATA3']
        and len(data.survival) == 20
    )
    assert len(data.unpaired('multiomic')) == 18 and data.images.shape == (0, 128, 128)
    incomplete = load(hub, tmp_path, complete=False).conditions['multiomic']
    assert (
        len(incomplete) == 24
        and incomplete.filter(like='methylation:').isna().all(axis=1).sum() == 6
    )
    assert load(hub, tmp_path, n_genes=None).conditions['multiomic'].shape[1] == 3 * len(GENES)


def test_ledger_accounts_for_every_sample_gene_and_column(hub, tmp_path):
    lines = load(hub, tmp_path).ledger

    def items(source):
        return sorted(lines['item'][lines.source == source])

    assert items('HiSeqV2.gz') == sorted([*SAMPLES, *GENES])
    assert items('Gistic2_CopyNumber_Gistic2_all_data_by_genes.gz') == sorted([*SAMPLES, *GENES])
    probes = lines[
        (lines.source == 'HumanMethylation450.gz') & lines['item'].str.endswith(' probes')
    ]
    assert probes['item'].str.split().str[0].astype(int).sum() == 3 * len(GENES) + 4
    assert {*SAMPLES[:18]} <= set(items('HumanMethylation450.gz'))
    assert set(items('cohort')) == set(PATIENTS) and set(items('multiomic')) == set(PATIENTS)


def test_nothing_is_asked_twice(hub, tmp_path):
    first = load(hub, tmp_path)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / 'tcga').rglob('*')}
    again = load(hub, tmp_path, xena_url='http://127.0.0.1:9')
    pd.testing.assert_frame_equal(first.conditions['multiomic'], again.conditions['multiomic'])
    pd.testing.assert_frame_equal(first.ledger, again.ledger)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / 'tcga').rglob('*')} == before


def test_thresholded_copy_number_is_an_option(hub, tmp_path):
    data = load(hub, tmp_path, omics=('expression', 'cnv_calls'))
    assert (
        set(np.unique(data.omics['cnv'])) <= {-2, -1, 0, 1, 2}
        and data.ledger.reason.str.contains('thresholded calls').any()
    )


def test_one_omic_alone_gives_one_condition(hub, tmp_path):
    assert list(load(hub, tmp_path, omics=('expression',)).conditions) == ['expression']


def test_another_disease(hub, tmp_path):
    text = gzip.decompress((hub.root / XENA.path['cnv']).read_bytes()).decode()
    put(hub.root, 'cnv', re.sub(r'TCGA-\w\w-0', 'TCGA-05-9', text))
    with pytest.raises(RadgenError) as e:
        load(hub, tmp_path)
    one_line(
        e,
        'cnv: no patient in common with TCGA.BRCA.sampleMap/BRCA_clinicalMatrix',
        'another disease',
    )


def test_mostly_another_disease():
    ledger = Ledger()
    with pytest.raises(RadgenError) as e:
        check_patients(
            'x', [*PATIENTS[:2], *(f'TCGA-05-{i:04d}' for i in range(5))], PATIENTS, ledger
        )
    one_line(e, '5 of 7 patients are not in')
    assert len(
        check_patients('x', [*PATIENTS, 'TCGA-05-0001'], PATIENTS, ledger)
    ) == 24 and ledger.frame()['item'].tolist() == ['TCGA-05-0001']


@pytest.mark.parametrize(
    'omics, said',
    [
        (
            ('expression', 'rppa'),
            "unknown omic 'rppa'; known: expression, cnv, cnv_calls, methylation",
        ),
        (('cnv', 'expression', 'cnv_calls'), 'cnv and cnv_calls'),
    ],
)
@pytest.mark.parametrize('what', [plan_tcga, fetch_tcga, load_tcga])
def test_names_of_omics_are_looked_at_before_any_download(
    hub, tmp_path, monkeypatch, what, omics, said
):
    monkeypatch.setattr(
        tcga, 'choose_series', lambda *a, **k: pytest.fail('series were chosen first')
    )
    monkeypatch.setattr(
        tcga, 'download_series', lambda *a, **k: pytest.fail('series were fetched first')
    )
    with pytest.raises(RadgenError) as e:
        what(omics=omics, folder=tmp_path / 'tcga', xena_url=hub.url)
    one_line(e, said)
    assert not hub.asked and not (tmp_path / 'tcga').exists()


def test_signature_genes_absent(hub, tmp_path):
    with pytest.raises(RadgenError) as e:
        tcga_conditions({'expression': pd.DataFrame({'7157': [1.0, 2]}, PATIENTS[:2])}, Ledger())
    one_line(e, 'none of the signature genes')


# --- with images ------------------------------------------------------------------------


class Bucket(http.server.SimpleHTTPRequestHandler):
    "Lists a prefix and serves its files."

    root = None

    def log_message(self, *args):
        pass

    def do_GET(self):
        found = re.search(r'prefix=([^&]+)', self.path)
        if found:
            prefix = unquote(found[1])
            files = sorted((self.root / prefix).iterdir()) if (self.root / prefix).is_dir() else []
            body = (
                '<ListBucketResult>'
                + ''.join(
                    f'<Contents><Key>{prefix}{f.name}</Key><Size>{f.stat().st_size}</Size></Contents>'
                    for f in files
                )
                + '</ListBucketResult>'
            ).encode()
        else:
            body = (self.root / unquote(self.path).lstrip('/')).read_bytes()
        self.send_response(200)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture(scope='module')
def archive(tmp_path_factory):
    "Five series of a bucket: two good, one of two phases, one without positions, one withdrawn."
    from radgen.phantom.dicom import breast, plane_grid, write_series

    root, rows = tmp_path_factory.mktemp('bucket'), []
    for i, (plane, kind) in enumerate(
        [
            ('sagittal', 'pre-contrast'),
            ('axial', 'post-contrast'),
            ('sagittal', 'post-contrast'),
            ('sagittal', 'pre-contrast'),
            ('sagittal', 'pre-contrast'),
        ]
    ):
        grid = plane_grid(plane, pixel=6.0, slice_mm=8.0)
        values, uid, folder = breast(*grid.points()), f'1.2.826.0.{i + 1}', root / f'prefix{i}'
        common = dict(uid=uid, PatientID=PATIENTS[i], SeriesDescription=f'SAG 3D ({kind})')
        if i == 3:
            common['ImagePositionPatient'] = None
        for k in range(2 if i == 2 else 1):
            write_series(
                values * (1 + k),
                grid,
                folder,
                prefix=f'p{k}-',
                seed=k,
                AcquisitionNumber=k + 1,
                TemporalPositionIdentifier=k + 1,
                **common,
            )
        files = list(folder.iterdir())
        rows.append(
            dict(
                patient_id=PATIENTS[i],
                series_uid=uid,
                collection='tcga_brca',
                study=1,
                number=1,
                description=common['SeriesDescription'],
                kind=kind,
                plane='sagittal',
                site=PATIENTS[i][5:7],
                n_files=len(files),
                bytes=sum(f.stat().st_size for f in files),
                licence='CC BY 3.0',
                doi='10.0/x',
                bucket='b',
                prefix=f'prefix{i}',
            )
        )
    shutil.rmtree(root / 'prefix4')
    server = http.server.ThreadingHTTPServer(
        ('127.0.0.1', 0), type('Served', (Bucket,), dict(root=root))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield (
        pd.DataFrame(rows, index=pd.Index([f'{i:03d}' for i in range(5)], name='series_id')),
        f'http://127.0.0.1:{server.server_port}',
    )
    server.shutdown()
    server.server_close()


def test_the_whole_cohort(hub, archive, tmp_path):
    series, bucket = archive
    data = load(hub, tmp_path, images=True, image_size=32, series=series, commons_url=bucket)
    assert (
        data.images.shape == (3, 32, 32)
        and list(data.series.index) == ['000', '001', '002']
        and list(data.imaged) == PATIENTS[:3]
    )
    assert (
        data.series.kind.tolist() == ['pre-contrast', 'post-contrast', 'post-contrast']
        and data.series.site.tolist() == ['AO', 'E2', 'AR']
        and data.series.plane.tolist() == ['sagittal', 'axial', 'sagittal']
    )
    assert (
        np.corrcoef(data.images[0].ravel(), data.images[2].ravel())[0, 1] > 0.99
        and np.corrcoef(data.images[0].ravel(), data.images[1].ravel())[0, 1] > 0.9
    )  # the same breast, whatever the plane
    lines = data.ledger
    uid = series.series_uid
    said = {u: '; '.join(lines.reason[lines['item'].str.startswith(u)]) for u in uid}
    assert (
        'described as sagittal, acquired axial' in said[uid.iloc[1]]
        and 'a later phase' in said[uid.iloc[2]]
        and 'withdrawn' in said[uid.iloc[4]]
    )
    assert (
        lines[(lines['item'] == uid.iloc[3]) & (lines.decision == 'dropped')]
        .reason.str.contains('osition')
        .any()
    )
    assert (
        data.patients.n_series.sum() == 3
        and len(data.paired('multiomic')) == 3
        and len(data.unpaired('multiomic')) == 15
    )
    again = load(
        hub,
        tmp_path,
        images=True,
        image_size=32,
        series=series[:4],
        xena_url='http://127.0.0.1:9',
        commons_url='http://127.0.0.1:9',
    )  # all at hand
    np.testing.assert_array_equal(again.images, data.images)


def test_fetch_then_load_without_network(hub, archive, tmp_path):
    series, bucket = archive
    fetch_tcga(
        folder=tmp_path / 'tcga',
        xena_url=hub.url,
        commons_url=bucket,
        series=series[:2],
        progress=False,
    )
    assert plan_tcga(
        folder=tmp_path / 'tcga', xena_url='http://127.0.0.1:9', series=series[:2]
    ).at_hand.all()
    assert (
        len(
            load(
                hub,
                tmp_path,
                images=True,
                image_size=16,
                series=series[:2],
                xena_url='http://127.0.0.1:9',
                commons_url='http://127.0.0.1:9',
            ).images
        )
        == 2
    )


def test_files_of_another_patient(hub, archive, tmp_path):
    series, bucket = archive
    with pytest.raises(RadgenError) as e:
        load(
            hub,
            tmp_path,
            images=True,
            image_size=16,
            series=series[:1].assign(patient_id=PATIENTS[9]),
            commons_url=bucket,
        )
    one_line(e, f'the files are of patient {PATIENTS[0]}, the index says {PATIENTS[9]}')
