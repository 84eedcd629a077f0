"""The kinds of drafts, apart from what makes them: the command line knows them before kernels are loaded."""

from quant.errors import UserError

DRAFTS = ("off", "ngram", "mtp", "auto")
LONGEST_CHAIN = 3  # guesses of the prediction layer, each from the one before; a pass over more is not exact, and never paid


def checked_draft(draft: str) -> str:
    """draft, if it is one of DRAFTS, or mtp:1 to mtp:LONGEST_CHAIN. Raises UserError (usage)."""
    if draft not in DRAFTS and not chain_of(draft):
        kinds = f"{', '.join(DRAFTS)}, and mtp:2 or mtp:{LONGEST_CHAIN} for several guesses at a time"
        raise UserError(f"drafts of kind {draft!r} were asked for; there are {kinds}", "usage")
    return draft


def chain_of(draft: str) -> int:
    """How many tokens a draft of that kind has that is the prediction layer's only; 0 for all other kinds."""
    return {"mtp": 1, **{f"mtp:{n}": n for n in range(1, LONGEST_CHAIN + 1)}}.get(draft, 0)
