"""The training of the demo's models: three stages, the same for each family.

tower     the vision tower learns, on scenes where any things stand together, to name what each
          vision token shows; the names are rows that the LM head and the embedding begin with
language  the language model learns captions and answers, the tower frozen; a light loss lets the
          vision tokens go on naming what they show: a million parameters do not come by themselves
          to the shared space of vision and words that a large model's pretraining leads to, and
          that ReVisiT reads
questions the same with four times as many questions of yes and no: two a conversation teach none

Killed and started again, a training continues from its last saved state in --work.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
import os
import platform
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from captions import WORDS, conversation, named_things, questions, yes_or_no
from revisit.evaluation.benchmarks import chair
from revisit.evaluation.benchmarks.objects.lemmas import LEMMATIZERS
from scenes import BACKGROUNDS, THINGS, coverage, draw, sample_scene

IGNORE = -100
WARMUP = 100
LOG_EVERY, SAVE_EVERY, SCORE_EVERY = 50, 100, 500
DEV_SCENES = 200

OWN, SHARED = 0.6, 0.2
"""What a vision token learns to name: what it shows itself, and what the whole picture shows. The
rest is spread over all tokens of the vocabulary, so that among words that are no things, such as
"and", a vision token prefers none."""
THING_WEIGHT = 3.0
"""How much more a vision token that shows a thing weighs than one that shows the background."""

NAMING_LOSS = 0.3
"""Weight, beside the answers, of the names that the vision tokens give."""
NAMING_LAYERS = (0, 2, 4)
"""Hidden states whose vision tokens learn to name; the last is after the final norm."""

HERE = Path(__file__).resolve().parent
LOG = "training_log.jsonl"
STARTED = time.monotonic()
scene = functools.cache(sample_scene)


class TinyModel(ABC):
    """A family's untrained model and its prompt.

    `words` (len(WORDS),) int64 is the token that each word begins with. `tower` is what the first
    stage trains, `language` what the others train. A picture is `side` pixels wide and has
    `grid` * `grid` vision tokens; `see` takes `batch` pictures at a time.
    """

    head: nn.Linear
    embedding: nn.Module
    tower: dict[str, nn.Module]
    language: dict[str, nn.Module]
    words: Tensor
    side: int
    grid: int
    batch: int

    @abstractmethod
    def see(self, pictures: np.ndarray) -> Tensor:
        """(B, N, tower's width) float32: the tower's output of (B, side, side, 3) uint8."""

    def vision_tokens(self, features: Tensor) -> Tensor:
        """(B, N, width): what the language model reads, of (B, N, tower's width)."""
        return features

    @abstractmethod
    def asked(self, question: str, first: bool) -> list[int]:
        """The tokens of a question, after the vision tokens if it is the first."""

    @abstractmethod
    def answered(self, answer: str) -> list[int]:
        """The tokens of an answer, with the one that ends it."""

    @abstractmethod
    def states(self, features: Tensor, tokens: Tensor) -> tuple[list[Tensor], int]:
        """The hidden states (B, all, width) of `NAMING_LAYERS`, and where the vision tokens begin;
        `features` (B, N, tower's width), `tokens` (B, T) after them."""

    @abstractmethod
    def describe(self, features: Tensor) -> list[str]:
        """A greedy caption for each picture's (B, N, tower's width) features."""

    @abstractmethod
    def save(self, folder: Path) -> nn.Module:
        """Write the checkpoint; returns all that was trained."""

    def rows(self, conversations: list[list[tuple[str, str]]]) -> tuple[Tensor, Tensor]:
        """Tokens after the vision tokens, padded at the right, and their labels, (B, T) int64,
        `IGNORE` outside answers."""
        rows, labels = [], []
        for turns in conversations:
            row: list[int] = []
            label: list[int] = []
            for question, answer in turns:
                asked, answered = self.asked(question, not row), self.answered(answer)
                row += asked + answered
                label += [IGNORE] * len(asked) + answered
            rows.append(torch.tensor(row))
            labels.append(torch.tensor(label))
        pad = nn.utils.rnn.pad_sequence
        return pad(rows, batch_first=True), pad(labels, batch_first=True, padding_value=IGNORE)


def save(path: Path, value: Any) -> None:
    """Write with `torch.save`, so that a crash leaves the former file."""
    partial = path.with_suffix(".part")
    torch.save(value, partial)
    os.replace(partial, path)


def kept(path: Path, make: Callable[[], Any]) -> Any:
    """What ``make`` returns; kept in ``path``, so that it is made once."""
    if not path.exists():
        save(path, make())
    return torch.load(path, weights_only=True)


def draw_pool(work: Path, split: str, count: int, side: int, grid: int) -> dict[str, Tensor]:
    """``pictures`` (count, side, side, 3) uint8 and ``labels`` (count, grid * grid) int64, kept in
    ``work``. The labels are what each cell shows, as indices into ``WORDS``."""

    def make() -> dict[str, Tensor]:
        pictures = np.empty((count, side, side, 3), np.uint8)
        labels = np.empty((count, grid * grid), np.int64)
        for index in tqdm(range(count), desc=f"drawing {split}", unit="scene"):
            one = sample_scene(split, index)
            pictures[index] = np.asarray(draw(one).resize((side, side), Image.Resampling.BICUBIC))
            shown = coverage(one, grid).ravel()
            behind = len(THINGS) + list(BACKGROUNDS).index(one.background)
            labels[index] = np.where(shown < len(THINGS), shown, behind)
        return {"pictures": torch.from_numpy(pictures), "labels": torch.from_numpy(labels)}

    pool: dict[str, Tensor] = kept(work / f"{split}-{count}-{side}.pool", make)
    return pool


@torch.no_grad()
def features_of(model: TinyModel, pictures: Tensor) -> Tensor:
    """(count, tokens, width) float16: what the frozen tower sees in the pictures."""
    batches = tqdm(torch.split(pictures, model.batch), desc="features", unit="batch")
    return torch.cat([model.see(batch.numpy()).half() for batch in batches])


def normalised(pictures: Tensor, mean: Sequence[float], deviation: Sequence[float]) -> Tensor:
    """(B, side, side, 3) uint8 to normalised (B, 3, side, side) float32."""
    pixels = (pictures.float() / 255 - torch.tensor(mean)) / torch.tensor(deviation)
    return pixels.permute(0, 3, 1, 2).contiguous()


def targets(labels: Tensor) -> Tensor:
    """(B, N, words): how much each vision token should name each word; ``labels`` (B, N)."""
    own = functional.one_hot(labels, len(WORDS)).float()
    there = own.amax(dim=1, keepdim=True)
    there[..., len(THINGS) :] = 0
    return OWN * own + SHARED * there / there.sum(-1, keepdim=True).clamp(min=1)


def naming_loss(states: Tensor, head: nn.Linear, words: Tensor, labels: Tensor) -> Tensor:
    """Weighted mean cross entropy of what (B, N, width) vision states name through the LM head.

    ``words`` (len(WORDS),) is the token that each word begins with; ``labels`` (B, N) what the
    vision tokens show.
    """
    logits: Tensor = head(states)
    wanted = (targets(labels) * logits[..., words]).sum(-1)
    wanted = wanted + (1 - OWN - SHARED) * logits.mean(-1)
    weights = torch.where(labels < len(THINGS), THING_WEIGHT, 1.0)
    return (weights * (logits.logsumexp(-1) - wanted)).sum() / weights.sum()


def language_loss(
    model: TinyModel,
    step: int,
    features: Tensor,
    labels: Tensor,
    conversations: list[list[tuple[str, str]]],
) -> Tensor:
    """Loss of the answers, and of what the vision tokens (``labels`` (B, N)) name.

    They name it in one of ``NAMING_LAYERS``, another at each ``step``.
    """
    tokens, answers = model.rows(conversations)
    states, start = model.states(features, tokens)
    answered = answers[:, 1:] != IGNORE
    logits = model.head(states[-1][:, -tokens.shape[1] : -1][answered])
    loss = functional.cross_entropy(logits, answers[:, 1:][answered])
    seen = states[step % len(states)][:, start : start + features.shape[1]]
    return loss + NAMING_LOSS * naming_loss(seen, model.head, model.words, labels)


@torch.no_grad()
def yes_no_accuracy(model: TinyModel, features: Tensor) -> float:
    """How often the answer to one question for each of the first scenes of ``dev`` is right."""
    rng = np.random.default_rng(0)
    asked = [[yes_or_no(scene("dev", index), rng)] for index in range(len(features))]
    tokens, answers = model.rows(asked)
    states, _ = model.states(features, tokens)
    predicted = model.head(states[-1][:, -tokens.shape[1] : -1]).argmax(-1)
    first = (answers[:, 1:] != IGNORE).int().argmax(dim=1, keepdim=True)
    right: Tensor = predicted.gather(1, first) == answers[:, 1:].gather(1, first)
    return right.float().mean().item()


def caption_scores(texts: Sequence[str]) -> dict[str, float]:
    """CHAIR of a caption for each of the first scenes of ``dev``, as fractions of 1.

    ``Repeats`` is the share of captions that name a thing twice.
    """
    truth = {
        index: [item.thing.name for item in scene("dev", index).placed]
        for index in range(len(texts))
    }
    score = chair.score(dict(enumerate(texts)), truth, LEMMATIZERS["noun"]())
    named = [named_things(text) for text in texts]
    repeats = sum(len(set(names)) < len(names) for names in named) / len(texts)
    return {"n": len(texts), **chair.metrics(score.counts.sum(0)), "Repeats": repeats}


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

    def state(self, work: Path) -> Path:
        """Where the stage's training state is kept."""
        return work / f"{self.name}.pt"


TOWER = Stage("tower", scenes=16000, batch=32, steps=3000, peak=2e-3, seed=1)
LANGUAGE = Stage("language", scenes=24000, batch=32, steps=6000, peak=1.5e-3, seed=2)
QUESTIONS = Stage("questions", scenes=24000, batch=32, steps=3000, peak=1e-3, seed=3)


def write_log(work: Path, **entry: Any) -> None:
    """Append a line to the log: the entry, and the seconds since this run began."""
    entry["seconds"] = round(time.monotonic() - STARTED, 1)
    with (work / LOG).open("a", encoding="utf-8") as file:
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
    scores: Callable[[], dict[str, float]] | None = None,
) -> None:
    """Minimise ``loss_of(step, scene indices)`` over ``modules``, from the state in ``work`` on.

    ``scores`` makes what the log keeps as ``dev`` every ``SCORE_EVERY`` steps.
    """
    optimizer = optimizer_for(modules)
    start = 0
    if stage.state(work).exists():
        state = torch.load(stage.state(work), weights_only=True)
        modules.load_state_dict(state["modules"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    batches = itertools.islice(enumerate(stage.batches()), start, None)
    bar = tqdm(batches, stage.name, total=stage.steps, initial=start, unit="step")
    for step, chosen in bar:
        loss = loss_of(step, chosen)
        descend(optimizer, loss, stage.rate(step))
        number, last = step + 1, step + 1 == stage.steps
        entry: dict[str, Any] = {}
        if scores and (last or number % SCORE_EVERY == 0):
            entry["dev"] = scores()
        if entry or last or number % LOG_EVERY == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
            rate = stage.rate(step)
            write_log(work, stage=stage.name, step=number, loss=loss.item(), lr=rate, **entry)
        if last or number % SAVE_EVERY == 0:
            states = {"modules": modules.state_dict(), "optimizer": optimizer.state_dict()}
            save(stage.state(work), {**states, "step": number})


def descend(optimizer: torch.optim.AdamW, loss: Tensor, rate: float) -> None:
    """One step of the optimizer at this learning rate, gradients clipped to norm 1."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()


def begin_run(work: Path) -> None:
    """Add to the runs of ``work`` the commit of this one, and the states that it continues."""

    def git(*command: str) -> str:
        return subprocess.check_output(["git", "-C", HERE, *command], text=True).rstrip()

    changed = git("status", "--porcelain", "--", "*.py")
    run: dict[str, Any] = {"commit": git("rev-parse", "HEAD"), "changed": changed.splitlines()}
    for stage in (TOWER, LANGUAGE, QUESTIONS):
        if stage.state(work).exists():
            step = torch.load(stage.state(work), weights_only=True)["step"]
            run.setdefault("continued", []).append(f"{stage.name}, step {step}")
    runs = work / "runs.json"
    before = json.loads(runs.read_text("utf-8")) if runs.exists() else []
    runs.write_text(json.dumps([*before, run]), encoding="utf-8")


def write_record(folder: Path, work: Path, modules: nn.Module, **settings: Any) -> None:
    """Write to the checkpoint's ``folder`` what made it, and the log.

    ``seconds`` sums the runs of a training that was stopped and continued.
    """
    log = (work / LOG).read_text("utf-8")
    seconds = [0.0, *(json.loads(line)["seconds"] for line in log.splitlines()), 0.0]
    ends = [one for one, two in itertools.pairwise(seconds) if two < one]
    packages = ("torch", "transformers", "tokenizers", "numpy", "pillow")
    record = {
        "command": f"python prerequisites/demo/{Path(sys.argv[0]).name}",
        "runs": json.loads((work / "runs.json").read_text("utf-8")),
        **settings,
        "parameters": sum(p.numel() for p in modules.parameters()),
        "seconds": round(sum(ends)),
        "versions": {"python": platform.python_version()}
        | {package: version(package) for package in packages},
    }
    text = json.dumps(record, indent=1)
    (folder / "training_record.json").write_text(text + "\n", encoding="utf-8")
    (folder / LOG).write_text(log, encoding="utf-8")


def train_tower(model: TinyModel, head: nn.Linear, work: Path) -> None:
    """Teach the tower to name, through ``head``, what each vision token shows."""
    pool = draw_pool(work, "tower", TOWER.scenes, model.side, model.grid)

    def loss_of(step: int, chosen: np.ndarray) -> Tensor:
        states = model.vision_tokens(model.see(pool["pictures"][chosen].numpy()))
        return naming_loss(states, head, model.words, pool["labels"][chosen])

    train(TOWER, nn.ModuleDict({**model.tower, "head": head}), loss_of, work)


def train_language(model: TinyModel, work: Path) -> None:
    """Teach the language model captions and answers, the tower frozen."""
    pool = draw_pool(work, "train", LANGUAGE.scenes, model.side, model.grid)
    labels, pictures = pool["labels"], pool.pop("pictures")
    features = kept(work / "features.pt", lambda: features_of(model, pictures))
    unseen = draw_pool(work, "dev", DEV_SCENES, model.side, model.grid)["pictures"]
    unseen_features = features_of(model, unseen).float()

    def scores() -> dict[str, float]:
        found = caption_scores(model.describe(unseen_features))
        return found | {"YesNo": yes_no_accuracy(model, unseen_features)}

    for stage, talk in ((LANGUAGE, conversation), (QUESTIONS, questions)):

        def loss_of(
            step: int, chosen: np.ndarray, stage: Stage = stage, talk: Any = talk
        ) -> Tensor:
            rng = np.random.default_rng([stage.seed, step])
            talks = [talk(scene("train", int(index)), rng) for index in chosen]
            return language_loss(model, step, features[chosen].float(), labels[chosen], talks)

        train(stage, nn.ModuleDict(model.language), loss_of, work, scores)


def run(make: Callable[[Path], TinyModel], name: str) -> None:
    """The program that trains a family: ``make(work)`` is its model, ``name`` the family's."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=HERE / f"{name}-tiny", help="the checkpoint")
    parser.add_argument(
        "--work", type=Path, default=HERE / "work" / name, help="states, to continue from"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the initial weights")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.work.mkdir(parents=True, exist_ok=True)
    model = make(args.work)
    head = nn.Linear(model.head.in_features, model.head.out_features, bias=False)
    begin_run(args.work)
    train_tower(model, head, args.work)
    model.head.load_state_dict(head.state_dict())
    model.embedding.load_state_dict(head.state_dict())
    train_language(model, args.work)
    trained = model.save(args.out)
    write_record(args.out, args.work, trained, seed=args.seed, threads=args.threads)
