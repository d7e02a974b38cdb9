"Omics tables: layouts, samples, genes, scales, bad input, the real tables where they are there."

import gzip

import numpy as np
import pandas as pd
import pytest

from radgen.core.paths import RadgenError, data_dir
from radgen.data.cohort import Ledger
from radgen.data.omics import read_omics, tidy_omics
from radgen.data.samples import choose_genes, sample_fields
from radgen.data.scales import check_scale, linear_expression
from radgen.data.text_tables import read_matrix, read_text

IDS = ['TCGA-AO-A03M-01', 'TCGA-AO-A0JI-01', 'TCGA-A7-A0DB-01']
GENES = ['ESR1', 'GATA3', 'TP53', 'CDH1']


@pytest.fixture
def table():
    return pd.DataFrame(np.random.default_rng(0).gamma(2, 50, (3, 4)).round(3), IDS, GENES)


@pytest.fixture
def write(tmp_path):
    def put(name, text):
        path = tmp_path / name
        path.write_bytes(gzip.compress(text.encode()) if name.endswith('.gz') else text.encode())
        return path

    return put


def one_line(error, *parts):
    text = str(error.value)
    assert '\n' not in text
    for part in parts:
        assert part in text, f'{part!r} not in {text!r}'


def fails(path, *parts, omic='expression', **options):
    with pytest.raises(RadgenError) as error:
        read_omics(path, omic, ledger=Ledger(), **options)
    one_line(error, path.name, *parts)


# --- layouts: one table, seven spellings ----------------------------------------------------------


def spellings(t):
    "name -> text of the same table."
    genes, bare = t.T, t.T.copy()
    bare.columns = [c.replace('-', '.') for c in bare]
    cbio = genes.rename_axis('Hugo_Symbol').reset_index()
    cbio.insert(1, 'Entrez_Gene_Id', range(4))
    legacy = genes.rename_axis('gene_id')
    legacy.index = [f'{g}|{i}' for i, g in enumerate(legacy.index)]
    return {
        'patients.csv': t.to_csv(),
        'sample_id.tsv': t.rename_axis('SAMPLE_ID').to_csv(sep='\t'),
        'xena.tsv.gz': genes.rename_axis('sample').to_csv(sep='\t'),
        'cbioportal.txt': '#1 comment\n' + cbio.to_csv(sep='\t', index=False),
        'legacy.tsv': legacy.rename_axis('gene_id').to_csv(sep='\t'),
        'r.csv': bare.to_csv(index_label=False),
        'bom.csv': '\ufeff' + t.to_csv(),
        'windows.csv': t.to_csv(lineterminator='\r\n'),
        'quoted.csv': t.to_csv(quoting=1),
    }


@pytest.mark.parametrize(
    'name',
    [
        'patients.csv',
        'sample_id.tsv',
        'xena.tsv.gz',
        'cbioportal.txt',
        'legacy.tsv',
        'r.csv',
        'bom.csv',
        'windows.csv',
        'quoted.csv',
    ],
)
def test_a_table_in_any_layout(table, write, name):
    ledger = Ledger()
    result = read_omics(write(name, spellings(table)[name]), 'expression', ledger=ledger)
    expected = table.set_axis([i[:12] for i in IDS]).sort_index()
    pd.testing.assert_frame_equal(result, expected.astype('float32'), check_names=False)
    assert result.index.name == 'patient_id' and (ledger.frame().source == name).all()
    assert (ledger.frame().decision == 'kept').sum() == 7


def test_plain_identifiers_need_a_word_about_the_layout(write):
    path = write('x.csv', ',ESR1,GATA3\nanna,1,2\nbert,3,4\n')
    fails(path, 'say `rows: genes` or `rows: patients`')
    assert read_omics(path, 'x', ledger=Ledger(), rows='patients').loc['bert', 'GATA3'] == 4
    assert list(read_omics(path, 'x', ledger=Ledger(), rows='genes').index) == ['ESR1', 'GATA3']
    fails(path, 'say genes, patients or auto', rows='columns')


def test_a_column_called_sample_tells_nothing_without_barcodes(write):
    path = write('x.csv', 'sample,anna,bert\nESR1,1,2\n')
    fails(path, 'say `rows: genes` or `rows: patients`')
    assert read_omics(path, 'x', ledger=Ledger(), rows='genes').ESR1.to_dict() == {
        'anna': 1,
        'bert': 2,
    }


def test_comments_end_at_the_header(write):
    text = '#made by hand\n\npatient_id,ESR1\n#1,2\n#2,\n#3,4\n'
    ledger = Ledger()
    assert read_omics(write('x.csv', text), 'x', ledger=ledger).ESR1.to_dict() == {'#1': 2, '#3': 4}
    assert '#2' in set(ledger.frame().item) and read_text(
        write('y.csv', text)
    ).patient_id.tolist() == ['#1', '#2', '#3']


def test_rows_of_nothing_are_nothing(write):
    for text in (
        'patient_id,ESR1,TP53\nanna,1,2\n,,\n, ,\n',
        ',,\n\npatient_id,ESR1,TP53\nanna,1,2\n',
    ):
        assert list(read_omics(write('x.csv', text), 'x', ledger=Ledger()).index) == ['anna']
    fails(write('x.csv', 'patient_id,ESR1,TP53\nanna,1,2\n,3,\n'), 'has no identifier')
    ledger = Ledger()
    read_omics(
        write('x.csv', 'Hugo_Symbol,Entrez_Gene_Id,anna\nESR1,1,2\n,7,\n'), 'x', ledger=ledger
    )
    assert ledger.frame().reason.tolist().count('no gene symbol') == 1


@pytest.mark.parametrize('word', ['', 'NA', 'NaN', 'nan', 'null', 'N/A', ' NA'])
def test_missing_values(write, word):
    result = read_omics(
        write('x.csv', f'patient_id,ESR1,GATA3\na,1,{word}\nb,2,3\n'), 'x', ledger=Ledger()
    )
    assert result.isna().to_numpy().tolist() == [[False, True], [False, False]]


# --- samples and genes ----------------------------------------------------------------------------


def test_samples_of_a_patient_and_other_samples():
    ids = [
        'TCGA-AO-A03M-11A',
        'TCGA-AO-A03M-01B',
        'TCGA-AO-A03M-01A-21R',
        'TCGA-AO-A03M-01A-12R',
        'TCGA-AO-A0JI-06A',
        'TCGA.A7.A0DB',
        'TCGA.A7.A0DB.1',
    ]
    ledger, frame = Ledger(), pd.DataFrame({'ESR1': range(7)}, ids, dtype=float)
    result = tidy_omics(frame, 'expression', ledger, 'rna')
    assert result.ESR1.to_dict() == {'TCGA-A7-A0DB': 5, 'TCGA-AO-A03M': 3}
    lines = ledger.frame().set_index('item')
    assert lines.decision[ids].tolist() == ['dropped'] * 3 + ['kept', 'dropped', 'kept', 'dropped']
    assert (
        'normal tissue' in lines.reason[ids[0]]
        and 'metastasis' in lines.reason[ids[4]]
        and 'replicate of TCGA-A7-A0DB' in lines.reason[ids[6]]
    )


def test_released_replicates_are_read_as_the_loader_of_the_release_reads_them(
    published_folder, published
):
    result = read_omics(
        published_folder / 'TCGABRCA_15gxp.csv', 'expression', ledger=Ledger(), scale='linear'
    )
    mine = published.conditions['expression']
    pd.testing.assert_frame_equal(result[list(mine)], mine.astype('float32'), check_names=False)


@pytest.mark.parametrize(
    'written, fields',
    [
        ('TCGA-A7-A0DB-01A-11R-A034-07', ('01', 'A')),
        ('TCGA.A7.A0DB.2', ('', '')),
        ('tcga-a7-a0db-06', ('06', '')),
    ],
)
def test_barcodes(written, fields):
    patient, kind, (vial, *_) = sample_fields(written)
    assert patient == 'TCGA-A7-A0DB' and (kind, vial) == fields


@pytest.mark.parametrize(
    'ids, why',
    [
        (['TCGA-AO-A03M', 'MB.0046'], 'keep one study'),
        (['a', 'a'], 'given twice'),
        (['a', ' '], 'has no identifier'),
        (['TCGA-AO-A03M', 'TCGA-AO'], 'no TCGA barcode'),
        (['TCGA-AO-A03M-11', 'TCGA-AO-A0JI-10'], 'primary tumour'),
    ],
)
def test_bad_identifiers(ids, why):
    with pytest.raises(RadgenError) as error:
        tidy_omics(pd.DataFrame({'ESR1': [1.0, 2]}, ids), 'x', Ledger(), 'rna.csv')
    one_line(error, 'rna.csv', why)


def test_genes_given_twice_without_symbol_without_values():
    nan = np.nan
    values = np.array([[1, 9, 3, 4, nan, 5, 7], [1, nan, 2, 5, nan, 5, 7.0]])
    ledger = Ledger()
    places, symbols = choose_genes(values, ['A', 'A', 'A', '?|1', 'LOST', 'B', ''], ledger, 'rna')
    assert symbols == ['A', 'B'] and places.tolist() == [2, 5]  # most values, then the larger mean
    assert ledger.frame().decision.tolist().count('dropped') == 5 and len(ledger.frame()) == 7
    assert 'constant' in ledger.frame().set_index('item').reason['B']


def test_a_patient_without_values_is_dropped():
    ledger = Ledger()
    result = tidy_omics(
        pd.DataFrame({'A': [1, np.nan], 'B': [2, np.nan]}, ['p', 'q']), 'x', ledger, 'rna'
    )
    assert list(result.index) == ['p'] and (
        'no value' in ledger.frame().query('decision == "dropped"').reason.iloc[0]
    )


def test_every_sample_and_gene_is_in_the_ledger(write):
    head = 'Hugo_Symbol\tEntrez_Gene_Id\tTCGA-AO-A03M-01\tTCGA-AO-A0JI-11\n'
    text = head + 'ESR1\t1\t2\t3\n\t5\t2\t3\nESR1\t9\t1\tNA\n'
    ledger = Ledger()
    read_omics(write('cna.txt', text), 'cnv', ledger=ledger)
    lines = ledger.frame()
    assert sorted(lines.item) == sorted(
        ['Entrez_Gene_Id', 'TCGA-AO-A03M-01', 'TCGA-AO-A0JI-11', 'ESR1', '', 'ESR1', 'cnv']
    )
    assert 'whole numbers' in lines.reason[lines.item == 'cnv'].iloc[0]


# --- scales ---------------------------------------------------------------------------------------

BETA = np.array([[0.02, 0.5], [0.97, np.nan]])


@pytest.mark.parametrize(
    'values, scale, why',
    [
        (100 * BETA, None, 'percent scale'),
        (100 * BETA, 'beta', 'percent scale'),
        (BETA - 0.5, None, 'scale: m'),
        (BETA, 'percent', 'scale: beta'),
        (BETA, 'm', 'no M-value is negative'),
        (1000 * BETA, None, 'at most 1'),
        (1000 * BETA, 'percent', 'at most 100'),
        (BETA, 'log2', "no scale 'log2'"),
    ],
)
def test_methylation_on_another_scale(values, scale, why):
    with pytest.raises(RadgenError) as error:
        check_scale(values, 'methylation', scale, 'meth.csv')
    one_line(error, 'meth.csv', why)


def test_methylation_scales_agree():
    for values, scale in (BETA, 'beta'), (100 * BETA, 'percent'), (np.log2(BETA / (1 - BETA)), 'm'):
        np.testing.assert_allclose(check_scale(values, 'methylation', scale, 'x'), BETA)


@pytest.mark.parametrize('scale', ['linear', 'log2'])
def test_a_log_ratio_is_not_an_abundance(scale):
    with pytest.raises(RadgenError) as error:
        check_scale(BETA - 1, 'expression', scale, 'rna.csv')
    one_line(error, 'rna.csv', 'scale: centred')
    np.testing.assert_array_equal(
        check_scale(BETA - 1, 'expression', 'centred', 'rna.csv'), BETA - 1
    )


def test_expression_becomes_linear_and_keeps_its_order():
    x = pd.DataFrame({'A': [0.0, 3, 1000, np.nan]})
    pd.testing.assert_frame_equal(linear_expression(np.log2(x + 1), 'log2'), x)
    ratio = pd.DataFrame({'A': np.linspace(-6, 6, 20)})
    linear = linear_expression(ratio, 'centred')
    assert (linear > 0).all().all() and np.log2(linear.A + 1).is_monotonic_increasing
    with pytest.raises(RadgenError, match='not on a log2 scale'):
        linear_expression(x * 10, 'log2')


# --- malformed files ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'text, parts',
    [
        ('', ['empty']),
        ('\n\n', ['empty']),
        ('patient_id,ESR1\n', ['no rows']),
        ('patient_id\nanna\n', ['one column']),
        ('patient_id,ESR1\nanna,much\n', ['anna', 'ESR1', "'much'"]),
        ('patient_id,ESR1\nanna,"1,5"\n', ['anna', 'ESR1', "'1,5'"]),
        ('patient_id,ESR1\nanna,inf\n', ['anna', 'ESR1', 'infinite']),
        ('patient_id,ESR1\nanna,-inf\n', ['anna', 'infinite']),
        ('patient_id,ESR1\nanna,1e99\n', ['anna', 'infinite']),
        ('patient_id,ESR1,TP53\nanna,1,2\nbert,1\n', ['bert', '2 values instead of 3']),
        ('patient_id,ESR1\nanna,1\nbert,1,2\n', ['rectangular']),
        ('patient_id,ESR1\nanna,1,2\n', ['rectangular']),
        ('patient_id,ESR1\nanna,1\nanna,2\n', ['anna', 'given twice']),
        ('patient_id,ESR1\nanna,\n', ['no sample has any value']),
        ('Hugo_Symbol,anna,bert\nESR1,1,x\n', ['bert', 'ESR1', "'x'"]),
        ('Hugo_Symbol,anna,anna\nESR1,1,2\n', ['given twice']),
        ('Hugo_Symbol,Entrez_Gene_Id\nESR1,1\n', ['no column of numbers']),
        ('Hugo_Symbol,anna\n?,1\n', ['no gene with a symbol']),
    ],
)
def test_malformed_tables(write, text, parts):
    fails(write('bad.csv', text), *parts)


def test_unreadable_files(tmp_path, write):
    fails(tmp_path / 'none.csv', 'no such file')
    fails(tmp_path, 'cannot be read')
    whole = gzip.compress(
        b'patient_id,ESR1\n' + b''.join(b'p%d,%d.5\n' % (i, i) for i in range(9999))
    )
    small = gzip.compress(b'patient_id,ESR1\na,1\n')
    for name, data in {
        'check.csv.gz': small[:-8] + bytes(8),
        'tail.csv.gz': small + b'more',
    }.items():
        (tmp_path / name).write_bytes(data)
        fails(tmp_path / name, 'text table')
        with pytest.raises(RadgenError, match='text table'):
            read_text(tmp_path / name)
    for name, data in {
        'cut.csv.gz': whole[: len(whole) // 2],
        'image.csv': bytes(range(128, 256)) * 9,
    }.items():
        (tmp_path / name).write_bytes(data)
        fails(tmp_path / name, 'text table' if name != 'cut.csv.gz' else 'cut.csv.gz')


def test_small_tables_of_words(write):
    assert read_text(write('a.tsv', 'patient_id\ter\na\t NA\n')).to_dict('list') == {
        'patient_id': ['a'],
        'er': [''],
    }
    for text, why in {
        'a,b\n1\n': '1 values instead of 2',
        'a,a\n1,2\n': 'given twice',
        'a,b\n': 'no rows',
    }.items():
        with pytest.raises(RadgenError, match=why):
            read_text(write('a.csv', text))


# --- real tables ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'name, omic, scale, missing',
    [
        ('mrna', 'expression', 'centred', 11),
        ('cnv', 'cnv', None, 0),
        ('methylation', 'methylation', 'beta', 1),
    ],
)
def test_real_tables(name, omic, scale, missing):
    path = data_dir('multiomics_chr17p') / f'tcga2012brca_chr17p_{name}.csv'
    if not path.exists():
        pytest.skip(
            'tables of chromosome arm 17p are not at hand: put multiomics_chr17p below RADGEN_DATA'
        )
    result = read_omics(path, omic, ledger=Ledger(), scale=scale)
    assert result.shape == (463, 150) and int(result.isna().sum().sum()) == missing
    raw = pd.read_csv(path, index_col=0)
    np.testing.assert_allclose(
        result.loc['TCGA-A1-A0SD'], raw.loc['TCGA-A1-A0SD-01', result.columns].astype('float32')
    )
    if omic == 'expression':
        fails(path, 'scale: centred', scale='linear')
    assert read_matrix(path)[0].shape == (463, 150)
