"""What a person sees: streamed answers, progress, tables and the chat loop. Rich and prompt_toolkit live here."""
