"""Refuse to mix the project's packages with others of the same name.

The packages have short names: `rewards`, `callbacks`, `datamodules`. A folder or a file of such a name that comes
earlier on `sys.path` (beside the user's script, say) hides ours, and the import ends in "cannot import name
'total_reward' from 'rewards'". Each package therefore calls `check_siblings` first. This module stands alone at the top
because a check inside one of the packages could be hidden itself.
"""

import importlib.util
import os
import sys

#: package -> the other packages that it imports, directly or through them
SIBLINGS = {
    "support": (),
    "objectives": ("support",),
    "policies": ("support",),
    "datamodules": ("support",),
    "tracking": ("support",),
    "rollouts": ("policies", "support"),
    "rewards": ("datamodules", "policies", "rollouts", "support"),
    "environments": ("datamodules", "policies", "rewards", "rollouts", "support"),
    "callbacks": (
        "datamodules", "environments", "lightning_modules", "objectives", "policies", "rewards", "rollouts", "support",
        "tracking",
    ),
    "lightning_modules": (
        "datamodules", "environments", "objectives", "policies", "rewards", "rollouts", "support", "tracking",
    ),
    "cli": (
        "callbacks", "datamodules", "environments", "lightning_modules", "objectives", "policies", "rewards",
        "rollouts", "support", "tracking",
    ),
    "assets": ("datamodules", "policies", "rewards", "rollouts", "support"),
    "benchmarks": (
        "assets", "callbacks", "cli", "datamodules", "environments", "lightning_modules", "objectives", "policies",
        "rewards", "rollouts", "support", "tracking",
    ),
}  # fmt: skip


def check_siblings(package: str) -> None:
    """Verify that Python finds the packages that `package` imports in the folder that holds `package`.

    Each name is looked up without importing it, which takes well under a millisecond.

    Raises:
        ImportError: if another folder or file of that name comes first; names both paths and what to do.
    """
    root = os.path.dirname(_location(package))
    for name in SIBLINGS[package]:
        location = _location(name)
        if location and os.path.realpath(os.path.dirname(location)) != os.path.realpath(root):
            raise ImportError(
                f"{package} needs the package {os.path.join(root, name)}, but Python finds {location} first under the "
                f"name {name!r}. Rename {location}, or, if you do not need it in this program, put the project first "
                f"at the top of your script: import sys; sys.path.insert(0, {root!r})",
                name=name,
                path=location,
            )


def _location(name: str) -> str:
    """The folder of a top-level package, or the file of a module; "" if it is not installed."""
    module = sys.modules.get(name)
    spec = importlib.util.find_spec(name) if module is None else getattr(module, "__spec__", None)
    if spec is not None and spec.submodule_search_locations:
        return str(next(iter(spec.submodule_search_locations)))
    return str(spec.origin) if spec is not None and spec.has_location else ""
