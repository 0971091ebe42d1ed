"""The layers of a decoder, each aware of the rank it lives on."""
