"""The pages that help to choose: methods, configurations and rewards that they name exist; terms are used elsewhere."""

import re
from pathlib import Path

import rewards

ROOT = Path(__file__).resolve().parents[2]
CHOOSE, GLOSSARY = (ROOT / "docs/choose.md").read_text(), (ROOT / "docs/glossary.md").read_text()


def rows(text):
    """Cells of the rows of all tables, without headers."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:2] == "| "]
    return [cells for cells in lines if cells[0] not in ("goal", "you have", "term") and set(cells[0]) != {"-"}]


def test_every_row_is_complete_and_what_it_names_exists():
    goals = [cells for cells in rows(CHOOSE) if len(cells) == 4]
    assert len(goals) > 20 and all(all(cells) for cells in rows(CHOOSE))
    assert all("](" in cells[1] or "configs/" in cells[1] for cells in goals), "a method that leads nowhere"
    for path in re.findall(r"\]\(([\w/.]+\.md)\)", CHOOSE):
        assert (ROOT / "docs" / path).is_file(), path
    for path in re.findall(r"`(configs/[\w/.]*)`", CHOOSE):
        assert (ROOT / path).exists(), path
    names = re.findall(r"`rewards\.(\w+)`", CHOOSE) + ["NumericAnswer", "MathAnswer"]
    assert len(names) > 4 and all(name in rewards.__all__ for name in names)


def test_terms_are_in_order_and_used_elsewhere():
    terms = [cells[0] for cells in rows(GLOSSARY)]
    assert terms == sorted(terms, key=str.lower) and len(set(terms)) == len(terms) > 25
    others = " ".join(path.read_text() for path in (ROOT / "docs").rglob("*.md") if path.name != "glossary.md")
    others += " ".join(path.read_text() for path in (ROOT / "lightning_modules/core").glob("*.py"))
    words = " ".join((others + (ROOT / "README.md").read_text()).replace("_", " ").split()).lower()
    missing = [term for term in terms if term.lower() not in words]
    assert not missing, missing
