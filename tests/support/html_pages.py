"""What is in a page, as a browser would see it, with Python's own parser."""

from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "link", "br", "img", "input", "hr"}
# What names a document, and so might be fetched
REFERENCES = {"src", "href", "srcset", "action", "data", "poster", "xlink:href", "background"}


class Page(HTMLParser):
    """A page.

    Attributes:
        text: All text, without scripts and styles.
        references: What attributes refer to.
        ids: All ids.
        labels: The ids that attributes of accessibility name.
        headings: Level and text of each heading.
        rows: Text of the cells of each row of the table of tasks.
        tags: All start tags with their attributes.
        unclosed: Tags that were not closed in order.
    """

    def __init__(self, source: str) -> None:
        super().__init__()
        self.text = ""
        self.references: list[str] = []
        self.ids: list[str] = []
        self.labels: list[str] = []
        self.headings: list[tuple[int, str]] = []
        self.rows: list[list[str]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.unclosed: list[str] = []
        self._open: list[str] = []
        self.feed(source)
        self.close()
        self.unclosed += self._open

    @classmethod
    def read(cls, file: Path) -> "Page":
        return cls(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append((tag, given))
        self.references += [value or "" for name, value in attrs if name in REFERENCES]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.labels += [value or "" for name, value in attrs if name == "aria-labelledby"]
        if tag not in VOID:
            self._open.append(tag)
        if tag in ("h1", "h2", "h3", "h4", "h5", "h6"):
            self.headings.append((int(tag[1]), ""))
        if tag == "dd":
            self.text += " "
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        if self._open and self._open[-1] == tag:
            self._open.pop()
        else:
            self.unclosed.append(tag)

    def handle_data(self, data: str) -> None:
        if {"script", "style"}.intersection(self._open):
            return
        self.text += data
        if self._open and self._open[-1] in ("h1", "h2", "h3"):
            level, before = self.headings[-1]
            self.headings[-1] = (level, before + data)
        if {"td", "th"}.intersection(self._open):
            self.rows[-1][-1] += data

    @property
    def words(self) -> str:
        """The text with single spaces."""
        return " ".join(self.text.split())
