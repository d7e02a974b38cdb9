"""A training step of the default network, eager and compiled, on one thread.

    python docs/measured/compiled.py      # writes docs/measured/compiled.csv

Processor seconds of this process and of the compilers that it starts. Eager and compiled steps
alternate, and compiled code is kept in a folder that is empty at the start.
"""

import os
import resource
import tempfile
from pathlib import Path

import pandas as pd
import torch

from radgen.models.cpdm import CPDM, CPDMConfig
from radgen.models.training_data import Examples
from radgen.models.training_step import Trainer, TrainingSettings

SIZE, BATCH, STEPS, ROUNDS = 32, 16, 4, 5
SHAPE = dict(dim=32, dim_mults=(1, 2, 4), patch=2, objective='pred_x0')


def processor_seconds():
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def seconds(work, *args):
    before = processor_seconds()
    work(*args)
    return processor_seconds() - before


def training(precision, compile):
    "A function that does some steps, and appends their losses."
    torch.manual_seed(0)
    examples, losses = Examples(torch.rand(BATCH, SIZE, SIZE), torch.randn(BATCH, 17)), []
    settings = TrainingSettings(batch_size=BATCH, compile=compile, precision=precision)
    trainer = Trainer(CPDM(CPDMConfig.radgen(17, SIZE, **SHAPE)), settings)
    return lambda steps: losses.extend(trainer.advance(examples) for _ in range(steps)) or losses


def measured(precision):
    ways = dict(eager=training(precision, False), compiled=training(precision, True))
    for way, work in ways.items():
        yield 'first step, nothing kept', way, seconds(work, 1)
    for _ in range(ROUNDS):
        for way, work in ways.items():
            yield 'one image of a step', way, seconds(work, STEPS) / STEPS / BATCH
    yield 'first step, code kept', 'compiled', seconds(training(precision, True), 1)
    eager, compiled = (torch.tensor(work(0)) for work in ways.values())
    difference = (compiled / eager - 1).abs()
    yield 'relative difference of the first loss', 'both', difference[0].item()
    yield 'relative difference of the last loss', 'both', difference[-1].item()


def main():
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as cache:
        os.environ['RADGEN_CACHE'] = cache
        rows = [(precision, *row) for precision in ('fp32', 'bf16') for row in measured(precision)]
    table = pd.DataFrame(rows, columns=['precision', 'what', 'way', 'value'])
    table = table.groupby(['precision', 'what', 'way'], sort=False).value
    table = table.agg(['median', 'min', 'max', 'size'])
    table.to_csv(Path(__file__).with_suffix('.csv'), float_format='%.3g')


if __name__ == '__main__':
    main()
