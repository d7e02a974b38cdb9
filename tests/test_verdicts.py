"""The algebra of verdicts: what follows of an interval, and that a wider one never says more."""

import numpy as np
import pandas as pd
import pytest

from radgen.core import verdicts
from radgen.core.paths import RadgenError
from radgen.core.results import Rows
from radgen.core.rows import pick
from radgen.report import page
from radgen.report.example import example_rows
from radgen.report.scorecard import scorecard
from radgen.run import profiles
from radgen.run.study import Study

NAN = float('nan')
NARROW = verdicts.Rule(0.2, 0.4)
AREA = verdicts.Rule(0.05, 0.2)
RULE = [  # value, low, high, word, of chance, published, better, what follows
    (0.83, 0.79, 0.86, 'better', True, 0.82, 'higher', 'reproduced'),
    (0.80, 0.79, 0.81, 'better', True, 0.82, 'higher', 'near the published value'),
    (0.96, 0.94, 0.98, 'better', True, 0.82, 'higher', 'better than published'),
    (0.70, 0.65, 0.75, 'better', True, 0.82, 'higher', 'not reproduced'),
    (0.76, 0.72, 0.80, 'better', True, 0.82, 'higher', 'undecided'),
    (0.70, 0.56, 0.84, 'better', True, 0.82, 'higher', 'imprecise'),
    (0.85, NAN, NAN, 'better', True, 0.82, 'higher', 'imprecise'),
    (0.85, 0.80, 0.90, 'better', True, NAN, 'higher', 'above chance'),
    (0.85, 0.80, 0.90, 'better', False, NAN, 'higher', 'above its controls'),
    (0.50, 0.47, 0.53, 'equivalent', True, 0.82, 'higher', 'at chance'),
    (0.36, 0.28, 0.44, 'worse', True, 0.82, 'higher', 'below chance'),
    (0.52, 0.43, 0.61, 'undecided', True, 0.82, 'higher', 'undecided'),
    (0.52, 0.30, 0.74, 'imprecise', True, 0.82, 'higher', 'imprecise'),
    (2.0, 1.8, 2.2, 'equivalent', False, 2.02, 'lower', 'matched by a control'),
    (3.0, 2.8, 3.2, 'worse', False, 2.02, 'lower', 'worse than a control'),
    (2.0, 1.9, 2.1, 'better', False, 2.02, 'lower', 'reproduced'),
    (1.5, 1.3, 1.7, 'better', False, 2.02, 'lower', 'better than published'),
    (3.0, 2.8, 3.2, 'better', False, 2.02, 'lower', 'not reproduced'),
    (726, NAN, NAN, 'better', False, 726, 'equal', 'reproduced'),
    (1063, NAN, NAN, 'better', False, 726, 'equal', 'not reproduced'),
]


@pytest.mark.parametrize('value,low,high,word,of_chance,published,better,expected', RULE)
def test_conclude(value, low, high, word, of_chance, published, better, expected):
    rule = AREA if of_chance else NARROW
    given = dict(word=word, of_chance=of_chance, published=published, better=better, rule=rule)
    assert verdicts.conclude(value, low, high, **given) == expected


@pytest.mark.parametrize(
    'given,expected',
    [
        (dict(value=0.85, low=0.8, high=0.9, comparable=False), 'not comparable'),
        (dict(value=None, verdict='not estimable: 0 events, 10 needed'), 'not estimable'),
        (dict(value=None, verdict='unavailable: not yet built'), 'unavailable'),
        (dict(value=NAN), 'unavailable'),
    ],
)
def test_no_number_no_verdict(given, expected):
    assert verdicts.conclude(**given, published=0.82) == expected


def test_every_conclusion_is_tried_and_explained():
    tried = {r[-1] for r in RULE} | {'not comparable', 'not estimable', 'unavailable'}
    assert tried == set(verdicts.CONCLUSIONS) <= set(page.GLOSSARY)


DECIDED = dict(better=3, worse=3, equivalent=2, undecided=1, imprecise=0)


def draws(n, *highest):
    "n seeded draws of each number, from 0 to its highest."
    rng = np.random.default_rng(0)
    return zip(*(rng.uniform(0, h, n) for h in highest))


def test_a_wider_interval_never_gives_a_stronger_word():
    seen = set()
    for middle, width, left, right, margin, widest in draws(5000, 1, 0.6, 0.4, 0.4, 0.3, 0.6):
        rule, low = verdicts.Rule(margin, widest), middle - 0.5 - width / 2
        high = low + width
        narrow = verdicts.standing(low, high, rule)
        wide = verdicts.standing(low - left, high + right, rule)
        assert DECIDED[wide] <= DECIDED[narrow]
        inside = -margin < low and high < margin
        assert dict(better=low > 0, worse=high < 0, equivalent=inside).get(wide, True)
        mirrored = dict(better='worse', worse='better').get(narrow, narrow)
        assert verdicts.standing(-high, -low, rule) == mirrored
        seen |= {(narrow, wide)}
    assert len(seen) >= 12 and {w for w, _ in seen} == set(verdicts.STANDINGS)


def test_what_a_wider_interval_says_of_the_published_value_holds_of_the_narrower_one():
    seen, margin = set(), AREA.margin
    for start, width, left, right in draws(5000, 0.6, 0.3, 0.2, 0.2):
        low, high = start - 0.3, start - 0.3 + width
        narrow = verdicts.beside_published(low, high, AREA)
        wide = verdicts.beside_published(low - left, high + right, AREA)
        near = -margin < low and high < margin
        holds = dict.fromkeys(('reproduced', 'near the published value'), near)
        holds |= {'not reproduced': high <= -margin, 'better than published': low >= margin}
        assert holds.get(wide, True)
        nothing = ('undecided', 'imprecise')
        assert wide in nothing if narrow in nothing else True
        near = ('reproduced', 'near the published value')
        assert wide in (narrow, *nothing) or {wide, narrow} == set(near)
        seen.add(narrow)
    assert len(seen) == 6


def test_a_difference_is_that_of_the_same_condition_and_protocol():
    frame = rows_of_controls(model=(0.020, 0.024), image=(0.030, 0.034), copy=(0.040, 0.044))
    frame = frame.assign(condition='multiomic', protocol='patient')
    pair = frame.iloc[:1].assign(metric='mse_difference', label='minus mean_image')
    other = pair.assign(condition='expression', ci_low=0.01, ci_high=0.02)
    both = pd.concat([other, pair.assign(ci_low=-0.012, ci_high=-0.008), frame])
    ours, image = frame.iloc[0], frame.iloc[1]
    assert verdicts.difference(both, ours, image, -1) == (0.008, 0.012)
    bounded = verdicts.difference(pd.concat([other, frame]), ours, image, -1)
    assert bounded == pytest.approx((0.006, 0.014))


def test_few_permutations_decide_nothing():
    about = dict(condition='multiomic', label='er', extractor='radiomics', role='null')
    rows = Rows(**about)
    rows.add(metric='auroc', value=0.5, ci_low=0.45, ci_high=0.55)
    rows.add(metric='n_permutations', value=19)
    frame = rows.frame()
    assert np.isnan(verdicts.null_ends(frame, frame.iloc[0])).all()
    frame.loc[1, 'value'] = 39
    assert verdicts.null_ends(frame, frame.iloc[0]) == (0.45, 0.55)
    assert verdicts.judge_null(0.9, NAN, NAN, None, 0.5, 'yes', 'no') == 'there is no interval'


def test_the_least_favourable_control_decides():
    controls = rows_of_controls(model=(0.020, 0.024), image=(0.040, 0.044), copy=(0.010, 0.012))
    stands = verdicts.against_controls(controls, controls.iloc[0])
    assert (stands.word, stands.controls) == ('worse', ['nearest_copy'])
    stands = verdicts.against_controls(controls[controls.model != 'nearest_copy'], controls.iloc[0])
    assert (stands.word, stands.missing) == ('undecided', ['nearest_copy'])


def test_a_paired_difference_is_taken_where_the_rows_hold_it():
    frame = rows_of_controls(model=(0.020, 0.024), image=(0.0235, 0.0242), copy=(0.040, 0.044))
    assert verdicts.against_controls(frame, frame.iloc[0]).word in ('undecided', 'imprecise')
    pair = frame.iloc[:1].assign(metric='mse_difference', label='minus mean_image')
    pair = pair.assign(ci_low=-0.004, ci_high=-0.002)
    both = pd.concat([frame, pair], ignore_index=True)
    assert verdicts.against_controls(both, both.iloc[0]).word == 'better'


def rows_of_controls(model, image, copy):
    rows = Rows(metric='mse', estimator='single', subset='all', image_size=128)
    for role, name, (low, high) in (
        ('model', 'cpdm', model),
        ('control', 'mean_image', image),
        ('control', 'nearest_copy', copy),
        ('reference', 'real', (0.036, 0.038)),
    ):
        rows.add(role=role, model=name, value=(low + high) / 2, ci_low=low, ci_high=high)
    return rows.frame()


@pytest.fixture
def verdict_settings():
    "Puts settings in force, and the defaults again after the test."
    yield verdicts.use_verdicts
    verdicts.use_verdicts()


def area(margin, widest):
    return dict(area=dict(margin=margin, widest=widest))


def test_the_margin_of_an_auprc_is_a_tenth_of_the_distance_from_prevalence_to_one():
    rule = lambda prevalence: verdicts.rule_of('auprc', prevalence=prevalence)
    assert rule(0.9) == pytest.approx((0.01, 0.04)) and rule(0.1) == pytest.approx((0.09, 0.36))
    assert rule(0.5) == pytest.approx(verdicts.rule_of('auroc')), 'both rules where chance is equal'
    assert rule(NAN) == verdicts.rule_of('kid') == verdicts.NO_MARGIN
    # 0.03 above a prevalence of 0.9: outside the margin, and within that of an AUROC
    assert verdicts.against_chance(0.895, 0.93, 0.91, 0.9, rule(0.9)) == 'undecided'
    assert verdicts.against_chance(0.895, 0.93, 0.91, 0.9, AREA) == 'equivalent'


def test_a_margin_of_images_is_a_multiple_of_the_spread_of_real_against_real(verdict_settings):
    real = pd.Series(dict(ci_low=2.0, ci_high=6.0))
    assert verdicts.rule_of('legacy_fid', real) == (2.0, 4.0)
    verdict_settings(dict(images=dict(margin=0.25, widest=2.0)))
    assert verdicts.rule_of('legacy_fid', real) == (1.0, 8.0)


def test_a_changed_margin_changes_what_it_should_and_nothing_else(verdict_settings):
    rows = example_rows()
    before = scorecard(rows, simulated=False)
    verdict_settings(area(0.001, 0.002))
    after = scorecard(rows, simulated=False)
    of_area = before.metric.isin(['auroc', 'concordance'])
    judged = ['margin', 'widest', 'conclusion', 'standing']
    pd.testing.assert_frame_equal(before[~of_area], after[~of_area])
    pd.testing.assert_frame_equal(before.drop(columns=judged), after.drop(columns=judged))
    assert set(after[of_area].margin.dropna()) == {0.001}
    words = lambda score: score[of_area].conclusion.tolist()
    assert words(before) != words(after)


def test_a_wider_margin_never_decides_less(verdict_settings):
    "The word of an interval under two margins: a wider margin may only add `equivalent`."
    seen = set()
    for start, width, margin, more in draws(3000, 0.8, 0.5, 0.2, 0.2):
        low, high = start - 0.5, start - 0.5 + width
        rules = (verdicts.Rule(m, 0.2) for m in (margin, margin + more))
        narrow, wide = (verdicts.standing(low, high, rule) for rule in rules)
        assert wide == narrow or (wide == 'equivalent' and DECIDED[narrow] < 2)
        seen.add((narrow, wide))
    assert ('undecided', 'equivalent') in seen


@pytest.mark.parametrize('profile', profiles.profiles())
def test_a_profile_states_its_margins(profile):
    written = profiles.read_profile(f'config/{profile}.yaml')['verdicts']
    assert set(written) == {'area', 'precision', 'images'}
    settings = profiles.settings(profile, 'published')
    assert settings['verdicts'] == written
    judging = [stem for stem, values in settings.items() if 'verdicts' in values]
    assert '08_scorecard' in judging and '02_train' not in judging


@pytest.mark.parametrize(
    'text,words',
    [
        ('verdicts: {aera: {margin: 1, widest: 2}}', "unknown key 'verdicts.aera', did you mean"),
        ('verdicts: {area: {margin: wide, widest: 2}}', 'verdicts.area.margin: must be a valid'),
        ('verdicts: {area: {margin: -0.1, widest: 2}}', 'verdicts.area.margin'),
        ('verdicts: {area: {margin: .nan, widest: 2}}', 'verdicts.area.margin'),
        ('verdicts: {area: {margin: 0.1}}', 'verdicts.area.widest is missing'),
        ('verdicts: 0.05', 'verdicts'),
        ('08_scorecard: {verdicts: {}}', "unknown key '08_scorecard.verdicts'"),
    ],
)
def test_a_wrong_block_is_refused_in_one_line(text, words, tmp_path):
    path = tmp_path / 'mine.yaml'
    path.write_text(text)
    with pytest.raises(RadgenError) as e:
        profiles.read_profile(path)
    assert words in str(e.value) and '\n' not in str(e.value)


def test_a_study_judges_by_the_margins_that_it_is_given(verdict_settings):
    Study('phantom', 'smoke', '08_scorecard', verdicts=area(0.02, 0.1))
    assert verdicts.rule_of('auroc') == (0.02, 0.1)
    Study('phantom', 'smoke', '08_scorecard')
    assert verdicts.rule_of('auroc') == (0.05, 0.2)


def test_a_published_fidelity_is_not_compared_with_folds_over_patients():
    rows = example_rows().assign(cohort='published')
    at_128 = rows.assign(image_size=rows.image_size.where(rows.image_size.isna(), 128.0))
    score = scorecard(at_128, simulated=False)
    score = score[score.verdict == 'ok']
    images = score[score.metric.isin(['mse', 'ssim', 'legacy_fid'])]
    over_patients = images[images.protocol == 'patient']
    assert len(over_patients) and set(over_patients.conclusion) == {'not comparable'}
    assert over_patients.why.str.startswith('folds over patients').all()
    outcomes = score[score.label.notna() & (score.protocol == 'patient')]
    assert len(outcomes) and not outcomes.why.str.startswith('folds over patients').any()


def test_an_under_trained_model_is_not_compared():
    rows = example_rows().assign(cohort='published')
    ours = rows[(rows.metric == 'mse') & (rows.protocol == 'paper') & (rows.role == 'model')]
    ours = ours[(ours.model == 'cpdm') & (ours.estimator == 'single')].iloc[:1]
    assert len(ours)
    share = ours.assign(metric='training_share', value=0.01, subset='train', estimator='')
    fifteen = rows.assign(n_folds=rows.n_folds.where(rows.protocol != 'paper', 15.0))
    where = dict(metric='mse', protocol='paper', condition=ours.condition.item())
    why = lambda r: pick(scorecard(r, simulated=False), **where).why.item()
    before, after = why(fifteen), why(pd.concat([fifteen, share]))
    assert (before, after) == ('', 'trained for 1 % of the released length')
