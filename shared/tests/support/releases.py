"""Which Transformers the tests run on."""

import transformers

RELEASE = tuple(map(int, transformers.__version__.split(".")[:2]))
