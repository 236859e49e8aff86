"""The real effects behind the ports: sockets, libvirt, files. Nothing else in the package touches them."""
