"""Where the book is published: addresses, revision, and copies of the notebooks to open elsewhere.

The addresses stand in one place, `[project.urls]` of ``pyproject.toml``; on a build server its own
variables win. Where no address is known, nothing is linked to it. What the pages show of this is
written by :mod:`book.tools.sphinx_ext`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from jinja2 import Template

from book.tools import BOOK, ROOT
from eqr.files import read_json, read_toml
from eqr.settings import ConfigError
from eqr.store import commit, git

#: Where the pages have the whole book as a PDF, when it was printed.
PDF = "eqr-book.pdf"

#: Every claim with its verdict, in the source for the pages to quote and among them to download.
CLAIMS = "claims.json"

#: The branch that the workflow `.github/workflows/book.yml` publishes the pages to.
BRANCH = "gh-pages"


@dataclass(frozen=True, slots=True)
class Site:
    """What is known about where the book and its source are published."""

    repository: str = ""  # "https://github.com/owner/name", empty where none is known
    address: str = ""  # of the published pages, with a slash at its end; empty where none is known
    revision: str = ""  # the full commit; empty outside a git checkout
    commit: str = "unknown"  # short, with + where the working tree has changes

    @property
    def slug(self) -> str:
        """``owner/name`` of a repository on GitHub, which Colab and Binder open; else empty."""
        start = "https://github.com/"
        return self.repository.removeprefix(start) if self.repository.startswith(start) else ""

    def launchers(self, chapter: str) -> dict[str, str]:
        """Label -> address of the places that start a chapter; none without a repository there."""
        if not (self.slug and self.revision):
            return {}
        tree = quote(f"notebooks/{chapter}.ipynb", safe="")
        github = f"{self.slug}/blob/{BRANCH}/colab/{quote(chapter)}.ipynb"
        return {
            "Open in Colab": f"https://colab.research.google.com/github/{github}",
            "Launch in Binder": f"https://mybinder.org/v2/gh/{self.slug}/{self.revision}"
            f"?urlpath=lab/tree/{tree}",
        }


def of_project(
    environment: Mapping[str, str] = os.environ, pyproject: Path = ROOT / "pyproject.toml"
) -> Site:
    """The site of this project; ConfigError where an address is not one.

    Args:
        environment: ``GITHUB_REPOSITORY`` (``owner/name``, with ``GITHUB_SERVER_URL``) and
            ``EQR_SITE_URL`` or ``READTHEDOCS_CANONICAL_URL`` win over the file.
        pyproject: whose ``[project.urls]`` may have ``Repository`` and ``Homepage``.
    """
    urls = read_toml(pyproject)["project"].get("urls", {})
    given = {f"{pyproject}: project.urls.{key}": url for key, url in urls.items()}
    if name := environment.get("GITHUB_REPOSITORY"):
        server = environment.get("GITHUB_SERVER_URL") or "https://github.com"
        urls["Repository"] = given["GITHUB_REPOSITORY"] = f"{server}/{name}"
    for variable in ("READTHEDOCS_CANONICAL_URL", "EQR_SITE_URL"):
        if url := environment.get(variable):
            urls["Homepage"] = given[variable] = url
    for where, url in given.items():
        if not url.startswith("https://"):
            raise ConfigError(f"{where}: {url!r} is no address; write https://... or leave it out")
    repository = urls.get("Repository", "").removesuffix("/").removesuffix(".git")
    address = urls.get("Homepage", "").rstrip("/")
    revision = environment.get("GITHUB_SHA") or git("rev-parse", "HEAD")
    return Site(repository, address and f"{address}/", revision, commit())


def write_notebooks(notebooks: Mapping[str, Path], folder: Path, site: Site) -> None:
    """Put the source notebooks into the pages: ``notebooks/NAME.ipynb``, and ``colab/NAME.ipynb``.

    Args:
        notebooks: name -> the notebook without outputs.
        folder: whose content goes to the root of the pages.
        site: the second kind, with a first cell that installs the package since Colab reads no lock
            file, is written where it has a repository on GitHub.
    """
    text = (BOOK / "_templates/install.py.txt").read_text(encoding="utf-8")
    code = Template(text).render(site=site)
    install = {"cell_type": "code", "id": "install", "metadata": {}, "execution_count": None}
    install |= {"outputs": [], "source": code.splitlines(keepends=True)}
    for name, path in notebooks.items():
        notebook = read_json(path)
        copies = {"notebooks": notebook}
        if site.launchers(name):
            copies["colab"] = {**notebook, "cells": [install, *notebook["cells"]]}
        for below, content in copies.items():
            (folder / below).mkdir(parents=True, exist_ok=True)
            text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
            (folder / below / f"{name}.ipynb").write_text(text, encoding="utf-8")
