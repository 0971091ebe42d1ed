"""How far does a fleet of engines and gateways scale? A simulation of measured parts (docs/scaling.md)."""
