"""Formulas as MathML, which browsers draw by themselves: no script, no other host."""

import re

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging

log = logging.getLogger(__name__)
SIZES = re.compile(r'\\[bB]ig+[lrm]?(?![a-zA-Z])|\\(?:text|display|script)style(?![a-zA-Z])')


def mathml(tex: str, block: bool, where) -> str:
    "A formula as MathML; one that is not understood is shown as it is written."
    plain = SIZES.sub('', tex).replace(r'\*', '*').strip()
    try:
        return tex2mathml(plain, as_block=block)
    except (MathError, IndexError, AttributeError) as error:
        log.warning(
            'formula not understood: %s (%s)', plain, ' '.join(str(error).split()), location=where
        )
        return f'<code>{tex.replace("&", "&amp;").replace("<", "&lt;")}</code>'


def inline(self, node):
    "A formula in a line."
    self.body.append(mathml(node.astext(), False, node))
    raise nodes.SkipNode


def display(self, node):
    "A formula on lines of its own."
    self.body.append(self.starttag(node, 'div', CLASS='math'))
    self.body.append(mathml(node.astext(), True, node))
    self.body.append('</div>')
    raise nodes.SkipNode


def setup(app):
    "Register the renderer."
    app.add_html_math_renderer('mathml', (inline, None), (display, None))
    return {'parallel_read_safe': True, 'parallel_write_safe': True}
