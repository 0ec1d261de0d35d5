"""Writes names.json: the public names of the bitsandbytes that is installed, which docs/bitsandbytes.md must cover.

A name is public where it has no leading underscore and its class or function is bitsandbytes' own. Besides them: the
operations that torch knows, the fields of transformers' BitsAndBytesConfig, and the environment variables that are read.
"""

import importlib
import inspect
import json
import pathlib
import re

import bitsandbytes
import torch
import transformers

folder = pathlib.Path(bitsandbytes.__file__).parent
modules = ["", "functional", "autograd._functions", "nn", "nn.parametrize", "optim", "optim.optimizer", "utils"]


def own(thing):
    return (inspect.isclass(thing) or inspect.isfunction(thing)) and thing.__module__.startswith("bitsandbytes")


def public(name):
    module = importlib.import_module(f"bitsandbytes.{name}".rstrip("."))
    return sorted(key for key, thing in vars(module).items() if not key.startswith("_") and own(thing))


schemas = [schema.name for schema in torch._C._jit_get_all_schemas()]
config = inspect.signature(transformers.BitsAndBytesConfig.__init__).parameters
sources = "\n".join(path.read_text() for path in folder.rglob("*.py"))
names = {f"bitsandbytes.{name}".rstrip("."): public(name) for name in modules}
names["torch.ops.bitsandbytes"] = sorted({name.split("::")[1] for name in schemas if name.startswith("bitsandbytes::")})
names["transformers.BitsAndBytesConfig"] = sorted(set(config) - {"self", "kwargs"})
names["environment"] = sorted(set(re.findall(r"environ(?:\.get)?[(\[][\"'](\w+)", sources)))

output = {"bitsandbytes": bitsandbytes.__version__, "transformers": transformers.__version__, "names": names}
pathlib.Path(__file__).with_name("names.json").write_text(json.dumps(output, indent=2) + "\n")
