"""Text in, a trained model out."""
