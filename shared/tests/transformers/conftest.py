"""The forks' releases lack most families: what is tried on tiny ones is left out there."""

import inspect

from transformers import GenerationMixin

OF_FAMILIES = [
    *("test_check.py", "test_decoders.py", "test_families.py"),
    *("test_matrix.py", "test_places.py", "test_wrong_parts.py"),
]
newer = "custom_generate" in inspect.signature(GenerationMixin.generate).parameters
collect_ignore = [] if newer else OF_FAMILIES
