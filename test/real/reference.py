"""What transformers and bitsandbytes make of a model, and of the directory that this project made.

    reference.py bert|llama MODEL OURS THEIRS OPTIONS

Quantises MODEL with BitsAndBytesConfig(**OPTIONS) and saves it as THEIRS; loads OURS, which must hold the same weights; runs
both on a few tokens; and prints one line of JSON: the largest difference of their outputs, and the largest output.
"""

import json
import sys

import torch
import transformers

kind, model, ours, theirs, options = sys.argv[1:]
options = json.loads(options)
dtype = getattr(torch, options.pop("dtype"))
load = {"bert": transformers.AutoModel, "llama": transformers.AutoModelForCausalLM}[kind].from_pretrained
transformers.logging.set_verbosity_error()
torch.manual_seed(0)
tokens = torch.arange(1, 33).reshape(1, 32)


def run(loaded):
    with torch.no_grad():
        return loaded.eval()(tokens)[0].float()


if "bnb_4bit_compute_dtype" in options:
    options["bnb_4bit_compute_dtype"] = getattr(torch, options["bnb_4bit_compute_dtype"])
reference = load(model, dtype=dtype, quantization_config=transformers.BitsAndBytesConfig(**options))
reference.save_pretrained(theirs)  # before it runs: a forward pass may change what would be saved
expected = run(reference)
got = run(load(ours))
print(json.dumps({"difference": (got - expected).abs().max().item(), "largest": expected.abs().max().item()}))
