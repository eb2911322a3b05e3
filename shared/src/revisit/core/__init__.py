"""The method on tensors; it knows no engine. `step.py` is the file to read first."""
