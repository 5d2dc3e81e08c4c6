"""LoRA adapters: adding them to a model, and the weights that act while they are active."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

from policies.params import LoRA
from support.errors import ConfigError


def with_adapter(model: Any, lora: LoRA, task_type: str | None = "CAUSAL_LM") -> Any:
    """Add a fresh adapter to the model and freeze everything else.

    Raises:
        ConfigError: no layer of the model fits `lora.target_modules`.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        task_type=task_type,
    )
    layers = {name.rpartition(".")[2] for name, part in model.named_modules() if isinstance(part, nn.Linear)}
    advice = "name those to adapt" if lora.target_modules == "all-linear" else "all-linear takes all"
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        raise ConfigError(
            f"policy.lora.target_modules is {lora.target_modules!r}, which does not fit this model: {error} "
            f"Its layers are {', '.join(sorted(layers))}; {advice}."
        ) from error
    _check_not_shared(without_wrapper(adapted), lora)
    _check_merging(without_wrapper(adapted), lora)
    return adapted


def stream_outputs(layer: Any) -> list[nn.Parameter]:
    """The weights and biases of a Llama-shaped layer whose products are added to the stream."""
    return [*layer.self_attn.o_proj.parameters(), *layer.mlp.down_proj.parameters()]


@contextmanager
def acting_adapters(model: nn.Module) -> Iterator[None]:
    """Change the adapters' output matrices, which are zero at first, so that a forward without them is noticed.

    No random numbers are drawn.
    """
    adapted: list[Any] = [module for module in model.modules() if is_adapted(module)]
    outputs = [p for layer in adapted for part in (layer.lora_B, layer.lora_embedding_B) for p in part.parameters()]
    bottom = [module for module in model.modules() if getattr(module, "is_bottom_adapter", False)]
    outputs += [parameter for layer in bottom for parameter in stream_outputs(layer)]
    local = [p.to_local() if isinstance(p, DTensor) else p for p in outputs]
    before = [part.detach().clone() for part in local]
    with torch.no_grad():
        for part in local:
            wave = torch.arange(part.numel(), device=part.device, dtype=torch.float32).mul_(1.7).sin_().mul_(0.03)
            part.add_(wave.view(part.shape).to(part.dtype))
    try:
        yield
    finally:
        with torch.no_grad():
            for part, values in zip(local, before, strict=True):
                part.copy_(values)


#: layers whose adapters can be merged by construction
_MERGE = (nn.Linear, nn.Embedding, Conv1D)


@torch.no_grad()
def _check_merging(model: nn.Module, lora: LoRA) -> None:
    """Refuse adapters on layers that do more than multiply with their weight, so that merging would change them.

    Raises:
        ConfigError: names the layer.
    """
    for name, module in model.named_modules():
        if (
            not is_adapted(module)
            or type(base := module.get_base_layer()) in _MERGE
            or hasattr(module, "parameter_name")
        ):
            continue
        with acting_adapters(module):
            weight, _ = acting_weight(module)
            if isinstance(base, nn.Embedding):
                example = torch.arange(min(4, len(weight)), device=weight.device)
            else:
                example = torch.linspace(-1, 1, base.in_features, device=weight.device, dtype=weight.dtype)[None]
            was_training, error = module.training, ""
            module.eval()
            try:
                merged, apart = functional_call(base, {"weight": weight}, (example,)), module(example)
                gap = float((merged - apart).float().norm() / (apart - base(example)).float().norm())
                error = "" if gap < 0.05 else "with the merged weight it gives another output"
            except (AttributeError, RuntimeError, TypeError, ValueError) as problem:
                error = str(problem).partition("\n")[0]
            module.train(was_training)
        if error:
            raise ConfigError(
                f"policy.lora.target_modules is {lora.target_modules!r}, but {name} ({type(base).__name__}) cannot "
                f"have an adapter that is merged later: {error}. Name the layers to adapt in "
                f"policy.lora.target_modules, without {name.rpartition('.')[2]}."
            )


def _check_not_shared(model: nn.Module, lora: LoRA) -> None:
    """Refuse adapters on a weight that another part of the model uses too, as a tied output layer does.

    The other part would not have the adapter's change, and a merged model could not hold both.

    Raises:
        ConfigError: names the two.
    """
    places: dict[int, list[tuple[str, bool]]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        for parameter in module.parameters(recurse=False):
            places.setdefault(id(parameter), []).append((name.removesuffix(".base_layer"), name.endswith("base_layer")))
    for names in places.values():
        if len(names) > 1 and any(adapted for _, adapted in names):
            shared = " and ".join(sorted({name for name, _ in names}))
            raise ConfigError(
                f"policy.lora.target_modules is {lora.target_modules!r}, but {shared} share one weight in this model, "
                "so an adapter cannot change one of them alone. Leave them out of policy.lora.target_modules; "
                "all-linear does not adapt an output layer."
            )


def without_wrapper(model: Any) -> Any:
    """The transformers model, with any adapter's layers in it but without peft's wrapper."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


def is_adapted(module: nn.Module) -> bool:
    """Whether peft put adapters into this layer."""
    return hasattr(module, "lora_A")


@torch.no_grad()
def acting_weight(module: Any) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a linear layer. With adapters the weight is a copy, otherwise it is the layer's own."""
    base, wrappers = _unwrapped(module)
    return _with_adapters(base.weight, wrappers.get("weight", [])), getattr(base, "bias", None)


@torch.no_grad()
def acting_weights(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """All parameters and persistent buffers with their names in a transformers checkpoint, active adapters added.

    They come one at a time, so that the copies with adapters need not exist together.
    """
    base, wrappers = _unwrapped(model)
    for name, parameter in base.named_parameters(recurse=False):
        yield f"{prefix}{name}", _with_adapters(parameter, wrappers.get(name, [])).detach()
    for name, buffer in base.named_buffers(recurse=False):
        if name not in base._non_persistent_buffers_set:
            yield f"{prefix}{name}", buffer
    for name, child in base.named_children():
        yield from acting_weights(child, f"{prefix}{name}.")


def _unwrapped(module: Any) -> tuple[Any, dict[str, list[Any]]]:
    """The layer inside of peft's wrappers, and the wrappers by the name of the parameter that they adapt.

    A layer of experts has a wrapper per parameter, one around the other; other layers have one.
    """
    wrappers: dict[str, list[Any]] = {}
    while is_adapted(module):
        wrappers.setdefault(getattr(module, "parameter_name", "weight"), []).append(module)
        module = module.base_layer
    return module, wrappers


def _with_adapters(weight: Tensor, wrappers: list[Any]) -> Tensor:
    for wrapper in wrappers:
        if not wrapper.disable_adapters and not wrapper.merged:
            for name in wrapper.active_adapters:
                weight = weight + wrapper.get_delta_weight(name).to(weight.dtype)
    return weight
