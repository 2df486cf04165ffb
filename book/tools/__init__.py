"""The book's build system: executed notebooks and the pages of `book/` become the built book.

`build` makes it in three loops, `check` looks at the result, `pages` and `sphinx_ext` say what a
page has beside its text, `pdf` prints the book, `card` draws the picture of link previews.
``make book`` calls this; nothing in `eqr/` knows of it.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BOOK = ROOT / "book"
NOTEBOOKS = ROOT / "notebooks"
