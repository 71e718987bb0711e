"""The page about a run that a person looks at: one file of HTML, from plain values."""

from lightning_ncmtl.callbacks.page.content import Best, Content
from lightning_ncmtl.callbacks.page.render import render_page

__all__ = ["Best", "Content", "render_page"]
