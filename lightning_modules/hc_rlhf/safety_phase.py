"""Phase 5 of HC-RLHF: the safety test after training or by `main.py test`, its ledger, certificate and export."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from lightning_modules.core.generator import generator
from lightning_modules.core.on_policy import OnPolicyModule
from lightning_modules.hc_rlhf.exported import check_export, folder_weights, generation_words, write_generation_config
from lightning_modules.hc_rlhf.ledger import Ledger
from lightning_modules.hc_rlhf.publish import publish
from lightning_modules.hc_rlhf.safety_test import Rows, SafetyTest, Verdict, run_test
from lightning_modules.hc_rlhf.score_models import ScoreModels
from lightning_modules.hc_rlhf.settings import Constraint
from lightning_modules.hc_rlhf.splits import check_splits, safety_data
from objectives import Bound
from rewards import Reward
from rollouts import RolloutBatch
from support.errors import ConfigError
from support.files import fingerprint
from support.identity import identity, identity_fingerprint, replaced_methods
from support.prompt_identity import split_fingerprint
from support.seeding import run_seed
from support.seen_prompts import SeenPrompts

#: settings of the test that decide whether and where, not how, it is done
_PLACES = {"skip", "allowance", "ledger", "export"}


class SafetyTestPhase(OnPolicyModule):
    """The part of `HCRLHF` that tests the trained policy once, on prompts that nothing has seen."""

    constraint: Constraint
    bound: Bound
    test_params: SafetyTest
    models: ScoreModels
    monitors: list[Reward]
    cost: Reward | None
    before: dict[str, float]
    after: dict[str, float]
    verdict: Verdict | None

    def _data(self) -> Any:
        return safety_data(self.trainer, needs_pairs=self.models.incomplete)

    # ---- when it is done ---------------------------------------------------------------------------------------------

    def on_train_end(self) -> None:
        if self.test_params.skip and self.trainer.is_global_zero:
            print("NOT TESTED: model.test.skip is set, so nothing is certified and nothing is exported.")
        if not (self._cut_short or self.test_params.skip):
            self.safety_test()

    def on_fit_end(self) -> None:
        """Test a resumed run that was killed in its test: it has no training left, so `on_train_end` is not called."""
        unfinished = self.verdict is None and not self.test_params.skip and self.trainer.is_global_zero
        if unfinished and not self._cut_short:
            self.to(self.trainer.strategy.root_device)
            self.safety_test()

    @property
    def _cut_short(self) -> bool:
        """Whether the training is a trial of a few batches, or was interrupted."""
        return bool(self.trainer.fast_dev_run or self.trainer.interrupted)  # type: ignore[attr-defined]

    def on_test_start(self) -> None:
        self.check_unseen()  # before the evaluation, which takes long

    def on_test_end(self) -> None:
        if self.test_params.skip:
            if self.trainer.is_global_zero:
                print("NOT TESTED: model.test.skip is set, so no safety test is spent.")
            return
        if self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            if self.trainer.is_global_zero:
                print("NOT TESTED: a trial by trainer.fast_dev_run spends no safety test.")
            return
        self.safety_test()

    # ---- what it must not have seen, and what was spent --------------------------------------------------------------

    def seen_by_all(self) -> SeenPrompts:
        """Fingerprints of the prompts that the policy, its start, its checkpoint and its scorers saw."""
        seen = SeenPrompts()
        seen.update(self.seen_prompts())
        seen.update(self.models.seen_prompts([*self.rewards, *([] if self.cost is None else [self.cost])]))
        return seen

    def check_unseen(self) -> None:
        """Refuse a safety split that shares a prompt with anything that was seen. Raises ConfigError."""
        check_splits(self._data(), self.seen_by_all())

    def _ledger(self, policy: str | None = None) -> Ledger:
        return Ledger([row["prompt"] for row in self._data().rows("safety")], self.test_params.ledger, policy)

    def warn_if_spent(self) -> None:
        """Say before a training that its test will be refused."""
        ledger, delta, allowance = self._ledger(), self.constraint.delta, self.test_params.allowance
        limit, number, spent = ledger.budget(delta, allowance)
        tests = len(ledger.tests())
        if tests >= number or spent + delta / allowance > limit * (1 + 1e-9):
            print(
                f"Note: this safety split has served {tests} test(s) of {number} allowed, which spent {spent:.4g} of "
                f"{limit:.4g}, so this run's test will be refused unless the run reproduces the tested policy exactly. "
                "Draw a fresh split (another --seed_everything)."
            )

    def warn_if_unidentified(self) -> None:
        """Say before a training that its cost equals no other, not even itself."""
        cost = self.models.cost  # a trained model always can be identified
        if cost is not None and identity_fingerprint(cost) != identity_fingerprint(cost):
            print(
                f"Note: model.cost ({type(cost).__name__}) holds something that cannot be identified, such as a lock, "
                "a connection or a generator, so its test cannot be continued after an interruption, nor shown again. "
                "Make such parts where they are used, inside the cost's `score`."
            )

    # ---- the test ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def safety_test(self) -> Verdict | None:
        """Test the policy once on the safety split; export it if it passes.

        Prints the verdict and writes the certificate. Returns None on all processes but the first. Raises ConfigError
        if the tests of these prompts may spend no more.
        """
        with self.whole_weights():
            return self._safety_test() if self.trainer.is_global_zero else None

    def question(self) -> str:
        """Fingerprint of everything that decides the verdict besides what generates: other settings are another test.

        The cost counts as it is now, whatever was done to it since it was loaded. The rows count in their order and
        with all their columns, since the ledger's split compares normalised texts. The size of batches counts only
        where the test looks after each, which decides the bound; a test of all responses at once does not use it.
        Methods of this module that Python replaced count too.
        """
        options, settings = self.constraint, asdict(self.test_params)
        limits = [options.threshold, options.delta, options.cost_scale, identity(self.bound)]
        unused = _PLACES if self.test_params.sequential else {*_PLACES, "batch_size"}
        how = {name: value for name, value in settings.items() if name not in unused}
        code = [type(self), replaced_methods(self), self.cost]
        return identity_fingerprint(*code, limits, how, self._data().rows("safety"), run_seed())

    def _safety_test(self) -> Verdict:
        assert self.cost is not None
        replace(self.constraint), replace(self.test_params)  # checks of settings that Python changed
        self.test_params.bound_for(self.bound, self.cost.span)
        if self.policy_params.realign is not None:
            raise ConfigError(
                f"policy.realign is {self.policy_params.realign:g}, but the certificate speaks of an exported folder, "
                "which holds the path through the adapter alone. Set model.policy.realign to null for the safety test."
            )
        self.check_unseen()
        what, question = generator(self, self.sampling), self.question()
        candidate = fingerprint([what])
        ledger = self._ledger(what["weights"])
        with ledger.locked():
            recorded = ledger.find(candidate, question)
            again = recorded is not None
            if recorded is None:
                delta = ledger.begin(candidate, question, self.constraint.delta, self.test_params.allowance)
                recorded = ledger.record(candidate, question, self._test(delta))
            tests = ledger.tests()
            limit, number, spent = ledger.budget(self.constraint.delta, self.test_params.allowance)
            journal = ledger.facts()
        seen, rows = self.seen_by_all(), self._data().rows("safety")
        generated = f"{generation_words(self.sampling)}, by {type(self.engine).__name__} in {self._precision}"
        if self.policy_params.chat_template_args:
            generated += f", with the chat template's arguments {self.policy_params.chat_template_args}"
        facts = {
            "cost_scale": self.constraint.cost_scale,
            "policy_sha256": what["weights"],
            "generated": generated,
            "candidate": what,
            "safety_split": ledger.split,
            "other_splits": {
                name: split_fingerprint(row["prompt"] for row in self._data().rows(name)) for name in ("train", "val")
            },
            "prompts_compared": {source: len(prints) for source, prints in sorted(seen.by_source.items())},
            "prompts_unknown": sorted(seen.unknown),
            "delta_of_all_tests": limit,
            "delta_left": max(0.0, limit - spent),
            "allowance": number,
            "ledger": journal,
            "interrupted_before": recorded.get("interrupted", 0),
            "seed": run_seed(),
            **self.models.facts(self.rewards, self.cost),
            "validation": {
                name: {"before": self.before[name], "after": value}
                for name, value in self.after.items()
                if name in self.before
            },
            "config": {name: asdict(getattr(self, name)) for name in ("constraint", "kl", "batch", "sampling")},
            "remarks": [text for text in (ledger.place, _unknown(seen), *_other_tests(tests)) if text],
        }
        elsewhere = sum(test["on_other_prompts"] for test in tests)
        tested = f"{self.policy_params.model}, weights {what['weights'][:12]}"
        if self.trainer.ckpt_path:
            tested += f", checkpoint {self.trainer.ckpt_path}"
        report = [
            f"  tested       {tested}",
            f"  generated    {generated}",
            f"  prompts      {len(rows)} of {type(self._data()).__name__}, split {ledger.split[:12]}, none of them "
            f"among the {len(set().union(*seen.by_source.values()))} prompts that were seen",
            *([f"  unknown      the prompts seen by {', '.join(sorted(seen.unknown))}"] if seen.unknown else []),
            f"  tests        {len(tests) - 1 - elsewhere} other test(s) of these prompts"
            + (f", {elsewhere} of this policy on other prompts" if elsewhere else "")
            + ("; this verdict is the recorded one, nothing was tested again" if again else ""),
            f"  delta        {spent:.4g} of {limit:.4g} spent on these prompts ({number} test(s) declared), "
            f"{max(0.0, limit - spent):.4g} left",
            f"  ledger       {journal['path']}, {journal['events']} events, {journal['hash'][:12]}",
            *([f"               {ledger.place}"] if ledger.place else []),
        ]

        def save(folder: Path) -> dict[str, Any]:
            return self._export_tested(folder, what["weights"])

        self.verdict = publish(self.trainer, recorded, tests, facts, report, self.test_params.export, save)
        return self.verdict

    @property
    def _precision(self) -> str:
        return f"{self.policy_params.dtype} (trainer.precision {self.precision})"

    def _export_tested(self, folder: Path, weights: str) -> dict[str, Any]:
        """Write the policy with the sampling settings of the test, and check that it is what was tested."""
        self.export(folder)
        write_generation_config(folder, self.sampling)
        gap = check_export(self, folder, self._data().rows("safety"))
        if folder_weights(folder) != weights:
            raise ConfigError(
                f"the weights in {folder} are not bit for bit the tested ones, so the policy is not exported. The "
                "verdict is in the ledger; report this model, whose weights do not survive saving."
            )
        return {"export_logprob_difference": gap}

    def _test(self, delta: float) -> dict[str, Any]:
        """Sample responses to the safety prompts. Returns the costs and the verdict."""
        rows, limit = self._data().rows("safety"), self.constraint.threshold
        return run_test(rows, self._answers, self._costs, self.monitors, limit, delta, self.bound, self.test_params)

    def _answers(self, rows: Rows) -> RolloutBatch:
        return self.sample(rows, 1, self.sampling)

    def _costs(self, batch: RolloutBatch) -> torch.Tensor:
        """The cost of every response. Raises ConfigError if one has none."""
        assert self.cost is not None
        costs = self.cost(batch)
        if problem := cost_problem(costs, batch):
            raise ConfigError(problem)
        return costs


def cost_problem(costs: torch.Tensor, batch: RolloutBatch) -> str:
    """A message about responses whose cost abstained or is not a finite number; "" without such responses."""
    missing = ~costs.isfinite()
    if not bool(missing.any()):
        return ""
    row = int(missing.nonzero()[0])
    return (
        f"the cost is {float(costs[row])} for {int(missing.sum())} of {len(costs)} responses, first for prompt "
        f"{batch.column('id')[row]!r} and response {batch.completions[row][:80]!r}. The constraint and the safety test "
        "need the cost of every response; let model.cost return a finite number for each, the largest cost where it "
        "cannot judge."
    )


def _unknown(seen: SeenPrompts) -> str:
    """A remark about models whose prompts are unknown; "" without such models."""
    if not seen.unknown:
        return ""
    names = ", ".join(sorted(seen.unknown))
    return f"Unknown, and therefore not compared with the safety prompts: the prompts seen by {names}."


def _other_tests(tests: list[dict[str, Any]]) -> list[str]:
    """Remarks about other tests of these prompts, and of this policy on other prompts."""
    elsewhere = sum(test["on_other_prompts"] for test in tests)
    remarks = []
    if number := len(tests) - 1 - elsewhere:
        remarks.append(
            f"These prompts served {number} other test(s). Costs of an earlier test that were looked at make later "
            "candidates depend on these prompts, which the division of delta among the tests does not cover."
        )
    if elsewhere:
        remarks.append(
            f"This policy served {elsewhere} other test(s) on other prompts, which delta is divided among too."
        )
    return remarks
