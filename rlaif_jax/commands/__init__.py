"""CLI commands other than stages. Each is a function with plain parameters."""
