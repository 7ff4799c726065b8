"""Other libraries' solvers behind the same protocol."""
