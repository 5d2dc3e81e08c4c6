import shutil

import pytest
import torch

from assets.make_untrained import assistant_tokenizer, reasoner_tokenizer, save_random
from policies import Policy, PolicyParams

torch.set_num_threads(1)


def save_tiny(folder, tokenizer, layers=2, context=256):
    torch.manual_seed(7)
    save_random(
        folder,
        tokenizer,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=context,
    )
    return str(folder)


@pytest.fixture(scope="session")
def reasoner(tmp_path_factory):
    """Folder of an untrained 20,000-weight model with the reasoner's tokenizer."""
    return save_tiny(tmp_path_factory.mktemp("reasoner"), reasoner_tokenizer())


@pytest.fixture(scope="session")
def assistant(tmp_path_factory):
    """The same with the assistant's tokenizer."""
    return save_tiny(tmp_path_factory.mktemp("assistant"), assistant_tokenizer())


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder of the test's own as the working directory, for command lines, with a seed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    return tmp_path


@pytest.fixture
def policy(reasoner):
    return Policy(PolicyParams(reasoner), with_reference=True)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    """An MLflow database as it is made at first use, which takes seconds; tests begin with a copy."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    folder = tmp_path_factory.mktemp("store")
    SqlAlchemyStore(f"sqlite:///{folder}/mlflow.db", str(folder / "mlruns"))
    return folder / "mlflow.db"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, tmp_path_factory, monkeypatch, empty_store):
    """Keeps tests away from the user's cache and from each other's MLflow store.

    MLflow keeps a connection by its address: a relative one would reach the store of an earlier test in another folder.
    """
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    monkeypatch.setenv("LIGHTNING_POSTTRAIN_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
