"""A paragraph instead of an AttributeError for a constructor's argument of the wrong kind."""

from typing import Any

from torch.optim import Optimizer

from policies import PolicyParams
from support.errors import ConfigError


def check_part(owner: object, name: str, value: Any, kind: type, example: str) -> None:
    """Refuse an argument that is not an instance of `kind`. Raises ConfigError that shows `example`."""
    if isinstance(value, kind):
        return
    shown = f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__} ({value!r:.60})"
    raise ConfigError(
        f"{type(owner).__name__}: {name} is {shown}, but it must be an instance of "
        f"{kind.__module__.partition('.')[0]}.{kind.__name__}, for example {example}."
    )


def check_policy(owner: object, policy: Any) -> None:
    """Refuse anything but PolicyParams. Raises ConfigError."""
    model = policy if isinstance(policy, str) else "assets/tiny_reasoner"
    check_part(owner, "policy", policy, PolicyParams, f"PolicyParams({model!r})")


def check_factory(owner: object, name: str, factory: Any, made_from: str) -> None:
    """Refuse a finished optimiser or scheduler where a function that makes one is needed. Raises ConfigError.

    Args:
        made_from: what the function receives, the name of its parameter.
    """
    if callable(factory) and not isinstance(factory, Optimizer):
        return
    raise ConfigError(
        f"{type(owner).__name__}: {name} is a finished {type(factory).__name__}, but the model is loaded later than "
        f"the module is made; give a function that makes it, for example lambda {made_from}: "
        + ("torch.optim.AdamW(parameters, lr=1e-6)." if made_from == "parameters" else "LinearLR(optimizer).")
    )
