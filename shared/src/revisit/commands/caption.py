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
    Written = Callable[[Describer, str, Image, str, Configs], dict[str, Description]]
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
    written = _write_as_json if json else _write_beside if compare else _write
    pictures = _describe(readable, model, question, configs, written)
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
    written: "Written",
) -> "list[Picture]":
    """Write the descriptions; the images that could be described, with their captions."""
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
    pictures = []
    for name in names:
        image, notes = open_image(name)
        for note in notes:
            print(f"{name}: {note}", file=sys.stderr)
        try:
            said = written(describer, name, image, question or QUESTION, configs)
        except CommandError as error:
            print(error, file=sys.stderr)
            continue
        cut = [each.tokens for each in said.values() if each.stopped]
        notes += [f"cut after {tokens} tokens" for tokens in cut]
        title, note = Path(name).name, "; ".join(notes)
        pictures.append(picture(describer.boxes, title, image, said, note=note))
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


def _write(
    describer: "Describer", name: str, image: "Image", question: str, configs: "Configs"
) -> "dict[str, Description]":
    """Describe an image, and write the last description as it comes."""
    made = {}
    for at, (decoder, config) in enumerate(configs.items(), 1):
        if at < len(configs):
            made[decoder] = describer.describe(image, config, question=question)
            continue
        print(f"{name}:", end="", flush=True)
        writer = Writer(sys.stdout)
        try:
            made[decoder] = describer.describe(
                image, config, question=question, on_words=writer.so_far
            )
            writer.write(made[decoder].words)
        finally:
            print(flush=True)
    return made


def _write_as_json(
    describer: "Describer", name: str, image: "Image", question: str, configs: "Configs"
) -> "dict[str, Description]":
    """Describe an image, and write a JSON object of it: the words, the first token's step of each,
    and what greedy decoding says where that was asked for."""
    made = {
        decoder: describer.describe(image, config, question=question)
        for decoder, config in configs.items()
    }
    *others, said = made.values()
    words = []
    for word in said.words:
        step = word.tokens[0].step if word.tokens else None
        seen = {} if step is None else {"layer": step.layer, "patch": step.patch}
        words.append({"text": word.text, "greedy": word.instead or None} | seen)
    record = {"image": name, "question": question, "text": said.text, "words": words}
    if others:
        record["greedy"] = others[0].text
    print(to_json.dumps(record), flush=True)
    return made


def _write_beside(
    describer: "Describer", name: str, image: "Image", question: str, configs: "Configs"
) -> "dict[str, Description]":
    """Describe an image by both decoders, and write both side by side."""
    made = {
        decoder: describer.describe(image, config, question=question)
        for decoder, config in configs.items()
    }
    width = shutil.get_terminal_size((100, 24)).columns
    print(f"{name}:\n{side_by_side(made, width, _coloured(sys.stdout))}", flush=True)
    return made


def side_by_side(made: "Mapping[str, Description]", width: int, coloured: bool) -> str:
    """Two descriptions in columns; words that the other lacks there are coloured, or bracketed."""
    first, second = texts = [said.text.split() for said in made.values()]
    blocks = SequenceMatcher(None, first, second, autojunk=False).get_matching_blocks()
    kept = [{each[side] + at for each in blocks for at in range(each.size)} for side in (0, 1)]
    column = max(20, (width - 3) // 2)
    columns = []
    for name, words, same, colour in zip(made, texts, kept, (_RED, _GREEN), strict=True):
        begin, end = (colour, _PLAIN) if coloured else ("[", "]")
        marked = [word if at in same else f"{begin}{word}{end}" for at, word in enumerate(words)]
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
    """Writes words once they are whole, before those that ReVisiT changed what greedy had said."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.written = 0
        self.coloured = _coloured(stream)

    def so_far(self, words: "Sequence[Word]") -> None:
        """All but the last, which may go on."""
        self.write(words[:-1])

    def write(self, words: "Sequence[Word]") -> None:
        """Those that are not written yet."""
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
