"Sampling: one image per patient, sample and seed; samplers of a known case; stores continue."

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from radgen.conditions.encoder import ConditionEncoder
from radgen.core.paths import RadgenError
from radgen.models.cpdm import CPDM, CPDMConfig
from radgen.models.sampling import (
    SAMPLERS,
    generate,
    make_scheduler,
    predict_x0,
    respaced_betas,
    respaced_timesteps,
)
from radgen.models.store import ImageStore

torch.set_num_threads(1)


@pytest.fixture(scope='module')
def patients():
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        rng.normal(3, 2, (9, 3)),
        columns=['a', 'b', 'c'],
        index=[f'TCGA-XX-{i:04d}' for i in range(9)],
    )


@pytest.fixture(scope='module')
def model(patients):
    "Untrained, but with an encoder and weights large enough to listen to the condition."
    model = CPDM(
        CPDMConfig.radgen(3, 16, dim=8, dim_mults=(1, 2), kinds=('pre-contrast', 'subtraction'))
    )
    with torch.no_grad():
        model.diffusion.model.final_conv.weight.mul_(3)
    model.encoder = ConditionEncoder('multiomic').fit(patients)
    return model


@pytest.mark.parametrize('sampler', SAMPLERS)
@pytest.mark.parametrize('guidance', [0.0, 1.0, 2.0])
def test_batch_order_and_company_do_not_matter(model, patients, sampler, guidance):
    made = lambda table, **more: generate(
        model, table, **{**dict(n_samples=2, sampler=sampler, steps=5, guidance=guidance), **more}
    )
    whole = made(patients)
    assert (
        whole.shape == (9, 2, 16, 16)
        and whole.dtype == np.float32
        and 0 <= whole.min()
        and whole.max() <= 1
    )
    assert np.abs(whole - made(patients, batch_size=1)).max() < 1e-4
    assert np.abs(whole - made(patients[::-1], batch_size=7)[::-1]).max() < 1e-4
    assert np.abs(whole[[4]] - made(patients.iloc[[4]])).max() < 1e-4
    assert (
        np.abs(whole[[4], :1] - made(patients.iloc[[4]], n_samples=1)).max() < 1e-4
    )  # sample 0 is sample 0, however many are asked for


def test_seed_patient_sample_condition_and_kind_matter(model, patients):
    made = lambda table=patients, **more: generate(
        model, table, **{**dict(steps=4, n_samples=2), **more}
    )
    whole = made()
    differs = lambda other: np.abs(whole - other).max() > 1e-3
    assert (
        np.array_equal(whole, made())
        and differs(made(seed=1))
        and np.abs(whole[:, 0] - whole[:, 1]).max() > 1e-3
    )
    assert (
        differs(made(patients.set_axis([p + 'X' for p in patients.index])))
        and differs(made(patients + 1))
        and differs(made(kind='subtraction'))
    )
    assert not differs(made(kind=None)) and np.array_equal(
        made(guidance=0.0), made(patients + 1, guidance=0.0)
    )


def test_generating_changes_no_state(model, patients):
    model.train()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    generate(model, patients[:2], steps=2, sampler='ddpm')
    assert model.training and torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    'change, why',
    [
        (lambda t: t[['b', 'a', 'c']], 'order'),
        (lambda t: t.rename(columns=dict(a='z')), 'missing'),
        (lambda t: t[['a', 'b']], 'missing'),
        (lambda t: t.assign(d=1.0), 'unknown'),
        (lambda t: pd.concat([t, t[:1]]), 'more than one row .TCGA-XX-0000'),
        (lambda t: t.mask(t.index.to_series() == 'TCGA-XX-0003', np.inf), 'TCGA-XX-0003'),
        (lambda t: t.to_numpy(), 'table'),
    ],
)
def test_conditions_are_checked(model, patients, change, why):
    with pytest.raises(RadgenError, match=why) as error:
        generate(model, change(patients), steps=2)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    'settings, why',
    [
        (dict(sampler='euler'), 'ddim, dpm'),
        (dict(kind='phase'), 'pre-contrast'),
        (dict(steps=0), 'steps'),
        (dict(steps=1001), 'steps'),
        (dict(n_samples=0), 'n_samples'),
        (dict(precision='fp64'), 'fp64'),
    ],
)
def test_settings_are_checked(model, patients, settings, why):
    with pytest.raises(RadgenError, match=why):
        generate(model, patients[:1], **settings)


def test_model_without_encoder_takes_values(patients):
    model = CPDM(CPDMConfig.radgen(3, 16, dim=8, dim_mults=(1, 2)))
    assert generate(model, patients, steps=1).shape == (9, 1, 16, 16)
    with pytest.raises(RadgenError, match='2 features'):
        generate(model, patients[['a', 'b']], steps=1)
    with pytest.raises(RadgenError, match='TCGA-XX-0001'):
        generate(model, patients.mask(patients.index.to_series() == 'TCGA-XX-0001'), steps=1)


class Gaussian:
    "The perfect model of pixels of N(mean, sd)."

    mean, sd = -0.2, 0.2

    def __init__(self, objective, alphas):
        self.config, self.alphas_cumprod = SimpleNamespace(objective=objective), alphas

    def denoise(self, x, t):
        a, s = self.alphas_cumprod[t].double().sqrt(), (1 - self.alphas_cumprod[t].double()).sqrt()
        x0 = self.mean + a * self.sd**2 / (a**2 * self.sd**2 + s**2) * (x - a * self.mean)
        noise = (x - a * x0) / s
        return dict(pred_v=a * noise - s * x0, pred_noise=noise, pred_x0=x0)[self.config.objective]


@pytest.mark.parametrize('schedule', ['cosine', 'linear'])
@pytest.mark.parametrize('objective', ['pred_v', 'pred_x0', 'pred_noise'])
@pytest.mark.parametrize(
    'sampler, steps, error', [('ddim', 200, 0.025), ('dpm++', 60, 0.025), ('ddpm', 400, None)]
)
def test_samplers_solve_the_gaussian(sampler, steps, error, objective, schedule):
    alphas = CPDM(
        CPDMConfig.radgen(1, 16, dim=8, dim_mults=(1, 2), beta_schedule=schedule)
    ).alphas_cumprod
    known, start = (
        Gaussian(objective, alphas),
        torch.randn(1, 1, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),
    )
    scheduler, times = make_scheduler(known, sampler, steps)
    assert times[0] == 999 and len(times) == len(scheduler.timesteps) == steps
    x, extra = start, dict(generator=torch.Generator().manual_seed(1)) if sampler == 'ddpm' else {}
    for level, t in zip(scheduler.timesteps, times):
        x = scheduler.step(
            predict_x0(known, x, t, known.denoise(x, t)), level, x, return_dict=False, **extra
        )[0]
    if error is None:
        assert abs(x.mean() - known.mean) < 0.015 and abs(x.std() - known.sd) < 0.015
    else:
        assert (x - (known.mean + known.sd * start)).abs().mean() < (
            error + 0.015 * (schedule == 'linear')
        ) * known.sd  # the linear schedule keeps a trace of the image at T


def test_visited_times_and_merged_betas():
    alphas = CPDM(CPDMConfig.radgen(1, 16, dim=8, dim_mults=(1, 2))).alphas_cumprod
    for steps in (1, 3, 30, 999, 1000):
        times = respaced_timesteps(1000, steps)
        assert len(np.unique(times)) == steps and times[-1] == 999
        assert np.allclose(
            (1 - respaced_betas(alphas, times)).cumprod(), alphas.numpy()[times], atol=2e-6
        )


def test_store_continues_where_it_stopped(model, patients, tmp_path, monkeypatch):
    from radgen.models import sampling
    from radgen.models import store as module

    usual, calls = sampling.generate, []

    def failing(*args, **more):
        calls.append(1)
        if len(calls) == 3:
            raise MemoryError
        return usual(*args, **more)

    settings = dict(n_samples=2, steps=2, shard_size=2, progress=False)
    monkeypatch.setattr(module, 'generate', failing)
    store = ImageStore(tmp_path / 'store')
    with pytest.raises(MemoryError):
        store.write(model, patients, **settings)
    monkeypatch.undo()
    assert not store.complete and sorted(p.name for p in store.path.iterdir()) == [
        'c.0.0.0.0',
        'c.1.0.0.0',
        'index.csv',
        'zarr.json',
    ]
    with pytest.raises(RadgenError, match='c.2.0.0.0: not generated yet'):
        store.read()
    stamps = [store.shard(n).stat().st_mtime_ns for n in range(2)]
    store.write(model, patients, **settings)
    assert store.complete and stamps == [store.shard(n).stat().st_mtime_ns for n in range(2)]
    whole = generate(model, patients, n_samples=2, steps=2)
    assert np.abs(store.read() - whole).max() < 1e-3 and list(store.patients) == list(
        patients.index
    )
    assert np.abs(store.read(patients.index[[7, 0]]) - whole[[7, 0]]).max() < 1e-3
    assert sum(len(ids) for ids, _ in store.shards()) == 9 and not list(store.path.glob('.*'))


@pytest.mark.parametrize(
    'change, why',
    [
        (dict(steps=3), 'steps: 2 there, 3 here'),
        (dict(seed=1), 'seed'),
        (dict(n_samples=2), 'n_samples'),
        (dict(guidance=1.0), 'guidance'),
        (dict(kind='subtraction'), 'kind'),
    ],
)
def test_store_of_other_settings_is_refused(model, patients, tmp_path, change, why):
    settings = dict(steps=2, progress=False)
    store = ImageStore(tmp_path / 'store').write(model, patients, **settings)
    with pytest.raises(RadgenError, match=why):
        store.write(model, patients, **settings | change)
    old = store.read()
    store.write(model, patients, **settings | change, on_mismatch='restart')
    assert store.complete and np.array_equal(ImageStore(tmp_path / 'store.replaced-1').read(), old)


def test_store_of_another_model_or_table_is_refused(model, patients, tmp_path):
    store, other = (
        ImageStore(tmp_path).write(model, patients, steps=1, progress=False),
        CPDM(model.config, seed=1),
    )
    other.encoder = model.encoder
    with pytest.raises(RadgenError, match='weights'):
        store.write(other, patients, steps=1)
    with pytest.raises(RadgenError, match='conditions'):
        store.write(model, patients + 1, steps=1)
    with pytest.raises(RadgenError, match='n_patients'):
        store.write(model, patients[:4], steps=1)
    with pytest.raises(RadgenError, match="unknown setting 'step', did you mean 'steps'"):
        store.write(model, patients, step=1)
    store.shard(0).write_bytes(store.shard(0).read_bytes()[:200])
    with pytest.raises(RadgenError, match='c.0.0.0.0: damaged'):
        store.read()
    with pytest.raises(RadgenError, match='no images of 1 patients .NOBODY'):
        store.read(['NOBODY'])


@pytest.mark.parametrize('shard_size, start', [(256, 0), (4, 0), (4, 4)])
def test_progress_of_a_store_counts_patients(model, patients, tmp_path, capsys, shard_size, start):
    "Not full shards: nine patients are nine, and what was there before is counted once."
    store = ImageStore(tmp_path / 'store')
    store.write(model, patients, steps=1, shard_size=shard_size, progress=False)
    for number in range(start // 4, 3):
        store.shard(number).unlink(missing_ok=True)
    capsys.readouterr()
    store.write(model, patients, steps=1, shard_size=shard_size)
    lines = capsys.readouterr().out.replace('\r', '\n').split('\n')
    counts = [line.split()[2] for line in lines if line.startswith('generating store')]
    assert counts[0] == f'{start}/9' and counts[-1] == '9/9'
    assert store.complete and len(store.read()) == 9
