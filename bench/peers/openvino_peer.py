"""Owns the benchmark of OpenVINO's product with compressed NF4 weights."""
import numpy as np
import openvino as ov
from openvino import opset15 as ops

from formats import BLOCK, nf4
from worker import Contestant, activations, checked_rows, product_error, weight


def describe():
    core = ov.Core()
    return f"OpenVINO {ov.__version__.split('-')[0]} ({', '.join(core.get_property('CPU', 'OPTIMIZATION_CAPABILITIES'))})"


def layer(x, w, packed, absmax):
    """x · wᵀ. OpenVINO has the first element in the low nibble."""
    n, k = w.shape
    swapped = packed >> 4 | (packed & 15) << 4
    shape = ov.Shape([n, k // BLOCK, BLOCK])
    tensor = ov.Tensor(ov.Type.nf4, shape)
    tensor.data.reshape(-1)[:] = swapped
    codes = ops.constant(tensor, shared_memory=False)
    scales = ops.constant(absmax.reshape(n, k // BLOCK, 1))
    scaled = ops.multiply(ops.convert(codes, "f32"), scales)
    return ops.matmul(x, ops.reshape(scaled, np.array([n, k]), False), False, True)


def make(case, variant, threads):
    x = ops.parameter([case["m"], case["k"]], np.float32)
    packed, absmax, _ = nf4(weight(case))
    layers = [layer(x, weight(case), packed, absmax) for _ in range(case["copies"])]
    config = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1}
    compiled = ov.Core().compile_model(ov.Model(layers, [x]), "CPU", config)
    request = compiled.create_infer_request()
    request.set_input_tensor(ov.Tensor(activations(case).copy()))
    request.infer()
    _, _, dequantized = nf4(checked_rows(case))
    return Contestant(request.infer, product_error(case, request.get_output_tensor(0).data, dequantized))
