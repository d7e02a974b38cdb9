"DICOM files of a known volume, in every plane and coding, held to the formula behind them."

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pydicom
import pytest

from radgen.core.paths import RadgenError
from radgen.data import archive as archive_module
from radgen.data.archive import project_folder, read_projection
from radgen.data.dicom_files import TIME_TAGS, file_ledger, scan_folder
from radgen.data.flags import quality, quality_flags
from radgen.data.phases import series_in
from radgen.data.projections import read_series, sagittal_projection, split_sides, to_sagittal
from radgen.data.volumes import read_phases
from radgen.phantom.dicom import SYNTAXES, breast, known_projection, plane_grid, write_series

COARSE = dict(pixel=4.0, slice_mm=4.0)


def volume(grid, sides=('left',)):
    return breast(*grid.points(), sides)


def close(a, b, r=0.99, error=0.01):
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > r and np.abs(a - b).mean() < error


def write(folder, plane='sagittal', sides=('left',), change=lambda x: x, **options):
    "A series in a folder, its grid and values."
    where = {
        k: options.pop(k) for k in ('low', 'high', 'pixel', 'slice_mm', 'degrees') if k in options
    }
    grid = plane_grid(plane, **(COARSE | where))
    values = change(volume(grid, sides))
    write_series(values, grid, folder, **options)
    return grid, values


def edit(path, **changes):
    ds = pydicom.dcmread(path)
    for k, v in changes.items():
        ds.pop(k, None) if v is None else setattr(ds, k, v)
    ds.save_as(path)


@pytest.mark.parametrize('plane', ['sagittal', 'axial', 'coronal'])
def test_projection_of_each_plane(tmp_path, plane):
    write(tmp_path, plane, pixel=2.0)
    v = read_series(tmp_path)
    p, truth = sagittal_projection(v), known_projection((16, -96, -96), (144, 64, 96))
    assert v.plane == plane and p.dtype == np.float32 and p.min() >= 0 and p.max() <= 1
    close(p, truth)
    for wrong in (p[::-1], p[:, ::-1], p.T):
        assert np.abs(wrong - truth).mean() > 0.03
    close(
        sagittal_projection(v, reduce='max'),
        known_projection((16, -96, -96), (144, 64, 96), reduce='max'),
        0.98,
        0.04,
    )


@pytest.mark.parametrize('plane, degrees', [('sagittal', 20), ('axial', -20), ('coronal', 8)])
def test_oblique(tmp_path, plane, degrees):
    grid, _ = write(tmp_path, plane, pixel=2.0, degrees=degrees)
    v = read_series(tmp_path)
    # a turned axial slice is still axial: only its rows and columns turn
    assert v.plane == ('axial' if plane == 'axial' else f'oblique {plane}')
    close(sagittal_projection(v), known_projection(*v.extent(), scanned=grid), 0.98, 0.03)


def test_order_and_direction_do_not_matter(tmp_path):
    "Slices from the left or from the right, rows upwards: the patient is the same."
    grid, values = write(tmp_path / 'a')
    back = replace(
        grid,
        origin=grid.origin
        + grid.direction @ (grid.spacing * [grid.shape[0] - 1, grid.shape[1] - 1, 0]),
        direction=grid.direction * [-1, -1, 1],
    )
    write_series(values[::-1, ::-1], back, tmp_path / 'b', seed=5)
    a, b = (to_sagittal(read_series(tmp_path / n)) for n in 'ab')
    assert np.abs(a.array - b.array).max() < 1e-4 and np.allclose(a.origin, b.origin, atol=1e-3)


def test_millimetres(tmp_path):
    "Pixels twice as high as wide give the same projection."
    write(tmp_path / 'square', pixel=2.0)
    write(tmp_path / 'oblong', pixel=(4.0, 2.0))
    close(
        sagittal_projection(read_series(tmp_path / 'oblong')),
        sagittal_projection(read_series(tmp_path / 'square')),
        0.995,
        0.01,
    )


@pytest.mark.parametrize(
    'options',
    [
        dict(bits=12),
        dict(bits=16),
        dict(bits=16, signed=True, intercept=0.6),
        dict(bits=12, signed=True, intercept=0.7),
        dict(intercept=-0.5),
        dict(inverted=True),
        dict(inverted=True, bits=12),
        dict(inverted=True, signed=True, intercept=0.6),
        *[dict(syntax=s) for s in SYNTAXES],
        *[dict(syntax=s, bits=12) for s in SYNTAXES],
        dict(syntax='jpeg2000', signed=True, intercept=0.6),
        dict(syntax='rle', signed=True, intercept=0.6),
    ],
    ids=str,
)
def test_pixels(tmp_path, options):
    _, values = write(tmp_path, slice_mm=16.0, **options)
    assert np.abs(read_series(tmp_path).array - values).max() < 2 / 2 ** options.get('bits', 16)


def test_slope_of_each_slice(tmp_path):
    grid = plane_grid(**COARSE)
    values = volume(grid)
    for i in range(len(values)):
        write_series(
            values[[i]],
            replace(grid, origin=grid.origin + grid.direction[:, 0] * grid.spacing[0] * i),
            tmp_path,
            uid='1.2.3',
            slope=1e-4 * (1 + i),
            prefix=f'{(7 * i) % 32:02d}-',
        )
    assert np.abs(read_series(tmp_path).array - values).max() < 3e-3


def test_intensities_do_not_matter(tmp_path):
    write(tmp_path / 'a')
    write(tmp_path / 'b', change=lambda x: 700 * x + 35)
    assert (
        np.abs(
            sagittal_projection(read_series(tmp_path / 'a'))
            - sagittal_projection(read_series(tmp_path / 'b'))
        ).max()
        < 2e-3
    )


def test_constant(tmp_path):
    write(tmp_path, change=lambda x: x * 0 + 3)
    v = read_series(tmp_path)
    assert (
        sagittal_projection(v).max() == 0
        and any('constant' in f for f in v.findings)
        and quality(v)['constant']
    )


def test_two_breasts(tmp_path):
    write(tmp_path, 'axial', ('left', 'right'), low=(-150, -96, -96), high=(150, 64, 96), pixel=3.0)
    v = read_series(tmp_path)
    assert v.laterality == 'both' and v.facts['laterality_from'] == 'geometry'
    halves = split_sides(v)
    assert abs(halves['left'].extent()[0][0]) < 12 and halves['left'].laterality == 'left'
    assert np.allclose(halves['right'].extent()[1][0], halves['left'].extent()[0][0])
    truth = {s: known_projection(*halves[s].extent(), sides=(s,)) for s in halves}
    for side, other in ('left', 'right'), ('right', 'left'):
        p = sagittal_projection(v, side=side)
        close(p, truth[side])
        assert np.abs(p - truth[other]).mean() > 1.5 * np.abs(p - truth[side]).mean()


@pytest.mark.parametrize(
    'headers, side',
    [
        (dict(ImageLaterality='R'), 'right'),
        (dict(Laterality='L'), 'left'),
        (dict(SeriesDescription='SAG LT PRE'), 'left'),
        (dict(SeriesDescription='T2 right breast'), 'right'),
        ({}, 'left'),
    ],
)
def test_side(tmp_path, headers, side):
    write(tmp_path, pixel=8.0, slice_mm=8.0, **headers)
    v = read_series(tmp_path)
    assert v.laterality == side
    with pytest.raises(RadgenError, match='shows'):
        sagittal_projection(v, side=dict(left='right', right='left')[side])


@pytest.mark.parametrize('tag', [*TIME_TAGS, None])
def test_phases(tmp_path, tag):
    kinds = dict(ContentTime=lambda p, i: f'12000{p}', TriggerTime=lambda p, i: str(90000 * p))
    value = kinds.get(tag, lambda p, i: p + 1)
    headers = lambda p, i: {tag: value(p, i), 'InstanceNumber': 2 * i + p} if tag else {}
    for p in range(2):
        options = dict(uid='1.2.3', seed=p, prefix=f'{p}-', headers=partial(headers, p))
        write(tmp_path, change=partial(np.multiply, 1 + p), **options)
        if tag is None:  # numbered through, phase after phase
            for f in sorted(tmp_path.glob(f'{p}-*')):
                edit(f, InstanceNumber=1000 * p + pydicom.dcmread(f).InstanceNumber)
    with pytest.raises(RadgenError, match='2 phases'):
        read_series(tmp_path)
    first, second = read_phases(tmp_path)
    assert (
        first.facts['phases_from'] == (tag or 'the order of the repeats')
        and np.abs(2 * first.array - second.array).max() < 1e-3
    )
    assert np.array_equal(read_series(tmp_path, phase=1).array, second.array)
    with pytest.raises(RadgenError, match='no phase 2'):
        read_series(tmp_path, phase=2)
    assert series_in(tmp_path).n_phases.tolist() == [2]


def test_missing_slices(tmp_path):
    write(tmp_path / 'all')
    write(tmp_path / 'gap', skip=(11, 12))
    a, b = read_series(tmp_path / 'all'), read_series(tmp_path / 'gap')
    assert (
        a.array.shape == b.array.shape
        and b.facts['missing_mm'] == pytest.approx(8)
        and any(f.startswith('gap: 8.0 mm') for f in b.findings)
    )
    close(sagittal_projection(a), sagittal_projection(b), 0.998, 0.004)


def test_duplicates(tmp_path):
    grid, values = write(tmp_path / 'a', uid='1.2.3')
    again = replace(grid, origin=grid.origin + grid.direction[:, 0] * grid.spacing[0] * 5)
    write_series(
        values[[5]],
        again,
        tmp_path / 'a',
        uid='1.2.3',
        prefix='again',
        slope=float(values.max()) / 65535,
    )
    v = read_series(tmp_path / 'a')
    assert v.array.shape == values.shape and np.abs(v.array - values).max() < 1e-4
    assert any(f.startswith('1 left out, copies with the same pixels') for f in v.findings)
    write_series(
        values[[6]] * 0.5,
        replace(again, origin=grid.origin + grid.direction[:, 0] * grid.spacing[0] * 6),
        tmp_path / 'a',
        uid='1.2.3',
        prefix='other',
    )
    v = read_series(tmp_path / 'a')  # neither image of the position can be trusted
    assert any('2 images at the same position with other pixels' in f for f in v.findings)
    assert np.abs(v.array[6] - (values[5] + values[7]) / 2).max() < 1e-3
    write(tmp_path / 'b')
    f = next((tmp_path / 'b').iterdir())
    (tmp_path / 'b' / 'copy.dcm').write_bytes(f.read_bytes())
    assert any('same SOPInstanceUID' in f for f in read_series(tmp_path / 'b').findings)


def test_sheared_stack(tmp_path):
    "Slices whose positions drift sideways are placed where they were taken."
    grid = plane_grid(**COARSE)
    slant = grid.direction.copy()
    slant[:, 0] += 0.15 * slant[:, 1]
    lean = replace(grid, direction=slant)
    write_series(breast(*lean.points()), lean, tmp_path)
    v = read_series(tmp_path)
    assert any('shifted sideways' in f for f in v.findings)
    close(sagittal_projection(v), known_projection(*v.extent()), 0.98, 0.03)


def test_localizers(tmp_path):
    write(tmp_path / 'named', SeriesDescription='3-PLANE LOCALIZER')
    write(tmp_path / 'typed', ImageType=['ORIGINAL', 'PRIMARY', 'LOCALIZER'])
    write(tmp_path / 'sparse', slice_mm=32.0, SliceThickness='5')
    for plane in 'sagittal', 'axial', 'coronal':
        write(tmp_path / 'three', plane, slice_mm=32.0, uid='1.2.3', prefix=plane)
    for name, sign in dict(
        named='description', typed='image type', sparse='far apart', three='3 orientations'
    ).items():
        assert any(
            f.startswith('localizer') and sign in f for f in read_series(tmp_path / name).findings
        ), name
    assert read_series(tmp_path / 'three').plane == 'sagittal'
    write(tmp_path / 'plain', SeriesDescription='Sag located at block')
    assert not read_series(tmp_path / 'plain').findings


def refused(folder, words, **options):
    with pytest.raises(RadgenError, match=words) as e:
        read_series(folder, **options)
    assert '\n' not in str(e.value)


def test_folders_that_are_wrong(tmp_path):
    refused(tmp_path / 'none', 'no such folder')
    (tmp_path / 'empty').mkdir()
    refused(tmp_path / 'empty', 'empty')
    (tmp_path / 'text').mkdir()
    (tmp_path / 'text' / 'a.txt').write_text('hello')
    refused(tmp_path / 'text', 'no DICOM image .*not DICOM')
    write(tmp_path / 'two', SeriesDescription='one')
    write(tmp_path / 'two', prefix='b', seed=1, SeriesDescription='other')
    refused(tmp_path / 'two', "2 series .*'one'.*'other'|2 series .*'other'.*'one'")
    uid = series_in(tmp_path / 'two').index[0]
    assert read_series(tmp_path / 'two', uid=uid).uid == uid
    refused(tmp_path / 'two', 'no series 9.9', uid='9.9')
    write(tmp_path / 'single', slice_mm=128.0)
    refused(tmp_path / 'single', 'one slice only')


@pytest.mark.parametrize(
    'changes, words',
    [
        (dict(ImagePositionPatient=None), 'ImagePositionPatient'),
        (dict(ImageOrientationPatient=None), 'ImageOrientationPatient'),
        (dict(ImageOrientationPatient=[0, 0, 0, 0, 0, 0]), 'perpendicular'),
        (dict(PixelSpacing=None), 'PixelSpacing'),
        (dict(PixelSpacing=[0, 0]), 'positive'),
        (dict(PixelData=None), 'no pixel data'),
        (dict(NumberOfFrames=2), 'multi-frame'),
        (dict(Rows=0), 'no pixel data'),
    ],
    ids=str,
)
def test_files_that_are_wrong(tmp_path, changes, words):
    write(tmp_path)
    bad = sorted(tmp_path.iterdir())[3]
    edit(bad, **changes)
    refused(tmp_path, words)
    refused(tmp_path, bad.name)


def test_encrypted(tmp_path):
    write(tmp_path)
    for f in tmp_path.iterdir():
        part = pydicom.Dataset()
        part.EncryptedContent = b'\0' * 16
        part.EncryptedContentTransferSyntaxUID = '1.2.840.10008.1.2'
        edit(f, PixelData=None, EncryptedAttributesSequence=[part])
    refused(tmp_path, 'encrypted')


def test_sizes_differ(tmp_path):
    write(tmp_path, uid='1.2.3')
    write(tmp_path, uid='1.2.3', pixel=8.0, prefix='b')
    refused(tmp_path, 'different size')


@pytest.mark.parametrize('syntax', SYNTAXES)
@pytest.mark.parametrize('share', [0.2, 0.7, 0.99])
def test_truncated(tmp_path, syntax, share):
    _, values = write(tmp_path, pixel=2.0, slice_mm=16.0, syntax=syntax)
    bad = sorted(tmp_path.iterdir())[2]
    bad.write_bytes(bad.read_bytes()[: int(bad.stat().st_size * share)])
    refused(tmp_path, bad.name)


def test_not_mr_is_a_finding(tmp_path):
    write(tmp_path, Modality='CT')
    assert 'modality CT, not MR' in read_series(tmp_path).findings


def test_flags(tmp_path):
    write(tmp_path / 'good')
    good = read_series(tmp_path / 'good')
    assert quality_flags(good) == []
    write(tmp_path / 'few', slice_mm=16.0, change=lambda x: np.minimum(x, 0.4))
    flags = ' '.join(quality_flags(read_series(tmp_path / 'few')))
    for flag in 'few slices: 8', 'clipped', '16.0 mm apart':
        assert flag in flags
    write(tmp_path / 'cut', low=(16, -30, -96))  # the box ends inside the breast
    assert any('front face' in f for f in quality_flags(read_series(tmp_path / 'cut')))
    with pytest.raises(RadgenError, match="unknown limit 'nonsense'"):
        quality_flags(good, nonsense=1)


@pytest.fixture
def archive(tmp_path):
    root = tmp_path / 'archive'
    write(root / 'p1' / 'a', SeriesDescription='SAG PRE', PatientID='TCGA-XX-0001')
    for p in range(2):
        write(
            root / 'p1' / 'b',
            uid='1.2.3',
            seed=p,
            prefix=f'{p}-',
            AcquisitionNumber=p,
            PatientID='TCGA-XX-0001',
        )
    write(root / 'p2', 'axial', PatientID='TCGA-XX-0002', Modality='CT')
    write(root / 'p3', PatientID='TCGA-XX-0003', syntax='jpeg2000')
    bad = sorted((root / 'p3').iterdir())[0]
    bad.write_bytes(bad.read_bytes()[:1500])
    (root / 'readme.txt').write_text('none')
    return root


def test_archive(tmp_path, archive, monkeypatch, capsys):
    out = tmp_path / 'out'
    table = project_folder(archive, out, 64)
    assert 'series' in capsys.readouterr().err  # progress, with what is left
    assert len(table) == 4 and table.patient_id.nunique() == 2 and (table.n_phases == 2).sum() == 2
    assert pd.read_csv(out / 'series.csv', index_col='series_id').index.equals(table.index)
    for r in table.itertuples():
        p = read_projection(out / r.file)
        assert p.shape == (64, 64) and 0 <= p.min() and p.max() <= 1
    ledger = pd.read_csv(out / 'ledger.csv')
    assert ledger.decision.value_counts().to_dict() == dict(kept=3, dropped=2, changed=1)
    assert not [p for p in out.iterdir() if p.suffix not in ('.png', '.json', '.csv')]

    calls, real = [], archive_module._project

    def counted(files, uid, *args):
        calls.append(uid)
        return real(files, uid, *args)

    monkeypatch.setattr(archive_module, '_project', counted)
    project_folder(archive, out, 64, progress=False)
    assert len(calls) == 1  # only the broken one is tried again
    next(out.glob('1.2.3-0.png')).unlink()
    project_folder(archive, out, 64, progress=False)
    assert calls.count('1.2.3') == 1  # a lost projection is made again
    calls.clear()
    project_folder(archive, out, 64, reduce='max', progress=False)
    assert len(calls) == 4  # other settings, other projections
    record = out / '1.2.3.json'
    record.write_text('{"key": ')
    calls.clear()
    project_folder(archive, out, 64, reduce='max', progress=False)
    assert '1.2.3' in calls and json.loads(record.read_text())['rows']
    (tmp_path / 'void').mkdir()
    with pytest.raises(RadgenError, match='no DICOM'):
        project_folder(tmp_path / 'void', out)
    with pytest.raises(RadgenError, match='elsewhere'):
        project_folder(archive, archive)


def test_ledger_and_dates(archive):
    files = scan_folder(archive)
    assert set(file_ledger(files).reason) >= {'not DICOM'}
    assert not [
        c
        for c in (*files.columns, *read_series(archive / 'p1' / 'a').facts)
        if 'date' in c.lower() or 'birth' in c.lower()
    ]


def test_quality_page(tmp_path):
    from radgen.data.quality import quality_page

    write(tmp_path, SeriesDescription='scout', skip=(8,))
    v = read_series(tmp_path)
    fig = quality_page(v)
    words = ' '.join(t.get_text() for t in fig.axes[5].texts)
    assert 'localizer' in words and 'gap' in words
    fig.canvas.draw()


@pytest.mark.parametrize(
    'options, words',
    [
        (dict(reduce='median'), 'mean or max'),
        (dict(side='top'), 'whole'),
        (dict(size=0), 'positive'),
    ],
)
def test_options_that_are_wrong(tmp_path, options, words):
    write(tmp_path, pixel=8.0, slice_mm=16.0)
    with pytest.raises(RadgenError, match=words):
        sagittal_projection(read_series(tmp_path), **options)


def test_the_command_projects_a_folder_and_draws_pages(tmp_path, capsys):
    from radgen.phantom.dicom import breast, plane_grid, write_series
    from radgen.run import cli

    grid = plane_grid(pixel=4.0, slice_mm=4.0)
    write_series(breast(*grid.points()), grid, tmp_path / 'mri' / 'a', SeriesDescription='SAG T1')
    write_series(
        breast(*grid.points()), grid, tmp_path / 'mri' / 'b', SeriesDescription='localizer'
    )
    (tmp_path / 'mri' / 'notes.txt').write_text('no image')
    assert cli.main(['project', str(tmp_path / 'mri'), str(tmp_path / 'out'), '--size', '32']) == 0
    out = capsys.readouterr().out
    assert '2 projections of' in out and '1 flagged' in out
    assert len(list((tmp_path / 'out' / 'pages').glob('*.png'))) == 2
    (tmp_path / 'none').mkdir()
    for args, complaint in (
        (['project', str(tmp_path / 'none'), str(tmp_path / 'x')], 'none'),
        (['project', str(tmp_path / 'mri'), str(tmp_path / 'y'), '--reduce', 'median'], 'median'),
    ):
        capsys.readouterr()
        assert cli.main(args) == 2
        err = capsys.readouterr().err
        assert complaint in err.splitlines()[-1] and err.splitlines()[-1].startswith('radgen: ')
