"""Owns the benchmark of onnxruntime's 4-bit products. Its models are kept beside the inputs, for JavaScript to run too."""
import functools
import os

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from formats import BLOCK, int4, nf4
from worker import Contestant, activations, checked_rows, folder, product_error, weight


def describe():
    return f"onnxruntime {ort.__version__}"


def quantized(w, variant):
    return (nf4 if variant == "bnb4" else int4)(w)


@functools.cache
def model(n, k, copies, variant):
    """The path of a model of as many layers as the case has copies, over one input."""
    codes, scales, _ = quantized(weight({"n": n, "k": k}), variant)
    shared = {"K": k, "N": n, "block_size": BLOCK, "domain": "com.microsoft"}
    nodes, tensors = [], []
    for i in range(copies):
        inputs = ["x", f"codes{i}", f"scales{i}"]
        if variant == "bnb4":
            nodes.append(helper.make_node("MatMulBnb4", inputs, [f"y{i}"], quant_type=1, **shared))
        else:
            level = int(variant.removeprefix("accuracy"))
            nodes.append(helper.make_node("MatMulNBits", inputs, [f"y{i}"], bits=4, accuracy_level=level, **shared))
        tensors.append(helper.make_tensor(f"codes{i}", TensorProto.UINT8, codes.shape, codes.tobytes(), raw=True))
        tensors.append(helper.make_tensor(f"scales{i}", TensorProto.FLOAT, scales.shape, scales.tobytes(), raw=True))
    float_of = lambda name, columns: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["m", columns])
    graph = helper.make_graph(nodes, "layer", [float_of("x", k)], [float_of(f"y{i}", n) for i in range(copies)], tensors)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    path = os.path.join(folder, f"{variant}-{n}x{k}-{copies}.onnx")
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path


def make(case, variant, threads):
    path = model(case["n"], case["k"], case["copies"], variant)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    x = ort.OrtValue.ortvalue_from_numpy(activations(case))
    binding.bind_ortvalue_input("x", x)
    outputs = [ort.OrtValue.ortvalue_from_numpy(np.empty((case["m"], case["n"]), np.float32)) for _ in range(case["copies"])]
    for i, output in enumerate(outputs):
        binding.bind_ortvalue_output(f"y{i}", output)
    run = lambda: session.run_with_iobinding(binding)
    run()
    _, _, dequantized = quantized(checked_rows(case), variant)
    return Contestant(run, product_error(case, outputs[0].numpy(), dequantized))
