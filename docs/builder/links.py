"""Where each file of the repository appears on the site, and links rewritten to lead there."""

import os
import posixpath
import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, unquote

OTHER = re.compile(r'^([a-zA-Z][\w+.-]*:|#|//)')  # an absolute address or a place on the same page
CODE = re.compile(r'(^ *(`{3,}|~{3,}).*?^ *\2[`~]* *$|`[^`\n]+`|\$[^$\n]+\$)', re.S | re.M)
TARGET = re.compile(
    r'(?P<image>!?)(?P<text>\[[^\[\]]*\]|\])\((?P<url>[^()\s]+)(?P<title>\s+\"[^\"]*\")?\)'
)
REFERENCE = re.compile(r'^(?P<start> {0,3}\[[^\]]+\]:\s+)(?P<url>\S+)', re.M)
ATTRIBUTE = re.compile(r"(?P<start>\b(?:href|src)=)(?P<quote>[\"'])(?P<url>[^\"']+)(?P=quote)")
IMAGES = {'.png', '.svg', '.jpg', '.jpeg', '.gif'}


def outside_code(text: str, change) -> str:
    "Markdown with `change` applied to everything but code and formulas."
    out, at = [], 0
    for match in CODE.finditer(text):
        out += [change(text[at : match.start()]), match[0]]
        at = match.end()
    return ''.join([*out, change(text[at:])])


def markdown_targets(text: str) -> list[str]:
    "All link targets of a Markdown text."
    targets: list[str] = []

    def collect(part):
        for pattern in (TARGET, REFERENCE, ATTRIBUTE):
            targets.extend(m['url'] for m in pattern.finditer(part))
        return part

    outside_code(text, collect)
    return targets


@dataclass
class Site:
    "The pages of the site while they are staged."

    root: Path  # the repository
    git_url: str  # its address
    branch: str = 'main'
    places: dict = field(default_factory=dict)  # file of the repository -> page
    pages: dict = field(default_factory=dict)  # page -> text, bytes or a file to copy
    broken: list = field(default_factory=list)  # (file, target) that lead nowhere

    def address(self, path: str) -> str:
        "A file's or folder's page in the repository."
        kind = 'tree' if (self.root / path).is_dir() else 'blob'
        return f'{self.git_url}/{kind}/{self.branch}/{quote(path)}'

    def asset(self, path: str) -> str:
        "The place of a copied file."
        place = f'assets/{path}'
        self.pages[place] = self.root / path
        return place

    def relative(self, place: str, page: str) -> str:
        "A link from one staged page to another."
        return posixpath.relpath(place, posixpath.dirname(page) or '.')

    def link(
        self,
        url: str,  # as written
        source: str,  # the file it is written in
        page: str,  # the page it is staged on
        bases: tuple = (),  # further folders a relative link may start from
        image: bool = False,  # is it shown on the page?
        html: bool = False,  # is it written in HTML?
    ) -> str:
        "A link as the page needs it; one that leads nowhere is noted and left empty."
        if OTHER.match(url):
            return url
        path, _, fragment = unquote(url).partition('#')
        for base in (posixpath.dirname(source), *bases):
            where = posixpath.normpath(posixpath.join(base, path))
            target = self._target(where, page, image)
            if target is None:
                continue
            if html:
                target = re.sub(r'\.(ipynb|md)$', '.html', target)
            return target + (f'#{fragment.lower()}' if fragment else '')
        self.broken.append((source, url))
        return '#'

    def _target(self, where, page, image):
        if where in self.places:
            return self.relative(self.places[where], page)
        if where.startswith('..') or not os.path.exists(self.root / where):
            return None
        if image and Path(where).suffix.lower() in IMAGES:
            return self.relative(self.asset(where), page)
        return self.address(where)

    def markdown(self, text: str, source: str, page: str, bases: tuple = ()) -> str:
        "Markdown with its links rewritten."

        def to(url, **kind):
            return self.link(url, source, page, bases, **kind)

        def rewritten(m):
            url = to(m['url'], image=bool(m['image']))
            return f'{m["image"]}{m["text"]}({url}{m["title"] or ""})'

        def change(part):
            part = TARGET.sub(rewritten, part)
            part = REFERENCE.sub(lambda m: m['start'] + to(m['url']), part)
            return self.html(part, source, page, bases)

        return outside_code(text, change)

    def html(self, text: str, source: str, page: str, bases: tuple = ()) -> str:
        "HTML with its links rewritten."

        def change(m):
            is_image = m['start'].startswith('src')
            url = self.link(m['url'], source, page, bases, image=is_image, html=True)
            return m['start'] + m['quote'] + url + m['quote']

        return ATTRIBUTE.sub(change, text)
