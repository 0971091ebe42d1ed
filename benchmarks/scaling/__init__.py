"""How far does a fleet of engines and gateways scale? A simulation, made of measured parts. docs/scaling.md tells what it
shows."""
