"Compiled networks: the losses of eager ones, and eager steps where nothing can be compiled."

import fcntl
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import test_training
import torch
from test_training import CONFIG, SETTINGS, data, same

from radgen.core.paths import RadgenError
from radgen.models.compiled import CompiledCode, Compiler
from radgen.models.cpdm import CPDM
from radgen.models.sampling import generate
from radgen.models.trainer import fit

torch.set_num_threads(1)


class Small(torch.nn.Module):
    "A network that is compiled in seconds."

    def __init__(self):
        super().__init__()
        self.image = torch.nn.Conv2d(1, 4, 3, padding=1)
        self.given = torch.nn.LazyLinear(4)
        self.last = torch.nn.Conv2d(4, 1, 1)

    def forward(self, x, t, classes):
        given = self.given(torch.cat([classes, t[:, None] / 1000], 1))
        return self.last(torch.nn.functional.silu(self.image(x) + given[:, :, None, None]))


def small():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CPDM(CONFIG)
        model.diffusion.model = Small()
        model.eval().loss(torch.rand(2, 8, 8), torch.rand(2, 2))
    return model


def train(out, **changes):
    x, c, k = data()
    return fit(small(), x, c, out, kinds=k, **SETTINGS | changes)


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
import numpy as np
import test_compiled as t
out, *more = sys.argv[1:]
model = t.train(out, compile=True)
if more:
    table = t.data()[1].drop_duplicates()
    made = [t.generate(model, table, steps=3, batch_size=4, compile=c) for c in (True, False)]
    np.save(more[0], np.array(made))
"""


def in_a_process(cache, *args, **changes):
    script = SCRIPT.format(tests=os.path.dirname(__file__))
    env = os.environ | dict(OMP_NUM_THREADS='1', RADGEN_CACHE=str(cache)) | changes
    command = [sys.executable, '-c', script, *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


def facts_of(folder):
    return json.loads((folder / 'training.json').read_text())


def losses(folder):
    return pd.read_csv(folder / 'loss.csv').loss.to_numpy()


@pytest.fixture(scope='module')
def eager(tmp_path_factory):
    "The folder of an eager training."
    out = tmp_path_factory.mktemp('eager') / 'out'
    train(out)
    return out


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    "A compiled training, and images each way."
    root = tmp_path_factory.mktemp('compiled')
    lines = in_a_process(root / 'cache', root / 'compiled', root / 'images.npy')
    return SimpleNamespace(root=root, cache=root / 'cache/compiled', lines=lines)


def test_compiled_losses_are_those_of_eager_steps(runs, eager):
    compiled = runs.root / 'compiled'
    assert runs.lines == []
    assert [facts_of(f)['compiled'] for f in (compiled, eager)] == [True, False]
    np.testing.assert_allclose(losses(compiled), losses(eager), rtol=1e-5)
    assert len(losses(compiled)) == SETTINGS['steps']


def test_compiled_images_are_those_of_eager_steps(runs):
    compiled, eager = np.load(runs.root / 'images.npy')
    assert compiled.shape == (5, 1, 8, 8) and eager.std() > 0.01
    assert np.abs(compiled - eager).max() < 1e-5


def test_a_compiled_training_is_not_continued_as_an_eager_one(runs):
    with pytest.raises(RadgenError, match='compile: True there, False here'):
        train(runs.root / 'compiled')


def test_damaged_code_is_removed_and_compiled_again(runs):
    "Libraries, programs and records cut short, and a library that a stopped process left."
    kept = CompiledCode(runs.cache)
    files = [runs.cache / name for name in kept.files()]
    kinds = ('.so', '.py', '.gch', '')
    cut = [next(p for p in files if p.suffix == kind) for kind in kinds]
    cut += [p for p in files if p.name.endswith('.main.so')]
    for path in set(cut):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    left = runs.cache / 'left.so'
    left.write_bytes(b'part of a library')
    out = runs.root / 'again'
    (line,) = in_a_process(runs.root / 'cache', out)
    text = f'damaged or unfinished files of compiled code: {len(set(cut)) + 1}; removed'
    assert text in line and not left.exists()
    assert facts_of(out)['compiled'] and kept.check() == 0
    np.testing.assert_array_equal(losses(out), losses(runs.root / 'compiled'))


def test_without_a_compiler_the_steps_run_eagerly(eager, tmp_path):
    nowhere = dict(PATH=str(tmp_path), CXX=str(tmp_path / 'none'))
    (line,) = in_a_process(tmp_path / 'cache', tmp_path / 'out', **nowhere)
    assert line.startswith('torch.compile failed (') and line.endswith('the steps run eagerly')
    assert not facts_of(tmp_path / 'out')['compiled']
    np.testing.assert_array_equal(losses(tmp_path / 'out'), losses(eager))


def planted(monkeypatch, tmp_path, works_until):
    "Code that is compiled without a compiler, and fails after some calls."
    calls = []

    def compile(module, **how):
        def call(*args):
            calls.append(len(args[0]))
            if len(calls) > works_until:
                raise OSError('a planted failure')
            return module._call_impl(*args)

        module._compiled_call_impl = call

    monkeypatch.setattr(torch.nn.Module, 'compile', compile)
    monkeypatch.setenv('RADGEN_CACHE', str(tmp_path / 'cache'))
    return calls


def test_a_step_that_fails_is_repeated_eagerly(eager, monkeypatch, tmp_path, capsys):
    calls = planted(monkeypatch, tmp_path, 5)
    model = train(tmp_path / 'out', compile=True)
    failed = 'torch.compile failed (OSError: a planted failure); the steps run eagerly'
    assert capsys.readouterr().out.splitlines() == [failed]
    assert len(calls) == 6 and not facts_of(tmp_path / 'out')['compiled']
    np.testing.assert_array_equal(losses(tmp_path / 'out'), losses(eager))
    assert same(model, train(eager))  # a finished training is loaded


def test_what_went_on_eagerly_is_resumed_eagerly(eager, monkeypatch, tmp_path, capsys):
    calls, usual, steps = planted(monkeypatch, tmp_path, 2), CPDM.loss, []

    def stopping(self, *args, **part):
        steps.append(self.training)
        if self.training and sum(steps) == 9:
            raise MemoryError
        return usual(self, *args, **part)

    monkeypatch.setattr(CPDM, 'loss', stopping)
    with pytest.raises(MemoryError):
        train(tmp_path / 'out', compile=True)
    train(tmp_path / 'out', compile=True, progress=True)
    assert len(calls) == 3
    assert 'training continues after step 6 of 12 eagerly, as it was' in capsys.readouterr().out
    np.testing.assert_array_equal(losses(tmp_path / 'out'), losses(eager))


def test_lack_of_memory_is_no_failure_of_the_compiler(monkeypatch, tmp_path, capsys):
    planted(monkeypatch, tmp_path, 100)
    usual = CPDM.loss

    def scarce(self, images, *args, part=None):
        n = len(images) if part is None else part.stop - part.start
        if self.training and n > 2:
            test_training.out_of_memory()
        return usual(self, images, *args, part=part)

    monkeypatch.setattr(CPDM, 'loss', scarce)
    train(tmp_path / 'out', compile=True)
    line = 'out of memory with 4 images at once; 2 at once now'
    assert capsys.readouterr().out.splitlines() == [line]
    facts = facts_of(tmp_path / 'out')
    assert (facts['compiled'], facts['images_at_once']) == (True, 2)


def test_samples_that_fail_are_drawn_eagerly(monkeypatch, tmp_path, capsys):
    model, table = small(), data()[1].drop_duplicates()
    eager = generate(model, table, steps=3)
    planted(monkeypatch, tmp_path, 2)
    made = generate(model, table, steps=3, compile=True)
    assert 'the steps run eagerly' in capsys.readouterr().out
    np.testing.assert_array_equal(made, eager)


def test_code_is_kept_where_features_are(monkeypatch, tmp_path):
    monkeypatch.setenv('RADGEN_CACHE', str(tmp_path))
    assert CompiledCode().folder == tmp_path / 'compiled'
    monkeypatch.setenv('RADGEN_CACHE', 'off')
    code = CompiledCode()
    with code.writing():
        assert code.folder.is_dir() and tmp_path not in code.folder.parents
    folder = code.folder
    del code
    assert not folder.exists()


def test_one_process_compiles_at_a_time(tmp_path):
    (tmp_path / 'kept').mkdir()
    with open(tmp_path / 'kept/process.lock', 'w') as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        script = (
            'import sys; from radgen.models.compiled import CompiledCode as C\n'
            'with C(sys.argv[1]).writing(): print("mine", flush=True)'
        )
        command = [sys.executable, '-c', script, str(tmp_path / 'kept')]
        other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert 'waiting for a process that compiles' in other.stdout.readline()
    assert other.stdout.read() == 'mine\n' and other.wait() == 0


def test_a_class_without_a_known_network_is_trained_as_it_is(capsys):
    assert not Compiler(torch.nn.Linear(2, 2), on=True).active
    assert 'Linear has no part of diffusion.model' in capsys.readouterr().out
