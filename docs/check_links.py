"""Check every relative link: on the built site, in README.md, notebooks and pages."""

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

from builder.links import OTHER, markdown_targets


class Page(HTMLParser):
    "The anchors of a page and its links."

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.anchors, self.links = {'', 'top'}, []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.anchors.update(v for k, v in attrs if k == 'id' or (k == 'name' and tag == 'a'))
        for key in ('href', 'src'):
            if values.get(key) and not (tag == 'link' and values.get('rel') == 'canonical'):
                self.links.append(values[key])

    handle_startendtag = handle_starttag


def check_html(
    folder: Path,  # the built site
    root: Path | None = None,  # the repository: links to its files are checked too
    address: str = '',  # its address for a file, e.g. https://github.com/radgen/radgen/blob/main/
) -> list[str]:  # one line a broken link
    "Broken links of a built site."
    address = (
        re.sub(r'(blob|tree)(?=/[^/]+/?$)', '(?:blob|tree)', re.escape(address)) if address else ''
    )
    folder = folder.resolve()
    files = [
        p for p in sorted(folder.rglob('*.html')) if p.relative_to(folder).parts[0] != '_static'
    ]
    pages = {p: Page(p.read_text(encoding='utf-8')) for p in files}
    broken = []
    for path, page in pages.items():
        for link in dict.fromkeys(page.links):
            why = problem(link, path, pages, root, address)
            if why:
                broken.append(f'{path.relative_to(folder)}: {link} {why}')
    return broken


def problem(link: str, path: Path, pages: dict, root: Path | None, address: str) -> str:
    "Why a link leads nowhere; '' where it leads somewhere."
    if address and root and re.match(address, link):
        file = unquote(re.sub(address, '', link, count=1)).partition('#')[0]
        return '' if (root / file).exists() else 'names no file of the repository'
    if OTHER.match(link) and not link.startswith('#'):
        return ''
    file, _, anchor = link.partition('#')
    target = (path.parent / unquote(file.partition('?')[0])).resolve() if file else path
    target = target / 'index.html' if target.is_dir() else target
    if not target.exists():
        return 'leads to no file'
    anchored = target in pages and unquote(anchor) not in pages[target].anchors
    return 'leads to no such place on the page' if anchored else ''


def sources(root: Path) -> list[Path]:
    "README, pages and notebooks, as they are read in the repository."
    found = [root / 'README.md', root / 'CONTRIBUTING.md', root / 'CHANGELOG.md']
    found += [p for p in (root / 'docs').rglob('*.md') if '_build' not in p.parts]
    found += [p for p in (root / 'nbs').rglob('*.ipynb') if p.stem != 'index']
    found += (root / 'figures').glob('*/*/notebooks/*.ipynb')
    return sorted(
        p
        for p in found
        if p.exists() and not any(s.startswith('.') for s in p.relative_to(root).parts)
    )


def texts(path: Path) -> list[str]:
    "A file's Markdown."
    if path.suffix == '.md':
        return [path.read_text(encoding='utf-8')]
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    return [''.join(c['source']) for c in cells if c['cell_type'] == 'markdown']


def check_sources(root: Path) -> list[str]:
    "Relative links in the repository that lead to no file."
    broken = []
    for path in sources(root):
        for target in dict.fromkeys(t for text in texts(path) for t in markdown_targets(text)):
            if OTHER.match(target):
                continue
            file = path.parent / unquote(target.partition('#')[0])
            if not file.exists():
                broken.append(f'{path.relative_to(root)}: {target} leads to no file')
    return broken


def main() -> int:
    "Check the repository, and a built site where a folder is given."
    root = Path(__file__).resolve().parent.parent
    broken = check_sources(root) + [b for f in sys.argv[1:] for b in check_html(Path(f), root)]
    for line in broken:
        print(f'radgen: {line}', file=sys.stderr)
    return 1 if broken else 0


if __name__ == '__main__':
    sys.exit(main())
