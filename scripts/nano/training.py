"""The training loop: Muon for the matrices, Adam for the rest, one micro-batch per core at a time."""

import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch.nn import functional

from nano.architecture import Nano
from nano.corpus import Corpus, training_documents

POOL = 512  # documents sorted by length at a time, so that little of a micro-batch is padding
MICRO_TOKENS = 1300  # padded tokens of a micro-batch
MICRO_BATCHES = 4  # per step
MTP_WEIGHT = 0.3
WINDOWS = 3  # of a pool's examples are stretches of many documents, as windows of a long text are
EVERY = 240  # seconds between two states on disk
FAST_BF16 = torch.cpu._is_avx512_bf16_supported()  # without it, float32 is twenty times faster
STABLE = 0.4  # of the training before the learning rate falls; a plateau suits a machine whose speed changes
MUON_RATE, ADAM_RATE, BALANCE_RATE = 0.02, 3e-3, 5e-3
Batch = tuple[torch.Tensor, torch.Tensor]  # ids int64 (rows, positions), weights float32 (rows, positions)


def pad(examples: list[tuple[np.ndarray, np.ndarray]]) -> Batch:
    """Rows of equal length: padding counts nothing, and stands behind everything that could see it."""
    longest = max(len(ids) for ids, _ in examples)
    ids = np.zeros((len(examples), longest), np.int64)  # (rows, positions)
    weights = np.zeros((len(examples), longest), np.float32)  # (rows, positions)
    for row, (i, w) in enumerate(examples):
        ids[row, : len(i)], weights[row, : len(w)] = i, w
    return torch.from_numpy(ids), torch.from_numpy(weights)


def micro_batches(corpus: Corpus, tokenizer: Tokenizer, seed: int, practice: float = 0.0) -> Iterator[Batch]:
    """Endless micro-batches of documents of similar length, in random order; `practice` as training_documents() takes it."""
    rng = random.Random(seed)
    documents = training_documents(rng, practice)
    while True:
        pool = [corpus.example(tokenizer, next(documents), rng) for _ in range(POOL)]
        pool += [_window(rng, lambda: corpus.example(tokenizer, next(documents), rng)) for _ in range(WINDOWS)]
        pool.sort(key=lambda example: len(example[0]))
        groups: list[list] = [[]]
        for example in pool:
            if (len(groups[-1]) + 1) * len(example[0]) > MICRO_TOKENS and groups[-1]:
                groups.append([])
            groups[-1].append(example)
        rng.shuffle(groups)
        yield from map(pad, groups)


def _window(rng: random.Random, draw: Callable[[], tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """256 to 1,024 tokens of documents joined, from the middle of the first on."""
    length, parts = rng.choice((256, 512, 512, 1024)), [draw()]
    begin = rng.randrange(len(parts[0][0]))
    while sum(len(ids) for ids, _ in parts) < begin + length:
        parts.append(draw())
    ids, weights = (np.concatenate(column)[begin : begin + length] for column in zip(*parts, strict=True))
    return ids, weights


def losses(model: Nano, batch: Batch, with_mtp: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(summed loss of the next token, summed loss of the token after next), each weighted by the target's weight."""
    ids, weights = batch
    states = model.trunk.model(ids, use_cache=False).last_hidden_state  # (rows, positions, hidden)
    trunk = _weighted_loss(model, states[:, :-1], ids[:, 1:], weights[:, 1:])
    if not with_mtp or ids.shape[1] < 3:
        return trunk, torch.zeros(())
    embeddings = model.trunk.model.embed_tokens(ids[:, 1:-1])  # (rows, positions - 2, hidden)
    after = model.next_token(embeddings, states[:, :-2], model.trunk.model.rotary_emb)
    return trunk, _weighted_loss(model, after, ids[:, 2:], weights[:, 2:])


def _weighted_loss(model: Nano, states: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    counted = weights > 0
    logits = model.trunk.lm_head(states[counted]).float()  # (counted, vocabulary)
    return (functional.cross_entropy(logits, targets[counted], reduction="none") * weights[counted]).sum()


class Muon:
    """Momentum whose matrices are orthogonalized before they are applied (Jordan et al., 2024).

    Takes half as many tokens as Adam on this model. Stacked experts (experts, rows, columns) are a batch of matrices.
    """

    def __init__(self, parameters: list[torch.Tensor], momentum: float = 0.95) -> None:
        self.momentum = momentum
        self.groups: dict[tuple[int, int], list[tuple[torch.Tensor, torch.Tensor]]] = {}
        for p in parameters:
            self.groups.setdefault((p.shape[-2], p.shape[-1]), []).append((p, torch.zeros_like(p)))

    def velocities(self) -> list[torch.Tensor]:
        """The momentum of every parameter, in the order of the groups."""
        return [velocity for members in self.groups.values() for _, velocity in members]

    def load(self, velocities: list[torch.Tensor]) -> None:
        """Take over what velocities() gave."""
        for mine, kept in zip(self.velocities(), velocities, strict=True):
            mine.copy_(kept)

    @torch.no_grad()
    def step(self, gradients: dict[torch.Tensor, torch.Tensor], rate: float, pool: ThreadPoolExecutor) -> None:
        """Move every parameter by rate * its orthogonalized momentum."""
        for (rows, columns), members in self.groups.items():
            for p, velocity in members:
                velocity.lerp_(gradients[p], 1 - self.momentum)
            updates = torch.cat([gradients[p].lerp(v, self.momentum).view(-1, rows, columns) for p, v in members])
            updates = torch.cat(list(pool.map(_orthogonal, updates.chunk(2)))) * (rate * max(1.0, rows / columns) ** 0.5)
            for (p, _), update in zip(members, updates.split([p.numel() // (rows * columns) for p, _ in members]), strict=True):
                p.mul_(1 - 0.02 * rate).sub_(update.view_as(p))


@torch.no_grad()
def _orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """Five Newton-Schulz steps towards the nearest matrix with orthonormal rows or columns, (n, rows, columns)."""
    x = matrices.bfloat16() if FAST_BF16 else matrices
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return (x.mT if tall else x).float()


def train(
    model: Nano,
    batches_from: Callable[[int], Iterator[Batch]],
    budget: Callable[[int, float], float],
    on_progress: Callable[[int, float, float], None],
    state: Path,
    peak: float = 1.0,
) -> tuple[int, int, float]:
    """Train until budget(step, seconds) reaches 1; (steps, tokens trained, seconds).

    budget also drives the learning rate: a warm-up of 15 steps, a plateau at `peak`, then down in a line.
    batches_from(step) gives the micro-batches from a step on; on_progress(step, seconds, loss) is called after every step.
    `state` is the file that a training which was stopped goes on from; it is written every few minutes.
    Two Python threads each run their own micro-batch, because on a busy machine one parallel matrix product waits for its
    slowest thread; gradients are summed in a fixed order, so the result does not depend on timing.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    tables = ("embed_tokens.weight", "lm_head.weight", "mlp.gate.weight")  # rows of their own, not maps from space to space
    chosen = {p for name, p in model.named_parameters() if p.ndim >= 2 and not name.endswith(tables)}
    muon = Muon([p for p in parameters if p in chosen])
    adam = torch.optim.AdamW([p for p in parameters if p not in chosen], lr=ADAM_RATE, betas=(0.9, 0.95), weight_decay=0.0)
    step, tokens, before = 0, 0, 0.0
    if state.exists():
        kept = torch.load(state)
        step, tokens, before = kept["step"], kept["tokens"], kept["seconds"]
        model.load_state_dict(kept["model"])
        adam.load_state_dict(kept["adam"])
        muon.load(kept["muon"])
    batches = batches_from(step)

    def gradients(job: tuple[Batch, bool]) -> tuple[list[torch.Tensor | None], float, float, int]:
        batch, with_mtp = job
        with torch.autocast("cpu", torch.bfloat16, enabled=FAST_BF16):
            trunk, after = losses(model, batch, with_mtp)
        found = torch.autograd.grad(trunk + MTP_WEIGHT * after, parameters, allow_unused=True)
        return list(found), float(trunk.detach()), float(batch[1][:, 1:].sum()), int(batch[1].shape[0] * batch[1].shape[1])

    model.train()
    began = saved = time.monotonic()
    torch.set_flush_denormal(True)  # a softmax that is sure of itself is full of them, and products with them take twice as long
    with ThreadPoolExecutor(2, initializer=torch.set_flush_denormal, initargs=(True,)) as pool:
        while (progress := budget(step, before + time.monotonic() - began)) < 1:
            results = list(pool.map(gradients, [(next(batches), i == 0) for i in range(MICRO_BATCHES)]))
            weight = sum(r[2] for r in results)
            summed = {p: torch.zeros_like(p) for p in parameters}
            for found, *_ in results:
                for p, gradient in zip(parameters, found, strict=True):
                    if gradient is not None:
                        summed[p] += gradient / weight
            factor = peak * min(1.0, (step + 1) / 15, (1 - progress) / (1 - STABLE) + 0.01)
            for p in parameters:
                p.grad = summed[p] if p not in chosen else None
            adam.param_groups[0]["lr"] = ADAM_RATE * factor
            adam.step()
            muon.step(summed, MUON_RATE * factor, pool)
            model.balance(BALANCE_RATE * factor)
            tokens += sum(r[3] for r in results)
            step += 1
            seconds = before + time.monotonic() - began
            on_progress(step, seconds, sum(r[1] for r in results) / weight)
            if time.monotonic() - saved > EVERY:
                saved = time.monotonic()
                kept = {"model": model.state_dict(), "adam": adam.state_dict(), "muon": muon.velocities()}
                torch.save(kept | {"step": step, "tokens": tokens, "seconds": seconds}, state.with_suffix(".partial"))
                state.with_suffix(".partial").replace(state)
    return step, tokens, before + time.monotonic() - began
