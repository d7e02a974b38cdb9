"The image store: chunks with checksums, killed writers, other layouts, two writers, memory."

import json
import multiprocessing
import os
import resource
import signal
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import zarr
from PIL import Image

from radgen.core.paths import RadgenError
from radgen.models import store as module
from radgen.models.cvae import CVAE, CVAEConfig
from radgen.models.sampling import generate
from radgen.models.store import ImageStore, StoredImages, write_pngs

torch.set_num_threads(1)


def table(n, seed=0):
    "Conditions of n patients."
    values = np.random.default_rng(seed).normal(size=(n, 2))
    return pd.DataFrame(values, columns=['a', 'b'], index=[f'PH-{i:06d}' for i in range(n)])


@pytest.fixture(scope='module')
def model():
    return CVAE(CVAEConfig.radgen(2, 16, dim=8))


@pytest.fixture
def store(model, tmp_path):
    "Twenty patients in chunks of eight."
    return ImageStore(tmp_path / 'store').write(model, table(20), 2, 8, progress=False)


def stamps(store, n=3):
    return [store.shard(k).stat().st_mtime_ns for k in range(n)]


def one_line(error):
    assert '\n' not in str(error.value)
    return True


# What is stored


def test_images_are_those_of_generate_shard_by_shard(model, store):
    "Bit by bit what one file per shard held before: the same calls, rounded to float16."
    parts = [generate(model, table(20)[at : at + 8], 2) for at in (0, 8, 16)]
    images = np.concatenate(parts).astype(np.float16)
    assert np.array_equal(store.read(), images.astype(np.float32))
    assert store.read().dtype == np.float32


@pytest.mark.parametrize('n, shard_size', [(16, 256), (20, 8), (16, 8), (1, 1), (257, 256)])
def test_counts_are_exact(model, tmp_path, n, shard_size):
    store = ImageStore(tmp_path / 's').write(model, table(n), 1, shard_size, progress=False)
    array = zarr.open_array(store.path, mode='r')
    assert array.shape == (n, 1, 16, 16) and array.metadata.zarr_format == 3
    assert array.metadata.dimension_names == ('patient', 'sample', 'row', 'column')
    assert len(store.patients) == len(store.read()) == n
    assert sum(len(images) for _, images in store.shards()) == n
    assert not np.isnan(array[:]).any() and len(list(store.path.glob('c.*'))) == -(-n // shard_size)


def test_no_patients_are_an_empty_store(model, tmp_path):
    store = ImageStore(tmp_path / 's').write(model, table(20)[:0], 1, progress=False)
    assert store.complete and store.read().shape == (0, 1, 16, 16) and not list(store.shards())


@pytest.mark.parametrize('value', [0, np.nan])
def test_a_chunk_of_one_value_is_a_file_too(model, tmp_path, monkeypatch, value):
    "zarr leaves out a chunk that holds the fill value, which would be drawn again for ever."
    same = lambda model, part, n, **how: np.full((len(part), n, 16, 16), value, np.float32)
    monkeypatch.setattr(module, 'generate', same)
    store = ImageStore(tmp_path / 'store').write(model, table(9), 1, 8, progress=False)
    assert store.complete and np.array_equal(store.read()[8, 0, 0], [value] * 16, equal_nan=True)


# Missing and damaged chunks


DAMAGE = {
    'empty': lambda b: b'',
    'cut': lambda b: b[: len(b) // 2],
    'one byte short': lambda b: b[:-1],
    'one bit': lambda b: b[:60] + bytes([b[60] ^ 1]) + b[61:],
    'zeros': lambda b: bytes(len(b)),
    'four zeros': lambda b: bytes(4),
}


@pytest.mark.parametrize('how', DAMAGE)
def test_a_damaged_chunk_is_found_and_drawn_again(model, store, how, capsys):
    whole, before, path = store.read(), stamps(store), store.shard(1)
    path.write_bytes(DAMAGE[how](path.read_bytes()))
    with pytest.raises(RadgenError, match='c.1.0.0.0: damaged') as error:
        store.read()
    assert one_line(error) and np.array_equal(store.read(store.patients[:8]), whole[:8])
    store.write(model, table(20), 2, 8, progress=False)
    after = stamps(store)
    assert np.array_equal(store.read(), whole) and 'c.1.0.0.0: damaged' in capsys.readouterr().out
    assert [a == b for a, b in zip(after, before)] == [True, False, True]


def test_a_missing_chunk_is_drawn_again_and_no_other(model, store):
    whole, before = store.read(), stamps(store)
    store.shard(2).unlink()
    with pytest.raises(RadgenError, match='c.2.0.0.0: not generated yet') as error:
        store.read()
    assert one_line(error) and not store.complete
    store.write(model, table(20), 2, 8, progress=False)
    assert store.complete and np.array_equal(store.read(), whole)
    assert [a == b for a, b in zip(stamps(store), before)] == [True, True, False]


def test_a_complete_store_generates_nothing(model, store, monkeypatch):
    monkeypatch.setattr(module, 'generate', None)
    assert store.write(model, table(20), 2, 8).complete


def test_a_full_disk_is_one_line(model, store, monkeypatch):
    def full(*args, **more):
        raise OSError(28, 'No space left on device')

    store.shard(0).unlink()
    monkeypatch.setattr(zarr.storage._local, '_put', full)
    with pytest.raises(RadgenError, match='c.0.0.0.0: cannot be written .No space') as error:
        store.write(model, table(20), 2, 8, progress=False)
    monkeypatch.undo()
    assert one_line(error) and not store.shard(0).exists()
    assert store.write(model, table(20), 2, 8, progress=False).complete


@pytest.mark.parametrize('name', ['zarr.json', 'PH-000000_0.png'])
def test_a_full_disk_is_named_wherever_it_happens(model, tmp_path, monkeypatch, name):
    def full(*args, **more):
        raise OSError(28, 'No space left on device')

    writes = {'zarr.json': (Path, 'write_text'), 'PH-000000_0.png': (Image.Image, 'save')}
    monkeypatch.setattr(*writes[name], full)
    with pytest.raises(RadgenError, match=f'{name}: cannot be written .No space') as error:
        ImageStore(tmp_path / 's').write(model, table(9), progress=False, png=tmp_path / 'png')
    monkeypatch.undo()
    assert one_line(error)
    store = ImageStore(tmp_path / 's').write(model, table(9), progress=False, png=tmp_path / 'png')
    assert store.complete and len(list((tmp_path / 'png').iterdir())) == 9


def test_a_chunk_that_may_not_be_read_is_not_removed(store, model, monkeypatch):
    usual = zarr.storage._local._get

    def refused(path, *args):
        if path.name.startswith('c.'):
            raise PermissionError(13, 'Permission denied')
        return usual(path, *args)

    monkeypatch.setattr(zarr.storage._local, '_get', refused)
    with pytest.raises(RadgenError, match='cannot be read .Permission denied') as error:
        store.write(model, table(20), 2, 8, progress=False)
    assert one_line(error) and all(store.shard(n).exists() for n in range(3))


# Killed writers, two writers

FORK = multiprocessing.get_context('fork')


def stop_halfway(folder, model, pipe):
    "Write half of the second chunk, then nothing more."
    usual = zarr.storage._local._put

    def slow(path, value, exclusive=False):
        if path.name != 'c.1.0.0.0':
            return usual(path, value, exclusive)
        data = value.to_bytes()
        with zarr.storage._local._atomic_write(path, 'wb', exclusive=exclusive) as f:
            f.write(data[: len(data) // 2])
            f.flush()
            pipe.send('halfway')
            time.sleep(600)

    zarr.storage._local._put = slow
    ImageStore(folder).write(model, table(20), 2, 8, progress=False)


@pytest.fixture
def halfway(tmp_path, model):
    "A process that stands in the middle of writing the second chunk."
    here, there = FORK.Pipe()
    writer = FORK.Process(target=stop_halfway, args=(tmp_path / 'store', model, there))
    writer.start()
    assert here.poll(120) and here.recv() == 'halfway'
    yield writer
    writer.kill()
    writer.join()


def test_a_killed_writer_loses_the_chunk_at_work_and_no_other(halfway, model, tmp_path):
    store = ImageStore(tmp_path / 'store')
    os.kill(halfway.pid, signal.SIGKILL)
    halfway.join()
    assert store.shard(0).exists() and not store.shard(1).exists() and not store.complete
    assert len(list(store.path.glob('*.partial'))) == 1  # half a chunk, under another name
    first = store.shard(0).stat().st_mtime_ns
    store.write(model, table(20), 2, 8, progress=False)
    assert store.complete and store.shard(0).stat().st_mtime_ns == first
    other = ImageStore(tmp_path / 'whole').write(model, table(20), 2, 8, progress=False)
    assert np.array_equal(store.read(), other.read())
    assert sorted(p.name for p in store.path.iterdir()) == [
        *(f'c.{n}.0.0.0' for n in range(3)),
        'index.csv',
        'zarr.json',
    ]
    assert not list(tmp_path.glob('.*.lock'))


def test_a_second_writer_is_refused(halfway, model, tmp_path, monkeypatch):
    monkeypatch.setattr(module, 'LOCK_WAIT', 0.2)
    store = ImageStore(tmp_path / 'store')
    for how in ('error', 'restart'):
        began, refused = time.monotonic(), f'another process writes .*process {halfway.pid} on '
        with pytest.raises(RadgenError, match=refused) as error:
            store.write(model, table(20), 2, 8, on_mismatch=how, seed=how == 'restart')
        assert one_line(error) and time.monotonic() - began < 5
    assert list(store.read(store.patients[:8])[0, 0].shape) == [16, 16]  # readers may read
    other = ImageStore(tmp_path / 'other').write(model, table(3), progress=False)
    assert other.complete


def test_a_lock_is_released_on_errors_and_where_it_is_stale(model, tmp_path, monkeypatch):
    (tmp_path / '.store.lock').write_text('process 1 on a machine that is off')
    store = ImageStore(tmp_path / 'store')
    with pytest.raises(RadgenError, match='kind'):
        store.write(model, table(3), kind='phase', progress=False)
    assert not (tmp_path / '.store.lock').exists()
    assert store.write(model, table(3), on_mismatch='restart', progress=False).complete


# Other stores in the folder


def as_old_layout(store, path):
    "The same images as they were stored before zarr."
    path.mkdir()
    (path / 'meta.json').write_text(json.dumps(store.meta))
    store.index.to_csv(path / 'index.csv')
    for n, (_, images) in enumerate(store.shards()):
        np.save(path / f'shard-{n:05d}.npy', images.astype(np.float16))
    return ImageStore(path)


def test_the_old_layout_is_read_and_never_written(model, store, tmp_path):
    old = as_old_layout(store, tmp_path / 'old')
    assert old.complete and old.meta == store.meta and old.patients.equals(store.patients)
    assert np.array_equal(old.read(), store.read())
    assert np.array_equal(old.read(['PH-000017', 'PH-000002']), store.read()[[17, 2]])
    names = sorted(p.name for p in old.path.iterdir())
    with pytest.raises(RadgenError, match='layout before zarr .*restart') as error:
        old.write(model, table(20), 2, 8)
    assert one_line(error) and names == sorted(p.name for p in old.path.iterdir())
    old.write(model, table(20), 2, 8, on_mismatch='restart', progress=False)
    aside = StoredImages(tmp_path / 'old.replaced-1')
    assert old.layout == 'zarr' and aside.layout == 'npy'
    assert np.array_equal(aside.read(), old.read())


def test_a_damaged_shard_of_the_old_layout_is_named(store, tmp_path):
    old = as_old_layout(store, tmp_path / 'old')
    old.shard(1).write_bytes(old.shard(1).read_bytes()[:200])
    with pytest.raises(RadgenError, match='shard-00001.npy: damaged') as error:
        old.read()
    old.shard(0).unlink()
    assert one_line(error) and not old.complete
    with pytest.raises(RadgenError, match='shard-00000.npy: not generated'):
        old.read()


def test_a_damaged_head_is_refused_or_set_aside(model, store, tmp_path):
    whole, head = store.read(), store.path / 'zarr.json'
    head.write_text(head.read_text()[:100])
    for use in (store.read, lambda: store.write(model, table(20), 2, 8)):
        with pytest.raises(RadgenError, match='zarr.json') as error:
            use()
        assert one_line(error)
    store.write(model, table(20), 2, 8, on_mismatch='restart', progress=False)
    assert np.array_equal(store.read(), whole) and (tmp_path / 'store.replaced-1').exists()


def test_chunks_of_no_store_are_not_taken_for_this_one(model, store):
    (store.path / 'zarr.json').unlink()
    with pytest.raises(RadgenError, match='3 chunks without zarr.json') as error:
        store.write(model, table(20, seed=1), 2, 8)
    assert one_line(error) and not store.complete


def test_another_zarr_array_is_refused(model, tmp_path):
    zarr.create_array(tmp_path / 'x', shape=(3,), dtype='int8')
    with pytest.raises(RadgenError, match='no store of images') as error:
        StoredImages(tmp_path / 'x').read()
    assert one_line(error)
    with pytest.raises(RadgenError, match='no store of images'):
        ImageStore(tmp_path / 'x').write(model, table(3))


def test_every_store_set_aside_keeps_a_name_of_its_own(model, store, tmp_path):
    (tmp_path / 'store.replaced-2').mkdir()
    for seed in (1, 2):
        store.write(model, table(20), 2, 8, seed=seed, on_mismatch='restart', progress=False)
        assert store.meta['seed'] == seed  # what was read before is forgotten
    old = [StoredImages(tmp_path / f'store.replaced-{n}').meta['seed'] for n in (1, 3)]
    assert old == [0, 1] and store.complete


@pytest.mark.parametrize(
    'wrong, why',
    [
        (dict(n_samples=0), 'n_samples .0.'),
        (dict(shard_size=0), 'shard_size .0.'),
        (dict(on_mismatch='replace'), 'on_mismatch'),
        (dict(step=3), "unknown setting 'step'"),
    ],
)
def test_wrong_arguments_leave_no_folder(model, tmp_path, wrong, why):
    with pytest.raises(RadgenError, match=why) as error:
        ImageStore(tmp_path / 's').write(model, table(3), **wrong)
    assert one_line(error) and not (tmp_path / 's').exists()


# PNG files


def test_pngs_are_written_as_chunks_finish(model, tmp_path, monkeypatch):
    usual, counts, folder = module.generate, [], tmp_path / 'png'

    def counted(*args, **more):
        counts.append(len(list(folder.glob('*.png'))))
        return usual(*args, **more)

    monkeypatch.setattr(module, 'generate', counted)
    store = ImageStore(tmp_path / 's')
    store.write(model, table(20), 2, 8, progress=False, png=folder)
    assert counts == [0, 16, 32] and len(list(folder.iterdir())) == 40
    grey = np.asarray(Image.open(folder / 'PH-000017_1.png'))
    assert np.array_equal(grey, (store.read()[17, 1] * 255).round().astype(np.uint8))


def test_no_pngs_unless_asked_and_missing_ones_come_later(model, store, tmp_path, monkeypatch):
    assert not list(tmp_path.rglob('*.png'))
    monkeypatch.setattr(module, 'generate', None)
    store.write(model, table(20), 2, 8, progress=False, png=tmp_path / 'png')
    assert len(list((tmp_path / 'png').glob('*.png'))) == 40


@pytest.mark.parametrize('name', ['../x', '.x', 'a/b'])
def test_a_png_stays_in_its_folder(tmp_path, name):
    with pytest.raises(RadgenError, match='cannot name a file'):
        write_pngs(tmp_path / 'png', [name], np.zeros((1, 1, 4, 4)))
    assert [p.name for p in tmp_path.iterdir()] == ['png'] and not list(
        (tmp_path / 'png').iterdir()
    )


# Memory


def peak_of_store(folder, model, n, pipe):
    "MB by which the peak of this process grows while it writes and reads a store of n patients."
    ImageStore(folder / 'first').write(model, table(512), progress=False)
    peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    before = peak()
    store = ImageStore(folder / 'store').write(model, table(n), progress=False)
    assert sum(len(images) for _, images in store.shards()) == n
    pipe.send(peak() - before)


def test_memory_does_not_grow_with_the_store(tmp_path, model):
    "Five times the patients: their images alone would be 10 MB in float32, 20 in two copies."
    grown = {}
    for n in (2_000, 10_000):
        here, there = FORK.Pipe()
        process = FORK.Process(target=peak_of_store, args=(tmp_path / str(n), model, n, there))
        process.start()
        assert here.poll(300)
        grown[n] = here.recv()
        process.join()
    assert grown[10_000] < grown[2_000] + 8, grown
