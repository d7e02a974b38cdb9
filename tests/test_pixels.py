"""No committed notebook or page shows pixels of a patient.

Every embedded image of figures/ and of the site's pages is decoded and searched for the released
projections, at any place and size.
"""

import base64
import io
import json
from pathlib import Path

import matplotlib
import numpy as np
import pytest

from radgen.run.pixels import (
    SAME_PROJECTION,
    ProjectionFinder,
    decoded,
    inline_images,
    notebook_images,
    resized,
)

matplotlib.use('Agg')
ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / 'figures').glob('**/notebooks/*.ipynb'))
FIGURES = ROOT / 'figures'
cohort_of = lambda path: path.relative_to(FIGURES).parts[0]  # wherever the repository lies
OF_REAL = [p for p in sorted(FIGURES.rglob('*')) if not cohort_of(p).startswith('phantom')]
PNGS = [p for p in OF_REAL if p.suffix == '.png']
SVGS = [p for p in OF_REAL if p.suffix == '.svg']
PAGES = sorted((ROOT / 'docs').rglob('*.html')) + sorted((ROOT / 'docs').rglob('*.md'))
LIKE_A_PROJECTION = 0.85  # correlation with the mean projection; plots stay below 0.75
name = lambda p: str(p.relative_to(ROOT))


@pytest.fixture(scope='module')
def finder(published):
    return ProjectionFinder(published.images)


def figure_with(image, size=1.0, dpi=80):
    "A figure of plots with one panel that shows the image: its gray values."
    import matplotlib.pyplot as plt
    from PIL import Image

    fig, axes = plt.subplots(1, 4, figsize=(7, 2), layout='constrained')
    axes[0].plot(np.arange(5))
    axes[2].imshow(np.random.default_rng(0).random((8, 8)), cmap='gray')
    panel = fig.add_axes([0.55, 0.2, 0.2 * size, 0.7 * size])
    panel.imshow(image, cmap='gray', vmin=0, vmax=1)
    panel.axis('off')
    axes[3].bar(range(3), [1, 2, 3])
    stored = io.BytesIO()
    fig.savefig(stored, format='png', dpi=dpi)
    plt.close(fig)
    text = base64.b64encode(stored.getvalue()).decode()
    assert Image.open(stored).width > 100
    return decoded(text)


@pytest.mark.parametrize('pixels', [128, 32, 16])
@pytest.mark.parametrize('dpi', [80, 200])
def test_a_released_projection_in_a_figure_is_found(finder, published, pixels, dpi):
    image = resized(published.images[7], pixels, pixels)
    assert finder.search(figure_with(image, dpi=dpi))['known'] > SAME_PROJECTION


def test_a_simulated_projection_is_none(finder):
    from radgen.phantom.cohort import make_phantom

    phantom = make_phantom(n_patients=40, n_imaged=8, n_genes=60, image_size=128)
    for image in phantom.images[:3]:
        assert finder.search(figure_with(image))['known'] < SAME_PROJECTION


def check(finder, text, simulated, drawing=False):
    "No projection in an image; matplotlib stores rasters of a drawing (SVG) upside down."
    image = decoded(text)
    for seen in (image, image[::-1])[: 1 + drawing]:
        scores = finder.search(seen)
        assert scores['known'] < SAME_PROJECTION, 'a released projection'
        assert simulated or scores['projection'] < LIKE_A_PROJECTION, 'looks like a projection'


@pytest.mark.parametrize('path', NOTEBOOKS, ids=name)
def test_published_notebooks_show_no_patient(path, finder):
    cohort = cohort_of(path)
    stored = path.read_text()
    for _, text in notebook_images(json.loads(stored)):
        check(finder, text, cohort.startswith('phantom'), 'image/svg+xml' in stored)


@pytest.mark.parametrize('path', PNGS, ids=name)
def test_figures_of_real_patients_show_none(path, finder):
    check(finder, base64.b64encode(path.read_bytes()).decode(), simulated=False)


@pytest.mark.parametrize('path', SVGS, ids=name)
def test_rasters_in_drawings_of_real_patients_show_none(path, finder):
    for text in inline_images(path.read_text()):
        check(finder, text, simulated=False, drawing=True)


def test_a_released_projection_is_found_wherever_it_is_stored(finder, published):
    "In an SVG as matplotlib writes it, and attached to a cell of text."
    import matplotlib.pyplot as plt

    fig = plt.figure(figsize=(2, 2))
    fig.figimage(published.images[7], cmap='gray', vmin=0, vmax=1)
    drawing, plain = io.StringIO(), io.BytesIO()
    fig.savefig(drawing, format='svg', dpi=100), fig.savefig(plain, format='png', dpi=100)
    plt.close(fig)
    text = base64.b64encode(plain.getvalue()).decode()
    outputs = [dict(data={'image/svg+xml': drawing.getvalue()})]
    attached = dict(source='', attachments={'a.png': {'image/png': text}})
    images = notebook_images(dict(cells=[dict(outputs=outputs), attached]))
    assert [i for i, _ in images] == [0, 1]
    for _, stored in images:
        with pytest.raises(AssertionError, match='a released projection'):
            check(finder, stored, simulated=True, drawing=True)


@pytest.mark.parametrize('path', PAGES, ids=name)
def test_pages_show_no_patient(path, finder):
    for text in inline_images(path.read_text(errors='replace')):
        check(finder, text, simulated=True)
