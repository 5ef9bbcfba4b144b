"""What the CLI does besides stages, each a function with plain parameters."""
