"""One block of facts per paper: what lists papers is made from the blocks, and they agree with the files they name."""

import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.pages import PAGES, filled, page_of
from lightning_posttrain import SIBLINGS
from support.errors import ConfigError
from support.papers import ROOMS, ROOT, Paper, all_objectives, all_papers, blocks, by_publication, flags, objective

FILES = [file for room in ROOMS for file in sorted((ROOT / room).rglob("*.py")) if blocks(file)]
NEW = '''"""A reward."""

PAPER = Paper(
    name="new_paper",
    title="NewPaper",
    arxiv="1601.00001",
    idea="a reward for novelty",
    classes=("rewards.New",),
    configs=("new_paper",),
    effect="0.1 → 0.9",
    comparison={"model.rewards": [{"class_path": "rewards.New"}], "model.batch.refill": 1},
)
'''


@pytest.mark.parametrize("page", PAGES)
def test_the_tables_of_a_page_are_those_of_the_blocks(page):
    assert filled(ROOT / page) == (ROOT / page).read_text(), f"{page} is not up to date. Run make pages."


def test_the_readme_lists_the_five_main_methods_and_links_to_the_table_of_all():
    readme, papers = ((ROOT / page).read_text() for page in PAGES)
    rows = re.findall(r"^\| \[([\w-]+)\]\(docs/\w+\.md\): ", readme, re.MULTILINE)
    assert rows == ["GRPO", "HC-RLHF", "AdaptThink", "AutoThink", "ProRL"]
    assert readme.count("](docs/papers.md)") == 1
    assert all(f"| [{paper.title}](" in papers or f"| {paper.title} |" in papers for paper in all_papers().values())


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_block_that_is_read_equals_the_one_that_is_imported(file):
    module = importlib.import_module(".".join(file.relative_to(ROOT).with_suffix("").parts))
    assert [value for value in vars(module).values() if isinstance(value, Paper)] == blocks(file)
    assert len(FILES) >= 20


@pytest.mark.parametrize("paper", all_papers().values(), ids=lambda paper: paper.name)
def test_a_block_agrees_with_class_configuration_and_page(paper):
    for path in paper.classes:
        package, _, name = path.rpartition(".")
        assert name in importlib.import_module(package).__all__, f"{path} is not a public name"
    texts = {f"configs/{name}.yaml": (ROOT / f"configs/{name}.yaml").read_text() for name in paper.configs}
    if paper.arxiv and not paper.name == "r1":
        (file,) = [file for file in FILES if paper in blocks(file)]
        assert f"arXiv {paper.arxiv}" in file.read_text().partition('"""')[2].partition('"""')[0], file
        assert any(f"arXiv {paper.arxiv}" in text for text in texts.values()), f"none of {list(texts)} has its number"
    if page := page_of(paper):
        assert paper.arxiv in page.read_text(), page


def test_objectives_are_the_first_comments_of_their_configurations():
    gspo = all_objectives()["gspo"]
    assert (gspo.title, gspo.arxiv, gspo.configs) == ("GSPO", "2507.18071", ("grpo", "objectives/gspo"))
    assert all_objectives()["cispo"].arxiv == "2506.13585", "not the number of the paper that is mentioned later"
    assert all_objectives()["grpo"].idea.endswith("0.04 k3 in the loss"), "a point inside a number ends no sentence"


def test_the_comparison_lists_its_methods_without_heavy_imports():
    heavy = "{'torch', 'lightning', 'transformers'}"
    code = f"import sys, benchmarks.compare.methods; print(sorted({heavy} & {{*sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_new_paper_is_listed_everywhere_by_its_own_files(tmp_path):
    """Only a file with a block, a configuration and a page are added; tables, comparison and site know the paper."""
    for name in ("support", "benchmarks", "lightning_modules", "configs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "lightning_posttrain.py", tmp_path)
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("plots"))
    (tmp_path / "README.md").write_text("<!-- methods -->\n<!-- end of methods -->\n")
    for name in SIBLINGS.keys() - {"support", "benchmarks", "lightning_modules", "rewards"}:
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "rewards").mkdir()
    (tmp_path / "rewards/__init__.py").touch()
    (tmp_path / "rewards/new_paper.py").write_text(NEW)
    (tmp_path / "configs/new_paper.yaml").write_text("# NewPaper (arXiv 1601.00001).\n")
    (tmp_path / "docs/new_paper.md").write_text("# NewPaper\n")
    code = (
        "import benchmarks.pages, runpy; benchmarks.pages.main()\n"
        "from benchmarks.compare.methods import METHODS, arguments\n"
        "print(*arguments(METHODS['new_paper'], 0, 9)[:4], sep='\\n')\n"
        "print(runpy.run_path('docs/conf.py')['CONTENTS']['Methods'][:2])\n"
    )
    command, environment = [sys.executable, "-c", code], {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "--config=configs/new_paper.yaml",
        "--config=configs/compare.yaml",
        '--model.rewards=[{"class_path": "rewards.New"}]',
        "--model.batch.refill=1",
        "['docs/papers', 'docs/new_paper']",
    ]
    row = "| [NewPaper](docs/new_paper.md) | a reward for novelty | `rewards.New` | `configs/new_paper.yaml` |"
    assert row in (tmp_path / "README.md").read_text().splitlines()[3], "the first by publication"
    assert row.replace("docs/", "") in (tmp_path / "docs/papers.md").read_text()


@pytest.mark.parametrize(
    "mistake, message",
    [
        ('effect="0.1 → 0.9"', "effect=f'{0.1} → 0.9'"),
        ('title="NewPaper"', 'name_of_paper="NewPaper"'),
        ('title="NewPaper"', 'title=NAMES["new"]'),
        ('comparison={', 'comparison=dict({'),
    ],
)  # fmt: skip
def test_a_block_that_cannot_be_read_is_named(mistake, message, tmp_path):
    text = NEW.replace(mistake, message)
    (tmp_path / "bad.py").write_text(text.replace("1},\n)", "1}),\n)") if "dict(" in message else text)
    with pytest.raises(ConfigError, match=r"bad\.py:3 cannot be read .*literal value"):
        blocks(tmp_path / "bad.py")


def test_other_mistakes_are_named(tmp_path):
    one = Paper(name="same", title="A", idea="", configs=())
    two = Paper(name="same", title="B", idea="", configs=())
    with pytest.raises(ConfigError, match="Two Paper blocks have the name 'same'"):
        by_publication([one, two])
    with pytest.raises(ConfigError, match=r"'same' names the page 'same', but docs/ has no same\.md"):
        page_of(one)
    (tmp_path / "head.yaml").write_text("# An overlay without a colon.\nmodel: {}\n")
    with pytest.raises(ConfigError, match=r"head\.yaml does not say which paper it configures"):
        objective(tmp_path / "head.yaml")
    (tmp_path / "page.md").write_text("<!-- short: grpo, grop -->\n<!-- end of short -->\n")
    with pytest.raises(ConfigError, match="asks for a row of 'grop', which has no block"):
        filled(tmp_path / "page.md")


def test_settings_become_arguments_that_yaml_reads_back():
    settings = {"a.b": "none", "c": [{"d": 1e-4}], "e": True, "f": -1}
    assert flags(settings) == ["--a.b=none", '--c=[{"d": 0.0001}]', "--e=true", "--f=-1"]


def test_every_page_of_a_method_is_in_the_table():
    """A page that no block names would be missing in docs/papers.md and in the methods of the site."""
    pages = {page_of(paper) for paper in [*all_papers().values(), *all_objectives().values()]} - {None}
    quotes = re.compile(r"^\| part \| where \| the line \|$", re.MULTILINE)
    methods = {page for page in Path(ROOT / "docs").rglob("*.md") if quotes.search(page.read_text())}
    assert len(methods) >= 17 and not methods - pages
