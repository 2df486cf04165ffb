"""``eqr serve``: the built book on this machine, and how heavy its pages are."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from eqr.cli.console import Json, emit, fail, say


def serve_command(
    profile: Annotated[
        str | None, typer.Option(help="Whose pages; without it, the ones built last.")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    out: Annotated[Path, typer.Option(help="Where the book was built.")] = Path("build"),
    report: Annotated[
        bool, typer.Option("--report", help="Print how heavy each page is, and serve nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Serve the built book on this machine, until Ctrl-C.

    Example: eqr serve --profile smoke --port 8080
    """
    from eqr.book import BookError
    from eqr.serve import address, built, first_loads, server, total

    pages = built(profile, out)
    if report:
        try:
            loads = first_loads(pages, say)
        except BookError as error:
            fail(error)
        size = total(pages)
        if as_json:
            emit({"bytes": size, "pages": [asdict(load) for load in loads]})
            return
        for load in sorted(loads, key=lambda load: -load.bytes):
            print(f"{load.bytes / 1e6:8.2f} MB  {load.requests:3d} requests  {load.page}")
        print(f"{size / 1e6:8.2f} MB  in all, {len(loads)} pages, in {pages}")
        return
    with server(pages, port) as found:
        if as_json:
            emit({"address": address(found)})
        else:
            print(address(found), flush=True)
        say(f"{pages}; Ctrl-C ends it")
        try:
            found.serve_forever()
        except KeyboardInterrupt:
            say("")
