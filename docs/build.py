"""Build the site from the repository without executing anything, and check its links."""

import argparse
import sys
import time
from pathlib import Path

from builder.stage import stage, write
from check_links import check_html, check_sources
from sphinx.cmd.build import main as sphinx

DOCS = Path(__file__).resolve().parent


def build(root: Path, out: Path) -> list[str]:  # what is wrong
    "Stage the pages, build them and check every link."
    site = stage(root)
    write(site, out / 'src')
    status = sphinx(
        [
            '-q',
            '-b',
            'html',
            '-c',
            str(DOCS),
            '-d',
            str(out / 'doctrees'),
            str(out / 'src'),
            str(out / 'html'),
        ]
    )
    if status:
        return [f'Sphinx ended with status {status}']
    wrong = [f'{source}: {target} leads to no file' for source, target in site.broken]
    return wrong + check_sources(root) + check_html(out / 'html', root, site.address(''))


def size(folder: Path) -> float:
    "Megabytes in a folder."
    return sum(p.stat().st_size for p in folder.rglob('*') if p.is_file()) / 1e6


def main() -> int:
    "The command."
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--root', type=Path, default=DOCS.parent, help='the repository')
    parser.add_argument(
        '--out', type=Path, default=DOCS / '_build', help='the folder the site is built in'
    )
    args = parser.parse_args()
    began, root, out = time.monotonic(), args.root.resolve(), args.out.resolve()
    wrong = build(root, out)
    for line in dict.fromkeys(wrong):
        print(f'radgen: {line}', file=sys.stderr)
    pages = len(list((out / 'html').rglob('*.html')))
    took = time.monotonic() - began
    print(f'radgen: {pages} pages, {size(out / "html"):.0f} MB, in {took:.0f} s')
    print(f'  {out / "html" / "index.html"}')
    return 1 if wrong else 0


if __name__ == '__main__':
    sys.exit(main())
