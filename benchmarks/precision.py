"""Rounding after training against training for it, at 8 and 4 bits, on one convolutional network.

    python benchmarks/precision.py [--before 600] [--steps 300] [--seeds 0 1 2]
    python benchmarks/precision.py --cifar ../shared/data [--test 2000]

`before` are the steps of the float model, `steps` those after it was rounded.

Without a folder: a residual network of width 4 on scikit-learn's digits, trained here. With one:
ResNet-20 on CIFAR-10 as JPEG, from the weights in `cifar10-resnet`, first tuned to these pictures.
The same float model is rounded as it is (PTQ), and trained on while it is rounded, itself in float
being the teacher (QAT); a float model that is trained on as long tells what the steps alone are
worth. Mixed is PTQ too, with 8 or 4 bits for each layer, chosen by a fifth of the training pictures
that nothing is trained on: as few bytes as lose at most a point there, or as harm least within the
bytes half way between 8 bits and 4. Printed are accuracy in per cent, mean and standard deviation
over the seeds, bytes of the weights, and how much of what PTQ lost is won back.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from residual import Residual
from torch import Tensor, nn

from attar import distill, measure, teach
from attar.compress import quantize
from attar.losses import response
from attar.types import Batch, Knowledge

ROWS = 64
"""Pictures of one step."""

NOISE = 0.5
"""Points of accuracy that are hardly lost: three of the 600 digits to test with."""

HELD = 0.2
"""The share of the training pictures that precisions are chosen by."""


@dataclass
class Pictures:
    """Pictures to train and to test with, as numbers, and whether they may be mirrored."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    mirrored: bool

    def batches(self, steps: int, seed: int, size: int = ROWS) -> Iterator[Batch]:
        """Batches drawn at random; each picture is shifted by up to an eighth of its side."""
        chance = torch.Generator().manual_seed(seed)
        pictures, labels = self.train
        side = pictures.shape[-1]
        reach = side // 8
        for _ in range(steps):
            rows = torch.randint(len(labels), (size,), generator=chance)
            mirror = self.mirrored & (torch.rand(size, 1, 1, 1, generator=chance) < 0.5)
            seen = torch.where(mirror, pictures[rows].flip(3), pictures[rows])
            padded = F.pad(seen, [reach] * 4, mode="replicate")
            starts = torch.randint(2 * reach + 1, (size, 2), generator=chance).tolist()
            shifted = [
                each[:, down : down + side, right : right + side]
                for each, (down, right) in zip(padded, starts, strict=True)
            ]
            yield Batch(torch.stack(shifted), labels[rows], tuple(map(str, rows.tolist())))

    def example(self, _model: nn.Module) -> Mapping[str, Tensor]:
        """One picture."""
        return {"pixel_values": self.train[0][:1]}

    def calibration(self, _model: nn.Module) -> Iterator[Mapping[str, Tensor]]:
        """The training pictures in their order."""
        for rows in self.train[0].split(ROWS):
            yield {"pixel_values": rows}

    def held(self, share: float) -> tuple[Pictures, Pictures]:
        """Without a share of the pictures to train with; and with that share to test with."""
        (seen, labels), count = self.train, int(share * len(self.train[1]))
        rest, apart = ((seen[part], labels[part]) for part in (slice(count, None), slice(count)))
        return Pictures(rest, self.test, self.mirrored), Pictures(rest, apart, self.mirrored)

    def losses(self, model: nn.Module) -> Iterator[Tensor]:
        """What a model loses on the training pictures, batch by batch in their order."""
        for seen, labels in zip(*(each.split(ROWS) for each in self.train), strict=True):
            yield F.cross_entropy(model(seen), labels)

    @torch.no_grad()
    def score(self, model: nn.Module) -> float:
        """The share of right answers to the test pictures, in per cent."""
        model.eval()
        parts = zip(*(each.split(500) for each in self.test), strict=True)
        right = sum(int((model(seen).argmax(1) == labels).sum()) for seen, labels in parts)
        return 100 * right / len(self.test[1])


def main() -> None:
    """Print the table."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--cifar", type=Path)
    options.add_argument("--steps", type=int, default=300)
    options.add_argument("--before", type=int, default=600)
    options.add_argument("--test", type=int, default=10_000)
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = options.parse_args()
    pictures = digits() if given.cifar is None else cifar(given.cifar, 20_000, given.test)
    rows: dict[str, list[float]] = {}
    pictures, held = pictures.held(HELD)
    sizes: dict[str, list[int]] = {}
    for seed in given.seeds:
        torch.manual_seed(seed)
        model = begun(pictures, given.cifar, given.before, seed)
        both = [rounded(model, pictures, given.steps, seed), mixed(model, held)]
        for name, small in chain(*both):
            score, size = pictures.score(small), measure.size(small)
            rows.setdefault(name, []).append(score)
            sizes.setdefault(name, []).append(size)
            print(f"seed {seed}: {name} {score:.2f}, {size} bytes", flush=True)
    report(rows, sizes)


def digits() -> Pictures:
    """The 1,797 digits of scikit-learn, a third of them to test with."""
    from sklearn.datasets import load_digits

    data: Any = load_digits()
    pictures = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 8 - 1
    labels = torch.tensor(data.target, dtype=torch.int64)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    test, train = order.split([600, len(labels) - 600])
    return Pictures((pictures[train], labels[train]), (pictures[test], labels[test]), False)


def cifar(data: Path, train: int, test: int) -> Pictures:
    """CIFAR-10 as JPEG: so many pictures to train and to test with."""
    from PIL import Image

    def read(part: str, count: int) -> tuple[Tensor, Tensor]:
        file = np.load(data / "cifar10" / f"{part}.npz")
        blob, at = file["blob"], file["offsets"]
        pictures = [
            np.asarray(Image.open(io.BytesIO(blob[at[n] : at[n + 1]].tobytes())).convert("RGB"))
            for n in range(count)
        ]
        mean, spread = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
        seen = (np.stack(pictures) / 255 - mean) / spread
        labels = torch.from_numpy(file["labels"][:count].astype(np.int64))
        return torch.from_numpy(seen.astype(np.float32)).permute(0, 3, 1, 2).contiguous(), labels

    return Pictures(read("train", train), read("test", test), True)


def begun(pictures: Pictures, weights: Path | None, steps: int, seed: int) -> nn.Module:
    """The float model: trained from the start on digits, or tuned to CIFAR-10 as JPEG."""
    if weights is None:
        return trained(Residual(1, width=4, channels=1), None, pictures, steps, 5e-3, seed)
    from safetensors.torch import load_file

    model = Residual(3)
    model.load_state_dict(load_file(weights / "cifar10-resnet" / "resnet20.safetensors"))
    return trained(model, None, pictures, steps, 1e-3, seed)


def forward(model: nn.Module, batch: Batch, layers: tuple[str, ...] = ()) -> Knowledge:  # noqa: ARG001
    """What a model makes of pictures."""
    return Knowledge(model(pixel_values=batch.inputs))


def label_loss(knowledge: Knowledge, batch: Batch) -> Tensor:
    """Cross-entropy with the labels."""
    return F.cross_entropy(knowledge.logits, batch.labels)


def trained(
    model: nn.Module,
    teacher: nn.Module | None,
    pictures: Pictures,
    steps: int,
    lr: float,
    seed: int,
) -> nn.Module:
    """A model after some steps of attar's own loop, on labels and on a teacher if there is one."""
    batches = pictures.batches(steps, seed)
    if teacher is None:
        lessons: Any = teach.alone(batches)
        losses = [distill.term(label_loss)]
    else:
        lessons = teach.online(batches, [teacher], forward)
        losses = [distill.term(label_loss, 0.3), distill.term(response.kl, 0.7, temperature=2.0)]
    return distill.train(model, lessons, losses, forward, steps=steps, lr=lr)


def rounded(
    model: nn.Module, pictures: Pictures, steps: int, seed: int
) -> Iterator[tuple[str, nn.Module]]:
    """Each way of rounding all layers alike, and what comes out of it in integers."""
    given = (pictures.example, pictures.calibration)
    train = partial(trained, teacher=model, pictures=pictures, steps=steps, lr=5e-4, seed=seed)
    yield "float", model
    yield "float, trained on", train(deepcopy(model))
    for ranges in ("minmax", "percentile", "entropy"):
        small = quantize.int8_static(model, *given, ranges=ranges, batches=16)
        yield f"8 bits, PTQ, {ranges}", small
    for bits in (8, 4):
        untrained = quantize.qat(model, *given, bits=bits, ranges="moving")
        if bits == 4:
            yield "4 bits, PTQ", quantize.int8_static(untrained, *given)
        for ranges in ("moving", "learned"):
            fresh = quantize.qat(model, *given, bits=bits, ranges=ranges)
            yield f"{bits} bits, QAT, {ranges}", quantize.int8_static(train(fresh), *given)


def mixed(model: nn.Module, held: Pictures) -> Iterator[tuple[str, nn.Module]]:
    """Layers of 8 and of 4 bits, as a bound on the score and as one on the size has it."""
    widths = ("int8_static", "int4_static")
    plan = partial(
        quantize.mixed,
        *(model, held.example, held.calibration),
        score=lambda small: {"score": held.score(small) / 100},
        tell=lambda *_: None,
        batches=16,
    )
    ends = [measure.size(plan(candidates=(each,), drop=1.0)) for each in widths]
    yield "8 and 4 bits, mixed, a point", plan(candidates=widths, drop=0.01)
    yield "8 and 4 bits, mixed, half way", plan(candidates=widths, size=sum(ends) // 2)


def report(rows: Mapping[str, list[float]], sizes: Mapping[str, list[int]]) -> None:
    """One line for each way, and the share of PTQ's loss that QAT wins back."""
    whole, lost = np.array(rows["float"]), {}
    for bits in (8, 4):
        ways = [name for name in rows if name.startswith(f"{bits} bits, PTQ")]
        lost[bits] = whole - np.array(rows[ways[0]])
    print(f"\n{'':30} {'accuracy':>16} {'bytes':>9}  won back of PTQ's loss")
    for name, found in rows.items():
        back = ""
        if "QAT" in name or "and" in name:
            loss = lost[4 if "and" in name else int(name[0])].mean()
            left = (whole - np.array(found)).mean()
            back = f"{100 * (1 - left / loss):.0f} %" if loss > NOISE else "hardly any lost"
        accuracy = f"{np.mean(found):8.2f} ± {np.std(found):5.2f}"
        print(f"{name:30} {accuracy} {np.mean(sizes[name]):9.0f}  {back}")


if __name__ == "__main__":
    main()
