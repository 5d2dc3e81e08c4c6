"""Every tensor constructor names its device, or stands on a list of those that are meant for the CPU.

A constructor without one makes a tensor on the CPU, which is noticed only when it meets one on an accelerator.
"""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("rollouts", "policies", "objectives", "environments", "lightning_modules")
#: functions of torch that make a tensor of numbers, lists or draws; those with _like, and new_*, take another's device
CONSTRUCTORS = {
    *("arange", "as_tensor", "asarray", "complex", "empty", "empty_strided", "eye", "from_file", "from_numpy"),
    *("frombuffer", "full", "linspace", "logspace", "normal", "ones", "rand", "randint", "randn", "randperm", "range"),
    *("scalar_tensor", "sparse_coo_tensor", "tensor", "tril_indices", "triu_indices", "zeros"),
    *("bartlett_window", "blackman_window", "hamming_window", "hann_window", "kaiser_window"),
    *("Tensor", "BoolTensor", "DoubleTensor", "FloatTensor", "HalfTensor", "IntTensor", "LongTensor"),
}
#: function -> why its tensors are meant for the CPU, or how they find their device
ON_THE_CPU = {
    "rollouts/engine.py: uniforms": "draws of the CPU's generator, the same for all devices; moved at the end",
    "rollouts/request_engine.py: RequestEngine.generate": "replies of another program; moved at the end",
    "rollouts/storage.py: _restored": "columns of a file",
    "rollouts/storage.py: _restored.by_token": "columns of a file",
    "rollouts/storage.py: _turns": "columns of a file",
    "rollouts/written.py: text_batch": "a batch of texts for rewards, without a model",
    "policies/compute.py: probe": "measures the CPU",
    "objectives/betting.py: Betting.order": "positions, moved by the caller",
    "objectives/betting.py: Betting.width": "a bound's width, from floats",
    "objectives/betting.py: ConfidenceSequence.__init__": "costs that a checkpoint holds",
    "objectives/betting.py: ConfidenceSequence.load_state_dict": "costs that a checkpoint holds",
    "objectives/bounds.py: checked_costs": "a tensor stays where it is",
    "objectives/constraint.py: CostWindow.state_dict": "costs that a checkpoint holds",
    "objectives/retrieval.py: same_concept": "compared with scores that were moved to the CPU",
    "objectives/statistics.py: as_floats": "a tensor stays where it is",
    "objectives/statistics.py: group_statistics": "a tensor stays where it is",
    "policies/recurrent/rodimus.py: RodimusMixer.__init__": "a weight, which moves with its model",
    "policies/recurrent/rwkv6.py: ChannelMixing.__init__": "weights, which move with their model",
    "policies/recurrent/rwkv6.py: TimeMixing.__init__": "weights, which move with their model",
    "policies/encoder.py: TextEncoder.encode": "tokens, moved to the device by the caller",
    "lightning_modules/auto_think.py: AutoThink.mode_counts": "counts for `summed`",
    "lightning_modules/core/dynamic_sampling.py: refilled": "counts for `summed`",
    "lightning_modules/core/failure_counts.py: FailureCounts.add": "counts for `summed`",
    "lightning_modules/core/failure_counts.py: FailureCounts.metrics": "counts for `summed`",
    "lightning_modules/core/optimizer_steps.py: total_norm": "becomes a float",
    "lightning_modules/core/problem_counts.py: pass_metrics": "counts of samples",
    "lightning_modules/hc_rlhf/module.py: HCRLHF.auxiliary_loss": "draws of the CPU's generator, as a list",
    "lightning_modules/hc_rlhf/publish.py: publish": "costs of the ledger",
    "lightning_modules/hc_rlhf/safety_test.py: run_test": "costs, collected on the CPU",
    "lightning_modules/self_verify.py: SelfVerify.metrics": "counts for `means`",
    "lightning_modules/sequence_classifier.py: SequenceClassifier.__init__": "no counts yet; those of batches follow",
    "lightning_modules/self_verify.py: SelfVerify.prompts": "draws of the CPU's generator, as a list",
}


class Constructors(ast.NodeVisitor):
    """Collects the functions that call a constructor without a device."""

    def __init__(self, path: str, names: set[str]) -> None:
        self.path, self.names, self.scopes, self.found = path, names, [], []

    def scope(self, node):
        self.scopes.append(node.name)
        self.generic_visit(node)
        self.scopes.pop()

    visit_ClassDef = visit_FunctionDef = visit_AsyncFunctionDef = scope

    def visit_Call(self, node):
        called = node.func
        is_torch = isinstance(called, ast.Attribute) and getattr(called.value, "id", None) in ("torch", "th")
        name = called.attr if is_torch else called.id if isinstance(called, ast.Name) else None
        of_torch = name in CONSTRUCTORS if is_torch else name in self.names
        if of_torch and not any(keyword.arg in ("device", None) for keyword in node.keywords):
            self.found.append((f"{self.path}: {'.'.join(self.scopes)}", node.lineno))
        self.generic_visit(node)


def without_device(source: str, path: str = "file.py") -> list[tuple[str, int]]:
    """(function, line) of every constructor without a device."""
    tree = ast.parse(source)
    imported = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "torch"
        for alias in node.names
        if alias.name in CONSTRUCTORS - {"Tensor"}  # a type
    }
    visitor = Constructors(path, imported)
    visitor.visit(tree)
    return visitor.found


def test_every_tensor_constructor_names_a_device_or_is_meant_for_the_cpu():
    files = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    places = [place for path in files for place in without_device(path.read_text(), path.relative_to(ROOT).as_posix())]
    forgotten = [f"{function}, line {line}" for function, line in places if function not in ON_THE_CPU]
    assert not forgotten, "give a device, or list the function in ON_THE_CPU with the reason"
    assert set(ON_THE_CPU) == {function for function, _ in places}, "these are no longer needed in ON_THE_CPU"


def test_constructors_are_found_in_every_form():
    source = """
import torch
from torch import zeros as nothing
class A:
    def f(self, x, options):
        torch.zeros(3), torch.zeros(3, device=x.device), nothing(2), x.new_zeros(2), torch.zeros_like(x)
        return [torch.tensor([1])[0] for _ in x], torch.full((2,), 1, **options), torch.Tensor([1.0])
"""
    assert without_device(source) == [
        ("file.py: A.f", 6), ("file.py: A.f", 6), ("file.py: A.f", 7), ("file.py: A.f", 7)
    ]  # fmt: skip
