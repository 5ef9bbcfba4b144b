"""`rlaif plan`: a run's programs compiled by the TPU compiler on a machine without a TPU, and what they cost per chip."""
