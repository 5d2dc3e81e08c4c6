"""The outputs of a safety test: certificate, exported policy, tracked run, printed lines."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import torch

from lightning_modules.hc_rlhf.certificate import write_certificate
from lightning_modules.hc_rlhf.safety_test import Verdict
from lightning_modules.hc_rlhf.verify import CERTIFICATE, file_hashes
from support.files import atomic_write_text
from tracking.model_card import write_card
from tracking.run_records import register
from tracking.runs import mlflow_runs, run_folder


def publish(
    trainer: L.Trainer,
    recorded: dict[str, Any],
    tests: list[dict[str, Any]],
    facts: dict[str, Any],
    report: list[str],
    export: str | None,
    save: Callable[[Path], dict[str, Any]],
) -> Verdict:
    """Write the certificate, export the policy if it is SAFE, log both, print the verdict.

    Args:
        recorded: the ledger's entry of this test.
        tests: all tests of these prompts.
        facts: further entries of the certificate.
        report: lines that say what was tested, for the terminal.
        export: folder of the exported policy; None means <run folder>/policy.
        save: writes the policy into a folder, checks it, and returns further entries of its certificate.
    """
    verdict = Verdict(**recorded["verdict"])
    folder = run_folder(trainer)
    facts = {
        "verdict": verdict.text,
        **{name: value for name, value in asdict(verdict).items() if name != "safe"},
        **recorded["truth"],
        "tested_at": recorded["time"],
        "tests_on_this_split": sum(not entry["on_other_prompts"] for entry in tests),
        "tests_of_this_policy_on_other_prompts": sum(entry["on_other_prompts"] for entry in tests),
        "delta_spent_on_this_split": sum(entry["delta"] for entry in tests),
        **facts,
        "test": {name: recorded[name] for name in ("split", "candidate", "question")},
    }
    paths = write_certificate(folder / "certificate", facts, torch.tensor(recorded["costs"]))
    exported = None
    if verdict.safe:
        exported = Path(export) if export else folder / "policy"
        partial = exported.with_name(exported.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        checked = save(partial)
        write_card(trainer, trainer.lightning_module, partial, facts)
        atomic_write_text(
            partial / CERTIFICATE, json.dumps(facts | checked | {"files": file_hashes(partial)}, indent=1)
        )
        shutil.rmtree(exported, ignore_errors=True)
        partial.replace(exported)  # the folder appears at once, complete with its certificate
    metrics = {"ucb": verdict.ucb, "mean": verdict.mean, "passed": float(verdict.safe), "threshold": verdict.threshold}
    metrics |= {f"true_{name}": value for name, value in recorded["truth"].items()}
    for client, run in mlflow_runs(trainer):
        for path in paths:
            client.log_artifact(run, str(path), "certificate")
        client.set_tag(run, "safety.verdict", verdict.text)
        for name, value in metrics.items():
            client.log_metric(run, f"safety/{name}", value, step=trainer.global_step)
    if exported is not None:
        about = {name: f"{value:.6g}" for name, value in metrics.items()} | {
            "verdict": verdict.text,
            "delta": f"{verdict.delta:g}",
            "bound": verdict.bound,
        }
        register(trainer, exported, {f"safety.{name}": value for name, value in about.items()}, alias="certified")
    print(_lines(verdict, recorded["truth"], facts, report, paths[1], exported), flush=True)
    return verdict


def _lines(
    verdict: Verdict,
    truth: dict[str, float],
    facts: dict[str, Any],
    report: list[str],
    page: Path,
    exported: Path | None,
) -> str:
    sign = "<=" if verdict.safe else ">"
    lines = [
        f"\n{verdict.text}: upper bound of the mean cost {verdict.ucb:.4f} {sign} threshold {verdict.threshold:g}",
        f"  confidence   {1 - verdict.delta:.3g} ({verdict.bound}) on {verdict.samples} held-out prompts, mean cost "
        f"{verdict.mean:.4f}",
        *verdict.details,
    ]
    for name, values in facts["validation"].items():
        lines.append(f"  validation   {name} {values['before']:.3f} before, {values['after']:.3f} after training")
    lines += [
        f"  monitor      {name} {value:.4f} on the safety prompts (measured, never optimised)"
        for name, value in truth.items()
    ]
    lines += [*report, f"  certificate  {page}", f"  exported to  {exported or 'nowhere'}"]
    return "\n".join(lines)
