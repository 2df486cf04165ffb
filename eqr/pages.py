"""What each page of the book gets when the book is assembled.

A chapter: a line of links under its title, and at its end how its numbers were made (page *How
this project is built*). Every page: version and commit in its footer. What a chapter read is noted
while it runs, in its own metadata (:func:`eqr.runner.execute`); nothing is guessed here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import yaml

from eqr.site import Site, write_notebooks

#: Where the pages have the whole book as a PDF, when it was printed.
PDF = "eqr-book.pdf"

#: A folder of the source tree whose content goes to the root of the pages.
EXTRA = "_extra"

SHOWN = 12  # runs named in a footer's line; the rest are counted


def links(name: str, site: Site) -> str:
    """The line under a chapter's title, as HTML: the notebook, and where it can be started."""
    found = [(f"../notebooks/{name}.ipynb", "Download this notebook", " download")]
    for address, label in (
        (site.colab(name), "Open in Colab"),
        (site.binder(name), "Launch in Binder"),
    ):
        if address:
            found.append((address, label, ""))
    items = "".join(
        f'<li><a href="{escape(address)}"{more}>{label}</a></li>' for address, label, more in found
    )
    return f'<ul class="eqr-launch" aria-label="This chapter as a notebook">{items}</ul>'


def command(name: str, parameters: Mapping[str, Any]) -> str:
    """The command that executes a chapter again.

    >>> command("plan", {"profile": "smoke", "seed": 0})
    'eqr notebook notebooks/plan.ipynb build/plan.ipynb -p profile=smoke -p seed=0'
    """
    given = "".join(f" -p {key}={value}" for key, value in parameters.items())
    return f"eqr notebook notebooks/{name}.ipynb build/{name}.ipynb{given}"


def origin(name: str, metadata: Mapping[str, Any]) -> str:
    """How a chapter's numbers were made, as MyST; empty where its notebook does not say.

    Args:
        name: of the chapter.
        metadata: of the executed notebook: ``papermill`` (parameters, start, duration) and
            ``eqr`` (runs read, commit, versions, hardware), as ``eqr.runner.execute`` leaves them.
    """
    papermill, noted = metadata.get("papermill", {}), metadata.get("eqr")
    if not noted:
        return ""
    parameters = papermill.get("parameters", {})
    versions, runs = noted["versions"], noted["runs"]
    when = (papermill.get("start_time") or "")[:16].replace("T", " ")
    took = papermill.get("duration")
    data = sorted({run["data"] for run in runs if run.get("data")})
    facts = [(key.capitalize(), f"`{value}`") for key, value in parameters.items()]
    facts += [
        ("Executed", f"{when} UTC, in {took:.0f} s" if when and took is not None else ""),
        ("Commit", f"`{noted['commit']}`"),
        ("Package", f"eqr-book {versions['eqr-book']}" if "eqr-book" in versions else ""),
        (
            "Versions",
            ", ".join(
                f"{label} {versions[key]}"
                for key, label in (("python", "Python"), ("torch", "torch"), ("numpy", "NumPy"))
                if key in versions
            ),
        ),
        (
            "Machine",
            f"{noted['hardware']}, {noted['threads']} thread{'s' * (noted['threads'] != 1)}",
        ),
        ("Data", named(data)),
        ("Runs read", named([run["id"] for run in runs]) if runs else "none: it computes all"),
    ]
    rows = "\n".join(f"* - {key}\n  - {value}" for key, value in facts if value)
    return f"""````{{dropdown}} How the numbers on this page were made
:class-container: eqr-origin

This executes the chapter again, with the same parameters:

```console
$ {command(name, parameters)}
```

```{{list-table}}
:stub-columns: 1

{rows}
```

`eqr results show RUN` prints what a run was made from: see [](../rerun.md).
````"""


def named(items: Sequence[str]) -> str:
    """Names in code style, the first dozen of them; the rest are counted."""
    shown = " ".join(f"`{item}`" for item in items[:SHOWN])
    return shown + (f" and {len(items) - SHOWN} more" if len(items) > SHOWN else "")


def dressed(notebook: Mapping[str, Any], name: str, site: Site) -> dict[str, Any]:
    """An executed chapter with its line of links and its footer; the notebook is not changed."""
    cells = [dict(cell) for cell in notebook["cells"]]
    if cells and cells[0]["cell_type"] == "markdown":
        title, _, rest = "".join(cells[0]["source"]).partition("\n")
        if title.startswith("# "):
            text = f"{title}\n\n{links(name, site)}\n{rest}"
            cells[0]["source"] = text.splitlines(keepends=True)
    if text := origin(name, notebook.get("metadata", {})):
        source = text.splitlines(keepends=True)
        cells.append({"cell_type": "markdown", "id": "origin", "metadata": {}, "source": source})
    return {**notebook, "cells": cells}


def dress(source: Path, notebooks: Mapping[str, Path], site: Site, *, pdf: bool = False) -> None:
    """Finish a source tree that :func:`eqr.book.assemble` has made.

    Args:
        source: the tree, with executed chapters below ``chapters/``.
        notebooks: name -> the notebook as it is kept, for the chapters.
        site: where the book is published.
        pdf: whether the pages will have the whole book as a PDF.
    """
    for name in notebooks:
        path = source / "chapters" / f"{name}.ipynb"
        chapter = dressed(json.loads(path.read_text(encoding="utf-8")), name, site)
        path.write_text(json.dumps(chapter, indent=1), encoding="utf-8")
    write_notebooks(notebooks, source / EXTRA, site)
    # Pages served by GitHub would otherwise lose every folder whose name begins with _.
    (source / EXTRA / ".nojekyll").touch()
    path = source / "_config.yml"
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    config["html"]["extra_footer"] += stamp(site, pdf)
    options = config["sphinx"]["config"]
    options["html_extra_path"] = [*options.get("html_extra_path", []), EXTRA]
    options["html_baseurl"] = site.address
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")


def stamp(site: Site, pdf: bool) -> str:
    """Version, commit and repository for the footer of a page, as HTML."""
    text = f"eqr-book {escape(site.version)}, commit {escape(site.commit)}"
    parts = [text]
    if site.repository:
        parts.append(f'<a href="{escape(site.repository)}">Source</a>')
    if pdf:
        # The footer is the same on every page; eqr.sphinx_pages makes the link relative.
        parts.append(f'<a class="eqr-screen" href="PAGES_ROOT{PDF}">The whole book as PDF</a>')
    return f'<p class="eqr-stamp">{" · ".join(parts)}</p>\n'
