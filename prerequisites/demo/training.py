"""What the trainings of all families share: pictures, schedule, saved states, log and scoring."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from captions import named_things
from scenes import coverage, draw, sample_scene

IGNORE = -100
WARMUP = 100
LOG_EVERY, SAVE_EVERY, SCORE_EVERY = 50, 100, 500


def draw_pool(work: Path, split: str, count: int, side: int, grid: int) -> dict[str, np.ndarray]:
    """``pictures`` (count, side, side, 3) uint8 and ``labels`` (count, grid * grid) int16.

    The labels are what each cell shows, ``len(THINGS)`` for nothing. Kept in ``work``, drawn once.
    """
    path = work / f"{split}-{count}-{side}.npz"
    if not path.exists():
        pictures = np.empty((count, side, side, 3), np.uint8)
        labels = np.empty((count, grid * grid), np.int16)
        for index in tqdm(range(count), desc=f"drawing {split}", unit="scene"):
            scene = sample_scene(split, index)
            pictures[index] = np.asarray(draw(scene).resize((side, side), Image.Resampling.BICUBIC))
            labels[index] = coverage(scene, grid).ravel()
        partial = path.with_suffix(".part.npz")
        np.savez(partial, pictures=pictures, labels=labels)
        os.replace(partial, path)
    with np.load(path) as pool:
        return dict(pool)


@torch.no_grad()
def features_of(
    see: Callable[[np.ndarray], Tensor], pictures: np.ndarray, batch: int, path: Path | None = None
) -> Tensor:
    """(count, tokens, width) float16: what a frozen tower sees in the pictures, kept in ``path``.

    ``see`` is given (B, side, side, 3) uint8, ``batch`` pictures at a time.
    """
    if path is not None and path.exists():
        kept: Tensor = torch.load(path, weights_only=True)
        return kept
    starts = tqdm(range(0, len(pictures), batch), desc="features", unit="batch")
    features = torch.cat([see(pictures[at : at + batch]).half() for at in starts])
    if path is not None:
        partial = path.with_suffix(".part")
        torch.save(features, partial)
        os.replace(partial, path)
    return features


def normalised(pictures: Tensor, mean: Sequence[float], deviation: Sequence[float]) -> Tensor:
    """(B, side, side, 3) uint8 to normalised (B, 3, side, side) float32."""
    pixels = (pictures.float() / 255 - torch.tensor(mean)) / torch.tensor(deviation)
    return pixels.permute(0, 3, 1, 2).contiguous()


@dataclass(frozen=True)
class Stage:
    """A stage of a training: ``steps`` batches of ``batch`` out of ``scenes`` scenes.

    ``peak`` is the highest learning rate; ``seed`` orders the scenes.
    """

    name: str
    scenes: int
    batch: int
    steps: int
    peak: float
    seed: int

    def rate(self, step: int) -> float:
        """Learning rate: a linear rise at first, then a cosine down to 2% of the peak."""
        if step < WARMUP:
            return self.peak * (step + 1) / WARMUP
        progress = (step - WARMUP) / max(1, self.steps - WARMUP)
        return self.peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))

    def batches(self) -> Iterator[np.ndarray]:
        """Arrays of scene indices, every scene once before any comes again."""
        rng = np.random.default_rng(self.seed)
        order = np.empty(0, np.int64)
        for _ in range(self.steps):
            if len(order) < self.batch:
                order = np.concatenate([order, rng.permutation(self.scenes)])
            yield order[: self.batch]
            order = order[self.batch :]


class Log:
    """JSON Lines, one entry at a time, appended."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.start = time.monotonic()

    def write(self, **entry: Any) -> None:
        """Append the entry and the seconds since this run began."""
        entry["seconds"] = round(time.monotonic() - self.start, 1)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        if "dev" in entry:
            tqdm.write(json.dumps(entry))


def optimizer_for(modules: nn.Module) -> torch.optim.AdamW:
    """AdamW; matrices decay, vectors do not."""
    parameters = list(modules.parameters())
    return torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": 0.05},
            {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.98),
    )


def train(
    stage: Stage,
    modules: nn.Module,
    loss_of: Callable[[int, np.ndarray], Tensor],
    work: Path,
    log: Log,
    scores: Callable[[], dict[str, float]] | None = None,
) -> None:
    """Minimise ``loss_of(step, scene indices)`` over ``modules``, from the state in ``work`` on.

    ``scores``, where given, is what the log keeps as ``dev`` every ``SCORE_EVERY`` steps.
    """
    state_path = work / f"{stage.name}.pt"
    optimizer = optimizer_for(modules)
    start = 0
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        modules.load_state_dict(state["modules"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    if start >= stage.steps:
        return
    progress = tqdm(total=stage.steps, initial=start, desc=stage.name, unit="step")
    for step, chosen in enumerate(stage.batches()):
        if step < start:
            continue
        loss = loss_of(step, chosen)
        descend(optimizer, loss, stage.rate(step))
        progress.update()
        number, last = step + 1, step + 1 == stage.steps
        entry: dict[str, Any] = {}
        if scores and (last or number % SCORE_EVERY == 0):
            entry["dev"] = scores()
        if entry or last or number % LOG_EVERY == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}")
            log.write(stage=stage.name, step=number, loss=loss.item(), lr=stage.rate(step), **entry)
        if last or number % SAVE_EVERY == 0:
            save_state(
                state_path,
                modules=modules.state_dict(),
                optimizer=optimizer.state_dict(),
                step=number,
            )
    progress.close()


def descend(optimizer: torch.optim.AdamW, loss: Tensor, rate: float) -> None:
    """One step of the optimizer at this learning rate, gradients clipped to norm 1."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()


def save_state(path: Path, **state: Any) -> None:
    """Write a training state so that a crash leaves the former one."""
    partial = path.with_suffix(".part")
    torch.save(state, partial)
    os.replace(partial, path)


def hallucination(texts: Sequence[str], split: str) -> dict[str, float]:
    """CHAIR of one caption for each of the first scenes of ``split``, against the things drawn."""
    wrong_captions = wrong = named = found = there = 0
    for index, text in enumerate(texts):
        truth = {item.thing.name for item in sample_scene(split, index).placed}
        said = named_things(text)
        errors = [name for name in said if name not in truth]
        wrong_captions += bool(errors)
        wrong += len(errors)
        named += len(said)
        found += len(truth & set(said))
        there += len(truth)
    return {
        "n": len(texts),
        "CHAIRs": wrong_captions / len(texts),
        "CHAIRi": wrong / max(1, named),
        "Recall": found / there,
    }
