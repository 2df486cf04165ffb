"""Where the book is published: addresses, revision, and copies of the notebooks to open elsewhere.

Serves the line of links under each chapter's title and the footer of every page (page *Release
checklist*). The addresses stand in one place, `[project.urls]` of ``pyproject.toml``; on a build
server its own variables win. Where no address is known, nothing is linked to it.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from eqr import __version__
from eqr.data import PROJECT
from eqr.settings import ConfigError
from eqr.store import commit, git

#: The branch that the workflow `.github/workflows/book.yml` publishes the pages to.
BRANCH = "gh-pages"

INSTALL = """# Fetches the book's package and data at the revision of the page that led here.
import os, subprocess, sys

repository, revision = "{repository}", "{revision}"
folder = os.path.abspath("eqr-book")
if not os.path.isdir(folder):
    for words in (
        ["git", "init", "--quiet", folder],
        ["git", "-C", folder, "fetch", "--quiet", "--depth", "1", repository, revision],
        ["git", "-C", folder, "checkout", "--quiet", "FETCH_HEAD"],
    ):
        subprocess.run(words, check=True)
pip = [sys.executable, "-m", "pip", "install", "--quiet"]
subprocess.run([*pip, "-e", folder + "[book]"], check=True)
sys.path.insert(0, folder)"""


@dataclass(frozen=True, slots=True)
class Site:
    """What is known about where the book and its source are published."""

    repository: str = ""  # "https://github.com/owner/name", empty where none is known
    address: str = ""  # of the published pages, with a slash at its end; empty where none is known
    revision: str = ""  # the full commit; empty outside a git checkout
    commit: str = "unknown"  # short, with + where the working tree has changes
    version: str = __version__

    @property
    def slug(self) -> str:
        """``owner/name`` of a repository on GitHub, which Colab and Binder open; else empty."""
        start = "https://github.com/"
        return self.repository.removeprefix(start) if self.repository.startswith(start) else ""

    def colab(self, name: str) -> str:
        """Address that opens a chapter in Colab; empty where there is no repository."""
        path = f"{self.slug}/blob/{BRANCH}/colab/{quote(name)}.ipynb"
        return f"https://colab.research.google.com/github/{path}" if self.slug else ""

    def binder(self, name: str) -> str:
        """Address that starts a chapter on Binder; empty where there is no repository."""
        if not (self.slug and self.revision):
            return ""
        path = quote(f"notebooks/{name}.ipynb", safe="")
        return f"https://mybinder.org/v2/gh/{self.slug}/{self.revision}?urlpath=lab/tree/{path}"


def of_project(
    environment: Mapping[str, str] | None = None, pyproject: Path = PROJECT / "pyproject.toml"
) -> Site:
    """The site of this project.

    Args:
        environment: None for the process's own. ``GITHUB_REPOSITORY`` (``owner/name``, with
            ``GITHUB_SERVER_URL``) and ``EQR_SITE_URL`` or ``READTHEDOCS_CANONICAL_URL`` win over
            the file.
        pyproject: whose ``[project.urls]`` may have ``Repository`` and ``Homepage``.

    Raises:
        ConfigError: an address is not one; the message names where it stands.
    """
    found = os.environ if environment is None else environment
    urls = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"].get("urls", {})
    repository, where = urls.get("Repository", ""), f"{pyproject}: project.urls.Repository"
    if name := found.get("GITHUB_REPOSITORY"):
        repository = f"{found.get('GITHUB_SERVER_URL') or 'https://github.com'}/{name}"
        where = "GITHUB_REPOSITORY"
    repository = web_address(repository, where).removesuffix("/").removesuffix(".git")
    address = urls.get("Homepage", "")
    for variable in ("READTHEDOCS_CANONICAL_URL", "EQR_SITE_URL"):
        address = found.get(variable) or address
    address = web_address(address, "the site's address (project.urls.Homepage or EQR_SITE_URL)")
    address = address.rstrip("/") + "/" if address else ""
    return Site(repository, address, found.get("GITHUB_SHA") or git("rev-parse", "HEAD"), commit())


def web_address(text: str, where: str) -> str:
    """``text``, which must be empty or begin with https://.

    Raises:
        ConfigError: it does not.
    """
    if text and not text.startswith("https://"):
        raise ConfigError(f"{where}: {text!r} is no address; write https://... or leave it out")
    return text


def colab_copy(notebook: Mapping[str, Any], site: Site) -> dict[str, Any]:
    """A notebook with a first cell that installs the package: Colab reads no lock file.

    Args:
        notebook: as JSON; it is not changed.
        site: must have a repository and a revision.
    """
    code = INSTALL.format(repository=site.repository, revision=site.revision)
    cell = {
        "cell_type": "code",
        "id": "install",
        "metadata": {},
        "execution_count": None,
        "outputs": [],
        "source": code.splitlines(keepends=True),
    }
    return {**notebook, "cells": [cell, *notebook["cells"]]}


def write_notebooks(notebooks: Mapping[str, Path], folder: Path, site: Site) -> None:
    """Put the source notebooks into the pages: ``notebooks/NAME.ipynb``, and ``colab/NAME.ipynb``.

    Args:
        notebooks: name -> the notebook as it is kept, without outputs.
        folder: whose content goes to the root of the pages.
        site: the second kind is written where it has a repository on GitHub.
    """
    for name, path in notebooks.items():
        source = json.loads(path.read_text(encoding="utf-8"))
        copies = {"notebooks": source}
        if site.slug and site.revision:
            copies["colab"] = colab_copy(source, site)
        for below, content in copies.items():
            (folder / below).mkdir(parents=True, exist_ok=True)
            text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
            (folder / below / f"{name}.ipynb").write_text(text, encoding="utf-8")
