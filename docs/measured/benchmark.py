"""What a part of radgen costs beside what one would take instead: ratios on one machine.

    python docs/measured/benchmark.py        # writes benchmark.csv, in some minutes

Both sides of a row are run in turn, one thread each, and the ratio is the median over the turns,
with the smallest and the largest. Seconds are those of the processor, so that other work on the
machine counts little. Nothing is trained, and images are simulated or noise.
"""

import os
import platform
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

os.environ['OMP_NUM_THREADS'] = '1'

import numpy as np
import pandas as pd
import torch
from lifelines.utils import concordance_index
from sklearn.metrics import average_precision_score, roc_auc_score
from torch.utils.flop_counter import FlopCounterMode

from radgen.core.results import patient_bootstrap
from radgen.evaluate.features import central_box, radiomics_features
from radgen.evaluate.inception import torchmetrics_parts
from radgen.evaluate.paired import ssim
from radgen.evaluate.scores import auprc, auroc
from radgen.evaluate.survival import concordance_ratio, concordant_pairs
from radgen.models.cpdm import CPDM, CPDMConfig
from radgen.models.registry import build
from radgen.models.released_unet import library_module
from radgen.models.sampling import generate
from radgen.models.tensor_files import save_tensors
from radgen.models.training_data import Examples
from radgen.models.training_step import Trainer, TrainingSettings
from radgen.run.benchmark import has_bfloat16

TABLE = Path(__file__).with_suffix('.csv')


def seconds(work) -> float:
    "Processor seconds of a call."
    start = time.process_time()
    work()
    return time.process_time() - start


def compared(row, ours, other, turns=5, times=1.0, other_times=1.0):
    "A line of the table; `times` stretch a measured part to the whole that the row names."
    ours(), other()
    pairs = [(times * seconds(ours), other_times * seconds(other)) for _ in range(turns)]
    ratios = [b / a for a, b in pairs]
    mine, theirs = np.median(pairs, axis=0)
    line = dict(row=row, radgen_s=mine, other_s=theirs, ratio=np.median(ratios))
    line |= dict(lowest=min(ratios), highest=max(ratios), turns=turns)
    print(f'{row}: {line["ratio"]:.3g} times', flush=True)
    return line


def examples(size, n=16, d=17):
    "Noise in place of images."
    torch.manual_seed(0)
    return Examples(torch.rand(n, size, size), torch.randn(n, d), torch.zeros(n).long())


def trained_step(net, batch):
    "A step of the trainer, with everything that belongs to it."
    trainer = Trainer(net, TrainingSettings(batch_size=len(batch.images)))
    return lambda: trainer.advance(batch)


def plain_step(model, *inputs, amount=1e-4):
    "A step as a tutorial writes it: loss, gradient, Adam."
    optimizer = torch.optim.Adam(model.parameters(), amount)

    def step():
        optimizer.zero_grad()
        model(*inputs).backward()
        optimizer.step()

    return step


class AsLoss(torch.nn.Module):
    "A model whose forward pass is its loss."

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, *given):
        return self.net.loss(*given)


class Conditional(torch.nn.Module):
    "The library's diffusion with its condition by position."

    def __init__(self, diffusion):
        super().__init__()
        self.diffusion = diffusion

    def forward(self, images, classes):
        return self.diffusion(images, classes=classes)


def default_net(size):
    "The default network of an image size."
    net = build('cpdm', 17, size, ('a',), 32, (1, 2, 4), size // 16, objective='pred_x0')
    return net


def stock(size):
    "The conditional network of denoising-diffusion-pytorch at its defaults, with one channel."
    library = library_module()
    unet = library.Unet(dim=64, num_classes=1, dim_mults=(1, 2, 4, 8), channels=1)
    return library.GaussianDiffusion(unet, image_size=size, timesteps=1000)


def of_networks():
    "Training steps and images."
    few = examples(128, 3)
    other = stock(128)
    pixels, one = few.images[:, None], torch.zeros(3).long()
    step = plain_step(Conditional(other), pixels, one)
    yield compared(
        'training step, 3 images of 128 pixels: default against denoising-diffusion-pytorch',
        *(trained_step(default_net(128), few), step),
        turns=3,
    )
    config = CPDMConfig.paper(17, 32, dim=64)
    small = examples(32, 3)
    fixed = CPDM(CPDMConfig.paper(17, 32, dim=64, attention_keys='features'))
    yield compared(
        'training step, 3 images of 32 pixels, released network: keys of features and our trainer '
        'against keys repeated and plain Adam',
        trained_step(fixed, small._replace(kinds=None)),
        plain_step(AsLoss(CPDM(config)), *small[:2]),
        turns=3,
    )
    who = pd.DataFrame(np.random.default_rng(0).normal(size=(4, 17))).rename_axis('patient_id')
    who.index = [f'P{i}' for i in range(4)]
    ours = default_net(128).eval()
    draw = lambda: generate(ours, who, sampler='dpm++', steps=10, guidance=1.5)
    at, noise = torch.zeros(1).long(), torch.randn(1, 1, 128, 128)

    @torch.no_grad()
    def passes():
        other.model(noise, at, one[:1])

    yield compared(
        'an image of 128 pixels: 10 guided DPM-Solver++ steps of the default against 1,500 passes '
        'of denoising-diffusion-pytorch (1 measured)',
        *(draw, passes),
        turns=3,
        times=1 / 4,
        other_times=1500,
    )


def of_checkpoints():
    "A checkpoint beside the steps between two of them."
    batch, net = examples(32), default_net(32)
    trainer = Trainer(net, TrainingSettings())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'checkpoint.safetensors'
        save = lambda: save_tensors(path, trainer.tensors(), dict(step=1))
        yield compared(
            'a checkpoint against the 100 training steps before it (3 measured)',
            *(save, lambda: [trainer.advance(batch) for _ in range(3)]),
            turns=3,
            other_times=100 / 3,
        )


def by_pyradiomics(images):
    "One image after the other through PyRadiomics' extractor."
    import logging

    import SimpleITK as sitk
    from radiomics.featureextractor import RadiomicsFeatureExtractor

    logging.getLogger('radiomics').setLevel(logging.ERROR)
    extractor = RadiomicsFeatureExtractor(force2D=True)
    extractor.disableAllFeatures()
    for family in 'firstorder glcm glrlm glszm gldm ngtdm'.split():
        extractor.enableFeatureClassByName(family)
    inside = np.zeros(images.shape[1:], np.uint8)
    inside[central_box(*inside.shape)] = 1
    mask = sitk.GetImageFromArray(inside[None])
    for image in np.round(images * 255).astype(np.float32):
        extractor.execute(sitk.GetImageFromArray(image[None]), mask)


def of_measures():
    "Features and similarity of images."
    one_pair, _ = torchmetrics_parts()
    rng = np.random.default_rng(0)
    for size in (32, 128):
        smooth = lambda n, size=size: (
            rng.random((n, 8, 8)).repeat(size // 8, 1).repeat(size // 8, 2)
        )
        images = smooth(16)
        yield compared(
            f'radiomics of 16 images of {size} pixels: against PyRadiomics, image by image',
            lambda x=images: radiomics_features(x),
            lambda x=images: by_pyradiomics(x),
            turns=3,
        )
    a, b = smooth(32), smooth(32)
    tensor = lambda x: torch.from_numpy(x[None, None]).float()
    loop = lambda: [one_pair(tensor(y), tensor(x), data_range=1.0) for x, y in zip(a, b)]
    yield compared(
        'SSIM of 32 pairs of 128 pixels: against torchmetrics, pair by pair',
        *(lambda: ssim(a, b), loop),
    )


def same(a, b):
    "Both sides must agree to 1e-12."
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if not np.allclose(a, b, rtol=0, atol=1e-12):
        sys.exit(f'benchmark: {a} and {b} differ')


def of_statistics(n=200, draws=500):
    "Bootstrap intervals against loops over the usual libraries, the same to 1e-12."
    rng = np.random.default_rng(0)
    y, score, who = np.arange(n) % 2, np.round(rng.normal(size=n), 1), np.arange(n)
    boot = lambda f: patient_bootstrap(f, who, y, score, n_boot=draws)
    for ours, other in {auroc: roc_auc_score, auprc: average_precision_score}.items():
        same(
            *([i.value, i.low, i.high] for i in (boot(ours), boot(other))),
        )
        row = f'{draws} resamples of {ours.__name__.upper()}, {n} patients: against scikit-learn'
        yield compared(row, lambda f=ours: boot(f), lambda f=other: boot(f), turns=3)
    time_, risk = rng.uniform(1, 900, n), rng.normal(size=n)
    counts = [np.bincount(rng.integers(0, n, n), minlength=n) for _ in range(100)]
    pairs = concordant_pairs(time_, y, risk)
    fast = lambda: [concordance_ratio(*pairs, c.astype(float)) for c in counts]

    def loop():
        rows = [np.repeat(np.arange(n), c) for c in counts]
        return [concordance_index(time_[r], -risk[r], y[r]) for r in rows]

    same(fast(), loop())
    yield compared(f'100 resamples of the C-index, {n} patients: against lifelines', fast, loop)


def of_arithmetic():
    "The share of the machine's own rate of matrix products that a training step reaches."
    batch, net = examples(32), default_net(32)
    trainer = Trainer(net, TrainingSettings())
    with FlopCounterMode(display=False) as counter:
        trainer.advance(batch)
    a = torch.rand(1024, 1024)
    product = 2 * 1024**3
    line = compared(
        'arithmetic: a training step of the default against as many operations as matrix products',
        *(lambda: trainer.advance(batch), lambda: [a @ a for _ in range(4)]),
        other_times=counter.get_total_flops() / (4 * product),
    )
    gflops = counter.get_total_flops() / 1e9
    return [line | dict(note=f'{gflops:.1f} GFLOP, {gflops / line["radgen_s"]:.0f} GFLOP/s')]


def processor() -> str:
    "The processor's name."
    if Path('/proc/cpuinfo').exists():
        lines = Path('/proc/cpuinfo').read_text().splitlines()
        return next((x.split(':')[1].strip() for x in lines if x.startswith('model name')), '')
    return platform.processor()


if __name__ == '__main__':
    torch.set_num_threads(1)
    parts = (of_statistics, of_measures, of_checkpoints, of_arithmetic, of_networks)
    table = pd.DataFrame([line for part in parts for line in part()])
    bf16 = 'yes' if has_bfloat16() else 'no'
    table = table.assign(processor=processor(), bfloat16=bf16, precision='fp32', threads=1)
    table = table.assign(torch=version('torch'))
    table.to_csv(TABLE, index=False, float_format='%.4g')
    print(table.drop(columns=['processor', 'torch']).to_string(index=False))
