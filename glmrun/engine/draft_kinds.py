"""The kinds of drafts, apart from what makes them: the command line knows them before kernels are loaded."""

from quant.errors import UserError

DRAFTS = ("off", "ngram", "auto")


def checked_draft(draft: str) -> str:
    """draft, if it is one of DRAFTS. Raises UserError (usage)."""
    if draft not in DRAFTS:
        raise UserError(f"drafts of kind {draft!r} were asked for; there are {', '.join(DRAFTS)}", "usage")
    return draft
