"The audit of folders: images on disk, a copier and an honest generator, bad input in one line."

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from radgen.audit.copying import EXACT_WORK, image_blocks, pixel_distances
from radgen.core.paths import RadgenError
from radgen.core.results import read_rows
from radgen.data.image_folders import read_image_folder
from radgen.phantom.cohort import make_phantom
from radgen.run.audit_folders import audit_folders
from radgen.run.cli import main

QUICK = dict(n_boot=100, n_permutations=99, progress=False)
SIZE = dict(n_patients=130, n_imaged=130, image_size=16, n_genes=60)


def write(folder, images, names):
    "Images as PNG."
    folder.mkdir(parents=True)
    for name, image in zip(names, images):
        Image.fromarray(np.uint8(np.rint(255 * image))).save(folder / f'{name}.png')
    return folder


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    "Folders and tables of the phantom: training, held out, an honest and a copying generator."
    root, cohort = tmp_path_factory.mktemp('audit'), make_phantom(**SIZE, seed=5)
    first = ~cohort.series.patient_id.duplicated()
    series, images = cohort.series[first], cohort.images[first]
    names, who = series.index.to_numpy(), series.patient_id.to_numpy()
    train, held, other = slice(0, 50), slice(50, 100), slice(100, 130)
    copied = np.concatenate([images[other][:20], images[train][:20]])
    tables = dict(
        patients=pd.DataFrame(dict(file=[f'{n}.png' for n in names], patient_id=who)),
        conditions=cohort.conditions['expression'].loc[who, :].iloc[:, :4].reset_index(),
        labels=cohort.labels.loc[who, ['er']].reset_index(),
    )
    for name, table in tables.items():
        table.to_csv(root / f'{name}.csv', index=False)
    return SimpleNamespace(
        root=root,
        training=write(root / 'training', images[train], names[train]),
        held_out=write(root / 'held', images[held], names[held]),
        honest=write(root / 'honest', images[other], [f'new{i:02d}' for i in range(30)]),
        copier=write(root / 'copier', copied, [f'any{i:02d}' for i in range(40)]),
        paired=write(root / 'paired', images[held], names[held]),  # of an oracle
        **{f'{name}_csv': root / f'{name}.csv' for name in tables},
    )


def number(rows, metric, model='generated'):
    mine = rows[(rows.metric == metric) & (rows.model == model)]
    return mine[(mine.role != 'null') | mine.metric.str.endswith('_p')].value.iloc[0]


def test_an_honest_generator_raises_no_alarm(world, tmp_path):
    audit = audit_folders(world.honest, world.training, tmp_path / 'out', world.held_out, **QUICK)
    assert number(audit.rows, 'copy_rate_p') > 0.05
    assert number(audit.rows, 'membership_auroc_p') > 0.05
    assert number(audit.rows, 'kid') < number(audit.rows, 'kid', 'noise')
    assert audit.parts['retrieval'].startswith('not run: needs')
    page = (tmp_path / 'out' / 'audit.html').read_text()
    assert 'Copies: no alarm' in page and '<script' not in page and str(tmp_path) not in page
    rows = read_rows(tmp_path / 'out' / 'rows.csv')
    assert len(rows) == len(audit.rows)
    record = json.loads((tmp_path / 'out' / 'audit.json').read_text())
    assert record['folders']['generated']['images'] == 30 and len(record['answers']) == 3


def test_a_copier_raises_the_alarm_by_command(world, tmp_path, capsys):
    folders = ['--generated', world.copier, '--training', world.training]
    more = ['--held-out', world.held_out, '--out', tmp_path / 'out']
    assert main(['audit', *map(str, folders + more)]) == 0
    text = capsys.readouterr().out
    assert 'Copies: alarm.' in text
    assert '20 of 40 generated images equal a training image' in text
    rows = read_rows(tmp_path / 'out' / 'rows.csv')
    assert number(rows, 'membership_auroc_p') <= 0.05 and number(rows, 'copy_rate') >= 0.5
    page = (tmp_path / 'out' / 'audit.html').read_text()
    assert page.count('data:image/png') == 1 + 2 * 6


def test_with_all_tables_every_part_runs(world, tmp_path):
    tables = dict(patients=world.patients_csv, conditions=world.conditions_csv)
    tables |= dict(labels=world.labels_csv)
    generated = shutil.copytree(world.paired, tmp_path / 'generated')
    for file in generated.iterdir():  # another image than the real one, and as like it
        x = np.asarray(Image.open(file)).astype(int)
        Image.fromarray(np.uint8(np.clip(x + 1, 0, 255))).save(file)
    of = (generated, world.training, tmp_path / 'out', world.held_out)
    audit = audit_folders(*of, **tables, **QUICK)
    assert set(audit.parts.values()) == {'run'}
    assert number(audit.rows, 'retrieval') > 0.9
    assert {'generated', 'real', 'mean_image'} <= set(
        audit.rows[audit.rows.metric == 'tstr_auroc'].model
    )


def test_the_training_folder_itself_is_reported_as_what_it_is(world, tmp_path):
    audit = audit_folders(world.training, world.training, tmp_path / 'out', **QUICK)
    assert audit.notes[0] == 'The folder of generated images holds the training images themselves.'
    assert number(audit.rows, 'copy_rate') == 1
    assert audit.parts['membership'] == 'not run: needs --held-out'


def one_class(world, tmp_path):
    table = pd.read_csv(world.labels_csv).assign(er=1)
    table.to_csv(tmp_path / 'labels.csv', index=False)
    return dict(labels=tmp_path / 'labels.csv', patients=world.patients_csv)


def test_labels_of_one_class_are_not_estimable(world, tmp_path):
    of = (world.paired, world.training, tmp_path / 'out')
    held = shutil.copytree(world.held_out, tmp_path / 'held')
    audit = audit_folders(*of, held, **one_class(world, tmp_path), **QUICK)
    verdicts = audit.rows[audit.rows.metric == 'tstr_auroc'].verdict
    assert len(verdicts) and verdicts.str.startswith('not estimable: 0 patients').all()


def spoiled(world, tmp_path, what):
    "A folder of generated images with one fault."
    folder = shutil.copytree(world.honest, tmp_path / 'generated')
    files = sorted(folder.iterdir())
    if what == 'empty':
        for f in files:
            f.unlink()
    elif what == 'few':
        for f in files[2:]:
            f.unlink()
    elif what == 'mixed':
        Image.fromarray(np.zeros((16, 17), np.uint8)).save(files[5])
    elif what == 'colour':
        pixels = np.random.default_rng(0).integers(0, 255, (16, 16, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(files[5])
    elif what == 'damaged':
        files[5].write_bytes(files[5].read_bytes()[:40])
    return folder


@pytest.mark.parametrize(
    'what,message',
    [
        ('empty', 'no image'),
        ('few', '2 images .generated.; 3 are needed'),
        ('mixed', 'new05.png: 16 x 17 pixels, new00.png has 16 x 16; bring all'),
        ('colour', 'new05.png: a colour image'),
        ('damaged', 'new05.png: not a readable image'),
    ],
)
def test_bad_folders_are_one_line_and_nothing_is_written(world, tmp_path, what, message):
    folder = spoiled(world, tmp_path, what)
    with pytest.raises(RadgenError, match=message) as e:
        audit_folders(folder, world.training, tmp_path / 'out', **QUICK)
    assert '\n' not in str(e.value)
    assert [p.name for p in tmp_path.iterdir()] == ['generated']


def test_bad_tables_are_one_line(world, tmp_path):
    of = (world.paired, world.training, tmp_path / 'out', world.held_out)
    with pytest.raises(RadgenError, match='--conditions needs --patients'):
        audit_folders(*of, conditions=world.conditions_csv, **QUICK)
    short = pd.read_csv(world.conditions_csv).iloc[:70]  # 30 held-out patients have no row
    short.to_csv(tmp_path / 'short.csv', index=False)
    held = shutil.copytree(world.held_out, tmp_path / 'held')
    tables = dict(conditions=tmp_path / 'short.csv', patients=world.patients_csv)
    with pytest.raises(RadgenError, match='30 of 50 patients of generated images have no row'):
        audit_folders(world.paired, world.training, tmp_path / 'out', held, **tables, **QUICK)
    pd.read_csv(world.patients_csv).iloc[:40].to_csv(tmp_path / 'p.csv', index=False)
    with pytest.raises(RadgenError, match='10 of 50 training images have no patient'):
        audit_folders(
            world.honest, world.training, tmp_path / 'out', patients=tmp_path / 'p.csv', **QUICK
        )
    with pytest.raises(RadgenError, match='holds other files'):
        audit_folders(world.honest, world.training, world.honest, **QUICK)


def test_the_command_prints_one_line(world, tmp_path, capsys):
    (tmp_path / 'none').mkdir()
    given = ['--generated', tmp_path / 'none', '--training', world.training]
    assert main(['audit', *map(str, given)]) == 2
    assert capsys.readouterr().err.count('\n') == 1


def test_a_choice_of_images_is_the_same_again_and_stated(world):
    some = [read_image_folder(world.honest, 'generated', limit=20, seed=1) for _ in range(2)]
    assert some[0].files == some[1].files and len(some[0].files) == 20 < some[0].n_files
    assert some[0].digest == read_image_folder(world.honest, 'generated').digest


def test_many_training_images_are_compared_in_blocks(monkeypatch):
    import radgen.audit.copying as copying

    rng = np.random.default_rng(0)
    a, b = rng.random((30, 8, 8), np.float32), rng.random((70, 8, 8), np.float32)
    b[7], b[9] = a[3], a[4] + 1e-4
    exact = pixel_distances(a, b)
    monkeypatch.setattr(copying, 'EXACT_WORK', 10)
    monkeypatch.setattr(copying, 'BLOCK_PAIRS', 350)
    blocks = [d for _, d in image_blocks(a, b)]
    assert len(blocks) == 6 and np.concatenate(blocks)[3, 7] == 0 < EXACT_WORK
    np.testing.assert_allclose(np.concatenate(blocks), exact, rtol=1e-9)
