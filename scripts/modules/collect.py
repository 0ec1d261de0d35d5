"""What transformers would replace by bitsandbytes' layers, for every model class that it has.

    collect.py OUTPUT [CLASS …]

Builds each class on the meta device with its type's default config, applies transformers' own rule, and writes one line of
JSON a class: its type, its sub-models' types, the patterns that stay float32, and, under the names that the model has in memory and
those that it is saved with, every tensor's shape and the verdict on every matrix called `….weight`.
"""

import contextlib
import copy
import importlib
import inspect
import json
import os
import pkgutil
import re
import sys
import warnings

import torch
import transformers
from torch import nn
from transformers import models
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    PrefixChange,
    WeightConverter,
    WeightRenaming,
    rename_source_key,
    revert_weight_conversion,
)
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import MODULES_TO_PATCH_FOR_QUANTIZATION, get_keys_to_not_convert
from transformers.quantizers.quantizers_utils import should_convert_module

warnings.filterwarnings("ignore")
transformers.logging.set_verbosity(50)


def classes():
    """Every class of a model, by name; those of a model's folder, not what it imports."""
    found = {}
    for info in pkgutil.iter_modules(models.__path__):
        folder = f"{models.__path__[0]}/{info.name}"
        if not info.ispkg:
            continue
        for file in sorted(os.listdir(folder)):
            if not (file.startswith("modeling_") and file.endswith(".py")):
                continue
            try:
                module = importlib.import_module(f"transformers.models.{info.name}.{file[:-3]}")
            except ModuleNotFoundError as error:
                print(f"{file} is passed over: {error}", file=sys.stderr)
                continue
            for name, value in vars(module).items():
                if (
                    inspect.isclass(value)
                    and issubclass(value, transformers.PreTrainedModel)
                    and value.__module__ == module.__name__
                    and not name.endswith("PreTrainedModel")
                    and value.config_class is not None
                ):
                    found[name] = value
    return dict(sorted(found.items()))


def default_config(cls):
    """The config that the class is built with; of models that are made of two others, of two usual ones."""
    encoders = {"vision-encoder-decoder": transformers.ViTConfig, "speech-encoder-decoder": transformers.Wav2Vec2Config}
    kind = cls.config_class.model_type
    if kind in encoders or kind == "encoder-decoder":
        encoder = encoders.get(kind, transformers.BertConfig)()
        return cls.config_class.from_encoder_decoder_configs(encoder, transformers.GPT2Config())
    if kind == "vision-text-dual-encoder":
        return cls.config_class.from_vision_text_configs(transformers.ViTConfig(), transformers.BertConfig())
    if kind == "rag":
        return cls.config_class.from_question_encoder_generator_configs(
            transformers.DPRConfig(), transformers.BartConfig()
        )
    return cls.config_class()


def patched(model):
    """As `_convert_model_for_quantization` does for a model that is quantised already."""
    for name, module in list(model.named_modules()):
        patch = MODULES_TO_PATCH_FOR_QUANTIZATION.get(type(module).__name__)
        if patch:
            model.set_submodule(name, patch["module_name"](model.config.get_text_config()))
    return model


def filled(config):
    """The config with what some types leave open, and what no checkpoint of theirs does: for the shape of a model only."""
    heads = getattr(config, "num_attention_heads", None) or 8
    width = getattr(config, "hidden_size", None) or 512
    layers = getattr(config, "num_hidden_layers", None) or 2
    values = {
        "vocab_size": 128,
        "prediction_length": 24,
        "head_dim": width // heads if isinstance(width, int) else 64,
        "num_key_value_heads": heads,
        "n_routed_experts": 4,
        "n_shared_experts": 2,
        "context_length": 24,
        "num_experts": 4,
        "intermediate_size": 2 * width if isinstance(width, int) else 1024,
        "moe_intermediate_size": 64,
        "rope_theta": 10000.0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "vocabulary_map": {"<image>": 5, "IMGIMGA": 6},
        "layer_types": ["full_attention"] * layers if isinstance(layers, int) else None,
        "mlp_layer_types": ["sparse"] * layers if isinstance(layers, int) else None,
        "image_size": 224,
        "embed_dim": width,
        "contrastive_hidden_size": width,
    }
    for name, value in values.items():
        try:
            if getattr(config, name, None) is None:
                setattr(config, name, value)
        except Exception:  # a type that checks its fields: what it does not take stays open
            pass
    for name in ("text_config", "vision_config", "attn_config", "decoder_config", "audio_config", "vision_model_config"):
        inner = getattr(config, name, None)
        if inner is not None and not isinstance(inner, dict):
            filled(inner)
    return config


def verdicts(model):
    """The verdict on each matrix, by its name in memory: replaced, or why it is not."""
    own_keys = set(get_keys_to_not_convert(model))
    fp32 = set(model._keep_in_fp32_modules or ())
    output = model.get_output_embeddings()
    last = list(model.named_parameters())[-1][0]
    modules = dict(model.named_modules(remove_duplicate=False))
    found = {}
    for name, tensor in model.state_dict().items():
        if not is_matrix(name, tensor):
            continue
        module_name = name.removesuffix(".weight")
        module = modules[module_name]
        if type(module) is nn.Linear or isinstance(module, Conv1D):
            if should_convert_module(module_name, list(own_keys | fp32)):
                found[name] = "Conv1D" if isinstance(module, Conv1D) else "Linear"
            elif not should_convert_module(module_name, list(fp32)):
                found[name] = "kept in float32"
            elif module is output:
                found[name] = "output head"
            elif last.removesuffix(".weight") == module_name:
                found[name] = "last module"
            else:
                found[name] = "named as a kept module"
            if isinstance(module, Conv1D) and found[name] != "Conv1D":
                found[name] += ", Conv1D"
        else:
            found[name] = type(module).__name__
    return found


def saved(model, found):
    """The tensors that the model is saved as, and the same verdicts on them; what is fused in memory stays."""
    state = dict(model.state_dict())
    files = revert_weight_conversion(model, state)
    conversions = [c for c in get_model_conversion_mapping(model) if not isinstance(c, PrefixChange)]
    renamings = [entry for entry in conversions if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in conversions if isinstance(entry, WeightConverter)]
    result = {}
    for name, tensor in files.items():
        if not is_matrix(name, tensor):
            continue
        target, source = rename_source_key(name, renamings, converters, model.base_model_prefix, state)
        if target not in state and name in state:
            target, source = name, None
        result[name] = "fused in memory" if source is not None else found.get(target, "of another shape in memory")
    return shapes(files), result


def skips(model):
    """The keys that keep a module which would be replaced otherwise: what `llm_int8_skip_modules` has to repeat."""
    names = [name for name, module in model.named_modules() if type(module) is nn.Linear or isinstance(module, Conv1D)]
    return {key for key in get_keys_to_not_convert(model) if not all(should_convert_module(name, [key]) for name in names)}


def shapes(tensors):
    return {name: list(tensor.shape) for name, tensor in tensors.items()}


def few_experts(names):
    """Without the experts after the second, which are as the others."""
    return {name: value for name, value in names.items() if not re.search(r"experts\.(?!0\.|1\.)\d+\.", name)}


def is_matrix(name, tensor):
    return name.endswith(".weight") and tensor.dim() == 2


@contextlib.contextmanager
def in_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def build(cls, config):
    with torch.device("meta"), in_dtype(torch.bfloat16):
        return patched(cls(copy.deepcopy(config)))


def describe(cls):
    config = default_config(cls)
    try:
        model = build(cls, config)
    except ImportError:
        raise
    except Exception:  # its type's defaults are those of no model
        model = build(cls, filled(config))
    found = verdicts(model)
    parts = {
        type(module).config_class.model_type: name
        for name, module in model.named_modules()
        if isinstance(module, transformers.PreTrainedModel) and name
    }
    spaces, problem = {"memory": (shapes(model.state_dict()), found)}, None
    try:
        files = saved(model, found)
        if files != spaces["memory"]:
            spaces["saved"] = files
    except Exception as error:  # a conversion that needs values
        problem = f"{type(error).__name__}: {error}"[:200]
    return {
        "class": cls.__name__,
        "type": config.model_type,
        "base": cls.base_model_prefix,
        "parts": sorted(set(parts) - {config.model_type}),
        "fp32": sorted(model._keep_in_fp32_modules or ()),
        "fp32_strict": sorted(model._keep_in_fp32_modules_strict or ()),
        "float32": sorted(
            name
            for name, tensor in model.state_dict().items()
            if tensor.is_floating_point() and tensor.dtype != torch.bfloat16
        ),
        "skips": sorted(skips(model)),
        "spaces": {
            name: {"shapes": few_experts(sizes), "verdicts": few_experts(verdict)}
            for name, (sizes, verdict) in spaces.items()
        },
        "conversion_problem": problem,
    }


def main():
    output, *wanted = sys.argv[1:]
    every = classes()
    with open(output, "w") as file:
        print(json.dumps({"transformers": transformers.__version__, "classes": len(every)}), file=file)
        for name, cls in every.items():
            if wanted and name not in wanted:
                continue
            try:
                line = describe(cls)
            except Exception as error:
                line = {"class": name, "failed": f"{type(error).__name__}: {error}"[:300]}
            print(json.dumps(line), file=file, flush=True)


main()
