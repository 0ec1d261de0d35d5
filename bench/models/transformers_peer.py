"""The worker of transformers for `bun run bench:models`: `transformers_peer.py PATH OPTIONS THREADS`.

OPTIONS is {"dtype": …} or what BitsAndBytesConfig takes, as JSON. Lines of JSON in, an answer for each.
"""
import json
import resource
import sys
import time

import torch
import transformers

transformers.logging.set_verbosity_error()
path, options, threads = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(threads)
torch.set_grad_enabled(False)

more = {}
if "dtype" not in options:
    config = options | {"bnb_4bit_compute_dtype": torch.float32} if options.get("load_in_4bit") else options
    more["quantization_config"] = transformers.BitsAndBytesConfig(**config)
dtype = getattr(torch, options.get("dtype", "float32"))
model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=dtype, **more).eval()


def say(**answer):
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(answer | {"peak": peak}), flush=True)


def timed(run):
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


say(description=f"transformers {transformers.__version__}, torch {torch.__version__}")
for line in sys.stdin:
    command = json.loads(line)
    state, ids = {}, []

    def step(input_ids):
        out = model(torch.tensor([input_ids]), past_key_values=state.get("cache"), use_cache=True, logits_to_keep=1)
        state["cache"] = out.past_key_values
        ids.append(int(out.logits[0, -1].argmax()))

    prefill = timed(lambda: step(command["prompt"]))
    decode = timed(lambda: [step([ids[-1]]) for _ in range(command["tokens"])])
    say(prefill=prefill, decode=decode, ids=ids)
