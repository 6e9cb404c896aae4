"""The formats of other libraries: each one's configuration and state dict, to ours and back."""
