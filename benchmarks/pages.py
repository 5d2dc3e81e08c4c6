"""Write the tables of methods in README.md and docs/papers.md from the papers' blocks of facts (`make pages`).

A pair of comments in a page marks the place of a table. The names after the colon select the papers; without names the
table has all of them:

    <!-- short: grpo, prorl -->
    <!-- end of short -->

README.md has the short table of the five main methods, docs/papers.md all methods. The tables are "methods", "short"
(with fewer columns), "objectives" (of configs/objectives/) and "experiments" (text and pictures of
`benchmarks/papers.py`).
"""

import re
import textwrap
from os.path import relpath
from pathlib import Path

from benchmarks.common import markdown_table
from support.errors import ConfigError
from support.papers import ROOT, Paper, all_objectives, all_papers

PAGES = ("README.md", "docs/papers.md")
_MARKED = re.compile(
    r"(<!-- (methods|short|objectives|experiments)(?:: ([\w, ]+))? -->\n).*?(<!-- end of \2 -->)", re.DOTALL
)


def page_of(paper: Paper) -> Path | None:
    """The paper's page, wherever in docs/ it is; None for a method without one.

    Raises:
        ConfigError: for a page that does not exist.
    """
    name = paper.name if paper.page is None else paper.page
    if not name:
        return None
    places = sorted((ROOT / "docs").rglob(f"{name}.md"))
    if not places:
        raise ConfigError(
            f"The block of {paper.name!r} names the page {name!r}, but docs/ has no {name}.md. Write the page."
        )
    return places[0]


def _link(paper: Paper, folder: Path) -> str:
    page = page_of(paper)
    return f"[{paper.title}]({relpath(page, folder)})" if page else paper.title


def _arxiv(paper: Paper) -> str:
    return f"[{paper.arxiv}](https://arxiv.org/abs/{paper.arxiv})" if paper.arxiv else ""


def _code(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _files(configs: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"configs/{name}.yaml" for name in configs)


def methods(papers: list[Paper], folder: Path) -> str:
    """One row per method."""
    rows = [(_link(p, folder), p.idea, _code(p.classes), _code(_files(p.configs)), _arxiv(p), p.effect) for p in papers]
    return (
        markdown_table(("method", "idea", "classes", "configuration", "arXiv", "on a model of 0.8 M weights"), rows)
        + "\n"
    )


def short(papers: list[Paper], folder: Path) -> str:
    """One row per method, in fewer columns."""
    rows = [(f"{_link(p, folder)}: {p.idea}", _code(p.classes[:1]), p.effect) for p in papers]
    return markdown_table(("method", "class", "on a model of 0.8 M weights"), rows) + "\n"


def objectives(papers: list[Paper], folder: Path) -> str:
    """One row per configuration of objectives."""
    rows = [(p.title, p.idea, _code(_files(p.configs[-1:])), _arxiv(p)) for p in papers]
    return markdown_table(("paper", "what it changes", "configuration", "arXiv"), rows) + "\n"


def experiments(papers: list[Paper], folder: Path) -> str:
    """The expected result of each experiment, and the picture of its measured one."""
    shown = []
    for paper in papers:
        picture = ROOT / f"docs/plots/papers/{paper.name}.png"
        if paper.experiment and picture.is_file():
            image = f"![{paper.title}]({relpath(picture, folder)})"
            text = f"{_link(paper, folder)}. Expected: {paper.experiment.expect}"
            lines = textwrap.wrap(text, 120, break_long_words=False, break_on_hyphens=False)
            shown.append("\n".join([*lines, "", image, ""]))
    return "\n".join(["", *shown, ""])


def filled(page: Path) -> str:
    """The text of a page with its tables as the blocks have them now.

    Raises:
        ConfigError: for a table of a paper that has no block.
    """

    tables = {"methods": methods, "short": short, "objectives": objectives, "experiments": experiments}

    def table(marks: re.Match[str]) -> str:
        begin, kind, names, end = marks.groups()
        known = all_objectives() if kind == "objectives" else all_papers()
        wanted = names.split(", ") if names else list(known)
        if unknown := [name for name in wanted if name not in known]:
            raise ConfigError(
                f"{page} asks for a row of {unknown[0]!r}, which has no block. Known are {', '.join(known)}."
            )
        return begin + tables[kind]([known[name] for name in wanted], page.parent) + end

    return _MARKED.sub(table, page.read_text())


def main() -> None:
    """Write all tables."""
    for name in PAGES:
        (ROOT / name).write_text(filled(ROOT / name))


if __name__ == "__main__":
    main()
