"""Client of Pagewire: sync and async gRPC clients, a local engine, and the command line."""
