"""Labels by k-means: codebooks, the labels they give, and their quality."""
