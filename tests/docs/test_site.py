"""The site's build refuses broken links, tested on a page with mistakes; `make docs` builds the real pages."""

import importlib
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    "lightning_modules", "datamodules", "environments", "rewards", "callbacks", "objectives", "policies", "rollouts",
)  # fmt: skip

MISTAKES = {
    "[a page](docs/absent.md)": "cross-reference target not found: 'docs/absent.md'",
    "[a heading](docs/other.md#absent)": "local id not found in doc 'docs/other': 'absent'",
    "![a picture](docs/plots/absent.png)": "image file not readable: docs/plots/absent.png",
    r"$\unheard{x}$": "a formula that cannot be drawn",
    "```{eval-rst}\n:py:class:`objectives.Absent`\n```": "py:class reference target not found: objectives.Absent",
}
GOOD = (
    "# Front\n\n[a page](docs/other.md) [a heading](docs/other.md#there) "
    "$\\frac{1}{2} < \\texttt{</think>}$\n\n$$\\sum_i x_i$$\n"
)


def build(folder, text):
    (folder / "docs").mkdir()
    (folder / "README.md").write_text(text)
    (folder / "docs/other.md").write_text("# Other\n\n## There\n")
    for name in ("docs/howto/a", "docs/reference/a"):
        (folder / name).parent.mkdir()
        (folder / f"{name}.md").write_text("# A\n")
    command = [sys.executable, "-m", "sphinx", "-q", "-c", str(ROOT / "docs"), str(folder), str(folder / "site")]
    return subprocess.run(command, capture_output=True, text=True, check=True).stderr


def test_what_leads_nowhere_is_reported_and_what_leads_somewhere_is_not(tmp_path):
    pytest.importorskip("sphinx")
    told = build(tmp_path, GOOD + "\n\n".join(MISTAKES))
    # The contents name pages that only the real site has.
    told = [line for line in told.splitlines() if "toctree" not in line]
    assert len(told) == len(MISTAKES), told
    for mistake, words in MISTAKES.items():
        assert any(words in line for line in told), (mistake, told)
    page = (tmp_path / "site/README.html").read_text()
    assert "<mfrac><mrow><mn>1</mn></mrow><mrow><mn>2</mn></mrow></mfrac>" in page and "&lt;/think>" in page.replace(
        "&gt;", ">"
    )
    assert "MathJax" not in page and not re.search(r"<script[^>]+src=\"(?:https?:)?//", page)


def test_every_page_is_in_exactly_one_group_of_the_contents():
    contents = runpy.run_path(str(ROOT / "docs/conf.py"))["CONTENTS"]
    assert list(contents)[:3] == ["Methods", "How to", "Background"]
    listed = [
        str(page.relative_to(ROOT)) for group in contents.values() for name in group for page in ROOT.glob(f"{name}.md")
    ]
    pages = {str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md")}
    others = {"CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "examples/home/README.md", "examples/methods/README.md"}
    assert sorted(listed) == sorted(pages | others)
    assert "docs/objectives" in contents["Background"] and "docs/hc_rlhf" in contents["Methods"]


def test_every_public_name_is_described():
    """The reference takes its text from docstrings, so a name without one would be missing there."""
    for package in PACKAGES:
        assert f".. automodule:: {package}\n" in (ROOT / f"docs/reference/{package}.md").read_text()
        module = importlib.import_module(package)
        for name in module.__all__:
            described = getattr(module, name)
            if isinstance(described, type) or callable(described):
                assert (described.__doc__ or "").strip(), f"{package}.{name} has no docstring"


@pytest.mark.parametrize(
    "page", sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]), ids=lambda page: page.name
)
def test_addresses_are_well_formed(page):
    for target in re.findall(r"\]\((https?:[^)]*)\)", page.read_text()):
        assert re.fullmatch(r"https?://[\w.-]+\.[a-z]{2,}(?:[/?#][^\s<>\"]*)?", target), (
            f"{page.name} links to {target}"
        )
