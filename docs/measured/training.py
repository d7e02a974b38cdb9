"""What a shorter, smaller or otherwise trained CPDM costs, and what it does to held-out images.

    python docs/measured/training.py docs/measured/variants.json   # appends to training.csv

training_search.csv has the same columns, of more variants on the cohort of seed 11.

The patients are simulated, with seeds that no committed run uses. Half of the imaged patients
train, the other half are held out. Seconds are those of the process on one thread, evaluation
losses included.
"""

import dataclasses
import json
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ['OMP_NUM_THREADS'] = '1'

import numpy as np
import pandas as pd
import torch

from radgen.conditions.encoder import ConditionEncoder
from radgen.core.results import Rows
from radgen.core.rows import ok_rows
from radgen.data.splits import folds_for
from radgen.load import load_cohort
from radgen.models.baselines import fold_controls
from radgen.models.registry import build
from radgen.models.sampling import generate
from radgen.models.trainer import fit
from radgen.validate.learning import image_rows

TABLE = Path(__file__).with_suffix('.csv')
NETWORK = dict(dim=32, dim_mults=(1, 2, 4), patch=2)
TRAINING = dict(steps=1000, batch_size=16, lr=1e-3, ema_decay=0.995, precision='fp32')
SAMPLING = dict(n_samples=4, sampler='dpm++', steps=10, guidance=1.5, seed=0)


def split(seed, size):
    "The cohort, who trains, and the conditions of each image."
    made = load_cohort('phantom', n_patients=600, n_imaged=128, seed=seed)
    data = made.with_condition('multiomic').resized(size)
    train = folds_for('patient', data.series, 2, 0) != 0
    return data, train, data.condition('multiomic').loc[data.series.patient_id]


def trained(variant, data, train, given, folder):
    "The network and the seconds of its training."
    own = NETWORK | TRAINING | variant.get('training', {})
    encoder = ConditionEncoder('multiomic', 17, 'patients').fit(given[train])
    kinds, size = sorted(data.series.kind.unique()), data.images.shape[-1]
    shape = [own.pop(k) for k in NETWORK]
    net = build('cpdm', encoder.n_out, size, kinds, *shape)
    net = type(net)(dataclasses.replace(net.config, **variant.get('config', {})))
    part = lambda rows: (data.images[rows], given[rows], data.series.kind[rows].tolist())
    images, conditions, kinds = part(train)
    how = dict(encoder=encoder, kinds=kinds, held_out=part(~train), progress=False)
    start = time.process_time()
    net = fit(net, images, conditions, folder, measure_every=0.2, **how, **own)
    return net, time.process_time() - start


def measured(net, data, train, given, sampling):
    "Seconds of sampling, and the held-out images beside samples, mean image and copy."
    patients = data.series.patient_id.to_numpy()
    held_out = given[~train]
    once = held_out[~held_out.index.duplicated()]
    start = time.process_time()
    drawn = dict(zip(once.index, generate(net, once, **SAMPLING | sampling)))
    seconds = time.process_time() - start
    folds = np.where(train, 1, 0)
    trivial = fold_controls(data.images, given, patients, folds, 'multiomic', 17, 0)
    stacks = dict(cpdm=np.stack([drawn[p] for p in patients[~train]]))
    stacks |= {name: trivial[name][~train] for name in ('mean_image', 'nearest_copy')}
    roles = dict(cpdm='model', mean_image='control', nearest_copy='control')
    rows = Rows(condition='multiomic')
    image_rows(rows, data.images[~train], patients[~train], stacks, roles, n_boot=200, n_splits=5)
    return seconds, ok_rows(rows.frame())


def lines(variant):
    "Rows of the table: the variant, and the two trivial answers of its patients."
    seed, size = variant.get('seed', 11), variant.get('size', 32)
    data, train, given = split(seed, size)
    with tempfile.TemporaryDirectory() as folder:
        net, training_s = trained(variant, data, train, given, folder)
        losses = pd.read_csv(Path(folder) / 'loss.csv').held_out_loss.dropna()
    for sampling in variant.get('samplings', [{}]):
        seconds, rows = measured(net, data, train, given, sampling)
        for model, part in rows.groupby('model', sort=False):
            line = dict(variant=variant['name'], cohort_seed=seed, image_size=size, model=model)
            if model == 'cpdm':
                line |= dict(training_s=training_s, sampling_s=seconds)
                line |= dict(sampling=json.dumps(sampling), held_out_loss=losses.iloc[-1])
            keys = part.metric.str.cat(part.estimator.fillna(''), '_').str.strip('_')
            yield line | dict(zip(keys, part.value))


if __name__ == '__main__':
    torch.set_num_threads(1)
    for variant in json.loads(Path(sys.argv[1]).read_text()):
        table = pd.DataFrame(lines(variant))
        before = [pd.read_csv(TABLE)] if TABLE.exists() else []
        pd.concat([*before, table]).to_csv(TABLE, index=False, float_format='%.5g')
        print(table.to_string(index=False), flush=True)
