"""What all figures have in common."""

from collections.abc import Sequence

from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

# The ten colours of Petroff, "Accessible Color Sequences for Data Visualization" (2021), the two greys last
COLORS = ["#3f90da", "#ffa90e", "#bd1f01", "#832db6", "#92dadd"]
COLORS += ["#a96b59", "#e76300", "#b9ac70", "#717581", "#94a4a2"]
DPI = 150


def measure_width(texts: Sequence[str], size: float) -> float:
    """Width of the widest text in inches, 0 of none.

    Args:
        texts: Of one line or more each.
        size: Of the font, in points.
    """
    font = FontProperties(size=size)
    lines = [line for text in texts for line in text.split("\n")]
    return max((text_to_path.get_text_width_height_descent(line, font, False)[0] for line in lines), default=0.0) / 72
