"""The method on tensors; it knows no engine. `step.py` is the room to read first."""
