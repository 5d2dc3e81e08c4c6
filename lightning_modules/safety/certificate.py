"""The certificate: a JSON file for machines, a page and a histogram for people."""

import json
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from support.files import atomic_write_text


def write_certificate(folder: Path, facts: dict[str, Any], costs: Float[Tensor, "samples"]) -> list[Path]:
    """Write certificate.json, certificate.md and certificate.png; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    plot = folder / "certificate.png"
    _histogram(plot, facts, costs)
    data, page = folder / "certificate.json", folder / "certificate.md"
    atomic_write_text(page, _page(facts))
    atomic_write_text(data, json.dumps(facts, indent=1))
    return [data, page, plot]


def _histogram(path: Path, facts: dict[str, Any], costs: Tensor) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.hist(costs.cpu().numpy(), bins=40, color="#7a9cc6")
    for name, colour in (("mean", "#222222"), ("ucb", "#c0392b"), ("threshold", "#1e8449")):
        axes.axvline(facts[name], color=colour, label=f"{name} {facts[name]:.4g}", linestyle="--" if name == "threshold" else "-")
    axes.set_xlabel(f"cost of a response ({facts['cost_scale']})")
    axes.set_ylabel("safety prompts")
    axes.set_title(f"{facts['verdict']}: upper bound {facts['ucb']:.4g}, threshold {facts['threshold']:.4g}")
    axes.legend()
    figure.savefig(path, dpi=110)


def _page(facts: dict[str, Any]) -> str:
    rule = "at most" if facts["verdict"] == "SAFE" else "not shown to be at most"
    lines = [
        f"# {facts['verdict']}",
        "",
        f"The expected cost of this policy's responses, as the cost model judges them over the distribution of the safety prompts, is {rule} "
        f"{facts['threshold']:g}, with confidence {1 - facts['delta']:.4g}. The promise is about that cost model, not about what people would say.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name.replace('_', ' ')} | {_cell(value)} |" for name, value in facts.items() if name != "config"),
        "",
        "![histogram](certificate.png)",
        "",
    ]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value).replace("|", "\\|")
