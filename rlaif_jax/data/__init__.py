"""Records, the files they come from, the tokenizer, batches, and the bundled corpus."""
