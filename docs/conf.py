"""Sphinx configuration. `make docs` stages the pages and builds them; nothing is executed."""

import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS), str(DOCS / '_ext')]
from builder.stage import settings  # noqa: E402

said = settings(DOCS.parent)
project, version, release = said['title'], said['version'], said['version']
author, copyright = said['author'], said['copyright']

extensions = ['myst_nb', 'sphinx_design', 'sphinx_copybutton', 'sphinx.ext.githubpages', 'mathml']
exclude_patterns = ['_parts', '**.ipynb_checkpoints']
source_suffix = {'.md': 'myst-nb', '.ipynb': 'myst-nb'}
suppress_warnings = [
    'myst.header',
    'myst.xref_missing',
    'mystnb.unknown_mime_type',
    'misc.highlighting_failure',
]

nb_execution_mode = 'off'
nb_merge_streams = True
nb_output_stderr = 'show'
nb_number_source_lines = False
myst_enable_extensions = ['dollarmath', 'amsmath', 'colon_fence', 'deflist', 'attrs_inline']
myst_heading_anchors = 4
myst_dmath_double_inline = True

add_module_names = False
python_maximum_signature_line_length = 76
toc_object_entries_show_parents = 'hide'
math_numfig = False
html_math_renderer = 'mathml'

html_theme = 'pydata_sphinx_theme'
html_title = project
html_static_path = ['_static']
html_css_files = ['site.css']
html_favicon = '_static/favicon.svg'
html_show_sourcelink = False
html_show_sphinx = False
html_copy_source = False
html_baseurl = f'{said["doc_host"]}{said["doc_baseurl"]}/'
html_sidebars = {'index': [], 'glossary': [], 'data': []}
html_theme_options = {
    'logo': {'text': project},
    'github_url': said['git_url'],
    'header_links_before_dropdown': 6,
    'show_toc_level': 2,
    'navigation_with_keys': False,
    'show_version_warning_banner': False,
    'footer_start': ['copyright'],
    'footer_end': [],
    'pygments_light_style': 'tango',
    'pygments_dark_style': 'monokai',
}
