"""The models: what a checkpoint says about its shape, the families, and the decoder they share."""
