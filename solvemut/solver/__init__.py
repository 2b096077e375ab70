"""What stands behind :mod:`solvemut.program`: exact numbers, the compiled model, engines, and the search over them."""
