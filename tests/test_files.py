"A user's own patients: a manifest read back, every part wrong in turn, real tables."

import gzip
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from radgen.conditions.encoder import ConditionEncoder
from radgen.core.paths import RadgenError, data_dir
from radgen.data.cohort import resize_images
from radgen.data.files import check, load_files, scan_manifest
from radgen.data.images import pad_to_square
from radgen.data.manifest import resolve
from radgen.data.writing import write_files
from radgen.load import load_cohort
from radgen.phantom.cohort import make_phantom

CHR17P = Path(__file__).resolve().parents[1] / 'config' / 'cohorts' / 'chr17p.yaml'


@pytest.fixture(scope='module')
def phantom():
    return make_phantom(n_patients=24, n_imaged=5, image_size=24, n_genes=60, seed=3)


@pytest.fixture
def manifest(phantom, tmp_path):
    return write_files(phantom, tmp_path / 'hospital')


def edit(manifest, **changes):
    "The manifest with other entries; None takes one out."
    m = {**yaml.safe_load(manifest.read_text()), **changes}
    manifest.write_text(
        yaml.safe_dump({k: v for k, v in m.items() if v is not None}, sort_keys=False)
    )
    return manifest


def table(manifest, name, change, **options):
    "Rewrite one of the tables."
    path = manifest.parent / name
    change(pd.read_csv(path, dtype=str, keep_default_na=False)).to_csv(path, index=False, **options)


def fails(manifest, *parts, longest=600, **options):
    with pytest.raises(RadgenError) as error:
        load_files(manifest, **options)
    text = str(error.value)
    assert '\n' not in text and len(text) < longest
    for part in parts:
        assert part in text, f'{part!r} not in {text!r}'


def lines(cohort, **where):
    found = cohort.ledger
    for column, value in where.items():
        found = found[found[column] == value]
    return found


def additive(cohort):
    "The flat condition with its linear expression as log2(x + 1)."
    return cohort.conditions['multiomic'].apply(
        lambda c: np.log2(c + 1) if c.name.startswith('expression:') else c
    )


# --- what is written is read ------------------------------------------------------------


def test_round_trip(phantom, manifest):
    cohort = load_cohort('files', manifest=manifest)
    np.testing.assert_allclose(cohort.images, phantom.images, atol=1 / 65535)
    for name in 'labels', 'survival':
        pd.testing.assert_frame_equal(
            getattr(cohort, name), getattr(phantom, name), check_dtype=False
        )
    pd.testing.assert_frame_equal(
        cohort.conditions['multiomic'],
        additive(phantom),
        check_dtype=False,
        check_names=False,
        rtol=1e-5,
    )
    genes = list(phantom.conditions['expression'])
    pd.testing.assert_frame_equal(
        cohort.conditions['expression'],
        phantom.omics['expression'][genes],
        check_dtype=False,
        check_names=False,
        rtol=1e-6,
    )
    assert (
        cohort.simulated
        and cohort.name == 'files'
        and cohort.patients.site.equals(phantom.patients.site)
    )
    assert cohort.series.kind.equals(phantom.series.kind)


def test_every_row_and_column_of_every_table_is_accounted_for(phantom, manifest):
    cohort = load_files(manifest)
    for name in 'expression', 'cnv', 'methylation', 'labels', 'survival':
        items, raw = (
            set(lines(cohort, source=f'{name}.csv').item),
            pd.read_csv(manifest.parent / f'{name}.csv', index_col=0),
        )
        assert {*raw.index, *raw.columns} - {'site'} <= items
    assert set(lines(cohort, source='images.csv').item) >= {
        f'images/{s}.png' for s in phantom.series.index
    }
    assert set(cohort.patients.index) <= set(lines(cohort, source='cohort').item)
    assert check(cohort)['count'].sum() == len(cohort.ledger) and check(manifest).equals(
        check(cohort)
    )


def test_five_lines_are_enough(phantom, manifest):
    manifest.write_text(
        'name: my_hospital\n'
        'omics: {expression: expression.csv, cnv: cnv.csv, methylation: methylation.csv}\n'
        'images: images.csv\nlabels: labels.csv\nsurvival: survival.csv\n'
    )
    cohort = load_files(manifest)
    assert (
        cohort.conditions['expression'].shape == (24, 15)
        and cohort.conditions['multiomic'].shape == (24, 180)
        and not cohort.simulated
    )
    spread = np.log2(phantom.omics['expression'] + 1).std().sort_values()
    assert set(cohort.conditions['expression']) == set(spread.index[-15:])


def test_conditions_fit(manifest):
    cohort = load_files(manifest)
    for name, frame in cohort.conditions.items():
        z = ConditionEncoder(name, 4).fit(frame).transform(frame)
        assert np.isfinite(z).all() and len(z) == 24


def test_a_manifest_is_relative_to_itself(manifest, monkeypatch, tmp_path):
    monkeypatch.chdir(manifest.parent.parent)
    assert len(load_files('hospital/manifest.yaml').patients) == 24


def test_variables(manifest, monkeypatch):
    monkeypatch.setenv('MY_PLACE', str(manifest.parent))
    edit(manifest, omics={'expression': '${MY_PLACE}/expression.csv', 'cnv': 'cnv.csv'})
    assert 'expression.csv' in set(load_files(manifest).ledger.source)
    monkeypatch.delenv('MY_PLACE')
    fails(manifest, 'MY_PLACE is not set')
    monkeypatch.delenv('RADGEN_DATA', raising=False)
    assert resolve('${RADGEN_DATA}/x', Path('.')) == data_dir('x')


def test_what_there_is(phantom, manifest):
    there = scan_manifest(manifest)
    assert (there.name, there.conditions, there.labels) == (
        'phantom',
        ['multiomic', 'expression'],
        list(phantom.labels),
    )
    assert len(there.files) == 7 + len(phantom.series) and all(f.exists() for f in there.files)
    there = scan_manifest(
        edit(
            manifest,
            name=None,
            omics={'cnv': 'none.csv'},
            labels='published',
            images=None,
            conditions=None,
        )
    )
    assert (there.name, there.conditions, there.labels, len(there.files)) == ('manifest', [], [], 3)


def test_all_that_a_study_reads_is_named(manifest):
    (manifest.parent / 'genes.txt').write_text('ESR1')
    (manifest.parent / 'mri' / 's').mkdir(parents=True)
    for name in 'b.dcm', 'a.dcm':
        (manifest.parent / 'mri' / 's' / name).write_text('')
    there = scan_manifest(
        edit(
            manifest,
            images=None,
            dicom='mri',
            labels={'file': 'labels.csv', 'columns': {'site': 'site'}},
            conditions={'expression': {'genes': 'genes.txt'}, 'multiomic': {'genes': 'shared'}},
        )
    )
    assert (
        [f.name for f in there.files[-3:]] == ['a.dcm', 'b.dcm', 'genes.txt']
        and all(f.is_file() for f in there.files)
        and there.labels[0] == 'er'
    )


def test_parts_that_are_not_there_are_not_written(phantom, tmp_path):
    raw = phantom.conditions['multiomic']
    bare = replace(
        phantom,
        omics={'cnv': phantom.omics['cnv'], 'methylation': phantom.omics['methylation']},
        conditions={'multiomic': raw[[c for c in raw if c[:4] != 'expr']]},
        labels=phantom.labels[[]],
        survival=phantom.survival[:0],
        images=phantom.images[:0],
        series=phantom.series[:0],
    )
    path = write_files(bare, tmp_path / 'bare')
    assert set(yaml.safe_load(path.read_text())) == {'name', 'omics', 'simulated'}
    pd.testing.assert_frame_equal(
        load_files(path).conditions['multiomic'],
        bare.conditions['multiomic'],
        check_dtype=False,
        check_names=False,
        rtol=1e-5,
    )
    few = [f'{o}:{g}' for o in ('cnv', 'methylation') for g in phantom.omics['cnv'].columns[:5]]
    assert (
        list(
            load_files(
                write_files(replace(bare, conditions={'multiomic': raw[few]}), tmp_path / 'few')
            ).conditions['multiomic']
        )
        == few
    )


# --- scales -----------------------------------------------------------------------------


def test_expression_on_three_scales(phantom, manifest):
    linear = load_files(manifest).conditions['expression']
    x = phantom.omics['expression']
    np.log2(x + 1).to_csv(manifest.parent / 'expression.csv')
    others = {'cnv': 'cnv.csv', 'methylation': 'methylation.csv'}
    fails(manifest, 'expression.csv', 'state `scale: log2`')
    cohort = load_files(
        edit(manifest, omics={'expression': {'file': 'expression.csv', 'scale': 'log2'}, **others})
    )
    np.testing.assert_allclose(cohort.conditions['expression'], linear, rtol=1e-4, atol=1e-4)
    (np.log2(x + 1) - np.log2(x + 1).mean()).to_csv(manifest.parent / 'expression.csv')
    fails(manifest, 'expression.csv', 'scale: centred')
    cohort = load_files(
        edit(
            manifest, omics={'expression': {'file': 'expression.csv', 'scale': 'centred'}, **others}
        )
    )
    assert (cohort.conditions['expression'].fillna(1) > 0).all(axis=None) and (
        cohort.omics['expression'].min() < 0
    ).any()
    assert np.isfinite(
        ConditionEncoder('expression')
        .fit(cohort.conditions['expression'])
        .transform(cohort.conditions['expression'])
    ).all()


def test_the_multiomic_condition_is_additive_on_every_stated_scale(phantom, manifest, tmp_path):
    logs = replace(
        phantom, omics={**phantom.omics, 'expression': np.log2(phantom.omics['expression'] + 1)}
    )
    for path in manifest, write_files(logs, tmp_path / 'logs', scale='log2'):
        np.testing.assert_allclose(
            load_files(path).conditions['multiomic'], additive(phantom), rtol=1e-4, atol=1e-4
        )
    low = (
        phantom.omics['expression'] / phantom.omics['expression'].max(axis=None) * 40
    )  # below every threshold that takes values for counts
    low.to_csv(manifest.parent / 'expression.csv')
    np.testing.assert_allclose(
        load_files(manifest).conditions['multiomic'].filter(like='expression:'),
        np.log2(low + 1),
        rtol=1e-4,
        atol=1e-4,
    )


def test_omics_by_another_name(manifest):
    others = {'cnv': 'cnv.csv'}
    for name, known in {
        'Expression': 'expression',
        'methlation': 'methylation',
        'gene_expression': 'expression',
    }.items():
        fails(
            edit(manifest, omics={name: 'expression.csv', **others}, conditions=None),
            f'did you mean {known!r}?',
        )
    cohort = load_files(edit(manifest, omics={'protein': 'expression.csv', **others}))
    assert 'no scale is checked' in lines(cohort, item='protein').reason.iloc[0]


def test_methylation_as_percent(phantom, manifest):
    (100 * phantom.omics['methylation']).to_csv(manifest.parent / 'methylation.csv')
    fails(manifest, 'methylation.csv', 'percent scale')
    edit(
        manifest,
        omics={
            'expression': 'expression.csv',
            'methylation': {'file': 'methylation.csv', 'scale': 'percent'},
        },
    )
    np.testing.assert_allclose(
        load_files(manifest).omics['methylation'], phantom.omics['methylation'], rtol=1e-5
    )


# --- gaps are no errors -----------------------------------------------------------------


def test_gaps_of_patients(phantom, manifest):
    first, second, third = phantom.imaged[:3]
    for omic in 'expression', 'cnv', 'methylation':
        gone = [first, second] if omic == 'cnv' else [first]
        table(manifest, f'{omic}.csv', lambda t, gone=gone: t[~t.patient_id.isin(gone)])
    table(manifest, 'labels.csv', lambda t: t[t.patient_id != third])
    cohort = load_files(manifest)
    assert (
        first in cohort.imaged
        and first in cohort.patients.index
        and first not in cohort.paired('multiomic')
    )
    row = cohort.conditions['multiomic'].loc[second]
    assert row.filter(like='cnv:').isna().all() and row.filter(like='expression:').notna().any()
    assert cohort.labels.loc[third].isna().all()
    said = {
        p: lines(cohort, source='cohort', item=p).reason.iloc[0] for p in (first, second, third)
    }
    assert said == {
        first: 'absent: expression, cnv, methylation',
        second: 'absent: cnv',
        third: 'absent: labels',
    }


def test_gaps_of_tables(manifest):
    two = load_files(edit(manifest, omics={'expression': 'expression.csv', 'cnv': 'cnv.csv'}))
    assert two.conditions['multiomic'].shape == (24, 120)
    one = load_files(
        edit(
            manifest,
            omics={'expression': 'expression.csv'},
            labels=None,
            survival=None,
            images=None,
        )
    )
    assert (
        list(one.conditions) == ['expression']
        and one.images.shape == (0, 128, 128)
        and not one.labels.shape[1]
        and not len(one.survival)
    )
    assert lines(one, item='multiomic').reason.iloc[0].startswith('fewer than two omics')
    fails(edit(manifest, omics={'cnv': 'cnv.csv'}, conditions=None), 'cnv alone makes no condition')
    assert len(one.counts())


def test_constant_and_empty_genes(phantom, manifest):
    gene = phantom.omics['cnv'].columns[4]
    table(manifest, 'cnv.csv', lambda t: t.assign(**{gene: '0', t.columns[1]: ''}))
    cohort = load_files(manifest)
    assert (
        f'cnv:{gene}' in cohort.conditions['multiomic']
        and 'constant' in lines(cohort, source='cnv.csv', item=gene).reason.iloc[0]
    )
    assert cohort.omics['cnv'].shape[1] == 59 and cohort.conditions['multiomic'].shape[1] == 177


# --- genes ------------------------------------------------------------------------------


def test_genes_asked_for(phantom, manifest):
    genes = list(phantom.omics['expression'].columns[:3])
    (manifest.parent / 'genes.txt').write_text('\n'.join(genes))
    for asked in genes, 'genes.txt':
        assert (
            list(
                load_files(edit(manifest, conditions={'expression': {'genes': asked}})).conditions[
                    'expression'
                ]
            )
            == genes
        )
    cohort = load_files(
        edit(manifest, conditions={'expression': {'n_genes': 4}, 'multiomic': {'genes': 7}})
    )
    assert (
        cohort.conditions['expression'].shape[1] == 4
        and cohort.conditions['multiomic'].shape[1] == 21
    )
    fails(
        edit(manifest, conditions={'expression': {'genes': [*genes, 'ESR9']}}),
        "gene 'ESR9' is not in the tables",
    )
    fails(
        edit(manifest, conditions={'multiomic': {'genes': 61}}), '61 genes requested, there are 60'
    )
    fails(edit(manifest, conditions={'expression': {'genes': 'none.txt'}}), 'none.txt')
    fails(
        edit(manifest, conditions={'expression': {'genes': genes, 'n_genes': 3}}),
        'both genes and n_genes',
    )
    (manifest.parent / 'genes.txt').write_text('\n'.join(genes), encoding='utf-16')
    fails(edit(manifest, conditions={'expression': {'genes': 'genes.txt'}}), 'genes.txt', 'UTF-8')
    fails(edit(manifest, conditions={'expressoin': {}}), "did you mean 'expression'?")


def test_genes_without_overlap(manifest):
    table(
        manifest,
        'cnv.csv',
        lambda t: t.rename(columns=lambda c: c if c == 'patient_id' else f'ENSG{c}'),
    )
    fails(manifest, 'expression, cnv, methylation share no gene', 'ENSG')


def test_features(phantom, manifest):
    z = pd.DataFrame(
        np.random.default_rng(0).normal(size=(20, 3)),
        phantom.patients.index[:20],
        ['F1', 'F2', 'F3'],
    )
    z.to_csv(manifest.parent / 'factors.csv')
    cohort = load_files(edit(manifest, features='factors.csv'))
    np.testing.assert_allclose(cohort.conditions['multiomic'], z)
    z.assign(**dict.fromkeys(z, [np.nan] * 3 + [1.0] * 17)).to_csv(manifest.parent / 'factors.csv')
    assert (
        len(load_files(manifest).conditions['multiomic']) == 17
        and (lines(load_files(manifest), source='factors.csv').decision == 'dropped').sum() == 3
    )
    z.to_csv(manifest.parent / 'factors.csv')
    only = load_files(edit(manifest, omics=None, conditions=None))
    assert list(only.conditions) == ['multiomic'] and only.omics == {}
    z.add_prefix('cnv:').to_csv(manifest.parent / 'factors.csv')
    fails(manifest, 'factors.csv', 'raw omics')


# --- identifiers ------------------------------------------------------------------------


@pytest.mark.parametrize('prefix', ['case ', '00'])
def test_own_identifiers(phantom, manifest, prefix):
    for name in 'expression', 'cnv', 'methylation', 'images', 'labels', 'survival':
        table(
            manifest, f'{name}.csv', lambda t: t.assign(patient_id=prefix + t.patient_id.str[-4:])
        )
    table(manifest, 'images.csv', lambda t: t.drop(columns=['site']))
    table(manifest, 'labels.csv', lambda t: t.drop(columns=['site']))
    cohort = load_files(manifest)
    assert (
        set(cohort.patients.site) == {'unknown'}
        and cohort.patients.index[0] == f'{prefix}0001'
        and len(cohort.paired('multiomic')) == 5
    )


@pytest.mark.parametrize('name', ['images', 'labels', 'survival'])
def test_another_study(manifest, name):
    table(
        manifest, f'{name}.csv', lambda t: t.assign(patient_id=t.patient_id.str.replace('PH', 'ZZ'))
    )
    fails(manifest, 'no patient of', 'TCGA-ZZ-0', 'TCGA-PH-0', 'another study')


@pytest.mark.parametrize('name', ['expression', 'labels', 'survival'])
def test_a_patient_twice(manifest, name):
    table(manifest, f'{name}.csv', lambda t: pd.concat([t, t[:1]]))
    fails(manifest, f'{name}.csv', 'TCGA-PH-0001', 'keep one')


def test_two_studies_in_a_table(manifest):
    table(manifest, 'labels.csv', lambda t: t.assign(patient_id=['MB.0046', *t.patient_id[1:]]))
    fails(manifest, 'labels.csv', 'MB.0046')


# --- labels and survival ----------------------------------------------------------------


def test_words_need_a_meaning(phantom, manifest):
    words = {
        '1': 'Positive',
        '1.0': 'Positive',
        '0': 'Negative',
        '0.0': 'Negative',
        '': 'Equivocal',
    }
    table(
        manifest,
        'labels.csv',
        lambda t: t.assign(er=t.er.map(words)).rename(columns={'er': 'ER_STATUS'}),
    )
    fails(manifest, 'labels.csv', 'ER_STATUS', 'values: {')
    cohort = load_files(
        edit(
            manifest,
            labels={
                'file': 'labels.csv',
                'columns': {'er': 'ER_STATUS'},
                'values': {'Positive': 1, 'Negative': 0, 'Equivocal': ''},
            },
        )
    )
    pd.testing.assert_frame_equal(cohort.labels, phantom.labels[['er']], check_dtype=False)
    assert lines(cohort, source='labels.csv', item='her2').decision.tolist() == ['dropped']
    fails(
        edit(manifest, labels={'file': 'labels.csv', 'values': {'Positive': 2}}),
        "values.Positive: must be '0', '1' or '', got '2'",
    )
    fails(
        edit(manifest, labels={'file': 'labels.csv', 'columns': ['ER_STATE']}),
        "did you mean 'ER_STATUS'?",
    )
    fails(
        edit(manifest, labels={'file': 'labels.csv', 'values': 'Positive'}),
        "values: must be a valid dictionary, got 'Positive'",
    )


def test_a_label_is_0_or_1(manifest):
    table(manifest, 'labels.csv', lambda t: t.assign(pr=['2', *t.pr[1:]]))
    fails(manifest, 'labels.csv', "column 'pr', patient TCGA-PH-0001 is '2'")


def test_columns_by_other_names(phantom, manifest):
    text = (manifest.parent / 'labels.csv').read_text()
    table(
        manifest,
        'labels.csv',
        lambda t: t.rename(columns={'patient_id': 'PATIENT_ID', 'site': 'HOSP'}).assign(
            HOSP='east'
        ),
    )
    fails(manifest, 'labels.csv', "did you mean 'PATIENT_ID'?")
    names = {'patient_id': 'PATIENT_ID', 'site': 'HOSP'}
    table(manifest, 'images.csv', lambda t: t.drop(columns='site'))
    for more, labels in ({}, list(phantom.labels)), ({'oestrogen': 'er'}, ['oestrogen']):
        edit(manifest, labels={'file': 'labels.csv', 'columns': {**names, **more}})
        cohort = load_files(manifest)
        assert (
            set(cohort.patients.site) == set(cohort.series.site) == {'east'}
            and list(cohort.labels) == labels == scan_manifest(manifest).labels
        )
    fails(
        edit(manifest, labels={'file': 'labels.csv', 'columns': {**names, 'er': 'pr'}}),
        'labels.csv',
        "also a column 'er'",
    )
    fails(
        edit(manifest, labels={'file': 'labels.csv', 'columns': {**names, 'a': 'er', 'b': 'er'}}),
        "'er' is requested as a and b",
    )
    (manifest.parent / 'labels.csv.gz').write_bytes(gzip.compress(text.encode())[:-8] + bytes(8))
    fails(edit(manifest, labels='labels.csv.gz'), 'labels.csv.gz', 'not a readable text table')


def test_survival_times(phantom, manifest):
    table(
        manifest,
        'survival.csv',
        lambda t: t.assign(
            time_days=['0', '-5', '', *t.time_days[3:]], event=[*t.event[:3], '', *t.event[4:]]
        ),
    )
    cohort = load_files(manifest)
    assert (
        len(cohort.survival) == 20
        and (lines(cohort, source='survival.csv').decision == 'dropped').sum() == 4
    )
    assert set(phantom.patients.index[:4]) <= set(cohort.patients.index)


def test_months_and_days(phantom, manifest):
    days = pd.read_csv(manifest.parent / 'survival.csv', index_col=0)
    days.assign(time_months=days.time_days / 30.4375).drop(columns='time_days').to_csv(
        manifest.parent / 'survival.csv'
    )
    np.testing.assert_allclose(load_files(manifest).survival.time_days, phantom.survival.time_days)
    days.rename(columns={'time_days': 'time_months'}).to_csv(manifest.parent / 'survival.csv')
    fails(manifest, 'survival.csv', 'call the column time_days')
    days.assign(time_months=days.time_days).to_csv(manifest.parent / 'survival.csv')
    fails(manifest, 'survival.csv', 'both time_days and time_months')
    days.assign(time_days='soon').to_csv(manifest.parent / 'survival.csv')
    fails(manifest, 'survival.csv', 'TCGA-PH-0001', "'soon'")
    days.drop(columns='event').to_csv(manifest.parent / 'survival.csv')
    fails(manifest, 'survival.csv', "no column 'event'")


# --- images -----------------------------------------------------------------------------


def test_images_of_any_size_and_kind(phantom, manifest):
    folder, names = manifest.parent / 'images', list(phantom.series.index)
    x = phantom.images[0]
    Image.fromarray(np.uint8(np.rint(255 * x))).save(folder / f'{names[0]}.png')
    fails(manifest, f'{names[0]}.png', '8 bits', 'below white (65535)')
    edit(manifest, images='images.csv')
    Image.fromarray(np.stack([np.uint8(np.rint(255 * x))] * 3, 2)[:, :18]).save(
        folder / f'{names[1]}.png'
    )
    np.save(folder / 'x.npy', phantom.images[2].astype('float64'))
    Image.fromarray(phantom.images[3]).save(folder / 'x.tif')
    files = ['images/x.npy', 'images/x.tif']
    table(manifest, 'images.csv', lambda t: t.assign(file=[*t.file[:2], *files, *t.file[4:]]))
    cohort = load_files(manifest, image_size=24)
    np.testing.assert_allclose(cohort.images[[0, 2, 3]], phantom.images[[0, 2, 3]], atol=0.003)
    np.testing.assert_allclose(cohort.images[1, :, 3:21], x[:, :18], atol=0.003)
    assert cohort.images[1, :, :3].max() == cohort.images[1, :, 21:].max() == 0
    assert (
        'padded to a square'
        in lines(cohort, source='images.csv', decision='changed').reason.iloc[0]
    )
    assert load_files(manifest).images.shape[1:] == (128, 128)  # sizes differ: the paper's


def test_resizing_is_that_of_cohorts(phantom, manifest):
    np.testing.assert_allclose(
        load_files(manifest, image_size=12).images, resize_images(phantom.images, 12), atol=2e-5
    )


def test_twelve_bits_in_sixteen(phantom, manifest):
    for name, x in zip(phantom.series.index, phantom.images):
        Image.fromarray(np.uint16(np.rint(4095 * x))).save(
            manifest.parent / 'images' / f'{name}.png'
        )
    fails(edit(manifest, images='images.csv'), 'white: 4095')
    cohort = load_files(edit(manifest, images={'file': 'images.csv', 'white': 4095}))
    np.testing.assert_allclose(cohort.images, phantom.images, atol=1 / 4095)
    fails(edit(manifest, images={'file': 'images.csv', 'white': 900}), 'above white (900)')
    for white in 'bright', 'nan', 'inf', 0, -1:
        fails(
            edit(manifest, images={'file': 'images.csv', 'white': white}),
            f"white: must be a number above 0, got '{white}'",
        )


@pytest.mark.parametrize(
    'what, why',
    [
        ('gone', 'no such image'),
        ('text', 'not a readable image'),
        ('colour', 'a colour image'),
        ('clear', 'partly transparent'),
        ('pair', '2 images in one file'),
        ('nan', 'missing or infinite'),
        ('negative', 'values from 0 up'),
        ('bright', 'above white'),
        ('cube', 'shape (4, 4, 5)'),
        ('empty', 'empty'),
        ('pickle', 'not a readable image'),
    ],
)
def test_bad_images(manifest, what, why):
    folder, rng, gray = (
        manifest.parent / 'images',
        np.random.default_rng(0),
        np.full((8, 8), 99, np.uint8),
    )
    name = (
        'x.tif'
        if what == 'pair'
        else 'x.png'
        if what in ('gone', 'text', 'colour', 'clear')
        else 'x.npy'
    )
    path = folder / name
    if what == 'text':
        path.write_text('not an image')
    if what == 'colour':
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).save(path)
    if what == 'clear':
        Image.fromarray(np.dstack([gray, gray, gray, np.eye(8, dtype=np.uint8)])).save(path)
    if what == 'pair':
        Image.fromarray(gray).save(path, save_all=True, append_images=[Image.fromarray(gray)])
    arrays = dict(
        nan=np.full((4, 4), np.nan),
        negative=np.full((4, 4), -1.0),
        bright=np.full((4, 4), 7.0),
        cube=np.ones((4, 4, 5)),
        empty=np.ones((0, 4)),
        pickle=np.array([None]),
    )
    if what in arrays:
        np.save(path, arrays[what])
    table(manifest, 'images.csv', lambda t: t.assign(file=[f'images/{name}', *t.file[1:]]))
    fails(edit(manifest, images='images.csv'), name, why)


def test_bad_tables_of_images(manifest):
    original = (manifest.parent / 'images.csv').read_text()
    for change, parts in [
        (lambda t: t.drop(columns='file'), ["no column 'file'"]),
        (lambda t: t.rename(columns={'file': 'flie'}), ["did you mean 'flie'?"]),
        (lambda t: t.assign(file=t.file[0]), ['given twice']),
        (lambda t: t.assign(series_id='s'), ["series_id 's'"]),
        (lambda t: t.assign(file=['', *t.file[1:]]), ['TCGA-PH-', 'is empty']),
        (
            lambda t: t.assign(series_id=['', *t.series_id[1:]]),
            ['TCGA-PH-', "'series_id' is empty"],
        ),
        (lambda t: t.assign(patient_id=['', *t.patient_id[1:]]), ['row 1', 'no patient_id']),
        (lambda t: t[:0], ['no rows']),
    ]:
        (manifest.parent / 'images.csv').write_text(original)
        table(manifest, 'images.csv', change)
        fails(manifest, 'images.csv', *parts)


def test_padding():
    assert (
        pad_to_square(np.ones((2, 5))).sum() == 10
        and pad_to_square(np.ones((2, 5))).shape == (5, 5)
        and pad_to_square(np.ones((2, 5)))[1].all()
    )


def test_images_without_names_or_kinds(phantom, manifest):
    table(manifest, 'images.csv', lambda t: t[['patient_id', 'file']])
    cohort = load_files(manifest)
    assert (
        list(cohort.series.index) == list(phantom.series.index)
        and set(cohort.series.kind) == {'unstated'}
        and cohort.series.site.ne('').all()
    )


# --- manifests --------------------------------------------------------------------------


@pytest.mark.parametrize(
    'text, parts',
    [
        ('', ['expected `key: value`']),
        ('- a\n- b', ['expected `key: value`']),
        ('omics: {a: b', ['line 1: not readable as YAML']),
        ('name: x\n', ['neither omics nor features']),
        ('omics: {cnv: a.csv}\nlabel: b.csv', ["did you mean 'labels'?"]),
        ('omics: rna.csv', ['write `omics: {expression: ...}`']),
        ('omics: {}', ['`omics: {expression: rna.csv}`']),
        ('omics: {cnv: {scale: x}}', ['omics.cnv', 'file is missing']),
        ('omics: {cnv: none.csv}', ['none.csv', 'no such file']),
        ('omics: {cnv: a.csv}\nimages: a\ndicom: b', ['keep one']),
        ('omics: {cnv: a.csv}\nomics: {cnv: b.csv}', ['line 1', "'omics' is given twice"]),
        ('{[a]: b}', ['YAML']),
        ('features: published', ['give omics']),
        ('omics: {cnv: a.csv}\nsimulated: perhaps', ["'perhaps'"]),
        ('omics: {"c:n": a.csv}', ["omic 'c:n'"]),
        ('omics: {cnv: [a, b]}', ['omics.cnv', 'expected `key: value`']),
    ],
)
def test_bad_manifests(tmp_path, text, parts):
    (tmp_path / 'm.yaml').write_text(text)
    fails(tmp_path / 'm.yaml', *parts)


def test_all_errors_of_a_manifest_at_once(tmp_path):
    (tmp_path / 'm.yaml').write_text(
        'nmae: x\n'
        'omics: {expression: {file: a.csv, scael: log2}, methlation: b.csv, cnv: {scale: beta}}\n'
        'images: {file: c.csv, white: [1]}\n'
        'dicom: {folder: mri, side: top, reduce: 3}\n'
        'labels: {file: d.csv, columns: [[a], b], values: {yes: 2}}\n'
        'conditions: {expresion: {}, multiomic: {n_genes: x, genes: {a: b}}}\n'
        'simulated: [true]\n'
    )
    fails(
        tmp_path / 'm.yaml',
        "unknown key 'nmae', did you mean 'name'?",
        "omics.expression: unknown key 'scael', did you mean 'scale'?",
        "omic 'methlation', did you mean 'methylation'?",
        'omics.cnv: file is missing',
        'images: white: must be a number above 0',
        "dicom: side: must be 'whole', 'left' or 'right', got 'top'",
        "reduce: must be 'mean' or 'max', got '3'",
        'labels: columns: must be a valid dictionary',
        "values.yes: must be '0', '1' or '', got '2'",
        "unknown key 'expresion', did you mean 'expression'?",
        "n_genes: must be a whole number, got 'x'",
        'simulated: must be true or false',
        'both images and dicom; keep one',
        longest=3000,
    )


@pytest.mark.parametrize(
    'text',
    [
        'omics: {cnv: a.csv}\nname: [x]',
        'omics: [a, b]',
        'omics: {cnv: {file: [a]}}',
        'omics: {cnv: {file: ""}}',
        'omics: {cnv: {file: a.csv, rows: columns}}',
        'omics: {cnv: {file: a.csv, scale: log2}}',
        'omics: {expression: {file: a.csv, scale: log}}',
        'omics: {cnv: a.csv}\nconditions: no',
        'omics: {cnv: a.csv}\nconditions: {multiomic: yes}',
        'omics: {cnv: a.csv, b: c.csv}\nconditions: {multiomic: {genes: [[x]]}}',
        'omics: {cnv: a.csv}\nconditions: {expression: {n_genes: 3}}',
        'omics: {cnv: a.csv}\nsurvival: [a]',
        'omics: {cnv: a.csv}\ndicom: published: x',
        'omics: {cnv: a.csv}\nlabels:',
        '[' * 3000,
        'a: &x [*x]',
        '\x00',
    ],
)
def test_wrong_kinds_of_value(tmp_path, text):
    (tmp_path / 'm.yaml').write_text(text)
    for read in load_files, scan_manifest:
        with pytest.raises(RadgenError) as error:
            read(tmp_path / 'm.yaml')
        assert '\n' not in str(error.value) and 'm.yaml' in str(error.value)


def test_no_manifest(tmp_path):
    fails(tmp_path / 'm.yaml', 'no such manifest')
    fails(tmp_path, 'cannot be read')
    with pytest.raises(RadgenError, match="needs 'manifest'"):
        load_cohort('files')


def test_empty_and_wordy_omics(manifest):
    text = (manifest.parent / 'cnv.csv').read_text()
    (manifest.parent / 'cnv.csv').write_text('')
    fails(manifest, 'cnv.csv', 'empty')
    (manifest.parent / 'cnv.csv').write_text(text)
    table(
        manifest, 'cnv.csv', lambda t: t.assign(**{t.columns[2]: ['deleted', *t[t.columns[2]][1:]]})
    )
    fails(manifest, 'cnv.csv', 'TCGA-PH-0001', "'deleted'")
    table(manifest, 'cnv.csv', lambda t: t.assign(**{t.columns[2]: ['inf', *t[t.columns[2]][1:]]}))
    fails(manifest, 'cnv.csv', 'TCGA-PH-0001', 'infinite')


def test_damage_is_refused_in_one_line(manifest):
    "Bytes lost, repeated or replaced in any file: the cohort loads, or one line says why not."
    rng, files, refused = (
        random.Random(5),
        [*sorted(manifest.parent.glob('*.*')), next((manifest.parent / 'images').iterdir())],
        0,
    )
    for _ in range(60):
        path = rng.choice(files)
        whole = path.read_bytes()
        i = rng.randrange(min(len(whole), 2000))
        j = i + rng.choice([1, 3, 10, 60])
        path.write_bytes(
            whole[:i]
            + rng.choice(
                [b'', whole[i:j] * 2, b'inf', b'"', b',', b'\n', b'\x00', b'{', b'TCGA-ZZ-0000']
            )
            + whole[j:]
        )
        try:
            load_files(manifest)
        except RadgenError as error:
            refused += 1
            assert '\n' not in str(error)
        path.write_bytes(whole)
    assert 20 < refused < 60


def test_dicom_folder_that_is_not_there(manifest):
    fails(edit(manifest, images=None, dicom='mri'), 'mri', 'no such folder')


@pytest.fixture
def mri(phantom, manifest, monkeypatch, tmp_path):
    "A manifest with a folder of two patients' DICOM series in place of images."
    from radgen.phantom.dicom import breast, plane_grid, write_series

    monkeypatch.setenv('RADGEN_HOME', str(tmp_path))
    grid = plane_grid('sagittal', pixel=4.0, slice_mm=8.0)
    for k, patient in enumerate(phantom.imaged[:2]):
        write_series(
            breast(*grid.points()),
            grid,
            manifest.parent / 'mri' / f's{k}',
            uid=f'1.2.3.{k}',
            PatientID=patient,
        )
    return edit(manifest, images=None, dicom='mri')


def test_dicom_series_become_images(phantom, mri):
    from radgen.data.projections import read_series, sagittal_projection

    cohort = load_files(mri, image_size=32)
    assert cohort.images.shape == (2, 32, 32) and cohort.series.patient_id.tolist() == list(
        phantom.imaged[:2]
    )
    np.testing.assert_allclose(
        cohort.images[0],
        sagittal_projection(read_series(mri.parent / 'mri' / 's0'), 32),
        atol=1 / 255,
    )
    pd.testing.assert_frame_equal(load_files(mri, image_size=32).series, cohort.series)
    assert {'1.2.3.0', '1.2.3.1'} <= set(cohort.ledger.item[cohort.ledger.source == 'mri: series'])


def test_kinds_and_phases_of_dicom_series(phantom, mri):
    from radgen.phantom.dicom import breast, plane_grid, write_series

    grid, patient = plane_grid('sagittal', pixel=4.0, slice_mm=8.0), phantom.imaged[2]
    x = breast(*grid.points())
    for p in range(2):
        write_series(
            x / (1 + p),
            grid,
            mri.parent / 'mri' / 'two',
            uid='1.2.3.7',
            seed=p,
            prefix=f'{p}-',
            PatientID=patient,
            SeriesDescription='Sag dynamic VIBRANT',
            headers=lambda i, p=p: dict(TemporalPositionIdentifier=p + 1, InstanceNumber=2 * i + p),
        )
    cohort = load_files(mri, image_size=32)
    assert (
        cohort.series.patient_id.tolist() == list(phantom.imaged[:3])
        and cohort.series.kind.iloc[2] == 'phase'
    )
    later = lines(cohort, source='mri: series', item='1.2.3.7-1')
    assert (
        later.decision.tolist() == ['dropped']
        and 'a later phase' in later.reason.iloc[0]
        and lines(cohort, item='1.2.3.7-0').decision.iloc[0] != 'dropped'
    )
    small = load_files(mri, image_size=16)
    np.testing.assert_array_equal(load_files(mri, image_size=32).images, cohort.images)
    assert (
        small.images.shape == (3, 16, 16)
        and len([*mri.parents[1].glob('runs/files/projections/phantom/*/series.csv')]) == 2
    )


def test_other_files_beside_dicom_are_dropped(mri):
    (mri.parent / 'mri' / 'notes.txt').write_text('not an image')
    ledger = load_files(mri, image_size=32).ledger
    assert 'notes.txt' in ' '.join(ledger.item[ledger.decision == 'dropped'])


def test_a_folder_without_dicom(mri):
    edit(mri, dicom='images')
    fails(mri, 'images')


# --- real omics with released projections, labels and survival --------------------------


@pytest.fixture(scope='module')
def chr17p(published_folder):
    if not (data_dir('multiomics_chr17p') / 'tcga2012brca_chr17p_cnv.csv').exists():
        pytest.skip(
            'tables of chromosome arm 17p are not at hand: put multiomics_chr17p below RADGEN_DATA'
        )
    return load_files(CHR17P)


def test_real_omics(chr17p, published):
    assert (
        list(chr17p.conditions) == ['multiomic']
        and chr17p.conditions['multiomic'].shape == (463, 450)
        and len(chr17p.patients) == 463
    )
    assert chr17p.patients.index.isin(published.conditions['multiomic'].index).sum() == 42
    assert len(chr17p.imaged) == len(chr17p.paired('multiomic')) == 16 and chr17p.images.shape == (
        38,
        128,
        128,
    )
    assert (
        chr17p.labels.er.notna().sum() == 188
        and len(chr17p.survival) == 452
        and chr17p.survival.event.sum() == 72
    )
    assert not chr17p.survival.event.reindex(chr17p.imaged).sum() and not chr17p.simulated
    assert int(chr17p.conditions['multiomic'].isna().sum().sum()) == 12


def test_real_omics_go_through_the_encoder(chr17p):
    for name, frame in chr17p.conditions.items():
        paired = frame.loc[chr17p.paired(name)]
        assert np.isfinite(ConditionEncoder(name).fit(paired).transform(frame)).all()


def test_a_condition_left_out_can_be_had(chr17p, tmp_path):
    assert 'conditions: {expression: no}' in CHR17P.read_text()
    (tmp_path / 'm.yaml').write_text(CHR17P.read_text().replace('conditions: {expression: no}', ''))
    frame = load_files(tmp_path / 'm.yaml', image_size=16).conditions['expression']
    assert frame.shape == (463, 15) and (frame.min() > 0).all()


def test_released_parts_are_those_of_the_release(chr17p, published):
    np.testing.assert_array_equal(
        chr17p.images, published.images[published.series.index.isin(chr17p.series.index)]
    )
    pd.testing.assert_frame_equal(
        chr17p.labels, published.labels.loc[chr17p.patients.index], check_names=False
    )
    assert (
        lines(chr17p, source='published images', decision='dropped').shape[0],
        lines(chr17p, source='published images', decision='kept').shape[0],
    ) == (20, 38)


def test_released_features_for_own_patients(chr17p, tmp_path):
    (tmp_path / 'm.yaml').write_text(CHR17P.read_text() + 'features: published\n')
    assert load_files(tmp_path / 'm.yaml', image_size=16).conditions['multiomic'].shape == (42, 17)


def test_palette_and_printing_colours(manifest):
    gray = Image.fromarray(np.full((24, 24), 99, np.uint8))
    gray.convert('P').save(manifest.parent / 'images' / 'p.png')
    gray.convert('CMYK').save(manifest.parent / 'images' / 'c.tif')
    table(
        manifest,
        'images.csv',
        lambda t: t.assign(file=['images/p.png', 'images/c.tif', *t.file[2:]]),
    )
    np.testing.assert_allclose(
        load_files(edit(manifest, images='images.csv')).images[:2], 99 / 255, atol=1e-6
    )


def test_released_parts_of_another_study(manifest, published_folder):
    fails(edit(manifest, images='published'), 'images: published has none of the 24 patients')
