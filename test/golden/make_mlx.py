"""Writes mlx.safetensors beside itself: weights that MLX 0.32.4 quantised in every mode, and what it makes of them.

Needs `pip install mlx==0.32.4 mlx-cpu==0.32.4 numpy safetensors`. Of each: `NAME.weight`, `NAME.scales`, `NAME.biases`, their
values `NAME.values` and, of float32 scales, the product `NAME.y` of `x` with them.
"""

from pathlib import Path

import mlx.core as mx
import numpy as np
from safetensors.numpy import save_file

rng = np.random.default_rng(11)
weights = rng.standard_normal((4, 256)).astype(np.float32) * 0.05
x = rng.standard_normal((3, 256)).astype(np.float32)
golden = {"x": x, "weights": weights}
modes = [("affine", bits, group) for bits in (2, 3, 4, 5, 6, 8) for group in (32, 64, 128)]
modes += [("mxfp4", 4, 32), ("mxfp8", 8, 32), ("nvfp4", 4, 16)]
for mode, bits, group in modes:
    for dtype in (mx.float32, mx.float16) if mode == "affine" else (mx.float32,):
        name = f"{mode}{bits}g{group}{'h' if dtype == mx.float16 else ''}"
        parts = mx.quantize(mx.array(weights).astype(dtype), group_size=group, bits=bits, mode=mode)
        for part, value in zip(("weight", "scales", "biases"), parts):
            golden[f"{name}.{part}"] = np.array(value)
        values = mx.dequantize(*parts, group_size=group, bits=bits, mode=mode)
        golden[f"{name}.values"] = np.array(values.astype(mx.float32))
        if dtype == mx.float32:
            y = mx.quantized_matmul(mx.array(x), *parts, transpose=True, group_size=group, bits=bits, mode=mode)
            golden[f"{name}.y"] = np.array(y.astype(mx.float32))
save_file(golden, Path(__file__).with_name("mlx.safetensors"))
