"""Picture classification: pictures in, one of the named classes out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attar.errors import DataError, nearest
from attar.tasks.classes import Classification
from attar.tasks.sampling import Batches
from attar.tasks.splitting import split
from attar.tasks.vision import networks, reading
from attar.tasks.vision.augmenting import CHANGES, MIXTURES, View, mixed, partners, viewed
from attar.tasks.vision.decoding import look_through
from attar.types import Batch, Count

ACROSS = 7
"""Patches along the longer side of a picture that is explained by hiding them."""


class classification(Classification):  # noqa: N801  (a recipe names it)
    """Picture classification from a folder per class, npz, parquet, arrow, or `datasets`.

    dataset: folder with a folder per class, or with such a folder or a file for each split (train,
        validation, test, unlabelled); a file; or a hub name
    test: the file or folder to test on; without one a fifth of the data is held out
    columns: {image: NAME, label: NAME} where they can't be found by their usual names
    size: the side in pixels that pictures are brought to; their own where all are alike
    augment: how pictures change from epoch to epoch in training: flip, shift, crop, cutout; and
        mixup and cutmix, which put some of another picture into each: the task's own loss counts
        both labels by their shares, losses that ask for a class take the larger share's
    views: so many changed views of each picture in turn, the same for every seed, so that a teacher
        need be asked only once for each; otherwise every epoch and seed has its own
    labelled_per_class: keep so many labels a class; the rest becomes an unlabelled pool
    validation: share of the training data held out for every choice; none of it is trained on
    skip_bad: leave out pictures that can't be used, and list them, instead of refusing the first
    """

    kind = "vision.classification"
    tag = "image-classification"
    noun = "pictures"
    beside = "preprocessing"

    def __init__(
        self,
        seed: int = 0,
        *,
        dataset: str,
        test: str | None = None,
        columns: dict[str, str] | None = None,
        size: Count | None = None,
        augment: Sequence[View] = (),
        views: Count | None = None,
        labelled_per_class: int | None = None,
        validation: float = 0.1,
        skip_bad: bool = False,
    ) -> None:
        if views is not None and not augment:
            raise DataError(
                "There are no views of pictures without `augment`; say how they change."
            )
        if unknown := set(augment) - {*CHANGES, *MIXTURES}:
            word = min(unknown)
            raise DataError(f"augment has no {word!r}; {nearest(word, [*CHANGES, *MIXTURES])}")
        albums = reading.read(dataset, columns)
        if test is not None:
            albums |= reading.read(test, columns, only="test")
        self._pictures, tables, bad = look_through(albums, size, skip_bad)
        found = split(tables, seed, labelled_per_class, validation, self.noun)
        if not found.rows["train"]:
            raise DataError("There is no training picture left; lower `validation`.")
        self.classes = found.classes
        self.rows = found.rows
        self.notes = (*bad, *found.notes)
        self.augment, self.views = tuple(augment), views
        self._seed = seed
        self._labels = torch.tensor(found.labels)
        self._shown = torch.tensor(found.shown)
        self._keys = found.texts
        self._drawn = json.dumps([self.augment, views]) if augment else ""

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the pictures."""
        return self._pictures.shape

    @property
    def labelled(self) -> tuple[Tensor, tuple[int, ...]]:
        """The pictures (rows, 3, height, width) whose labels may be learned from, and those."""
        rows = self.rows["labelled"]
        return self._pictures.at(rows), tuple(int(self._labels[row]) for row in rows)

    def load(
        self,
        name: str | nn.Module,
        *,
        new_head: bool = False,
        partly: bool = False,
        threads: int = 1,
    ) -> nn.Module:
        """A picture classifier for this task's classes, its numbers at `.normalization`.

        name: a `transformers` folder or hub name, `timm:NAME`, `torchvision:NAME`, an .onnx file,
            or the user's own module called as `model(pixel_values=...)`
        new_head: replace a head that was trained for other classes
        partly: take a model of `transformers` that knows only some of the classes too; its logits
            of all others are -inf
        threads: of ONNX Runtime, where it is a file
        Raises ModelError where the model can't be had or does not fit.
        """
        if isinstance(name, str):
            return networks.load(
                name, self.classes, new_head=new_head, partly=partly, threads=threads
            )
        return networks.adopt(name, len(self.classes), new_head)

    def batches(
        self, part: str = "train", *, batch_size: int = 32, seed: int | None = None
    ) -> Batches:
        """An endless, seeded, resumable stream over `train` or `labelled`, in changing views."""
        drawn = self._seed if seed is None else seed
        return Batches(
            self._batch,
            self._part(part),
            [1] * len(self._keys),
            batch_size=batch_size,
            seed=drawn,
            seen=lambda batch, epoch: self._view(batch, part, drawn, epoch),
        )

    def foreseen(self) -> Iterator[Batch]:
        """All that training will show and that can be said beforehand: each view of each picture.

        Nothing where every epoch has views of its own: those are asked for as they come.
        """
        for view in range(self.views or not self.augment):
            for batch in self.sweep("train"):
                yield self._view(batch, "train", self._seed, view)

    def example(self, model: nn.Module) -> Mapping[str, Tensor]:
        """The model's inputs for one training picture."""
        return self.encode(model, self._pictures.at(self.rows["train"][:1]))

    def encode(self, model: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
        """Pixels (rows, 3, height, width) float, normalized as the model is used to, where it is.

        inputs: (rows, 3, height, width) uint8
        """
        return {"pixel_values": networks.normalized(model, inputs)}

    def preprocessing(self, model: nn.Module) -> dict[str, Any]:
        """What decides, beside the weights, what a model makes of a picture."""
        return {
            "normalization": dict(networks.normalization_of(model)),
            "shape": list(self.shape),
            "classes": list(self.classes),
        }

    @property
    def facts(self) -> dict[str, Any]:
        """The classes, and the pictures' height and width."""
        return {"shape": list(self.shape), "classes": list(self.classes)}

    @property
    def limit(self) -> str:
        height, width = self.shape
        return f"It was made for pictures of {width} x {height} pixels."

    def told(self, part: str, row: int) -> dict[str, Any]:
        """Where the picture comes from, and its key."""
        number = self._part(part)[row]
        return {"input": self._pictures.places[number], "key": self._keys[number]}

    def pieces(self, inputs: Tensor) -> int:
        """The square patches of the picture, about seven along its longer side."""
        rows, columns = _grid(inputs)
        return rows * columns

    def seen(self, inputs: Tensor, kept: Tensor) -> Tensor:
        """The picture with some of its patches alone, the others in its mean colour."""
        height, width = inputs.shape[2:]
        mask = kept.reshape(-1, 1, *_grid(inputs)).float()
        side = _patch(inputs)
        whole = mask.repeat_interleave(side, 2).repeat_interleave(side, 3)[..., :height, :width]
        grey = inputs.float().mean((2, 3), keepdim=True).round().to(inputs.dtype)
        return torch.where(whole > 0, inputs, grey)

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write beside a model how its pictures are normalized."""
        networks.save_beside(model, folder)

    def _view(self, batch: Batch, part: str, seed: int, epoch: int) -> Batch:
        if not self.augment:
            return batch
        name = f"epoch {epoch} of {seed}" if self.views is None else f"view {epoch % self.views}"
        seen = viewed(batch, self.augment, name)
        if not set(MIXTURES) & set(self.augment):
            return seen
        other = self._batch(partners(seen, self._part(part)))
        return mixed(seen, viewed(other, self.augment, name), self.augment)

    def _batch(self, rows: Sequence[int]) -> Batch:
        keys = tuple(self._keys[row] for row in rows)
        return Batch(self._pictures.at(rows), self._shown[list(rows)], keys)


def _patch(pictures: Tensor) -> int:
    """The side of a patch in pixels."""
    return -(-max(pictures.shape[2:]) // ACROSS)


def _grid(pictures: Tensor) -> tuple[int, int]:
    """How many patches stand above and beside one another; the last may be cut off."""
    height, width = (-(-length // _patch(pictures)) for length in pictures.shape[2:])
    return height, width
