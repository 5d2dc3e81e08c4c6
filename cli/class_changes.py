"""Values that a setting keeps when a later configuration or argument names another class for it.

jsonargparse keeps every option that the new class also has, by name: `loss: objectives.ClippedSurrogate` after
`gspo.yaml` would keep GSPO's clip range of 3e-4, and a callback would take over `every_n_rollouts` from the callback
that stood at its place. Here another class starts from its own defaults. A method or a data module keeps what was set
explicitly, since `--model lightning_modules.ProRL` is meant to change the method and not the model that it trains; the
defaults of the earlier class do not count as set.
"""

from typing import Any

import lightning as L
from jsonargparse import Namespace, _typehints

_keep_valid = _typehints.discard_init_args_on_class_path_change


def start_afresh(parser_or_action: Any, previous: Any, value: Any) -> None:
    """Remove from `previous` what the class in `value` must not inherit.

    Args:
        parser_or_action: of the setting, or the parser of the new class.
        previous: class_path and init_args so far, changed in place.
        value: the new class_path with its init_args.
    """
    if not previous or "init_args" not in previous or previous["class_path"] == value["class_path"]:
        return
    if not isinstance(previous["init_args"], Namespace):
        previous["init_args"] = Namespace(previous["init_args"])  # type: ignore[no-untyped-call]
    if _keeps_explicit_settings(value["class_path"]):
        options = getattr(parser_or_action, "sub_add_kwargs", {})
        parser: Any = _typehints.ActionTypeHint.get_class_parser(  # type: ignore[no-untyped-call]
            previous["class_path"], options
        )
        defaults = parser.get_defaults()
        _keep_valid(parser_or_action, previous, value)  # type: ignore[no-untyped-call]
        for key, setting in list(previous["init_args"].items(nested=False)):
            if key in defaults and _plain(defaults[key]) == _plain(setting):
                previous["init_args"].pop(key)
    else:
        previous["init_args"] = Namespace()  # type: ignore[no-untyped-call]


def _keeps_explicit_settings(class_path: str) -> bool:
    return issubclass(_typehints.import_object(class_path), (L.LightningModule, L.LightningDataModule))


def _plain(setting: Any) -> Any:
    return setting.as_dict() if isinstance(setting, Namespace) else setting


def register() -> None:
    """Make all parsers behave so."""
    _typehints.discard_init_args_on_class_path_change = start_afresh
