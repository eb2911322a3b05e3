"""lmms-eval's Qwen2.5-VL in float32.

lmms-eval loads every checkpoint in bfloat16. There the demo's model has ties between phrases, which
padding decides, so that batches cannot be compared.
"""

from lmms_eval.models import MODEL_REGISTRY_V2
from lmms_eval.models.chat.qwen2_5_vl import Qwen2_5_VL
from lmms_eval.models.registry_v2 import ModelManifest


class Float32(Qwen2_5_VL):
    def __init__(self, **arguments):
        super().__init__(**arguments)
        self._model.float()


def register():
    """Make it `--model qwen2_5_vl_float32`."""
    manifest = ModelManifest("qwen2_5_vl_float32", chat_class_path="float32.Float32")
    MODEL_REGISTRY_V2.register_manifest(manifest, overwrite=True)
