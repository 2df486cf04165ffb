"""Each check of the built pages must be seen to fail on bad input, and to pass on good."""

from __future__ import annotations

from pathlib import Path

import pytest

from book.tools import check

GOOD = """<!doctype html><html><head>
<link rel="stylesheet" href="_static/a.css?v=1"><link rel="canonical" href="https://eqr.org/">
<script src="_static/a.js"></script><style>b {{ background: url(_static/b.png) }}</style>
</head><body><h1 id="top-of-page">A page</h1>
<a href="https://arxiv.org">elsewhere</a> <a href="sub/other.html#there">other</a>
<a href="mailto:a@b.c">mail</a> <a href="#top-of-page">here</a> <a href="#">top</a>
<img src="_static/b.png" alt="A curve that falls">
{extra}
</body></html>"""


def site(root: Path, extra: str = "", css: str = "") -> Path:
    """A book of two pages, sound but for `extra` in its first page and `css`."""
    (root / "sub").mkdir(parents=True)
    (root / "_static").mkdir()
    (root / "index.html").write_text(GOOD.format(extra=extra))
    (root / "sub/other.html").write_text("<h1 id='there'>x</h1><a href='../index.html'>up</a>")
    (root / "_static/template.html").write_text("<a href='{{ not_a_page }}'>")
    (root / "_static/a.css").write_text("/* url(https://x.y/z) */ a { color: red }" + css)
    for name in ("a.js", "b.png"):
        (root / "_static" / name).write_text("")
    return root


def faults(root: Path) -> str:
    """The message of `check_html` on a bad book."""
    with pytest.raises(check.BookError) as caught:
        check.check_html(root)
    assert len(caught.value.problems) == 1, "one fault was planted"
    return caught.value.problems[0]


def test_sound_pages_pass(tmp_path: Path) -> None:
    check.check_html(site(tmp_path / "html"))


CDN, ALT = "external request: ", "image without alt text: _static/b.png"


@pytest.mark.parametrize(
    ("extra", "fault"),
    [
        ('<script src="https://cdn.x/a.js"></script>', CDN + "https://cdn.x/a.js"),
        ('<script src="//cdn.x/a.js"></script>', CDN + "//cdn.x/a.js"),
        ('<link rel="stylesheet" href="https://cdn.x/a.css">', CDN + "https://cdn.x/a.css"),
        ('<link rel="preload" as="font" href="https://cdn.x/a">', CDN + "https://cdn.x/a"),
        ('<link rel="preconnect" href="https://cdn.x">', CDN + "https://cdn.x"),
        ('<img src="https://cdn.x/a.png" alt="A curve">', CDN + "https://cdn.x/a.png"),
        ('<img src="_static/b.png" srcset="//cdn.x/a 2x" alt="A curve">', CDN + "//cdn.x/a"),
        ('<iframe src="https://cdn.x/"></iframe>', CDN + "https://cdn.x/"),
        ('<div style="background: url(https://cdn.x/a.png)"></div>', CDN + "https://cdn.x/a.png"),
        ("<style>@import 'https://cdn.x/a.css';</style>", CDN + "https://cdn.x/a.css"),
        ("<style>@font-face { src: url( 'https://cdn.x/a' ) }</style>", CDN + "https://cdn.x/a"),
        ('<script type="module">import x from "//cdn.x/a.js"</script>', CDN + "//cdn.x/a.js"),
        ('<script>s.src = "https://cdn.x/a.js"</script>', CDN + "https://cdn.x/a.js"),
        ('<img src="_static/b.png">', ALT),
        ('<img src="_static/b.png" alt=" ">', ALT),
        ('<img src="_static/b.png" alt="_static/b.png">', ALT),  # docutils' stopgap
        ('<img src="_static/b.png" alt="b.png">', ALT),
        ('<div class="output traceback highlight-ipythontb">ValueError</div>', "error output"),
        ('<div class="cell_output">Traceback (most recent call last)</div>', "error output"),
        ('<script src="_static/gone.js"></script>', "broken link: _static/gone.js"),
        ('<a href="gone.html">x</a>', "broken link: gone.html"),
        ('<a href="../outside.html">x</a>', "broken link: ../outside.html"),
        ('<a href="sub/">x</a>', "broken link: sub/"),  # no index.html there
        ('<a href="/a">x</a>', "link from the server's root, which breaks below a folder: /a"),
        ('<a href="#gone">x</a>', "no such anchor: #gone"),
        ('<a href="sub/other.html#gone">x</a>', "no such anchor: sub/other.html#gone"),
    ],
)
def test_each_kind_of_fault_is_seen(tmp_path: Path, extra: str, fault: str) -> None:
    assert faults(site(tmp_path / "html", extra)) == f"index.html: {fault}"


def test_external_request_of_a_style_sheet_is_seen(tmp_path: Path) -> None:
    root = site(tmp_path / "html", css="@import url(https://fonts.x/css);")
    assert faults(root) == "_static/a.css: external request: https://fonts.x/css"


def test_prose_may_speak_of_tracebacks(tmp_path: Path) -> None:
    check.check_html(site(tmp_path / "html", "<p>It says Traceback (most recent call last).</p>"))


def test_empty_folder_is_not_a_book(tmp_path: Path) -> None:
    with pytest.raises(check.BookError, match="no page"):
        check.check_html(tmp_path)


def test_long_lists_of_problems_are_cut() -> None:
    error = check.BookError("Bad:", [f"p{i}" for i in range(100)])
    assert len(error.problems) == 100
    assert str(error).count("\n") < 40 and str(error).endswith("... and 70 more")
