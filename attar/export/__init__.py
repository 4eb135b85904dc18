"""EXPORT: model -> a file that another runtime loads."""

from attar.export.folder import safetensors, transformers
from attar.export.onnx_file import onnx
from attar.export.openvino_file import openvino

__all__ = ["onnx", "openvino", "safetensors", "transformers"]
