"""The weights of a checkpoint, compared with a module's before they are loaded."""

from typing import Any

from support.errors import ConfigError


def check_weights(
    expected: dict[str, Any], saved: dict[str, Any], rebuilt: set[str], no_reference: tuple[str, str]
) -> None:
    """Refuse weights that do not fit.

    Args:
        expected: the module's weights by name. saved: the checkpoint's.
        rebuilt: names that a checkpoint leaves out because loading the model restores them.
        no_reference: what makes a run do without a reference, and how a run resumes from its checkpoint.

    Raises:
        ConfigError: for a weight of another shape, and for missing weights.
    """
    remedy = "it was made with another policy or LoRA setting. Resume with the configuration that it was trained with."
    if resized := [name for name in expected.keys() & saved.keys() if expected[name].shape != saved[name].shape]:
        name = min(resized)
        raise ConfigError(
            f"the checkpoint's {name} has the shape {tuple(saved[name].shape)}, this model's "
            f"{tuple(expected[name].shape)}; {remedy}"
        )
    missing = expected.keys() - saved.keys() - rebuilt
    if missing and all(name.startswith("policy.reference.") for name in missing):
        raise ConfigError(
            f"the checkpoint has no reference, because its run had {no_reference[0]}, and this run needs one. "
            f"{no_reference[1]}, or start a run of its own from the exported policy (callbacks.ExportPolicy, "
            "then model.policy.model)."
        )
    if missing:
        raise ConfigError(
            f"the checkpoint lacks {len(missing)} of this model's weights, among them {min(missing)}; {remedy}"
        )
