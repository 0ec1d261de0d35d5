"""Owns the peers of bench/cuda.ts: bitsandbytes, and torch with dense weights, on the same GPU. Reads the cases as JSON from
standard input, and prints who they are and their times as one line of JSON."""
import json
import sys

import bitsandbytes as bnb
import bitsandbytes.functional as F
import torch

if not torch.cuda.is_available():
    sys.exit("torch sees no CUDA GPU")
torch.set_grad_enabled(False)
CACHE_BYTES = 260e6
dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def eager_time(calls):
    """Microseconds a call, as Python makes it: for what is long beside that, and for kernels that no graph captures."""
    return time_of(lambda: [call() for call in calls], len(calls))


def graph_time(calls):
    """Microseconds a call, in replays of a graph of all calls."""
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return time_of(graph.replay, len(calls))


def time_of(run, calls):
    """The median of five runs, after two."""
    found = []
    for _ in range(7):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        run()
        end.record()
        torch.cuda.synchronize()
        found.append(begin.elapsed_time(end) * 1e3 / calls)
    return sorted(found[2:])[2]


def copies(bytes_of_one):
    return max(2, -(-int(CACHE_BYTES) // int(bytes_of_one)))


def quantized(case, dtype):
    n, k = case["n"], case["k"]
    return [F.quantize_4bit(torch.randn(n, k, device="cuda", dtype=dtype), quant_type="nf4",
                            compress_statistics=case.get("nested", False))
            for _ in range(copies(n * k / 2))]


def matmul(case, dtype):
    m, n, k = case["m"], case["n"], case["k"]
    x = torch.randn(m, k, device="cuda", dtype=dtype)
    weights = quantized(case, dtype)
    fused = graph_time([lambda w=w: bnb.matmul_4bit(x, w[0].t(), quant_state=w[1]) for w in weights])
    steps = graph_time([lambda w=w: x @ F.dequantize_4bit(w[0], w[1]).t() for w in weights[: max(2, len(weights) // 4)]])
    del weights
    dense = [torch.randn(n, k, device="cuda", dtype=dtype) for _ in range(copies(2 * n * k))]
    return {"bitsandbytes": min(fused, steps), "torch": graph_time([lambda w=w: x @ w.t() for w in dense])}


def backward_dx(case, dtype):
    """As bitsandbytes' own MatMul4Bit.backward has it."""
    m, n, k = case["m"], case["n"], case["k"]
    dy = torch.randn(m, n, device="cuda", dtype=dtype)
    weights = quantized(case, dtype)
    steps = graph_time([lambda w=w: dy @ F.dequantize_4bit(w[0], w[1]) for w in weights])
    del weights
    dense = [torch.randn(n, k, device="cuda", dtype=dtype) for _ in range(copies(2 * n * k))]
    return {"bitsandbytes": steps, "torch": graph_time([lambda w=w: dy @ w for w in dense])}


def backward_dw(case, dtype):
    m, n, k = case["m"], case["n"], case["k"]
    pairs = [[torch.randn(m, columns, device="cuda", dtype=dtype) for columns in (n, k)]
             for _ in range(copies(2 * m * (n + k)))]
    return {"torch": graph_time([lambda p=p: p[0].t() @ p[1] for p in pairs])}


def int8(case, dtype):
    m, n, k = case["m"], case["n"], case["k"]
    a, b = (torch.randint(-127, 128, (rows, k), device="cuda", dtype=torch.int8) for rows in (m, n))
    of_a, of_b = torch.ones(m, device="cuda"), torch.ones(n, device="cuda")
    return {"bitsandbytes": graph_time([lambda: F.int8_mm_dequant(F.int8_linear_matmul(a, b), of_a, of_b)] * 4)}


def adam8bit(case, dtype):
    p = torch.nn.Parameter(torch.randn(case["n"], case["k"], device="cuda"), requires_grad=True)
    p.grad = torch.randn_like(p)
    adam = bnb.optim.Adam8bit([p], lr=1e-3)
    return {"bitsandbytes": eager_time([adam.step] * 2)}


def times(case):
    dtype = dtypes[case["dtype"]]
    operation = case["operation"].replace(" ", "_")
    if operation in ("matmul", "backward_dx", "backward_dw", "int8", "adam8bit"):
        return globals()[operation](case, dtype)
    x = torch.randn(case["n"], case["k"], device="cuda", dtype=dtype)
    if operation == "quantize4bit":
        return {"bitsandbytes": eager_time([lambda: F.quantize_4bit(x, quant_type="nf4", compress_statistics=False)] * 2)}
    if operation == "dequantize4bit":
        codes, state = F.quantize_4bit(x, quant_type="nf4", compress_statistics=False)
        return {"bitsandbytes": eager_time([lambda: F.dequantize_4bit(codes, state)] * 2)}
    return {"bitsandbytes": eager_time([lambda: F.quantize_blockwise(x, blocksize=256)] * 2)}


found = {}
for case in json.load(sys.stdin):
    found[case["name"]] = times(case)
    torch.cuda.empty_cache()
who = f"bitsandbytes {bnb.__version__}, torch {torch.__version__}, products in CUDA graphs"
print(json.dumps({"who": who, "times": found}))
