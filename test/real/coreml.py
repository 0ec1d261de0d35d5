"""A package of Core ML's as coremltools reads it, with its arithmetic in numpy.

    coreml.py PACKAGE MODEL TEXT...    prints one line of JSON: {constants: {name: [hash of the values as float32, dtype]},
                                       outputs: [largest difference of each text's vectors from transformers' of MODEL, largest value],
                                       operations: {type: how many}, specification: the version}

TEXTs are lists of ids as JSON. The program is read by coremltools' own reader, which checks every operation's types; its inputs are
then constants, so that its value inference computes what a device would.
"""

import hashlib
import json
import sys
from collections import Counter

import coremltools as ct
import numpy as np
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.frontend.milproto.load import load as load_program
from coremltools.converters.mil.mil import Function, Program, types

package, model, *texts = sys.argv[1:]
spec = ct.models.utils.load_spec(package)
program = load_program(spec, spec.specificationVersion, f"{package}/Data/com.apple.CoreML/weights")
main = program.functions["main"]
target = main.opset_version

constants = {}
for op in main.operations:
    if op.op_type in ("constexpr_blockwise_shift_scale",):
        value = op.materialized_val_inference()
        unsigned = value.astype(np.float32) + 0  # a negative scale times nothing is -0, which the sum of two terms never is
        constants[op.outputs[0].name] = [hashlib.sha256(unsigned.tobytes()).hexdigest(), str(value.dtype)]


def run(given):
    """Every operation again, by name, of values that are known."""
    known = dict(given)
    with Function({}, opset_version=target):
        for op in main.operations:
            of = lambda var: known[var.name] if var.name in known else var.val
            if op.op_type == "const":
                known[op.outputs[0].name] = op.outputs[0].val
                continue
            if op.op_type.startswith("constexpr_"):
                known[op.outputs[0].name] = op.materialized_val_inference()
                continue
            inputs = {name: of(var) for name, var in op.inputs.items() if var is not None}
            made = compute(op.op_type, inputs)
            assert made.shape == tuple(op.outputs[0].shape), (op.name, made.shape, op.outputs[0].shape)
            known[op.outputs[0].name] = made
    return known


def compute(kind, i):
    """What MIL's documentation says of an operation, where coremltools has no value inference that takes large values."""
    x = i["x"]
    if kind == "linear":
        return x @ i["weight"].T + i["bias"]
    if kind == "matmul":
        y = np.swapaxes(i["y"], -1, -2) if i["transpose_y"] else i["y"]
        return x @ y
    if kind == "layer_norm":
        mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        return (x - mean) / np.sqrt(var + i["epsilon"]) * i["gamma"] + i["beta"]
    if kind == "gather":
        return np.take(x, i["indices"], axis=int(i["axis"]))
    if kind == "softmax":
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)
    if kind == "gelu":
        from scipy.special import erf
        return x * 0.5 * (1 + erf(x / np.sqrt(2)))
    simple = {
        "add": lambda: x + i["y"], "sub": lambda: x - i["y"], "mul": lambda: x * i["y"], "real_div": lambda: x / i["y"],
        "reshape": lambda: x.reshape([int(n) for n in i["shape"]]), "transpose": lambda: x.transpose([int(n) for n in i["perm"]]),
        "cast": lambda: x.astype({"fp16": np.float16, "fp32": np.float32}[str(i["dtype"])]), "identity": lambda: x,
        "reduce_sum": lambda: x.sum(axis=tuple(int(a) for a in i["axes"]), keepdims=bool(i["keep_dims"])),
        "rsqrt": lambda: 1 / np.sqrt(x + i["epsilon"]),
    }  # fmt: skip
    return simple[kind]()


def reference(ids):
    import torch
    import transformers as t

    t.logging.set_verbosity_error()
    loaded = t.AutoModel.from_pretrained(model, dtype=torch.float32).eval()
    with torch.no_grad():
        return loaded(torch.tensor([ids])).last_hidden_state[0].numpy()


outputs = []
tokens = main.inputs["input_ids"].shape[1]
for text in texts:
    ids = json.loads(text)
    filled = np.zeros((1, tokens), np.int32)
    mask = filled.copy()
    filled[0, : len(ids)], mask[0, : len(ids)] = ids, 1
    known = run({"input_ids": filled, "attention_mask": mask})
    vectors, expected = known["last_hidden_state"][0, : len(ids)].astype(np.float64), reference(ids).astype(np.float64)
    mean = expected.mean(0) / np.linalg.norm(expected.mean(0))
    embedding = np.abs(known["embedding"][0] - mean).max() if "embedding" in known else 0
    outputs.append([float(np.abs(vectors - expected).max()), float(np.abs(expected).max()), float(embedding)])
counts = Counter(op.op_type for op in main.operations if op.op_type != "const")
print(json.dumps({"constants": constants, "outputs": outputs, "operations": counts, "specification": spec.specificationVersion}))
