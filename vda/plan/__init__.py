"""`vda plan`: what a run will take, estimated from a few of its steps."""
