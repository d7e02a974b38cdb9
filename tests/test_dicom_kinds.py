"""Kinds of DICOM input that must not give wrong data in silence.

Series of known values are written with pydicom; SimpleITK is the reference for pixels.
"""

import os
from dataclasses import replace

import numpy as np
import pandas as pd
import pydicom
import pytest
import SimpleITK as sitk

from radgen.core.paths import RadgenError
from radgen.data.archive import project_folder
from radgen.data.dicom_files import scan_folder
from radgen.data.phases import series_in
from radgen.data.projections import read_series
from radgen.data.volumes import read_phases
from radgen.phantom.dicom import breast, plane_grid, write_series

GRID = plane_grid(pixel=8.0, slice_mm=4.0)
VALUES = breast(*GRID.points()) + 0.1  # no slice is constant
N = len(VALUES)
UID = '1.2.3'


def write(folder, factor=1.0, shift=0.0, values=VALUES, grid=GRID, **options):
    "A series of one phase: its files, in the order of the slices."
    moved = replace(grid, origin=grid.origin + grid.direction[:, 0] * shift)
    return write_series(factor * values, moved, folder, **(dict(uid=UID) | options))


def phase(folder, p, shift=0.0, **options):
    "A phase, brighter than the first by a factor of 1 + p; file names tell phases apart."
    return write(folder, 1.0 + p, shift, prefix=f'{p}-', seed=p, **options)


def edit(path, **changes):
    ds = pydicom.dcmread(path)
    for k, v in changes.items():
        ds.pop(k, None) if v is None else setattr(ds, k, v)
    ds.save_as(path)


def refused(folder, *words):
    with pytest.raises(RadgenError) as e:
        read_phases(folder)
    assert '\n' not in str(e.value)
    for w in words:
        assert w in str(e.value)


def check_phases(folder, by, slices=None):
    "Each phase holds its own values, in order, and no others."
    made = read_phases(folder)
    slices = slices or [range(N)] * 2
    assert len(made) == len(slices)
    assert {v.facts['phases_from'] for v in made} == {by}
    for p, (v, kept) in enumerate(zip(made, slices)):
        assert v.phase == p and v.facts['n_slices'] == len(kept)
        place = v.origin[0] + v.spacing[0] * v.direction[0, 0] * np.arange(len(v.array))
        index = np.rint((place - GRID.origin[0]) / GRID.direction[0, 0] / 4).astype(int)
        whole = np.isin(index, list(kept))
        expected = (1 + p) * VALUES[np.clip(index, 0, N - 1)]
        assert np.abs(v.array - expected)[whole].max() < 1e-3
    return made


# --- series and patients -----------------------------------------------------------------


def test_two_patients_with_one_series_uid(tmp_path):
    for p, patient in enumerate('AB'):
        phase(tmp_path / 'mri', p, PatientID=patient)
    table = project_folder(tmp_path / 'mri', tmp_path / 'out', 16, progress=False)
    assert sorted(table.patient_id) == ['A', 'B'] and (table.n_slices == N).all()
    assert table['flags'].str.contains('shared with another patient').all()
    assert (table.phase == 0).all() and table.file.is_unique
    files = scan_folder(tmp_path / 'mri')
    for uid, own in files.groupby('uid'):
        factor = dict(A=1, B=2)[own.patient_id.iloc[0]]
        assert np.abs(read_series(files, uid).array - factor * VALUES).max() < 1e-3


def test_two_studies_with_one_series_uid(tmp_path):
    for p in range(2):
        phase(tmp_path, p, StudyInstanceUID=f'1.9.{p}')
    assert len(series_in(tmp_path)) == 2


def test_one_instance_uid_in_all_slices(tmp_path):
    write(tmp_path, SOPInstanceUID='1.2.3.4')
    assert np.abs(read_series(tmp_path).array - VALUES).max() < 1e-4
    assert series_in(tmp_path).n_phases.tolist() == [1]


def test_one_instance_uid_in_all_slices_of_two_phases(tmp_path):
    for p in range(2):
        phase(tmp_path, p, SOPInstanceUID='1.2.3.4', TemporalPositionIdentifier=p)
    check_phases(tmp_path, 'TemporalPositionIdentifier')


def test_a_uid_per_slice(tmp_path):
    write(tmp_path / 'mri', headers=lambda i: dict(SeriesInstanceUID=f'1.2.{i}'))
    refused(tmp_path / 'mri', 'has a SeriesInstanceUID', 'write one UID into all slices')
    project_folder(tmp_path / 'mri', tmp_path / 'out', 16, progress=False)
    ledger = pd.read_csv(tmp_path / 'out' / 'ledger.csv')
    assert len(ledger) == N and ledger.reason.str.contains('write one UID into all').all()


def test_no_series_uid(tmp_path):
    write(tmp_path, SeriesInstanceUID=None)
    refused(tmp_path, 'no SeriesInstanceUID: write one UID')


def test_copies_have_the_same_pixels(tmp_path):
    files = write(tmp_path)
    for f in files:
        (tmp_path / f'copy-{f.name}').write_bytes(f.read_bytes())
    v = read_series(tmp_path)
    assert np.abs(v.array - VALUES).max() < 1e-4
    assert any(f.startswith(f'{N} left out, copies') for f in v.findings)


def test_one_instance_uid_is_no_copy(tmp_path):
    "The same SOPInstanceUID and position, other pixels: neither is dropped as a copy."
    for p in range(2):
        phase(tmp_path, p, SOPInstanceUID='1.2.3.4', InstanceNumber=1)
    refused(tmp_path, f'{N} of {N} positions come more than once')


# --- phases ------------------------------------------------------------------------------


def test_lost_slices_of_one_phase(tmp_path):
    phase(tmp_path, 0, TriggerTime='0')
    phase(tmp_path, 1, TriggerTime='90000', skip=(0, 7, 8, 20))
    kept = [i for i in range(N) if i not in (0, 7, 8, 20)]
    _, late = check_phases(tmp_path, 'TriggerTime', [range(N), kept])
    assert f'incomplete: {N - 4} of {N} slices' in late.findings


@pytest.mark.parametrize('tag', ['TriggerTime', 'AcquisitionTime', 'TemporalPositionIdentifier'])
def test_last_phase_stopped_early(tmp_path, tag):
    for p in range(3):
        value = dict(TriggerTime=str(9e4 * p), AcquisitionTime=f'1200{10 * p:02d}').get(tag, p)
        headers = lambda i, v=value: {tag: v, 'InstanceNumber': i + 1}
        phase(tmp_path, p, skip=tuple(range(12, N)) if p == 2 else (), headers=headers)
    made = check_phases(tmp_path, tag, [range(N), range(N), range(12)])
    assert f'incomplete: 12 of {N} slices' in made[2].findings


def test_last_phase_stopped_early_without_times_is_refused(tmp_path):
    for p in range(3):
        skip = tuple(range(12, N)) if p == 2 else ()
        phase(tmp_path, p, skip=skip, headers=lambda i: dict(InstanceNumber=i + 1))
    refused(tmp_path, 'positions come more than once', 'leave this series out')


@pytest.mark.parametrize('tag', ['AcquisitionTime', 'ContentTime'])
@pytest.mark.parametrize('each', [False, True])
def test_times_of_day(tmp_path, tag, each):
    for p in range(2):
        clock = lambda i, p=p: {tag: f'12{p:02d}{i if each else 0:02d}.5', 'InstanceNumber': None}
        phase(tmp_path, p, headers=clock)
    check_phases(tmp_path, tag)


@pytest.mark.parametrize('each', [False, True])
def test_midnight_between_phases(tmp_path, each):
    for p, hour in enumerate(('2359', '0001')):
        clock = lambda i, h=hour: dict(AcquisitionTime=f'{h}{i if each else 0:02d}')
        phase(tmp_path, p, headers=clock)
    check_phases(tmp_path, 'AcquisitionTime')


@pytest.mark.parametrize('lost', [(0,), (0, 1), (N - 1,), (5, 6, N - 1)])
def test_times_of_each_slice_with_lost_slices(tmp_path, lost):
    for p in range(2):
        clock = lambda i, p=p: dict(ContentTime=f'12{p:02d}{i:02d}')
        phase(tmp_path, p, skip=lost if p == 0 else (), headers=clock)
    kept = [i for i in range(N) if i not in lost]
    check_phases(tmp_path, 'ContentTime', [kept, range(N)])


def test_no_numbers_and_no_times(tmp_path):
    for p in range(2):
        phase(tmp_path, p, InstanceNumber=None)
    refused(tmp_path, 'neither times nor numbers')
    assert series_in(tmp_path).n_phases.tolist() == [0]


@pytest.mark.parametrize('number', [lambda p, i: N * p + i + 1, lambda p, i: 2 * i + p])
def test_the_order_of_the_repeats_is_a_finding(tmp_path, number):
    for p in range(2):
        phase(tmp_path / 'mri', p, headers=lambda i, p=p: dict(InstanceNumber=number(p, i)))
    check_phases(tmp_path / 'mri', 'the order of the repeats')
    table = project_folder(tmp_path / 'mri', tmp_path / 'out', 16, progress=False)
    assert table['flags'].str.contains('order of the repeats only').all()


TYPES = [
    (dict(ImageType=['ORIGINAL', 'PRIMARY', 'M']), dict(ImageType=['ORIGINAL', 'PRIMARY', 'P'])),
    (dict(ImageType=['DERIVED', 'PRIMARY', 'W']), dict(ImageType=['DERIVED', 'PRIMARY', 'F'])),
    (dict(EchoTime='1.2'), dict(EchoTime='2.4')),
    (dict(DiffusionBValue=0.0), dict(DiffusionBValue=800.0)),
    (dict(ComplexImageComponent='MAGNITUDE'), dict(ComplexImageComponent='PHASE')),
    (dict(ImageType=['ORIGINAL', 'PRIMARY', 'M']), dict(ImageType=['DERIVED', 'PRIMARY', 'SUB'])),
]


@pytest.mark.parametrize('first, second', TYPES, ids=str)
def test_types_are_no_phases(tmp_path, first, second):
    for p, headers in enumerate((first, second)):
        phase(tmp_path, p, headers=lambda i: dict(InstanceNumber=i + 1), **headers)
    (v,) = read_phases(tmp_path)
    assert np.abs(v.array - VALUES).max() < 1e-3 and 'n_phases' not in v.facts
    (words,) = [f for f in v.findings if 'images of type' in f]
    other = words.split("'")[1]
    assert len(v.left_out) == N
    w = read_series(tmp_path, image_type=other)
    assert np.abs(w.array - 2 * VALUES).max() < 1e-3
    assert series_in(tmp_path).n_phases.tolist() == [1]


def test_two_phases_of_water_and_fat(tmp_path):
    for p in range(2):
        for k, kind in enumerate('WF'):
            write(
                tmp_path,
                1 + p + 2 * k,
                prefix=f'{p}{kind}',
                seed=2 * p + k,
                ImageType=['DERIVED', 'PRIMARY', kind],
                AcquisitionNumber=p,
            )
    made = check_phases(tmp_path, 'AcquisitionNumber')
    assert {v.facts['image_type'] for v in made} == {'water'}


@pytest.mark.parametrize('shift', [0.05, 0.5, 1.0, 2.0, 3.5])
@pytest.mark.parametrize('tag', ['TemporalPositionIdentifier', 'AcquisitionTime'])
def test_shifted_phases(tmp_path, shift, tag):
    for p in range(2):
        phase(tmp_path, p, shift * p, **{tag: f'12000{p}' if tag != TAG else p})
    first, second = read_phases(tmp_path)
    assert first.facts['phases_from'] == tag
    assert np.abs(first.array - VALUES).max() < 1e-3
    assert np.abs(second.array - 2 * VALUES).max() < 1e-3
    assert abs(abs(second.origin[0] - first.origin[0]) - shift) < 1e-3


TAG = 'TemporalPositionIdentifier'


@pytest.mark.parametrize('shift', [0.05, 0.5, 1.0, 2.0, 3.5])
@pytest.mark.parametrize('p', [0, 1])
def test_shifted_phases_without_a_header_are_refused(tmp_path, shift, p):
    phase(tmp_path, 0)
    write(tmp_path, 1.0 + p, shift, prefix='b', seed=1)
    refused(tmp_path, 'as those of several phases')


def test_half_shifted_phases_numbered_through(tmp_path):
    "Numbered along and no thickness: the alternating brightness is refused."
    for p in range(2):
        number = lambda i, p=p: dict(InstanceNumber=2 * i + p, SliceThickness=None)
        phase(tmp_path, p, 2.0 * p, headers=number)
    refused(tmp_path, 'every other slice differs in brightness')


def test_interleaved_acquisitions_are_one_volume(tmp_path):
    write(tmp_path, headers=lambda i: dict(AcquisitionNumber=i % 2))
    assert np.abs(read_series(tmp_path).array - VALUES).max() < 1e-4


def test_overlapping_slices_numbered_in_order(tmp_path):
    "Reconstructed at half of the thickness: readable."
    write(tmp_path, headers=lambda i: dict(InstanceNumber=i + 1), SliceThickness='8')
    assert np.abs(read_series(tmp_path).array - VALUES).max() < 1e-4


@pytest.mark.parametrize('each', [False, True])
def test_phases_that_overlap_partly(tmp_path, each):
    for p, (a, b) in enumerate(((0, 20), (10, N))):
        clock = lambda i, p=p: dict(AcquisitionTime=f'12{p:02d}{i if each else 0:02d}')
        skip = tuple(i for i in range(N) if not a <= i < b)
        phase(tmp_path, p, skip=skip, headers=clock)
    check_phases(tmp_path, 'AcquisitionTime', [range(20), range(10, N)])


def test_sub_volumes_of_other_spacing(tmp_path):
    other = plane_grid(pixel=8.0, slice_mm=3.0)
    values = breast(*other.points()) + 0.1
    for tag in 'AcquisitionNumber', None:
        folder = tmp_path / str(tag)
        write(folder, AcquisitionNumber=1)
        number = 2 if tag else 1
        write(folder, values=values, grid=other, prefix='b', seed=1, AcquisitionNumber=number)
    a, b = read_phases(tmp_path / 'AcquisitionNumber')
    assert np.abs(a.array - VALUES).max() < 1e-3 and np.abs(b.array - values).max() < 1e-3
    refused(tmp_path / 'None', 'leave this series out')


# --- readable, though untidy -------------------------------------------------------------


FINE = plane_grid(pixel=4.0, slice_mm=8.0)  # OpenJPEG refuses very small images
FINE_VALUES = breast(*FINE.points()) + 0.1


def reference(path):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path), sitk.sitkFloat32)).squeeze()


@pytest.mark.parametrize('syntax', ['raw', 'rle', 'jpeg2000', 'jpeg_lossless'])
@pytest.mark.parametrize('how', ['no delimiter', 'padding', 'no preamble'])
def test_untidy_files(tmp_path, syntax, how):
    files = write(tmp_path, values=FINE_VALUES, grid=FINE, syntax=syntax)
    truth = np.stack([reference(f) for f in files])
    for f in files[::3]:
        b = f.read_bytes()
        cut = b[:-8] if syntax != 'raw' else b
        f.write_bytes({'no delimiter': cut, 'padding': b + b'\0' * 600}.get(how, b[132:]))
    v = read_series(tmp_path)
    order = slice(None) if v.origin[0] == pytest.approx(FINE.origin[0]) else slice(None, None, -1)
    assert np.array_equal(v.array[order], truth) and v.findings == []


def test_pixel_spacing_within_tolerance(tmp_path):
    files = write(tmp_path)
    for f in files[::2]:
        edit(f, PixelSpacing=['8.00001', '8.00001'])
    assert np.abs(read_series(tmp_path).array - VALUES).max() < 1e-4


# --- wrong pixels ------------------------------------------------------------------------


def test_palette_colour_is_no_grey(tmp_path):
    for f in write(tmp_path):
        edit(f, PhotometricInterpretation='PALETTE COLOR')
    refused(tmp_path, 'a colour image')


def test_empty_slices_are_named(tmp_path):
    values = VALUES.copy()
    values[[5, 6]] = 0
    files = write(tmp_path, values=values)
    (words,) = [f for f in read_series(tmp_path).findings if 'empty slices' in f]
    assert words.startswith('2 empty slices') and files[5].name in words and files[6].name in words


def test_slices_missing_at_an_end(tmp_path):
    write(tmp_path / 'a', skip=(0, 1), headers=lambda i: dict(InstanceNumber=N - i))
    write(tmp_path / 'b', skip=(0, 1), ImagesInAcquisition=N, InstanceNumber=None)
    assert f'{N - 2} of {N} images of the acquisition are here' in findings(tmp_path / 'b')
    write(tmp_path / 'c', skip=(0, 1), headers=lambda i: dict(InstanceNumber=i + 1))
    for name in 'ac':
        notes = findings(tmp_path / name)
        assert any('numbered up to' in f for f in notes) == (name == 'c')


def findings(folder):
    return read_series(folder).findings


# --- strays ------------------------------------------------------------------------------


def stray(folder, **headers):
    "One further file of the series, at the position of slice 7, with twice its values."
    grid = replace(GRID, origin=GRID.origin + GRID.direction[:, 0] * 28)
    options = dict(uid=UID, prefix='stray', **headers)
    return write_series(2 * VALUES[[7]], grid, folder, **options)[0]


STRAYS = dict(
    mip=dict(ImageType=['DERIVED', 'SECONDARY', 'MIP']),
    localizer=dict(ImageType=['ORIGINAL', 'PRIMARY', 'LOCALIZER']),
    colour=dict(SamplesPerPixel=3, PhotometricInterpretation='RGB'),
    phase_map=dict(ImageType=['ORIGINAL', 'PRIMARY', 'P']),
    turned=dict(ImageOrientationPatient=[1, 0, 0, 0, 1, 0]),
    far=dict(ImagePositionPatient=[900, 0, 0]),
    segmentation=dict(SOPClassUID='1.2.840.10008.5.1.4.1.1.66.4'),
    screenshot=dict(ImagePositionPatient=None, ImageType=['DERIVED', 'SECONDARY']),
)


@pytest.mark.parametrize('kind', STRAYS)
def test_a_stray_is_left_out_by_name(tmp_path, kind):
    write(tmp_path / 'mri')
    path = stray(tmp_path / 'mri', **STRAYS[kind])
    v = read_series(tmp_path / 'mri')
    assert np.abs(v.array - VALUES).max() < 1e-4
    assert any('1 left out' in f and path.name in f for f in v.findings)
    project_folder(tmp_path / 'mri', tmp_path / 'out', 16, progress=False)
    ledger = pd.read_csv(tmp_path / 'out' / 'ledger.csv')
    line = ledger[ledger.item == str(path)]
    assert line.decision.tolist() == ['dropped'] and UID in line.reason.iloc[0]


def test_a_stray_of_another_size(tmp_path):
    write(tmp_path)
    grid = plane_grid(pixel=4.0, slice_mm=128.0)
    (path,) = write_series(breast(*grid.points()), grid, tmp_path, uid=UID, prefix='big')
    v = read_series(tmp_path)
    assert np.abs(v.array - VALUES).max() < 1e-4
    assert any('another size' in f and path.name in f for f in v.findings)


def test_an_image_that_contradicts_a_slice_takes_no_place(tmp_path):
    write(tmp_path)
    stray(tmp_path)
    v = read_series(tmp_path)
    assert any('2 images at the same position' in f for f in v.findings)
    others = np.arange(N) != 7
    assert np.abs(v.array - VALUES)[others].max() < 1e-4
    assert np.abs(v.array[7] - (VALUES[6] + VALUES[8]) / 2).max() < 1e-3


def test_two_slabs_are_two_stacks(tmp_path):
    for p, (low, high) in enumerate(((-144, -48), (48, 144))):
        grid = plane_grid(pixel=8.0, low=(low, -96, -96), high=(high, 64, 96))
        values = breast(*grid.points(), ('left', 'right')) + 0.1
        write(tmp_path / 'mri', values=values, grid=grid, prefix=f'{p}-', seed=p)
    left, right = read_phases(tmp_path / 'mri')  # the normal points to the patient's right
    assert right.array.shape[0] == left.array.shape[0] == 24
    assert (right.laterality, left.laterality) == ('right', 'left')
    assert right.extent()[1][0] < -40 and left.extent()[0][0] > 40
    with pytest.raises(RadgenError, match='2 stacks'):
        read_series(tmp_path / 'mri')
    assert np.array_equal(read_series(tmp_path / 'mri', stack=1).array, right.array)
    table = project_folder(tmp_path / 'mri', tmp_path / 'out', 16, progress=False)
    assert table['stack'].tolist() == [0, 1] and table['flags'].str.contains('stack . of 2').all()


# --- limits and damage -------------------------------------------------------------------


@pytest.mark.parametrize('mm', [1e-6, 500])
def test_implausible_spacing(tmp_path, mm):
    write(tmp_path, PixelSpacing=[mm, mm])
    refused(tmp_path, 'PixelSpacing', 'not plausible')


def test_implausible_extent(tmp_path):
    write(tmp_path, headers=lambda i: dict(ImagePositionPatient=[f'{1e6 * i}', '0', '0']))
    refused(tmp_path, 'more than 2000 mm')


def test_very_large_images(tmp_path):
    write(tmp_path, Rows=13_000, Columns=13_000)
    refused(tmp_path, 'more than 4096 pixels per side: 13000 x 13000')


def test_pipes_and_links(tmp_path):
    write(tmp_path / 'mri')
    os.mkfifo(tmp_path / 'mri' / 'pipe.dcm')
    (tmp_path / 'mri' / 'link.dcm').symlink_to(tmp_path / 'nowhere')
    project_folder(tmp_path / 'mri', tmp_path / 'out', 16, progress=False)
    ledger = pd.read_csv(tmp_path / 'out' / 'ledger.csv')
    lines = ledger[ledger.reason.str.contains('a pipe or a device')]
    assert sorted(p[-8:] for p in lines.item) == ['link.dcm', 'pipe.dcm']


def test_flipped_bytes_never_end_the_run(tmp_path):
    "Every byte of a header in turn: each run gives a table and a ledger that names what is wrong."
    folder = tmp_path / 'mri'
    grid = replace(GRID, shape=(8, *GRID.shape[1:]))
    files = write(folder, values=VALUES[:8], grid=grid)
    whole = files[3].read_bytes()
    start = whole.index(b'\xe0\x7f\x10\x00')
    for at in range(128, start + 12, 9):
        files[3].write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        try:
            project_folder(folder, tmp_path / 'out', 16, progress=False)
        except RadgenError as e:
            raise AssertionError(f'byte {at}: {e}') from e
        assert len(pd.read_csv(tmp_path / 'out' / 'ledger.csv'))


def test_an_unreadable_file_beside_a_series_is_a_finding(tmp_path):
    files = write(tmp_path / 'mri')
    b = files[0].read_bytes()  # the first slice: no hole tells of it
    at = b.index(b'UI', 200)
    files[0].write_bytes(b[:at] + b'ZZ' + b[at + 2 :])
    table = project_folder(tmp_path / 'mri', tmp_path / 'out', 16, progress=False)
    ledger = pd.read_csv(tmp_path / 'out' / 'ledger.csv')
    assert ledger[ledger.item == str(files[0])].decision.tolist() == ['dropped']
    assert files[0].name in table['flags'].iloc[0]


@pytest.mark.parametrize(
    'name, content, words',
    [
        ('a.dcm.gz', b'\x1f\x8b' + b'0' * 200, 'gzip'),
        ('a.zip', b'PK\x03\x04' + b'0' * 200, 'zip'),
        ('a.nrrd', b'NRRD0004\n' + b'0' * 200, 'NRRD'),
        ('a.nii', b'\x5c\x01\0\0' + b'0' * 400, 'NIfTI'),
        ('a.txt', b'some text, longer than a header is: ' * 10, 'not DICOM'),
        ('empty.dcm', b'', 'not DICOM'),
    ],
)
def test_other_formats_are_named(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    assert words in scan_folder(tmp_path).problem.iloc[0]
