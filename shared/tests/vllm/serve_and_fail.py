"""vLLM's server, in whose worker a step of ReVisiT fails that has a request with the seed 404."""

import runpy

SEED = 404

if __name__ in ("__main__", "__mp_main__"):  # the server, and the processes that it starts
    from revisit.vllm import serving

    original = serving.refine

    def refine(logits, sessions):
        if any(session is not None and session.config.seed == SEED for session in sessions):
            raise MemoryError("no room")
        return original(logits, sessions)

    serving.refine = refine

if __name__ == "__main__":
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__")
