"""EXPORT: model -> a file that another runtime loads."""

from attar.export.executorch_file import executorch
from attar.export.folder import safetensors, transformers
from attar.export.gguf_file import gguf
from attar.export.onnx_file import onnx
from attar.export.openvino_file import openvino

__all__ = ["executorch", "gguf", "onnx", "openvino", "safetensors", "transformers"]
