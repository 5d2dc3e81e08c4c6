"""The model card of an exported folder: README.md in the format of the Hugging Face Hub.

Its YAML front matter has tags, the start model and the metrics of the last validation (`model-index`); its text says by
which method and paper the weights were trained, on which data, with which configuration, and how to load them.
"""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from huggingface_hub import EvalResult, ModelCardData

from support.files import atomic_write_text
from support.papers import Paper, all_papers
from tracking.runs import run_folder

CARD = "README.md"
#: keys of a configuration whose values are not shown
_SECRET = re.compile(r"(?:^|_)(token|password|secret|api_key|key)$", re.IGNORECASE)
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
#: the end of an architecture's name -> class that loads it
_LOADERS = {"ForCausalLM": "AutoModelForCausalLM", "ForSequenceClassification": "AutoModelForSequenceClassification"}
_PIPELINES = {"AutoModelForCausalLM": "text-generation", "AutoModelForSequenceClassification": "text-classification"}


def write_card(trainer: L.Trainer, module: Any, folder: str | Path, certificate: dict[str, Any] | None = None) -> None:
    """Write README.md into an exported folder, beside its weights or adapter.

    Args:
        certificate: entries of a safety test's certificate: verdict, ucb, threshold, delta, samples.
    """
    folder = Path(folder)
    papers, metrics = papers_of(module), dict(measured(trainer, module))
    is_adapter, loader = (folder / "adapter_config.json").is_file(), loader_of(folder)
    start = str(module.policy_params.model)
    title = f"{type(module).__name__} from {Path(start).name}"
    tags = ["lightning-posttrain", type(module).__name__.lower(), *(f"arxiv:{paper.arxiv}" for paper in papers)]
    data = getattr(trainer, "datamodule", None)
    set_name = type(data).__name__ if data is not None else "the run's validation"
    pipeline = _PIPELINES.get(loader, "text-generation" if is_adapter else None)
    head = ModelCardData(
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag=pipeline,
        base_model=start if _HUB_NAME.fullmatch(start) and not Path(start).exists() else None,
        tags=tags,
        model_name=title,
        eval_results=[
            EvalResult(
                task_type=pipeline or "other", dataset_type=set_name.lower(), dataset_name=set_name,
                dataset_split="validation", metric_type=name, metric_name=name, metric_value=value,
            )
            for name, (value, _) in metrics.items()
        ]
        or None,
    )  # fmt: skip
    sections = [
        f"# {title}",
        _method(module, papers, start, trainer),
        _data(data),
        _metrics(metrics),
        _certificate(certificate),
        _loading(loader, is_adapter, start),
        _configuration(trainer),
    ]
    text = "\n\n".join(section for section in sections if section)
    atomic_write_text(folder / CARD, f"---\n{head.to_yaml().strip()}\n---\n\n{text}\n")


def papers_of(module: Any) -> list[Paper]:
    """The papers whose classes the module and its rewards are, the method's first."""
    parts = [module, *getattr(module, "rewards", [])]
    parts += [value for name in ("advantage", "policy_loss") if (value := getattr(module, name, None)) is not None]
    papers: dict[str, Paper] = {}
    for part in parts:
        path = f"{type(part).__module__.partition('.')[0]}.{type(part).__name__}"
        papers |= {name: paper for name, paper in all_papers().items() if path in paper.classes and paper.arxiv}
    return list(papers.values())


def measured(trainer: L.Trainer, module: Any) -> Iterator[tuple[str, tuple[float, tuple[float, float] | None]]]:
    """(metric, (value, 95 % interval)) of the last validation.

    pass@k has an interval over the problems, by bootstrap, where one process has seen them all.
    """
    counts = list(getattr(module, "problem_counts", {}).values())
    rates: dict[str, float] = {}
    if len(counts) == 1 and trainer.world_size == 1:
        rates = counts[0].metrics(module.evaluation.pass_ks, True)
    for name, tensor in sorted(trainer.callback_metrics.items()):
        short, value = name.removeprefix("val/"), float(tensor)
        if not name.startswith("val/") or short.endswith(("/low", "/high")) or not math.isfinite(value):
            continue
        # The counts are those of the latest validation, which may be a later one than that of the logged value.
        is_same = math.isclose(rates.get(short, math.nan), value, abs_tol=1e-6)
        low, high = rates.get(f"{short}/low"), rates.get(f"{short}/high")
        interval = (low, high) if is_same and low is not None and high is not None else None
        yield short, (round(value, 6), interval)


def loader_of(folder: Path) -> str:
    """The class of transformers that loads the folder; "" if its config.json does not say."""
    try:
        names = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures") or [""]
    except (OSError, ValueError, AttributeError):
        return ""
    return next((loader for end, loader in _LOADERS.items() if str(names[0]).endswith(end)), "")


def _method(module: Any, papers: list[Paper], start: str, trainer: L.Trainer) -> str:
    sources = "".join(f"\n- [{paper.title}](https://arxiv.org/abs/{paper.arxiv}): {paper.idea}" for paper in papers)
    lora = getattr(module.policy_params, "lora", None)
    weights = "all weights" if lora is None else f"a LoRA adapter of rank {lora.r}"
    return (
        f"Trained from `{start}` with {type(module).__name__} of Lightning Posttrain: {trainer.global_step} optimiser "
        f"steps, {weights}.{sources and chr(10)}{sources}"
    )


def _data(data: Any) -> str:
    if data is None:
        return ""
    sizes = []
    for split, what in (("train", "training"), ("val", "validation")) if hasattr(data, "rows") else ():
        sizes.append(f"{len(data.rows(split)):,} for {what}")
    return f"## Data\n\n`{type(data).__name__}`{': ' if sizes else ''}{', '.join(sizes)}. Its settings are below."


def _metrics(metrics: dict[str, tuple[float, tuple[float, float] | None]]) -> str:
    if not metrics:
        return ""
    rows = "\n".join(
        f"| {name} | {value:.4g} | {f'{interval[0]:.4g} to {interval[1]:.4g}' if interval else ''} |"
        for name, (value, interval) in metrics.items()
    )
    return (
        "## Metrics\n\nOf the last validation on held-out prompts. Intervals are 95 % bootstrap intervals over the "
        f"problems, for this one training.\n\n| metric | value | interval |\n| --- | --- | --- |\n{rows}"
    )


def _certificate(facts: dict[str, Any] | None) -> str:
    if facts is None:
        return ""
    return (
        f"## Certificate\n\n{facts['verdict']}: the mean cost is at most {facts['ucb']:.4g} (threshold "
        f"{facts['threshold']:g}) with confidence {1 - facts['delta']:.3g}, on {facts['samples']} held-out prompts. "
        "`certificate.json` has the details. It holds for the tested sampling settings and for prompts like the tested "
        "ones; it is not signed. `lightning_modules.hc_rlhf.verify` compares this folder with it."
    )


def _loading(loader: str, is_adapter: bool, start: str) -> str:
    if is_adapter:
        lines = [
            "from peft import AutoPeftModelForCausalLM",
            "from transformers import AutoTokenizer",
            "",
            'folder = "."  # this folder, or its name on the Hub',
            f"model = AutoPeftModelForCausalLM.from_pretrained(folder)  # onto {start}",
        ]
    elif loader:
        lines = [
            f"from transformers import {loader}, AutoTokenizer",
            "",
            'folder = "."  # this folder, or its name on the Hub',
            f"model = {loader}.from_pretrained(folder)",
        ]
    else:
        return ""
    lines.append("tokenizer = AutoTokenizer.from_pretrained(folder)")
    if loader != "AutoModelForSequenceClassification":
        lines += [
            'messages = [{"role": "user", "content": "12+30=?"}]',
            "inputs = tokenizer.apply_chat_template("
            'messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)',
            "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=64)[0]))",
        ]
    return "## How to load\n\n```python\n" + "\n".join(lines) + "\n```"


def _configuration(trainer: L.Trainer) -> str:
    """The sections `model` and `data` of the run's resolved configuration, without secrets."""
    path = run_folder(trainer) / "config_fit.yaml"
    if not path.is_file():
        return ""
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    shown = {key: config[key] for key in ("seed_everything", "model", "data") if key in config}
    text = yaml.safe_dump(_without_secrets(shown), sort_keys=False, allow_unicode=True).strip()
    return f"## Configuration\n\n```yaml\n{text}\n```"


def _without_secrets(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: "(left out)" if isinstance(item, str) and _SECRET.search(str(key)) else _without_secrets(item)
            for key, item in value.items()
        }
    return [_without_secrets(item) for item in value] if isinstance(value, list) else value
