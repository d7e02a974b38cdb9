"""All pages of the site, written to a folder."""

import configparser
import shutil
from pathlib import Path

from . import api, library, study
from .links import Site
from .source import read_package


def settings(root: Path) -> configparser.SectionProxy:
    "The project's settings."
    parser = configparser.ConfigParser(delimiters=['='], interpolation=None)
    parser.read(root / 'settings.ini', encoding='utf-8')
    return parser['DEFAULT']


def written_pages(root: Path) -> dict[str, str]:
    "Pages written by hand: file -> page."
    files = sorted((root / 'docs').rglob('*.md'))
    names = [p.relative_to(root / 'docs').as_posix() for p in files]
    return {f'docs/{n}': n for n in names if not n.startswith(('_', 'README'))}


def stage(root: Path) -> Site:
    "The pages of the site, with the links that lead nowhere."
    config = settings(root)
    site = Site(root, config['git_url'], config.get('branch', 'main'))
    modules, by_hand = read_package(root), written_pages(root)
    site.places = {'README.md': 'index.md', 'nbs/index.ipynb': 'index.md', **by_hand}
    site.places |= (
        library.places(root) | study.places(root) | {m.path: api.place_of(m) for m in modules}
    )
    labels = library.stage(site)
    api.stage(site, modules, labels)
    study.stage(site)
    for source, page in by_hand.items():
        text = (root / source).read_text(encoding='utf-8')
        site.pages[page] = site.markdown(text, source, page)
    return site


def write(site: Site, folder: Path) -> None:
    "Write the staged pages; what has not changed is left alone, what is not staged is removed."
    for page, content in site.pages.items():
        path = folder / page
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Path):
            new = not path.exists() or path.stat().st_mtime < content.stat().st_mtime
            if new or path.stat().st_size != content.stat().st_size:
                shutil.copyfile(content, path)
        elif not path.exists() or path.read_text(encoding='utf-8') != content:
            path.write_text(content, encoding='utf-8')
    for path in folder.rglob('*'):
        if path.is_file() and path.relative_to(folder).as_posix() not in site.pages:
            path.unlink()
