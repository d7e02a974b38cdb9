"Radiomics equal PyRadiomics' own extractor to the bit, and the cache that keeps them."

import logging
import warnings

import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import gaussian_filter

from radgen.core.paths import RadgenError
from radgen.evaluate.features import BIN_WIDTH, FAMILIES, central_box, radiomics_features
from radgen.load import load_cohort


def textures(n, size, seed=0):
    "Smooth noise in [0, 1]."
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((n, size, size))
    z = np.stack([gaussian_filter(x, 0.5 + k % 4, mode='wrap') for k, x in enumerate(noise)])
    return np.clip(0.5 + 0.2 * z / z.std((1, 2), keepdims=True), 0, 1)


def executed(images, bin_width=BIN_WIDTH):
    "The same features by `RadiomicsFeatureExtractor.execute`, image by image."
    import radiomics
    import SimpleITK as sitk
    from radiomics.featureextractor import RadiomicsFeatureExtractor

    radiomics.setVerbosity(logging.CRITICAL)
    extractor = RadiomicsFeatureExtractor(binWidth=bin_width, force2D=True, force2Ddimension=0)
    extractor.disableAllFeatures()
    for family in FAMILIES:
        extractor.enableFeatureClassByName(family)
    mask = np.zeros((1, *images.shape[1:]), dtype=np.uint8)
    mask[(0, *central_box(*images.shape[1:]))] = 1
    grey = np.rint(images * 255).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        rows = [
            extractor.execute(sitk.GetImageFromArray(g[None]), sitk.GetImageFromArray(mask))
            for g in grey
        ]
    of = lambda row: {k[9:]: float(v) for k, v in row.items() if k.startswith('original_')}
    table = pd.DataFrame([of(row) for row in rows]).replace([np.inf, -np.inf], np.nan)
    table.loc[table.ngtdm_Coarseness >= 1e6, 'ngtdm_Coarseness'] = np.nan
    return table


def hard_images(size):
    "Noise, constants, two levels, one bright pixel, stripes, gaps between grey levels."
    rng, ramp = np.random.default_rng(1), np.arange(size)
    one = np.zeros((size, size))
    one[size // 2, size // 2] = 1
    constants = [np.full((size, size), v) for v in (0, 0.4, 100 / 255, 1)]
    halves = np.where(ramp < size // 2, 0.2, 0.8) * np.ones((size, 1))
    stripes = (ramp % 2) * np.ones((size, 1))
    noise = [rng.random((size, size)), rng.choice([0, 0.5, 1], (size, size))]
    return np.stack([*noise, *constants, one, halves, stripes, stripes.T])


@pytest.mark.parametrize('size', [32, 64, 128])
def test_radiomics_equal_the_extractor_to_the_bit(size):
    real = load_cohort('phantom', n_patients=60, n_imaged=12, n_genes=60).resized(size).images
    images = np.concatenate([real[:10], textures(6, size), hard_images(size)])
    mine = radiomics_features(images)
    assert mine.shape == (len(images), 93)
    pd.testing.assert_frame_equal(mine, executed(images), check_exact=True)


@pytest.mark.parametrize('shape', [(8, 8), (9, 9), (24, 40), (31, 17)])
def test_radiomics_of_other_shapes_equal_the_extractor(shape):
    images = np.random.default_rng(0).random((3, *shape))
    pd.testing.assert_frame_equal(radiomics_features(images), executed(images), check_exact=True)


@pytest.mark.parametrize('bin_width', [1, 7.5, 10, 64])
def test_other_bins_equal_the_extractor(bin_width):
    images = np.concatenate([textures(4, 32), hard_images(32)])
    mine = radiomics_features(images, bin_width=bin_width)
    pd.testing.assert_frame_equal(mine, executed(images, bin_width), check_exact=True)


def test_a_box_of_one_pixel_is_refused():
    with pytest.raises(RadgenError, match='2 pixels per side'):
        radiomics_features(np.zeros((1, 1, 8)))
