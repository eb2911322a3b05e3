"""What runs a model: Transformers or vLLM in this process, or a server."""
