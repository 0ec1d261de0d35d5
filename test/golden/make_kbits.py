"""Writes kbits.json beside itself: bitsandbytes 0.50.2's maps of fewer than 8 bits, as fp32 bits, less the zeros that fill
them up to 256 values.

Needs `pip install bitsandbytes==0.50.2 torch`.
"""

import json
from pathlib import Path

import numpy as np
from bitsandbytes.functional import create_dynamic_map, create_linear_map

golden = {}
for bits in [2, 3, 5, 6, 7]:
    for signed, sign in [(True, "signed"), (False, "unsigned")]:
        golden[f"linear {sign} {bits}"] = create_linear_map(signed, bits)
        # upstream has no other unsigned maps: its own assertion fails
        for exponent in sorted({1, max(1, bits - 2), bits - 1} if signed else {bits - 1}):
            golden[f"dynamic {sign} {bits} {exponent}"] = create_dynamic_map(signed, exponent, bits)

hex = {
    name: ["%08x" % value for value in table.numpy().view(np.uint32) if value & 0x7FFFFFFF] for name, table in golden.items()
}
rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(values)}" for name, values in hex.items())
(Path(__file__).parent / "kbits.json").write_text("{\n" + rows + "\n}\n")
