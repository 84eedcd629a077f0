"""One file a block format: rows and tiles of it times activations."""
