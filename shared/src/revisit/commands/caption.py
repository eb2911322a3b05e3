"""`revisit caption IMAGE...`: describe images, and say which patch each word came from."""

import json as to_json
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from difflib import SequenceMatcher
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TextIO

from cyclopts import Parameter

from revisit.commands import CommandError, check_folder
from revisit.commands.flags import FLATTENED, decoder_flags, to_config
from revisit.config import ReVisiTConfig

if TYPE_CHECKING:  # loaded once the flags are checked
    from PIL.Image import Image

    from revisit.commands.describe import Describer
    from revisit.commands.engines.description import Description
    from revisit.evaluation.pictures.picture import Picture
    from revisit.evaluation.pictures.words import Word

    Settings = Any
    Configs = Mapping[str, ReVisiTConfig | None]
    Descriptions = dict[str, Description]
    Shown = Callable[[str, str, Descriptions], str]
else:
    Settings = decoder_flags(["revisit"])


_RED, _GREEN, _STRUCK, _PLAIN = "\033[31m", "\033[1;32m", "\033[9;2m", "\033[0m"


def caption(
    *images: Annotated[str, Parameter(help="image files; nothing is fetched from a URL")],
    model: Annotated[
        str | None,
        Parameter(
            name=("--model", "--model_path"),
            help="a folder or a hub id (default: the demo's tiny Qwen2.5-VL, in a clone)",
        ),
    ] = None,
    question: Annotated[str | None, Parameter(help="what the model is asked")] = None,
    decoder: Annotated[Literal["greedy", "revisit"], Parameter(help="what decodes")] = "revisit",
    settings: Annotated[Settings, FLATTENED] = Settings(),  # noqa: B008
    compare: Annotated[
        bool, Parameter(help="describe greedily too, and set both side by side")
    ] = False,
    report: Annotated[
        Path | None,
        Parameter(help="an .html to look at: point at a word, see where in the image it fits"),
    ] = None,
    figure: Annotated[
        Path | None,
        Parameter(
            help="a .pdf, .png or .svg of one image: both captions, words numbered in the image"
        ),
    ] = None,
    json: Annotated[bool, Parameter(help="print a JSON object for each image, one a line")] = False,
) -> int:
    """Describe images. Words are written as they come; before a word that ReVisiT changed stands
    what greedy decoding would have said."""

    if not images:
        raise CommandError("name an image file, or several")
    try:
        config = to_config(decoder, settings)
    except ValueError as error:
        raise CommandError(str(error)) from error
    assert config is None or isinstance(config, ReVisiTConfig)
    if config is None and (compare or figure):
        raise CommandError("--compare and --figure show greedy decoding beside --decoder revisit")
    _check_files(report, figure, len(images))
    readable = [name for name in images if _readable(name)]
    if not readable:
        return 1
    from revisit.evaluation.pictures.picture import GREEDY, REVISIT

    configs = {REVISIT if config else GREEDY: config}
    if compare or figure:
        configs = {GREEDY: None, **configs}
    shown = _as_json if json else _as_columns if compare else None
    pictures = _describe(readable, model, question, configs, shown)
    if pictures:
        _draw(pictures, report, figure)
    return 0 if len(pictures) == len(images) else 1


def _check_files(report: Path | None, figure: Path | None, images: int) -> None:
    """Before anything takes time."""
    from revisit.evaluation.pictures.figure import check_figure

    if report is not None:
        if report.suffix.lower() != ".html":
            raise CommandError(f"--report {report}: its name must end in .html; see --figure")
        check_folder("--report", report)
    if figure is not None:
        if images > 1:
            raise CommandError(f"--figure {figure} shows one image; for {images}, --report")
        check_figure(figure)
        check_folder("--figure", figure)


def _readable(name: str) -> bool:
    """Whether it is an image, seen before the model is loaded."""
    from revisit.evaluation.images import ImageError, open_image

    try:
        open_image(name)
    except ImageError as error:
        print(error, file=sys.stderr)
        return False
    return True


def _describe(
    names: Sequence[str],
    model: str | None,
    question: str | None,
    configs: "Configs",
    shown: "Shown | None",
) -> "list[Picture]":
    """Describe images, and print the descriptions; returns the images that could be described.

    Args:
        configs: the decoders by their names.
        shown: what is printed of an image's name, the question and the descriptions; None prints
            the last description word by word.
    """
    import transformers

    from revisit.commands.describe import Describer, demo_model
    from revisit.commands.engines.description import QUESTION, picture
    from revisit.evaluation.images import open_image

    transformers.logging.set_verbosity_error()
    describer = Describer(model or demo_model())
    for config in configs.values():
        if config is not None:
            describer.check(config)
    if describer.warning and not all(_is_drawn(name, describer.name) for name in names):
        print(describer.warning, file=sys.stderr)
    question = question or QUESTION
    pictures = []
    for name in names:
        image, notes = open_image(name)
        for note in notes:
            print(f"{name}: {note}", file=sys.stderr)
        try:
            if shown is None:
                descriptions = _stream(describer, name, image, question, configs)
            else:
                descriptions = {
                    decoder: describer.describe(image, config, question=question)
                    for decoder, config in configs.items()
                }
                print(shown(name, question, descriptions), flush=True)
        except CommandError as error:
            print(error, file=sys.stderr)
            continue
        cut = [each.tokens for each in descriptions.values() if each.stopped]
        notes += [f"cut after {tokens} tokens" for tokens in cut]
        title, note = Path(name).name, "; ".join(notes)
        pictures.append(picture(describer.boxes, title, image, descriptions, note=note))
    return pictures


def _is_drawn(name: str, model: str) -> bool:
    """Whether the image is one of the demo's, beside the demo's model."""
    return Path(name).resolve().is_relative_to(Path(model).resolve().parent)


def _draw(pictures: "Sequence[Picture]", report: Path | None, figure: Path | None) -> None:
    from revisit.evaluation.files import write_whole
    from revisit.evaluation.pictures.figure import write_figure
    from revisit.evaluation.pictures.picture import page

    if report is not None:
        write_whole(report, page(pictures).encode())
    if figure is not None:
        write_figure(pictures, figure)
    for file in filter(None, (report, figure)):
        print(f"written: {file}", file=sys.stderr)


def _stream(
    describer: "Describer", name: str, image: "Image", question: str, configs: "Configs"
) -> "Descriptions":
    """Describe an image, and print the last description word by word."""
    *others, (last, config) = configs.items()
    descriptions = {
        decoder: describer.describe(image, other, question=question) for decoder, other in others
    }
    print(f"{name}:", end="", flush=True)
    writer = Writer(sys.stdout)
    try:
        description = describer.describe(
            image, config, question=question, on_words=writer.write_all_but_last
        )
        writer.write(description.words)
    finally:
        print(flush=True)
    return {**descriptions, last: description}


def _as_json(name: str, question: str, descriptions: "Descriptions") -> str:
    """A JSON object of the last description: its words, the first token's step of each, and what
    greedy decoding says where that was asked for."""
    *others, description = descriptions.values()
    words = []
    for word in description.words:
        step = word.tokens[0].step if word.tokens else None
        seen = {} if step is None else {"layer": step.layer, "patch": step.patch}
        words.append({"text": word.text, "greedy": word.instead or None} | seen)
    record = {"image": name, "question": question, "text": description.text, "words": words}
    if others:
        record["greedy"] = others[0].text
    return to_json.dumps(record)


def _as_columns(name: str, question: str, descriptions: "Descriptions") -> str:
    width = shutil.get_terminal_size((100, 24)).columns
    return f"{name}:\n{side_by_side(descriptions, width, _coloured(sys.stdout))}"


def side_by_side(descriptions: "Descriptions", width: int, coloured: bool) -> str:
    """Two descriptions in columns; words that the other lacks there are coloured, or bracketed."""
    first, second = texts = [description.text.split() for description in descriptions.values()]
    blocks = SequenceMatcher(None, first, second, autojunk=False).get_matching_blocks()
    in_both = [
        {block[side] + index for block in blocks for index in range(block.size)} for side in (0, 1)
    ]
    column = max(20, (width - 3) // 2)
    columns = []
    for name, words, same, colour in zip(descriptions, texts, in_both, (_RED, _GREEN), strict=True):
        begin, end = (colour, _PLAIN) if coloured else ("[", "]")
        marked = [word if n in same else f"{begin}{word}{end}" for n, word in enumerate(words)]
        columns.append([name, *_lines(marked, column)])
    rows = zip_longest(*columns, fillvalue="")
    return "\n".join(
        f"{left}{' ' * (column - _length(left))} | {right}".rstrip() for left, right in rows
    )


def _lines(words: Sequence[str], width: int) -> list[str]:
    lines = [""]
    for word in words:
        if lines[-1] and _length(lines[-1]) + 1 + _length(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".lstrip(" ")
    return lines


def _length(text: str) -> int:
    """How much room it takes on a terminal."""
    return len(re.sub(r"\033\[[0-9;]*m", "", text))


def _coloured(stream: TextIO) -> bool:
    return stream.isatty() and "NO_COLOR" not in os.environ


class Writer:
    """Writes words once they are whole; before a changed word stands what greedy decoding would
    have chosen."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.written = 0
        self.coloured = _coloured(stream)

    def write_all_but_last(self, words: "Sequence[Word]") -> None:
        """The last word may go on."""
        self.write(words[:-1])

    def write(self, words: "Sequence[Word]") -> None:
        """Write the words that are not written yet."""
        for word in words[self.written :]:
            before = word.before or ("" if self.written else " ")
            self.stream.write(before + self._marked(word))
        self.written = max(self.written, len(words))
        self.stream.flush()

    def _marked(self, word: "Word") -> str:
        from revisit.evaluation.pictures.picture import replaced

        instead = replaced(word)
        if not instead:
            return word.text
        if self.coloured:
            return f"{_STRUCK}{instead}{_PLAIN} {_GREEN}{word.text}{_PLAIN}"
        return f"[greedy: {instead}] {word.text}"
