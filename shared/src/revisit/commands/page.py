"""The page of `revisit web`: greedy decoding and ReVisiT side by side, and what ReVisiT saw."""

import logging
import os
import queue
import threading
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple, get_args

from revisit.commands import CommandError
from revisit.commands.engines.described import Said, Speaker
from revisit.commands.flags import read_layers
from revisit.config import Divergence, NamedLayers, ReVisiTConfig
from revisit.evaluation import EvaluationError
from revisit.evaluation.images import ImageError, Opened, open_image
from revisit.evaluation.pictures.html import page
from revisit.evaluation.pictures.picture import Picture, fit, trivial
from revisit.evaluation.pictures.words import Word

MOST_PIXELS = 20_000_000
MOST_BYTES = "20mb"
MOST_SECONDS = 60.0  # of one description
MOST_TOKENS = 256
MOST_WAITING = 8  # requests; one is answered at a time
EXAMPLES = 12

_HEADS = (
    *("word", "token", "row", "column", "layer"),
    *("fit", "divergence", "candidates", "greedy"),
)

_LOG = logging.getLogger(__name__)


class Shown(NamedTuple):
    """What the page shows; None leaves a part as it is."""

    status: str = ""
    greedy: str = ""
    refined: str = ""
    picture: str = ""
    table: str = ""


class _Cancelled(Exception):
    """The one who asked has gone."""


def examples() -> dict[str, Path]:
    """By name, some images of the embedded demo, where the package is in a clone."""
    import revisit

    demo = Path(revisit.__file__).parents[3] / "prerequisites" / "demo"
    files = sorted((demo / "coco" / "val2014").glob("*.jpg"))[:EXAMPLES]
    return {f"scene {number}": file for number, file in enumerate(files, 1)}


def launch(app: Any, host: str, port: int | None) -> tuple[Any, str, Any]:
    """Begin to serve, without anything that reaches further than the host and port."""
    from gradio import themes

    # System fonts, since others would be fetched; greys that can be read.
    theme = themes.Base(font=["system-ui", "sans-serif"], font_mono=["monospace"]).set(
        body_text_color_subdued="#535b6b",
        body_text_color_subdued_dark="#aab1c1",
        block_info_text_color="#535b6b",
        block_info_text_color_dark="#aab1c1",
        block_label_text_color="#535b6b",
        block_title_text_color="#3b4252",
        button_primary_background_fill="#1d4ed8",
        button_primary_background_fill_hover="#1e40af",
    )
    app.queue(max_size=MOST_WAITING, default_concurrency_limit=1, api_open=False)
    served: tuple[Any, str, Any] = app.launch(
        server_name=host,
        server_port=port,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        max_file_size=MOST_BYTES,
        allowed_paths=[],
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        run_history=False,
        footer_links=[],
        theme=theme,
        css=_STYLE,
    )
    return served


def build(describer: Speaker, scenes: dict[str, Path]) -> Any:
    """The page, not served yet."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read where Gradio is imported
    import gradio

    with gradio.Blocks(
        analytics_enabled=False, title="ReVisiT: see it", delete_cache=(600, 3600)
    ) as app:
        gradio.Markdown("# ReVisiT: see what each word came from")
        if describer.origin:
            gradio.HTML(f"<p>{escape(_served(describer.origin))}</p>")
        with gradio.Row():
            upload = gradio.File(label="Image", file_count="single", type="filepath")
            with gradio.Column():
                scene = gradio.Dropdown(
                    list(scenes), value=next(iter(scenes), None), label="or an example"
                )
                layers = gradio.Dropdown(
                    list(get_args(NamedLayers)),
                    value="last",
                    label="layers",
                    info="or indices of hidden states, as 0,2,4",
                    allow_custom_value=True,
                    visible=not describer.origin,
                )
            with gradio.Column():
                alpha = gradio.Number(1e-5, label="alpha", info="0 to 1: how likely a word must be")
                divergence = gradio.Radio(
                    list(get_args(Divergence)), value="ag", label="divergence"
                )
        start = gradio.Button("Describe", variant="primary")
        status = gradio.HTML()
        with gradio.Row():
            greedy = gradio.HTML(min_height=80)
            refined = gradio.HTML(min_height=80)
        picture, table = gradio.HTML(), gradio.HTML()

        def describe(*asked: Any) -> Iterator[tuple[str, ...]]:
            yield from answer(describer, scenes, *asked)

        start.click(
            describe,
            [upload, scene, layers, alpha, divergence],
            [status, greedy, refined, picture, table],
            concurrency_limit=1,
            show_progress="hidden",
            api_visibility="private",
        )
    return app


def answer(
    describer: Speaker,
    scenes: dict[str, Path],
    upload: str | None,
    scene: str | None,
    layers: str,
    alpha: float | None,
    divergence: str,
) -> Iterator[Shown]:
    """What the page shows of one request, again and again until it is done.

    A failure is shown and ends this request only.
    """
    try:
        opened, name = _image(scenes, upload, scene)
        config = _config(layers, alpha, divergence)
        describer.check(config)
        yield from _describe(describer, opened, name, config)
    except (CommandError, EvaluationError) as error:
        yield Shown(status=_alert(str(error)))
    except Exception:
        _LOG.exception("a request failed")
        yield Shown(status=_alert("This failed; the server's log tells why. Try another image."))


def _image(scenes: dict[str, Path], upload: str | None, scene: str | None) -> tuple[Opened, str]:
    if upload:
        name = Path(upload).name
        try:
            return open_image(upload, MOST_PIXELS), name
        except ImageError as error:
            raise ImageError(str(error).replace(upload, name)) from error
    if scene in scenes:
        return open_image(str(scenes[scene]), MOST_PIXELS), scene
    raise CommandError("choose an image: upload one, or take an example")


def _config(layers: str, alpha: float | None, divergence: str) -> ReVisiTConfig:
    try:
        return ReVisiTConfig(
            layers=read_layers(layers or ""),  # type: ignore[arg-type]
            alpha=alpha,  # type: ignore[arg-type]
            divergence=divergence,  # type: ignore[arg-type]
        )
    except ValueError as error:
        raise CommandError(str(error)) from error


def _describe(
    describer: Speaker, opened: Opened, name: str, config: ReVisiTConfig
) -> Iterator[Shown]:
    """Both descriptions at once, each in a thread of its own."""
    heard: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
    gone = threading.Event()

    def speak(column: int, chosen: ReVisiTConfig | None) -> None:
        def so_far(words: list[Word]) -> None:
            if gone.is_set():
                raise _Cancelled
            heard.put((column, words))

        try:
            said = describer.describe(
                opened.image,
                chosen,
                max_new_tokens=MOST_TOKENS,
                max_seconds=MOST_SECONDS,
                heard=so_far,
            )
            heard.put((column, said))
        except BaseException as error:
            heard.put((column, error))

    threads = [
        threading.Thread(target=speak, args=each, daemon=True) for each in ((0, None), (1, config))
    ]
    for thread in threads:
        thread.start()
    try:
        yield from _listen(describer, opened, name, heard)
    finally:
        gone.set()
        for thread in threads:
            thread.join()


def _listen(
    describer: Speaker, opened: Opened, name: str, heard: "queue.SimpleQueue[tuple[int, Any]]"
) -> Iterator[Shown]:
    columns = [_column("Greedy decoding", []), _column("ReVisiT", [])]
    said: dict[int, Said] = {}
    yield Shown(_status("Describing …"), *columns)
    while len(said) < len(columns):
        column, told = heard.get()
        if isinstance(told, BaseException):
            raise told
        words = told if isinstance(told, list) else told.words
        columns[column] = _column(("Greedy decoding", "ReVisiT")[column], words)
        if not isinstance(told, list):
            said[column] = told
        yield Shown(_status("Describing …"), *columns)
    notes = list(opened.notes)
    if any(each.stopped for each in said.values()):
        notes.append("a description was cut at the limit of length or time")
    drawn = describer.picture(name, opened.image, said[1], "; ".join(notes))
    if drawn is None:
        notes.append("which patch each word came from, a server does not tell")
        yield Shown(_status("Done."), columns[0], columns[1], _status("; ".join(notes)))
        return
    yield Shown(_status("Done."), columns[0], columns[1], _frame(drawn), _table(drawn))


def _served(origin: str) -> str:
    return (
        f"The model runs on the server {origin}, which decides about layers. It tells the words "
        "and nothing of how they were chosen: neither patches nor what ReVisiT changed. One that "
        "lacks ReVisiT decodes both greedily."
    )


def _status(text: str) -> str:
    return f'<p role="status">{escape(text)}</p>'


def _alert(text: str) -> str:
    return f'<p role="alert" class="alert">{escape(text)}</p>'


def _column(title: str, words: Sequence[Word]) -> str:
    text = "".join(f"{word.before}{_marked(word)}" for word in words)
    return f'<section class="said"><h2>{title}</h2><p>{text}</p></section>'


def _marked(word: Word) -> str:
    text = escape(word.text)
    return f'<mark title="changed by ReVisiT">{text}</mark>' if word.changed else text


def _frame(picture: Picture) -> str:
    """The picture's own page; it can reach neither this one nor the network."""
    inner = escape(page([picture], "What each word of ReVisiT saw"), quote=True)
    return (
        '<iframe class="picture" sandbox="allow-scripts" title="What each word saw" '
        f'srcdoc="{inner}"></iframe>'
    )


def _table(picture: Picture) -> str:
    head = "".join(f'<th scope="col">{each}</th>' for each in _HEADS)
    rows = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in _row(word, number))}</tr>"
        for word in picture.words
        for number in range(len(word.tokens))
    )
    return (
        '<details><summary>The trace as a table</summary><div class="scroll" tabindex="0" '
        f'role="region" aria-label="The trace"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div></details>"
    )


def _row(word: Word, number: int) -> list[str]:
    token = word.tokens[number]
    step = token.step
    if step is None:
        return [word.text, token.text.strip(), *[""] * 7]
    row, column = ("", "") if step.patch is None else (str(each + 1) for each in step.patch[1:])
    return [
        word.text,
        token.text.strip(),
        row,
        column,
        str(step.layer),
        "any patch" if trivial(token) else f"{fit(token):.2f}",
        f"{step.divergence:.3g}",
        str(step.candidates),
        (token.instead or "").strip(),
    ]


_STYLE = """
.or { color:var(--body-text-color-subdued) !important; }
.said h2 { font-size:1.05rem; margin:0 0 .25rem; }
.said p { font-size:1.1rem; line-height:1.6; white-space:pre-wrap; margin:0; }
.said mark { background:#ffd400; color:#1d2330; padding:0 .1em; text-decoration:underline; }
.alert { border-left:4px solid #b91c1c; padding:.25rem .75rem; }
.picture { width:100%; height:44rem; border:0; border-radius:.5rem; }
.scroll { overflow:auto; max-height:24rem; }
.scroll table { border-collapse:collapse; width:100%; }
.scroll th, .scroll td { text-align:left; padding:.15rem .5rem; border-bottom:1px solid #8888; }
summary { cursor:pointer; padding:.5rem 0; }
"""
