"""Decoder-only transformers as pure functions of parameter dicts, with scalar heads for rewards and values."""
