"""kill -9 at random moments, then the same command with --ckpt_path last: the result equals an undisturbed run's bits.

KILLS=10 for each method unless the environment says otherwise; their number is what makes this test long.
"""

import os
import random
import re
import shutil
import signal
import time
from pathlib import Path

import lightning
import pandas
import pytest
import yaml

from rewards import FunctionReward
from support.checkpoints import damage
from tests.helpers.processes import finish
from tests.resume.runs import Command, differences, kill_after, metrics, start, state, tables, wait_for

ROOT = Path(__file__).resolve().parents[2]
KILLS = int(os.environ.get("KILLS", "10"))
ROLLOUTS = 9


def length_reward(completions):
    """Right for about a third of what an untrained model says."""
    return [float(len(text) % 3 == 0) for text in completions]


class Judge(FunctionReward):
    is_correctness = True


def part(name, **arguments):
    return {"class_path": name, "init_args": arguments}


JUDGE = [part("tests.resume.test_kill.Judge", function="tests.resume.test_kill.length_reward")]
SAMPLING = {"max_new_tokens": 8}
MODEL = {
    "batch": {"prompts_per_rollout": 4, "group_size": 4, "updates_per_rollout": 2},
    "sampling": SAMPLING,
    "evaluation": {"samples": 2, "sampling": SAMPLING},
    "rewards": JUDGE,
    "optimizer": part("torch.optim.AdamW", lr=0.01),
    "lr_scheduler": part("torch.optim.lr_scheduler.LinearLR", total_iters=12),
}
DATA = {"levels": [1, 2, 3], "train_size": 30, "val_size": 6}  # 30: an epoch ends within the run
TABLES = part("callbacks.CompletionsTable", every_n_rollouts=1)
CHECKPOINTS = part("callbacks.RolloutCheckpoint", every_n_rollouts=2)
LEDGER, CURRICULUM = (
    part("callbacks.DifficultyLedger"),
    part("callbacks.Curriculum", raise_at=0.3, lower_at=0.1, window=1),
)
RESET = part("callbacks.ReferenceReset", every_n_rollouts=4, plateau={"metric": "val/reward", "patience": 1})
STAGES = part("callbacks.StageSchedule", stages=[{"from_rollout": 3 * n, "set": {"stage": n + 1}} for n in range(3)])
PAIRS = {"source": "pairs.parquet"}
#: method -> (its configuration, which tiny model, what changes)
METHODS = {
    "grpo": (
        "grpo",
        "reasoner",
        {"model": MODEL | {"kl": {"coefficient": 0.1}}, "callbacks": [part("callbacks.AdaptiveKL", target=0.01)]},
    ),
    "grpo_lora": (
        "grpo",
        "reasoner",
        {"model": MODEL | {"kl": {"coefficient": 0.1}, "policy": {"lora": {"r": 4, "alpha": 8}}}},
    ),
    "ppo": ("ppo", "reasoner", {"model": MODEL | {"critic": {"lr": 0.01, "warmup_rollouts": 1}}}),
    "ppo_shared": (
        "ppo",
        "reasoner",
        {"model": MODEL | {"critic": {"body": "shared", "lr": 0.01}, "policy": {"lora": {"r": 4, "alpha": 8}}}},
    ),
    "prorl": (
        "prorl",
        "reasoner",
        {
            "model": MODEL | {"batch": MODEL["batch"] | {"refill": 1.0}, "kl": {"coefficient": 0.1}},
            "callbacks": [LEDGER, CURRICULUM, RESET],
        },
    ),
    "adapt_think": ("adapt_think", "reasoner", {"model": MODEL | {"reference": {"samples": 2}}}),
    "auto_think": ("auto_think", "reasoner", {"model": MODEL, "callbacks": [STAGES]}),
    "hc_rlhf": (
        "hc_rlhf",
        "assistant",
        {
            "model": {key: MODEL[key] for key in ("batch", "sampling", "evaluation", "optimizer")}
            | {
                "constraint": {"threshold": 0.99, "window": 48},
                "scorers": {"batch_size": 32, "epochs": 1},
            },
            "data": {"train_size": 30, "val_size": 6, "safety_size": 30, "preferences": PAIRS},
        },
    ),
    # Papers whose reward, sampler, callback or module has a state of its own.
    "hapo": (
        "hapo",
        "reasoner",
        {"model": MODEL | {"rewards": [*JUDGE, part("rewards.HAPO", correctness="length_reward")]}},
    ),
    "laser_d": (
        "laser_d",
        "reasoner",
        {
            "model": MODEL | {"rewards": [*JUDGE, part("rewards.LaserD", correctness="length_reward")]},
            "callbacks": [
                part("callbacks.LaserMonitor", every_n_rollouts=3, size=4, samples=3, shortest=2, longest=8, interval=2)
            ],
        },
    ),
    "greso": (
        "greso",
        "reasoner",
        {"model": MODEL | {"batch": MODEL["batch"] | {"refill": 1.0}}, "callbacks": [LEDGER, part("callbacks.GRESO")]},
    ),
    "one_shot": (
        "one_shot",
        "reasoner",
        {"model": MODEL, "callbacks": [LEDGER, part("callbacks.OneShot", ids=["137+776=?"])]},
    ),
    "t_spmo": (
        "t_spmo",
        "reasoner",
        {"model": MODEL | {"policy": {"lora": {"r": 4, "alpha": 8, "target_modules": "all-linear"}}}},
    ),
    "self_verify": ("self_verify", "reasoner", {"model": MODEL}),
    "still3": ("still3", "reasoner", {"model": MODEL}),
    # Killed within conversations, which an environment on threads takes part in.
    "turns": (
        "grpo",
        "reasoner",
        {
            "model": MODEL
            | {
                "environment": part("tests.helpers.talks.Chat", waits=True),
                "sampling": {"max_new_tokens": 60},
                "shaping": {"credit": "turn"},
                "rewards": [part("rewards.TurnRewards"), *JUDGE],
                "evaluation": {"samples": 2},
            }
        },
    ),
    # Its trailing accuracy is in the checkpoint.
    "thinker": (
        "thinker",
        "reasoner",
        {
            "model": MODEL
            | {
                "environment": part(
                    "environments.ThinkerDialogue",
                    judge="tests.helpers.talks.Sometimes",
                    budgets=dict.fromkeys(("fast", "verify", "slow", "summary"), 12),
                ),
                "sampling": {"max_new_tokens": 140},
                "rewards": [],
                "evaluation": {"samples": 2},
            }
        },
    ),
    # Killed within calls of the sandbox; an untrained model would make none. The time-out is out of reach.
    "cort": (
        "cort",
        "coder",
        {
            "model": MODEL
            | {
                "environment": part(
                    "environments.ToolEnvironment",
                    tools=[part("environments.PythonTool", limits={"wall_s": 60.0, "cpu_s": 60.0})],
                    calls="environments.CodeFence",
                    limits={"max_calls": 1},
                ),
                "sampling": {"max_new_tokens": 100},
                "rewards": [*JUDGE, part("rewards.CodeFailures")],
                "evaluation": {"samples": 2},
            }
        },
    ),
    "sft": (
        "sft",
        "reasoner",
        {"model": {"optimizer": MODEL["optimizer"]}, "data": {"train_size": 30, "val_size": 6, "batch_size": 4}},
    ),
    "dpo": (
        "dpo",
        "assistant",
        {
            "model": {"optimizer": MODEL["optimizer"], "reference": "precomputed"},
            "data": {"pairs": PAIRS, "batch_size": 32},
        },
    ),
    "distill": (
        "distill",
        "reasoner",
        {
            "model": {"optimizer": MODEL["optimizer"], "sampling": SAMPLING, "on_policy": 0.5},
            "data": {"source": "arithmetic", "train_size": 30, "val_size": 6, "batch_size": 4},
        },
    ),
    "authorship": (
        "authorship",
        "encoder",
        {"model": {"max_length": 48, "head_width": 8}, "data": {"size": 100, "batch_size": 4, "split": "random"}},
    ),
    "t_vec": (
        "t_vec",
        "reasoner",
        {
            "model": {"optimizer": MODEL["optimizer"], "mine_every": 2, "domain_tokens": 3},
            "data": {"train_size": 30, "val_size": 6, "batch_size": 4},
        },
    ),
}
#: methods whose steps are counted, not their rollouts
OFFLINE = ("sft", "dpo", "distill", "authorship", "t_vec")


@pytest.fixture
def command(reasoner, assistant, tmp_path, empty_store):
    """(method, folder) -> the command line, after the folder has been made."""

    def made(method, folder):
        config, model, changes = METHODS[method]
        folder.mkdir()
        shutil.copy(empty_store, folder / "mlflow.db")
        pandas.read_parquet(ROOT / "assets/preferences/records.parquet").head(150).to_parquet(folder / "pairs.parquet")
        shipped = {"coder": f"{ROOT}/assets/tiny_coder", "encoder": f"{ROOT}/assets/tiny_encoder"}
        policy = {"model": ({"reasoner": reasoner, "assistant": assistant} | shipped)[model]}
        overlay = {
            "model": {"init_args": changes["model"] | {"policy": policy | changes["model"].get("policy", {})}},
            "data": {"init_args": changes.get("data", DATA)},
            "trainer": {
                "max_steps": ROLLOUTS * (1 if method in OFFLINE else 2),
                "val_check_interval": 3,
                "accelerator": "cpu",
                "enable_progress_bar": False,
                "callbacks": [*changes.get("callbacks", []), TABLES, CHECKPOINTS],
            },
        }
        if method == "prorl":
            overlay["data"]["class_path"] = "datamodules.ArithmeticPrompts"
        if method in OFFLINE:
            overlay["trainer"]["limit_val_batches"] = 1
        (folder / "overlay.yaml").write_text(yaml.safe_dump(overlay))
        first = [f"--config={ROOT}/configs/laser.yaml"] if config == "laser_d" else []
        return [*first, f"--config={ROOT}/configs/{config}.yaml", "--config=overlay.yaml"]

    return made


def equal_to(undisturbed, folder):
    # A run that goes on from an epoch's last rollout has begun one epoch less by Lightning's count, which only the next
    # start reads; the epochs done are equal.
    begun = re.compile(r"\.loops\.fit_loop\.epoch_progress\.\w+\.(ready|started)")
    assert [d for d in differences(state(undisturbed), state(folder)) if not begun.match(d)] == []
    logged, expected = metrics(folder), metrics(undisturbed)
    assert logged.keys() == expected.keys()
    assert {key: values for key, values in logged.items() if values != expected[key]} == {}
    assert tables(folder) == tables(undisturbed)
    for run in (undisturbed, folder):
        for name in ("pass_rates.jsonl", "policy/model.safetensors"):
            found = [path.read_bytes() for path in run.glob(f"runs/*/{name}")]
            assert found == [path.read_bytes() for path in undisturbed.glob(f"runs/*/{name}")]


def kill_and_compare(method, command, tmp_path, begin, kills_wanted, more=()):
    """Kill so many times, going on after each; every run that ends must equal the undisturbed one."""
    undisturbed = tmp_path / "undisturbed"
    began = time.monotonic()
    assert finish(begin([*command(method, undisturbed), *more], undisturbed)) == 0, (
        undisturbed / "log.txt"
    ).read_text()[-3000:]
    length = time.monotonic() - began
    assert len(metrics(undisturbed)) > 2 * ROLLOUTS
    rng = random.Random(method)
    kills = finished = 0
    folder, arguments = None, []
    while kills < kills_wanted or not finished:
        if folder is None:
            folder = tmp_path / f"killed_{finished}"
            arguments = [*command(method, folder), *more, "--ckpt_path=last"]
        process = begin(arguments, folder)
        if kills < kills_wanted and kill_after(process, rng.uniform(0, length)):
            kills += 1
            assert all(damage(path) is None for path in folder.glob("runs/*/checkpoints/*.ckpt")), (
                "a checkpoint that is not whole"
            )
            continue
        assert finish(process) == 0, (folder / "log.txt").read_text()[-3000:]
        equal_to(undisturbed, folder)
        folder, finished = None, finished + 1


#: the one with the most kinds of state stays in the normal suite
SHORT = ("hc_rlhf",)


@pytest.mark.parametrize("method", [pytest.param(m, marks=[] if m in SHORT else pytest.mark.long) for m in METHODS])
def test_a_killed_run_ends_as_the_undisturbed_one(method, command, tmp_path):
    kill_and_compare(method, command, tmp_path, start, KILLS)


@pytest.mark.long
@pytest.mark.parametrize("method", ["grpo", "hc_rlhf"])
def test_two_processes_that_are_killed_end_as_undisturbed_ones(method, command, tmp_path):
    kill_and_compare(method, command, tmp_path, Command, KILLS, TWO)


TWO = ["--trainer.devices=2", "--trainer.strategy=ddp"]


def signalled(number, command, folder):
    """GRPO without periodic checkpoints, ended by a signal after rollout 2: (status, checkpoint, log, arguments)."""
    arguments = command("grpo", folder)
    overlay = folder / "overlay.yaml"
    overlay.write_text(overlay.read_text().replace("every_n_rollouts: 2", "every_n_rollouts: 0"))
    process = start(arguments, folder)
    wait_for(lambda: any(folder.glob("runs/*/completions/train_000002.json")))
    os.kill(process.pid, number)
    status = finish(process)
    (saved,) = folder.glob("runs/*/checkpoints/*.ckpt")
    assert damage(saved) is None
    return status, saved, (folder / "log.txt").read_text(), arguments


def test_sigterm_saves_and_says_so(command, tmp_path):
    undisturbed, folder = tmp_path / "undisturbed", tmp_path / "terminated"
    assert finish(start(command("grpo", undisturbed), undisturbed)) == 0
    status, saved, log, arguments = signalled(signal.SIGTERM, command, folder)
    assert status == 143
    assert f"is in {saved.relative_to(folder)}; continue with --ckpt_path last" in log
    assert finish(start([*arguments, "--ckpt_path=last"], folder)) == 0
    assert metrics(folder) == metrics(undisturbed)


class Terminate(lightning.Callback):
    """SIGTERM to the own process when a hook is called after so many rollouts, once in a folder for each."""

    def __init__(self, hook: str, after: list[int]) -> None:
        self.after = after
        setattr(self, hook, self.look)

    def look(self, trainer, *_):
        done = trainer.fit_loop.epoch_loop.batch_progress.total.ready
        if done in self.after and not Path(f"terminated_{done}").exists():
            Path(f"terminated_{done}").touch()
            os.kill(os.getpid(), signal.SIGTERM)


#: in a rollout, in one that is validated, in a validation; in the last rollout of an epoch and in the next
MOMENTS = [
    ("on_train_batch_start", [2]),
    ("on_train_batch_start", [3, 6]),
    ("on_validation_start", [3]),
    ("on_train_batch_start", [7, 8]),
]


@pytest.mark.long
def test_a_terminated_run_ends_as_the_undisturbed_one(command, tmp_path):
    undisturbed = tmp_path / "undisturbed"
    assert finish(start(command("grpo", undisturbed), undisturbed)) == 0
    for number, (hook, after) in enumerate(MOMENTS):
        folder = tmp_path / f"terminated_{number}"
        arguments = command("grpo", folder)
        overlay = yaml.safe_load((folder / "overlay.yaml").read_text())
        overlay["trainer"]["callbacks"].append(part("tests.resume.test_kill.Terminate", hook=hook, after=after))
        (folder / "overlay.yaml").write_text(yaml.safe_dump(overlay))
        for rollout in after:
            assert finish(start([*arguments, "--ckpt_path=last"], folder)) == 143
            assert f"the state after rollout {rollout} is in" in (folder / "log.txt").read_text()
        assert finish(start([*arguments, "--ckpt_path=last"], folder)) == 0
        equal_to(undisturbed, folder)


@pytest.mark.long
def test_one_of_two_processes_trains_the_scorers_while_the_other_waits(command, tmp_path):
    folder = tmp_path / "two"
    process = Command([*command("hc_rlhf", folder), *TWO, "--trainer.max_steps=2"], folder)
    assert finish(process) == 0, (folder / "log.txt").read_text()[-3000:]
    log = (folder / "log.txt").read_text()
    assert (
        log.count("Reward model: training") == 1
        and log.count("Cost model: held-out") == 1
        and "HCRLHF: 1 rollouts" in log
    )


def test_one_ctrl_c_saves_and_says_so(command, tmp_path):
    status, saved, log, _ = signalled(signal.SIGINT, command, tmp_path / "interrupted")
    assert status == 130
    assert "Press Ctrl+C again to stop at once" in log
    assert f"SIGINT: the state after rollout {int(saved.stem[-6:])} is in" in log


class Pause(lightning.Callback):
    """Say that one hook has begun, and stay in it."""

    def __init__(self, hook: str) -> None:
        setattr(self, hook, self.stay)

    def stay(self, *_):
        Path("reached").touch()
        time.sleep(300)


@pytest.mark.parametrize("where", ["on_train_batch_end", "on_save_checkpoint", "on_exception"])
def test_a_second_ctrl_c_stops_at_once(where, command, tmp_path):
    """In a rollout, while the state is saved, and while the run ends."""
    folder = tmp_path / "twice"
    arguments = command("grpo", folder)
    overlay = yaml.safe_load((folder / "overlay.yaml").read_text())
    overlay["trainer"]["callbacks"][-1] = part("callbacks.RolloutCheckpoint")
    overlay["trainer"]["callbacks"].append(part("tests.resume.test_kill.Pause", hook=where))
    (folder / "overlay.yaml").write_text(yaml.safe_dump(overlay))
    process = start(arguments, folder)
    wait_for(lambda: any(folder.glob("runs/*/completions/train_000001.json")))
    os.kill(process.pid, signal.SIGINT)
    wait_for(lambda: "Press Ctrl+C again" in (folder / "log.txt").read_text())
    wait_for((folder / "reached").exists)
    os.kill(process.pid, signal.SIGINT)
    assert finish(process) == 1
    assert "Traceback" not in (folder / "log.txt").read_text()
    left = list(folder.glob("runs/*/checkpoints/*"))  # no half of a checkpoint
    assert [path.suffix for path in left] == ([".ckpt"] if where == "on_exception" else []) and not any(
        map(damage, left)
    )


@pytest.mark.long  # test_sigterm_saves_and_says_so is the same for one process
@pytest.mark.parametrize("told", ["one", "all"])
def test_sigterm_ends_two_processes(told, command, tmp_path):
    """A cluster tells all processes; a person with `kill` tells the first, whatever the others are waiting for."""
    folder = tmp_path / "terminated"
    process = Command([*command("grpo", folder), *TWO], folder)
    wait_for(lambda: any(folder.glob("runs/*/completions/train_000002.json")))
    os.kill(process.pid if told == "all" else -process.pid, signal.SIGTERM)
    assert finish(process) == 143
    newest = max(folder.glob("runs/*/checkpoints/*.ckpt"))
    assert (
        damage(newest) is None
        and f"is in {newest.relative_to(folder)}; continue with --ckpt_path last" in (folder / "log.txt").read_text()
    )


def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(command, tmp_path):
    undisturbed, folder = tmp_path / "undisturbed", tmp_path / "damaged"
    arguments = command("grpo", undisturbed)
    assert finish(start(arguments, undisturbed)) == 0
    shutil.copytree(undisturbed, folder)
    older, newest = sorted(folder.glob("runs/*/checkpoints/*.ckpt"))
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 0xFF  # one byte in the middle of the weights
    newest.write_bytes(content)
    assert damage(newest) is not None and damage(older) is None
    assert finish(start([*arguments, "--ckpt_path=last"], folder)) == 0
    log = (folder / "log.txt").read_text()
    assert "is damaged" in log and f"Last checkpoint of lightning_modules.GRPO: {older.relative_to(folder)}" in log
    equal_to(undisturbed, folder)
    newest.write_bytes(newest.read_bytes()[:1000])
    assert finish(start([*arguments, f"--ckpt_path={newest}"], folder)) != 0
    assert "cannot be used" in (folder / "log.txt").read_text() and str(older) in (folder / "log.txt").read_text()
