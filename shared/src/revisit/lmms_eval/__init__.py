"""lmms-eval with ReVisiT or another decoder: `python -m revisit.lmms_eval`, a launcher.

`settings.py` takes the decoder out of the model args, `join.py` enables it on the model that
lmms-eval built, `launch.py` runs the command line of lmms-eval and checks what came of it.
"""
