"""Training data and trainers, and what they share: the loop, optimisers, averages, checkpoints, distribution."""
