"""What the trainings of all families share: pictures, losses, schedule, states, record, scoring."""

from __future__ import annotations

import functools
import itertools
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from captions import WORDS, named_things, yes_or_no
from scenes import BACKGROUNDS, THINGS, Scene, coverage, draw, sample_scene

IGNORE = -100
WARMUP = 100
LOG_EVERY, SAVE_EVERY, SCORE_EVERY = 50, 100, 500
DEV_SCENES = 200

OWN, SHARED = 0.6, 0.2
"""What a vision token is taught to say: what it shows itself, and what the whole picture shows. The
rest falls on every token of the vocabulary alike, so that of words that are no things, such as
"and", a vision token prefers none."""
THING_WEIGHT = 3.0
"""How much more a vision token that shows a thing weighs than one that shows the background."""

scene = functools.cache(sample_scene)


def draw_pool(work: Path, split: str, count: int, side: int, grid: int) -> dict[str, np.ndarray]:
    """``pictures`` (count, side, side, 3) uint8 and ``labels`` (count, grid * grid) int16.

    The labels are what each cell shows, as indices into ``WORDS``. Kept in ``work``, drawn once.
    """
    path = work / f"{split}-{count}-{side}.npz"
    if not path.exists():
        pictures = np.empty((count, side, side, 3), np.uint8)
        labels = np.empty((count, grid * grid), np.int16)
        for index in tqdm(range(count), desc=f"drawing {split}", unit="scene"):
            one = sample_scene(split, index)
            pictures[index] = np.asarray(draw(one).resize((side, side), Image.Resampling.BICUBIC))
            shown = coverage(one, grid).ravel()
            behind = len(THINGS) + list(BACKGROUNDS).index(one.background)
            labels[index] = np.where(shown < len(THINGS), shown, behind)
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


def targets(labels: Tensor) -> Tensor:
    """(B, N, words) what each vision token should say, beside the rest, of what it shows (B, N)."""
    own = functional.one_hot(labels, len(WORDS)).float()
    there = own.amax(dim=1, keepdim=True)
    there[..., len(THINGS) :] = 0
    return OWN * own + SHARED * there / there.sum(-1, keepdim=True).clamp(min=1)


def naming_loss(states: Tensor, head: nn.Linear, words: Tensor, labels: Tensor) -> Tensor:
    """Weighted mean cross entropy of what (B, N, width) vision states say through the LM head.

    ``words`` (len(WORDS),) is the token that each word begins with; ``labels`` (B, N) what the
    vision tokens show.
    """
    logits: Tensor = head(states)
    said = (targets(labels) * logits[..., words]).sum(-1) + (1 - OWN - SHARED) * logits.mean(-1)
    weights = torch.where(labels < len(THINGS), THING_WEIGHT, 1.0)
    return (weights * (logits.logsumexp(-1) - said)).sum() / weights.sum()


class Reader(Protocol):
    """A language model behind a frozen tower, as ``language_loss`` reads it."""

    head: nn.Linear
    words: Tensor

    def rows(self, conversations: list[list[tuple[str, str]]]) -> tuple[Tensor, Tensor]:
        """Tokens after the vision tokens and their labels, (B, T), ``IGNORE`` outside answers."""

    def states(self, features: Tensor, tokens: Tensor) -> tuple[list[Tensor], int]:
        """The hidden states (B, all, width) that name what they show, the last layer's last, and
        where the vision tokens begin; ``features`` (B, N, tower's width), ``tokens`` (B, T)."""


def language_loss(
    reader: Reader,
    step: int,
    weight: float,
    features: Tensor,
    labels: Tensor,
    conversations: list[list[tuple[str, str]]],
) -> Tensor:
    """Loss of the answers, and ``weight`` of what the vision tokens (``labels`` (B, N)) name.

    They name it in one of the reader's layers, another at each ``step``.
    """
    tokens, answers = reader.rows(conversations)
    states, start = reader.states(features, tokens)
    said = answers[:, 1:] != IGNORE
    logits = reader.head(states[-1][:, -tokens.shape[1] : -1][said])
    loss = functional.cross_entropy(logits, answers[:, 1:][said])
    seen = states[step % len(states)][:, start : start + features.shape[1]]
    return loss + weight * naming_loss(seen, reader.head, reader.words, labels)


@torch.no_grad()
def yes_no_accuracy(reader: Reader, features: Tensor) -> float:
    """How often the answer to one question for each of the first scenes of ``dev`` is right."""
    rng = np.random.default_rng(0)
    asked = [[yes_or_no(scene("dev", index), rng)] for index in range(len(features))]
    tokens, answers = reader.rows(asked)
    states, _ = reader.states(features, tokens)
    said = reader.head(states[-1][:, -tokens.shape[1] : -1]).argmax(-1)
    first = (answers[:, 1:] != IGNORE).int().argmax(dim=1, keepdim=True)
    right: Tensor = said.gather(1, first) == answers[:, 1:].gather(1, first)
    return right.float().mean().item()


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


def hallucination(texts: Sequence[str]) -> dict[str, float]:
    """CHAIR of a caption for each of the first scenes of ``dev``, against the things drawn.

    ``Repeats`` is the part of the captions that name a thing twice.
    """
    wrong_captions = wrong = named = found = there = repeats = 0
    for index, text in enumerate(texts):
        truth = {item.thing.name for item in scene("dev", index).placed}
        said = named_things(text)
        errors = [name for name in said if name not in truth]
        wrong_captions += bool(errors)
        repeats += len(set(said)) < len(said)
        wrong += len(errors)
        named += len(said)
        found += len(truth & set(said))
        there += len(truth)
    return {
        "n": len(texts),
        "CHAIRs": wrong_captions / len(texts),
        "CHAIRi": wrong / max(1, named),
        "Recall": found / there,
        "Repeats": repeats / len(texts),
    }


def begin_run(work: Path) -> None:
    """Note in ``work`` the commit that this run of a trainer stands at; a rerun notes its own."""
    here = Path(__file__).resolve().parent

    def git(*command: str) -> str:
        done = subprocess.run(
            ["git", "-C", here, *command], check=True, capture_output=True, text=True
        )
        return done.stdout.rstrip()

    changed = git("status", "--porcelain", "--", "*.py")
    run: dict[str, Any] = {"commit": git("rev-parse", "HEAD"), "changed": changed.splitlines()}
    for state in sorted(work.glob("*.pt")):
        if state.name != "features.pt":
            step = torch.load(state, weights_only=True)["step"]
            run.setdefault("continued", []).append(f"{state.stem}, step {step}")
    runs = _runs(work)
    (work / "runs.json").write_text(json.dumps([*runs, run]), encoding="utf-8")


def _runs(work: Path) -> list[dict[str, Any]]:
    path = work / "runs.json"
    return json.loads(path.read_text("utf-8")) if path.exists() else []


def write_record(folder: Path, work: Path, log: Log, modules: nn.Module, **settings: Any) -> None:
    """Write to the checkpoint's ``folder`` what made it, and the log.

    ``seconds`` sums the runs of a training that was stopped and continued.
    """
    entries = [json.loads(line) for line in log.path.read_text("utf-8").splitlines()]
    seconds = [0.0, *(entry["seconds"] for entry in entries), 0.0]
    ends = [one for one, two in itertools.pairwise(seconds) if two < one]
    packages = ("torch", "transformers", "tokenizers", "numpy", "pillow")
    record = {
        "command": f"python prerequisites/demo/{Path(sys.argv[0]).name}",
        "runs": _runs(work),
        **settings,
        "parameters": sum(p.numel() for p in modules.parameters()),
        "seconds": round(sum(ends)),
        "versions": {"python": platform.python_version()}
        | {package: version(package) for package in packages},
    }
    text = json.dumps(record, indent=1)
    (folder / "training_record.json").write_text(text + "\n", encoding="utf-8")
    (folder / log.path.name).write_bytes(log.path.read_bytes())


def train_language(
    stage: Stage,
    talk: Callable[[Scene, np.random.Generator], list[tuple[str, str]]],
    reader: Reader,
    weight: float,
    modules: nn.Module,
    pool: dict[str, np.ndarray],
    features: Tensor,
    work: Path,
    log: Log,
    scores: Callable[[], dict[str, float]],
) -> None:
    """Teach ``modules`` what ``talk`` says about a scene and, at ``weight``, naming; tower frozen.

    ``pool`` is that of ``draw_pool`` for ``train``, ``features`` (scenes, N, width) float16.
    """
    labels = torch.from_numpy(pool["labels"].astype(np.int64))

    def loss_of(step: int, chosen: np.ndarray) -> Tensor:
        rng = np.random.default_rng([stage.seed, step])
        talks = [talk(scene("train", int(index)), rng) for index in chosen]
        return language_loss(reader, step, weight, features[chosen].float(), labels[chosen], talks)

    train(stage, modules, loss_of, work, log, scores)
