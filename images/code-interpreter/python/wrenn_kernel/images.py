"""Displays Pillow's images where a program shows or saves them.

`image.show()` starts no viewer but displays a PNG. `image.save(path)` displays the image too.
"""

import functools
import os
import sys

from .on_import import call, when_loaded

# Most images that saves display in one cell, so that a loop does not fill the stream.
SAVES = 64
# Most pixels of an image that a save displays.
PIXELS = 32_000_000


class _Saves:
    """Counts the images that the saves of one cell have displayed."""

    def __init__(self, shell):
        self.shell = shell
        self.cell = None
        self.count = 0

    def admit(self):
        """Counts an image, and tells if the cell may display it."""
        if self.cell != self.shell.execution_count:
            self.cell, self.count = self.shell.execution_count, 0
        self.count += 1
        return self.count <= SAVES


def install(shell):
    """Changes Pillow's `show` and `save` as soon as a program loads it."""
    saves = _Saves(shell)
    when_loaded("PIL.Image", lambda module: _change_save(module.Image, saves))
    when_loaded("PIL.ImageShow", _add_viewer)


def _display(image):
    """Displays an image in the cell."""
    from IPython.display import display

    display(image)


def _add_viewer(module):
    """Puts a viewer that displays images before those that start programs."""

    class CellViewer(module.Viewer):
        """Displays images in the cell."""

        def show(self, image, **options):
            # A viewer that returns 0 leaves the image to the next one.
            return int(call(_display, image))

    if not any(type(viewer).__name__ == "CellViewer" for viewer in module._viewers):
        module.register(CellViewer(), 0)


def _change_save(image_class, saves):
    """Wraps `Image.save` so that a save to a path displays the image."""
    original = image_class.save
    if getattr(original, "_displays", False):
        return

    @functools.wraps(original)
    def save(self, fp, format=None, **params):
        result = original(self, fp, format, **params)
        if isinstance(fp, (str, os.PathLike)) and not _by_matplotlib(sys._getframe(1)):
            call(_display_saved, self, saves)
        return result

    save._displays = True
    image_class.save = save


def _by_matplotlib(frame):
    """Tells a save of a figure, which the inline backend displays itself."""
    return frame.f_globals.get("__name__", "").partition(".")[0] == "matplotlib"


def _display_saved(image, saves):
    """Displays a saved image, if it is not too large and the cell has not displayed too many."""
    if image.width * image.height <= PIXELS and saves.admit():
        _display(image)
