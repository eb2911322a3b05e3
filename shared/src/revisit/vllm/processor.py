"""The logits processor that vLLM calls, for both of its model runners."""

from typing import Any

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import LogitsProcessor as LogitsProcessorV1
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as LogitsProcessorV2

from revisit.vllm.admission import asks, check_engine
from revisit.vllm.serving import Serving
from revisit.vllm.wrapping import installed


class ReVisiT(LogitsProcessorV1, LogitsProcessorV2):  # type: ignore[misc]
    """Refines the rows of requests that ask for ReVisiT.

    Attributes:
        serving: the requests of this worker; None until the model is loaded.
    """

    def __init__(self, vllm_config: Any, *_: Any) -> None:
        """Raises ValueError where the engine cannot serve ReVisiT."""
        if not installed():
            raise ValueError(
                "vLLM did not load ReVisiT's plugin: install the package revisit-decoding, and "
                "name 'revisit' in VLLM_PLUGINS where that is set"
            )
        check_engine(vllm_config)
        self.serving: Serving | None = None

    def is_argmax_invariant(self) -> bool:
        """V1: it changes greedy decoding too."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """V1: which request a row is of is read from the runner."""

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """V2: whether the request asks for it."""
        return asks(sampling_params)

    @torch.inference_mode()
    def apply(self, logits: Tensor, ctx: Any = None) -> Tensor:
        """Refined logits (rows, V) float32; rows of requests that do not ask stay as they are."""
        return logits if self.serving is None else self.serving.refine(logits, ctx)
