"""What a network consists of: roles (patch embedding, class token, block, attention, skip connection ...) and their places."""
