"""Reads the wedges of a pie."""

from ..values import number, text


def elements(ax, wedges):
    """Returns the wedges in their order."""
    names = _legend(ax, len(wedges))
    return [_wedge(wedge, names, index) for index, wedge in enumerate(wedges)]


def _wedge(wedge, names, index):
    """Returns a wedge. matplotlib computes angles of pies in single precision, hence six digits."""
    label = str(wedge.get_label() or "")
    if not label or label.startswith("_"):
        label = names[index] if names else f"Group {index}"
    angle = float(f"{abs(wedge.theta2 - wedge.theta1):.6g}")
    return {"label": text(label), "angle": number(angle), "radius": number(wedge.r)}


def _legend(ax, count):
    """Returns the legend's names if it has one for each wedge."""
    legend = ax.get_legend()
    names = [words.get_text() for words in legend.get_texts()] if legend is not None else []
    return names if len(names) == count else []
