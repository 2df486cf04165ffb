"""The pages' prose: what was measured, and how it came out, is quoted from a claim, never typed."""

from __future__ import annotations

import json
import re

import pytest

from book.tools import BOOK, NOTEBOOKS

#: Chapters and pages that are held to it.
RETOLD: tuple[str, ...] = (
    *("settling", "machine", "depth", "breadth", "shaping", "landscape", "budget"),
    *("theory", "index", "proofs", "glossary", "paper_vs_ours", "speed", "fast", "variance_proofs"),
    *("ambiguity", "under_shift", "findings"),
)

#: Code, formulas, links' targets, comments, and blocks whose numbers are worked out by hand.
ASIDE = re.compile(
    r"```.*?```|\$\$.*?\$\$|\$[^$\n]+\$|`[^`]+`|\]\([^)]*\)|<!--.*?-->"
    r"|^:{3,}\{(?:prf:example|prf:definition|by-hand)\}.*?^:{3,}\s*$",
    re.DOTALL | re.MULTILINE,
)
MEASURED = re.compile(r"\d[\d.,]*\s?(?:%|per cent|points?\b|times\b|-?fold\b)", re.IGNORECASE)
OUTCOME = re.compile(
    r"\b(?:twice|thrice|tenfold|wins?|won|beats?|outperforms?|collapses|clearly|dramatically"
    r"|by a wide margin|far (?:better|worse|more)|most of the (?:gain|failures|puzzles))\b",
    re.IGNORECASE,
)


def typed(text: str) -> list[str]:
    """Numbers and outcomes that are typed into prose; a sentence that cites may have the cited."""
    cited = r"[^.\n]*\{cite[^.\n]*(?:\.|$)"
    text = re.sub(cited, " ", ASIDE.sub(" ", re.sub(r"(?<=\d)\.(?=\d)", ",", text)))
    return [m.group() for rule in (MEASURED, OUTCOME) for m in rule.finditer(text)]


def prose(name: str) -> str:
    """The text of a page, or of a chapter's Markdown cells."""
    if (path := BOOK / f"{name}.md").is_file():
        return path.read_text(encoding="utf-8")
    cells = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    return "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")


@pytest.mark.parametrize("name", RETOLD)
def test_prose_quotes_its_numbers(name):
    assert typed(prose(name)) == []


def test_what_is_typed_is_seen():
    assert typed("It solves 67.8 % of them.") == ["67,8 %"]
    assert typed("EqR wins by 3 points and is 2 times as fast.") == ["3 points", "2 times", "wins"]
    assert typed("The paper has 99.8 % {cite}`huang2026eqr`. Ours: {claim}`x`.") == []
    assert typed("With $p = 0.5$ and `0.3 %`:\n:::{prf:example}\n50 % of 4\n:::\n") == []
