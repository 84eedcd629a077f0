"""One module per GGML block format: the layout, a reference decoder in NumPy, and a jitted encoder unless the format is only read.

The jitted functions are cached by file: an edit in floats.py does not recompile the encoders that inline its half-precision
conversions. glmrun names the cache folder by a digest of these sources; clear __pycache__ when working on them without it.
"""
