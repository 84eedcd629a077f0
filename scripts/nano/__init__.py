"""How nano, the small model that comes with glmrun, is made: its texts, its vocabulary, its training, its checkpoint."""
