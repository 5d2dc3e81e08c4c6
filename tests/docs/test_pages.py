"""The method pages quote code: every quoted line must be in its file, and every link and path must exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
QUOTE = re.compile(r"^\|[^`]*\| `([\w/]+\.py)` \| `(.+)` \|$", re.MULTILINE)
MISSPELT = "configs/gpro.yaml"  # by docs/howto/mistakes.md, on purpose


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_quotes_links_and_configurations_exist(page):
    text = page.read_text()
    for file, line in QUOTE.findall(text):
        assert line in (ROOT / file).read_text(), f"{page.name} quotes {file}: {line}"
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("http") or (page.parent / target).exists(), f"{page.name} links to {target}"
    for path in re.findall(
        r"\b(?:configs|benchmarks|tests|docs|objectives|lightning_modules)/[\w./]+\.(?:py|yaml)\b", text
    ):
        assert (ROOT / path).is_file() or path == MISSPELT, f"{page.name} names {path}"


def test_method_pages_quote_their_formulas():
    for name in ("grpo", "hc_rlhf", "objectives", "adapt_think", "auto_think", "prorl"):
        assert len(QUOTE.findall((ROOT / f"docs/{name}.md").read_text())) >= 6


def test_every_row_of_a_table_of_lines_is_a_quote():
    """A row in another form would be quoted and never compared."""
    tables = re.findall(
        r"^\| part \| where \| the line \|\n\|[-|]+\|\n((?:\|.*\n)+)",
        "\n".join(page.read_text() for page in PAGES),
        re.MULTILINE,
    )
    assert len(tables) >= 17
    assert not [row for table in tables for row in table.splitlines() if not QUOTE.match(row)]


def test_every_fault_names_a_test_that_exists():
    rows = [
        line
        for line in (ROOT / "docs/reliability.md").read_text().splitlines()
        if line.startswith("| ") and not line.endswith("| test |")
    ]
    for row in rows:
        found = re.findall(r"`(tests/[\w/]+\.py)?::(\w+)`", row)
        whole = re.findall(r"`(tests/[\w/]+\.py)`", row)
        assert found or whole, f"no test in: {row}"
        assert all((ROOT / file).is_file() for file in whole), row
        for named, test in found:
            file = named or "tests/rewards/test_failures.py"
            assert f"def {test}(" in (ROOT / file).read_text(), f"docs/reliability.md names {file}::{test}"
