"""Run GLM-4.7-Flash on an ordinary CPU, from Python."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from glmrun.engine.model import Model
    from glmrun.gguf.architecture import ModelFile
    from glmrun.tensors.split import Converting

__version__ = "0.1.0"


def load(
    path: "str | os.PathLike | ModelFile | None" = None,
    n_ctx: int | None = None,
    n_threads: int | None = None,
    kv_type: str | None = None,
    converting: "Converting | None" = None,
    draft: str = "auto",
    draft_exact: bool = False,
) -> "Model":
    """Open a GGUF file of GLM-4.7-Flash, ready to talk.

    path         a GGUF file, or what open_model_file() made of it; None is nano, the small model that comes along
    n_ctx        positions of context, by default the model's limit or 32,768, whichever is less
    n_threads    by default every core that the process may use; never more
    kv_type      of the cached rows: f16, q8_0 (half the memory) or f32; by default f16, or f32 where no matrix is quantized
    converting   called as (lines for the user, bytes made, of how many) before and while keys that a file has transposed are copied
    draft        tokens guessed ahead and verified together: off, ngram (copies, wherever the text repeats itself), mtp or mtp:1 to
                 mtp:3 (so many by the file's next-token-prediction layer), or auto: either, where measured costs say that it pays
    draft_exact  only drafts of which every token's numbers are bit for bit those without drafts; also where a seed is given
    Raises quant.errors.UserError, one line for the user, if there is no such file or it is not a model that glmrun runs.
    """
    from glmrun.warmup import compile_all

    compile_all()
    from glmrun.engine.model import Model

    if path is None:
        from glmrun.store.nano import nano_path

        path = nano_path()
    return Model(path, n_ctx, n_threads, kv_type, converting, draft, draft_exact)
