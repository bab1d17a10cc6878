"""edgepack's build host: turns a checkpoint into proven bundles. Never needed on a device."""
