"""HA: restart of a cluster's VMs. Pure: what a host sees in, (state, actions, events) out."""
