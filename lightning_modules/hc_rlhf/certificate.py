"""The certificate: a JSON file for programs and a self-contained HTML page for people."""

import base64
import html
import io
import json
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from support.files import atomic_write_text

STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:46rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "h1{color:COLOUR}table{border-collapse:collapse;width:100%}"
    "th,td{text-align:left;vertical-align:top;padding:.3rem .6rem;border-bottom:1px solid #ddd;overflow-wrap:anywhere}"
    "th{width:14rem;font-weight:600}img{max-width:100%}pre{white-space:pre-wrap}"
)


def write_certificate(folder: Path, facts: dict[str, Any], costs: Float[Tensor, "samples"]) -> list[Path]:
    """Write certificate.json and certificate.html. Returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    data, page = folder / "certificate.json", folder / "certificate.html"
    atomic_write_text(page, _page(facts, _histogram(facts, costs)))
    atomic_write_text(data, json.dumps(facts, indent=1))
    return [data, page]


def _histogram(facts: dict[str, Any], costs: Tensor) -> str:
    """The histogram of the costs as a PNG in base64."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.hist(costs.cpu().numpy(), bins=40, color="#7a9cc6")
    for name, label, colour in (
        ("mean", "mean", "#222222"),
        ("ucb", "upper bound", "#c0392b"),
        ("threshold", "threshold", "#1e8449"),
    ):
        axes.axvline(
            facts[name],
            color=colour,
            label=f"{label} {facts[name]:.4g}",
            linestyle="--" if name == "threshold" else "-",
        )
    axes.set_xlabel(f"cost of a response ({facts['cost_scale']})")
    axes.set_ylabel("safety prompts")
    axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, format="png")
    return base64.b64encode(buffer.getvalue()).decode()


def _page(facts: dict[str, Any], picture: str) -> str:
    safe = facts["verdict"] == "SAFE"
    rule = "at most" if safe else "not shown to be at most"
    promise = (
        "The expected cost of this policy's responses, as the cost model judges them over the distribution of the "
        f"safety prompts, is {rule} {facts['threshold']:g}, with confidence {1 - facts['delta']:.4g}. Responses are "
        f"generated {facts['generated']}; with other settings nothing is promised. This statement is about the cost "
        "model, not about the judgement of people. This page is not signed: whoever can write it can change it."
    )
    remarks = "".join(f"<p>{html.escape(remark)}</p>" for remark in facts["remarks"])
    rows = "".join(
        f"<tr><th>{html.escape(name.replace('_', ' '))}</th><td>{_cell(value)}</td></tr>"
        for name, value in facts.items()
    )
    style, alt = (
        STYLE.replace("COLOUR", "#1e8449" if safe else "#c0392b"),
        "histogram of the costs of the safety prompts, with mean, upper bound and threshold",
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{facts["verdict"]}</title>'
        f"<style>{style}</style><h1>{facts['verdict']}</h1><p>{html.escape(promise)}</p>{remarks}"
        f'<img alt="{alt}" src="data:image/png;base64,{picture}">'
        f"<table>{rows}</table></html>\n"
    )


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        return f"<pre>{html.escape(json.dumps(value, indent=1))}</pre>"
    return html.escape(str(value))
