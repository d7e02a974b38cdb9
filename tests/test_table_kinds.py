"Kinds of tables that could be read into wrong numbers: right values known by construction."

import bz2
import gzip
import io
import itertools
import lzma
import zipfile

import numpy as np
import pandas as pd
import pytest

from radgen.conditions.encoder import ConditionEncoder
from radgen.core.paths import RadgenError
from radgen.data.cohort import Ledger
from radgen.data.files import check, load_files, scan_manifest
from radgen.data.follow_up import read_survival_table
from radgen.data.manifest import read_manifest
from radgen.data.methylation import read_blocks
from radgen.data.omics import read_omics
from radgen.data.tables import read_labels
from radgen.data.tcga_outcomes import read_tcga_survival
from radgen.data.text_tables import read_matrix, read_text
from radgen.models.registry import build
from radgen.models.store import ImageStore
from radgen.run.generate import read_conditions
from radgen.run.samples import image_features

ODD = ['0001', 'NA', 'null', '1e5', 'P 12-3', 'nan', '1.0', 'None']  # all of them are patients


@pytest.fixture
def write(tmp_path):
    def put(name, data):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return path

    return put


def refused(function, *parts, longest=900):
    with pytest.raises(RadgenError) as error:
        function()
    text = str(error.value)
    assert '\n' not in text and len(text) < longest, text
    for part in parts:
        assert part in text, f'{part!r} not in {text!r}'


def omics(path, omic='expression', **options):
    return read_omics(path, omic, ledger=Ledger(), **options)


def labels_of(path, columns=None, values=None, **options):
    return read_labels(path, path.name, Ledger(), columns, values, **options)[0]


def survival_of(path, columns=None, values=None, ledger=None, **options):
    ledger = Ledger() if ledger is None else ledger
    return read_survival_table(path, path.name, ledger, columns, values, **options)


def values_of(n=8, genes=6, top=90):
    "Positive numbers with a point, known by their place."
    return np.round(100 + np.arange(n * genes).reshape(n, genes) % top + 0.25, 2)


def table_of(ids, genes=6):
    columns = [f'G{j}' for j in range(genes)]
    return pd.DataFrame(values_of(len(ids), genes), list(ids), columns).rename_axis('patient_id')


# --- one reader -------------------------------------------------------------------------------

READERS = {
    'omics': lambda p: omics(p, 'x'),
    'words': lambda p: read_text(p).set_index('patient_id').astype(float),
    'conditions': lambda p: read_conditions(p, [f'G{j}' for j in range(6)]),
}


def zipped(text, *more):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, 'w') as archive:
        for i, t in enumerate((text, *more)):
            archive.writestr(f'{i}.csv', t)
    return stream.getvalue()


def spellings(table):
    "name -> bytes of one table."
    csv, tsv = table.to_csv(), table.to_csv(sep='\t')
    comma = table.to_csv(sep=';', decimal=',')
    rows = csv.splitlines()
    return {
        'commas': csv.encode(),
        'tabs': tsv.encode(),
        'semicolons': table.to_csv(sep=';').encode(),
        'decimal commas': comma.encode(),
        'decimal commas, tabs': table.to_csv(sep='\t', decimal=',').encode(),
        'BOM': b'\xef\xbb\xbf' + csv.encode(),
        'UTF-16': tsv.encode('utf-16'),
        'gzip': gzip.compress(csv.encode()),
        'bzip2': bz2.compress(csv.encode()),
        'xz': lzma.compress(csv.encode()),
        'zip': zipped(csv),
        'old lines': csv.replace('\n', '\r\n').encode(),
        'sep=': b'sep=;\n' + table.to_csv(sep=';').encode(),
        'comment': b'# made by hand, 2026\n\n' + csv.encode(),
        'header in a comment': b'#' + csv.encode(),
        'trailing, all': '\n'.join(r + ',' for r in rows).encode(),
        'trailing, data': '\n'.join([rows[0], *(r + ',' for r in rows[1:])]).encode(),
        'trailing, some': '\n'.join([*rows[:3], *(r + ',,' for r in rows[3:])]).encode(),
        'quoted': table.to_csv(quoting=1).encode(),
        'empty rows': ('\n'.join([*rows, ',' * 6, '']) + '\n').encode(),
    }


@pytest.mark.parametrize('reader', READERS)
@pytest.mark.parametrize('spelling', spellings(table_of('ab')))
@pytest.mark.parametrize('name', ['table.csv', 'table.csv.gz', 'table'])
def test_one_table_in_any_spelling(write, reader, spelling, name):
    expected = table_of(ODD)
    got = READERS[reader](write(name, spellings(expected)[spelling]))
    assert set(got.index) == set(ODD) and list(got) == list(expected)
    np.testing.assert_array_equal(got.loc[ODD].to_numpy(), expected.to_numpy())


@pytest.mark.parametrize('first', ['', 'sampleID', 'Hugo_Symbol'])
def test_a_separator_at_the_end_never_moves_a_value(write, first):
    "Whatever the first name: the right values, or a refusal."
    text = f'{first},p1,p2\nESR1,1.5,2.5,\nTP53,3.5,4.5,\n'
    try:
        got = omics(write('a.csv', text), 'x', rows='genes')
    except RadgenError as e:
        assert 'delete the last separator' in str(e)
    else:
        assert got.to_dict() == {'ESR1': {'p1': 1.5, 'p2': 2.5}, 'TP53': {'p1': 3.5, 'p2': 4.5}}


def test_names_of_rows_without_a_name_of_their_column(write):
    got = omics(write('r.csv', '"p1","p2"\n"ESR1",1.5,\n"TP53",3.5,4.5\n'), 'x', rows='genes')
    assert got.TP53.to_dict() == {'p1': 3.5, 'p2': 4.5} and got.ESR1['p1'] == 1.5


def test_a_separator_at_the_end_in_tables_of_the_hub(write):
    rows = ['TCGA-A7-0001-01\t1\t500\t', 'TCGA-A7-0002-01\t0\t900\t']
    path = write('survival.txt', '\n'.join(['sample\tOS\tOS.time\tRedaction', *rows]))
    got = read_tcga_survival(path, Ledger())
    assert got.time_days.tolist() == [500, 900] and got.event.tolist() == [1, 0]
    longer = '\n'.join(['sample\tOS\tOS.time\tRedaction', *(r + '\t' for r in rows)])
    assert read_tcga_survival(write('survival.txt', longer), Ledger()).equals(got)
    beta = gzip.compress(b'sample\tA\tB\ncg1\t0.1\t0.2\t\n')
    refused(lambda: next(read_blocks(write('beta.gz', beta), 5)), '4 values under 3 names')


@pytest.mark.parametrize('reader', READERS)
@pytest.mark.parametrize('text', ['anna,1.5,2\nbert,3,4\n', '0001,1,0\n0002,0,1\n'])
def test_a_header_of_numbers_is_refused(write, reader, text):
    refused(
        lambda: READERS[reader](write('a.csv', text)), 'a.csv', 'the header is a row of numbers'
    )


def test_patients_called_by_numbers_are_a_header(write):
    for first in 'gene', 'Hugo_Symbol', '':
        got = omics(write('a.csv', f'{first},0001,0002\nESR1,1,2\n'), 'x', rows='genes')
        assert got.ESR1.to_dict() == {'0001': 1, '0002': 2}


def test_comments_of_cbioportal_are_no_header(write):
    text = '#Patient\tER status\n#ID\tER\n#STRING\tSTRING\n#1\t1\nPATIENT_ID\tER\nanna\t1\n'
    table = read_text(write('a.txt', text))
    assert table.to_dict('list') == {'PATIENT_ID': ['anna'], 'ER': ['1']}


OTHERS = {
    'a zip archive of 2 files': zipped('a', 'b'),
    'a Parquet file': b'PAR1....',
    'a Feather file': b'ARROW1..',
    'an HDF5 file': b'\x89HDF\r\n',
    'an old Excel workbook': b'\xd0\xcf\x11\xe0....',
    'a PDF': b'%PDF-1.7',
    'Git LFS': b'version https://git-lfs.github.com/spec/v1\n',
    'a web page': b'<!DOCTYPE html><html>',
    'a tar archive': gzip.compress(b'x' * 257 + b'ustar' + b' ' * 300),
}


@pytest.mark.parametrize('what', OTHERS)
@pytest.mark.parametrize('reader', READERS)
def test_other_formats_are_named(write, reader, what):
    refused(lambda: READERS[reader](write('a.csv', OTHERS[what])), 'a.csv', what, 'CSV')


def test_workbooks_are_named(write):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, 'w') as archive:
        archive.writestr('xl/workbook.xml', '<workbook/>')
    refused(lambda: read_text(write('a.csv', stream.getvalue())), 'an Excel workbook')


def test_two_decimal_signs_are_refused(write):
    text = 'patient_id;ESR1\na;1,5\nb;2.5\n'
    refused(lambda: omics(write('a.csv', text), 'x'), 'a.csv', "'1,5'")
    refused(lambda: read_conditions(write('a.csv', text), ['ESR1']), "'1,5'")


def test_thousands_are_no_decimals(write):
    "1,234 and 12 may be 1234 and 12: no reader takes them for 1.234."
    omic = write('a.tsv', 'patient_id\tESR1\tTP53\na\t1,234\t7\nb\t12\t1,000\n')
    refused(lambda: omics(omic, 'x'), "'1,234' may be")
    refused(lambda: read_conditions(omic, ['ESR1', 'TP53']), "'1,234'")
    time = write('b.csv', 'patient_id;time_days;event\na;1,234;1\nb;12;0\n')
    refused(lambda: survival_of(time), "'1,234'")
    clear = write('c.tsv', 'patient_id\tESR1\na\t1,234\nb\t0,125\n')
    assert omics(clear, 'x').ESR1.tolist() == [np.float32(1.234), 0.125]


def test_words_for_nothing_cover_omics_and_times(write):
    path = write('rna.csv', 'patient_id,ESR1,TP53\na,1,-999\nb,.,3\nc,-999.0,4\n')
    got = omics(path, 'x', missing=['-999', '.'])
    assert got.isna().to_numpy().tolist() == [[False, True], [True, False], [True, False]]
    path = write('time.csv', 'patient_id,time_days,event\na,-9,1\nb,500,0\n-9,40,9\n')
    got = survival_of(path, missing=['-9', '9'])
    assert got.time_days.to_dict() == {'b': 500} and '-9' not in got.index
    refused(lambda: omics(write('a.csv', 'patient_id,ESR1\na,.\nb,1\n'), 'x'), "'.', not a number")


# --- codes ------------------------------------------------------------------------------------


def lung(write):
    rows = [f'p{i},{100 + i},{2 if i < 165 else 1}' for i in range(228)]
    return write('lung.csv', '\n'.join(['patient_id,time_days,event', *rows]))


def test_a_status_of_1_and_2(write):
    path = lung(write)
    for partial in ({}, {'2': '1'}):
        refused(lambda p=partial: survival_of(path, values=p), "'1'", '(63)', 'beside a third code')
    for two in '2', '2.0':
        assert survival_of(path, values={'1': '0', two: '1'}).event.sum() == 165


def test_a_score_of_0_to_3(write):
    counts = {'0': 300, '1': 272, '2': 150, '3': 90}
    scores = list(itertools.chain.from_iterable([k] * n for k, n in counts.items()))
    path = write(
        'ihc.csv', 'patient_id,her2\n' + ''.join(f'p{i},{s}\n' for i, s in enumerate(scores))
    )
    refused(lambda: labels_of(path, values={'2': '', '3': '1'}), "'1' (272)", "'0'")
    got = labels_of(path, values={'0': '0', '1': '0', '2': '', '3': '1'}).her2
    assert (got == 1).sum() == 90 and got.isna().sum() == 150 and (got == 0).sum() == 572
    assert labels_of(write('b.csv', 'patient_id,er\na,0\nb,1\nc,9\n'), missing=['9']).er.sum() == 1


def test_numbers_are_matched_by_value(write):
    path = write('a.csv', 'patient_id,er\na,1.0\nb,2.00\nc,02\nd,\n')
    assert labels_of(path, values={'1': '0', '2': '1'}).er.tolist()[:3] == [0, 1, 1]
    refused(lambda: labels_of(path, values={'1': '0', '1.0': '1', '2': '1'}), '1 and 1.0')


def test_all_strange_words_in_one_line_that_can_be_pasted(write):
    rows = ["a,Positive,it's", 'b,Negative,no', 'c,Positive,', 'd,"Equivocal, or so",no']
    path = write('a.csv', '\n'.join(['patient_id,er,pr', *rows]))
    with pytest.raises(RadgenError) as error:
        labels_of(path)
    text = str(error.value)
    for part in "'Positive' (2)", "'Negative' (1)", "'no' (2)", '"it\'s" (1)':
        assert part in text
    snippet = text[text.index('values: {') : text.index('}') + 1]
    manifest = f'omics: {{cnv: a.csv}}\nlabels:\n  file: a.csv\n  {snippet}\n'
    stated = read_manifest(write('m.yaml', manifest)).labels.values
    assert set(stated) == {'Positive', 'Negative', 'Equivocal, or so', "it's", 'no'}
    got = labels_of(path, values=stated)
    assert got.er.fillna(-1).tolist() == [1, 0, 1, -1] and got.pr['b'] == 0


def test_no_censored_patient_is_a_warning(write, capsys):
    rows = [f'p{i},{100 + i},1' for i in range(9)]
    path = write('a.csv', '\n'.join(['patient_id,time_days,event', *rows]))
    survival_of(path, ledger=(ledger := Ledger()))
    assert 'all 9 patients have one' in capsys.readouterr().err
    assert ledger.frame().reason.str.startswith('warning').sum() == 1


# --- follow-up --------------------------------------------------------------------------------


def gdc(write, prefix='', n_dead=151, n_alive=940):
    rows = [f'd{i},Dead,{200 + i},' + ("'--" if i % 3 else '100') for i in range(n_dead)]
    rows += [f"a{i},Alive,'--,{900 + i}" for i in range(n_alive)]
    names = f'patient_id,{prefix}vital_status,{prefix}days_to_death,{prefix}days_to_last_follow_up'
    return write('gdc.csv', '\n'.join([names, *rows]))


@pytest.mark.parametrize('prefix', ['', 'demographic.'])
def test_columns_of_the_gdc_are_combined(write, prefix):
    ledger = Ledger()
    got = survival_of(gdc(write, prefix), ledger=ledger)
    assert (len(got), got.event.sum()) == (1091, 151)
    assert got.time_days[['d0', 'd150', 'a0']].tolist() == [200, 350, 900]
    assert ledger.frame().set_index('item').reason['event'] == '151 events'


@pytest.mark.parametrize('time', ['days_to_death', 'days_to_last_follow_up'])
def test_a_time_of_one_fate_is_refused(write, time):
    columns, words = {'time_days': time, 'event': 'vital_status'}, {'Dead': '1', 'Alive': '0'}
    refused(lambda: survival_of(gdc(write), columns, words), 'gdc.csv', 'the time is missing for')


def test_events_of_the_ledger_are_those_that_remain(write):
    rows = [f'p{i},{"" if i < 2 else 50 + i},{i % 2}' for i in range(40)]
    path = write('a.csv', '\n'.join(['patient_id,time_days,event', *rows]))
    got = survival_of(path, ledger=(ledger := Ledger()))
    reason = ledger.frame().set_index('item').reason['event']
    assert reason == '19 events; 1 more have no usable time' and got.event.sum() == 19


def test_a_dead_patient_without_a_day_of_death_has_no_time(write):
    text = 'patient_id,vital_status,days_to_death,days_to_last_follow_up\na,Dead,,700\nb,Alive,,9\n'
    assert list(survival_of(write('a.csv', text)).index) == ['b']
    contradiction = text + 'c,Alive,30,40\n'
    refused(lambda: survival_of(write('a.csv', contradiction)), 'patient c is alive')


def test_dates_are_no_follow_up(write):
    table = 'patient_id,time_days,event\na,43524,0\nb,400,1\n'
    refused(lambda: survival_of(write('a.csv', table)), '119 years')
    table = (
        'patient_id,vital_status,days_to_death,days_to_last_follow_up\na,Dead,43524,\nb,Alive,,9\n'
    )
    refused(lambda: survival_of(write('a.csv', table)), '119 years')
    table = 'patient_id,time_days,event\na,2019-03-01,0\nb,400,1\n'
    refused(lambda: survival_of(write('a.csv', table)), "'2019-03-01'")


def test_equal_times_of_censoring_are_a_warning(write, capsys):
    rows = [f'p{i},{4017 if i < 891 else 300 + i},{int(i >= 891)}' for i in range(1000)]
    path = write('a.csv', '\n'.join(['patient_id,time_days,event', *rows]))
    assert len(survival_of(path)) == 1000
    assert '891 of 891 times without an event are 4017 days' in capsys.readouterr().err


# --- outcomes, rows and columns that are no genes ---------------------------------------------


@pytest.fixture
def study(write):
    "A manifest of two omics, labels and survival of 20 patients; entries can be replaced."
    ids = [f'P-{i:03d}' for i in range(20)]
    rna = table_of(ids).assign(G0=np.arange(20) * 7.5 + 40)
    code = np.arange(20) % 2
    clinical = pd.DataFrame({'er': code, 'AGE': 40 + np.arange(20)}, ids)
    follow = pd.DataFrame(
        {'time_days': 100 + np.arange(20), 'event': (np.arange(20) % 3 == 0) * 1}, ids
    )
    tables = {'rna': rna, 'cnv': (rna - 100) / 50, 'clinical': clinical, 'follow': follow}

    def put(entries=None, **changes):
        for name, table in (tables | changes).items():
            write(f'{name}.csv', table.rename_axis('patient_id').to_csv())
        lines = {
            'omics': '{expression: rna.csv, cnv: cnv.csv}',
            'labels': 'clinical.csv',
            'survival': 'follow.csv',
        } | (entries or {})
        return write('m.yaml', ''.join(f'{k}: {v}\n' for k, v in lines.items()))

    put.tables = tables
    return put


def test_outcomes_in_the_table_of_omics_are_no_genes(study):
    t = study.tables
    whole = t['rna'].join(t['clinical'][['er']]).join(t['follow'])
    manifest = study({'labels': '{file: rna.csv, columns: [er]}', 'survival': 'rna.csv'}, rna=whole)
    cohort = load_files(manifest)
    assert list(cohort.omics['expression']) == list(t['rna'])
    assert cohort.labels.er.sum() == 10 and cohort.survival.event.sum() == 7
    dropped = cohort.ledger[cohort.ledger.reason == 'column of an outcome: never an input']
    assert set(dropped['item']) == {'er', 'time_days', 'event'}
    refused(lambda: load_files(study({'labels': 'rna.csv'}, rna=whole)), 'labels.columns')


def test_a_label_under_its_name_is_no_gene(study):
    t = study.tables
    manifest = study(rna=t['rna'].assign(ER=t['clinical'].er))
    refused(lambda: load_files(manifest), "column ER is the outcome 'er'")
    other = study(rna=t['rna'].assign(ER=t['clinical'].er + 50))  # the same name, other values
    assert 'ER' in load_files(other).omics['expression']


def test_features_without_outcomes(study, write):
    t = study.tables
    factors = pd.DataFrame({'F1': np.linspace(0, 1, 20)}, t['rna'].index).join(t['follow'])
    write('factors.csv', factors.rename_axis('patient_id').to_csv())
    assert list(load_files(study({'features': 'factors.csv'})).conditions['multiomic']) == ['F1']


def test_rows_that_are_no_genes(write):
    genes = ['N_unmapped', 'N_noFeature', '__no_feature', '1-Mar', '1-Mar', '2-Sep', 'Dec-01']
    genes += ['2021-03-01', '2.31E+13', 'ESR1', 'MARCHF1', 'NKX2-1', 'N4BP1', 'HLA-A', 'SEPT2']
    rows = ''.join(f'{g},{i + 1},{i + 2}\n' for i, g in enumerate(genes))
    ledger = Ledger()
    got = read_omics(write('a.csv', 'gene,p1,p2\n' + rows), 'x', ledger=ledger)
    assert list(got) == genes[9:] and got.ESR1['p1'] == 10
    assert set(genes) <= set(ledger.frame()['item'])


@pytest.mark.parametrize(
    'header, what',
    [
        ('gene_id,gene_name,gene_type,unstranded,stranded_first,stranded_second', 'one sample'),
        ('GDC_Aliquot,Chromosome,Start,End,Num_Probes,Segment_Mean', 'by segment'),
        ('ID,chrom,loc.start,loc.end,num.mark,seg.mean', 'by segment'),
        ('Hugo_Symbol,Chromosome,Variant_Classification,Tumor_Sample_Barcode,A,B', 'mutations'),
    ],
)
def test_files_of_other_kinds(write, header, what):
    text = f'{header}\nTCGA-A7-A0DB-01A,1,2,3,4,5\n'
    refused(lambda: omics(write('a.tsv', text), 'x'), 'a.tsv', what)


# --- scales -----------------------------------------------------------------------------------


def test_a_trace_of_negative_values(study):
    t = study.tables
    wide = table_of(t['rna'].index, 60)
    wide.iloc[3, 4] = -0.31
    refused(lambda: load_files(study(rna=wide)), '1 of 1200 values, 0.0833 %', 'clip: true')
    clipped = '{expression: {file: rna.csv, clip: true}, cnv: cnv.csv}'
    cohort = load_files(study({'omics': clipped}, rna=wide))
    assert cohort.omics['expression'].to_numpy().min() == 0
    assert (cohort.ledger.reason == '1 values beyond the scale were moved to its end').sum() == 1
    many = wide - 140
    refused(lambda: load_files(study({'omics': clipped}, rna=many)), 'scale: centred')


@pytest.mark.parametrize('scale', ['log2', 'centred'])
def test_no_logarithm_is_that_large(write, scale):
    path = write('a.csv', table_of('abcd').to_csv())
    refused(lambda: omics(path, scale=scale), 'no log2 of expression exceeds 30')


def test_z_scores_need_named_genes(study):
    t = study.tables
    z = np.random.default_rng(0).normal(size=(20, 30))
    z = pd.DataFrame((z - z.mean(0)) / z.std(0), t['rna'].index, [f'G{j}' for j in range(30)])
    refused(lambda: load_files(study(rna=z)), 'these are z-scores')
    entries = {'omics': '{expression: {file: rna.csv, scale: centred}, cnv: cnv.csv}'}
    refused(lambda: load_files(study(entries, rna=z)), 'conditions.expression', 'name the genes')
    entries['conditions'] = '{expression: {genes: [G3, G1]}}'
    assert list(load_files(study(entries, rna=z)).conditions['expression']) == ['G3', 'G1']


def test_beta_values_beyond_one_by_rounding(write):
    path = write('a.csv', 'patient_id,ESR1,TP53\na,1.0000002,0.5\nb,0.2,-0.0000001\n')
    got = omics(path, 'methylation')
    assert (got.to_numpy().max(), got.to_numpy().min()) == (1, 0)
    path = write('a.csv', 'patient_id,ESR1,TP53\na,1.02,0.5\nb,0.2,0.1\n')
    refused(lambda: omics(path, 'methylation'), 'goes up to 1.02')


# --- identifiers ------------------------------------------------------------------------------

NEARLY = {
    'leading zeros': lambda i: i.replace('-0', '-'),
    'case': str.lower,
    'points': lambda i: i.replace('-', '.'),
    'blanks': lambda i: i.replace('-', ' - '),
    'no width': lambda i: i.replace('-', '-\u200b'),
}


@pytest.mark.parametrize('table', ['cnv', 'clinical', 'follow'])
@pytest.mark.parametrize('how', NEARLY)
def test_identifiers_that_nearly_agree(study, table, how):
    t = study.tables[table]
    for changed in t.rename(NEARLY[how]), t.rename({'P-007': NEARLY[how]('P-007')}):
        refused(lambda c=changed: load_files(study(**{table: c})), 'spell patients differently')


def test_numbers_that_became_decimal(study):
    plain = {k: t.set_axis(map(str, range(101, 121))) for k, t in study.tables.items()}
    assert len(load_files(study(**plain)).patients) == 20
    spoilt = plain | {'clinical': plain['clinical'].rename(lambda i: f'{i}.0')}
    refused(lambda: load_files(study(**spoilt)), "'101.0' and '101'")


def test_patients_who_differ_are_left_alone(study):
    ids = ['P-1-12', 'P-11-2', *(f'a{i}' for i in range(9)), *(f'A{i}' for i in range(9))]
    plain = {k: t.set_axis(ids) for k, t in study.tables.items()}
    assert len(load_files(study(**plain)).patients) == 20


@pytest.mark.parametrize('odd', ODD)
def test_odd_identifiers_through_all_tables(study, odd):
    odd_ids = {k: t.rename({'P-000': odd}) for k, t in study.tables.items()}
    cohort = load_files(study(**odd_ids))
    assert odd in cohort.patients.index and cohort.labels.er[odd] == 0
    assert cohort.survival.time_days[odd] == 100 and cohort.omics['expression'].G0[odd] == 40


def test_samples_of_the_hub_in_every_table(study, write):
    codes = [f'TCGA-A7-{i:04d}' for i in range(20)]

    def sampled(table, types):
        return pd.concat([table.set_axis([f'{c}-{k}' for c in codes]) for k in types])

    t = study.tables
    clinical = sampled(t['clinical'][['er']], ['11', '01'])
    clinical.iloc[:20] = 1 - clinical.iloc[:20]  # normal samples say the opposite
    tables = {
        'rna': sampled(t['rna'], ['01']),
        'cnv': sampled(t['cnv'], ['01A-12D', '11A-12D']),
        'clinical': clinical,
        'follow': sampled(t['follow'], ['01A', '01B', '11A']),
    }
    cohort = load_files(study(**tables))
    assert len(cohort.patients) == 20 and cohort.survival.event.sum() == 7
    assert cohort.labels.er.tolist() == [i % 2 for i in range(20)]
    dropped = cohort.ledger[cohort.ledger.decision == 'dropped']
    assert (dropped.source == 'clinical.csv').sum() == 20
    assert (dropped.source == 'follow.csv').sum() == 40


# --- overlap, labels, conditions --------------------------------------------------------------


def test_omics_of_other_patients_are_refused(study):
    t = study.tables
    strangers = t['cnv'].set_axis([f'Q-{i + 500}' for i in range(20)])
    refused(lambda: load_files(study(cnv=strangers)), 'no patient of omics.cnv', 'another study')
    half = t['cnv'].rename(lambda i: i if i < 'P-010' else i.replace('P', 'Q'))
    assert len(load_files(study(cnv=half)).patients) == 30


def test_labels_are_what_looks_like_one(study):
    n = np.arange(20)
    t = study.tables['clinical']
    remarks = [f'seen on day {i}' for i in range(20)]
    more = t.assign(days=n * 31, remark=remarks, event=n % 2, grade=(n > 9) * 1)
    manifest = study(clinical=more)
    cohort = load_files(manifest)
    assert list(cohort.labels) == ['er', 'grade'] == scan_manifest(manifest).labels
    reasons = cohort.ledger[cohort.ledger.source == 'clinical.csv'].set_index('item').reason
    assert '20 different values, such as 40, 41' in reasons['AGE']
    assert {'days', 'remark', 'event'} <= set(reasons.index)


def test_one_column_gives_several_labels(study):
    words = ['LumA', 'LumB', 'Basal', 'Her2', ''] * 4
    t = study.tables['clinical'].assign(PAM50=words)
    columns = '{luminal: PAM50=LumA|LumB, basal: PAM50=Basal, er: er}'
    manifest = study({'labels': f'{{file: clinical.csv, columns: {columns}}}'}, clinical=t)
    cohort = load_files(manifest)
    assert list(cohort.labels) == ['luminal', 'basal', 'er'] == scan_manifest(manifest).labels
    assert cohort.labels.luminal.fillna(-1).tolist() == [1, 1, 0, 0, -1] * 4
    assert cohort.labels.basal.fillna(-1).tolist() == [0, 0, 1, 0, -1] * 4
    wrong = study({'labels': '{file: clinical.csv, columns: {x: PAM50=lumA}}'}, clinical=t)
    refused(lambda: load_files(wrong), "'PAM50' has no lumA", 'LumA')


def test_missing_values_of_conditions_are_counted(study):
    rna = study.tables['rna'].copy()
    rna.iloc[2, 1:3] = np.nan
    ledger = load_files(study(rna=rna)).ledger
    line = ledger[(ledger.source == 'conditions') & (ledger['item'] == 'expression')].reason.iloc[0]
    assert line.startswith('2 of 120 values are missing')


def test_conditions_in_another_order_are_matched_by_name(write):
    path = write('a.csv', 'id,B,cnv:C,A\nNA,2,,1\n0001,5,6,4\n')
    got = read_conditions(path, ['A', 'B', 'cnv:C'])
    assert got.loc['0001'].tolist() == [4, 5, 6] and got.loc['NA', 'A'] == 1
    assert np.isnan(got.loc['NA', 'cnv:C'])
    refused(lambda: read_conditions(write('a.csv', 'id,B,A\na,2,\n'), ['A', 'B']), "column 'A'")


# --- manifests --------------------------------------------------------------------------------

ENTRIES = ['name', 'omics', 'features', 'images', 'dicom', 'labels', 'survival', 'conditions']
ENTRIES += ['simulated', 'omics.cnv', 'omics.cnv.file', 'omics.cnv.missing', 'omics.cnv.clip']
ENTRIES += ['labels.columns', 'labels.values', 'labels.missing', 'labels.file', 'omics.cnv.rows']
ENTRIES += ['conditions.expression', 'conditions.expression.genes', 'conditions.multiomic.n_genes']
KINDS = [
    '',
    '7',
    '[]',
    '{}',
    '[[a]]',
    '{a: [b]}',
    '{a: {b: c}}',
    '[{a: b}]',
    '? [a]\n: b',
    '2026-01-01',
]


@pytest.mark.parametrize('entry', ENTRIES)
@pytest.mark.parametrize('kind', KINDS)
def test_a_value_of_the_wrong_kind_is_one_line(write, entry, kind):
    *parents, key = entry.split('.')
    inner = f'{{{key}: {kind}}}' if '\n' not in kind else '{a: ? [a] : b}'
    for parent in reversed(parents):
        rest = 'file: a.csv, ' if parent in ('cnv', 'labels') and key != 'file' else ''
        inner = f'{{{parent}: {{{rest}{inner[1:-1]}}}}}'
    rest = '' if 'omics' in (key, *parents) else 'omics: {cnv: none.csv}, '
    manifest = write('m.yaml', f'{{{rest}{inner[1:-1]}}}')
    for read in load_files, scan_manifest:
        try:
            read(manifest)
        except RadgenError as e:
            assert '\n' not in str(e)


@pytest.mark.parametrize(
    'text',
    [
        'omics: {cnv: a.csv}\nname: a\nname: b\n',
        'omics: {cnv: a.csv, cnv: b.csv}\n',
        'omics: {cnv: a.csv}\nlabels: {file: a.csv, values: {a: 1, a: 0}}\n',
        'omics: {cnv: a.csv}\nlabels: {file: a.csv, columns: {er: a, er: b}}\n',
    ],
)
def test_keys_given_twice_are_refused(write, text):
    refused(lambda: read_manifest(write('m.yaml', text)), 'm.yaml', 'given twice')


def test_warnings_come_first_in_the_counts(study):
    follow = study.tables['follow'].assign(event=1)
    counts = check(study(follow=follow)).set_index(['source', 'decision']).reasons
    assert counts['follow.csv', 'kept'].startswith('warning: all 20 patients have one')


# --- studies ----------------------------------------------------------------------------------


def test_radiomics_of_odd_identifiers(tmp_path):
    "`0001` and `NA` are patients of a store and of the table of radiomics beside it."
    given = pd.DataFrame({'A': np.arange(8.0), 'B': 2 * np.arange(8.0)}, ODD)
    model = build('cpdm', 2, 16, [], 8, [1, 2], 1)
    model.encoder = ConditionEncoder('expression', 2).fit(given)
    store = ImageStore(tmp_path / 'store').write(model, given, n_samples=1, steps=2, seed=0)
    assert list(ImageStore(tmp_path / 'store').patients) == ODD
    values = pd.DataFrame({'mean': np.arange(len(ODD)) / 2, 'gap': np.nan}, ODD)
    values.rename_axis('patient_id').to_csv(tmp_path / 'radiomics.csv')
    got = image_features(store, tmp_path / 'radiomics.csv', 8)['radiomics']
    assert list(got.index) == ODD and got['mean'].tolist() == values['mean'].tolist()
    assert got.gap.isna().all()


def test_large_tables_are_read_as_written(write):
    rng = np.random.default_rng(1)
    x = pd.DataFrame(rng.gamma(2, 50, (40, 300)).round(3), [f'{i:04d}' for i in range(40)])
    x.columns = [f'G{j}' for j in range(300)]
    text = x.T.rename_axis('gene').to_csv(sep=';', decimal=',')
    got, notes = read_matrix(write('a.txt', gzip.compress(text.encode())), 'genes')
    np.testing.assert_array_equal(got.to_numpy(), x.to_numpy(np.float32))
    assert list(got.index) == list(x.index) and not notes
