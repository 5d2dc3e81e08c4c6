"""Small parts that the benchmarks share: the number of threads, tables in Markdown, scripts with a command line."""

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from support.errors import ConfigError  # noqa: E402
from support.files import atomic_write_text  # noqa: E402


def use_threads() -> None:
    """Set PyTorch's number of threads to OMP_NUM_THREADS, 1 by default."""
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table with a header line, a separator and one line per row."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def write_tables(page: str | Path, mark: str, text: str) -> None:
    """Replace what stands on a page between `<!-- mark -->` and the next `<!-- end of the tables -->`.

    Raises:
        ConfigError: the page lacks the marks.
    """
    begin, end, file = f"<!-- {mark} -->\n", "<!-- end of the tables -->", Path(page)
    before, opened, rest = file.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not (opened and closed):
        raise ConfigError(f"{page} has no line {begin.strip()} before {end}; add both where the tables shall stand.")
    atomic_write_text(file, f"{before}{begin}\n{text.strip()}\n\n{end}{after}")


def run_script(main: Callable[..., Any], as_positional: bool = False) -> None:
    """Run a function with arguments from the command line; a ConfigError is printed and the exit code is 2.

    Args:
        as_positional: whether arguments without a default are given by place instead of by name.
    """
    from jsonargparse import auto_cli

    try:
        auto_cli(main, as_positional=as_positional)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
