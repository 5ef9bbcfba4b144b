"""Fuzzers of every reader: mutated inputs are read rightly or refused with a UserError, in bounded time and memory."""
