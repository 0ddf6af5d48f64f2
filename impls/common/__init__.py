"""Code that every engine shares: the model, its weights, the data, the optimizer and the mesh."""
