"""Features of two sets of images, and the Fréchet radiomics distances that `frd-score` gives.

python -m venv frd && frd/bin/pip install frd-score==1.0.1 pyradiomics
frd/bin/python tests/make_frd_fixture.py tests/frd_fixture.json
"""

import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
from frd_score import frd
from PIL import Image

SIZE, SETS = 24, {'first': (14, 0), 'second': (11, 1)}  # name -> images, seed


def textures(n, seed, folder):
    "Images of smoothed noise, rougher and brighter in the second set, each with a mask."
    rng, inside = np.random.default_rng(seed), np.full((SIZE, SIZE), 255, np.uint8)
    inside[0, 0] = 0  # PyRadiomics refuses a mask that is one value everywhere
    (folder.parent / f'{folder.name}-masks').mkdir()
    for k in range(n):
        noise = rng.normal(size=(SIZE, SIZE))
        smooth = sum(np.roll(noise, s, a) for s in range(3 - seed) for a in (0, 1))
        pixels = np.clip(110 + 25 * seed + 20 * smooth, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f'{k:02d}.png')
        Image.fromarray(inside).save(folder.parent / f'{folder.name}-masks' / f'{k:02d}.png')


def main(out):
    seen, measure = {}, frd.compute_features

    def watched(*args, **kwargs):
        features, *rest = measure(*args, **kwargs)
        seen.setdefault(version_now, []).append(np.asarray(features, dtype=float).round(9))
        return (features, *rest)

    frd.compute_features = watched
    with tempfile.TemporaryDirectory() as place:
        folders = [Path(place, name) for name in SETS]
        for folder, (n, seed) in zip(folders, SETS.values()):
            folder.mkdir()
            textures(n, seed, folder)
        values, chosen = {}, dict(features=['firstorder'], image_types=['Original'])
        for version_now in ('v0', 'v1'):
            paths = list(map(str, folders))
            more = dict(frd_version=version_now, num_workers=1, **chosen)
            more['paths_masks'] = [f'{p}-masks' for p in paths]
            values[version_now] = float(frd.compute_frd(paths, **more))
    features = {v: dict(zip(SETS, (x.tolist() for x in sets))) for v, sets in seen.items()}
    command = 'python tests/make_frd_fixture.py tests/frd_fixture.json'
    made = {'frd-score': version('frd-score'), 'command': command, 'values': values}
    Path(out).write_text(json.dumps(made | {'features': features}))


if __name__ == '__main__':
    main(sys.argv[1])
