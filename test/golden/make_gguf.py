"""Writes gguf.safetensors beside itself: blocks of every GGML type that is read, and what gguf-py 0.19.0 makes of them.

Needs `pip install gguf==0.19.0 safetensors numpy`. Types that gguf-py can quantise hold normal weights; the K types, which it
cannot, hold random bytes with sane scales.
"""

from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants
from safetensors.numpy import save_file

ROWS, COLUMNS = 2, 768
OLD = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"]
SCALES = {  # byte positions of fp16 scales in a block
    "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "Q2_K": [80, 82], "Q3_K": [108], "IQ2_XXS": [0], "IQ2_XS": [0],
    "IQ2_S": [0], "IQ3_XXS": [0], "IQ3_S": [0], "IQ1_S": [0], "IQ1_M": [], "IQ4_NL": [0], "IQ4_XS": [0], "TQ1_0": [52],
    "TQ2_0": [64], "MXFP4": [], "NVFP4": [],
}  # fmt: skip

rng = np.random.default_rng(7)
golden = {}
for name in OLD + [name for name in SCALES if name not in OLD]:
    type = GGMLQuantizationType[name]
    block, size = GGML_QUANT_SIZES[type]
    if name in SCALES:
        blocks = rng.integers(0, 256, (ROWS * COLUMNS // block, size), dtype=np.uint8)
        for at in SCALES[name]:
            scales = rng.uniform(-1e-3, 1e-3, (len(blocks), 1)).astype(np.float16)
            blocks[:, at : at + 2] = scales.view(np.uint8)
        if name == "IQ1_M":  # the scale's four quarters are the high nibbles of its last four numbers
            bits = np.float16(3e-4).view(np.uint16)
            for i in range(4):
                blocks[:, 49 + 2 * i] = (blocks[:, 49 + 2 * i] & 15) | (((bits >> (4 * i)) & 15) << 4)
        if name == "MXFP4":
            blocks[:, 0] = rng.integers(100, 140, len(blocks))
            blocks[:3, 0] = [0, 1, 2]
        if name == "NVFP4":
            blocks[:3, 0] = [0, 0x7F, 5]
    else:
        weights = (rng.standard_normal((ROWS, COLUMNS)) * 0.05).astype(np.float32)
        blocks = np.ascontiguousarray(quants.quantize(weights, type)).view(np.uint8)
    blocks = blocks.reshape(ROWS, -1)
    golden[f"{name}.data"] = blocks
    golden[f"{name}.values"] = quants.dequantize(blocks, type).reshape(ROWS, COLUMNS)
save_file(golden, Path(__file__).with_name("gguf.safetensors"))
