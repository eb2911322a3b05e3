"""`revisit-caption IMAGE [...]`: describe images, and tell which patch each word came from."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, get_args

from revisit.commands import CommandError
from revisit.config import Divergence, NamedLayers, ReVisiTConfig
from revisit.evaluation import EvaluationError
from revisit.evaluation.images import ImageError, open_image
from revisit.evaluation.pictures.picture import Picture
from revisit.evaluation.pictures.plots import check_matplotlib
from revisit.evaluation.pictures.words import Word

if TYPE_CHECKING:  # loaded once the arguments are checked
    from revisit.commands.describe import Describer


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 all images were described, 1 some were not, 2 bad arguments."""
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        config = _config(args)
        _check_report(args.report, len(args.images))
        return _run(args, config)
    except (CommandError, EvaluationError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def parse_layers(text: str) -> str | list[int]:
    """The layers that "last" or "0,2,4" names; `ReVisiTConfig` says what is wrong with others."""
    words = text.replace(",", " ").split()
    if words and all(word.isdecimal() for word in words):
        return [int(word) for word in words]
    return text.strip()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="revisit-caption",
        description="Describe images. Words are written as they come; behind a word that ReVisiT "
        "changed stands what greedy decoding would have said.",
    )
    default = " (default: %(default)s)"
    add = parser.add_argument
    add("images", nargs="+", metavar="IMAGE", help="an image file; nothing is fetched from a URL")
    add("--model", help="a folder or a hub id (default: the demo's tiny Qwen2.5-VL, in a clone)")
    add("--decoder", choices=["greedy", "revisit"], default="revisit", help="how" + default)
    add(
        "--layers",
        default="last",
        help=f"{', '.join(get_args(NamedLayers))}, or indices as 0,2,4" + default,
    )
    add("--alpha", type=float, default=1e-5, help="in [0, 1]: how likely a word must be" + default)
    add("--divergence", choices=get_args(Divergence), default="ag", help="which" + default)
    add(
        "--report",
        type=Path,
        metavar="FILE",
        help="an .html to look at: point at a word, see its patch; of one image also a .png",
    )
    return parser


def _config(args: argparse.Namespace) -> ReVisiTConfig | None:
    if args.decoder == "greedy":
        return None
    try:
        return ReVisiTConfig(
            layers=parse_layers(args.layers),  # type: ignore[arg-type]
            alpha=args.alpha,
            divergence=args.divergence,
        )
    except ValueError as error:
        raise CommandError(f"--layers, --alpha: {error}") from error


def _check_report(report: Path | None, images: int) -> None:
    """Before anything takes time."""
    if report is None:
        return
    if report.suffix.lower() not in (".html", ".png"):
        raise CommandError(f"--report {report}: its name must end in .html (or .png)")
    if report.suffix.lower() == ".png":
        if images > 1:
            raise CommandError(f"--report {report}: a PNG shows one image; for {images}, an .html")
        check_matplotlib("--report: a PNG")
    if not report.resolve().parent.is_dir():
        raise CommandError(f"--report {report}: there is no folder {report.resolve().parent}")


def _run(args: argparse.Namespace, config: ReVisiTConfig | None) -> int:
    import transformers

    from revisit.commands.describe import Describer, demo_model
    from revisit.evaluation.pictures.html import write_html
    from revisit.evaluation.pictures.png import write_png

    transformers.logging.set_verbosity_error()
    describer = Describer(args.model or demo_model())
    if config is not None:
        describer.check(config)
    pictures: list[Picture] = []
    failed = 0
    for name in args.images:
        try:
            picture = _caption(describer, name, config, args.report is not None)
            pictures += [] if picture is None else [picture]
        except (CommandError, ImageError) as error:
            failed += 1
            print(error, file=sys.stderr)
    if args.report is not None and pictures:
        if args.report.suffix.lower() == ".png":
            write_png(pictures[0], args.report)
        else:
            write_html(pictures, args.report)
        print(f"written: {args.report}", file=sys.stderr)
    return 1 if failed else 0


def _caption(
    describer: "Describer", name: str, config: ReVisiTConfig | None, drawn: bool
) -> Picture | None:
    image, notes = open_image(name)
    for note in notes:
        print(f"{name}: {note}", file=sys.stderr)
    print(f"{name}:", end="", flush=True)
    writer = Writer(sys.stdout)
    try:
        said = describer.describe(image, config, heard=writer.so_far)
        writer.write(said.words)
    finally:
        print(flush=True)
    if said.stopped:
        notes.append(f"cut after {said.tokens} tokens")
    note = "; ".join(notes)
    return describer.picture(Path(name).name, image, said, note) if drawn else None


class Writer:
    """Writes words once they are whole, those that ReVisiT changed with what greedy had said."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.written = 0
        self.bold = stream.isatty() and "NO_COLOR" not in os.environ

    def so_far(self, words: Sequence[Word]) -> None:
        """All but the last, which may go on."""
        self.write(words[:-1])

    def write(self, words: Sequence[Word]) -> None:
        """Those that are not written yet."""
        for word in words[self.written :]:
            before = word.before or ("" if self.written else " ")
            self.stream.write(before + self._marked(word))
        self.written = max(self.written, len(words))
        self.stream.flush()

    def _marked(self, word: Word) -> str:
        instead = [token.instead.strip() for token in word.tokens if token.instead is not None]
        if not instead:
            return word.text
        text = f"\033[1;4m{word.text}\033[0m" if self.bold else word.text
        return f"{text} [greedy: {' ... '.join(instead)}]"
