"""Python's side of the code interpreter: the fork server of kernels, and what kernels show."""
