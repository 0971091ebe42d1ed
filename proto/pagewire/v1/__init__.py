"""Generated code of the public gRPC API (see the .proto files beside it; `make proto` rebuilds it)."""
