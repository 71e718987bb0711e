"""The site of the documentation, built by ``make docs``: Sphinx with the repository as its folder of sources.

So relative links between ``docs``, ``results`` and the files at the root are the same on GitHub and on the site.
"""

import re
from pathlib import Path

from docutils.nodes import Element, TextElement
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

import lightning_ncmtl

project = "lightning-ncmtl"
author = project
version = release = lightning_ncmtl.__version__
root_doc = "docs/index"
include_patterns = ["docs/**", "results/**", "CHANGELOG.md", "CONTRIBUTING.md"]
exclude_patterns = [".*", "build", "data", "dist", "runs", "tests", "**/_templates"]
templates_path = [str(Path(__file__).with_name("_templates"))]  # pages and summaries look for another folder

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon"]

# Markdown: headings are anchors, as on GitHub
myst_heading_anchors = 3

# The reference: what a folder exports, in the order in which it is written
autosummary_ignore_module_all = False
autodoc_inherit_docstrings = False  # those of torch and Lightning are long, and in another markup
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_preserve_defaults = True
highlight_language = "text"  # of blocks that say nothing: formulas, trees of files
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # fields of classes are text of the class, with no place of their own in the index
python_maximum_signature_line_length = 100
toc_object_entries_show_parents = "hide"

# A name of ours that does not exist is an error. Foreign packages have pages elsewhere, and nothing is fetched.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(torch|torchmetrics|lightning|pytorch_lightning|numpy|datasets|tokenizers|transformers)\..*"),
    ("py:.*", r"(abc|collections|datetime|pathlib)\..*"),
    ("py:.*", r"lightning_ncmtl\.compatibility\..*"),  # Lightning's classes
    ("py:class", r"_\w+|Sampler|Dataset|lightning_ncmtl\.compaction\.Module"),  # torch's own words; type variables
]

# What is fetched only by hand, with `-b linkcheck`
linkcheck_ignore = [r"https://doi\.org/.*"]  # redirects to a publisher that turns robots away

html_theme = "furo"
html_title = project
html_theme_options = {"light_css_variables": {"code-font-size": "76%"}}  # 80 columns fit
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_additional_pages = {"index": "redirect.html"}
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False


def skip_member(app: Sphinx, what: str, name: str, value: object, skip: bool, options: object) -> bool | None:
    """Fields of named tuples have no text of their own but "Alias for field number 0"."""
    return True if type(value).__name__ == "_tuplegetter" else None


def find_short_name(app: Sphinx, env: BuildEnvironment, node: Element, text: TextElement) -> Element | None:
    """``lightning_ncmtl.NCMTL`` and the like are described in their folders."""
    package, _, name = node.get("reftarget", "").rpartition(".")
    if package != "lightning_ncmtl" or name not in lightning_ncmtl.__all__:
        return None
    folder = ".".join(getattr(lightning_ncmtl, name).__module__.split(".")[:2])
    target = f"{folder}.{name}"
    return env.domains["py"].resolve_xref(env, node["refdoc"], app.builder, node["reftype"], target, node, text)


def move_links(app: Sphinx, path: Path, parent: str, content: list[str]) -> None:
    """Links of the README are relative to its folder; pages that include parts of it are one below."""
    content[0] = re.sub(r"\]\((?!https?:|#)", "](../", content[0])


def complete_report(app: Sphinx, page: str, content: list[str]) -> None:
    """What ``ncmtl compare`` wrote gets its folder's name and figures; numbers are not torn from their deviations."""
    report = Path(app.srcdir, page)
    if report.name == "report":
        title = f"# Comparison: {report.parent.name}\n"
        names = [path.stem for path in sorted(report.parent.glob("figures/*.png"))]
        pictures = [f"\n`{name}`\n\n![{name}](figures/{name}.png)\n" for name in names]
        text = content[0].replace("# Comparison\n", title, 1).replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}")
        head, first, *others = text.split("\n## ")
        content[0] = "\n## ".join([head, first, "\n".join(["Figures", *pictures]), *others])


def setup(app: Sphinx) -> None:
    app.connect("source-read", complete_report)
    app.connect("include-read", move_links)
    app.connect("autodoc-skip-member", skip_member)
    app.connect("missing-reference", find_short_name)
