"""A model that this project quantised for MLX beside mlx_lm's own conversion of the same.

    mlx_models.py MODEL OURS THEIRS BITS GROUP

Converts MODEL to THEIRS, loads both with mlx_lm, generates from each, and prints one line of JSON: the number of tensors,
whether all of them are the same to the bit, and the ids.
"""

import json
import sys

import mlx.core as mx
from mlx_lm import convert, load
from mlx_lm.generate import generate_step

model, ours, theirs, bits, group = sys.argv[1:]
convert(model, mlx_path=theirs, quantize=True, q_bits=int(bits), q_group_size=int(group))


def generate(path):
    loaded, tokenizer = load(path)
    prompt = mx.array(tokenizer.encode("The capital of France is"))
    return [int(token) for (token, _), _ in zip(generate_step(prompt, loaded, max_tokens=16), range(16))]


a, b = (mx.load(f"{path}/model.safetensors") for path in (ours, theirs))
same = set(a) == set(b) and all(a[key].dtype == b[key].dtype and bool(mx.all(a[key] == b[key])) for key in b)
print(json.dumps({"tensors": len(b), "same": same, "ids": [generate(ours), generate(theirs)]}))
