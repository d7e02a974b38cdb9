"The released recipe of Chen et al. 2024: its network, its schedule, its known issues as switches."

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

from radgen.conditions.encoder import ConditionEncoder
from radgen.core.paths import RadgenError
from radgen.models.architecture import blocks, describe
from radgen.models.checkpoint import load_model
from radgen.models.cpdm import CPDM, CPDMConfig
from radgen.models.released import (
    FIXED_ELSEWHERE,
    FIXES,
    KNOWN_ISSUES,
    RELEASED,
    apply_fix,
    released_steps,
)
from radgen.models.released_unet import ReleasedUnet
from radgen.models.sampling import generate
from radgen.models.trainer import fit

torch.set_num_threads(1)
TINY = CPDMConfig.paper(4, 16, dim=8)


def table(n=6, d=4, seed=0):
    return pd.DataFrame(
        np.random.default_rng(seed).normal(size=(n, d)),
        columns=[f'V{i + 1}' for i in range(d)],
        index=[f'TCGA-XX-{i:04d}' for i in range(n)],
    )


def generators(n):
    return [torch.Generator().manual_seed(i) for i in range(n)]


def middle(config):
    return CPDM(config).diffusion.model.mid_attn.eval()


@pytest.fixture
def given():
    g = torch.Generator().manual_seed(0)
    return torch.randn(5, 32, 4, 4, generator=g), torch.randn(
        5, 4, generator=g
    )  # the coarsest map of TINY, conditions


@pytest.mark.parametrize('keys', ['repeated', 'features'])
def test_parameters_are_as_many_as_released(keys):
    with torch.device('meta'):
        n = sum(p.numel() for p in ReleasedUnet(17, 128, keys=keys).parameters())
    assert n == pytest.approx(38.83e6, rel=0.01)


def test_paper_preset_needs_the_number_of_features_only():
    config = CPDMConfig.paper(17)
    assert (
        config.preset,
        config.image_size,
        config.dim,
        config.dim_mults,
        config.timesteps,
        config.objective,
    ) == ('paper', 128, 128, (1, 2, 4), 1500, 'pred_noise')
    assert CPDMConfig.from_dict(dataclasses.asdict(config)) == config


def test_schedule_is_the_released_one_and_the_library_keeps_its_own():
    model, other = CPDM(TINY), CPDM(dataclasses.replace(TINY, beta_schedule='linear'))
    betas = model.diffusion.betas
    assert len(betas) == 1500 and betas[0] == torch.tensor(1e-4) and betas[-1] == torch.tensor(0.02)
    torch.testing.assert_close(
        betas.diff(), torch.full((1499,), (0.02 - 1e-4) / 1499), rtol=1e-3, atol=1e-8
    )
    torch.testing.assert_close(
        model.alphas_cumprod[-1].double(),
        (1 - torch.linspace(1e-4, 0.02, 1500, dtype=torch.float64)).prod(),
        rtol=1e-5,
        atol=0,
    )
    assert other.diffusion.betas[-1] == pytest.approx(0.02 / 1.5)  # stretched by 1000/T
    torch.testing.assert_close(model.diffusion.loss_weight, torch.ones(1500))


def test_released_softmax_is_uniform_and_adds_one_constant(given):
    weights, added = (getattr(middle(TINY), name)(*given).detach() for name in ('weights', 'added'))
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / 16))
    assert added.std((2, 3)).max() < 1e-6 < added.std(0).min()  # over positions, over patients


def test_fixed_attention_chooses(given):
    released, fixed = middle(TINY), middle(apply_fix(TINY, 'attention_keys'))
    fixed.load_state_dict(released.state_dict())  # only the tokens differ
    weights, added = (getattr(fixed, name)(*given).detach() for name in ('weights', 'added'))
    assert weights.shape[3] == 4 and (weights - 1 / 4).abs().max() > 0.05
    assert (added.std((2, 3)) / added.std(0).mean()).mean() > 0.005
    assert not torch.allclose(fixed(*given), released(*given), atol=1e-3)


def test_released_queries_and_keys_get_no_gradient(given):
    for config, learns in ((TINY, False), (apply_fix(TINY, 'attention_keys'), True)):
        layer = middle(config)
        layer(*given).square().sum().backward()
        ratio = layer.to_k.weight.grad.norm() / layer.to_v.weight.grad.norm()
        assert (ratio > 1e-3) == learns and (learns or ratio < 1e-4)


def test_condition_enters_in_the_middle_only():
    unet, c = ReleasedUnet(4, 8).eval(), torch.randn(2, 4)
    x, t = torch.randn(2, 1, 16, 16), torch.tensor([10, 1000])
    with torch.no_grad():
        assert not torch.equal(unet(x, t, c), unet(x, t, c + 1))
        unet.mid_attn.to_out.weight.zero_()
        assert torch.equal(unet(x, t, c), unet(x, t, c + 1))


def test_attention_is_what_its_weights_say(given):
    for config in (TINY, apply_fix(TINY)):
        layer = middle(config)
        value = layer.parts(*given)[2]
        by_hand = (
            layer.to_out((layer.weights(*given) @ value).transpose(1, 2).flatten(2))
            .transpose(1, 2)
            .unflatten(2, (4, 4))
        )
        torch.testing.assert_close(layer.added(*given), by_hand, rtol=1e-4, atol=1e-5)


def test_noise_projection_is_the_patients_own():
    model, c = CPDM(TINY), torch.rand(3, 4)
    noise = torch.randn(3, 1, 16, 16)
    started = model.starting_noise(noise, c, generators(3))
    assert started.shape == noise.shape and torch.equal(
        started, model.starting_noise(noise, c, generators(3))
    )
    alone = model.starting_noise(noise[1:2], c[1:2], generators(3)[1:2])  # whatever the batch
    torch.testing.assert_close(alone, started[1:2])
    factor = started / noise - 1
    assert not torch.allclose(factor[0], factor[1]) and factor.std() > 0.1
    assert not torch.equal(started, model.starting_noise(noise, c, generators(4)[1:]))
    assert model.starting_noise(noise, c, generators(3)).dtype == noise.dtype
    assert torch.equal(
        CPDM(apply_fix(TINY, 'noise_projection')).starting_noise(noise, c, generators(3)), noise
    )


@pytest.mark.parametrize(
    'change, named',
    [
        (dict(network='unet'), "'guidance' or 'released'"),
        (dict(attention_keys='values'), "'repeated' or 'features'"),
        (dict(beta_schedule='exact'), "'linear' or 'linear_released'"),
        (dict(noise_projection=1), 'must be a valid boolean'),
        (dict(unit_range='yes'), 'must be a valid boolean'),
        (dict(low_discrepancy=0), 'must be a valid boolean'),
        (dict(center=True), 'center=False'),
        (dict(kinds=('a',)), 'no input for kinds'),
        (dict(cond_dropout=0.1), 'no input for cond_dropout'),
        (dict(augment=0.5), 'no input for augment'),
        (dict(dim=10), 'multiple of 4'),
        (dict(width=64), "unknown key 'width'"),
    ],
)
def test_unknown_switch_values_are_refused(change, named):
    with pytest.raises(RadgenError, match=named) as error:
        CPDMConfig.paper(4, 16, **{'dim': 8, **change})
    assert '\n' not in str(error.value)


def test_fixes():
    assert set(KNOWN_ISSUES) == {*FIXES, *FIXED_ELSEWHERE}
    for name, change in FIXES.items():
        changed = {
            f for f, v in dataclasses.asdict(apply_fix(TINY, name)).items() if v != getattr(TINY, f)
        }
        assert changed == set(change)  # nothing else, and something
    assert apply_fix(apply_fix(TINY, 'attention_keys'), 'noise_projection') == apply_fix(TINY)
    for name in ('scaling', 'nothing'):
        with pytest.raises(RadgenError, match=name):
            apply_fix(TINY, name)


def test_without_condition_dropout_there_is_no_guidance():
    c, x, t = torch.randn(2, 4), torch.randn(2, 1, 16, 16), torch.tensor([3, 1400])
    for config in (TINY, CPDMConfig.radgen(4, 16, dim=8, cond_dropout=0.0)):
        model = CPDM(config).eval()
        with torch.no_grad():
            plain = model.denoise(x, t, c, guidance=1)
            assert all(torch.equal(plain, model.denoise(x, t, c, guidance=g)) for g in (0, 2))


def test_released_loss_is_plain_l2_on_the_images_as_they_are():
    model, images, c = CPDM(TINY), torch.rand(3, 16, 16), torch.rand(3, 4)
    torch.manual_seed(5)
    loss = model.loss(images, c)
    torch.manual_seed(5)
    torch.rand(3, 3), torch.rand(3, 3), torch.rand(3)  # augmentation (off) and dropout (off)
    t, by_hand = torch.randint(1500, (3,)), CPDM(TINY)
    noise = torch.randn(3, 1, 16, 16)
    kept = model.alphas_cumprod[t][:, None, None, None]
    out = by_hand.diffusion.model(kept.sqrt() * images[:, None] + (1 - kept).sqrt() * noise, t, c)
    torch.testing.assert_close(loss, (out - noise).square().mean())


def test_it_trains_and_loads(tmp_path):
    images, conditions = np.random.default_rng(0).random((6, 16, 16), dtype=np.float32), table()
    settings = {
        k: RELEASED[k]
        for k in ('batch_size', 'lr', 'weight_decay', 'betas', 'schedule', 'ema_decay')
    }
    model = fit(
        CPDM(TINY),
        images,
        conditions,
        tmp_path,
        encoder=ConditionEncoder(scaling='own_features'),
        steps=3,
        progress=False,
        precision='fp32',
        **settings,
    )
    again = load_model(tmp_path)
    assert again.config == TINY and again.encoder.scaling == 'own_features'
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values())
    )
    fresh, moved = CPDM(TINY).state_dict(), again.state_dict()
    name = 'diffusion.model.mid_attn.condition_norm.running_mean'
    assert not torch.equal(fresh[name], moved[name])  # the batch norm's statistics travel too
    drawn = [generate(m, conditions, 1, 'ddpm', 3, 2.0, seed=1) for m in (model, again)]
    assert drawn[0].shape == (6, 1, 16, 16) and drawn[0].std() > 0
    np.testing.assert_allclose(
        *drawn, atol=1e-3
    )  # two memory layouts, and 3 steps that exaggerate rounding
    np.testing.assert_allclose(
        generate(again, conditions[2:3], 1, 'ddpm', 3, seed=1), drawn[0][2:3], atol=1e-3
    )


def test_a_batch_of_one_is_refused():
    with pytest.raises(RadgenError, match='batch_size 2 or more'):
        CPDM(TINY).loss(torch.rand(1, 16, 16), torch.rand(1, 4))


def test_length_of_the_released_training():
    assert [released_steps(n) for n in (54, 55)] == [1100 * 18, 1100 * 19]


def test_figure_2_of_the_released_network():
    model = CPDM(TINY)
    described = describe(model)
    assert model.training and list(described.index) and set(described.index) == set(blocks(model))
    assert described.parameters.sum() == sum(p.numel() for p in model.parameters())
    assert described.output['final_conv'] == (1, 16, 16) and described.output[
        'down 1 resample'
    ] == (8, 8, 8)


def test_own_feature_scaling_makes_constants():
    factors = table(20)
    factors['V3'] += 57
    factors['V4'] -= 9
    z = ConditionEncoder(scaling='own_features').fit(factors[:15]).transform(factors)
    assert (z[:, 2] == 1).all() and (z[:, 3] == 0).all() and z[:, :2].std(0).max() < 0.05
    assert (ConditionEncoder().fit(factors[:15]).transform(factors).std(0) > 0.5).all()


@pytest.mark.parametrize('scaling', ['patients', 'own_features'])
@pytest.mark.parametrize(
    'condition, columns',
    [
        ('expression', ['A', 'B', 'C']),
        ('multiomic', ['V1', 'V2', 'V3']),
        ('multiomic', ['cnv:A', 'cnv:B', 'expression:A', 'expression:B']),
    ],
)
def test_encoder_round_trip(scaling, condition, columns):
    frame = table(8, len(columns)).abs().set_axis(columns, axis=1)
    if ':' in columns[0]:
        frame = (
            frame.mul(0).add(frame.iloc[:, :1].to_numpy()) + 0.01 * frame
        )  # one component for a factorization to find
    encoder = ConditionEncoder(condition, 2, scaling).fit(frame[:6])
    again = ConditionEncoder.from_state(*encoder.state())
    assert again.scaling == scaling and np.array_equal(
        again.transform(frame), encoder.transform(frame)
    )
    z = encoder.transform(frame)
    if scaling == 'own_features':
        assert z.min() == 0 and z.max() == 1
    elif encoder.btf is None:
        np.testing.assert_allclose(z[:6].mean(0), 0, atol=1e-5)
    else:
        assert z.shape == (8, 2) and 0.5 < z[:6, 0].std() < 1.5


def test_expression_as_released_is_linear():
    frame = table(5).abs() * 100
    x = frame.to_numpy()
    z = ConditionEncoder('expression', scaling='own_features').fit(frame).transform(frame)
    np.testing.assert_allclose(
        z, (x - x.min(1, keepdims=True)) / np.ptp(x, 1, keepdims=True), atol=1e-6
    )


def test_encoder_of_an_old_checkpoint_and_unknown_scaling():
    frame = table()
    arrays, meta = ConditionEncoder().fit(frame).state()
    old = ConditionEncoder.from_state(arrays, {k: v for k, v in meta.items() if k != 'scaling'})
    assert old.scaling == 'patients' and np.array_equal(
        old.transform(frame), ConditionEncoder().fit(frame).transform(frame)
    )
    with pytest.raises(RadgenError, match='own_features'):
        ConditionEncoder(scaling='rows')
