"""Import paths of earlier versions, which users' files and saved configurations still name.

`import lightning_modules.base` gives the module that is now `lightning_modules.core.posttrain_module`: the same object,
so that classes stay the same.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType

_CORE = (
    "dynamic_sampling evaluation failure_counts on_policy overlap policy_update problem_counts reference_rewards "
    "telemetry terms thinking_stats verified_votes"
)

#: former module -> present module
MOVED = {
    **{f"lightning_modules.{name}": f"lightning_modules.core.{name}" for name in _CORE.split()},
    "lightning_modules.base": "lightning_modules.core.posttrain_module",
    "lightning_modules.checks": "lightning_modules.core.data_checks",
    "lightning_modules.effect": "lightning_modules.core.effect_watch",
    "lightning_modules.updates": "lightning_modules.core.micro_batches",
    "lightning_modules.memory": "cli.memory_estimate",
    "lightning_modules.plan": "cli.run_plan",
    "lightning_modules.preference": "lightning_modules.reward_models",
    "lightning_modules.score_models": "lightning_modules.hc_rlhf.score_models",
    "lightning_modules.scorer_training": "lightning_modules.hc_rlhf.scorer_training",
    "lightning_modules.safety": "lightning_modules.hc_rlhf",
    "lightning_modules.safety.test": "lightning_modules.hc_rlhf.safety_test",
    **{
        f"lightning_modules.safety.{name}": f"lightning_modules.hc_rlhf.{name}"
        for name in ("certificate", "ledger", "publish", "settings", "splits", "verify")
    },
    "datamodules.curriculum": "datamodules.samplers.curriculum",
    "datamodules.files": "datamodules.file_prompts",
    "datamodules.records": "datamodules.records_desk",
    "datamodules.sampler": "datamodules.samplers.prompt_sampler",
    "objectives.preference": "objectives.preference_losses",
    "policies.texts": "policies.prompt_encoding",
    "rollouts.plan": "rollouts.batch_plan",
    "rollouts.records": "rollouts.completion_records",
    "rollouts.thinking": "rollouts.thinking_format",
    "support.command_line": "cli.command_line",
    "support.compare": "benchmarks.compare",
    "support.compare.methods": "benchmarks.compare.methods",
    "support.compare.pictures": "benchmarks.compare.pictures",
    "support.compare.report": "benchmarks.compare.report",
    "support.compare.runs": "benchmarks.compare.trials",
    "support.compare.statistics": "benchmarks.compare.intervals",
    "support.inspect": "cli.inspect",
    "support.memory": "support.allocator",
    "support.naming": "tracking.run_names",
    "support.pass_rates": "datamodules.pass_rates",
    "support.prompts": "support.prompt_identity",
    "support.records": "tracking.run_records",
    "support.runs": "tracking.runs",
    "support.suggestions": "cli.suggestions",
    "support.tracking": "tracking.logger",
}


#: former modules that were run as commands (`python -m`), where that is another module today
_COMMANDS = {"support.tracking": "tracking"}


def present_path(class_path: str) -> str:
    """The present dotted path of a class whose module has moved; other paths are returned unchanged."""
    module, _, name = class_path.rpartition(".")
    return f"{MOVED[module]}.{name}" if module in MOVED else class_path


class _PresentModule(Loader):
    """Gives the module that is at the present path already, instead of making one."""

    def __init__(self, name: str) -> None:
        self.name = name

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        self.module = importlib.import_module(self.name)
        self.spec = self.module.__spec__
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.spec  # the import system has just replaced it by the former name's

    def get_code(self, name: str) -> CodeType:
        """For `python -m` with the former name."""
        command = _COMMANDS.get(name, self.name)
        return compile(
            f"import runpy\nrunpy.run_module({command!r}, run_name='__main__', alter_sys=True)", name, "exec"
        )


class _MovedModules(MetaPathFinder):
    """Finds modules by their former names."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        name = MOVED.get(fullname)
        return None if name is None else ModuleSpec(fullname, _PresentModule(name), origin=name)


def register() -> None:
    """Make the former names importable.

    The finder comes first: a package under its former name has the present package's folder, where the ordinary finder
    would load every file a second time.
    """
    if not any(isinstance(finder, _MovedModules) for finder in sys.meta_path):
        sys.meta_path.insert(0, _MovedModules())
