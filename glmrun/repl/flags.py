"""What a setting that an error names is called on the command line."""

from quant.errors import UserError

_FLAGS = {
    "n_ctx": "-c",
    "force": "--force",
    "replace": "or add --force to replace it",
    "requantize": "--allow-requantize",
    "reference": "--kl-divergence-base without --kl-divergence",
    "plot": "--plot",
}


def in_words(error: UserError) -> str:
    """An error's line, with the option that would help if there is one."""
    return f"{error} ({_FLAGS[error.setting]})" if error.setting in _FLAGS else str(error)
