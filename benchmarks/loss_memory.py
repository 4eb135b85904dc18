"""What a divergence of two language models costs in memory and time, whole and in chunks.

    python benchmarks/loss_memory.py [--tokens 2048] [--classes 49152] [--width 576] [--rounds 3]

Forward and backward pass of one loss, from the last hidden states to the gradients of states and
output head, float32. `whole` is plain PyTorch: both models' logits, then the loss of
`attar.losses.response` as it is. `chunks` is `attar.heads.in_chunks`, with the teacher given by its
states and head, or by few classes as a store keeps them. Each case runs in a process of its own,
in turns (A B A B ...); printed are the medians. Memory is the largest resident size during the two
passes less that before them (on a GPU what PyTorch allocated), so that weights and states, which
every way needs, do not count; the head's gradient does. TRL's and Liger's losses have rows where
they are installed (Liger's needs a GPU).

Measured in float32 on one processor core that was shared (so its own time, not the clock's, is
compared), 2,048 x 49,152, medians of 3 rounds, of jsd 2, of TRL 1:

    kl   whole 2824 MB 10.85 s | chunks 406 MB 10.54 s | stored 208 MB 6.75 s
    jsd  whole 4434 MB 20.30 s | chunks 546 MB 11.93 s | TRL 1.16 6849 MB 33.94 s

Not measured: a GPU, Liger (needs one), and 8,192 x 128,256, which does not fit whole in 23 GB.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))

from attar.heads import Headed, Sparse, in_chunks
from attar.losses import response

TOP, DRAWN = 16, 16
LOSSES: dict[str, Callable[..., Tensor]] = {
    "kl": response.kl,
    "jsd": response.jsd,
    "reverse_kl": partial(response.reverse_kl, temperature=2.0),
    "adaptive_kl": response.adaptive_kl,
}


def whole(loss: str, student: Headed, teacher: Headed) -> Tensor:
    """Plain PyTorch: all logits of both."""
    return LOSSES[loss](student.dense(), teacher.dense())


def chunks(loss: str, student: Headed, teacher: Headed) -> Tensor:
    """Both models' logits in chunks."""
    return in_chunks(LOSSES[loss], {"student": student, "teacher": teacher})


def stored(loss: str, student: Headed, _: Headed) -> Tensor:
    """The student's logits in chunks, and of the teacher's a few as a store keeps them."""
    generator = torch.Generator(student.device).manual_seed(0)
    shape, device = (len(student), TOP + DRAWN), student.device
    ids = torch.randint(student.shape[-1], shape, generator=generator, device=device)
    weights = torch.full(shape, 1 / (TOP + DRAWN), device=device)
    rest = weights[:, TOP:].sum(1)
    few = Sparse(ids, weights, rest, TOP, student.shape[-1])
    return in_chunks(LOSSES[loss], {"student": student, "teacher": few})


def trl(loss: str, student: Headed, teacher: Headed) -> Tensor:
    """TRL's generalized JSD, which is given logits."""
    assert loss == "jsd"
    from trl.experimental.gkd import GKDTrainer

    logits = student.dense()[None], teacher.dense()[None]
    value: Tensor = GKDTrainer.generalized_jsd_loss(*logits, beta=0.5, reduction="batchmean")
    return value


def liger(loss: str, student: Headed, teacher: Headed) -> Tensor:
    """Liger's fused linear JSD."""
    assert loss == "jsd"
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    fused = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, compiled=False)
    labels = torch.zeros(len(student), dtype=torch.long, device=student.device)
    sides = (student.states, student.weight, teacher.states, teacher.weight)
    value: Tensor = fused(*sides, labels)
    return value


WAYS = {"whole": whole, "chunks": chunks, "stored": stored, "trl": trl, "liger": liger}


def main() -> None:
    """Measure one case where one is named, else all cases in turns, and print them."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--tokens", type=int, default=2048)
    options.add_argument("--classes", type=int, default=49152)
    options.add_argument("--width", type=int, default=576)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--losses", nargs="+", default=list(LOSSES), choices=list(LOSSES))
    options.add_argument("--only", nargs="+", choices=list(WAYS), help="leave the other ways out")
    options.add_argument("--case", nargs=2, metavar=("WAY", "LOSS"), help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.case:
        print(json.dumps(measured(WAYS[given.case[0]], given.case[1], given)))
        return
    ways = [way for way in given.only or WAYS if way not in ("trl", "liger") or _there(way)]
    for loss in given.losses:
        cases = [way for way in ways if way not in ("trl", "liger") or loss == "jsd"]
        runs: dict[str, list[dict[str, float]]] = {way: [] for way in cases}
        for _ in range(given.rounds):
            for way in cases:
                runs[way].append(_apart(way, loss))
        show(loss, runs)


def measured(way: Callable[..., Tensor], loss: str, given: Any) -> dict[str, float]:
    """Bytes and seconds of a forward and a backward pass."""
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    student, teacher = (
        Headed(
            torch.randn(given.tokens, given.width, device=device),
            torch.randn(given.classes, given.width, device=device) / given.width**0.5,
        )
        for _ in range(2)
    )
    leaves = [student.states.requires_grad_(), student.weight.requires_grad_()]
    tiny = [Headed(side.states[:2], side.weight[:64]) for side in (student, teacher)]
    torch.autograd.grad(way(loss, *tiny), leaves)  # what is loaded once is no part of it
    memory = Memory(device)
    start, worked = time.perf_counter(), time.process_time()
    value = way(loss, student, teacher)
    slopes = torch.autograd.grad(value, leaves)
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds, worked = time.perf_counter() - start, time.process_time() - worked
    norm = float(slopes[1].norm())
    facts = {"bytes": memory.most(), "seconds": seconds, "worked": worked}
    return {**facts, "value": value.item(), "norm": norm}


class Memory:
    """The most that is held from now on, beyond what is held now."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
            return
        # The kernel's own high-water mark counts what came before too: it is set back.
        Path("/proc/self/clear_refs").write_text("5")
        self._before = _status("VmRSS")

    def most(self) -> int:
        """Bytes."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated() - self._before
        return _status("VmHWM") - self._before


def show(loss: str, runs: dict[str, list[dict[str, float]]]) -> None:
    """One row a way: medians, and how many times less than whole."""
    names = ("bytes", "seconds", "worked")
    middle = {
        way: {name: statistics.median(run[name] for run in own) for name in names}
        for way, own in runs.items()
    }
    for way, own in middle.items():
        line = f"{loss:12} {way:7} {own['bytes'] / 1e6:9.0f} MB {own['seconds']:8.2f} s"
        line += f" ({own['worked']:.2f} s of the processor)"
        if "whole" in middle:
            first = middle["whole"]
            line += f"   memory / {first['bytes'] / own['bytes']:5.1f}"
            line += f"   time / {first['seconds'] / own['seconds']:5.2f}"
            line += f"   processor / {first['worked'] / own['worked']:5.2f}"
        print(f"{line}   value {runs[way][0]['value']:.6f}", flush=True)


def _apart(way: str, loss: str) -> dict[str, float]:
    """One case, measured in a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--case", way, loss]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        lines = ran.stderr.strip().splitlines() or ["it was killed: not enough memory"]
        raise SystemExit(f"{way} {loss}: {lines[-1]}")
    told: dict[str, float] = json.loads(ran.stdout.splitlines()[-1])
    return told


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def _there(way: str) -> bool:
    library = {"trl": "trl", "liger": "liger_kernel"}[way]
    if find_spec(library) is None or (way == "liger" and not torch.cuda.is_available()):
        print(f"{way}: left out, it is not installed here or finds no GPU")
        return False
    return True


if __name__ == "__main__":
    main()
