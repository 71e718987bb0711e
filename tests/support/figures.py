"""Whether a figure can be read."""

from collections.abc import Sequence
from itertools import combinations

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text


def laid_out(figure: Figure) -> Figure:
    """Places everything as it will be in a PNG: ``savefig`` lays out twice, which may give another result than once."""
    FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    figure.draw_without_rendering()
    return figure


def read(texts: Sequence[Text]) -> list[str]:
    return [text.get_text() for text in texts]


def check_texts(figure: Figure, texts: Sequence[Text]) -> None:
    """Inside the figure, up to a pixel, and not over one another."""
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    for text, box in boxes:
        assert figure.bbox.x0 - 1 <= box.x0 < box.x1 <= figure.bbox.x1 + 1, text
        assert figure.bbox.y0 - 1 <= box.y0 < box.y1 <= figure.bbox.y1 + 1, text
    for (one, box), (other, other_box) in combinations(boxes, 2):
        assert not box.overlaps(other_box), (one, other)
