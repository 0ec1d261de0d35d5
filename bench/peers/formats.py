"""Owns the 4-bit formats that several peers share, written in numpy."""
import numpy as np

BLOCK = 64
NF4 = np.array(
    [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
     -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
     0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0], np.float32)


def int4(w):
    """Codes, scales and what they stand for, as onnxruntime quantises; the first element is in the low nibble."""
    n, k = w.shape
    blocks = w.reshape(n, k // BLOCK, BLOCK)
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(-1)[..., None], -1)
    scales = largest / -8
    codes = np.clip(np.round(blocks / scales) + 8, 0, 15).astype(np.uint8)
    packed = codes[..., 0::2] | codes[..., 1::2] << 4
    return packed, scales[..., 0].reshape(-1), ((codes.astype(np.float32) - 8) * scales).reshape(n, k)


def nf4(w):
    """Codes, scales and what they stand for, as bitsandbytes has them; the first element is in the high nibble."""
    blocks = w.reshape(-1, BLOCK)
    absmax = np.abs(blocks).max(-1)
    codes = np.searchsorted((NF4[1:] + NF4[:-1]) / 2, blocks / absmax[:, None]).astype(np.uint8)
    packed = codes[:, 0::2] << 4 | codes[:, 1::2]
    return packed.reshape(-1), absmax, (NF4[codes] * absmax[:, None]).reshape(w.shape)
