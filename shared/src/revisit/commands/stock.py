"""Any model of a stock Transformers as the evaluation asks it."""

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from PIL import Image

from revisit.commands.captioner import TransformersCaptioner
from revisit.commands.models import chat_inputs, chat_prompt, load_model
from revisit.config import ReVisiTConfig
from revisit.evaluation.flags import chosen_decoder, plain_arguments
from revisit.transformers.checkpoint import check_layers
from revisit.transformers.published import published_layers


class StockCaptioner(TransformersCaptioner):
    """A model that is asked by its own processor and chat template.

    Args:
        args: settled flags (see `revisit.evaluation.answering.Load`).

    Raises:
        ValueError: the model cannot be loaded, or cannot decode so; says what to do.
    """

    def __init__(self, args: Namespace) -> None:
        if args.decoder == "revisit":
            check_layers(args.model_path, args.early_exit_layers)
        model, self.processor = load_model(args.model_path, args.device, args.dtype)
        settings = {
            "prompt": chat_prompt(self.processor, 1, "<question>"),
            "revision": getattr(model.config, "_commit_hash", None),
        }
        super().__init__(model, self.processor, settings)
        self.decode(args)

    def decode(self, args: Namespace) -> None:
        """Decode from now on as these flags say."""
        config = chosen_decoder(args)
        if isinstance(config, ReVisiTConfig):
            config = replace(config, layers=published_layers(self.model, config.layers))
        self.decode_by(config, plain_arguments(args))

    def inputs(self, images: Sequence[Image.Image], questions: Sequence[str]) -> Any:
        """What the model reads of the images and the question about each, a row for each."""
        inputs = chat_inputs(self.processor, [[image] for image in images], questions)
        return inputs.to(self.model.device, self.model.dtype)
