"""Tiny random models of many families, and what transformers makes of them beside what this project made.

    families.py make FOLDER            saves each family as FOLDER/NAME, and prints the names as JSON
    families.py compare FOLDER OURS OPTIONS  for each family quantises FOLDER/NAME with BitsAndBytesConfig(**OPTIONS), loads
                                       OURS/NAME, runs both, and prints {name: [largest difference, largest output]}
"""

import inspect
import json
import sys

import torch
import transformers as t

t.logging.set_verbosity_error()
small = {"vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
llama = small | {"num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0}
moe = llama | {"moe_intermediate_size": 64, "num_experts_per_tok": 2}
image = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 128, "image_size": 32}
patches = image | {"patch_size": 16}
gpt2 = {"vocab_size": 96, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64, "pad_token_id": 0}
t5 = {"vocab_size": 96, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
bart = {
    "vocab_size": 96, "d_model": 64, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "max_position_embeddings": 64,
}  # fmt: skip
speech = small | {
    "conv_dim": (64, 64), "conv_kernel": (10, 3), "conv_stride": (5, 2), "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
}  # fmt: skip
text_and_image = {"text_config": small | {"max_position_embeddings": 16}, "vision_config": patches}
latent = {"q_lora_rank": 64, "kv_lora_rank": 64, "qk_rope_head_dim": 32, "qk_nope_head_dim": 16, "v_head_dim": 16}

families = {
    "llama": (t.LlamaForCausalLM, t.LlamaConfig(**llama)),
    "qwen2": (t.Qwen2ForCausalLM, t.Qwen2Config(**llama)),
    "gemma3": (t.Gemma3ForCausalLM, t.Gemma3TextConfig(**llama, head_dim=16)),
    "phi": (t.PhiForCausalLM, t.PhiConfig(**llama)),
    "gpt2": (t.GPT2LMHeadModel, t.GPT2Config(**gpt2)),
    "mixtral": (t.MixtralForCausalLM, t.MixtralConfig(**llama, num_local_experts=4)),
    "qwen3moe": (t.Qwen3MoeForCausalLM, t.Qwen3MoeConfig(**moe, num_experts=4, head_dim=16)),
    "olmoe": (t.OlmoeForCausalLM, t.OlmoeConfig(**llama, num_experts=4, num_experts_per_tok=2)),
    "deepseek": (
        t.DeepseekV3ForCausalLM,
        t.DeepseekV3Config(**moe | {"num_key_value_heads": 4}, **latent, n_routed_experts=4, n_group=2, topk_group=1, first_k_dense_replace=1),
    ),  # fmt: skip
    "bert": (t.BertForMaskedLM, t.BertConfig(**small)),
    "roberta": (t.RobertaForSequenceClassification, t.RobertaConfig(**small, num_labels=32)),
    "t5": (t.T5ForConditionalGeneration, t.T5Config(**t5)),
    "bart": (t.BartForConditionalGeneration, t.BartConfig(**bart)),
    "clip": (t.CLIPModel, t.CLIPConfig(**text_and_image, projection_dim=64)),
    "siglip": (t.SiglipModel, t.SiglipConfig(**text_and_image)),
    "vitgpt2": (
        t.VisionEncoderDecoderModel,
        t.VisionEncoderDecoderConfig.from_encoder_decoder_configs(t.ViTConfig(**patches), t.GPT2Config(**gpt2)),
    ),
    "wav2vec2": (t.Wav2Vec2ForCTC, t.Wav2Vec2Config(**speech)),
}


def run(model):
    torch.manual_seed(1)
    ids = torch.arange(4, 14).reshape(1, 10)
    pixels, sound = torch.randn(1, 3, 32, 32), torch.randn(1, 800)
    inputs = {"input_ids": ids, "decoder_input_ids": ids, "pixel_values": pixels, "input_values": sound}
    names = inspect.signature(model.forward).parameters
    if model.config.model_type == "wav2vec2":
        wanted = ["input_values"]
    elif model.config.model_type == "vision-encoder-decoder":
        wanted = ["pixel_values", "decoder_input_ids"]
    else:
        wanted = [name for name in inputs if name in names and name != "input_values"]
        if "decoder_input_ids" in wanted and not model.config.is_encoder_decoder:
            wanted.remove("decoder_input_ids")
    dtype = model.dtype
    given = {name: inputs[name].to(dtype) if inputs[name].is_floating_point() else inputs[name] for name in wanted}
    with torch.no_grad():
        output = model.eval()(**given)
    return next(value for value in output.values() if isinstance(value, torch.Tensor) and value.dim() > 0).float()


def make(folder):
    for seed, (name, (cls, config)) in enumerate(families.items()):
        torch.manual_seed(seed)
        cls(config).save_pretrained(f"{folder}/{name}")
    print(json.dumps(list(families)))


def compare(folder, ours, options):
    options = json.loads(options)
    dtype = getattr(torch, options.pop("dtype"))
    if "bnb_4bit_compute_dtype" in options:
        options["bnb_4bit_compute_dtype"] = getattr(torch, options["bnb_4bit_compute_dtype"])
    found = {}
    for name, (cls, _) in families.items():
        quantization = t.BitsAndBytesConfig(**options)
        try:
            reference = cls.from_pretrained(f"{folder}/{name}", dtype=dtype, quantization_config=quantization)
            expected = run(reference)
        except RuntimeError:  # what transformers can't run itself
            found[name] = None
            continue
        try:
            got = run(cls.from_pretrained(f"{ours}/{name}"))
            found[name] = [(got - expected).abs().max().item(), expected.abs().max().item()]
        except Exception as error:  # the test says which family it was
            found[name] = [f"{type(error).__name__}: {error}"[:300], 0]
    print(json.dumps(found))


{"make": make, "compare": compare}[sys.argv[1]](*sys.argv[2:])
