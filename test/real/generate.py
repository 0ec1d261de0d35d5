"""What transformers writes, token by token, and what it makes of texts.

    generate.py MODEL OPTIONS PROMPTS [OUTPUT]   greedy ids after each prompt, and the last logits after it, as JSON
    generate.py --embed MODEL TEXTS              the mean of each text's vectors, at length 1, as JSON
    generate.py --perplexity MODEL OPTIONS TEXT WINDOW [OUTPUT]   of a text in windows that do not overlap

OPTIONS is "float32" or what BitsAndBytesConfig takes, as JSON; products are in float32. The quantised model is saved to OUTPUT.
"""

import json
import math
import sys

import torch
import transformers

transformers.logging.set_verbosity_error()


def load(path, options, output=None):
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    more = {}
    if options != "float32":
        config = json.loads(options) | {"bnb_4bit_compute_dtype": torch.float32}
        more["quantization_config"] = transformers.BitsAndBytesConfig(**config)
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **more).eval()
    if output:  # before any product: bitsandbytes changes its weights for one
        model.save_pretrained(output)
        tokenizer.save_pretrained(output)
    if "load_in_4bit" in options:  # bitsandbytes' products are in bfloat16 on some processors, whatever it is told; what codes stand for is not
        model = model.dequantize(dtype=torch.float32)
    return model, tokenizer


def generate(path, options, prompts, output=None):
    model, tokenizer = load(path, options, output)
    for prompt in json.loads(prompts):
        if isinstance(prompt, list):
            prompt = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            logits = model(ids).logits[0, -1]
            out = model.generate(ids, max_new_tokens=32, do_sample=False)
        yield {"prompt": ids[0].tolist(), "ids": out[0, ids.shape[1] :].tolist(), "logits": logits.tolist()}


def perplexity(path, options, text, window, output=None):
    model, tokenizer = load(path, options, output)
    ids = tokenizer(text, return_tensors="pt")["input_ids"][0]
    loss, tokens = 0.0, 0
    for part in ids.split(int(window)):
        if len(part) < 2:
            continue
        with torch.no_grad():
            logits = model(part[None]).logits[0, :-1]
        loss += torch.nn.functional.cross_entropy(logits.double(), part[1:], reduction="sum").item()
        tokens += len(part) - 1
    yield {"ids": ids.tolist(), "perplexity": math.exp(loss / tokens), "tokens": tokens}


def embed(path, texts):
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    model = transformers.AutoModel.from_pretrained(path, dtype=torch.float32).eval()
    for text in json.loads(texts):
        inputs = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            vector = model(**inputs).last_hidden_state[0].mean(0)
        yield {"ids": inputs["input_ids"][0].tolist(), "vector": torch.nn.functional.normalize(vector, dim=0).tolist()}


if sys.argv[1] == "--embed":
    results = list(embed(*sys.argv[2:]))
elif sys.argv[1] == "--perplexity":
    results = list(perplexity(*sys.argv[2:]))
else:
    results = list(generate(*sys.argv[1:]))
print(json.dumps(results))
