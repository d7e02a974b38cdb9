"Baselines: common trainer, noise of the patient, players kept apart, controls fold by fold."

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

from radgen.conditions.encoder import ConditionEncoder
from radgen.core.paths import RadgenError
from radgen.models.baselines import fold_controls, mean_image, nearest_copy
from radgen.models.cgan import CGAN, CGANConfig
from radgen.models.checkpoint import load_model
from radgen.models.cvae import CVAE, CVAEConfig
from radgen.models.released import released_cvae_steps
from radgen.models.trainer import fit

torch.set_num_threads(1)
SMALL = dict(n_features=2, image_size=16, dim=8)
MODELS = dict(
    cvae=(CVAE, CVAEConfig(**SMALL, kinds=('a', 'b'))),
    cvae_paper=(CVAE, CVAEConfig.paper(**SMALL)),
    cgan=(CGAN, CGANConfig(**SMALL, kinds=('a', 'b'))),
)
PATCHED = dict(
    cvae=(CVAE, CVAEConfig(2, 64, dim=8, grid=16)), cgan=(CGAN, CGANConfig(2, 64, dim=8, grid=16))
)


def data(n=10, size=16, seed=0):
    rng = np.random.default_rng(seed)
    patients = [f'TCGA-XX-{i // 2:04d}' for i in range(n)]  # two series a patient
    table = pd.DataFrame(
        rng.normal(size=(n // 2, 2)), columns=['f1', 'f2'], index=sorted(set(patients))
    )
    return rng.random((n, size, size), dtype=np.float32), table.loc[patients], ['a', 'b'] * (n // 2)


def train(name, out, **changes):
    cls, config = MODELS[name]
    images, conditions, kinds = data()
    return fit(
        cls(config),
        images,
        conditions,
        out,
        kinds=kinds if config.kinds else None,
        **{**dict(steps=4, batch_size=4, lr=1e-3, progress=False, precision='fp32'), **changes},
    )


def sources(*seeds):
    return [torch.Generator().manual_seed(s) for s in seeds]


def ready(name, table=MODELS):
    "An untrained model that would show a dependence: no weight is zero."
    cls, config = table[name]
    model = cls(config, seed=1).eval()
    torch.manual_seed(0)
    model.prepare(torch.rand(6, config.image_size, config.image_size))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


@torch.no_grad()
def draw(model, conditions, generators, kinds=None):
    return model.draw(
        conditions, generators, torch.full((len(conditions),), -1) if kinds is None else kinds
    )


@pytest.mark.parametrize('name', MODELS)
def test_trained_saved_and_loaded(tmp_path, name):
    images, conditions, kinds = data(seed=1)
    model = train(
        name, tmp_path, held_out=(images, conditions, kinds if MODELS[name][1].kinds else None)
    )
    again, z = load_model(tmp_path), torch.randn(3, 2, generator=sources(0)[0])
    assert type(again) is MODELS[name][0] and again.config == MODELS[name][1] and not again.training
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values())
    )
    assert torch.equal(
        draw(again, z, sources(1, 2, 3)), draw(load_model(tmp_path), z, sources(1, 2, 3))
    )
    assert torch.allclose(
        draw(model, z, sources(1, 2, 3)), draw(again, z, sources(1, 2, 3)), atol=1e-5
    )  # another memory format rounds otherwise
    history = pd.read_csv(tmp_path / 'loss.csv')
    assert (
        len(history) == 4
        and np.isfinite(
            history.iloc[-1][['loss', 'train_loss', 'held_out_loss']].astype(float)
        ).all()
    )


@pytest.mark.parametrize('precision', ['fp32', 'bf16'])
@pytest.mark.parametrize('name', MODELS)
def test_stopped_and_continued_gives_the_same_bits(tmp_path, monkeypatch, name, precision):
    cls, calls = MODELS[name][0], []
    usual = cls.loss

    def stops(self, *args):
        calls.append(1)
        if len(calls) == 6:
            raise RuntimeError('power cut')
        return usual(self, *args)

    settings = dict(steps=8, checkpoint_every=3, precision=precision)
    with monkeypatch.context() as m:
        m.setattr(cls, 'loss', stops)
        with pytest.raises(RuntimeError, match='power cut'):
            train(name, tmp_path / 'cut', **settings)
    assert (tmp_path / 'cut/checkpoint.safetensors').exists()
    continued, whole = (
        train(name, tmp_path / 'cut', **settings),
        train(name, tmp_path / 'whole', **settings),
    )
    assert all(
        torch.equal(a, b)
        for a, b in zip(continued.state_dict().values(), whole.state_dict().values())
    )
    assert all(t.isfinite().all() for t in whole.state_dict().values())


@pytest.mark.parametrize(
    'name, table', [*((n, MODELS) for n in MODELS), *((n, PATCHED) for n in PATCHED)]
)
def test_an_image_depends_on_its_own_source_only(name, table):
    model, c = ready(name, table), torch.randn(5, 2, generator=sources(0)[0])
    before = torch.random.get_rng_state()
    alone, batch = draw(model, c[:1], sources(7)), draw(model, c, sources(7, 8, 9, 10, 11))
    assert torch.equal(before, torch.random.get_rng_state())
    assert (
        alone.shape == (1, *[model.config.image_size] * 2) and 0 <= batch.min() and batch.max() <= 1
    )
    assert torch.allclose(alone[0], batch[0], atol=1e-5)
    assert torch.allclose(
        batch.flip(0), draw(model, c.flip(0), sources(11, 10, 9, 8, 7)), atol=1e-5
    )
    assert (draw(model, c[:1], sources(8)) - alone).abs().max() > 1e-3  # other noise
    assert (draw(model, c[1:2], sources(7)) - alone).abs().max() > 1e-3  # other condition


@pytest.mark.parametrize('name', ['cvae', 'cgan'])
def test_a_kind_is_given_or_left_open(name):
    model, c = ready(name), torch.zeros(1, 2)
    drawn = [draw(model, c, sources(3), torch.tensor([k])) for k in (-1, 0, 1)]
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(drawn, drawn[1:]))
    with torch.no_grad():
        assert torch.equal(drawn[0], model.draw(c, sources(3)))


@pytest.mark.parametrize('name', MODELS)
def test_building_leaves_the_callers_random_state(name):
    cls, config = MODELS[name]
    before = torch.random.get_rng_state()
    a, b, other = cls(config), cls(config), cls(config, seed=1)
    assert torch.equal(before, torch.random.get_rng_state())
    pairs = lambda x, y: [torch.equal(p, q) for p, q in zip(x.parameters(), y.parameters())]
    assert all(pairs(a, b)) and not all(pairs(a, other))


def test_the_released_autoencoder_generates_from_a_black_image():
    model, seen = ready('cvae_paper'), []
    model.trunk.register_forward_hook(lambda module, given, out: seen.append(given[0]))
    c = torch.tensor([[0.0, 0.0], [2.0, -1.0]])
    first, second = draw(model, c, sources(5, 5))
    assert (
        len(seen) == 1 and not seen[0].any() and seen[0].shape == (2, 1, 16, 16)
    )  # no image of any patient
    assert (first - second).abs().max() > 1e-3  # the condition is all that differs
    twins = draw(model, c[[0, 0]], sources(5, 5))
    assert torch.allclose(twins[0], twins[1], atol=1e-6)


def test_the_released_settings():
    config = CVAEConfig.paper(17)
    assert (
        config.latent,
        config.zero_image,
        config.center,
        config.augment,
        config.likelihood,
        config.image_size,
    ) == (2, True, False, 0.0, 'mse', 128)
    assert released_cvae_steps(54, 3) == 70 * 18 and released_cvae_steps(55, 3) == 70 * 19
    model = CVAE(CVAEConfig.paper(**SMALL))
    model.prepare(torch.rand(5, 16, 16))
    assert not model.mean.any() and model.scale == 1
    fixed = dataclasses.replace(model.config, zero_image=False)
    other = CVAE(fixed).eval()
    other.trunk.register_forward_hook(lambda *args: pytest.fail('there is nothing to encode'))
    draw(other, torch.zeros(1, 2), sources(0))


@pytest.mark.parametrize('scale', [0.1, 1.0])
def test_noise_level_is_the_errors_own(scale):
    model, images = (
        CVAE(dataclasses.replace(MODELS['cvae'][1], augment=0.0)).train(),
        torch.rand(8, 16, 16, generator=sources(0)[0]),
    )
    model.prepare(images)
    model.scale.fill_(scale)  # so that the error is far from where the running value starts
    with torch.no_grad():
        for _ in range(200):
            model.loss(images, torch.zeros(8, 2))  # weights stay: only the running value moves
        model.eval()
        error = (
            (
                model.decode(
                    torch.randn(8, 16), model.given(torch.zeros(8, 2), None), torch.zeros(8, 3)
                )
                - model.to_network(images[:, None])
            )
            .square()
            .mean()
        )
        assert not 0.5 < error / 0.25 < 2 and abs(model.variance / error - 1) < 0.02
        for factor in (0.5, 2.0):  # any other noise level is less likely
            other = model.variance * factor
            assert (other.log() + error / other) / 2 > (
                model.variance.log() + error / model.variance
            ) / 2


def gradients(model, loss):
    found = torch.autograd.grad(
        loss, list(model.parameters()), retain_graph=True, allow_unused=True
    )
    return {
        name: g
        for (name, _), g in zip(model.named_parameters(), found)
        if g is not None and g.abs().sum() > 0
    }


def test_no_player_moves_the_other():
    model = ready('cgan').train()
    parts = model.parts(
        torch.rand(6, 16, 16), torch.randn(6, 2), torch.tensor([0, 1, -1, 0, 1, -1])
    )
    moved = {name: gradients(model, part) for name, part in parts.items()}
    for name, player in dict(critic='critic', penalty='critic', generator='generator').items():
        assert moved[name] and {n.split('.')[0] for n in moved[name]} == {player}
    whole = gradients(model, sum(parts.values()))
    for name, g in moved['generator'].items():
        assert torch.allclose(whole[name], g, rtol=1e-4, atol=1e-7)


def test_the_generator_follows_the_critic():
    "The generator's gradient is that of its loss against the critic as it is."
    model = ready('cgan').train()
    model.config = dataclasses.replace(model.config, augment=0.0, kind_dropout=0.0)
    images, c = torch.rand(6, 16, 16), torch.randn(6, 2)
    torch.manual_seed(3)
    got = gradients(model, model.parts(images, c)['generator'])
    torch.manual_seed(3)
    given = model.given(c, None)
    fake, real = (
        model.to_network(model.decode(torch.randn(6, 16), given)),
        model.to_network(images[:, None]),
    )
    wanted = torch.nn.functional.softplus(
        model.critic(real, given) - model.critic(fake, given)
    ).mean()
    for name, g in gradients(model, wanted).items():
        if name.startswith('generator'):
            assert torch.allclose(got[name], g, rtol=1e-3, atol=1e-6)


def test_evaluation_of_the_adversarial_network_is_fixed():
    model, images, c = ready('cgan'), torch.rand(4, 16, 16), torch.randn(4, 2)
    with torch.no_grad():
        torch.manual_seed(1)
        first = model.loss(images, c)
        torch.manual_seed(2)
        assert torch.equal(first, model.loss(images, c))
        for p in model.critic.parameters():
            p.zero_()
        assert abs(model.loss(images, c).item() - np.log(2)) < 1e-6


@pytest.mark.parametrize(
    'make, named',
    [
        (lambda: CVAEConfig(2, 24), 'power of two'),
        (lambda: CGANConfig(2, 16, grid=4), 'grid'),
        (lambda: CVAEConfig.radgen(2, 16, likelihood='l1'), "'sigma' or 'mse'"),
        (lambda: CGANConfig.radgen(2, 16, gamma='1'), 'gamma'),
        (
            lambda: CGANConfig.from_dict(dict(n_features=2, image_size=16, beta=1.0)),
            "unknown key 'beta'",
        ),
        (
            lambda: CVAE(MODELS['cvae'][1]).draw(torch.zeros(1, 3), sources(0)),
            '2 condition features, got 3',
        ),
    ],
)
def test_mistakes_are_refused_by_name(make, named):
    with pytest.raises(RadgenError, match=named) as error:
        make()
    assert '\n' not in str(error.value)


def cohort(seed=0):
    rng, n = np.random.default_rng(seed), 18
    patients = np.array([f'P{i // 3:02d}' for i in range(n)])
    table = pd.DataFrame(
        rng.normal(size=(6, 5)), columns=[f'f{i}' for i in range(5)], index=sorted(set(patients))
    )
    return (
        rng.random((n, 8, 8), dtype=np.float32),
        table.loc[patients],
        patients,
        rng.permutation(n) % 3,
    )


def test_controls_of_all_folds_are_those_of_each():
    images, given, patients, folds = cohort()
    got = fold_controls(images, given, patients, folds, 'multiomic', 4, seed=2)
    for k in range(3):
        train, test = folds != k, folds == k
        z = ConditionEncoder('multiomic', 4).fit(given[train]).transform(given)
        copy, row = nearest_copy(images[train], z[train], patients[train], z[test], seed=3 * 2 + k)
        assert np.array_equal(
            got['mean_image'][test], np.broadcast_to(mean_image(images[train]), copy.shape)
        )
        assert np.array_equal(got['nearest_copy'][test], copy) and np.array_equal(
            got['copied'][test], np.flatnonzero(train)[row]
        )
    assert not np.array_equal(
        got['copied'],
        fold_controls(images, given, patients, folds, 'multiomic', 4, seed=3)['copied'],
    )


@pytest.mark.parametrize(
    'change, named',
    [
        (lambda i, g, p, f: (i[1:], g, p, f), '17 images'),
        (lambda i, g, p, f: (i, g[1:], p, f), '17 given'),
        (lambda i, g, p, f: (i, g, p[1:], f), '17 patients'),
        (lambda i, g, p, f: (i, g, p, f[1:]), '17 folds'),
        (lambda i, g, p, f: (i, g[::-1], p, f), 'not those of the images'),
        (lambda i, g, p, f: (i, g, p, 0 * f), 'at least 2'),
    ],
)
def test_controls_refuse_what_does_not_fit(change, named):
    with pytest.raises(RadgenError, match=named):
        fold_controls(*change(*cohort()), 'multiomic', 4)
