"""main.py from the outside: command lines, the files and records that runs leave, and answers to mistakes."""

import json
import os
from pathlib import Path

import mlflow
import pytest
import yaml

from cli.resume import last_checkpoint
from lightning_modules.hc_rlhf import verify
from main import main
from support.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent


def short(model, *extra):
    """GRPO's own configuration on a tiny model, for a few rollouts."""
    small = [
        f"--model.policy.model={model}",
        "--model.batch.prompts_per_rollout=4",
        "--model.batch.group_size=4",
        "--model.sampling.max_new_tokens=8",
        "--model.evaluation.sampling.max_new_tokens=8",
        "--data.train_size=64",
        "--data.val_size=8",
        "--trainer.max_steps=2",
        "--trainer.val_check_interval=2",
        "--trainer.accelerator=cpu",
    ]
    return [f"--config={ROOT}/configs/grpo.yaml", *small, *extra]


def experiment():
    store = os.environ["MLFLOW_TRACKING_URI"]
    client = mlflow.MlflowClient(store)
    mlflow.set_tracking_uri(store)
    return client, mlflow.search_runs(experiment_names=["lightning-posttrain"])


def test_a_run_leaves_params_metrics_config_and_tables(here, reasoner):
    main(["fit", *short(reasoner, "--trainer.callbacks+=CompletionsTable", "--trainer.callbacks.every_n_rollouts=1")])
    client, runs = experiment()
    (run,) = runs.itertuples()
    columns = set(runs.columns)
    assert run.status == "FINISHED"
    assert runs["params.model.init_args.batch.group_size"][0] == "4"
    assert runs["params.model.init_args.rewards.0.class_path"][0].endswith("ExactAnswer")
    assert runs["params.trainer.max_steps"][0] == "2"
    for metric in (
        "train/reward",
        "train/length",
        "train/entropy",
        "train/loss",
        "perf/rollout_tokens_per_s",
        "val/pass1",
        "val/reward",
        "val/length",
    ):
        assert f"metrics.{metric}" in columns, metric
    history = client.get_metric_history(run.run_id, "val/pass1")
    assert [point.step for point in history] == [0, 1], "validation before the first rollout and after the second"
    saved = client.download_artifacts(run.run_id, "config/config_fit.yaml", dst_path=str(here))
    config = yaml.safe_load(Path(saved).read_text())
    assert config["model"]["init_args"]["batch"]["group_size"] == 4
    tables = {item.path for item in client.list_artifacts(run.run_id, "completions")}
    assert tables == {
        "completions/val_000000.json",
        "completions/train_000001.json",
        "completions/train_000002.json",
        "completions/val_000002.json",
    }
    table = json.loads(
        Path(client.download_artifacts(run.run_id, "completions/train_000002.json", dst_path=str(here))).read_text()
    )
    assert {"prompt", "completion", "reward/exact_answer", "advantage"} <= set(table["columns"]) and len(
        table["data"]
    ) == 16
    checkpoints = list((here / "runs" / run.run_id / "checkpoints").iterdir())
    assert [path.name for path in checkpoints] == ["rollout_000002.ckpt"]
    # the saved configuration is a configuration
    main(["validate", f"--config={saved}", "--trainer.logger=false"])


def test_two_methods_share_metric_names(here, reasoner, assistant):
    main(["fit", *short(reasoner)])
    main(["fit", *hc_rlhf(assistant, here)])
    client, runs = experiment()
    runs = runs[runs["params.model.class_path"].notna()].set_index("params.model.class_path")
    shared = [
        "train/reward", "train/length", "train/entropy", "train/loss", "train/grad_norm", "val/reward", "val/length",
        "perf/rollout_tokens_per_s", "perf/update_tokens_per_s",
    ]  # fmt: skip
    for name in shared:
        assert runs[f"metrics.{name}"].notna().all(), name
    _, children = (
        client,
        mlflow.search_runs(experiment_names=["lightning-posttrain"], filter_string="tags.`mlflow.parentRunId` != ''"),
    )
    parents = set(children["tags.mlflow.parentRunId"].dropna())
    assert parents == {runs.loc["lightning_modules.HCRLHF", "run_id"]} and len(children) == 2


def hc_rlhf(model, folder, threshold=0.99, **changes):
    """The configuration that ships, on a tiny untrained model and few pairs."""
    import pandas

    pairs = pandas.read_parquet(ROOT / "assets/preferences/records.parquet").head(150)
    pairs.to_parquet(folder / "pairs.parquet")
    small = {
        "model.policy.model": model,
        "model.constraint.threshold": threshold,
        "model.batch.prompts_per_rollout": 4,
        "model.batch.group_size": 2,
        "model.sampling.max_new_tokens": 6,
        "model.evaluation.sampling.max_new_tokens": 6,
        "model.scorers.epochs": 1,
        "model.scorers.batch_size": 32,
        "data.preferences.source": str(folder / "pairs.parquet"),
        "data.train_size": 32,
        "data.val_size": 8,
        "data.safety_size": 30,
        "trainer.max_steps": 2,
        "trainer.val_check_interval": 2,
        "trainer.accelerator": "cpu",
    } | changes
    return [f"--config={ROOT}/configs/hc_rlhf.yaml", *(f"--{name}={value}" for name, value in small.items())]


def certificate_of(cli):
    return json.loads(
        (
            Path(cli.trainer.default_root_dir) / cli.trainer.logger.version / "certificate" / "certificate.json"
        ).read_text()
    )


def test_hc_rlhf_from_pairs_to_a_verdict(here, assistant, capsys):
    cli = main(["fit", *hc_rlhf(assistant, here)])
    facts = certificate_of(cli)
    assert facts["verdict"] == "SAFE" and facts["ucb"] <= 0.99 and facts["samples"] == 30
    assert facts["bound"] == "Betting" and facts["student_t_ucb"] < facts["ucb"]
    out = capsys.readouterr().out
    assert "SAFE: upper bound" in out and "paper's test SAFE: Student's t" in out
    exported = Path(cli.trainer.default_root_dir) / cli.trainer.logger.version / "policy"
    assert json.loads((exported / "certificate.json").read_text())["policy_sha256"] == facts["policy_sha256"]
    assert (exported / "model.safetensors").is_file() and (exported / "tokenizer.json").is_file()
    assert verify(exported)["verdict"] == "SAFE"
    page = (exported.parent / "certificate" / "certificate.html").read_text()
    assert "SAFE" in page and "data:image/png;base64," in page and "http" not in page
    _, runs = experiment()
    assert "SAFE" in set(runs["tags.safety.verdict"])
    config = exported / "config.json"
    original = config.read_text()
    for change, word in (
        (lambda: config.write_text(original + " "), "changed: config.json"),
        (config.unlink, "removed: config.json"),
    ):
        change()
        with pytest.raises(ConfigError, match=word):
            verify(exported)
        config.write_text(original)
    (exported / "extra.bin").touch()
    with pytest.raises(ConfigError, match=r"added: extra\.bin"):
        verify(exported)
    (exported / "certificate.json").unlink()
    with pytest.raises(ConfigError, match="no readable certificate"):
        verify(exported)
    # the same policy again: the recorded verdict, no second test; reward and cost models come from the cache
    again = main(["fit", *hc_rlhf(assistant, here)])
    assert "trained before" in capsys.readouterr().out
    assert (
        certificate_of(again)["tested_at"] == facts["tested_at"] and certificate_of(again)["tests_on_this_split"] == 1
    )
    # another policy on the same split is refused, also under an allowance that was not declared before
    other = {"model.optimizer.lr": 1e-3}
    for allowance in (1, 4):
        with pytest.raises(ConfigError, match="tested 1 time.*which spent 0.1 of a failure probability of 0.1 for 1 "):
            main(["fit", *hc_rlhf(assistant, here, **other, **{"model.test.allowance": allowance})])


def test_no_solution_found_exports_nothing(here, assistant, capsys):
    cli = main(["fit", *hc_rlhf(assistant, here, threshold=0.001)])
    assert certificate_of(cli)["verdict"] == "NO SOLUTION FOUND"
    assert "NO SOLUTION FOUND: upper bound" in capsys.readouterr().out
    assert not (Path(cli.trainer.default_root_dir) / cli.trainer.logger.version / "policy").exists()


def test_validate_test_and_predict(here, reasoner, assistant):
    files = {
        "grpo": short(reasoner)[:1] + [a for a in short(reasoner)[1:] if "max_steps" not in a and "val_check" not in a],
        "sft": [
            f"--config={ROOT}/configs/sft.yaml",
            f"--model.policy.model={reasoner}",
            "--data.train_size=64",
            "--data.val_size=4",
        ],
        "reward_model": [
            f"--config={ROOT}/configs/reward_model.yaml",
            f"--model.policy.model={assistant}",
            f"--data.pairs.source={ROOT}/assets/preferences/records.parquet",
            "--data.pairs.limit=100",
        ],  # fmt: skip
    }
    for name, arguments in files.items():
        for stage in ("validate", "test", "predict"):
            cli = main(
                [
                    stage,
                    *arguments,
                    "--trainer.logger=false",
                    "--trainer.accelerator=cpu",
                    f"--trainer.default_root_dir={here}/{name}",
                ]
            )
            if stage == "predict":
                (file,) = (here / name).glob("*/predictions.jsonl")  # each stage has a folder of its own
                lines = file.read_text().splitlines()
                assert len(lines) >= 4 and json.loads(lines[0])
            else:
                prefix = {"validate": "val/", "test": "test/"}[stage]
                assert any(metric.startswith(prefix) for metric in cli.trainer.callback_metrics)


def test_resuming_does_not_override_the_command_line(here, reasoner):
    main(["fit", *short(reasoner), "--trainer.logger=false"])
    checkpoint = here / "runs/local/checkpoints/rollout_000002.ckpt"
    cli = main(
        [
            "fit",
            *short(reasoner),
            "--trainer.logger=false",
            f"--ckpt_path={checkpoint}",
            "--model.sampling.max_new_tokens=5",
            "--trainer.max_steps=4",
        ]
    )
    assert cli.model.sampling.max_new_tokens == 5 and cli.trainer.global_step == 4


def test_overlays_merge_key_by_key(here, reasoner):
    overlay = here / "overlay.yaml"
    overlay.write_text("model: {init_args: {sampling: {temperature: 0.7}}}\n")
    cli = main(
        ["fit", *short(reasoner), f"--config={overlay}", "--trainer.logger=false", "--trainer.fast_dev_run=true"]
    )
    assert cli.model.sampling.temperature == 0.7 and cli.model.sampling.max_new_tokens == 8


@pytest.mark.parametrize(
    ("argument", "first"),
    [
        ("--model.batch.grop_size=4", "Did you mean --model.batch.group_size?"),
        ("--trainer.max_epoch=4", "Did you mean --trainer.max_epochs"),
        ("--model=lightning_modules.GRPP", "Did you mean lightning_modules.GRPO"),
        ("--config=missing.yaml", "missing.yaml"),
        (
            '--model.rewards=[{"class_path": "rewards.ExactAnswer", "init_args": {"wieght": 2}}]',
            "Did you mean 'weight'",
        ),
        ('--model.rewards=[{"class_path": "rewards.ExactAnser"}]', "Did you mean rewards.ExactAnswer"),
        ('--model.policy={"modle": "x"}', "Did you mean 'model'"),
    ],
)
def test_mistakes_are_explained(here, reasoner, argument, first):
    with pytest.raises(ConfigError) as caught:
        main(["fit", *short(reasoner), argument])
    assert first in str(caught.value) and "\n" not in str(caught.value)
    assert not (here / "runs").exists(), "nothing was started"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--model.batch.group_size=1"], "group_size is 1"),
        (["--model.batch.updates_per_rollout=3"], "does not divide"),
        (["--model.policy.model=runs/nothing"], "does not exist"),
        (["--data=FilePrompts", "--data.source=none.jsonl"], "none.jsonl"),
        (["--model.sampling.temperature=0"], "nothing could be learned"),
        (["--model.max_grad_norm=-1"], "max_grad_norm is -1"),
        (["--model.optimizer.lr=-1"], "refuses its settings"),
        (["--trainer.gradient_clip_val=1.0"], "set model.max_grad_norm"),
        (["--model.policy.lora.r=0"], "policy.lora has r 0"),
        (["--data.val_size=0"], "set trainer.limit_val_batches to 0 for a run without validation"),
        (
            ["--model.rewards=[rewards.FunctionReward]", "--model.rewards.function=tests.test_cli.from_trl"],
            "has the parameter 'trainer_state', which TRL's trainer fills in",
        ),
        (["--model.loss=objectives.ClippedSurrogate", "--model.loss.clip_low=-1"], "set 0 <= clip_low"),
        (["--model.sampling.max_new_tokens=254"], "exceeds the model's context of 256"),
        (["--ckpt_path=runs/none.ckpt"], "runs/none.ckpt cannot be used"),
        (
            [
                "--model.rewards=[rewards.FunctionReward]",
                "--model.rewards.function=tests.test_cli.needs_colour",
            ],
            "needs the data column 'colour'",
        ),
    ],
)
def test_wrong_values_end_in_one_paragraph(here, reasoner, changes, message, capsys):
    with pytest.raises((ConfigError, SystemExit)) as caught:
        main(["fit", *short(reasoner, "--trainer.logger=false"), *changes])
    text = str(caught.value) + capsys.readouterr().err
    assert message in text


def needs_colour(completions, colour):
    return [0.0] * len(completions)


def from_trl(completions, trainer_state):
    return [0.0] * len(completions)


def test_a_run_without_validation_needs_no_held_out_rows(here, reasoner):
    cli = main(["fit", *short(reasoner, "--data.val_size=0", "--trainer.limit_val_batches=0")])
    assert cli.trainer.global_step == 2


def test_hc_rlhf_refuses_a_bound_that_does_not_fit_before_training(here, assistant):
    for changes, message in (
        ({"model.constraint.cost_scale": "raw", "model.bound": "objectives.Hoeffding"}, "costs can lie in"),
        ({"model.bound": "objectives.ClopperPearson"}, "costs that are 0 or 1"),
        ({"model.constraint.lambda_init": -1}, "needs 0 <= lambda_init"),
        ({"model.reward_clip": 0}, "reward_clip is 0"),
        ({"model.test.export": str(ROOT / "docs")}, "holds other files"),
    ):
        with pytest.raises(ConfigError, match=message):
            main(["fit", *hc_rlhf(assistant, here, **changes)])
    assert not list((here / "runs").glob("*/checkpoints")), "nothing was trained"


def test_another_question_is_another_test(here, assistant):
    """A verdict for one way of sampling is no verdict for another."""
    exact = {"model.constraint.cost_scale": "unsafe", "model.bound": "objectives.ClopperPearson"}
    cli = main(["fit", *hc_rlhf(assistant, here, **exact)])
    assert certificate_of(cli)["bound"] == "ClopperPearson"
    checkpoint = next((here / "runs").glob("*/checkpoints/rollout_000002.ckpt"))
    again = certificate_of(main(["test", *hc_rlhf(assistant, here, **exact), f"--ckpt_path={checkpoint}"]))
    assert again["tested_at"] == certificate_of(cli)["tested_at"], "the same policy and question: the recorded verdict"
    with pytest.raises(ConfigError, match="tested 1 time"):
        main(
            [
                "test",
                *hc_rlhf(assistant, here, **exact, **{"model.sampling.max_new_tokens": 1}),
                f"--ckpt_path={checkpoint}",
            ]
        )


def test_the_last_run_goes_on(here, reasoner, assistant):
    with pytest.raises(ConfigError, match="there is no checkpoint of lightning_modules.GRPO to validate with"):
        main(["validate", *short(reasoner), "--ckpt_path=last"])
    first = main(["fit", *short(reasoner), "--ckpt_path=last"])  # nothing to go on from yet: it starts
    cli = main(["fit", *short(reasoner), "--ckpt_path=last", "--trainer.max_steps=4"])
    assert cli.trainer.global_step == 4 and cli.trainer.logger.version == first.trainer.logger.version, (
        "the same run goes on"
    )
    checkpoint = next((here / "runs").glob("*/checkpoints/rollout_000002.ckpt"))
    with pytest.raises(ConfigError, match="was made by GRPO, not by SFT"):
        main(
            [
                "fit",
                f"--config={ROOT}/configs/sft.yaml",
                f"--model.policy.model={reasoner}",
                f"--ckpt_path={checkpoint}",
            ]
        )


def test_last_goes_on_with_the_method_that_is_asked_for(here, reasoner, capsys):
    """Of two runs of one class, the one with the same loss goes on; what differs from its beginning is said."""
    other_loss = ["--model.loss=objectives.SAPO"]
    first = main(["fit", *short(reasoner, *other_loss, "--trainer.limit_val_batches=0")])
    main(["fit", *short(reasoner, "--trainer.limit_val_batches=0")])
    capsys.readouterr()
    changes = ["--trainer.max_steps=3", "--model.max_grad_norm=0.5", "--ckpt_path=last"]
    resumed = main(["fit", *short(reasoner, *other_loss, "--trainer.limit_val_batches=0"), *changes])
    assert resumed.trainer.logger.version == first.trainer.logger.version and resumed.trainer.global_step == 3
    out = capsys.readouterr().out
    assert "goes on with other settings than it began with: model.init_args.max_grad_norm is 0.5, was 1.0." in out
    client, _ = experiment()
    run = client.get_run(first.trainer.logger.version)
    name = "model.init_args.max_grad_norm"
    assert run.data.params[name] == "1.0" and run.data.tags[f"resumed.{name}"] == "0.5"


def test_a_prediction_is_named_so_without_a_configuration_too(here, reasoner):
    trained = main(["fit", *short(reasoner, "--trainer.limit_val_batches=0")])
    main(
        ["predict", f"--ckpt_path={next(here.glob('runs/*/checkpoints/*.ckpt'))}", "--trainer.limit_predict_batches=1"]
    )
    client, runs = experiment()
    names = [client.get_run(run).data.tags["mlflow.runName"] for run in runs["run_id"]]
    training = client.get_run(trained.trainer.logger.version).data.tags["mlflow.runName"]
    assert sorted(names) == sorted([training, f"predict {training}"])


def test_a_run_whose_configuration_was_never_written_is_passed_over(here, capsys):
    (here / "runs/killed").mkdir(parents=True)
    (here / "runs/killed/config_fit.yaml").touch()
    assert last_checkpoint(here / "runs", "lightning_modules.GRPO") is None
    assert "has no run under" in capsys.readouterr().out


def test_a_configuration_is_whole_or_absent(here, reasoner, monkeypatch):
    """A kill at the worst moment: the file is there, but nothing is in it yet."""

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("support.files.os.replace", killed)
    with pytest.raises(SystemExit):  # Lightning's answer to an interrupt
        main(["fit", *short(reasoner, "--trainer.logger=false")])
    assert list((here / "runs/local").iterdir()) == []


def test_scorers_and_policies_are_exported_and_used(here, reasoner, assistant):
    from transformers import AutoModelForCausalLM

    export = ["--trainer.callbacks=callbacks.ExportPolicy", "--trainer.logger=false", "--trainer.accelerator=cpu"]
    for kind in ("reward", "cost"):
        arguments = [
            f"--config={ROOT}/configs/{kind}_model.yaml",
            f"--model.policy.model={assistant}",
            "--data.pairs.limit=100",
        ]
        source = f"--data.pairs.source={ROOT}/assets/preferences/records.parquet"
        main(
            [
                "fit",
                *arguments,
                source,
                *export,
                f"--trainer.callbacks.folder={here}/{kind}",
                "--trainer.max_steps=2",
                "--trainer.val_check_interval=1",
            ]
        )
        assert "accuracy" in json.loads((here / kind / "facts.json").read_text())["held_out"]
    given = {"model.reward_model": here / "reward", "model.cost_model": here / "cost"}
    facts = certificate_of(main(["fit", *hc_rlhf(assistant, here, **given)]))
    assert len(facts["cost_model"]["id"]) == 64 and facts["cost_model"]["id"] != facts["reward_model"]["id"]
    engine = ["--model.engine=rollouts.TransformersEngine", "--model.policy.lora.r=4"]
    main(["fit", *short(reasoner, *engine, *export, f"--trainer.callbacks.folder={here}/policy")])
    assert AutoModelForCausalLM.from_pretrained(here / "policy").generation_config.eos_token_id
