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

Many vision states ("all": 120 MB a row for Qwen2.5-VL). A step with one new token reads all vision
states of its prompt, and a step with 64 reads them once too. Two ways to need that less often:

- Columns of likely tokens during prefill. 3,000 of them take a product of 0.4 PFLOP and 100 MB a
  prompt before the first token; which tokens are likely is a guess, and a single one that was not
  among them has the price of a tile all the same.
- Tokens just below the bound fill the tile of a product that a step needs anyway. Their cost is the
  columns that are written, 2 MB; they follow the model's distribution, and they stop where the
  next one would push a column out.

The second is taken: it needs no list of tokens and adds nothing to prefill. Neither was measured.
"""

from revisit.core.kernels.check import available

__all__ = ["available"]
