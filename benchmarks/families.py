"""The causal families of the matrix of architectures (benchmarks/architectures.py)."""

from typing import Any

from benchmarks.tiny_models import WINDOW, Family

_LATENT = {"num_key_value_heads": 4}
_MAMBA = {"mamba_d_state": 8, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1}


def _layers(*kinds: str) -> dict[str, Any]:
    return {"layer_types": list(kinds), "num_hidden_layers": len(kinds)}


_LINEAR = _layers("linear_attention", "full_attention")

#: families whose small configuration needs more than sizes
_CHANGES: dict[str, dict[str, Any]] = {
    "axk1": _LATENT,
    "axk2": _LATENT,
    "bamba": {**_MAMBA, "attn_layer_indices": [1]},
    "cwm": {"bos_token_id": 0},
    "deepseek_v2": _LATENT,
    "diffllama": {"attention_dropout": 0.0},
    "glm_moe_dsa": _LATENT,
    "deepseek_v32": _LATENT,
    "lfm3": _layers("conv", "full_attention"),
    "deepseek_v3": _LATENT,
    "gemma4_text": {
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 110,
        "num_kv_shared_layers": 0,
        **_layers("sliding_attention", "full_attention"),
    },
    "glm4_moe_lite": _LATENT,
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2},
    "granitemoehybrid": {**_MAMBA, **_layers("mamba", "attention")},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    "lfm2": _layers("conv", "full_attention"),
    "lfm2_moe": _layers("conv", "full_attention"),
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1},
    "minicpm3": _LATENT,
    "modernbert-decoder": {"bos_token_id": 0, "cls_token_id": 0, "sep_token_id": 0},
    "olmo_hybrid": _LINEAR,
    "qwen3_5_moe_text": _LINEAR,
    "qwen3_5_text": _LINEAR,
    "qwen3_next": _LINEAR,
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "smollm3": {"no_rope_layers": [1, 0]},
    "youtu": _LATENT,
    "zamba2": {
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "layers_block_type": ["mamba", "hybrid"],
        "mamba_headdim": 8,
        "n_mamba_heads": 8,
        "mamba_ngroups": 1,
        "adapter_rank": 4,
    },
    "zaya": {"num_experts_per_tok": 1},
}
_PLAIN = """
    afmoe apertus arcee aria_text biogpt bitnet bloom codegen cohere cohere2 cohere2_moe cpmant ctrl doge dots1
    ernie4_5 ernie4_5_moe exaone4 exaone_moe falcon falcon_h1 falcon_mamba flex_olmo flint gemma gemma2 gemma3_text
    gemma4_unified_text glm glm4 glm4_moe gpt-sw3 gpt2 gpt_bigcode gpt_neox gpt_neox_japanese gpt_oss gptj granite
    granite_swa granitemoe granitemoe_swa granitemoeshared helium hrm_text hunyuan_v1_dense hunyuan_v1_moe hy_v3
    hy_v4 hyperclovax inkling2_text inkling_text internlm3 iquestcoder jais2 jetmoe kolibri1 laguna llama
    llama4_text mamba mellum mimo_v2_flash minimax minimax_m2 minimax_m3_vl_text ministral ministral3 mistral
    mixtral mpt nanochat nemotron nemotron_h olmo olmo2 olmo3 olmoe openai-gpt opt persimmon phi phi3 phimoe qwen2
    qwen2_moe qwen3 qwen3_moe rwkv seed_oss solar_open stablelm starcoder2 vaultgemma xglm xlnet xlstm
""".split()

FAMILIES = sorted(
    [
        *(Family(kind) for kind in _PLAIN),
        *(Family(kind, changes) for kind, changes in _CHANGES.items()),
        Family("qwen2", {"use_sliding_window": True, "max_window_layers": 0}, "qwen2 with a window"),
        Family("mistral", {"sliding_window": None}, "mistral without a window"),
        Family("gpt2", {"tie_word_embeddings": False}, "gpt2, untied"),
        Family("gpt_neox", {"use_parallel_residual": False}, "gpt_neox, serial"),
        Family("falcon", {"alibi": True, "new_decoder_architecture": False}, "falcon with alibi"),
        Family("rwkv", {"num_hidden_layers": 7, "rescale_every": 6}, "rwkv of seven layers"),
        Family("mixtral", {"sliding_window": None}, "mixtral without a window"),
        Family("rodimus_torch", {"tie_word_embeddings": False}, "rodimus"),
        Family("rodimus_torch", {"block_type": "rodimus_plus"}, "rodimus plus"),
        Family("rwkv6_torch", {"head_size": 8}, "rwkv6"),
        Family(
            "phi3",
            {
                "rope_parameters": {
                    "rope_type": "longrope",
                    "rope_theta": 10000.0,
                    "short_factor": [1.0] * 4,
                    "long_factor": [4.0] * 4,
                },
                "original_max_position_embeddings": WINDOW,
                "sliding_window": None,
            },
            "phi3 with longrope",
        ),
        Family(
            "llama",
            {
                "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0},
                "max_position_embeddings": WINDOW,
            },
            "llama with dynamic positions",
        ),
    ],
    key=str,
)
