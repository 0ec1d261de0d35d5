"""Owns the benchmark of torch itself: its dense product, its own packed 4-bit product, and its fused AdamW."""
import numpy as np
import torch

from worker import Contestant, Skip, activations, checked_rows, load, product_error, relative, weight

torch.set_grad_enabled(False)
BLOCK = 64


def describe():
    return f"torch {torch.__version__} ({torch.backends.cpu.get_cpu_capability()})"


def tensor(array):
    return torch.from_numpy(array.copy())


def dense(case):
    w = [tensor(weight(case)) for _ in range(case["copies"])]
    x = tensor(activations(case))
    error = product_error(case, torch.nn.functional.linear(x, w[0]).numpy(), checked_rows(case))
    return Contestant(lambda: [torch.nn.functional.linear(x, each) for each in w], error)


def int4pack(case):
    w = weight(case)
    n, k = w.shape
    blocks = w.reshape(n, k // BLOCK, BLOCK)
    scales = np.abs(blocks).max(-1, keepdims=True) / 7
    scales = torch.from_numpy(scales).bfloat16().float().numpy()
    codes = np.clip(np.round(blocks / scales), -8, 7)
    scales_and_zeros = np.stack([scales[..., 0], np.zeros_like(scales[..., 0])], -1).transpose(1, 0, 2)
    scales_and_zeros = torch.from_numpy(np.ascontiguousarray(scales_and_zeros)).bfloat16()
    integers = torch.from_numpy((codes + 8).astype(np.int32).reshape(n, k))
    packed = [torch.ops.aten._convert_weight_to_int4pack_for_cpu(integers, 1) for _ in range(case["copies"])]
    x = tensor(activations(case)).bfloat16()
    product = torch.ops.aten._weight_int4pack_mm_for_cpu
    dequantized = (codes * scales).reshape(n, k)[: len(checked_rows(case))]
    error = product_error(case, product(x, packed[0], BLOCK, scales_and_zeros).float().numpy(), dequantized)
    return Contestant(lambda: [product(x, each, BLOCK, scales_and_zeros) for each in packed], error)


def adamw(case):
    p = torch.nn.Parameter(tensor(weight(case)))
    p.grad = tensor(load("g", tuple(p.shape)))
    optimizer = torch.optim.AdamW([p], lr=1e-3, weight_decay=0, fused=True)
    before = p.detach().clone()
    optimizer.step()
    moved = -1e-3 * p.grad / (p.grad.abs() + 1e-8)
    return Contestant(optimizer.step, relative(p.detach() - before, moved))


def make(case, variant, threads):
    torch.set_num_threads(threads)
    if case["operation"] == "adam8bit":
        return adamw(case)
    if case["operation"] != "matmul":
        raise Skip("torch has no such operation")
    return dense(case) if variant == "float32" else int4pack(case)
