"""Owns the benchmark of ggml's products, in the layout that its CPU backend repacks weights to where it has one."""
import ctypes as c
import functools
import importlib.metadata
import os

import gguf
import libggml
import numpy as np

from worker import Contestant, Skip, activations, checked_rows, product_error, weight

ROOT = os.path.join(os.path.dirname(libggml.__file__), "lib64")


def library(name):
    suffix = next(suffix for suffix in ("so", "dylib") if os.path.exists(os.path.join(ROOT, f"lib{name}.{suffix}")))
    return c.CDLL(os.path.join(ROOT, f"lib{name}.{suffix}"), mode=c.RTLD_GLOBAL)


base, cpu = library("ggml-base"), library("ggml-cpu")
TYPES = {"q4_0": 2, "q4_k": 12, "iq4_nl": 20}
MAX_THREADS = 512


class InitParams(c.Structure):
    _fields_ = [("size", c.c_size_t), ("buffer", c.c_void_p), ("no_alloc", c.c_bool)]


class ThreadpoolParams(c.Structure):
    _fields_ = [("mask", c.c_bool * MAX_THREADS), ("threads", c.c_int), ("priority", c.c_int), ("poll", c.c_uint32),
                ("strict", c.c_bool), ("paused", c.c_bool)]


def declare(functions, result, *arguments):
    for function in functions:
        function.restype, function.argtypes = result, arguments


declare([base.ggml_init], c.c_void_p, InitParams)
declare([base.ggml_new_tensor_2d], c.c_void_p, c.c_void_p, c.c_int, c.c_int64, c.c_int64)
declare([base.ggml_mul_mat], c.c_void_p, c.c_void_p, c.c_void_p, c.c_void_p)
declare([base.ggml_new_graph], c.c_void_p, c.c_void_p)
declare([base.ggml_build_forward_expand, cpu.ggml_backend_cpu_set_threadpool], None, c.c_void_p, c.c_void_p)
declare([base.ggml_row_size], c.c_size_t, c.c_int, c.c_int64)
declare([base.ggml_quantize_chunk], c.c_size_t, c.c_int, c.c_void_p, c.c_void_p, c.c_int64, c.c_int64, c.c_int64, c.c_void_p)
declare([base.ggml_backend_alloc_ctx_tensors_from_buft], c.c_void_p, c.c_void_p, c.c_void_p)
declare([base.ggml_backend_tensor_set, base.ggml_backend_tensor_get], None, c.c_void_p, c.c_void_p, c.c_size_t, c.c_size_t)
declare([base.ggml_backend_graph_compute], c.c_int, c.c_void_p, c.c_void_p)
declare([base.ggml_backend_get_default_buffer_type], c.c_void_p, c.c_void_p)
declare([base.ggml_backend_reg_dev_get], c.c_void_p, c.c_void_p, c.c_size_t)
declare([base.ggml_backend_reg_get_proc_address], c.c_void_p, c.c_void_p, c.c_char_p)
declare([cpu.ggml_backend_cpu_init, cpu.ggml_backend_cpu_reg], c.c_void_p)
declare([cpu.ggml_backend_cpu_set_n_threads], None, c.c_void_p, c.c_int)
declare([base.ggml_threadpool_params_default], ThreadpoolParams, c.c_int)
declare([cpu.ggml_threadpool_new], c.c_void_p, c.POINTER(ThreadpoolParams))


def describe():
    sets = [name for name in ("avx2", "avx512", "avx512_vnni", "neon", "dotprod", "matmul_int8") if getattr(cpu, f"ggml_cpu_has_{name}")()]
    return f"ggml {importlib.metadata.version('libggml-python')} (a build for {', '.join(sets)})"


def buffer_types(backend):
    """Those of repacked weights, best first, then the plain one."""
    register = cpu.ggml_backend_cpu_reg()
    address = base.ggml_backend_reg_get_proc_address(register, b"ggml_backend_dev_get_extra_bufts")
    device = base.ggml_backend_reg_dev_get(register, 0)
    extra = c.CFUNCTYPE(c.POINTER(c.c_void_p), c.c_void_p)(address)(device) if address else None
    found = []
    while extra and extra[len(found)]:
        found.append(extra[len(found)])
    return [*found, base.ggml_backend_get_default_buffer_type(backend)]


def context(tensors):
    return base.ggml_init(InitParams(tensors * 512 + 2**20, None, True))


def pointer(array):
    return array.ctypes.data_as(c.c_void_p)


class Layers:
    """As many products as the case has copies, over one input, in one graph."""

    def __init__(self, case, kind, threads, codes):
        m, n, k, copies = (case[name] for name in ("m", "n", "k", "copies"))
        self.backend = cpu.ggml_backend_cpu_init()
        pool = base.ggml_threadpool_params_default(threads)
        cpu.ggml_backend_cpu_set_n_threads(self.backend, threads)
        cpu.ggml_backend_cpu_set_threadpool(self.backend, cpu.ggml_threadpool_new(c.byref(pool)))

        weights, rest = context(copies), context(2 * copies)
        w = [base.ggml_new_tensor_2d(weights, kind, k, n) for _ in range(copies)]
        base.ggml_backend_alloc_ctx_tensors_from_buft(weights, buffer_types(self.backend)[0])
        for tensor in w:
            base.ggml_backend_tensor_set(tensor, pointer(codes), 0, codes.nbytes)

        x = base.ggml_new_tensor_2d(rest, 0, k, m)
        products = [base.ggml_mul_mat(rest, tensor, x) for tensor in w]
        base.ggml_backend_alloc_ctx_tensors_from_buft(rest, buffer_types(self.backend)[-1])
        values = activations(case)
        base.ggml_backend_tensor_set(x, pointer(values), 0, values.nbytes)
        self.graph = base.ggml_new_graph(rest)
        for product in products:
            base.ggml_build_forward_expand(self.graph, product)
        self.first, self.shape = products[0], (m, n)

    def run(self):
        status = base.ggml_backend_graph_compute(self.backend, self.graph)
        assert status == 0, f"ggml_backend_graph_compute returned {status}"

    def output(self):
        y = np.empty(self.shape, np.float32)
        base.ggml_backend_tensor_get(self.first, pointer(y), 0, y.nbytes)
        return y


@functools.cache
def quantized(n, k, kind):
    w = weight({"n": n, "k": k})
    codes = np.empty((n, base.ggml_row_size(kind, k)), np.uint8)
    base.ggml_quantize_chunk(kind, pointer(w), pointer(codes), 0, n, k, None)
    return codes


def make(case, variant, threads):
    kind = TYPES[variant]
    if case["k"] % 256 and variant == "q4_k":
        raise Skip("Q4_K needs whole blocks of 256")
    codes = quantized(case["n"], case["k"], kind)
    layers = Layers(case, kind, threads, codes)
    layers.run()
    dequantized = gguf.quants.dequantize(codes[: len(checked_rows(case))], gguf.GGMLQuantizationType(kind))
    return Contestant(layers.run, product_error(case, layers.output(), dequantized))
