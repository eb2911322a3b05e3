"""Captions and their patches as one HTML file that needs nothing else: no network, no server."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from revisit.evaluation import EvaluationError
from revisit.evaluation.pictures.picture import Patch, Picture, describe, fit, trivial
from revisit.evaluation.pictures.style import data_url, document
from revisit.evaluation.pictures.words import Word

_LONGEST_SIDE = 1024  # pixels of an image in the file


def write_html(pictures: Sequence[Picture], path: Path, title: str = "What each word saw") -> None:
    """Write the page; raises `EvaluationError` where the file cannot be written."""
    try:
        path.write_text(page(pictures, title), "utf-8")
    except OSError as error:
        raise EvaluationError(f"cannot write {path}: {error.strerror}") from error


def page(pictures: Sequence[Picture], title: str = "What each word saw") -> str:
    """The page: point at a word (or reach it by the keyboard) to see its patch, and the reverse."""
    sections = "\n".join(_section(number, each) for number, each in enumerate(pictures))
    intro = """<p class="quiet">Point at a word, or tap it, to see the patch of the image that it
came from; at a patch, to see its words. With the keyboard: Tab to the words or the patches, arrow
keys among them, Escape to let go. <span class="changed">Underlined words</span> are those that
ReVisiT changed: greedy decoding would have gone on otherwise.</p>"""
    return document(title, f"{intro}\n{sections}", _STYLE, _SCRIPT)


def _section(number: int, picture: Picture) -> str:
    key = f"p{number}"
    stages = "\n".join(_stage(picture, image) for image in range(len(picture.images)))
    words = "".join(_word(picture, at, word) for at, word in enumerate(picture.words))
    details = "\n".join(_details(picture, at) for at in range(len(picture.words)))
    note = f'<p class="note">{escape(picture.note)}</p>' if picture.note else ""
    summary = (
        "Greedy decoding: no vision token is chosen."
        if picture.greedy
        else f"{picture.changed} of {len(picture.words)} words and marks changed by ReVisiT, "
        f"{len(picture.patches)} patches looked at."
    )
    return f"""<section aria-labelledby="{key}-title">
<h2 id="{key}-title">{escape(picture.title)}</h2>
{note}
<div class="columns">
<div class="images">
{stages}
</div>
<div class="text">
<div class="caption" role="toolbar" aria-label="Words of the caption">{words}</div>
<p class="quiet">{summary}</p>
<div class="details" aria-live="polite">
{details}
</div>
</div>
</div>
</section>"""


def _stage(picture: Picture, image: int) -> str:
    named = picture.title if len(picture.images) == 1 else f"{picture.title}, image {image + 1}"
    patches = [(at, each) for at, each in enumerate(picture.patches) if each.image == image]
    buttons = "\n".join(_patch(picture, at, each) for at, each in patches)
    tools = (
        f'<div class="patches" role="toolbar" aria-label="Patches of {escape(named)}">\n'
        f"{buttons}\n</div>"
        if patches
        else ""
    )
    shape = picture.images[image].width / picture.images[image].height
    return f"""<figure class="stage" style="--shape:{shape:.5f}">
<img src="{data_url(picture.images[image], _LONGEST_SIDE, 90)}" alt="{escape(named)}">
{tools}
</figure>"""


def _patch(picture: Picture, at: int, patch: Patch) -> str:
    left, top, right, bottom = patch.box
    sides = {"left": left, "top": top, "width": right - left, "height": bottom - top}
    style = ";".join(f"{side}:{share * 100:.3f}%" for side, share in sides.items())
    words = ", ".join(picture.words[word].text for word in patch.words)
    label = (
        f"Patch at {(left + right) / 2:.0%} from the left, {(top + bottom) / 2:.0%} from the top"
    )
    return (
        f'<button type="button" class="patch" data-words="{" ".join(map(str, patch.words))}" '
        f'data-patch="{at}" data-vision-tokens="{" ".join(map(str, patch.vision_tokens))}" '
        f'style="{style}" aria-label="{escape(f"{label}: {words}")}"></button>'
    )


def _word(picture: Picture, number: int, word: Word) -> str:
    patches = [at for at, patch in enumerate(picture.patches) if number in patch.words]
    changed = [token.instead for token in word.tokens if token.instead is not None]
    label = word.text
    if changed:
        label += f", changed by ReVisiT; greedy decoding: {' … '.join(changed).strip()}"
    unsure = " trivial" if word.tokens and all(map(trivial, word.tokens)) else ""
    sure = max((fit(token) for token in word.tokens), default=0.0)
    return (
        f"{'<br>' if chr(10) in word.before else ' ' if word.before else ''}"
        f'<button type="button" class="word{" changed" if changed else ""}{unsure}" '
        f'data-word="{number}" data-patches="{" ".join(map(str, patches))}" '
        f'style="--fit:{sure:.2f}" aria-label="{escape(label)}">{escape(word.text)}</button>'
    )


def _details(picture: Picture, number: int) -> str:
    tokens = picture.words[number].tokens
    lines = "".join(f"<li>{escape(describe(picture, token))}</li>" for token in tokens)
    return f'<ul hidden data-of="{number}">{lines}</ul>'


_STYLE = """
.columns { display:flex; flex-wrap:wrap; gap:1.25rem; align-items:flex-start; }
.images { flex:1 1 18rem; max-width:28rem; min-width:0; }
.text { flex:2 1 18rem; min-width:0; }
.stage { position:relative; margin:0 0 .5rem; overflow:hidden; border-radius:.25rem;
  aspect-ratio:var(--shape); width:min(100%, calc(60vh * var(--shape))); }
.stage img { display:block; width:100%; height:100%; }
@media (max-width:42rem) {  /* the image stays in sight while one reads */
  .images { position:sticky; top:0; z-index:3; display:flex; gap:.5rem; max-width:none;
    flex-basis:100%; background:var(--card); padding-top:.25rem; }
  .stage { width:min(100%, calc(38vh * var(--shape))); }
}
.patch { position:absolute; padding:0; border:0; background:transparent; cursor:pointer;
  outline:1px solid rgba(255,255,255,.75); outline-offset:-1px;
  box-shadow:inset 0 0 0 2px rgba(0,0,0,.45); }
.patch.on { outline:3px solid var(--on); box-shadow:0 0 0 5px #000; z-index:1; }
.patch.unsure.on { outline-style:dashed; }
.patch:focus-visible { outline:3px solid var(--on); box-shadow:0 0 0 5px #000; z-index:2; }
.caption { font-size:1.15rem; line-height:2; overflow-wrap:anywhere; }
.word { font:inherit; color:inherit; background:transparent; border:0; border-radius:.2rem;
  padding:.1rem .12rem; margin:0; cursor:pointer; min-width:.7rem; }
.word:hover, .word.on { background:var(--on); color:var(--on-ink); }
.changed { color:var(--changed); font-weight:600; text-decoration:underline;
  text-decoration-thickness:2px; text-underline-offset:.2em; }
.word.changed { color:var(--changed); }
.word.changed:hover, .word.changed.on { color:var(--on-ink); }
.details { min-height:5rem; font-size:.95rem; }
.details ul { margin:0; padding-left:1.2rem; }
"""

_SCRIPT = """
"use strict";
for (const section of document.querySelectorAll("section")) {
  const words = [...section.querySelectorAll(".word")];
  const patches = [...section.querySelectorAll(".patch")];
  const numbers = text => text ? text.split(" ").map(Number) : [];
  const byPatch = new Map(patches.map(patch => [Number(patch.dataset.patch), patch]));
  const details = [...section.querySelectorAll("[data-of]")];
  let held = null;
  const show = one => {
    const isWord = one && one.classList.contains("word");
    const onWords = !one ? [] : isWord ? [Number(one.dataset.word)] : numbers(one.dataset.words);
    const onPatches = !one ? [] : isWord
      ? numbers(one.dataset.patches).map(number => byPatch.get(number)) : [one];
    const unsure = isWord && one.classList.contains("trivial");
    words.forEach((word, number) => word.classList.toggle("on", onWords.includes(number)));
    for (const patch of patches) {
      patch.classList.toggle("on", onPatches.includes(patch));
      patch.classList.toggle("unsure", unsure);
    }
    for (const detail of details) detail.hidden = !onWords.includes(Number(detail.dataset.of));
  };
  for (const group of [words, patches]) {
    const reach = (one, focus) => {
      for (const each of group) each.tabIndex = each === one ? 0 : -1;
      if (focus) one.focus();
    };
    group.forEach((one, place) => {
      one.tabIndex = place === 0 ? 0 : -1;
      one.addEventListener("pointerenter", () => show(one));
      one.addEventListener("pointerleave", () => show(held));
      one.addEventListener("focus", () => { held = one; reach(one, false); show(one); });
      one.addEventListener("click", () => { held = one; one.focus(); show(one); });
      one.addEventListener("keydown", event => {
        const to = { ArrowRight: place + 1, ArrowDown: place + 1, ArrowLeft: place - 1,
          ArrowUp: place - 1, Home: 0, End: group.length - 1 }[event.key];
        if (event.key === "Escape") { held = null; show(null); }
        if (to === undefined) return;
        event.preventDefault();
        reach(group[(to + group.length) % group.length], true);
      });
    });
  }
}
"""
