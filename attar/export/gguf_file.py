"""A language model of the Llama family as a GGUF file, which llama.cpp and its kin run."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from attar.errors import ExportError
from attar.export.writing import check_libraries, check_trained, ended, written
from attar.types import Quantized

Form = Literal["f32", "f16", "q8_0"]

CLOSE = {"f32": 0.0, "f16": 2**-10, "q8_0": 2**-7}
"""How far a value read back may be from the weight, as a part of its tensor's largest."""

NORMAL, CONTROL, OWN, UNUSED = 1, 3, 4, 5
"""What GGUF calls a token: of the vocabulary, special, added by a user, or of no text."""

NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""What GGUF calls the weights, and those of a layer."""


def gguf(model: nn.Module, path: str | Path, *, form: Form = "f16") -> Path:
    """Write a Llama with its byte-level BPE and chat template as one .gguf, and read it back.

    Every weight that is read back must be the model's own within what its form rounds; norms stay
    in 32 bits. Rows of the vocabulary that no token has are left out.

    form: f32, f16, or q8_0 (blocks of 32 weights in 8 bits under a scale)
    Raises ExportError for another architecture or tokenizer, and where the file can't be written;
    MissingExtra without the library `gguf`.
    """
    check_libraries("gguf")
    check_trained(model, "gguf")
    _check(model)
    from gguf import GGUFWriter

    target = ended(path, ".gguf")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / target.name
        writer = GGUFWriter(file, "llama")
        try:
            _describe(writer, model, form)
            _words(writer, model)
            for name, values in _tensors(model):
                _add(writer, name, values, form)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()
        _check_values(file, model, form)
        return written(file.read_bytes(), target)


def _check(model: Any) -> None:
    """Raises ExportError for what is no plain Llama."""
    kind = type(model).__name__
    if any(isinstance(module, Quantized) for module in model.modules()):
        raise ExportError("Quantized weights have another form; put export.gguf before that step.")
    config: Any = vars(model).get("config")
    if config is None or config.model_type != "llama":
        raise ExportError(f"{kind} is no Llama; export it by export.transformers or export.onnx.")
    if config.attention_bias or config.mlp_bias or config.hidden_act != "silu":
        raise ExportError(f"This {kind} has biases or another activation, which GGUF has not.")
    if config.rope_parameters["rope_type"] != "default":
        raise ExportError(f"{kind} turns positions by {config.rope_parameters['rope_type']!r}.")


def _describe(writer: Any, model: Any, form: Form) -> None:
    """The sizes of the network."""
    from gguf import LlamaFileType

    config = model.config
    kinds = {
        "f32": LlamaFileType.ALL_F32,
        "f16": LlamaFileType.MOSTLY_F16,
        "q8_0": LlamaFileType.MOSTLY_Q8_0,
    }
    writer.add_file_type(kinds[form])
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(len(model.tokenizer))


def _words(writer: Any, model: Any) -> None:
    """The tokenizer: tokens, merges, what is special, and the template of conversations."""
    tokenizer = model.tokenizer
    said = json.loads(tokenizer.backend_tokenizer.to_str())
    if said["model"]["type"] != "BPE":
        raise ExportError(f"A {said['model']['type']} tokenizer has no form here; it needs a BPE.")
    tokens = [f"[UNUSED{n}]" for n in range(len(tokenizer))]
    types = [UNUSED] * len(tokens)
    for token, n in said["model"]["vocab"].items():
        tokens[n], types[n] = token, NORMAL
    for added in said["added_tokens"]:
        tokens[added["id"]] = added["content"]
        types[added["id"]] = CONTROL if added["special"] else OWN
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_cut(said["pre_tokenizer"]))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(pair) for pair in said["model"]["merges"]])
    for number, add in (
        (tokenizer.bos_token_id, writer.add_bos_token_id),
        (tokenizer.eos_token_id, writer.add_eos_token_id),
        (tokenizer.pad_token_id, writer.add_pad_token_id),
    ):
        if number is not None:
            add(number)
    writer.add_add_bos_token(False)
    if tokenizer.chat_template is not None:
        writer.add_chat_template(tokenizer.chat_template)


def _cut(how: dict[str, Any] | None) -> str:
    """What llama.cpp calls the way in which a text is cut before pieces are merged.

    Raises ExportError for a way that it has no name for here.
    """
    steps = [] if how is None else how.get("pretokenizers", [how])
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"] and steps[0].get("use_regex", True):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and steps[0]["individual_digits"]:
        return "smollm"
    raise ExportError(
        f"The tokenizer cuts texts by {' and '.join(kinds) or 'nothing'}, for which llama.cpp's "
        "name is not known here; export by export.transformers."
    )


def _tensors(model: Any) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """Every weight by its name in the file; a head that is the embeddings is not written twice."""
    config = model.config
    for name, weight in model.state_dict().items():
        values = weight.detach().cpu().to(torch.float32).numpy()
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if name in NAMES:
            padded = values.ndim > 1  # embeddings and head have a row for each token
            yield NAMES[name], values[: len(model.tokenizer)] if padded else values
            continue
        layer, part = name.removeprefix("model.layers.").removesuffix(".weight").split(".", 1)
        if part == "self_attn.q_proj":
            values = _turned(values, config.num_attention_heads)
        if part == "self_attn.k_proj":
            values = _turned(values, config.num_key_value_heads)
        yield f"blk.{layer}.{NAMES[part]}.weight", values


def _turned(values: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Rows of queries or keys as llama.cpp turns them: pairs side by side, not halves apart."""
    rows, width = values.shape
    halves = values.reshape(heads, 2, rows // heads // 2, width)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows, width))


def _add(writer: Any, name: str, values: np.ndarray[Any, Any], form: Form) -> None:
    from gguf import GGMLQuantizationType, quants

    if values.ndim < 2 or form == "f32":
        writer.add_tensor(name, values)
    elif form == "f16" or values.shape[-1] % 32:
        writer.add_tensor(name, values.astype(np.float16))
    else:
        packed = quants.quantize(values, GGMLQuantizationType.Q8_0)
        writer.add_tensor(name, packed, raw_dtype=GGMLQuantizationType.Q8_0)


def _check_values(file: Path, model: Any, form: Form) -> None:
    """Raises ExportError where what is read back is not what was to be written."""
    from gguf import GGUFReader, quants

    read = {each.name: each for each in GGUFReader(file).tensors}
    for name, values in _tensors(model):
        found = quants.dequantize(read[name].data, read[name].tensor_type).reshape(values.shape)
        apart = float(np.abs(found - values).max())
        if apart > CLOSE[form] * max(1e-12, float(np.abs(values).max())):
            raise ExportError(f"{name} was {apart:.2g} off when the file was read back.")
