"""The library: its notebooks, room by room."""

from pathlib import Path

from . import notebooks
from .links import Site
from .words import ROOMS


def rooms(root: Path) -> dict[str, list[str]]:
    "Room -> its notebooks, in order; notebooks outside rooms come first."
    by_room: dict[str, list[str]] = {}
    for path in sorted((root / 'nbs').rglob('[0-9]*.ipynb')):
        where = path.relative_to(root / 'nbs')
        if where.parts[0] == 'paper' or any(p.startswith(('.', '_')) for p in where.parts):
            continue
        by_room.setdefault(where.parent.as_posix(), []).append(f'nbs/{where.as_posix()}')
    return by_room


def places(root: Path) -> dict[str, str]:
    "Notebook or folder -> page."
    out = {'nbs': 'library/index.md'}
    for room, files in rooms(root).items():
        if room != '.':
            out[f'nbs/{room}'] = f'library/{room}/index.md'
        out |= {f: f.replace('nbs/', 'library/', 1) for f in files}
    return out


def room_name(folder: str) -> str:
    "`01_core` -> `core`."
    return folder.split('_', 1)[-1]


def contents(site: Site, files: list[str], page: str) -> list[str]:
    "A table of notebooks and what they say about themselves."
    lines = ['| notebook | what |', '|---|---|']
    for number, file in enumerate(files, 1):
        title, quote = notebooks.title_and_quote(notebooks.read(site.root / file))
        title, quote = (t.replace('|', '\\|') for t in (title or Path(file).stem, quote))
        lines.append(f'| {number}. [{title}]({site.relative(site.places[file], page)}) | {quote} |')
    return [*lines, '']


def toctree(entries: list[str], *options: str) -> list[str]:
    "A toctree."
    return ['```{toctree}', *options, '', *entries, '```', '']


def stage(site: Site) -> set[str]:  # labels of the cells that export something
    "Stage the library."
    labels: set[str] = set()
    lines = ['# The library', '']
    lines += [
        'The library is written in notebooks. Each exports one module of `radgen`, shows it at '
        'work and tests it. The rooms are numbered in the order data flows, and a room imports '
        'only from rooms on lower layers.',
        '',
    ]
    entries = []
    for folder, files in rooms(site.root).items():
        for file in files:
            labels.update(notebooks.stage(site, file, site.places[file]))
        if folder == '.':
            lines += contents(site, files, 'library/index.md')
            entries += [Path(f).stem for f in files]
            continue
        name, page = room_name(folder), f'library/{folder}/index.md'
        title = f'{folder.split("_")[0].lstrip("0")}. {name.capitalize()}'
        sentence = ROOMS.get(name, '')
        lines += [
            f'## [{title}]({folder}/index.md)',
            '',
            sentence,
            '',
            *contents(site, files, 'library/index.md'),
        ]
        room = [f'# {title}', '', sentence, '', *contents(site, files, page)]
        room += toctree([Path(f).stem for f in files], ':hidden:')
        site.pages[page] = '\n'.join(room)
        entries.append(f'{folder}/index')
    site.pages['library/index.md'] = '\n'.join(lines + toctree(entries, ':hidden:', ':maxdepth: 2'))
    return labels
