"""Adapters as PEFT trains and merges them, over tiny random models.

    adapters.py make FOLDER            writes FOLDER/NAME/{base,adapter} for each, and prints the names as JSON
    adapters.py compare FOLDER OURS    merges with PEFT, and prints {name: [largest difference, largest change]} of OURS/NAME's weights
    adapters.py load BASE ADAPTER      loads ADAPTER over BASE with PEFT, and prints its scaling by module
"""

import json
import sys

import torch
import transformers as t
from peft import LoraConfig, PeftModel, get_peft_model

t.logging.set_verbosity_error()
sizes = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
llama = lambda: t.LlamaForCausalLM(t.LlamaConfig(**sizes, num_key_value_heads=2))
gpt2 = lambda: t.GPT2LMHeadModel(t.GPT2Config(vocab_size=96, n_embd=64, n_layer=2, n_head=4, n_positions=32))
attention = ["q_proj", "v_proj"]

adapters = {
    "plain": (llama, LoraConfig(r=8, lora_alpha=16, target_modules=attention)),
    "rslora": (llama, LoraConfig(r=8, lora_alpha=16, target_modules=attention, use_rslora=True)),
    "dora": (llama, LoraConfig(r=8, lora_alpha=8, target_modules=attention, use_dora=True)),
    "patterns": (
        llama,
        LoraConfig(
            r=8,
            lora_alpha=16,
            target_modules=["q_proj", "v_proj", "up_proj"],
            rank_pattern={r"layers\.1\.self_attn\.q_proj": 4, "^model.layers.0.mlp.up_proj": 2},
            alpha_pattern={"v_proj": 5},
        ),
    ),
    "saved": (llama, LoraConfig(r=4, lora_alpha=4, target_modules=attention, modules_to_save=["lm_head", "norm"])),
    "embedding": (llama, LoraConfig(r=4, lora_alpha=4, target_modules=["embed_tokens", "q_proj"])),
    "columns": (gpt2, LoraConfig(r=4, lora_alpha=8, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)),
    "bias": (gpt2, LoraConfig(r=4, lora_alpha=4, target_modules=["c_attn"], lora_bias=True, fan_in_fan_out=True)),
    "bfloat16": (llama, LoraConfig(r=8, lora_alpha=16, target_modules=attention)),
}


def make(folder):
    for name, (build, config) in adapters.items():
        torch.manual_seed(5)
        model = build()
        if name == "bfloat16":
            model = model.to(torch.bfloat16)
        model.save_pretrained(f"{folder}/{name}/base")
        adapted = get_peft_model(model, config, autocast_adapter_dtype=name != "bfloat16")
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter += 0.05 * torch.randn_like(parameter)
        adapted.save_pretrained(f"{folder}/{name}/adapter")
    print(json.dumps(list(adapters)))


def compare(folder, ours):
    found = {}
    for name, (build, _) in adapters.items():
        cls = type(build())
        dtype = torch.bfloat16 if name == "bfloat16" else torch.float32
        base = cls.from_pretrained(f"{folder}/{name}/base", dtype=dtype)
        before = {key: value.clone() for key, value in base.state_dict().items()}
        merged = PeftModel.from_pretrained(base, f"{folder}/{name}/adapter", autocast_adapter_dtype=False).merge_and_unload()
        got = cls.from_pretrained(f"{ours}/{name}", dtype=dtype).state_dict()
        difference, change = 0.0, 0.0
        for key, value in merged.state_dict().items():
            difference = max(difference, (value.float() - got[key].float()).abs().max().item())
            if key in before:
                change = max(change, (value.float() - before[key].float()).abs().max().item())
        found[name] = [difference, change]
    print(json.dumps(found))


def load(base, adapter):
    model = PeftModel.from_pretrained(t.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter)
    scalings = {name: module.scaling["default"] for name, module in model.named_modules() if isinstance(getattr(module, "scaling", None), dict)}
    print(json.dumps({name.removeprefix("base_model.model."): value for name, value in scalings.items() if value}))


{"make": make, "compare": compare, "load": load}[sys.argv[1]](*sys.argv[2:])
