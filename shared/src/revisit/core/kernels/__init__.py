"""The step of `revisit.core.step` for GPUs: six Triton kernels that nothing waits for.

    from revisit.core.kernels import available

    if available(head):  # else plain PyTorch, `revisit.core.rows`
        from revisit.core.kernels.steps import Steps

- `step_kernels.py` the kernels; `steps.py` memory, prompts and launches; `check.py` the check.
- Triton 3.2 or newer (PyTorch 2.6), a GPU that it compiles for, an `LMHead` with a plain weight of
  float16, bfloat16 or float32. The first time in a process the kernels are compared with `step.py`.
- A prompt keeps the columns of its tokens as far as its memory goes: all V of them, in advance,
  where they fit (LLaVA-1.5 with "last": 37 MB a prompt); what finds no room is multiplied where it
  is read. So V_cons of any size is right, and costs time, never memory.
- A step with one new token reads all vision states of its prompt, and a step with 64 reads them
  once too. So tokens just below the bound fill the tile of a product that a step needs anyway, as
  long as they push no column out: they are likely to be needed soon. (Columns of likely tokens
  during prefill would need a list of them, and take time before the first token. Neither way was
  measured.)
"""

from revisit.core.kernels.check import available

__all__ = ["available"]
