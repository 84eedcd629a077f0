"""nano's prediction layer against its PyTorch twin, which trained it: the same states, the same guesses."""

import numpy as np
import pytest
import torch
from nano import checkpoint
from nano.architecture import Nano
from support.comparison import nmse
from transformers import Glm4MoeLiteConfig

import glmrun
from glmrun.engine.next_token import read
from glmrun.engine.passes import Run
from glmrun.engine.sequence import Sequence
from glmrun.engine.workspace import Part


@pytest.fixture(scope="module")
def twin(nano) -> Nano:
    model = Nano(Glm4MoeLiteConfig.from_pretrained(nano.folder))
    checkpoint.give(model, checkpoint.read(nano.folder))
    return model.float().eval()


@pytest.mark.parametrize(("recipe", "limit", "same"), [("F32", 1e-7, 0.999), ("Q8_0", 5e-3, 0.98), ("Q4_K_M", 5e-2, 0.93)])
@torch.no_grad()
def test_states_and_guesses_are_the_twins(nano, gguf_of, twin: Nano, recipe: str, limit: float, same: float) -> None:
    """F32 differs by transformers' eps in two norms, the others by their rounding, too."""
    agreed = total = 0
    with glmrun.load(gguf_of(nano, recipe), n_ctx=1024, n_threads=2, draft="mtp") as model:
        for text in nano.texts[:5]:
            ids = torch.tensor([text])
            states = twin.trunk.model(ids, use_cache=False).last_hidden_state  # (1, positions, hidden)
            embeddings = twin.trunk.model.embed_tokens(ids[:, 1:])
            own = twin.next_token(embeddings, states[:, :-1], twin.trunk.model.rotary_emb)
            expected = twin.trunk.lm_head(own)[0].numpy()  # float32 (positions - 1, n_vocab)
            sequence = Sequence(*model.weights.cache_shape(model.n_ctx))
            assert model.runner.step([Run(sequence, np.array(text), sequence.logits, ahead=True)])
            assert sequence.n_ahead == len(text) - 1 and sequence.states is not None
            assert nmse(sequence.states, states[0, -1:].numpy()) < limit
            n = len(text) - 1
            found = read(model.runner._passes, Part(sequence.cache, 0, n, n), text[1:], states[0, :-1].numpy())
            assert found is not None
            assert nmse(found[0], expected) < limit and nmse(found[1], own[0].numpy()) < limit
            agreed += int((found[0].argmax(-1) == expected.argmax(-1)).sum())
            total += n
    assert total > 500 and agreed >= same * total
