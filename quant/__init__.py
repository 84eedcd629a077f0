"""Files in, files out: GGML block formats and the checkpoint converter. Knows no runtime, prints nothing."""
