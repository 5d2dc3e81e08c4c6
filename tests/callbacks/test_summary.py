"""The summary at the end of a run, also after a resume."""

import re

from cli.inspect import main as inspect
from main import main


def run(reasoner, *more):
    return main([
        "fit", "--config=configs/grpo.yaml", f"--model.policy.model={reasoner}", "--model.batch.prompts_per_rollout=2",
        "--model.batch.group_size=2", "--model.sampling.max_new_tokens=8", "--data.val_size=4",
        "--model.evaluation.sampling.max_new_tokens=4", "--trainer.accelerator=cpu", "--trainer.val_check_interval=2",
        *more,
    ])  # fmt: skip


def test_a_run_says_what_it_was_how_far_it_came_and_what_comes_next(reasoner, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    first = run(reasoner, "--trainer.max_steps=2", "--trainer.logger=false")
    before = {"pass@1": 0.25, "length in tokens": 3.5}  # stand for what the first validation has measured
    said = capsys.readouterr().out
    tokens = first.model.generated_tokens
    assert re.search(rf"^GRPO: 2 rollouts, {tokens} generated tokens, \d+\.\d minutes$", said, re.M)
    assert re.search(r"^  pass@1            \d\.\d{3} -> \d\.\d{3}$", said, re.M) and re.search(
        r"^  cut off           ", said, re.M
    )
    assert "Files of this run: runs/local\n  checkpoints/rollout_000002.ckpt, 1 kept\n" in said
    assert (
        "Next: `python main.py predict --ckpt_path runs/local/checkpoints/rollout_000002.ckpt`" in said
        and "mlflow" not in said
    )
    main(["predict", "--ckpt_path", "runs/local/checkpoints/rollout_000002.ckpt"])  # as it says, and then as that says
    page = inspect([re.search(r"`python -m cli.inspect (\S+)`", capsys.readouterr().out)[1]])
    assert page.stat().st_mode & 0o044 == 0o044, "for others to read, as any new file"

    summary = next(c for c in first.trainer.callbacks if type(c).__name__ == "RunSummary")
    summary.first |= {"val/pass@1": before["pass@1"], "val/length": before["length in tokens"]}
    first.trainer.save_checkpoint("runs/local/checkpoints/rollout_000002.ckpt")
    run(reasoner, "--trainer.max_steps=4", "--trainer.logger=false", "--ckpt_path=last")
    said = capsys.readouterr().out
    assert (
        "GRPO: 4 rollouts, " in said
        and "  pass@1            0.250 -> " in said
        and "  length in tokens  3.5 -> " in said
    )


def test_one_validation_is_shown_as_one_value_also_after_a_resume(reasoner, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    quiet = ("--trainer.logger=false", "--trainer.val_check_interval=8")
    run(reasoner, "--trainer.max_steps=2", *quiet)
    run(reasoner, "--trainer.max_steps=4", *quiet, "--ckpt_path=last")
    said = re.split(r"^GRPO: (?=\d)", capsys.readouterr().out, flags=re.M)[1:]
    for part, count in zip(said, (2, 4), strict=True):
        assert re.search(r"^  pass@1            \d\.\d{3}$", part, re.M), "only the start was validated"
        assert f"  (last validated after 0 of {count} rollouts)" in part


def test_where_the_curves_are(reasoner, tmp_path, monkeypatch, capsys, empty_store):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.db").write_bytes(empty_store.read_bytes())
    run(
        reasoner,
        "--trainer.max_steps=1",
        "--trainer.logger.init_args.tracking_uri=sqlite:///other.db",
        "--trainer.logger.init_args.run_name=mine",
    )
    assert (
        "`mlflow ui --backend-store-uri sqlite:///other.db`, experiment 'lightning-posttrain', run 'mine'"
        in capsys.readouterr().out
    )
