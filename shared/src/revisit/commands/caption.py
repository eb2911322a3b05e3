"""`revisit caption IMAGE...`: describe images, and say which patch each word came from."""

import json as to_json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TextIO

from cyclopts import Parameter

from revisit.commands import CommandError, check_folder
from revisit.commands.flags import FLATTENED, decoder_flags, to_config
from revisit.config import DecoderConfig, ReVisiTConfig

if TYPE_CHECKING:  # loaded once the flags are checked
    from revisit.commands.describe import Describer
    from revisit.commands.engines.described import Said
    from revisit.evaluation.pictures.picture import Picture
    from revisit.evaluation.pictures.words import Word

    Settings = Any
else:
    Settings = decoder_flags(["revisit"])


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
    report: Annotated[
        Path | None,
        Parameter(
            help="an .html to look at: point at a word, see its patch; of one image also a .png"
        ),
    ] = None,
    json: Annotated[bool, Parameter(help="print a JSON object for each image, one a line")] = False,
) -> int:
    """Describe images. Words are written as they come; behind a word that ReVisiT changed stands
    what greedy decoding would have said."""

    if not images:
        raise CommandError("name an image file, or several")
    try:
        config = to_config(decoder, settings)
    except ValueError as error:
        raise CommandError(str(error)) from error
    _check_report(report, len(images))
    readable = [name for name in images if _readable(name)]
    if not readable:
        return 1
    described = _describe(readable, model, question, config, report, json)
    return 0 if described == len(images) else 1


def _check_report(report: Path | None, images: int) -> None:
    from revisit.evaluation.pictures.plots import check_matplotlib

    if report is None:
        return
    if report.suffix.lower() not in (".html", ".png"):
        raise CommandError(f"--report {report}: its name must end in .html (or .png)")
    if report.suffix.lower() == ".png":
        if images > 1:
            raise CommandError(f"--report {report}: a PNG shows one image; for {images}, an .html")
        check_matplotlib("--report: a PNG")
    check_folder("--report", report)


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
    config: DecoderConfig | None,
    report: Path | None,
    json: bool,
) -> int:
    """Print the descriptions and write the report; how many images could be described."""
    import transformers

    from revisit.commands.describe import Describer, demo_model
    from revisit.commands.engines.described import QUESTION
    from revisit.evaluation.pictures.html import write_html
    from revisit.evaluation.pictures.png import write_png

    assert config is None or isinstance(config, ReVisiTConfig)
    transformers.logging.set_verbosity_error()
    describer = Describer(model or demo_model())
    if config is not None:
        describer.check(config)
    pictures: list[Picture] = []
    described = 0
    for name in names:
        try:
            picture = _caption(describer, name, question or QUESTION, config, report, json)
            pictures += [] if picture is None else [picture]
            described += 1
        except CommandError as error:
            print(error, file=sys.stderr)
    if report is not None and pictures:
        if report.suffix.lower() == ".png":
            write_png(pictures[0], report)
        else:
            write_html(pictures, report)
        print(f"written: {report}", file=sys.stderr)
    return described


def _caption(
    describer: "Describer",
    name: str,
    question: str,
    config: ReVisiTConfig | None,
    report: Path | None,
    json: bool,
) -> "Picture | None":
    from revisit.evaluation.images import open_image

    image, notes = open_image(name)
    for note in notes:
        print(f"{name}: {note}", file=sys.stderr)
    if json:
        said = describer.describe(image, config, question=question)
        print(to_json.dumps(_record(name, question, said)), flush=True)
    else:
        print(f"{name}:", end="", flush=True)
        writer = Writer(sys.stdout)
        try:
            said = describer.describe(image, config, question=question, heard=writer.so_far)
            writer.write(said.words)
        finally:
            print(flush=True)
    if said.stopped:
        notes.append(f"cut after {said.tokens} tokens")
    if report is None:
        return None
    return describer.picture(Path(name).name, image, said, "; ".join(notes))


def _record(name: str, question: str, said: "Said") -> dict[str, Any]:
    """What `--json` prints of an image: its words, and the first token's step of each."""
    words = []
    for word in said.words:
        step = word.tokens[0].step if word.tokens else None
        seen = {} if step is None else {"layer": step.layer, "patch": step.patch}
        words.append({"text": word.text, "greedy": _instead(word)} | seen)
    return {"image": name, "question": question, "text": said.text, "words": words}


def _instead(word: "Word") -> str | None:
    """What greedy decoding would have said; None where that is the same."""
    changed = [token.instead.strip() for token in word.tokens if token.instead is not None]
    return " ... ".join(changed) if changed else None


class Writer:
    """Writes words once they are whole, those that ReVisiT changed with what greedy had said."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.written = 0
        self.bold = stream.isatty() and "NO_COLOR" not in os.environ

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
        instead = _instead(word)
        if instead is None:
            return word.text
        text = f"\033[1;4m{word.text}\033[0m" if self.bold else word.text
        return f"{text} [greedy: {instead}]"
