"""What is wrong with a layer: which mistake, at which line, in how small a case."""
