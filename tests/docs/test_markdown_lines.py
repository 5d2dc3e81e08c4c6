"""Lines of the pages are at most 120 characters long; tables and code are exempt."""

from pathlib import Path

import pytest
from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")])


def long_lines(text: str) -> list[int]:
    """Numbers of the lines that are longer than 120 characters, except lines of tables and code."""
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    exempt = {
        number
        for token in tokens
        if token.map and token.type in ("table_open", "code_block", "fence")
        for number in range(*token.map)
    }
    lines = text.splitlines()
    return [number + 1 for number, line in enumerate(lines) if len(line) > 120 and number not in exempt]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_lines_are_at_most_120_characters(page):
    numbers = long_lines(page.read_text(encoding="utf-8"))
    assert not numbers, f"{page.relative_to(ROOT)}: wrap the lines {numbers} at 120 characters"


def test_long_lines_are_counted_outside_tables_and_code():
    long = "word " * 30
    assert long_lines(f"{long}\n\n- short\n  {long}\n") == [1, 4]
    assert not long_lines(f"| a |\n|---|\n| {long} |\n\n    {long}\n\n```\n{long}\n```\n\n{'x' * 120}\n")
