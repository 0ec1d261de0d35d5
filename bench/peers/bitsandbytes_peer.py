"""Owns the benchmark of bitsandbytes on the CPU, through the layers and functions that its users call."""
import copy
import functools

import bitsandbytes as bnb
import bitsandbytes.functional as F
import torch

from worker import Contestant, activations, checked_rows, load, product_error, relative, weight

torch.set_grad_enabled(False)
dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def describe():
    capability = torch.backends.cpu.get_cpu_capability()
    packed = "with" if F.has_avx512bf16() else "without"
    return f"bitsandbytes {bnb.__version__}, torch {torch.__version__} ({capability}, {packed} its AVX512-BF16 kernel)"


def tensor(array):
    return torch.from_numpy(array.copy())


@functools.cache
def linear4bit(n, k, dtype):
    layer = bnb.nn.Linear4bit(k, n, bias=False, compute_dtype=dtype, quant_type="nf4", compress_statistics=False)
    w = tensor(weight({"n": n, "k": k}))
    layer.weight = bnb.nn.Params4bit(w, requires_grad=False, quant_type="nf4", blocksize=64, compress_statistics=False)
    return layer.to("cpu").eval()


def matmul(case, variant):
    dtype = dtypes[variant]
    layers = [copy.deepcopy(linear4bit(case["n"], case["k"], dtype)) for _ in range(case["copies"])]
    x = tensor(activations(case)).to(dtype)
    dequantized = F.dequantize_4bit(*F.quantize_4bit(tensor(checked_rows(case)), blocksize=64, quant_type="nf4"))
    error = product_error(case, layers[0](x).float().numpy(), dequantized.numpy())
    return Contestant(lambda: [layer(x) for layer in layers], error)


def int8(case, variant):
    w = tensor(weight(case))
    n, k = w.shape
    layer = bnb.nn.Linear8bitLt(k, n, bias=False, has_fp16_weights=False, threshold=6.0)
    layer.weight = bnb.nn.Int8Params(w, requires_grad=False, has_fp16_weights=False)
    layer = layer.to("cpu").eval()
    x = tensor(activations(case)).to(dtypes[variant])
    return Contestant(lambda: layer(x), product_error(case, layer(x).float().numpy(), checked_rows(case)))


def quantize4bit(case, variant):
    w = tensor(weight(case))
    run = lambda: F.quantize_4bit(w, blocksize=64, quant_type="nf4")
    return Contestant(run, relative(F.dequantize_4bit(*run()), w))


def dequantize4bit(case, variant):
    w = tensor(weight(case)).to(dtypes[variant])
    codes, state = F.quantize_4bit(w, blocksize=64, quant_type="nf4")
    run = lambda: F.dequantize_4bit(codes, state)
    return Contestant(run, relative(run().float(), w.float()))


def quantize8bit(case, variant):
    w = tensor(weight(case))
    run = lambda: F.quantize_blockwise(w, blocksize=256)
    return Contestant(run, relative(F.dequantize_blockwise(*run()), w))


def dequantize8bit(case, variant):
    w = tensor(weight(case))
    codes, state = F.quantize_blockwise(w, blocksize=256)
    run = lambda: F.dequantize_blockwise(codes, state)
    return Contestant(run, relative(run(), w))


def adam8bit(case, variant):
    p = torch.nn.Parameter(tensor(weight(case)))
    p.grad = tensor(load("g", tuple(p.shape)))
    optimizer = bnb.optim.Adam8bit([p], lr=1e-3)
    before = p.detach().clone()
    optimizer.step()
    moved = -1e-3 * p.grad / (p.grad.abs() + 1e-8)  # the first step of Adam (Kingma and Ba 2015)
    return Contestant(optimizer.step, relative(p.detach() - before, moved))


def make(case, variant, threads):
    torch.set_num_threads(threads)
    return globals()[case["operation"]](case, variant)
