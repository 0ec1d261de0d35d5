"""Makes the tiny models of test/fixtures/models: every family that src/model knows, at random, with transformers' logits.

    tiny.py OUTPUT [NAME …]

Each folder holds config.json, model.safetensors in bfloat16, and expected.safetensors: int32 `ids` [sequences, length] and
float32 `logits` [sequences, length, vocabulary] (an encoder's: `hidden`), worked out in float32 from those weights.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

VOCAB, HIDDEN, LENGTH = 64, 32, 20

DECODER = dict(
    vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    tie_word_embeddings=True,
)
ENCODER = dict(
    vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    max_position_embeddings=40, type_vocab_size=2, pad_token_id=0,
)


def rope(kind, theta=10000.0, **more):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **more}}


LLAMA3 = rope("llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)
YARN = rope("yarn", factor=4.0, original_max_position_embeddings=16)
LONGROPE = rope(
    "longrope", short_factor=[1.0 + i / 8 for i in range(4)], long_factor=[1.5 + i / 4 for i in range(4)],
    original_max_position_embeddings=16, factor=4.0,
)

# name: (class of the config, what differs)
MODELS = {
    "llama": ("LlamaConfig", DECODER),
    "llama3": ("LlamaConfig", DECODER | LLAMA3 | dict(tie_word_embeddings=False)),
    "llama-yarn": ("LlamaConfig", DECODER | YARN | dict(attention_bias=True, mlp_bias=True, head_dim=12)),
    "llama-linear": ("LlamaConfig", DECODER | rope("linear", factor=3.0)),
    "mistral": ("MistralConfig", DECODER | dict(sliding_window=6)),
    "mixtral": ("MixtralConfig", DECODER | dict(num_local_experts=4, num_experts_per_tok=2, intermediate_size=16)),
    "qwen2": ("Qwen2Config", DECODER | dict(use_sliding_window=True, sliding_window=5, max_window_layers=1)),
    "qwen2_moe": (
        "Qwen2MoeConfig",
        DECODER | dict(
            num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, shared_expert_intermediate_size=24,
            norm_topk_prob=False, decoder_sparse_step=1, mlp_only_layers=[1],
        ),
    ),
    "qwen3": ("Qwen3Config", DECODER | dict(head_dim=16)),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        DECODER | dict(head_dim=8, num_experts=6, num_experts_per_tok=3, moe_intermediate_size=8, norm_topk_prob=True),
    ),
    "smollm3": ("SmolLM3Config", DECODER | dict(no_rope_layer_interval=2)),
    "gemma": ("GemmaConfig", DECODER | dict(head_dim=16, num_key_value_heads=1)),
    "gemma2": ("Gemma2Config", DECODER | dict(head_dim=8, sliding_window=6, query_pre_attn_scalar=24)),
    "gemma3": (
        "Gemma3TextConfig",
        DECODER | dict(head_dim=8, sliding_window=6, query_pre_attn_scalar=16, sliding_window_pattern=2),
    ),
    "phi": ("PhiConfig", DECODER | dict(partial_rotary_factor=0.5, tie_word_embeddings=False)),
    "phi3": ("Phi3Config", DECODER | dict(sliding_window=None, tie_word_embeddings=False)),
    "phi3-long": ("Phi3Config", DECODER | LONGROPE | dict(original_max_position_embeddings=16, tie_word_embeddings=False)),
    "granite": (
        "GraniteConfig",
        DECODER | dict(embedding_multiplier=6.0, attention_multiplier=0.2, residual_multiplier=0.3, logits_scaling=4.0),
    ),
    "olmo2": ("Olmo2Config", DECODER | dict(tie_word_embeddings=False)),
    "bert": ("BertConfig", ENCODER),
    "roberta": ("RobertaConfig", ENCODER | dict(pad_token_id=1, type_vocab_size=1)),
    "xlm-roberta": ("XLMRobertaConfig", ENCODER | dict(pad_token_id=1, type_vocab_size=1)),
    "mpnet": ("MPNetConfig", ENCODER | dict(pad_token_id=1, relative_attention_num_buckets=32)),
    "modernbert": (
        "ModernBertConfig",
        ENCODER | dict(num_hidden_layers=3, intermediate_size=24, global_attn_every_n_layers=2, local_attention=6),
    ),
    "nomic_bert": ("NomicBertConfig", ENCODER | dict(intermediate_size=40)),
}


TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer(folder):
    """Bytes for tokens, as many as a vocabulary of 64 holds: enough for English, an accent and a face of four bytes."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    special = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    characters = "abcdefghijklmnopqrstuvwxyz0123456789ĠĊ.,!?':-_BHTW"  # Ġ is a space and Ċ a newline in such vocabularies
    characters += "Ã©" + "ðŁĻĤ"  # the bytes of é and of 🙂
    vocabulary = {token: i for i, token in enumerate([*special, *characters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    config = dict(bos_token="<s>", eos_token="</s>", pad_token="<pad>", chat_template=TEMPLATE)
    config |= dict(clean_up_tokenization_spaces=False, tokenizer_class="PreTrainedTokenizerFast")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def make(name, folder):
    class_name, options = MODELS[name]
    config = getattr(transformers, class_name)(**options)
    torch.manual_seed(sum(map(ord, name)))
    decoder = options["vocab_size"] and "type_vocab_size" not in options
    auto = transformers.AutoModelForCausalLM if decoder else transformers.AutoModel
    model = auto.from_config(config).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():  # norms and biases too, so that none can be left out unseen
            spread = 0.3 if parameter.ndim > 1 else 0.2
            centre = 1.0 if "norm" in key.lower() and key.endswith("weight") and "gemma" not in name else 0.0
            parameter.copy_((centre + spread * torch.randn_like(parameter)).to(torch.bfloat16).float())
    ids = torch.randint(3, VOCAB, (2, LENGTH), dtype=torch.long)
    with torch.no_grad():
        output = model(ids)
    result = output.logits if decoder else output.last_hidden_state
    shutil.rmtree(folder, ignore_errors=True)
    model.to(torch.bfloat16).save_pretrained(folder)
    if name == "llama":
        make_tokenizer(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    expected = {"ids": ids.to(torch.int32), "logits" if decoder else "hidden": result.float().contiguous()}
    save_file(expected, folder / "expected.safetensors")
    total = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{name}: {total} bytes, largest {result.abs().max():.3f}")


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    output, *names = sys.argv[1:]
    for name in names or MODELS:
        make(name, Path(output) / name)
