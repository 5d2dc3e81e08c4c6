"""Inference-time realignment (InRa, arXiv 2506.12704): a bottom-layer adapter, and logits mixed of two paths.

The adapter is a copy of the model's first layer below it, with zeros in the two matrices that add to the stream: it
passes its input on unchanged until it is trained. Afterwards path A runs through the adapter and all layers, path B
through the layers alone, and lambda is chosen at inference:

    logits = lambda A + (1 - lambda) B = head(b + lambda (a - b))

a and b are the outputs of the final norm. The output layer is linear, so that mixing before it gives the same logits;
in the second form, equal paths give exactly their logits for every lambda.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from policies.adapters import acting_adapters, stream_outputs
from policies.modes import evaluation_mode
from policies.params import PolicyParams
from policies.start_checks import FOREIGN
from support.errors import ConfigError
from support.papers import Paper

#: tokens on which a new adapter is compared with the model without it
COMPARED = 8
#: attributes in which a model may differ from one that is made of its configuration
_UNRELATED = {"training", "name_or_path", "tie_word_embeddings"}


def mixed(aligned: Tensor, original: Tensor, weight: float) -> Tensor:
    """Outputs of the final norm, mixed.

    Args:
        aligned: of the path through the adapter. original: of the path around it. weight: lambda.
    """
    return original + weight * (aligned - original)


def has_bottom_adapter(model: Any) -> bool:
    """Whether the first layer of a transformers model is an adapter; its configuration says so."""
    return bool(getattr(model.config, "bottom_adapter", False))


def add_bottom_adapter(model: Any, name: str) -> None:
    """Put an adapter below the layers of a model, if it has none, and freeze everything else.

    A tied output layer gets weights of its own.

    Args:
        model: a causal language model of transformers. name: what messages call it.

    Raises:
        ConfigError: the model's layers are not of the form that the adapter needs.
    """
    if not has_bottom_adapter(model):
        try:
            _insert(model, name)
        except FOREIGN as error:
            raise _unsuitable(model, name, f"with one layer more it fails ({type(error).__name__}: {error})") from error
    model.requires_grad_(False)
    adapter = model.get_decoder().layers[0].requires_grad_(True)
    adapter.is_bottom_adapter = True


def _insert(model: Any, name: str) -> None:
    config, decoder = model.config, model.get_decoder()
    layers: Any = getattr(decoder, "layers", None)
    plain = isinstance(layers, nn.ModuleList) and getattr(config, "num_hidden_layers", None) == len(layers)
    try:
        matrices = (layers[0].self_attn.o_proj, layers[0].mlp.down_proj) if plain else ()
        plain = plain and all(isinstance(matrix, nn.Linear) for matrix in matrices)
    except AttributeError:
        plain = False
    if not plain:
        raise _unsuitable(model, name, "its first layer has no self_attn.o_proj and mlp.down_proj to begin at zero")
    # With the model's own configuration in it, by which its kind of attention is set.
    count, adapter = len(layers), copy.deepcopy(layers[0], {id(one): one for one in (config, decoder.config)})
    with torch.no_grad():
        for parameter in stream_outputs(adapter):
            parameter.zero_()
    decoder.layers = nn.ModuleList([adapter, *layers])
    for number, layer in enumerate(decoder.layers):
        for module in layer.modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                module.layer_idx = number
    for key, values in config.to_dict().items():
        if "layer" in key and isinstance(values, list) and len(values) == count:  # such as layer_types
            setattr(config, key, [values[0], *values])
    config.num_hidden_layers, config.bottom_adapter = count + 1, True
    config.tie_word_embeddings = False
    head = model.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach().clone())
    with torch.device("meta"):
        rebuilt = type(model)(copy.deepcopy(config))
    if _form(rebuilt) != _form(model):
        raise _unsuitable(model, name, "its configuration describes layers by their number, which the adapter shifts")


def _form(model: nn.Module) -> dict[str, Any]:
    """The shapes of all weights, and the plain attributes of all parts, such as a layer's window."""
    form: dict[str, Any] = {name: parameter.shape for name, parameter in model.named_parameters()}
    for name, module in model.named_modules():
        form[f"{name} as {type(module).__name__}"] = {
            key: value
            for key, value in vars(module).items()
            if isinstance(value, (bool, int, float, str)) and key not in _UNRELATED and key[0] != "_"
        }
    return form


def _unsuitable(model: Any, name: str, reason: str) -> ConfigError:
    return ConfigError(
        f"policy.bottom_adapter is true, but {name} ({type(model).__name__}) cannot have a bottom adapter: {reason}. "
        "Set policy.model to a model of the Llama, Mistral, Qwen2, Qwen3, SmolLM or Gemma families, or train with "
        "policy.lora instead."
    )


@torch.no_grad()
def check_identity(model: Any, name: str) -> None:
    """Refuse a new adapter that changes the model's logits.

    Raises:
        ConfigError: the model's layers do more than add to the stream.
    """
    try:
        aligned, original = _both(model)
    except FOREIGN as error:
        raise _unsuitable(model, name, f"with one layer more it fails ({type(error).__name__}: {error})") from error
    gap = float((aligned - original).abs().max())
    if not gap == 0:
        raise _unsuitable(model, name, f"a new adapter changes its logits by {gap:.2g} instead of 0")


def _some_tokens(model: Any) -> Tensor:
    ids: Tensor = torch.arange(COMPARED, device=model.device)[None] % model.get_input_embeddings().weight.shape[0]
    return ids


def _both(model: Any) -> tuple[Tensor, Tensor]:
    """Logits of some tokens by path A and by path B."""
    aligned = model(input_ids=_some_tokens(model), use_cache=False).logits
    with around_adapter(model.get_decoder()):
        return aligned, model(input_ids=_some_tokens(model), use_cache=False).logits


@contextmanager
def around_adapter(decoder: Any) -> Iterator[None]:
    """Let the first layer give its input as its output: path B."""
    with decoder.layers[0].register_forward_hook(_input, with_kwargs=True):
        yield


def _input(layer: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any], output: Any) -> Any:
    hidden = arguments[0] if arguments else options["hidden_states"]
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


@torch.no_grad()
def realign(model: Any, params: PolicyParams) -> None:
    """Let all forwards of a model without a cache give the mixture of both paths, if `params.realign` asks for it.

    Raises:
        ConfigError: the model has no bottom adapter, or changes its logits behind the output layer.
    """
    if params.realign is None:
        if not params.bottom_adapter and has_bottom_adapter(model):
            model.config.bottom_adapter = False  # with all weights trained, lambda 0 would not be the old model
        return
    if not has_bottom_adapter(model):
        raise ConfigError(
            f"policy.realign is {params.realign:g}, but {params.model} has no bottom adapter, to mix its two paths. "
            "Set policy.model to a folder that a run with policy.bottom_adapter: true exported (configs/inra.yaml), or "
            "name its checkpoint with --ckpt_path beside its configuration; for the model as it is, set policy.realign "
            "to null."
        )
    decoder = model.get_decoder()
    decoder.layers[0].is_bottom_adapter = True
    with evaluation_mode(model), acting_adapters(model):
        aligned, original = _both(model)
        decoder.register_forward_hook(partial(_mix, params.realign), with_kwargs=True)
        expected, ids = mixed(aligned, original, params.realign), _some_tokens(model)
        gap = (model(input_ids=ids, use_cache=False).logits - expected).abs().max() / expected.abs().max()
    if not gap <= (1e-3 if expected.dtype == torch.float32 else 0.1):
        raise ConfigError(
            f"policy.realign is {params.realign:g}, but {params.model} ({type(model).__name__}) changes its logits "
            f"behind the output layer (mixed before it, they differ by {100 * gap:.2g} %), so they cannot be mixed. "
            "Set policy.realign to null, or policy.model to a model that does not."
        )


def _mix(weight: float, decoder: Any, arguments: tuple[Any, ...], options: dict[str, Any], output: Any) -> Any:
    if options.get("past_key_values") is not None:
        raise ValueError("policy.realign needs a cache per path, which a forward of the model with one cache lacks")
    with around_adapter(decoder):
        original = decoder.forward(*arguments, **options)
    output.last_hidden_state = mixed(output.last_hidden_state, original.last_hidden_state, weight)
    return output


PAPER = Paper(
    name="inra",
    title="InRa",
    arxiv="2506.12704",
    idea="an adapter below the model is trained alone, and the weight of its effect is chosen at inference",
    classes=("lightning_modules.SFT", "policies.PolicyParams"),
    configs=("inra",),
    effect="45.5, 41.5, 34.7 and 25.4 tokens with lambda -0.5, 0, 0.5 and 1; pass@1 0.78, 0.78, 0.79 and 0.74",
    not_compared="it learns from given data, so a budget of generated tokens says nothing about it",
)
