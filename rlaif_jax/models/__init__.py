"""Decoder-only transformers as pure functions over parameter dicts, with scalar heads for rewards and values."""
