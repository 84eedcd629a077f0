"""The tool call that a stream stands in: what a chunk adds to it, and which calls the chunk begins."""

from dataclasses import dataclass

from glmrun.chat.chunk import CallPiece, Chunk


@dataclass
class OpenCall:
    """The last call of which something went out and that is not closed; no id where there is none."""

    id: str = ""
    n_sent: int = 0  # characters of its arguments

    def take(self, chunk: Chunk) -> tuple[str, list[CallPiece]]:
        """(what is new of the open call's arguments, the calls that begin, each with what is there of it).

        The first goes out in front of the chunk's text, the others behind it. Whole calls come with all their arguments.
        """
        calls, piece, more = chunk.tool_calls or [], chunk.call_piece, ""
        if self.id and calls and calls[0]["id"] == self.id:
            more = calls[0]["function"]["arguments"][self.n_sent :]
            calls, self.id = calls[1:], ""
        elif self.id and piece is not None and piece.id == self.id:
            more, piece = piece.arguments, None
            self.n_sent += len(more)
        begun = [CallPiece(call["id"], call["function"]["name"], call["function"]["arguments"] or "{}") for call in calls]
        if piece is not None:
            begun.append(piece)
            self.id, self.n_sent = piece.id, len(piece.arguments)
        return more, begun
