"""How Sphinx builds the site; `make docs` calls it by build.py."""

from __future__ import annotations

project = "Packhorse"
author = "Packhorse"
extensions = ["myst_parser"]
root_doc = "index"
html_theme = "furo"
html_title = "Packhorse"
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
#: The anchors that Git hosts make of headings: pages link to them.
myst_heading_anchors = 4
#: Diagrams and shells have no lexer that would fit.
highlight_language = "none"
suppress_warnings = ["misc.highlighting_failure"]
