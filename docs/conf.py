"""The site: README.md as its front page, the pages of docs/, and a reference from the docstrings.

    make docs      # build/docs/index.html; a link, an anchor, a picture or a name that leads nowhere is an error

Everything is on the built pages: formulas become MathML, which browsers draw by themselves, so that no script is
fetched from anywhere.
"""

import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util import logging

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = (
    "lightning_modules", "datamodules", "environments", "rewards", "callbacks", "objectives", "policies", "rollouts",
    "support",
)  # fmt: skip
sys.path.insert(0, str(ROOT))
from benchmarks.pages import page_of  # noqa: E402
from support.papers import all_papers  # noqa: E402

project = "Lightning Posttrain"
author = "its contributors"
root_doc = "README"
include_patterns = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "docs/**", "examples/*/README.md"]
exclude_patterns = [path.name for path in ROOT.iterdir() if path.is_dir() and path.name not in ("docs", "examples")]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
myst_dmath_double_inline = True

autodoc_inherit_docstrings = False  # Lightning's own hooks are described by Lightning
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_custom_sections = [("Fields", "params_style")]
add_module_names = False
maximum_signature_line_length = 100
nitpicky = True
nitpick_ignore_regex = [(r"py:.*", rf"(?!({'|'.join(PACKAGES)})\.).*")]  # names of other projects lead nowhere offline
# Bases and types of public classes that have no page of their own.
nitpick_ignore = [
    ("py:class", "lightning_modules.core.choice_module.ChoiceModule"),
    ("py:class", "lightning_modules.core.critic.CriticMethod"),
    ("py:class", "lightning_modules.core.policy_update.ValueTerm"),
    ("py:class", "lightning_modules.hc_rlhf.safety_phase.SafetyTestPhase"),
    ("py:class", "objectives.advantages.JudgedAdvantage"),
    ("py:class", "policies.quantization.frames.Frame"),
    ("py:class", "policies.quantization.grids.Scales"),
    ("py:class", "policies.recurrent.model.RecurrentForCausalLM"),
    ("py:class", "policies.recurrent.model.RecurrentModel"),
    ("py:class", "policies.recurrent.rodimus.RodimusModel"),
    ("py:class", "policies.recurrent.rodimus.RodimusPreTrained"),
    ("py:class", "policies.recurrent.rwkv6.RWKV6Model"),
    ("py:class", "policies.recurrent.rwkv6.RWKV6PreTrained"),
    ("py:class", "rewards.judge.T"),
    ("py:class", "rollouts.request_engine.RequestEngine"),
    ("py:class", "rollouts.transformers_engine.Way"),
    ("py:class", "support.seen_prompts.SeenPrompts"),
]

html_theme = "furo"
html_title = project
html_copy_source = False
html_static_path = ["site/static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
templates_path = ["site"]
html_additional_pages = {"index": "front.html"}


def _names(pages: Iterable[Path]) -> list[str]:
    """Names of pages as Sphinx writes them, each once: docs/grpo for docs/grpo.md."""
    return [*dict.fromkeys(str(page.relative_to(ROOT).with_suffix("")) for page in pages)]


#: The three groups of docs/, then the reference and the pages about the project. A page is in exactly one of them.
METHODS = ["docs/papers", *_names(page for paper in all_papers().values() if (page := page_of(paper)))]
PROJECT = ["CONTRIBUTING", "SECURITY", "CHANGELOG", "docs/releasing"]
CONTENTS = {
    "Methods": METHODS,
    "How to": ["docs/howto/*", "examples/home/README", "examples/methods/README"],
    "Background": [
        page
        for page in _names([*sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs/background").glob("*.md"))])
        if page not in [*METHODS, *PROJECT]
    ],
    "Reference": ["docs/reference/*"],
    "Project": PROJECT,
}
TEXT = re.compile(r"(\\text\w*\{)([^}]*)(\})")
LESS = "\N{SINGLE LEFT-POINTING ANGLE QUOTATION MARK}"


def with_contents(app: Sphinx, docname: str, source: list[str]) -> None:
    """The front page is README.md with the contents of the site, which would be noise where README.md is read alone."""
    if docname != root_doc:
        return
    for title, pages in CONTENTS.items():
        listed = "\n".join(pages)
        source[0] += f"\n\n```{{toctree}}\n:hidden:\n:glob:\n:caption: {title}\n\n{listed}\n```\n"


def mathml(self: Any, node: nodes.Element, display: str) -> None:
    """One formula. What the converter does not know it would print as it stands, so that is a warning."""
    latex = TEXT.sub(lambda match: match[1] + match[2].replace("<", LESS) + match[3], node.astext())
    html = convert(latex.strip(), display=display)
    if "\\" in html:
        logging.getLogger(__name__).warning("a formula that cannot be drawn: %s", node.astext(), location=node)
    self.body.append(html.replace(LESS, "&lt;"))
    raise nodes.SkipNode


def inline_math(self: Any, node: nodes.Element) -> None:
    mathml(self, node, "inline")


def block_math(self: Any, node: nodes.Element) -> None:
    mathml(self, node, "block")


def plain(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are plain text with `code` and indented examples; their stars, bars and underscores are no markup."""
    written: list[str] = []
    example = section = False
    for number, line in enumerate(lines):
        section = not line[:1].strip() and section if line.strip() else section
        if re.fullmatch(r"(Args|Raises|Returns|Yields|Attributes|Fields):", line):
            section = True
        if not section and line.startswith("    ") and not lines[number - 1].strip() and not example:
            written += ["::", ""]
            example = True
        example = example and (line.startswith("    ") or not line.strip())
        if example:
            written.append(line)
            continue
        parts = re.split(r"(`[^`]+`)", line)
        written.append(
            "".join(f"`{part}`" if i % 2 else re.sub(r"([*_|\\])", r"\\\1", part) for i, part in enumerate(parts))
        )
    lines[:] = written


def without_private_bases(app: Sphinx, name: str, obj: Any, options: Any, bases: list[Any]) -> None:
    """Only what a reader can look up."""
    bases[:] = [base for base in bases if not getattr(base, "__name__", "").startswith("_")] or [object]


def setup(app: Sphinx) -> None:
    app.add_html_math_renderer("mathml", (inline_math, None), (block_math, None))
    app.connect("source-read", with_contents)
    app.connect("autodoc-process-bases", without_private_bases)
    app.connect("autodoc-process-docstring", plain, priority=400)  # before napoleon, which reads the sections
