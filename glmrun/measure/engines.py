"""The model in programs for GPUs: vLLM, SGLang, llama-server, with the flags that its makers name for it."""

from quant.config import FLASH

ADDRESS, SERVED_NAME = "http://127.0.0.1:8000/v1", "glm-4.7-flash"
CHECKPOINT_BYTES = 62.456e9  # with the prediction layer
# A matrix is cut between GPUs along its heads, or along the width of its experts; both must come out even.
_TOGETHER = [n for n in (8, 4, 2, 1) if FLASH.num_attention_heads % n == 0 and FLASH.moe_intermediate_size % n == 0]


def shares(gpus: int) -> tuple[int, int]:
    """(GPUs that share one copy of the model, copies): all of them are used."""
    together = next(n for n in _TOGETHER if gpus % n == 0)
    return together, gpus // together


def command(engine: str, source: str, gpus: int | None, n_ctx: int | None) -> list[str]:
    """The words of the command that starts the model.

    source   vllm and sglang: the checkpoint's folder or its name on the hub; llama-server: a GGUF file or a quantization's name
    gpus     how many it may use; None: one, and with llama-server none
    """
    port = ["--host", "127.0.0.1", "--port", "8000"]
    together, copies = shares(max(1, gpus or 1))
    context = [] if n_ctx is None else [str(n_ctx)]
    if engine == "vllm":
        return [
            "vllm", "serve", source, "--served-model-name", SERVED_NAME, *port, "--tensor-parallel-size", str(together),
            *(["--data-parallel-size", str(copies)] if copies > 1 else []), *(["--max-model-len", *context] if context else []),
            "--speculative-config.method", "mtp", "--speculative-config.num_speculative_tokens", "1",
            "--tool-call-parser", "glm47", "--reasoning-parser", "glm45", "--enable-auto-tool-choice",
        ]  # fmt: skip
    if engine == "sglang":
        return [
            "python3", "-m", "sglang.launch_server", "--model-path", source, "--served-model-name", SERVED_NAME, *port,
            "--tp-size", str(together), *(["--dp-size", str(copies)] if copies > 1 else []),
            *(["--context-length", *context] if context else []), "--tool-call-parser", "glm47", "--reasoning-parser", "glm45",
            "--speculative-algorithm", "EAGLE", "--speculative-num-steps", "3", "--speculative-eagle-topk", "1",
            "--speculative-num-draft-tokens", "4",
        ]  # fmt: skip
    if engine == "llama-server":
        model = ["-m", source] if source.endswith(".gguf") else ["-hf", f"ggml-org/GLM-4.7-Flash-GGUF:{source}"]
        return [
            "llama-server", *model, "--alias", SERVED_NAME, *port, "-c", *(context or ["32768"]), "-ngl", "99" if gpus else "0",
            "--jinja", "--temp", "1.0", "--top-p", "0.95", "--min-p", "0.01",
        ]  # fmt: skip
    raise ValueError(f"{engine!r} is not one of vllm, sglang, llama-server")


def needs(engine: str, gpus: int | None) -> str:
    """What the command takes for granted, in a line."""
    if engine == "llama-server":
        return "llama-server divides the layers among the GPUs that it finds" if gpus else "llama-server runs it on the processor"
    together, copies = shares(max(1, gpus or 1))
    size = f"each GPU holds {CHECKPOINT_BYTES / together / 1e9:.1f} GB of weights, and the cache"
    return size if copies == 1 else f"{size}; {copies} copies of the model answer side by side"
