"The benchmark: every measure has a row, fast statistics equal the loops, the notebook runs."

import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from radgen.core.paths import RadgenError, project_root
from radgen.run import cli
from radgen.run.graph import BENCHMARK, paper
from radgen.run.loop_costs import equal_sides, statistics_sides
from radgen.run.network_costs import released_network
from radgen.run.timings import COSTS, MACHINE, MEASURES, fig_costs, measure_costs, shown_costs

COMMITTED = project_root() / 'docs' / 'measured' / 'benchmark.csv'


def check(table):
    "Every measure once, with a finite ratio or a reason, on a named machine."
    assert list(table.columns) == [*COSTS, *MACHINE]
    assert table.measure.tolist() == list(MEASURES)
    ok = table.verdict == 'ok'
    assert table.verdict[~ok].str.match(r'unavailable: \w').all()
    assert table.ratio[~ok].isna().all()
    numbers = table[ok]
    assert (
        np.isfinite(numbers.ratio).all() and (numbers.ratio > 0).all() and (numbers.ours > 0).all()
    )
    for side in ('ours', 'instead'):
        low, middle, high = (numbers[f'{side}{end}'] for end in ('_low', '', '_high'))
        assert (low <= middle).all() and (middle <= high).all()
    assert (table.threads == 1).all() and (table.precision == 'float32').all()
    assert table.bfloat16.isin(['yes', 'no']).all() and table.processor.str.len().gt(0).all()
    return numbers


def test_the_committed_table_is_complete():
    table = pd.read_csv(COMMITTED)
    numbers = check(table)
    assert set(table.profile) == {'quick'} and len(numbers) == len(MEASURES)
    expected = np.where(
        numbers.unit == 'GFLOP/s', numbers.ours / numbers.instead, numbers.instead / numbers.ours
    )
    assert np.allclose(numbers.ratio, expected, rtol=2e-3)


def test_the_notebook_runs_and_leaves_table_and_figure(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('RADGEN_HOME', str(tmp_path))
    assert not cli.main(['bench', '--profile', 'smoke'])
    folder = tmp_path / 'runs' / 'benchmark' / 'smoke'
    out, err = capsys.readouterr()
    assert 'benchmark.csv' in out and re.search(r'measuring \d+/22', err)
    check(pd.read_csv(folder / 'benchmark.csv'))
    assert {'benchmark.png', 'benchmark.svg', f'{BENCHMARK}.ipynb'} <= {
        p.name for p in folder.iterdir()
    }
    assert not (tmp_path / 'figures').exists(), 'seconds are no result of a study'


@pytest.mark.parametrize('seed', [1, 2, 3])
@pytest.mark.parametrize('name', ['auroc', 'auprc', 'concordance', 'permutation', 'random_risk'])
def test_fast_statistics_equal_the_loops(name, seed):
    ours, loop = statistics_sides(80, 60, seed)[name]
    a, b = ours(), loop()
    assert a.shape == b.shape and np.isfinite(a).all()
    assert np.abs(a - b).max() < 1e-12


def test_sides_that_differ_have_no_ratio():
    table = measure_costs(
        {'auroc': lambda: equal_sides(lambda: [1.0], lambda: [1.0 + 1e-9], 2)}, 'smoke', False
    )
    row = table.set_index('measure').loc['auroc']
    assert row.verdict.startswith('unavailable: the two sides differ') and math.isnan(row.ratio)
    assert 'differ' in shown_costs(table).ratio['AUROC, bootstrap']
    assert len(fig_costs(table).axes[0].get_yticklabels()) == 0


def test_both_sides_of_the_released_network_have_the_same_weights():
    ours, instead = (released_network(8, 8, keys) for keys in ('features', 'repeated'))
    shapes = lambda net: {k: v.shape for k, v in net.state_dict().items()}
    assert shapes(ours) == shapes(instead)


def test_seconds_are_no_part_of_a_study():
    with pytest.raises(RadgenError, match='no part of a study; run `make bench`'):
        paper('phantom', 'smoke', upto=BENCHMARK)
    root = Path(project_root())
    assert 'radgen bench --profile' in (root / 'Makefile').read_text()
    assert BENCHMARK not in ''.join(p.read_text() for p in root.glob('figures/*/*/results.csv'))
