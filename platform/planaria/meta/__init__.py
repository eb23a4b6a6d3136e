"""Meta-training: simulated streams, many models at once, and what a controller learns from them."""
