"""The page in a real browser: quiet, within its width, and sorted by clicks."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pages import HOSTILE, make_content

from lightning_ncmtl.callbacks.page.render import render_page

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")
PATIENCE = 120_000  # milliseconds, on a machine that does other things


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        # As root in a container there is no sandbox, and shared memory is small
        arguments = ["--no-sandbox", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments, timeout=PATIENCE)
        yield browser
        browser.close()


@contextmanager
def visit(browser: Any, html: str, folder: Path, **settings: Any) -> Iterator[Any]:
    """A page that was opened from a file; at the end nothing may have been asked for or complained of."""
    file = folder / "report.html"
    file.write_text(html, encoding="utf-8")
    complaints: list[str] = []
    page = browser.new_page(**settings)
    page.set_default_timeout(PATIENCE)
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: complaints.append(request.url))
    page.goto(file.as_uri())
    yield page
    page.close()
    assert [each for each in complaints if not each.startswith("data:")] == [file.as_uri()]


@pytest.mark.parametrize(("count", "groups"), [(4, 2), (29, 2), (200, 6)])
def test_nothing_is_wider_than_the_window(browser: Any, tmp_path: Path, count: int, groups: int) -> None:
    html = render_page(make_content(count, groups, HOSTILE))
    for scheme in ("light", "dark"):
        with visit(browser, html, tmp_path, color_scheme=scheme) as page:
            for width in (390, 1280):
                page.set_viewport_size({"width": width, "height": 844})
                assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            assert page.title() == "NCMTL on the embedded corpus"
            light = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
            assert light == (scheme == "light")


def column(page: Any, place: int) -> list[str]:
    """The values of a column, from above."""
    cells = page.locator(f"table.sortable tbody tr > :nth-child({place + 1})")
    return list(cells.evaluate_all("cells => cells.map(cell => cell.dataset.value)"))


def test_columns_sort_by_a_click_or_a_key(browser: Any, tmp_path: Path) -> None:
    content = make_content(29, 3, HOSTILE)
    values = content.scores["val"]["accuracy"]
    values[3] = float("nan")
    with visit(browser, render_page(content), tmp_path) as page:
        heads, buttons = page.locator("table.sortable thead th"), page.locator("table.sortable thead button")
        assert buttons.count() == heads.count() == 7
        assert heads.nth(1).get_attribute("aria-sort") == "ascending"
        worst = [*sorted(value for value in values if value == value)]
        assert [float(value) for value in column(page, 1)[:-1]] == worst
        buttons.nth(1).click()
        assert heads.nth(1).get_attribute("aria-sort") == "descending"
        assert [float(value) for value in column(page, 1)[:-1]] == worst[::-1]
        assert column(page, 1)[-1] == ""  # what has no value comes last, always
        buttons.nth(3).focus()
        page.keyboard.press("Enter")
        assert heads.nth(1).get_attribute("aria-sort") is None
        assert heads.nth(3).get_attribute("aria-sort") == "ascending"
        clusters = [int(value) for value in column(page, 3)]
        assert clusters == sorted(clusters)
        buttons.nth(0).click()
        fields = [name for name in column(page, 0) if name.startswith("field")]
        assert fields == sorted(fields)
        assert set(column(page, 0)) == set(content.tasks)


def test_without_javascript_the_page_is_whole(browser: Any, tmp_path: Path) -> None:
    with visit(browser, render_page(make_content(4)), tmp_path, java_script_enabled=False) as page:
        assert page.locator("table.sortable tbody tr").count() == 4
        assert page.locator("button").count() == 0
        assert page.locator("h2").count() == 8


def test_texts_and_lines_stand_out(browser: Any, tmp_path: Path) -> None:
    """Contrast of 4.5 for texts, as WCAG 2.1 asks for."""
    script = """() => {
      const parse = (text) => text.match(/[0-9.]+/g).slice(0, 3).map(Number);
      const light = (color) => {
        const [r, g, b] = color.map((each) => each / 255)
          .map((each) => each <= .04045 ? each / 12.92 : ((each + .055) / 1.055) ** 2.4);
        return .2126 * r + .7152 * g + .0722 * b;
      };
      const ground = (element) => {
        for (let each = element; each; each = each.parentElement) {
          const found = getComputedStyle(each).backgroundColor;
          if (found !== "rgba(0, 0, 0, 0)") return parse(found);
        }
        return parse(getComputedStyle(document.body).backgroundColor);
      };
      const texts = "p, dt, dd, small, th, td, .error, summary, pre, h1, h2, h3, svg text";
      return Math.min(...[...document.querySelectorAll(texts)]
        .map((element) => {
          const style = getComputedStyle(element);
          const color = element.closest("svg") ? style.fill : style.color;
          const [a, b] = [light(parse(color)), light(ground(element))].sort((x, y) => y - x);
          return (a + .05) / (b + .05);
        }));
    }"""
    for scheme in ("light", "dark"):
        with visit(browser, render_page(make_content(8, 2)), tmp_path, color_scheme=scheme) as page:
            assert page.evaluate(script) >= 4.5
