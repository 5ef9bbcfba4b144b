"""Records, their sources, the tokenizer, batches, and the bundled corpus."""
