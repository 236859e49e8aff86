"""A whole cluster on virtual time: everything in it fails, and the production HA machines look after it."""
