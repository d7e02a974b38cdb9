"""Tables, scorecard and report: views of rows, the rule, and a page that a browser opens without scrolling sideways."""
import html, json, math, re, shutil, subprocess
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from radgen import report
from radgen.paths import RadgenError
from radgen.results import COLUMNS, Rows

CHROMIUM = next((p for p in map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome', 'chrome')) if p), None)
VOID = {'area', 'base', 'br', 'col', 'embed', 'hr', 'img', 'input', 'link', 'meta', 'source', 'track', 'wbr'}


def make_rows(cohort='published', image_size=128, **text):
    """What a run writes, in miniature; values are chosen, not measured."""
    rows = Rows(cohort=cohort, profile='smoke', source_notebook='test')
    put = lambda value, half, **fields: rows.add(value=value, ci_low=value - half, ci_high=value + half, **fields)
    for condition in ('multiomic', 'expression'):
        for protocol in ('paper', 'patient'):
            row = dict(condition=condition, protocol=protocol, image_size=image_size, n=58, n_imaged=28, subset='all', estimator='single')
            for metric, values in dict(legacy_fid=(1.6, 2.0, 2.4, .7), mse=(.017, .019, .021, .01), ssim=(.61, .5, .55, .7), kid=(.05, .1, .04, .0)).items():
                for (role, model), v in zip((('model', 'cpdm'), ('control', 'mean_image'), ('control', 'nearest_copy'), ('floor', 'real')), values):
                    put(v, abs(v)*.04, metric=metric, role=role, model=model, **row)
            rows.unavailable('its weights are not cached', metric='inception_fid', role='model', model='cpdm', **row)
        row = dict(condition=condition, protocol='patient', subset='test', n=119, n_events=60, label='subgroup')
        for metric in ('auroc', 'auprc'):
            for extractor, v in (('pixels', .9), ('radiomics', .8)):
                put(v, .05, metric=metric, role='model', model='cpdm', extractor=extractor, classifier='xgboost', **row)
                put(.5, .1, metric=metric, role='null', model='cpdm', extractor=extractor, classifier='xgboost', **row)
            put(.96, .02, metric=metric, role='ceiling', model='omics_direct', extractor='omics', classifier='logistic', **row)
        row = dict(condition=condition, protocol='patient', subset='test', n=28, n_events=0, label='survival', classifier='cox', model='cpdm', extractor='radiomics')
        rows.not_estimable('0 events, 10 needed', metric='concordance', role='model', **row)
    rows.add(metric='patients_generated', value=1063, role='model', model='cpdm', condition='expression', protocol='patient', subset='all')
    for subset, n in (('all', 1091), ('imaged', 28)): rows.add(metric='count', label='patients', subset=subset, value=n)
    return rows.frame().assign(**text)


@pytest.fixture(scope='module')
def rows(): return make_rows()


@pytest.fixture(scope='module')
def page(rows, tmp_path_factory):
    """A page with all tables, one picture and long unbreakable words."""
    from radgen.plots import fig_fidelity, save_figure
    folder = tmp_path_factory.mktemp('report')
    save_figure(fig_fidelity(rows), 'fidelity', folder, simulated=True)
    facts = dict(cohort='phantom', profile='smoke', simulated=True, provenance=dict(code='c'*200, packages=dict(numpy='x'*300)))
    made = report.tables(make_rows('phantom'), simulated=True)
    return report.render_report(make_rows('phantom'), made, report.find_figures(folder), facts, folder/'report.html')


# the rule ------------------------------------------------------------------------------------------------------------------------

NAN = math.nan
RULE = [  # value, low, high, published, control, null, better, verdict, comparable -> conclusion
    (.85, .80, .90, .82, .70, .62, 'higher', 'ok', True, 'reproduced'),
    (.90, .87, .93, .82, .70, .62, 'higher', 'ok', True, 'reproduced'),
    (.74, .71, .77, .82, .70, .62, 'higher', 'ok', True, 'not reproduced'),
    (.85, .80, .90, .82, .80, .62, 'higher', 'ok', True, 'matched by a control'),
    (.85, .80, .90, .82, .97, .62, 'higher', 'ok', True, 'matched by a control'),
    (.61, .50, .70, .82, .40, .62, 'higher', 'ok', True, 'not above chance'),
    (.85, .80, .90, NAN, .70, .62, 'higher', 'ok', True, 'above its controls'),
    (.85, NAN, NAN, .82, .70, NAN, 'higher', 'ok', True, 'reproduced'),
    (1.5, 1.3, 1.7, 2.02, 2.04, NAN, 'lower', 'ok', True, 'reproduced'),
    (2.0, 1.8, 2.2, 2.02, 2.04, NAN, 'lower', 'ok', True, 'matched by a control'),
    (3.0, 2.8, 3.2, 2.02, 3.86, NAN, 'lower', 'ok', True, 'not reproduced'),
    (726, NAN, NAN, 726, NAN, NAN, 'equal', 'ok', True, 'reproduced'),
    (1063, NAN, NAN, 726, NAN, NAN, 'equal', 'ok', True, 'not reproduced'),
    (.85, .80, .90, .82, .70, .62, 'higher', 'ok', False, 'not comparable'),
    (None, NAN, NAN, .82, .70, .62, 'higher', 'not estimable: 0 events, 10 needed', False, 'not estimable'),
    (None, NAN, NAN, .82, .70, .62, 'higher', 'unavailable: not yet built', False, 'unavailable'),
    (NAN, NAN, NAN, .82, .70, .62, 'higher', 'ok', True, 'unavailable'),
]


@pytest.mark.parametrize('value,low,high,published,control,null,better,verdict,comparable,expected', RULE)
def test_conclude(value, low, high, published, control, null, better, verdict, comparable, expected):
    assert report.conclude(value, low, high, published, control, null, better, verdict, comparable) == expected


def test_every_conclusion_is_tried_and_explained():
    assert {r[-1] for r in RULE} == set(report.CONCLUSIONS) <= set(report.GLOSSARY)


# tables --------------------------------------------------------------------------------------------------------------------------

def test_tables_are_views_of_rows(rows):
    made = report.tables(rows)
    assert list(made) == list(report.TABLES)
    two = made['table2_fidelity'].set_index(['model', 'condition', 'protocol'])
    assert two.loc[('CPDM', 'multiomic', 'patient'), 'MSE'] == '0.0170 [0.0163, 0.0177]'
    assert two.loc[('CPDM', 'multiomic', 'patient'), 'Inception FID'] == 'unavailable'
    assert 'its weights are not cached' in two.loc[('CPDM', 'multiomic', 'patient'), 'note']
    assert two.loc[('conditional GAN', 'expression', 'paper'), 'note'] == 'unavailable: not yet built'
    three = made['table3_classification']
    assert set(three[three.extractor == 'vgg16'].verdict) == {'unavailable: not yet built'}
    assert three.query("extractor == 'radiomics' and condition == 'expression'")[['AUROC', 'AUROC, omics without an image', 'AUROC, permuted labels', 'positives']].values.tolist() == [
        ['0.80 [0.75, 0.85]', '0.96 [0.94, 0.98]', '0.50 (0.40 to 0.60)', '60']]
    assert made['table4_survival'].verdict.tolist() == ['not estimable: 0 events, 10 needed']*2
    assert made['table1_cohort'].set_index('what').loc['patients'].tolist() == ['1,091', '28']
    five = made['table5_single_genomics']
    assert five.query("quantity == 'patients given a generated MRI'")[['multiomic', 'expression']].values.tolist() == [['–', '1,063']]
    assert (rows.role.isin(['control', 'floor', 'null', 'ceiling'])).sum() == (made['table6_controls'].role != 'model').sum()


def test_tables_do_not_depend_on_the_order_of_columns_and_survive_csv(rows, tmp_path):
    from radgen.results import read_rows, write_rows
    write_rows(rows, tmp_path/'rows.csv')
    again = report.tables(read_rows(tmp_path/'rows.csv'))
    for name, table in report.tables(rows[COLUMNS[::-1]]).items(): pd.testing.assert_frame_equal(table, again[name])
    for path in report.write_tables(again, tmp_path/'tables'): assert len(pd.read_csv(path))


def test_nothing_run_gives_empty_tables_and_a_page(tmp_path):
    empty = Rows().frame()
    made = report.tables(empty)
    assert all(len(t) == 0 for n, t in made.items() if n != 'table7_scorecard')
    assert set(made['table7_scorecard'].conclusion) == {'unavailable: not part of this run'}
    text = report.render_report(empty, made, {}, dict(cohort='published', profile='smoke'), tmp_path).read_text()
    assert 'Nothing published was recomputed in this run.' in text and 'SIMULATED' not in text


def test_legacy_fid_is_quoted_at_128_pixels_only(rows):
    assert 'legacy FID' not in report.table_fidelity(make_rows(image_size=64))
    small = report.scorecard(make_rows(image_size=64)).query("metric in ('legacy_fid', 'mse', 'ssim')")
    assert set(small.conclusion) == {'not comparable'} and set(small.why) == {'computed at 64 pixels'}
    ratio = make_rows(image_size=64).replace({'metric': {'legacy_fid': 'legacy_fid_ratio'}})
    shown = report.table_scorecard(report.scorecard(ratio)).query("quantity == 'legacy FID'")
    assert set(shown['ours, patient protocol']) == {'ratio 1.60 [1.54, 1.66]'} and set(shown['control, patient protocol']) == {'ratio 2.00 (mean image)'}
    assert set(shown.conclusion) == {'not comparable: computed at 64 pixels as a ratio to the mean image; here above its controls'}
    assert set(report.scorecard(rows).query("metric == 'legacy_fid'").conclusion) == {'reproduced'}


def test_controls_over_many_fold_assignments_stay_in_table_6(rows):
    many = rows[(rows.role == 'control') & (rows.metric == 'mse')].assign(estimator='mean of 40 fold assignments', value=.001)
    both = pd.concat([rows, many], ignore_index=True)
    assert (report.scorecard(both).control.dropna() == report.scorecard(rows).control.dropna()).all()
    pd.testing.assert_frame_equal(report.table_fidelity(both), report.table_fidelity(rows))
    assert report.table_controls(both).detail.eq('mean of 40 fold assignments').sum() == len(many)


def test_scorecard(rows):
    score = report.scorecard(rows)
    line = lambda **q: score[np.logical_and.reduce([score[k] == v for k, v in q.items()])].iloc[0]
    assert score.preprint.dropna().unique().tolist() == [1.33, .85, .89, .92, 726] and score.published.unique().tolist() == [2.02, .02, .59, .82, .84, .88, 726]
    subtype = line(metric='auroc', condition='expression', protocol='patient')
    assert (subtype.extractor, subtype.value, subtype.control, subtype.conclusion) == ('radiomics', .8, .96, 'matched by a control')   # not the better of two extractors
    assert line(metric='mse', condition='multiomic', protocol='paper').control == .019           # the better of the two controls
    assert line(metric='concordance', condition='multiomic', protocol='patient').conclusion == 'not estimable'
    assert line(metric='patients_generated', condition='expression', protocol='patient').conclusion == 'not reproduced'
    assert line(metric='patients_generated', condition='multiomic', protocol='patient').conclusion == 'unavailable'
    table = report.table_scorecard(score).set_index(['quantity', 'condition'])
    assert table.loc[('survival, concordance index', 'multiomic'), 'conclusion'] == 'not estimable: 0 events, 10 needed'


def test_simulated_patients_confirm_nothing():
    score = report.scorecard(make_rows('phantom_link0'))
    assert not set(score.conclusion) & {'reproduced', 'not reproduced', 'matched by a control', 'above its controls'}
    assert score.published.notna().all() and 'simulated' in report.headline(score)
    assert 'not comparable: simulated patients; here matched by a control' in set(report.table_scorecard(score).conclusion)


# the page ------------------------------------------------------------------------------------------------------------------------

class Checker(HTMLParser):
    """Collects unbalanced tags, ids, links, images and table headers."""
    def __init__(self): super().__init__(); self.open, self.wrong, self.ids, self.links, self.images, self.loads, self.lang = [], [], [], [], [], [], None
    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == 'html': self.lang = attrs.get('lang')
        if tag not in VOID: self.open.append(tag)
        if 'id' in attrs: self.ids.append(attrs['id'])
        if tag == 'a': self.links.append(attrs['href'])
        if tag == 'img': self.images.append(attrs)
        if tag in ('script', 'link', 'iframe', 'object', 'embed'): self.loads.append(tag)
        self.loads += [v for k, v in attrs.items() if k in ('src', 'srcset', 'data', 'poster') and not v.startswith('data:')]
        if tag == 'th' and attrs.get('scope') not in ('col', 'row'): self.wrong.append('th without scope')
    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag: self.wrong.append(tag)


def test_page_is_well_formed_and_self_contained(page):
    text = page.read_text()
    check = Checker(); check.feed(text); check.close()
    assert not check.wrong and not check.open and check.lang == 'en'
    assert len(check.ids) == len(set(check.ids)) and {l[1:] for l in check.links} <= set(check.ids)
    assert not check.loads and '@import' not in text and 'url(' not in text and not re.search(r'href="(?!#)', text)
    assert check.images and all(i.get('alt') for i in check.images)
    assert {*report.TABLES, *report.SECTIONS} <= set(check.ids)


def test_page_says_simulated_everywhere(page):
    text = page.read_text()
    assert '<title>SIMULATED' in text and 'class="banner"' in text
    captions = re.findall(r'<figcaption.*?</figcaption>', text, re.S)
    assert captions and all('SIMULATED' in c for c in captions)


def test_page_shows_what_is_missing(page):
    text = page.read_text()
    for words in ('unavailable: not yet built', 'not estimable: 0 events, 10 needed', 'Figure 4. Held-out patients: real beside generated: not made in this run.'): assert words in text


def test_everything_is_escaped(tmp_path):
    evil = '<img src=x onerror=alert(1)>'
    rows = make_rows(extractor=evil)
    facts = dict(cohort=evil, profile='"><script>', simulated=False, command='</pre><script>', provenance={'a<b': 1, 'nested': {'<i>': '<u>'}})
    text = report.render_report(rows, report.tables(rows) | {'<b>': pd.DataFrame({'<h1>': ['<h2>']})}, {}, facts, tmp_path/'r.html').read_text()
    assert evil not in text and '<script' not in text and html.escape(evil) in text
    for tag in ('<i>', '<u>', '<h2>&', '<b>\'', 'a<b'): assert tag not in text
    with pytest.raises(RadgenError, match="facts lack 'profile'"): report.render_report(rows, {}, {}, dict(cohort='published'), tmp_path)


@pytest.mark.skipif(CHROMIUM is None, reason='no Chromium or Chrome on this machine')
@pytest.mark.parametrize('width', [390, 1280])
def test_page_does_not_scroll_sideways(page, tmp_path, width):
    """The page in a frame of this width, measured by the frame's parent (the page itself admits no script)."""
    measure = '''const f = document.querySelector('iframe'); f.onload = () => { const d = f.contentDocument.documentElement;
      const boxes = [...d.querySelectorAll('.scroll')];
      document.title = JSON.stringify({width: f.clientWidth, page: d.scrollWidth, seen: d.clientWidth, boxes: boxes.length, inner: boxes.filter(b => b.scrollWidth > b.clientWidth).length,
        images: [...d.querySelectorAll('img')].every(i => i.complete && i.naturalWidth > 0)}) }'''
    outer = tmp_path/'outer.html'
    outer.write_text(f'<!DOCTYPE html><title>waiting</title><body style="margin:0"><script>addEventListener("DOMContentLoaded", () => {{ {measure}; f.srcdoc = document.querySelector("template").innerHTML }})</script>'
                     f'<iframe style="border:0;width:{width}px;height:844px"></iframe><template></template>')
    outer.write_text(outer.read_text().replace('f.srcdoc = document.querySelector("template").innerHTML', 'f.srcdoc = ' + json.dumps(page.read_text()).replace('</', '<\\/')).replace('<template></template>', ''))
    args = [CHROMIUM, '--headless', '--no-sandbox', '--disable-gpu', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync',
            f'--user-data-dir={tmp_path/"profile"}', '--window-size=1400,900', '--virtual-time-budget=10000', '--dump-dom', outer.as_uri()]
    done = subprocess.run(args, capture_output=True, text=True, timeout=120)
    found = json.loads(html.unescape(re.search(r'<title>(.*?)</title>', done.stdout)[1]))
    assert found['width'] == width and found['page'] <= found['seen'], found
    assert found['images'] and found['boxes'] >= len(report.TABLES)
    if width == 390: assert found['inner'] > 0                 # wide tables scroll within their own box
