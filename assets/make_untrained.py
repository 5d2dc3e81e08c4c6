"""Make an untrained embedded model: a tokenizer, a chat template and random weights, in a folder that transformers
loads.

    python assets/make_untrained.py tiny_reasoner runs/assets/tiny_reasoner_untrained
    python assets/make_untrained.py tiny_reasoner runs/r1/small_base 64 2      # hidden size and layers
    python assets/make_untrained.py tiny_encoder assets/tiny_encoder           # an encoder-decoder for code
    python assets/make_untrained.py tiny_rodimus runs/assets/tiny_rodimus_untrained 64 3      # or tiny_rodimus_plus
"""

import sys
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from datamodules import quiz  # noqa: E402
from datamodules.code_styles import programs  # noqa: E402
from datamodules.records_desk import VOCABULARY  # noqa: E402
from datamodules.sleep import vocabulary  # noqa: E402
from policies import RodimusConfig, RodimusForCausalLM  # noqa: E402

ROLES = ["<pad>", "<eos>", "<user>", "<assistant>"]
TEMPLATE = (
    "{% for message in messages %}{{ '<' + message['role'] + '>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ '<eos>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>OPEN' }}{% endif %}"
)


def _wrap(tokenizer: Tokenizer, special: list[str], opening: str) -> PreTrainedTokenizerFast:
    tokenizer.add_special_tokens(special)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>", padding_side="left"
    )
    fast.chat_template = TEMPLATE.replace("OPEN", opening)
    return fast


def reasoner_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token per character (printable ASCII and the line break).

    The prompt ends with an open <think>, as R1-Distill's does.
    """
    special = [*ROLES, "<think>", "</think>"]
    characters = [chr(c) for c in range(32, 127)] + ["\n"]
    tokenizer = Tokenizer(models.WordLevel({t: i for i, t in enumerate(special + characters)}, unk_token=" "))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return _wrap(tokenizer, special, "<think>")


def assistant_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token per word of the records help desk."""
    special = [*ROLES, "<unk>"]
    tokenizer = Tokenizer(models.WordLevel({t: i for i, t in enumerate(special + VOCABULARY)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _wrap(tokenizer, special, "")


def sleeper_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token per word and per value of sleep reports; the prompt ends with an open <think>."""
    special = [*ROLES, "<unk>", "<think>", "</think>"]
    tokenizer = Tokenizer(models.WordLevel({t: i for i, t in enumerate(special + vocabulary())}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _wrap(tokenizer, special, "<think>")


def quiz_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token per word or mark of the quiz; the assistant's turn begins with the answer."""
    special = [*ROLES, "<unk>"]
    words = [*special, *quiz.vocabulary()]
    tokenizer = Tokenizer(models.WordLevel({t: i for i, t in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return _wrap(tokenizer, special, "")


def code_tokenizer(vocabulary: int = 1024) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer for C with pieces of words, layout included; texts stand between <s> and </s>."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((row["text"] for row in programs(2000, seed=0)), trainer)
    ends = [(token, tokenizer.token_to_id(token)) for token in special[1:]]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", padding_side="right"
    )


def save_encoder(folder: str | Path, tokenizer: PreTrainedTokenizerFast, hidden: int = 64, layers: int = 2) -> None:
    """Save a tokenizer and an encoder-decoder of the T5 family with random weights, drawn from torch's generator."""
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=hidden,
        d_kv=hidden // 2,
        d_ff=2 * hidden,
        num_layers=layers,
        num_decoder_layers=1,
        num_heads=2,
        feed_forward_proj="relu",
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )
    T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def save_random(folder: str | Path, tokenizer: PreTrainedTokenizerFast, **shape: int) -> None:
    """Save a tokenizer and a Llama model of random weights for it, drawn from torch's generator.

    Args:
        shape: sizes, as arguments of `LlamaConfig`.
    """
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        **shape,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def save_rodimus(folder: str | Path, tokenizer: PreTrainedTokenizerFast, plus: bool, hidden: int, layers: int) -> None:
    """Save a tokenizer and a Rodimus or Rodimus+ model with random weights, drawn from torch's generator."""
    config = RodimusConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        num_hidden_layers=layers,
        block_type="rodimus_plus" if plus else "rodimus",
        state_size=32,
        num_attention_heads=4,
        window_size=16,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    RodimusForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main(name: str, folder: str, hidden: int = 128, layers: int = 4, seed: int = 0) -> None:
    if name == "tiny_encoder":
        torch.manual_seed(0)
        save_encoder(folder, code_tokenizer())
        return
    tokenizer = {
        "tiny_reasoner": reasoner_tokenizer,
        "tiny_generalist": reasoner_tokenizer,
        "tiny_assistant": assistant_tokenizer,
        "tiny_sleeper": sleeper_tokenizer,
        "tiny_quiz": quiz_tokenizer,
        "tiny_rodimus": reasoner_tokenizer,
        "tiny_rodimus_plus": reasoner_tokenizer,
    }[name]()
    torch.manual_seed(seed)
    if name.startswith("tiny_rodimus"):
        save_rodimus(folder, tokenizer, name == "tiny_rodimus_plus", hidden, layers)
        return
    save_random(
        folder,
        tokenizer,
        hidden_size=hidden,
        intermediate_size=hidden * 43 // 16,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=512,
    )
    print(f"{name}: {len(tokenizer)} tokens, written to {folder}")


if __name__ == "__main__":
    name, folder, *sizes = sys.argv[1:]
    main(name, folder, *map(int, sizes))
