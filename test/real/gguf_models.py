"""Tiny random models of the architectures of GGUF, as transformers saves them and as llama.cpp's converter would write them.

    gguf_models.py make FOLDER          writes FOLDER/NAME/ and FOLDER/NAME.gguf for each, and prints the names as JSON
    gguf_models.py compare FOLDER OURS  runs FOLDER/NAME and OURS/NAME, and prints {name: largest difference of their outputs}

The names of tensors are gguf-py's own map; what its converter does to tensors (llama's order of rows, Gemma's norms, experts
in one tensor) is done here as convert_hf_to_gguf.py does it.
"""

import json
import re
import sys

import gguf
import numpy as np
import torch
import transformers as t
from safetensors.torch import load_file

t.logging.set_verbosity_error()
small = {"vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
llama = small | {"num_key_value_heads": 2, "max_position_embeddings": 64}
moe = llama | {"num_experts_per_tok": 2}
own_head = llama | {"head_dim": 16}
A = gguf.MODEL_ARCH

models = {
    "llama": (A.LLAMA, t.LlamaForCausalLM, t.LlamaConfig(**llama, attention_bias=True, mlp_bias=True)),
    "mixtral": (A.LLAMA, t.MixtralForCausalLM, t.MixtralConfig(**moe, num_local_experts=4)),
    "qwen2": (A.QWEN2, t.Qwen2ForCausalLM, t.Qwen2Config(**llama)),
    "qwen2moe": (
        A.QWEN2MOE,
        t.Qwen2MoeForCausalLM,
        t.Qwen2MoeConfig(**moe, num_experts=4, moe_intermediate_size=32, shared_expert_intermediate_size=64),
    ),
    "qwen3": (A.QWEN3, t.Qwen3ForCausalLM, t.Qwen3Config(**own_head, tie_word_embeddings=True)),
    "qwen3moe": (
        A.QWEN3MOE,
        t.Qwen3MoeForCausalLM,
        t.Qwen3MoeConfig(**own_head, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, norm_topk_prob=True),
    ),
    "gemma": (A.GEMMA, t.GemmaForCausalLM, t.GemmaConfig(**own_head)),
    "gemma2": (A.GEMMA2, t.Gemma2ForCausalLM, t.Gemma2Config(**own_head, query_pre_attn_scalar=16, sliding_window=8)),
    "gemma3": (A.GEMMA3, t.Gemma3ForCausalLM, t.Gemma3TextConfig(**own_head, query_pre_attn_scalar=16, sliding_window=8)),
    "phi2": (A.PHI2, t.PhiForCausalLM, t.PhiConfig(**llama | {"num_key_value_heads": 4}, partial_rotary_factor=0.5)),
    "phi3": (A.PHI3, t.Phi3ForCausalLM, t.Phi3Config(**llama, pad_token_id=0, sliding_window=32)),
    "granite": (
        A.GRANITE,
        t.GraniteForCausalLM,
        t.GraniteConfig(
            **llama, embedding_multiplier=12.0, residual_multiplier=0.22, logits_scaling=8.0, attention_multiplier=0.25
        ),
    ),
    "olmo2": (A.OLMO2, t.Olmo2ForCausalLM, t.Olmo2Config(**llama)),
    "smollm3": (A.SMOLLM3, t.SmolLM3ForCausalLM, t.SmolLM3Config(**llama | {"num_hidden_layers": 4}, pad_token_id=0)),
    "starcoder2": (A.STARCODER2, t.Starcoder2ForCausalLM, t.Starcoder2Config(**llama, sliding_window=None)),
    "bert": (A.BERT, t.BertModel, t.BertConfig(**small, max_position_embeddings=64)),
    "nomic-bert": (A.NOMIC_BERT, t.NomicBertModel, t.NomicBertConfig(**small, max_position_embeddings=64)),
}  # fmt: skip


def metadata(writer, config):
    get = lambda *names: next((getattr(config, n) for n in names if getattr(config, n, None) is not None), None)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    if get("num_key_value_heads"):
        writer.add_head_count_kv(config.num_key_value_heads)
    rope = get("rope_parameters") or {}
    theta = rope.get("rope_theta") or rope.get("full_attention", {}).get("rope_theta")
    if theta:
        writer.add_rope_freq_base(theta)
    if get("pad_token_id") is not None:
        writer.add_pad_token_id(config.pad_token_id)
    if get("rms_norm_eps"):
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if get("layer_norm_eps", "norm_epsilon"):
        writer.add_layer_norm_eps(get("layer_norm_eps", "norm_epsilon"))
    if get("head_dim") and "head_dim" in config.to_dict():
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    if get("sliding_window"):
        writer.add_sliding_window(config.sliding_window)
    if get("num_experts", "num_local_experts"):
        writer.add_expert_count(get("num_experts", "num_local_experts"))
        writer.add_expert_used_count(config.num_experts_per_tok)
    if get("moe_intermediate_size"):
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    if get("shared_expert_intermediate_size"):
        writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)
    if config.model_type == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if config.model_type == "granite":
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_logit_scale(config.logits_scaling)
    if config.model_type in ("phi", "phi3"):
        head = config.hidden_size // config.num_attention_heads
        writer.add_rope_dimension_count(int(head * (rope.get("partial_rotary_factor") or 1)))
    if config.model_type == "phi3":
        writer.add_rope_scaling_orig_ctx_len(config.original_max_position_embeddings)


def permute(weights, heads):
    return weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:]).swapaxes(1, 2).reshape(weights.shape)


def write(name, folder):
    arch, cls, config = models[name]
    torch.manual_seed(3)
    model = cls(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    model.save_pretrained(f"{folder}/{name}")
    tensors = {key: value.float().numpy() for key, value in load_file(f"{folder}/{name}/model.safetensors").items()}
    writer = gguf.GGUFWriter(f"{folder}/{name}.gguf", gguf.MODEL_ARCH_NAMES[arch])
    metadata(writer, config)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    experts = {}
    for key, value in sorted(tensors.items()):
        if key.startswith("pooler."):
            continue
        found = re.match(r"(.*\.experts)\.(\d+)\.(\w+)\.weight$", key)
        if found:
            experts.setdefault((found[1], found[3]), {})[int(found[2])] = value
            continue
        if name in ("llama", "mixtral", "granite", "smollm3"):
            if re.search(r"q_proj\.(weight|bias)$", key):
                value = permute(value, config.num_attention_heads)
            if re.search(r"k_proj\.(weight|bias)$", key):
                value = permute(value, config.num_key_value_heads)
        if name.startswith("gemma") and key.endswith("norm.weight"):
            value = value + 1
        if key.endswith("shared_expert_gate.weight"):
            value = value.reshape(-1)
        target = names.get_name(key, try_suffixes=(".weight", ".bias"))
        if target is None:
            raise SystemExit(f"{name}: gguf-py has no name for {key}")
        writer.add_tensor(target, np.ascontiguousarray(value, dtype=np.float32))
    for (prefix, part), each in experts.items():
        target = names.get_name(f"{prefix}.{part}.weight", try_suffixes=(".weight",))
        writer.add_tensor(target, np.stack([each[i] for i in range(len(each))]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def make(folder):
    for name in models:
        write(name, folder)
    print(json.dumps(list(models)))


def run(path, cls):
    ids = torch.arange(4, 24).reshape(1, 20)
    with torch.no_grad():
        return cls.from_pretrained(path, dtype=torch.float32).eval()(input_ids=ids)[0]


def compare(folder, ours):
    differences = {}
    for name, (_, cls, _) in models.items():
        difference = (run(f"{folder}/{name}", cls) - run(f"{ours}/{name}", cls)).abs().max().item()
        differences[name] = difference
    print(json.dumps(differences))


{"make": make, "compare": compare}[sys.argv[1]](*sys.argv[2:])
