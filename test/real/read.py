"""What bitsandbytes reads out of a directory that this project quantised.

    read.py QUANTIZED DENSE

Loads QUANTIZED with transformers, dequantises every 4-bit weight with bitsandbytes, and prints one line of JSON: how many
there are, and the largest difference from the same weights in DENSE, which this project dequantised.
"""

import json
import sys

import bitsandbytes
import transformers
from safetensors import safe_open

quantized, dense = sys.argv[1:]
transformers.logging.set_verbosity_error()
model = transformers.AutoModel.from_pretrained(quantized)
difference, weights = 0.0, 0
with safe_open(f"{dense}/model.safetensors", "pt") as ours:
    for name, module in model.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            theirs = bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
            difference = max(difference, (theirs.float() - ours.get_tensor(f"{name}.weight")).abs().max().item())
            weights += 1
print(json.dumps({"weights": weights, "difference": difference}))
