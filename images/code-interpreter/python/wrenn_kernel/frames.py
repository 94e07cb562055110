"""Converts a pandas DataFrame to columns of JSON values, without its index."""

from .values import VALUES, Converter, Refused, TooLarge, missing, text

# Most cells of a DataFrame that is sent as data.
CELLS = VALUES


def data(frame):
    """Returns the columns by name, and raises TooLarge if there are too many cells."""
    rows, columns = frame.shape
    if rows * columns > CELLS or columns > CELLS:
        raise TooLarge("cells", max(rows * columns, columns), CELLS)
    # Nested values in cells count as well, so the converter gets twice the number of cells.
    converter = Converter(values=2 * CELLS)
    result = {}
    for index, label in enumerate(frame.columns):
        result[_unique(_name(label), result)] = _column(frame.iloc[:, index], converter)
    return result


def _name(label):
    """Returns a column's name. The parts of a name of several levels are joined."""
    if isinstance(label, tuple):
        return " / ".join(_name(part) for part in label)
    if hasattr(label, "isoformat") and not missing(label):
        return label.isoformat()
    return text(str(label))


def _unique(name, taken):
    """Numbers a name that is already taken, as pandas does when it reads a file."""
    unique, number = name, 0
    while unique in taken:
        number += 1
        unique = f"{name}.{number}"
    return unique


def _column(series, converter):
    """Converts a column. A cell that JSON cannot hold becomes its text."""
    import numpy

    # Columns of pandas' own types may hold missing values.
    if isinstance(series.dtype, numpy.dtype) and series.dtype.kind in "biu":
        return series.tolist()
    return [_cell(value, converter) for value in series.tolist()]


def _cell(value, converter):
    """Converts a cell."""
    try:
        return converter.plain(value)
    except Refused:
        converter.path.clear()
        return converter.string(str(value))
