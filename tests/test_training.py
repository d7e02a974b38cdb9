"Training: continued to the same bits, mismatches refused by name, finished runs left alone."

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from radgen.core.paths import RadgenError
from radgen.core.seeds import batch_at, fork_rng
from radgen.models.checkpoint import load_model
from radgen.models.cpdm import CPDM, CPDMConfig
from radgen.models.cvae import CVAE
from radgen.models.device import ImagesAtOnce, check_precision
from radgen.models.evaluation_loss import evaluation_loss
from radgen.models.registry import CLASSES, build, register
from radgen.models.sampling import generate
from radgen.models.store import ImageStore
from radgen.models.tensor_files import load_facts, load_tensors, save_tensors
from radgen.models.trainer import fit
from radgen.models.training_data import Examples
from radgen.models.training_step import Trainer, TrainingSettings, wsd_rate

torch.set_num_threads(1)
CONFIG = CPDMConfig.radgen(2, 8, dim=8, dim_mults=(1, 2), attention='none', kinds=('a', 'b'))
SETTINGS = dict(steps=12, batch_size=4, checkpoint_every=3, progress=False, precision='fp32')


def data(n=10, size=8, seed=0):
    rng = np.random.default_rng(seed)
    patients = [f'TCGA-XX-{i // 2:04d}' for i in range(n)]  # two series a patient
    table = pd.DataFrame(
        rng.normal(size=(n // 2, 2)), columns=['f1', 'f2'], index=sorted(set(patients))
    )
    return rng.random((n, size, size), dtype=np.float32), table.loc[patients], ['a', 'b'] * (n // 2)


def weights(model):
    return [t.clone() for t in model.state_dict().values()]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(weights(a), weights(b)))


def train(out, config=CONFIG, images=None, **changes):
    x, c, k = data()
    return fit(
        CPDM(config), x if images is None else images, c, out, kinds=k, **{**SETTINGS, **changes}
    )


CHILD = """
import sys, time, numpy as np, torch
sys.path.insert(0, {tests!r})
import test_training as t
step = t.CPDM.loss
def slow(self, *args):
    time.sleep(.05)
    return step(self, *args)
t.CPDM.loss = slow
t.train({out!r}, precision={precision!r}, steps=30)
print('finished')
"""


def killed_after(out, number, checkpoint_steps, precision='fp32'):
    "Train in a process of its own and send it a signal once a checkpoint has reached a step."
    source = CHILD.format(tests=os.path.dirname(__file__), out=str(out), precision=precision)
    child = subprocess.Popen(
        [sys.executable, '-c', source],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | dict(OMP_NUM_THREADS='1'),
    )
    until, path = time.monotonic() + 90, out / 'checkpoint.safetensors'
    while time.monotonic() < until and child.poll() is None:
        if path.exists() and load_facts(path)['step'] >= checkpoint_steps:
            break
        time.sleep(0.02)
    child.send_signal(number)
    return child, *child.communicate(timeout=60)


@pytest.mark.parametrize('precision', ['fp32', 'bf16'])
def test_kill_9_and_continue_gives_the_same_bits(tmp_path, precision):
    child, said, _ = killed_after(tmp_path / 'killed', signal.SIGKILL, 6, precision)
    assert child.returncode == -signal.SIGKILL and 'finished' not in said
    assert not (tmp_path / 'killed/model.safetensors').exists()
    continued, whole = (
        train(tmp_path / name, precision=precision, steps=30) for name in ('killed', 'whole')
    )
    assert same(continued, whole)
    assert (tmp_path / 'killed/loss.csv').read_text() == (tmp_path / 'whole/loss.csv').read_text()
    assert len(pd.read_csv(tmp_path / 'whole/loss.csv')) == 30


def test_ctrl_c_leaves_a_checkpoint_of_the_last_step(tmp_path):
    child, _, error = killed_after(tmp_path / 'stopped', signal.SIGINT, 3)
    assert child.returncode != 0 and 'run it again to continue' in error
    assert 3 <= load_facts(tmp_path / 'stopped/checkpoint.safetensors')['step'] < 30
    assert same(train(tmp_path / 'stopped', steps=30), train(tmp_path / 'whole', steps=30))


def test_finished_training_is_not_touched(tmp_path):
    first = train(tmp_path)
    stamp = (tmp_path / 'model.safetensors').stat().st_mtime_ns
    assert same(first, train(tmp_path)) and same(first, load_model(tmp_path))
    assert (tmp_path / 'model.safetensors').stat().st_mtime_ns == stamp
    assert not (tmp_path / 'checkpoint.safetensors').exists()


@pytest.mark.parametrize(
    'change, named',
    [
        (dict(steps=13), 'steps: 12 there, 13 here'),
        (dict(lr=1e-3), 'lr'),
        (dict(seed=1), 'seed'),
        (dict(precision='bf16'), 'precision: fp32 there, bf16 here'),
        (dict(images=data(seed=1)[0]), 'images'),
        (
            dict(
                config=CPDMConfig.radgen(
                    2, 8, dim=16, dim_mults=(1, 2), attention='none', kinds=('a', 'b')
                )
            ),
            'dim: 8 there, 16 here',
        ),
    ],
)
def test_another_training_is_refused_by_name(tmp_path, change, named):
    train(tmp_path)
    with pytest.raises(RadgenError, match=named) as error:
        train(tmp_path, **change)
    assert '\n' not in str(error.value)


def test_restart_keeps_the_old_training(tmp_path):
    old = train(tmp_path)
    new = train(tmp_path, lr=1e-3, on_mismatch='restart')
    assert (
        not same(old, new)
        and same(old, load_model(tmp_path / 'replaced-1'))
        and same(new, load_model(tmp_path))
    )
    train(tmp_path, lr=2e-3, on_mismatch='restart')
    assert (tmp_path / 'replaced-2/model.safetensors').exists()


def test_checkpoint_of_another_training_is_refused(tmp_path, monkeypatch):
    usual, calls = CPDM.loss, []

    def failing(self, *args):
        calls.append(1)
        if len(calls) == 8:
            raise MemoryError
        return usual(self, *args)

    monkeypatch.setattr(CPDM, 'loss', failing)
    with pytest.raises(MemoryError):
        train(tmp_path)
    monkeypatch.undo()
    with pytest.raises(RadgenError, match='checkpoint.safetensors: holds another training .lr'):
        train(tmp_path, lr=1e-3)
    with pytest.raises(RadgenError, match='another training .precision: fp32 there, bf16 here'):
        train(tmp_path, precision='bf16')
    assert same(train(tmp_path, lr=1e-3, on_mismatch='restart'), train(tmp_path / 'whole', lr=1e-3))
    assert load_facts(tmp_path / 'replaced-1/checkpoint.safetensors')['step'] == 6


def test_damaged_and_missing_models_are_named(tmp_path):
    with pytest.raises(RadgenError, match='no such file'):
        load_model(tmp_path)
    train(tmp_path)
    path = tmp_path / 'model.safetensors'
    path.write_bytes(path.read_bytes()[:-100])
    for damaged in (lambda: load_model(tmp_path), lambda: train(tmp_path)):
        with pytest.raises(RadgenError, match='model.safetensors: truncated'):
            damaged()
    train(tmp_path, on_mismatch='restart')


def test_unwritable_folder_is_one_line(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(RadgenError) as error:
        train(tmp_path / 'file/model')
    assert '\n' not in str(error.value)


def test_full_disk_is_one_line_and_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    import errno
    import pathlib

    usual, written = pathlib.Path.write_bytes, []

    def write(self, content):
        written.append(self)
        if len(written) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return usual(self, content)

    monkeypatch.setattr(pathlib.Path, 'write_bytes', write)
    with pytest.raises(RadgenError, match='No space left') as error:
        train(tmp_path)
    assert (
        '\n' not in str(error.value)
        and load_facts(tmp_path / 'checkpoint.safetensors')['step'] == 6
    )
    assert not list(tmp_path.glob('*.part*')) and not list(tmp_path.glob('.*.part*'))
    monkeypatch.undo()
    assert same(train(tmp_path), train(tmp_path / 'whole'))


def test_encoder_is_fitted_once_a_patient(tmp_path):
    x, c, k = data()
    c = pd.concat([c, c.iloc[[0]] * 1])
    x, k = np.concatenate([x, x[:1]]), k + ['a']  # a third series of one patient changes no scale
    model, once = (
        fit(CPDM(CONFIG), x, c, tmp_path, kinds=k, **SETTINGS | dict(steps=1)),
        c[~c.index.duplicated()],
    )
    assert (
        np.allclose(model.encoder.transform(once).mean(0), 0, atol=1e-5)
        and model.facts['n_patients'] == len(once) == 5
    )
    assert model.facts['patients'] == list(once.index)


def test_random_state_of_the_caller_is_untouched(tmp_path):
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002 - the global state is what must not change
    state = lambda: np.random.get_state()[1].tolist()  # noqa: NPY002
    before, before_numpy = torch.get_rng_state(), state()
    x, c, k = data()
    fit(CPDM(CONFIG), x, c, tmp_path, kinds=k, held_out=(x[:2], c[:2], k[:2]), **SETTINGS)
    assert torch.equal(before, torch.get_rng_state()) and before_numpy == state()


def test_held_out_images_do_not_train(tmp_path):
    x, c, k = data()
    more = data(seed=5)
    followed = fit(
        CPDM(CONFIG),
        x,
        c,
        tmp_path / 'a',
        kinds=k,
        held_out=(more[0][:4], more[1][:4], more[2][:4]),
        **SETTINGS,
    )
    assert same(followed, fit(CPDM(CONFIG), x, c, tmp_path / 'b', kinds=k, **SETTINGS))
    assert pd.read_csv(tmp_path / 'a/loss.csv').held_out_loss.notna().sum() == 12


def test_encoded_values_are_used_as_they_are(tmp_path):
    x, c, _ = data()
    model = fit(
        CPDM(CONFIG),
        torch.tensor(x),
        torch.tensor(c.to_numpy(dtype=np.float32)),
        tmp_path,
        **SETTINGS | dict(steps=1),
    )
    assert model.encoder is None and load_model(tmp_path).encoder is None


@pytest.mark.parametrize(
    'images, conditions, why',
    [
        (np.zeros((4, 9, 9)), np.zeros((4, 2)), 'resize'),
        (np.full((4, 8, 8), 255.0), np.zeros((4, 2)), r'\[0, 1\]'),
        (np.full((4, 8, 8), np.nan), np.zeros((4, 2)), 'finite'),
        (np.zeros((4, 8, 8)), np.zeros((3, 2)), '3 condition rows for 4 images'),
        (np.zeros((4, 8, 8)), np.zeros((4, 3)), '3 features'),
        (np.zeros((0, 8, 8)), np.zeros((0, 2)), 'no image'),
    ],
)
def test_bad_data_is_refused(tmp_path, images, conditions, why):
    with pytest.raises(RadgenError, match=why):
        fit(CPDM(CONFIG), images, conditions, tmp_path, **SETTINGS)


def test_every_epoch_holds_every_image():
    rows = np.concatenate([batch_at(s, 7, 3, seed=1) for s in range(7)])
    assert (np.bincount(rows) == 3).all() and (np.sort(rows[:7]) == np.arange(7)).all()
    assert (batch_at(5, 7, 3, seed=1) == batch_at(5, 7, 3, seed=1)).all() and (
        batch_at(0, 7, 7, seed=1) != batch_at(0, 7, 7, seed=2)
    ).any()


def test_rates_and_precision():
    assert all(0 < wsd_rate(s, n) <= 1 for n in (1, 2, 5, 100) for s in range(n))
    assert [check_precision(p) for p in ('fp32', 'bf16')] == ['fp32', 'bf16']
    with pytest.raises(RadgenError, match="unknown precision 'auto'; known: fp32, bf16"):
        check_precision('auto')
    with fork_rng(1):
        a = torch.rand(1)
    with fork_rng(1):
        assert torch.equal(a, torch.rand(1))


def chosen_on(n=4, **changes):
    x, c, k = data(n=10, seed=3)
    return (
        dict(validation=(x[:n], c[:n], k[:n]), patience=3, measure_every=1 / 24, steps=48, lr=3e-2)
        | changes
    )


def test_the_length_is_chosen_on_patients_set_aside(tmp_path):
    "The kept weights have the lowest validation loss, and training ends when patience does."
    model = train(tmp_path, **chosen_on())
    curve = pd.read_csv(tmp_path / 'loss.csv').dropna(subset='validation_loss')
    best = int(curve.step[curve.validation_loss.idxmin()])
    assert (
        model.facts['steps_kept']
        == best
        < model.facts['steps_trained']
        == int(curve.step.max())
        < 48
    )
    assert (curve.validation_loss[curve.step > best] > curve.validation_loss.min()).all() and (
        curve.step > best
    ).sum() == 3


def test_a_chosen_length_survives_an_interruption(tmp_path):
    whole = train(tmp_path / 'whole', **chosen_on())

    class Dies(CPDM):
        lives = 8

        def loss(self, *args):
            if self.training:
                Dies.lives -= 1
            if Dies.lives == 0:
                raise MemoryError('killed')
            return super().loss(*args)

    x, c, k = data()
    settings = SETTINGS | chosen_on()
    with pytest.raises(MemoryError):
        fit(Dies(CONFIG), x, c, tmp_path / 'parts', kinds=k, **settings)
    assert load_facts(tmp_path / 'parts' / 'checkpoint.safetensors')['step'] == 6
    Dies.lives = 1000
    assert same(whole, fit(Dies(CONFIG), x, c, tmp_path / 'parts', kinds=k, **settings))
    assert pd.read_csv(tmp_path / 'whole' / 'loss.csv').equals(
        pd.read_csv(tmp_path / 'parts' / 'loss.csv')
    )


def test_validation_is_part_of_the_identity(tmp_path):
    train(tmp_path, **chosen_on())
    with pytest.raises(RadgenError, match='validation'):
        train(tmp_path, **chosen_on(n=6))


EDITS = """
import radgen, torch
from pathlib import Path
from radgen.models.cpdm import CPDM, CPDMConfig
from radgen.models.trainer import identity_of
from radgen.models.training_data import make_data
from radgen.models.training_step import TrainingSettings

model = CPDM(CPDMConfig.radgen(2, 8, dim=8, dim_mults=(1, 2)))
data = make_data(model.config, None, (torch.zeros(2, 8, 8), torch.zeros(2, 2)))
code = lambda: identity_of(model, TrainingSettings(), data, ({}, None))['code']
folder = Path(radgen.__file__).parent
first = code()


def edited(module, old, new):
    path = folder / 'models' / f'{module}.py'
    text = path.read_text(encoding='utf-8')
    assert old in text, (module, old)
    path.write_text(text.replace(old, new, 1), encoding='utf-8')
    changed = code() != first
    path.write_text(text, encoding='utf-8')
    return changed


print(
    edited('released_unet', 'heads=4', 'heads=2'),  # deep in the network, imported by cpdm
    edited('training_step', '0.99', '0.98'),
    edited('released_unet', 'heads=4,', 'heads=4 ,'),  # layout
    edited('released_unet', 'class Rel', '# a comment\\nclass Rel'),
    edited('released_unet', '"A convolution', '"Some convolution'),  # a docstring
    edited('cgan', 'gamma: float = 1.0', 'gamma: float = 2.0'),  # another model
    code() != first,
)
"""


def test_an_edit_deep_in_the_network_is_another_training(tmp_path):
    "The fingerprint of a checkpoint covers what its model imports, without comments and layout."
    import radgen

    shutil.copytree(Path(radgen.__file__).parent, tmp_path / 'radgen')
    environment = os.environ | dict(PYTHONPATH=str(tmp_path), OMP_NUM_THREADS='1')
    command = [sys.executable, '-c', EDITS]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.stdout.split() == 'True True False False False False False'.split(), done.stderr


HEAVY = (
    'SimpleITK lifelines matplotlib radiomics seaborn shap sklearn torchmetrics torchvision xgboost'
)


def test_training_and_sampling_import_no_evaluation_library():
    modules = 'radgen.models.trainer radgen.models.sampling radgen.models.checkpoint'.split()
    source = f'import sys, {", ".join(modules)}; print(*sys.modules)'
    done = subprocess.run([sys.executable, '-c', source], capture_output=True, text=True)
    loaded = {name.split('.')[0] for name in done.stdout.split()}
    assert 'torch' in loaded, done.stderr
    assert not loaded & set(HEAVY.split())


@pytest.fixture
def own_class():
    class Own(CPDM):
        registry_name, config_class = 'own', CPDMConfig

    yield Own
    CLASSES.pop('own', None)


def fit_own(cls, out):
    x, c, k = data()
    return fit(cls(CONFIG), x, c, out, kinds=k, **SETTINGS | dict(steps=1))


def test_a_class_of_your_own_is_loaded_once_registered(tmp_path, own_class):
    trained = fit_own(own_class, tmp_path)
    with pytest.raises(RadgenError, match="unknown model class 'own'.*registry.register"):
        load_model(tmp_path)
    register(own_class)
    again = load_model(tmp_path)
    assert type(again) is own_class and same(again, trained)


def test_a_subclass_does_not_pass_for_its_parent(tmp_path):
    class Nameless(CPDM):
        pass

    trained = fit_own(Nameless, tmp_path)
    assert same(trained, fit_own(Nameless, tmp_path))  # its folder is known to the trainer
    with pytest.raises(RadgenError, match='no registry name'):
        load_model(tmp_path)
    with pytest.raises(RadgenError, match='state registry_name'):
        register(Nameless)
    taken = type('Taken', (CPDM,), dict(registry_name='cvae', config_class=CPDMConfig))
    with pytest.raises(RadgenError, match="'cvae' belongs to CVAE"):
        register(taken)
    assert CLASSES['cvae'] is CVAE


@pytest.mark.parametrize('name', ['os:system', 'radgen.models.cpdm:CPDM', 'cpmd', ['cpdm']])
def test_nothing_that_a_checkpoint_names_is_imported(tmp_path, name):
    train(tmp_path, steps=1)
    path = tmp_path / 'model.safetensors'
    tensors, facts = load_tensors(path)
    assert facts['class'] == 'cpdm' and 'config_class' not in facts
    save_tensors(path, tensors, facts | {'class': name})
    with pytest.raises(RadgenError, match='model.safetensors: unknown model class') as error:
        load_model(tmp_path)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    'settings, named',
    [
        (dict(step=3), "unknown key 'step', did you mean 'steps'"),
        (dict(lr='1', steps=0), 'steps: .*lr: '),
        (dict(schedule='cosine'), "'trapezoid' or 'constant'"),
        (dict(precision='auto'), "precision: must be 'fp32' or 'bf16', got 'auto'"),
        (dict(on_mismatch='replace'), 'on_mismatch'),
        (dict(checkpoint_every=0), 'checkpoint_every'),
    ],
)
def test_settings_are_refused_by_name(tmp_path, settings, named):
    with pytest.raises(RadgenError, match=named) as error:
        train(tmp_path, **settings)
    assert '\n' not in str(error.value)


SCARCE = """
import json, resource, sys, numpy as np, torch
sys.path.insert(0, {tests!r})
import test_training as t
from pathlib import Path
loss = t.CPDM.loss
def hungry(self, images, *args, part=None):
    n = len(images) if part is None else part.stop - part.start
    if self.training:
        torch.empty(n * {per_image}, dtype=torch.uint8)
    return loss(self, images, *args, part=part)
t.train({warm!r}, steps=2)  # all libraries are loaded before the limit is set
used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
t.CPDM.loss = hungry
resource.setrlimit(resource.RLIMIT_AS, (used + {room}, used + {room}))
t.train({out!r}, batch_size=8)
"""
GIGABYTE = 2**30


def train_in_scarce_memory(tmp_path, per_image, room):
    values = dict(per_image=per_image, room=room, warm=str(tmp_path / 'warm'))
    values |= dict(tests=os.path.dirname(__file__), out=str(tmp_path / 'scarce'))
    command = [sys.executable, '-c', SCARCE.format(**values)]
    return subprocess.run(
        command, capture_output=True, text=True, env=os.environ | dict(OMP_NUM_THREADS='1')
    )


@pytest.mark.skipif(not Path('/proc/self/statm').exists(), reason='needs the limits of Linux')
def test_a_batch_that_does_not_fit_is_computed_in_parts(tmp_path):
    "8 images ask for 4 GB, 4 for 2 GB and 2 for 1 GB, with 1.5 GB there."
    done = train_in_scarce_memory(tmp_path, GIGABYTE // 2, 3 * GIGABYTE // 2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        'out of memory with 8 images at once; 4 at once now',
        'out of memory with 4 images at once; 2 at once now',
    ]
    assert json.loads((tmp_path / 'scarce/training.json').read_text())['images_at_once'] == 2
    train(tmp_path / 'whole', batch_size=8)
    losses = [pd.read_csv(tmp_path / name / 'loss.csv').loss for name in ('scarce', 'whole')]
    assert np.allclose(*losses, rtol=1e-5)


@pytest.mark.skipif(not Path('/proc/self/statm').exists(), reason='needs the limits of Linux')
def test_one_image_that_does_not_fit_is_an_error(tmp_path):
    done = train_in_scarce_memory(tmp_path, 2 * GIGABYTE, GIGABYTE)
    assert done.returncode and 'RadgenError: out of memory with one image' in done.stderr


def out_of_memory(*args):
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")


def test_a_resume_begins_with_the_images_that_fitted(tmp_path, monkeypatch, capsys):
    usual, sizes = CPDM.loss, []

    def failing(self, images, *args, part=None):
        n = len(images) if part is None else part.stop - part.start
        if self.training:
            sizes.append(n)
            if n > 2:
                out_of_memory()
            if len(sizes) == 16:
                raise MemoryError
        return usual(self, images, *args, part=part)

    monkeypatch.setattr(CPDM, 'loss', failing)
    with pytest.raises(MemoryError):
        train(tmp_path / 'stopped')
    sizes.clear()
    sizes.extend([0] * 20)
    stopped = train(tmp_path / 'stopped')
    assert set(sizes[20:]) == {2} and capsys.readouterr().out.count('out of memory') == 1
    sizes.clear()
    sizes.extend([0] * 20)
    assert same(stopped, train(tmp_path / 'whole'))


@pytest.mark.parametrize('name', ['cpdm', 'cvae', 'cvae_paper', 'cgan'])
def test_parts_of_a_batch_have_its_loss_and_gradient(name):
    "Of every model: the numbers drawn for an image do not depend on the part it is in."
    from radgen.models.device import make_accelerator
    from radgen.models.registry import build
    from radgen.models.training_data import Examples
    from radgen.models.training_step import BatchGradient

    x, c, _ = data(n=10, size=16)
    batch = Examples(torch.tensor(x), torch.tensor(c.to_numpy(dtype=np.float32)))
    found = []
    for at_once in (10, 4, 3):
        model = build(name, 2, 16, ('a', 'b'), 8, (1, 2), 1, 0).train()
        loss = BatchGradient(model, make_accelerator('fp32'), at_once)(batch, seed=3)
        gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        running = [b.flatten().float() for b in model.buffers()]
        found.append((loss, torch.cat(gradients), torch.cat(running)))
    for loss, gradient, running in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-5)
        assert torch.allclose(gradient, found[0][1], rtol=1e-3, atol=1e-5 * gradient.abs().max())
        assert torch.allclose(running, found[0][2], rtol=1e-5)


def test_a_batch_norm_is_not_computed_in_parts():
    from radgen.models.device import make_accelerator
    from radgen.models.registry import build
    from radgen.models.training_data import Examples
    from radgen.models.training_step import BatchGradient

    model = build('cpdm_paper', 2, 16, (), 8, (1, 2), 1, 0).train()
    batch = Examples(torch.rand(4, 16, 16), torch.rand(4, 2))
    with pytest.raises(RadgenError, match='batch norm needs the whole batch'):
        BatchGradient(model, make_accelerator('fp32'), 2)(batch, seed=0)


TWO = """
import sys
sys.path.insert(0, {tests!r})
import test_training as t
x, c, k = t.data(seed=4)
t.train({out!r}, batch_size=6, steps=16, held_out=(x[:4], c[:4], k[:4]))
"""


def test_two_processes_train_as_one_does(tmp_path):
    "Processes share each batch; only the main one writes."
    script = tmp_path / 'script.py'
    script.write_text(TWO.format(tests=os.path.dirname(__file__), out=str(tmp_path / 'two')))
    launch = 'torch.distributed.run --standalone --nproc-per-node 2'.split()
    command = [sys.executable, '-m', *launch, str(script)]
    environment = os.environ | dict(OMP_NUM_THREADS='1', ACCELERATE_USE_CPU='true')
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    x, c, k = data(seed=4)
    one = train(tmp_path / 'one', batch_size=6, steps=16, held_out=(x[:4], c[:4], k[:4]))
    two, single = (pd.read_csv(tmp_path / name / 'loss.csv') for name in ('two', 'one'))
    assert np.allclose(two, single, rtol=1e-5, equal_nan=True)
    summary = json.loads((tmp_path / 'two/training.json').read_text())
    assert (summary['processes'], summary['steps']) == (2, 16)
    names = {p.name for p in (tmp_path / 'two').iterdir()}
    assert names == {'model.safetensors', 'loss.csv', 'training.json'}
    assert same(load_model(tmp_path / 'two'), train_again(tmp_path / 'two'))
    assert all(
        torch.allclose(a.float(), b.float(), atol=1e-4)
        for a, b in zip(weights(load_model(tmp_path / 'two')), weights(one))
    )


def train_again(out):
    "A finished training of two processes is one of this process too."
    x, c, k = data(seed=4)
    return train(out, batch_size=6, steps=16, held_out=(x[:4], c[:4], k[:4]))


class Hungry(CPDM):
    "Asks for more memory than there is wherever more than `fits` images come at once."

    registry_name = 'hungry'
    fits = 4

    def loss(self, images, *given):
        if len(images) > self.fits:
            torch.empty(1 << 50)
        return super().loss(images, *given)

    def denoise(self, x, *given):
        if len(x) > self.fits:
            torch.empty(1 << 50)
        return super().denoise(x, *given)


def hungry(fits):
    net = Hungry(CPDMConfig.radgen(3, 16, dim=8, dim_mults=(1, 2)))
    net.fits = fits
    return net


def test_a_batch_that_does_not_fit_is_taken_in_halves(tmp_path, capsys):
    x, c = torch.rand(20, 16, 16), torch.randn(20, 3)
    how = dict(steps=4, batch_size=16, lr=1e-3, progress=False)
    fit(hungry(4), x, c, tmp_path / 'a', **how)
    assert capsys.readouterr().out.splitlines() == [
        'out of memory with 16 images at once; 8 at once now',
        'out of memory with 8 images at once; 4 at once now',
    ]
    summary = json.loads((tmp_path / 'a/training.json').read_text())
    assert summary['images_at_once'] == 4 and summary['steps'] == 4
    with pytest.raises(RadgenError, match='out of memory with one image at once'):
        fit(hungry(0), x, c, tmp_path / 'b', **how)
    assert not (tmp_path / 'b/model.safetensors').exists()


MEASURED = """
import resource, sys, torch
from pathlib import Path
from radgen.models.cpdm import CPDM, CPDMConfig
from radgen.models.training_data import Examples
from radgen.models.training_step import Trainer, TrainingSettings
usual = CPDM.loss
def scarce(self, images, *given, part=None):
    n = len(images) if part is None else part.stop - part.start
    torch.empty(n * {per_image}, dtype=torch.uint8)
    return usual(self, images, *given, part=part)
def measured(draws=4):
    torch.manual_seed(0)
    examples = Examples(torch.rand(5, 8, 8), torch.randn(5, 2))
    return [repr(trainer.measure(examples, draws=draws)) for _ in range(2)]
config = CPDMConfig.radgen(2, 8, dim=8, dim_mults=(1, 2), attention='none')
trainer = Trainer(CPDM(config), TrainingSettings())
print(*measured())  # all libraries are loaded before the limit is set
used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
CPDM.loss = scarce
resource.setrlimit(resource.RLIMIT_AS, (used + {room}, used + {room}))
print(*measured())
"""


@pytest.mark.skipif(not Path('/proc/self/statm').exists(), reason='needs the limits of Linux')
def test_a_loss_that_does_not_fit_is_measured_in_parts():
    "20 images ask for 5 GB, 10 for 2.5 GB and 5 for 1.25 GB, with 1.5 GB there."
    script = MEASURED.format(per_image=GIGABYTE // 4, room=3 * GIGABYTE // 2)
    env = os.environ | dict(OMP_NUM_THREADS='1')
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    plenty, *lines, short = done.stdout.splitlines()
    assert lines == [
        'out of memory with 20 images at once; 10 at once now',
        'out of memory with 10 images at once; 5 at once now',
    ]
    (a, b), (c, d) = plenty.split(), short.split()
    assert a == b and c == d and float(a) == pytest.approx(float(c), rel=1e-5)


@pytest.mark.parametrize('name', ['cpdm', 'cpdm_paper', 'cvae', 'cvae_paper', 'cgan'])
def test_a_measured_loss_does_not_depend_on_the_parts(name):
    "Of every model: the random numbers are those of the whole, and those of the caller stay."
    x, c, _ = data(n=10, size=16)
    given = torch.tensor(x), torch.tensor(c.to_numpy(dtype=np.float32))
    model, before = build(name, 2, 16, (), 8, (1, 2), 1, 0), torch.get_rng_state()
    losses = [evaluation_loss(model, *given, at_once=ImagesAtOnce(n)) for n in (64, 33, 7, 1)]
    assert losses[1:] == pytest.approx([losses[0]] * 3, rel=1e-5)
    assert losses[0] == evaluation_loss(model, *given) and model.training
    assert torch.equal(before, torch.get_rng_state())


def test_a_loss_without_parts_is_measured_in_halves(capsys):
    examples = Examples(torch.rand(10, 16, 16), torch.randn(10, 3))
    assert np.isfinite([evaluation_loss(hungry(4), *examples) for _ in range(2)]).all()
    assert capsys.readouterr().out.splitlines()[:2] == [
        'out of memory with 40 images at once; 20 at once now',
        'out of memory with 20 images at once; 10 at once now',
    ]
    net = hungry(0).train()
    with pytest.raises(RadgenError, match='out of memory with one image at once'):
        evaluation_loss(net, *examples)
    assert net.training


class Linear(CVAE):
    "A loss without random numbers."

    def loss(self, images, conditions, kinds=None):
        weight = next(self.parameters())
        return ((images.mean((1, 2)) + conditions.sum(1)) ** 2).mean() * (weight**2).sum()


def test_halves_give_the_gradient_of_the_whole_batch():
    batch, gradients = Examples(torch.rand(10, 16, 16), torch.randn(10, 3)), []
    for at_once in (16, 4, 1):
        trainer = Trainer(Linear(Linear.config_class.radgen(3, 16, dim=8)), TrainingSettings())
        trainer.gradient.at_once = at_once
        loss = trainer.gradient(batch, 0)
        gradients.append((torch.tensor(loss), next(trainer.model.parameters()).grad.clone()))
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], rtol=1e-5, atol=1e-7)


SAMPLED = """
import resource, sys, numpy as np, pandas as pd, torch
from pathlib import Path
from radgen.models.cpdm import CPDM, CPDMConfig
from radgen.models.store import ImageStore
usual = CPDM.denoise
def scarce(self, x, *given):
    torch.empty(len(x) * {per_image}, dtype=torch.uint8)
    return usual(self, x, *given)
table = np.random.default_rng(0).normal(size=(12, 2))
table = pd.DataFrame(table, columns=['a', 'b'], index=[f'P{{i}}' for i in range(12)])
net = CPDM(CPDMConfig.radgen(2, 8, dim=8, dim_mults=(1, 2), attention='none'))
how = dict(n_samples=2, shard_size=6, steps=3, progress=False)
ImageStore(sys.argv[1]).write(net, table, **how)  # all libraries are loaded
used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
CPDM.denoise = scarce
resource.setrlimit(resource.RLIMIT_AS, (used + {room}, used + {room}))
ImageStore(sys.argv[2]).write(net, table, **how)
"""


@pytest.mark.skipif(not Path('/proc/self/statm').exists(), reason='needs the limits of Linux')
def test_samples_that_do_not_fit_are_drawn_in_halves(tmp_path):
    "12 images ask for 6 GB, 6 for 3 GB and 3 for 1.5 GB, with 2 GB there, once for all chunks."
    script = SAMPLED.format(per_image=GIGABYTE // 2, room=2 * GIGABYTE)
    command = [sys.executable, '-c', script, str(tmp_path / 'plenty'), str(tmp_path / 'short')]
    env = os.environ | dict(OMP_NUM_THREADS='1')
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        'out of memory with 12 images at once; 6 at once now',
        'out of memory with 6 images at once; 3 at once now',
    ]
    plenty, short = (ImageStore(tmp_path / name).read() for name in ('plenty', 'short'))
    assert np.abs(plenty - short).max() < 1e-3  # as stored, in float16


def test_samples_are_the_same_where_memory_is_short(capsys):
    conditions = pd.DataFrame(np.random.default_rng(0).normal(size=(7, 3))).rename_axis(
        'patient_id'
    )
    conditions.index = [f'P{i}' for i in range(7)]
    how = dict(steps=3, guidance=1.0)
    plenty, short = (generate(hungry(n), conditions, **how) for n in (100, 2))
    assert np.abs(plenty - short).max() < 1e-5
    assert 'at once now' in capsys.readouterr().out
