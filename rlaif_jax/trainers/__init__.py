"""One update factory and one loop for SFT, reward models and reinforcement learning."""
