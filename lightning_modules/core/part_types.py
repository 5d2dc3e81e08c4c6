"""A paragraph instead of an AttributeError for a constructor's argument of the wrong kind."""

import pickle
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer

from policies import PolicyParams
from support.errors import ConfigError


def check_part(owner: object, name: str, value: Any, kind: type, example: str) -> None:
    """Refuse an argument that is not an instance of `kind`. Raises ConfigError that shows `example`."""
    if isinstance(value, kind):
        return
    if type(value).__name__ == "Namespace":  # the command line's, which makes objects for annotated parameters only
        raise ConfigError(
            f"{type(owner).__name__}: {name} was not made from its configuration, because the constructor of "
            f"{type(owner).__name__} does not state its type; write `{name}: {kind.__name__}` there."
        )
    shown = f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__} ({value!r:.60})"
    raise ConfigError(
        f"{type(owner).__name__}: {name} is {shown}, but it must be an instance of "
        f"{kind.__module__.partition('.')[0]}.{kind.__name__}, for example {example}."
    )


def check_policy(owner: object, policy: Any) -> None:
    """Refuse anything but PolicyParams. Raises ConfigError."""
    model = policy if isinstance(policy, str) else "assets/tiny_reasoner"
    check_part(owner, "policy", policy, PolicyParams, f"PolicyParams({model!r})")


class Factory:
    """A function that makes an optimiser or a scheduler, as a part of a module that can be copied and pickled.

    Pickle cannot keep a lambda; a module that comes out of a pickle without it can sample, but not train.
    """

    def __init__(self, name: str, function: Callable[[Any], Any] | None) -> None:
        self.name, self.function = name, function

    def __call__(self, made_from: Any) -> Any:
        if self.function is None:
            raise ConfigError(
                f"this module was pickled with a lambda as its {self.name}, which a pickle cannot keep. Make the "
                f"module again, or pickle it with {self.name}=functools.partial(torch.optim.AdamW, lr=1e-6)."
            )
        return self.function(made_from)

    def __reduce__(self) -> tuple[type["Factory"], tuple[str, Any]]:
        try:
            pickle.dumps(self.function)
        except (pickle.PicklingError, AttributeError, TypeError):
            return Factory, (self.name, None)
        return Factory, (self.name, self.function)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Factory":
        return self


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
