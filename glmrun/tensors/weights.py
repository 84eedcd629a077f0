"""From a validated GGUF file to the table of addresses that the kernels read; what they can read stays where it is mapped."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from glmrun.gguf.file import GGUFFile, TensorInfo
from glmrun.kernels.attention.cached_row import row_bytes
from glmrun.kernels.attention.columns import block_bytes
from glmrun.kernels.layout import CODES, EITHER, F16, F32, FLOATS, LAYER, MODEL, Q8_0, TWO_TERMS, WEIGHT
from glmrun.tensors.split import DRAFT_HEAD, Converting, first_rows, tensors_to_run
from quant.config import Config, of_trunk, read_per_token
from quant.errors import UserError
from quant.formats import FORMATS

KV_TYPES = {"f16": F16, "q8_0": Q8_0, "f32": F32}  # of cached rows
# How a layer's rows are rounded where one of these matrices is quantized. The first attention matrices decide where every head
# looks; an expert may meet few or many of its tokens.
_READERS = {
    "reads_normed": (TWO_TERMS, ("attn_q_a", "attn_kv_a_mqa")),
    "reads_q_normed": (CODES, ("attn_q_b",)),
    "reads_q": (CODES, ("attn_k_b",)),
    "reads_context": (CODES, ("attn_v_b",)),
    "reads_heads": (CODES, ("attn_output",)),
    "reads_ffn_normed": (
        EITHER,
        ("ffn_gate", "ffn_up", "ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_gate_shexp", "ffn_up_shexp"),
    ),
    "reads_hidden": (CODES, ("ffn_down", "ffn_down_shexp")),
    "reads_routed": (CODES, ("ffn_down_exps",)),
}


def round_up(n: int, multiple: int) -> int:
    """The smallest multiple that is no less than n."""
    return -(-n // multiple) * multiple


class Stack(NamedTuple):
    """What forward() runs: layers, then a norm and a matrix.

    model    record MODEL: sizes, how many layers, the norm and the matrix behind them
    layers   records LAYER (n,)
    """

    model: np.void
    layers: np.ndarray


@dataclass(frozen=True)
class NextToken:
    """The next-token-prediction layer: y = layer(A enorm(embedding of token p + 1) + B hnorm(state at p)), eh_proj = [A | B].

    lower, last   the trunk without its last layer and this layer with the head: so the state of every token of a prompt can be
                  had while the prompt's last token computes what it always does
    embedding, state   no layer: a norm and its half of eh_proj
    layer         the layer, its own norm, and the first rows of its head; its cached rows stand behind those of the trunk
    output_norm, norm   float32 (hidden_size,): of the trunk's states, and of the layer's
    embed         where its embeddings stand
    """

    lower: Stack
    last: Stack
    embedding: Stack
    state: Stack
    layer: Stack
    output_norm: np.ndarray
    norm: np.ndarray
    embed: TensorInfo


class Weights:
    """One model's records; holds on to everything that they point to.

    model    record MODEL, sizes and the output matrix
    layers   records LAYER (num_hidden_layers,)
    next_token  the prediction layer, or None: it does not run
    tensors  {name: tensor as the kernels read it}
    notes    lines that tell the user what was converted
    """

    def __init__(
        self,
        file: GGUFFile,
        config: Config,
        kv_type: str | None = None,
        converting: Converting | None = None,
        ahead: bool = False,
    ) -> None:
        """kv_type: of the cached rows, a name in KV_TYPES; left out as exact as the weights. Raises UserError for another.

        converting   is told what is converted, before and while it is
        ahead        the prediction layer is to run, and the file has one
        """
        if kv_type is not None and kv_type not in KV_TYPES:
            raise UserError(f"a cache of type {kv_type!r} was asked for; there are {', '.join(KV_TYPES)}", "usage")
        self.config = config
        self.tensors, self.notes = tensors_to_run(file, config, converting, ahead)
        self._arrays: list[np.ndarray] = []
        c = config
        model = np.zeros(1, MODEL)  # MODEL (1,)
        for name in ("hidden_size", "num_hidden_layers", "first_k_dense_replace", "n_routed_experts", "num_experts_per_tok",
                     "num_attention_heads", "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim",
                     "norm_topk_prob", "rms_norm_eps", "routed_scaling_factor"):  # fmt: skip
            model[name] = getattr(c, name)
        model["softmax_router"] = c.scoring_func == "softmax"
        model["softmax_scale"] = 1 / math.sqrt(c.qk_head_dim)
        model["latent"] = round_up(c.kv_lora_rank, 64)
        model["row"] = model["latent"] + round_up(c.qk_rope_head_dim, 64)
        extra = f"blk.{c.num_hidden_layers}."  # the prediction layer decides nothing
        matrices = [t for t in self.tensors.values() if len(t.shape) > 1 and not t.name.startswith(extra)]
        formats = {FORMATS[tensor.format] for tensor in matrices}
        exact = all(form.block_length == 1 for form in formats)
        model["cache_type"] = KV_TYPES[kv_type or ("f32" if exact else "f16")]
        # Beside rows of Q8_0 alone, int8 in the attention would be the larger error (benchmarks/LOG.md).
        fine = all(form.block_length == 1 or form.name == "Q8_0" for form in formats)
        model["float_attention"] = fine or model["cache_type"] == F32
        model["row_bytes"] = row_bytes(int(model["row"][0]), int(model["cache_type"][0]))
        model["output_norm"] = self._vector("output_norm.weight")
        output = "token_embd.weight" if c.tie_word_embeddings else "output.weight"
        model["output"] = self._matrix(output)
        self.layers = np.zeros(c.num_hidden_layers, LAYER)  # LAYER (num_hidden_layers,)
        for i, layer in enumerate(self.layers):
            self._fill(layer, i)
        model["reads_output"] = TWO_TERMS if self._reads_codes(output) else FLOATS
        self.model = model[0]
        self.next_token = self._next_token() if ahead else None

    def _fill(self, layer: np.void, i: int) -> None:
        """Fill the record of block i."""
        layer["index"], layer["is_dense"] = i, i < self.config.first_k_dense_replace
        for field in LAYER.names or ():
            name = f"blk.{i}.{field}." + ("bias" if field == "exp_probs_b" else "weight")
            if name in self.tensors:
                layer[field] = self._matrix(name) if LAYER[field] == WEIGHT else self._vector(name)
        for field, (rounding, readers) in _READERS.items():
            layer[field] = rounding if any(self._reads_codes(f"blk.{i}.{name}.weight") for name in readers) else FLOATS

    def _next_token(self) -> NextToken:
        n, block = self.config.num_hidden_layers, f"blk.{self.config.num_hidden_layers}.nextn."
        extra = np.zeros(1, LAYER)  # LAYER (1,)
        self._fill(extra[0], n)
        if self.config.first_k_dense_replace > n:
            extra["is_dense"] = 0
        left, right = self._halves(self.tensors[block + "eh_proj.weight"])
        head = first_rows(self._or_trunk(block + "shared_head_head.weight"), DRAFT_HEAD)
        norm, output_norm = self._or_trunk(block + "shared_head_norm.weight"), self.tensors["output_norm.weight"]
        return NextToken(
            lower=self._stack(n - 1, self.layers, output_norm, None),
            last=self._stack(1, self.layers[n - 1 :], output_norm, None),
            embedding=self._stack(0, self.layers, self.tensors[block + "enorm.weight"], left),
            state=self._stack(0, self.layers, self.tensors[block + "hnorm.weight"], right),
            layer=self._stack(1, extra, norm, (_record(head), self._reads_codes(head.name))),
            output_norm=output_norm.floats(),
            norm=norm.floats(),
            embed=self._or_trunk(block + "embed_tokens.weight"),
        )

    def _or_trunk(self, name: str) -> TensorInfo:
        """A tensor of the prediction layer, or the trunk's that stands for it."""
        return self.tensors[name if name in self.tensors else of_trunk(self.config, name) or name]

    def _stack(self, n: int, layers: np.ndarray, norm: TensorInfo, matrix: tuple[tuple, bool] | None) -> Stack:
        """n layers, a norm and another matrix than the trunk's with whether it reads codes; None: the trunk's."""
        model = np.array([self.model])  # MODEL (1,)
        model["num_hidden_layers"], model["output_norm"] = n, self._vector(norm.name)
        if matrix is not None:
            model["output"], model["reads_output"] = matrix[0], TWO_TERMS if matrix[1] else FLOATS
        return Stack(model[0], layers)

    def _halves(self, tensor: TensorInfo) -> list[tuple[tuple, bool]]:
        """The left and the right half of a matrix's columns as WEIGHT, where they stand, and whether they read codes.

        Where a half is not whole blocks, both are copied as float32.
        """
        form, half = FORMATS[tensor.format], tensor.shape[1] // 2
        if half % form.block_length:
            form, rows = FORMATS["F32"], tensor.floats().view(np.uint8)  # uint8 (rows, bytes of a row)
            self._arrays.append(rows)
        else:
            rows = tensor.rows
        stride, begin, codes = form.row_bytes(2 * half), rows.ctypes.data, form.block_length > 1
        places = begin, begin + form.row_bytes(half)
        return [((place, form.ggml_type, len(rows), half, stride, 0), codes) for place in places]

    def cache_shape(self, n_ctx: int) -> tuple[int, int, int, int, int, int]:
        """What a Sequence takes: layers, positions, bytes of a row and of a block of columns, vocabulary, width of a state."""
        c, ahead, rows, columns = self.config, self.next_token is not None, int(self.model["row_bytes"]), block_bytes(self.model)
        return c.num_hidden_layers + ahead, n_ctx, rows, columns, c.vocab_size, c.hidden_size * ahead

    def _reads_codes(self, name: str) -> bool:
        return name in self.tensors and FORMATS[self.tensors[name].format].block_length > 1

    def _vector(self, name: str) -> int:
        """Address of a float32 copy: vectors are small, and kernels then know one type."""
        vector = np.ascontiguousarray(self.tensors[name].floats(), np.float32)  # float32 (n,)
        self._arrays.append(vector)
        return vector.ctypes.data

    def _matrix(self, name: str) -> tuple[int, int, int, int, int, int]:
        return _record(self.tensors[name])

    def embed(self, tokens: np.ndarray, tensor: TensorInfo | None = None) -> np.ndarray:
        """The embeddings of token ids, float32 (len(tokens), hidden_size); ids have been checked. From another tensor if given."""
        tensor = tensor or self.tensors["token_embd.weight"]
        return FORMATS[tensor.format].decode(tensor.rows[tokens])  # float32 (tokens, hidden_size)

    @property
    def bytes_per_token(self) -> int:
        """Bytes of weights that one decoded token reads."""
        return read_per_token(self.config, {name: tensor.n_bytes for name, tensor in self.tensors.items()})


def _record(tensor: TensorInfo) -> tuple[int, int, int, int, int, int]:
    """A WEIGHT record."""
    form, stack, (rows, columns) = FORMATS[tensor.format], tensor.matrices, tensor.shape[-2:]
    return stack.ctypes.data, form.ggml_type, rows, columns, form.row_bytes(columns), stack.strides[0]
