"""lmms-eval with ReVisiT or another decoder: `python -m revisit.lmms_eval`, a launcher.

`settings.py` takes the decoder out of the model args, `built.py` enables it on the model that
lmms-eval built, `launch.py` runs lmms-eval's own command line and looks at what came of it.
"""
