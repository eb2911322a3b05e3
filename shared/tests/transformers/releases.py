"""Which Transformers the tests run on."""

import transformers

RELEASE = tuple(map(int, transformers.__version__.split(".")[:2]))

# `generate(custom_generate=...)` takes a function.
CALLABLE = RELEASE >= (4, 56)
