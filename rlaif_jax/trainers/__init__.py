"""SFT, reward models, DPO and RL: they share one update function and one training loop."""
