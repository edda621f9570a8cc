"""Mathematics on tensors: similarity, Gram matrices, choices of tokens, ridge regression. Knows no model and no image."""
