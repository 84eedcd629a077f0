"""Messages to tokens (template.py) and tokens to answer, reasoning and tool calls (stream.py)."""
