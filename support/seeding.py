"""Derived randomness: the draws of rollout n depend on (seed, n, purpose, prompt) and on nothing that ran before.

A resumed run therefore repeats the uninterrupted one without any saved generator state, and a validation in between
does not disturb training.
"""

import hashlib
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive_seed(*parts: int | str) -> int:
    """A seed in [0, 2**63) that depends on every part and on their order."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@contextmanager
def isolated_rng(*parts: int | str) -> Iterator[None]:
    """Seed torch (every device), numpy and random from `parts`, and restore the caller's generators at the end."""
    seed = derive_seed(*parts)
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


def run_seed() -> int:
    """The seed given to `lightning.seed_everything` (or as `seed_everything` in a configuration); 0 without one."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))
