"""Messages of the Open Inference Protocol, version 2. Names and numbers are the protocol's own."""
