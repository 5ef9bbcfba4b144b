"""What a run will need, without running it: an estimate of memory, and the TPU compiler's word on every program."""
