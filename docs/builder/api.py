"""The API reference: a page for each module, a parameter table for each function."""

import json
import re

from .links import Site
from .notebooks import cell_label
from .source import Module, Symbol

SPECIAL = re.compile(r'([\\*_<>\[\]$|{}#~])')


def escaped(text: str) -> str:
    "Text in which only code keeps a meaning as Markdown."
    parts = re.split(r'(`[^`\n]+`)', text)
    return ''.join(p if i % 2 else SPECIAL.sub(r'\\\1', p) for i, p in enumerate(parts))


def code(text: str | None) -> str:
    "Code in a table's cell."
    text = ' '.join((text or '').split()).replace('|', '\\|')
    fence = '``' if '`' in text else '`'
    return f'{fence}{text}{fence}' if text else ''


def table(symbol: Symbol) -> list[str]:
    "Parameters and what is returned, as a table."
    rows = [(code(p.name), code(p.type), code(p.default), cell(p.doc)) for p in symbol.parameters]
    if symbol.returns:
        rows.append(('*returns*', code(symbol.returns.type), '', cell(symbol.returns.doc)))
    if not any(''.join(r[1:]) for r in rows):
        return []
    what = 'field' if symbol.kind == 'class' and not symbol.signature else 'parameter'
    heads = (what, 'type', 'default', 'description')
    used = [i for i in range(4) if i == 0 or any(r[i] for r in rows)]
    lines = [[h[i] for i in used] for h in (heads, ('---',) * 4, *rows)]
    return [*(f'| {" | ".join(line)} |' for line in lines), '']


def cell(text: str) -> str:
    "A description in a table's cell."
    return escaped(' '.join(text.split()))


def links(symbol: Symbol, module: Module, site: Site, labels: set) -> str:
    "Where a symbol is explained and where its source is."
    label, source = (
        cell_label(module.name, symbol.name),
        f'{site.address(module.path)}#L{symbol.line}',
    )
    notebook = f'[notebook](#{label}) · ' if label in labels else ''
    return f'{notebook}[source]({source})'


def entry(symbol: Symbol, module: Module, where: str = '', depth: int = 4) -> list[str]:
    "A symbol as a directive of the Python domain."
    fence, inner = ':' * depth, ':' * (depth - 1)
    kind = {'property': 'property'}.get(symbol.kind, symbol.kind)
    head = f'{fence}{{py:{kind}}} {symbol.name}{symbol.signature}'
    lines = [head, *([f':value: {value_of(symbol)}'] if symbol.value else []), '']
    lines += [escaped(symbol.doc), '', *table(symbol)]
    for member in symbol.members:
        called = '' if member.kind == 'property' else member.signature
        lines += [f'{inner}{{py:{member.kind}}} {member.name}{called}', '']
        lines += [escaped(member.doc), '', *table(member), inner, '']
    return [*lines, where, '', fence, '']


def value_of(symbol: Symbol) -> str:
    "A constant's value, shortened."
    value = ' '.join(symbol.value.split())
    return json.dumps(value if len(value) <= 90 else value[:86] + ' ...', ensure_ascii=False)


def page(module: Module, site: Site, place: str, labels: set) -> str:
    "A module's page."
    lines = [f'# {module.name}', '', escaped(module.doc), '']
    if module.notebook in site.places:
        notebook = site.relative(site.places[module.notebook], place)
        lines += [
            f'Explained, shown and tested in its notebook: [{module.notebook}]({notebook}).',
            '',
        ]
    lines += [f'```{{py:module}} {module.name}', '```', '']
    for kind, heading in (('class', 'Classes'), ('function', 'Functions'), ('data', 'Constants')):
        symbols = [s for s in module.symbols if s.kind == kind]
        if symbols:
            lines += [f'## {heading}', '']
        for symbol in symbols:
            lines += entry(symbol, module, links(symbol, module, site, labels))
    return '\n'.join(lines) + '\n'


def order(module: Module) -> tuple:
    "Modules in the order of their notebooks."
    return (module.notebook or '~', module.name)


def place_of(module: Module) -> str:
    "A module's page."
    return f'api/{module.name}.md'


def stage(site: Site, modules: list[Module], labels: set) -> None:
    "Stage the reference."
    modules = sorted(modules, key=order)
    for module in modules:
        site.pages[place_of(module)] = page(module, site, place_of(module), labels)
    rooms: dict[str, list] = {}
    for module in modules:
        rooms.setdefault(module.name.split('.')[1], []).append(module)
    lines = ['# API reference', '']
    lines += [
        'Each function with its parameters, their types and defaults, and what it returns.',
        '',
    ]
    lines += [
        'Each entry links to its source and to the notebook cell that defines it, '
        'beside its examples and tests.',
        '',
    ]
    for room, of_room in rooms.items():
        lines += [f'## {room.capitalize()}', '', '| module | what |', '|---|---|']
        lines += [f'| [{m.name.split(".")[-1]}]({m.name}.md) | {cell(m.doc)} |' for m in of_room]
        entries = [f'{m.name} <{m.name}>' for m in of_room]
        lines += [
            '',
            '```{toctree}',
            ':hidden:',
            f':caption: {room.capitalize()}',
            '',
            *entries,
            '```',
            '',
        ]
    site.pages['api/index.md'] = '\n'.join(lines)
