"""A notebook as the site shows it: no hidden cells, no nbdev directives, links that work."""

import ast
import json
import re
from pathlib import Path

from .links import Site

DIRECTIVE = re.compile(r'^\s*#\s*\|\s*(.*?)\s*$')
CALLOUT = re.compile(
    r'^:::+ *\{\.callout-(\w+)[^}]*\} *\n(?:#+ +(?P<title>[^\n]+)\n)?(?P<body>.*?)^:::+ *$',
    re.S | re.M,
)
LANGUAGE = {'name': 'python', 'pygments_lexer': 'ipython3'}


def text_of(cell: dict) -> str:
    "A cell's source."
    source = cell['source']
    return source if isinstance(source, str) else ''.join(source)


def read(path: Path) -> dict:
    "A notebook."
    return json.loads(path.read_text(encoding='utf-8'))


def split_directives(source: str) -> tuple[list[str], str]:
    "The directives a code cell opens with, and the code."
    lines, directives = source.split('\n'), []
    while lines and (not lines[0].strip() or DIRECTIVE.match(lines[0])):
        line = lines.pop(0)
        if line.strip():
            directives.append(DIRECTIVE.match(line)[1].replace(': ', ' '))
    return directives, '\n'.join(lines).rstrip()


def default_module(nb: dict) -> str | None:
    "The module a notebook exports."
    for cell in nb['cells']:
        if cell['cell_type'] != 'code':
            continue
        for directive in split_directives(text_of(cell))[0]:
            if directive.startswith('default_exp '):
                return 'radgen.' + directive.split()[1]
    return None


def defined_names(code: str) -> list[str]:
    "What a cell defines at its top level."
    try:
        body = ast.parse(code).body
    except SyntaxError:
        return []
    names = []
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.append(node.name)
        elif isinstance(node, ast.Assign):
            names += [
                t.id for target in node.targets for t in ast.walk(target) if isinstance(t, ast.Name)
            ]
    return names


def cell_label(module: str, name: str) -> str:
    "The anchor of the cell that exports a name."
    return re.sub(r'[^a-z0-9]+', '-', f'cell {module} {name}'.lower()).strip('-')


def title_and_quote(nb: dict) -> tuple[str, str]:
    "A notebook's title and the line under it."
    for cell in nb['cells']:
        if cell['cell_type'] != 'markdown':
            continue
        text = text_of(cell)
        title = re.search(r'^# +(.+)$', text, re.M)
        quote = re.search(r'(?:^> ?.*\n?)+', text, re.M)
        if title:
            words = re.sub(r'^> ?', '', quote[0], flags=re.M) if quote else ''
            return title[1].strip(), ' '.join(words.split())
    return '', ''


def admonitions(text: str) -> str:
    "Callouts as nbdev writes them, as the site's own."

    def change(m):
        title = m['title'] or m[1].capitalize()
        return f':::{{admonition}} {title}\n:class: {m[1]}\n\n{m["body"].strip()}\n:::'

    return CALLOUT.sub(change, text)


def plain_diagrams(text: str) -> str:
    "Diagrams that need a script from elsewhere are shown as their text."
    return text.replace('```mermaid', '```text')


def stage_outputs(outputs: list, site: Site, source: str, page: str, bases: tuple) -> list:
    "Outputs with their links rewritten."
    for output in outputs:
        data = output.get('data', {})
        for mime, change in (('text/markdown', site.markdown), ('text/html', site.html)):
            if mime in data:
                text = data[mime] if isinstance(data[mime], str) else ''.join(data[mime])
                data[mime] = change(text, source, page, bases)
    return outputs


def stage_code(cell, site, source, page, bases, outputs) -> dict | None:
    "A code cell, or nothing where it is hidden or holds directives only."
    directives, code = split_directives(text_of(cell))
    if 'hide' in directives or not code.strip():
        return None
    tags = cell.setdefault('metadata', {}).setdefault('tags', [])
    if {'hide_input', 'echo false'} & set(directives):
        tags.append('remove-input')
    if {'hide_output', 'output false'} & set(directives) or not outputs:
        cell['outputs'] = []
    cell['source'] = code
    cell['outputs'] = stage_outputs(cell.get('outputs', []), site, source, page, bases)
    return cell


def stage(
    site: Site,
    source: str,  # the notebook, from the repository's root
    page: str,  # its page
    bases: tuple = (),  # further folders its links may start from
    outputs: bool = True,  # are its outputs shown?
    note: str = '',  # a line under its title
    labelled: dict | None = None,  # number of an executed cell -> its anchor
) -> list[str]:  # labels of the cells that export something
    "Stage a notebook as a page."
    nb = read(site.root / source)
    module, cells, labels = default_module(nb), [], []

    def markdown(text):
        cells.append(
            {'cell_type': 'markdown', 'id': f'site-{len(cells)}', 'metadata': {}, 'source': text}
        )

    if not title_and_quote(nb)[0]:
        markdown(f'# {Path(source).stem}')
    for cell in nb['cells']:
        if cell['cell_type'] == 'markdown':
            text = site.markdown(plain_diagrams(admonitions(text_of(cell))), source, page, bases)
            if note and re.search(r'^# ', text, re.M):
                text, note = f'{text.rstrip()}\n\n{note}', ''
            cells.append({**cell, 'source': text})
            continue
        exports = any(d.startswith('export') for d in split_directives(text_of(cell))[0])
        staged = stage_code(cell, site, source, page, bases, outputs)
        if not staged:
            continue
        if module and exports:
            new = [cell_label(module, n) for n in defined_names(staged['source'])]
            new = [n for n in dict.fromkeys(new) if n not in labels]
            if new:
                markdown('\n\n'.join(f'({n})=' for n in new))
            labels += new
        if cell.get('execution_count') in (labelled or {}):
            markdown(f'({labelled[cell["execution_count"]]})=')
        cells.append(staged)
    metadata = {'kernelspec': {'name': 'python3', 'display_name': 'Python 3', 'language': 'python'}}
    whole = {
        'cells': cells,
        'metadata': {**metadata, 'language_info': LANGUAGE},
        'nbformat': 4,
        'nbformat_minor': 5,
    }
    for number, cell in enumerate(cells):
        cell['id'] = f'cell-{number}'
    site.pages[page] = json.dumps(whole, ensure_ascii=False, indent=1, sort_keys=True)
    return labels
