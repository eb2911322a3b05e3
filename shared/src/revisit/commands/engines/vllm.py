"""A model in vLLM, in this process, as the evaluation asks it."""

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from PIL import Image

from revisit.commands.engines import requests
from revisit.commands.engines.transformers import chat_prompt
from revisit.config import NamedLayers, ReVisiTConfig
from revisit.evaluation.captioner import Answer, unusable_images
from revisit.evaluation.run import Run
from revisit.transformers.checkpoint import check_files
from revisit.transformers.published import published_layers
from revisit.vllm.admission import PROCESSOR

Images = Sequence[Image.Image | None]


class VllmCaptioner:
    """A model in vLLM that is prompted by its chat template, a whole batch at once.

    Args:
        run: one that `choose.load` let pass.

    Raises:
        OSError: something of the model is missing.
        ValueError: vLLM is not installed, or cannot serve the model; says what to do.
    """

    batch_size = requests.AT_ONCE

    def __init__(self, run: Run) -> None:
        try:
            import vllm
        except ImportError as error:
            raise ValueError(f"vLLM is not installed here ({error}); see docs/vllm.md") from error
        check_files(run.model_path)
        processor = transformers.AutoProcessor.from_pretrained(run.model_path)
        config = transformers.AutoConfig.from_pretrained(run.model_path)
        self.last = config.get_text_config().num_hidden_layers
        self.layers: NamedLayers | Sequence[int] | None = None
        options: dict[str, Any] = {}
        if isinstance(run.decoder, ReVisiTConfig):
            self.layers = published_layers(run.decoder.layers, self.last)
            settings = {"revisit": {"layers": self.layers}}
            options = {"logits_processors": [PROCESSOR], "additional_config": settings}
        try:
            self.llm = vllm.LLM(
                run.model_path,
                dtype=run.place.dtype,
                max_model_len=-1,  # what memory allows
                limit_mm_per_prompt={"image": 1},
                **options,
            )
        except RuntimeError as error:  # the engine's process has printed more
            raise ValueError(str(error)) from error
        self.decode(run)
        self.settings = {
            "engine": f"vLLM {vllm.__version__}",
            "prompt": chat_prompt(processor, 1, "<question>"),
            "revision": getattr(config, "_commit_hash", None),
        }

    def decode(self, run: Run) -> None:
        """Decode from now on as a run says.

        Raises:
            EvaluationError: vLLM cannot.
            ValueError: other layers than those that the engine was started with.
        """
        requests.check(run)
        if isinstance(run.decoder, ReVisiTConfig):
            layers = published_layers(run.decoder.layers, self.last)
            if layers != self.layers:
                raise ValueError(
                    f"vLLM's engine reads the layers {self.layers} from its start on, and cannot "
                    f"read {layers} besides: run them by a command of their own"
                )
        # As in Transformers, what the checkpoint's generation_config.json says holds.
        penalty = self.llm.get_default_sampling_params().repetition_penalty
        self.sampling = {"repetition_penalty": penalty, **requests.sampling(run)}
        self.run = run

    def answer(self, images: Images, questions: Sequence[str]) -> list[Answer]:
        """The answer to each question about the image beside it.

        Raises:
            RuntimeError: a request failed, and not for its image; says why.
            UnusableImages: some images cannot be read, or fail by themselves.
        """
        from vllm import SamplingParams

        params = []
        for seed in torch.randint(2**31, (len(images),)).tolist():
            settings = requests.settings(self.run, seed)
            extra = None if settings is None else {"revisit": settings}
            params.append(SamplingParams(**self.sampling, seed=seed, extra_args=extra))
        try:
            outputs = self._chat(images, questions, params)
        except Exception as error:  # before anything was decoded
            shortest = SamplingParams(max_tokens=1)

            def read(row: int, image: Image.Image) -> None:
                self._chat([image], [questions[row]], shortest)

            raise unusable_images(error, images, read) from error
        best = [each.outputs[0] for each in outputs]
        failed = {row: failure for row, each in enumerate(best) if (failure := _failure(each))}

        def ask_again(row: int, image: Image.Image) -> None:
            if row in failed or image is not images[row]:
                (again,) = self._chat([image], [questions[row]], [params[row]])
                if failure := _failure(again.outputs[0]):
                    raise failure

        if failed:
            first = next(iter(failed.values()))
            raise unusable_images(first, images, ask_again) from first
        return [Answer(each.text.strip(), len(each.token_ids)) for each in best]

    def _chat(self, images: Images, questions: Sequence[str], params: Any) -> Any:
        chats: list[Any] = []
        for image, question in zip(images, questions, strict=True):
            content: list[dict[str, Any]] = [{"type": "text", "text": question}]
            if image is not None:
                content.insert(0, {"type": "image_pil", "image_pil": image})
            chats.append([{"role": "user", "content": content}])
        return self.llm.chat(chats, params, use_tqdm=False)


def _failure(output: Any) -> RuntimeError | None:
    """Why a request's output is cut off; None where it is whole."""
    if output.finish_reason in requests.WHOLE:
        return None
    reason = output.stop_reason or "its log says why"
    return RuntimeError(f"vLLM ended a request by {output.finish_reason!r}: {reason}")
