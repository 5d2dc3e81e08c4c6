"""The tables of settings on the methods' pages: what they say about classes and configurations is what these give.

Row: | `key` | paper | official code | class | shipped configuration |. The key is spelled as on the command line;
`rewards.HAPO.shape` is an option of a class wherever the configuration uses it. A value is a code span in YAML.
"""

import fnmatch
import re
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import yaml
from jsonargparse import Namespace

from cli.application import CLI
from cli.parameters import imported
from main import main
from support.papers import all_papers
from tests.helpers import ROOT
from tests.helpers.signatures import REQUIRED, constructor_parameters, default_at, is_optimizer, optimizer_of

HEAD = "| setting | paper | official code | class | shipped configuration |"
#: what a cell says in place of a value
REQUIRED_TEXT, UNUSED, NO_CLASS = "required", "not used", "–"
#: configurations that the command line does not run
SCRIPTS = {"r1/3_rejection"}
PAGES = sorted({paper.page or name for name, paper in all_papers().items() if paper.arxiv and paper.page != ""})


@dataclass
class Table:
    """One table of a page.

    Fields:
        configs: names in configs/, without .yaml, in the order of the command line.
        rows: the cells of every row.
        remarks: the text that follows it.
    """

    configs: tuple[str, ...]
    rows: list[list[str]]
    remarks: str


def section(page: str) -> str:
    """The last section of a page."""
    return (ROOT / f"docs/{page}.md").read_text(encoding="utf-8").split("\n## ")[-1]


@cache
def tables(page: str) -> list[Table]:
    """The tables of settings of a page; the configurations stand in the paragraph before each."""
    parts = section(page).split(HEAD)
    results = []
    for before, after in zip(parts, parts[1:], strict=False):
        paragraph = before.strip().split("\n\n")[-1]
        lines = after.strip("\n").split("\n")
        count = next((number for number, line in enumerate(lines) if not line.startswith("|")), len(lines))
        rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines[1:count]]
        configs = tuple(re.findall(r"`configs/([\w/.]+)\.yaml`", paragraph))
        results.append(Table(configs, [[cell.strip() for cell in row] for row in rows], "\n".join(lines[count:])))
    return results


CASES = [pytest.param(page, table, id=f"{page}-{'+'.join(table.configs)}") for page in PAGES for table in tables(page)]


@pytest.fixture(scope="module")
def parsed():
    """Parse configurations by their names, without building anything; each once."""
    results: dict[tuple[str, ...], Namespace] = {}

    def parse(configs: tuple[str, ...]) -> Namespace:
        if configs not in results:
            files = [f"--config={ROOT}/configs/{name}.yaml" for name in configs]
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("PL_GLOBAL_SEED", "0")
                for step in ("before_instantiate_classes", "instantiate_classes", "_run_subcommand"):
                    patch.setattr(CLI, step, lambda self, *arguments: None)
                results[configs] = main(["fit", *files]).config["fit"]
        return results[configs]

    return parse


def spans(cell: str) -> list[Any]:
    """The values in a cell."""
    return [read(text) for text in re.findall(r"`([^`]+)`", cell)]


def read(text: str) -> Any:
    """A value as YAML has it; 1e-6, which YAML takes for a text, is a number."""
    try:
        return float(text) if re.fullmatch(r"-?[\d.]+e-?\d+", text) else yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def plain(value: Any) -> Any:
    """A value in the form in which YAML gives it: an instance as the path of its class."""
    if is_optimizer(value):
        value = optimizer_of(value)
    if isinstance(value, Namespace):
        return value.class_path if "class_path" in value else value.as_dict()
    if isinstance(value, tuple | list):
        return [plain(one) for one in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    owner = type(value)
    package = owner.__module__.partition(".")[0]
    return f"torch.optim.{owner.__name__}" if package == "torch" else f"{package}.{owner.__name__}"


def instances(value: Any, class_path: str) -> list[Namespace]:
    """The parts of a configuration that are of a class."""
    if isinstance(value, Namespace):
        here = [value] if value.get("class_path") == class_path else []
        return here + [one for inner in vars(value).values() for one in instances(inner, class_path)]
    return [one for inner in value for one in instances(inner, class_path)] if isinstance(value, list) else []


def options_at(value: Any, path: list[str]) -> Any:
    """The value at a path; that of a class is in its init_args. None below a part that is off."""
    for step in path:
        if value is None:
            return None
        if isinstance(value, Namespace) and "class_path" in value:
            value = value.get("init_args", Namespace())
        value = value[step] if isinstance(value, dict) else value.get(step)
    return value


def shipped_value(config: Namespace, key: str) -> Any:
    """The value that a configuration gives to a key; UNUSED if it does not use the class that the key names."""
    root, *path = key.split(".")
    if root in ("model", "data", "trainer"):
        return plain(options_at(config[root], path))
    parts = instances(config, f"{root}.{path[0]}")
    values = [plain(options_at(part, path[1:])) for part in parts]
    assert all(value == values[0] for value in values), f"{key} has several values: {values}"
    return values[0] if values else UNUSED


def class_value(config: Namespace, key: str) -> Any:
    """The default of a key's class; NO_CLASS for the trainer's arguments, REQUIRED_TEXT where there is no default."""
    root, *path = key.split(".")
    if root == "trainer":
        return NO_CLASS
    if root in ("model", "data"):
        owner = imported(config[root].class_path)
    else:
        owner = imported(f"{root}.{path.pop(0)}")
    assert path[0] in constructor_parameters(owner), f"{owner.__name__} has no option {path[0]}"
    value = default_at(owner, ".".join(path))
    return REQUIRED_TEXT if value is REQUIRED else plain(value)


def says(cell: str, value: Any) -> bool:
    """Whether a cell begins with a value."""
    if value in (REQUIRED_TEXT, UNUSED, NO_CLASS):
        return cell.startswith(value)
    return cell.startswith("`") and spans(cell)[:1] == [value]


@pytest.mark.parametrize("page", PAGES)
def test_the_settings_are_the_last_section_of_every_papers_page(page):
    assert section(page).startswith("Settings\n"), f"the last section of docs/{page}.md is not Settings"
    papers = [paper for name, paper in all_papers().items() if (paper.page or name) == page and paper.arxiv]
    named = set(re.findall(r"`configs/([\w/.]+)\.yaml`", section(page)))
    assert {config for paper in papers for config in paper.configs} <= named
    assert {config for table in tables(page) for config in table.configs} >= {
        config for paper in papers for config in paper.configs if config not in SCRIPTS
    }


@pytest.mark.parametrize(("page", "table"), CASES)
def test_a_table_states_what_class_and_configuration_give(page, table, parsed):
    config, wrong = parsed(table.configs), []
    for key_cell, _, _, class_cell, shipped_cell in table.rows:
        key = key_cell.strip("`")
        for name, cell, value in (
            ("class", class_cell, class_value(config, key)),
            ("shipped configuration", shipped_cell, shipped_value(config, key)),
        ):
            if not says(cell, value):
                wrong.append(f"docs/{page}.md, {key}: {name} says {cell}, and it is {value!r}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(("page", "table"), CASES)
def test_what_differs_from_the_paper_or_the_class_is_explained(page, table):
    """In the text below the table, by key, or for a configuration in its cell."""
    explained, wrong = re.findall(r"`([\w.*]+)`", table.remarks), []
    for key_cell, paper, code, class_cell, shipped_cell in table.rows:
        key, stated, class_says = key_cell.strip("`"), spans(paper) + spans(code), spans(class_cell)
        is_explained = any(fnmatch.fnmatchcase(key, pattern) for pattern in explained)
        if stated and class_says and class_says[0] not in stated and not is_explained:
            wrong.append(f"{key}: the class has {class_says[0]!r}, and the sources {stated}")
        shipped = re.match(r"(`[^`]+`|not used)(.*)", shipped_cell)
        if shipped and class_says and spans(shipped[1])[:1] != class_says[:1] and not (shipped[2] or is_explained):
            wrong.append(f"{key}: the configuration has {shipped[1]}, and the class {class_says[0]!r}")
    assert not wrong, f"explain in docs/{page}.md:\n" + "\n".join(wrong)


def test_tables_with_mistakes_are_refused(parsed):
    config = parsed(("grpo",))
    assert class_value(config, "model.kl.coefficient") == 0.04 and shipped_value(config, "model.kl.coefficient") == 0
    assert says("`0.04` (k3)", 0.04) and not says("`0.4`", 0.04) and not says("0.04", 0.04)
    assert says("required", class_value(config, "callbacks.ScheduledKL.start"))
    assert says("not used", shipped_value(config, "rewards.HAPO.shape"))
