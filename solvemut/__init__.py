"""solvemut: change the architecture of a PyTorch model by integer programming."""
