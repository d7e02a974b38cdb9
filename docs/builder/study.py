"""The study: executed notebooks, tables and figures of the committed runs."""

import csv
import html
import json
import re
from pathlib import Path

import yaml

from . import notebooks
from .library import toctree
from .links import Site
from .words import COHORTS, FOLDS, GROUPED, MODELS, SECTIONS, VARIANTS, VIEWS

INLINE = 40  # rows; a longer table has a page of its own
SHORT = 28  # characters; a shorter cell is kept on one line
LANDING = '_parts/scorecard.md'


def run_folders(root: Path) -> list[str]:
    "The folders of committed runs, from the repository's root, in the order the site tells them."
    folders = [p.parent for p in (root / 'figures').glob('*/*/*.csv')]
    folders += [p.parent.parent for p in (root / 'figures').glob('*/*/notebooks/*.ipynb')]
    names = {p.relative_to(root).as_posix() for p in folders if p.name != 'smoke'}
    order = {c: i for i, c in enumerate(COHORTS)}
    return sorted(names, key=lambda n: (order.get(n.split('/')[1], 99), n))


def sources(root: Path) -> list[str]:
    "The paper notebooks."
    return [
        p.relative_to(root).as_posix()
        for p in sorted((root / 'nbs' / 'paper').glob('[0-9]*.ipynb'))
    ]


def executed(root: Path, run: str) -> list[str]:
    "The executed notebooks of a run."
    return [
        p.relative_to(root).as_posix()
        for p in sorted((root / run / 'notebooks').glob('[0-9]*.ipynb'))
    ]


def run_page(run: str) -> str:
    "A run's page."
    return f'study/{run.split("/", 1)[1]}/index.md'


def places(root: Path) -> dict[str, str]:
    "Notebook or folder -> page."
    out = {'nbs/paper': 'study/index.md', 'figures': 'study/index.md'}
    out |= {s: f'study/notebooks/{Path(s).name}' for s in sources(root)}
    for run in run_folders(root):
        folder = run_page(run).rsplit('/', 1)[0]
        out |= {run: run_page(run), f'{run}/notebooks': run_page(run)}
        out |= {e: f'{folder}/notebooks/{Path(e).name}' for e in executed(root, run)}
    return out


def read_captions(root: Path) -> dict:
    "Titles and captions of the report; empty where there are none."
    path = root / 'radgen' / 'report' / 'captions.yaml'
    words = yaml.safe_load(path.read_text(encoding='utf-8')) if path.exists() else {}
    return {part: words.get(part, {}) for part in ('figures', 'tables', 'made_by')}


def longest(stem: str, begins: dict) -> str | None:  # a key of `begins`
    "The longest beginning of a file's name that there are words for."
    return max((key for key in begins if stem.startswith(key)), key=len, default=None)


def caption(stem: str, figures: dict) -> tuple[str, str, str]:
    "A figure's title, caption and description, by the beginning of its name."
    key = longest(stem, figures)
    if key is None:
        title = stem.replace('_', ' ').capitalize()
        return title, '', title
    about = figures[key]
    words = [w for w in re.split('[_-]', stem[len(key) :]) if w in VARIANTS]
    if key == 'fig2_':  # of one model, whose name may end like that of a protocol
        words = [text for name, text in MODELS.items() if stem.endswith(name)]
    variant = f' ({", ".join(words)})' if words else ''
    return about['title'] + variant, about['caption'], about['alt']


def figure_source(path: Path) -> tuple[str, int | None]:  # notebook and cell; '' where not said
    "What made a figure, as its file says: the text 'Source' of a PNG, 'NOTEBOOK cell N'."
    data = path.read_bytes()
    at = data.find(b'tEXtSource\0')
    if at < 0:
        return '', None
    length = int.from_bytes(data[at - 4 : at])
    notebook, _, cell = data[at + 11 : at + 4 + length].decode('latin-1').partition(' cell ')
    return notebook, int(cell) if cell else None


def readable_view(stem: str, header: list[str], rows: list[list[str]]) -> tuple[list, list]:
    "The columns of a wide table that a reader needs; the file has all."
    if stem not in VIEWS:
        return header, rows
    filled = [{k: short_number(v) for k, v in zip(header, row)} for row in rows]
    for fields in filled:
        fields['folds'] = FOLDS.get(fields.get('protocol'), '')
    return list(VIEWS[stem]), [[fill(t, f) for t in VIEWS[stem].values()] for f in filled]


def short_number(text: str) -> str:
    "A number with three significant digits; other text as it is."
    return f'{float(text):.3g}' if re.fullmatch(r'-?\d+\.\d+(e-?\d+)?', text) else text


def fill(templates: str, fields: dict) -> str:
    "The parts of a template whose fields all have a value."
    parts = templates.split('|')
    names = [re.findall(r'{(\w+)}', part) for part in parts]
    return (
        ''.join(
            part.format(**fields)
            for part, used in zip(parts, names)
            if all(fields.get(name) for name in used)
        ).strip()
        or '–'
    )


def rows_of(path: Path) -> list[list[str]]:
    "A table's rows, the header first."
    with open(path, newline='', encoding='utf-8') as file:
        return list(csv.reader(file))


def html_table(header: list[str], rows: list[list[str]], kind: str = '') -> str:
    "A table that scrolls in its own box."

    def cell(tag, text):
        short = ' class="short"' if len(text) <= SHORT else ''
        return f'<{tag}{short}>{html.escape(text)}</{tag}>'

    def line(tag, values):
        return '<tr>' + ''.join(cell(tag, v) for v in values) + '</tr>'

    body = '\n'.join(line('td', r) for r in rows)
    head = line('th', header)
    return (
        f'<div class="results {kind}" tabindex="0"><table class="table">\n'
        f'<thead>{head}</thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'
    )


def raw(text: str) -> list[str]:
    "HTML in a Markdown page."
    return ['```{raw} html', text, '```', '']


def parts(header: list[str], rows: list[list[str]]) -> list[tuple[str, list[str], list[list[str]]]]:
    "A table divided where its grouping column changes: title, header, rows."
    column = next((header.index(g) for g in GROUPED if g in header), None)
    if column is None:
        return [('', header, rows)]
    out: dict[str, list] = {}
    for row in rows:
        out.setdefault(row[column], []).append(row[:column] + row[column + 1 :])
    return [(t, header[:column] + header[column + 1 :], r) for t, r in out.items()]


class Run:
    "A committed run and its pages."

    def __init__(self, site: Site, folder: str, words: dict):
        self.site, self.folder, self.page = site, folder, run_page(folder)
        self.cohort, self.profile = folder.split('/')[1:3]
        self.words = words  # of `read_captions`
        self.executed = {Path(f).stem: f for f in executed(site.root, folder)}
        self.cells: dict[str, set] = {}  # notebook -> numbers of cells that made a figure
        self.name, self.what = COHORTS.get(self.cohort, (self.cohort.capitalize(), ''))
        self.title = f'{self.name}, profile {self.profile}'
        self.further: list[str] = []  # pages of long tables

    def facts(self) -> str:
        "When and how the run was made."
        path = self.site.root / self.folder / 'provenance.json'
        if not path.exists():
            return ''
        record = json.loads(path.read_text(encoding='utf-8'))
        facts = [f'Made on {record["written"][:10]}'] if record.get('written') else []
        if record.get('code'):
            facts.append(f'by version `{record["code"]}` of the code')
        if record.get('cores'):
            facts.append(f'on {record["cores"]} cores')
        wall = (record.get('whole_run') or {}).get('wall_s')
        if wall:
            facts.append(f'in {round(wall / 60)} minutes')
        return ' '.join(facts) + '.' if facts else ''

    def cell_label(self, notebook: str, cell: int) -> str:
        "The anchor of an executed cell."
        return notebooks.cell_label(self.folder, f'{notebook} {cell}')

    def made_by(self, path: Path) -> str:  # Markdown
        "A link to the notebook that made a figure, and to its cell where the file names it."
        notebook, cell = figure_source(path)
        if cell and notebook in self.executed:
            self.cells.setdefault(notebook, set()).add(cell)
            return f'[{notebook}, cell {cell}](#{self.cell_label(notebook, cell)})'
        begin = longest(path.stem, self.words['made_by'])
        notebook = notebook or self.words['made_by'].get(begin, '')
        named = [n for n in self.executed if n.split('-')[0] == notebook.split('-')[0]]
        ends = lambda n: path.stem.endswith('_'.join(['', *n.split('-')[1:]]))
        file = next((self.executed[n] for n in named if n == notebook or ends(n)), '')
        file = file or f'nbs/paper/{notebook.split("-")[0]}.ipynb'
        if file not in self.site.places:
            return notebook
        return f'[{Path(file).stem}]({self.site.relative(self.site.places[file], self.page)})'

    def figure(self, path: Path) -> list[str]:
        "A figure with its caption, which leads to the notebook that made it."
        where = f'{self.folder}/{path.name}'
        title, text, alt = caption(path.stem, self.words['figures'])
        image = self.site.relative(self.site.asset(where), self.page)
        lines = [
            f'```{{figure}} {image}',
            f':alt: {title}. {alt}',
            ':width: 100%',
            ':loading: lazy',
            '',
            f'**{title}.** {text} {self.made_by(path)}'.rstrip(),
            '```',
            '',
        ]
        return lines

    def table(self, path: Path) -> list[str]:
        "A table, or where it is long the link to its page."
        header, *rows = rows_of(path)
        about = self.words['tables'].get(path.stem, {})
        title = about.get('title', path.stem.replace('_', ' ').capitalize())
        text = about.get('caption', '')
        source = f'[CSV]({self.site.address(f"{self.folder}/{path.name}")})'
        header, rows = readable_view(path.stem, header, rows)
        if not rows:
            return [f'**{title}.** No row in this run. {source}', '']
        if len(rows) <= INLINE:
            return [f'**{title}.** {text} {source}', '', *raw(html_table(header, rows))]
        lines = [f'# {title}', '', f'{self.title}. {text} {source}', '']
        for part, head, some in parts(header, rows):
            lines += [f'## {part}', ''] if part else []
            lines += raw(html_table(head, some, 'long'))
        place = self.page.replace('index.md', f'{path.stem}.md')
        self.site.pages[place] = '\n'.join(lines)
        self.further.append(path.stem)
        return [f'**{title}.** {text} [{len(rows):,} rows]({path.stem}.md)', '']

    def notebook_lines(self) -> tuple[list[str], list[str]]:
        "The executed notebooks: a list, and the entries of the toctree."
        lines, entries = [], []
        for file in executed(self.site.root, self.folder):
            place, stem = self.site.places[file], Path(file).stem
            labels = {n: self.cell_label(stem, n) for n in self.cells.get(stem, ())}
            notebooks.stage(self.site, file, place, ('nbs/paper', ''), labelled=labels)
            title, _ = notebooks.title_and_quote(notebooks.read(self.site.root / file))
            variant = stem.split('-', 1)[1].replace('-', ', ') if '-' in stem else ''
            title = (title or stem) + (f' ({variant})' if variant else '')
            lines.append(f'* [{title}](notebooks/{Path(file).name})')
            entries.append(f'{title} <notebooks/{stem}>')
        return lines, entries

    def sections(self) -> list[str]:
        "Figures and tables, section by section."
        folder, lines = self.site.root / self.folder, []
        left = sorted(
            p for p in folder.iterdir() if p.suffix in ('.png', '.csv') and p.stem != 'results'
        )
        for title, begins in SECTIONS:
            mine = [p for p in left if p.stem.startswith(begins)]
            left = [p for p in left if p not in mine]
            if mine:
                lines += [f'## {title}', '']
            for path in sorted(mine, key=lambda p: (p.suffix == '.csv', p.stem)):
                lines += self.figure(path) if path.suffix == '.png' else self.table(path)
        return lines

    def stage(self) -> None:
        "Stage the run's pages."
        sections = self.sections()  # its figures name the cells that are linked to
        listed, entries = self.notebook_lines()
        rows = self.site.root / self.folder / 'results.csv'
        address = self.site.address(f'{self.folder}/results.csv')
        every = f'Every number is a row of [results.csv]({address}).'
        lines = [
            f'# {self.title}',
            '',
            self.what,
            '',
            f'{self.facts()} {every if rows.exists() else ""}',
            '',
        ]
        if listed:
            lines += ['## Executed notebooks', '', *listed, '']
        lines += sections
        self.site.pages[self.page] = '\n'.join(
            lines + toctree([*entries, *self.further], ':hidden:')
        )


def versions(site: Site, runs: list[str], stem: str, page: str) -> list[str]:
    "Links to the executed versions of a paper notebook."
    out = []
    for run in runs:
        for file in executed(site.root, run):
            if Path(file).stem == stem or Path(file).stem.startswith(stem + '-'):
                name, variant = (
                    COHORTS.get(run.split('/')[1], (run.split('/')[1], ''))[0],
                    Path(file).stem[len(stem) :],
                )
                text = name + (f' ({variant.strip("-").replace("-", ", ")})' if variant else '')
                out.append(f'[{text}]({site.relative(site.places[file], page)})')
    return out


def stage_sources(site: Site, runs: list[str]) -> list[str]:
    "Stage the sources of the paper notebooks, without outputs; a table of them."
    lines = ['| notebook | what it asks | executed |', '|---|---|---|']
    for file in sources(site.root):
        page, stem = site.places[file], Path(file).stem
        done = versions(site, runs, stem, page)
        note = (
            f'*The source, without outputs.{" Executed: " + ", ".join(done) + "." if done else ""}*'
        )
        notebooks.stage(site, file, page, ('',), outputs=False, note=note)
        title, quote = notebooks.title_and_quote(notebooks.read(site.root / file))
        done = ', '.join(versions(site, runs, stem, 'study/index.md')) or '–'
        lines.append(f'| [{title or stem}](notebooks/{stem}.ipynb) | {quote} | {done} |')
    return [*lines, '']


def stage_landing(site: Site) -> None:
    "Findings and scorecard of the released data, for the first page: those of the README."
    path = site.root / 'README.md'
    readme = path.read_text(encoding='utf-8') if path.exists() else ''
    lines = [x for x in readme.split('\n## Two commands')[0].split('\n') if x[:2] in ('* ', '| ')]
    items = [x for x in lines if x.startswith('* ')]
    table = [x for x in lines if x.startswith('| ')]
    site.pages[LANDING] = '\n'.join([*items, '', *table, ''])


def stage(site: Site) -> None:
    "Stage the study."
    words = read_captions(site.root)
    runs = [Run(site, folder, words) for folder in run_folders(site.root)]
    for run in runs:
        run.stage()
    lines = ['# The study', '']
    lines += [
        'Each run of the study is committed with its tables, its figures and all numbers as rows. '
        'The pages below are made from these files.',
        '',
        '| run | what | executed notebooks |',
        '|---|---|---|',
    ]
    for run in runs:
        page, number = run.page.removeprefix('study/'), len(executed(site.root, run.folder))
        lines.append(f'| [{run.title}]({page}) | {run.what} | {number or "–"} |')
    lines += ['', '## The paper notebooks', '']
    lines += [
        'Each notebook asks one question. A run executes it with the parameters of its profile.',
        '',
    ]
    lines += stage_sources(site, [r.folder for r in runs])
    entries = [f'{r.title} <{r.page.removeprefix("study/").removesuffix(".md")}>' for r in runs]
    lines += toctree(entries, ':hidden:', ':caption: Runs')
    stems = [f'notebooks/{Path(s).stem}' for s in sources(site.root)]
    lines += toctree(stems, ':hidden:', ':caption: Sources')
    site.pages['study/index.md'] = '\n'.join(lines)
    stage_landing(site)
