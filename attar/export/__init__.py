"""EXPORT: model -> a file that another runtime loads."""

from attar.export.folder import safetensors, transformers
from attar.export.onnx_file import onnx

__all__ = ["onnx", "safetensors", "transformers"]
