"""The modules that a forked run finds imported."""

import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
import peft  # noqa: F401
import torch
import transformers.models.llama.modeling_llama  # noqa: F401

import main  # noqa: F401

torch.set_num_threads(1)
